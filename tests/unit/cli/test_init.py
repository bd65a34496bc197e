"""`arcpipe init`: what it writes, what it never overwrites, and what it says."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from arcpipe import __version__, native
from arcpipe.cli import init
from arcpipe.errors import ArcpipeError
from tests.support.program import ROOT

SOURCES = {
    "config.toml": ROOT / "config.toml",
    **{f"systemd/{path.name}": path for path in (ROOT / "systemd").iterdir() if path.suffix != ".md"},
    **{f"ops/{path.name}": path for path in (ROOT / "ops").iterdir()},
}


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def test_each_file_has_the_text_of_the_repository(tmp_path: Path) -> None:
    init.init(tmp_path / "new" / "folder")
    assert content(tmp_path / "new" / "folder") == {name: path.read_bytes() for name, path in SOURCES.items()}


def test_a_second_run_changes_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init.init(tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    capsys.readouterr()
    init.init(tmp_path)
    said = capsys.readouterr().out
    assert "written" not in said
    assert said.count("unchanged ") == len(SOURCES)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("name", ["config.toml", "systemd/arcpipe.service"])
def test_what_differs_is_kept_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    with pytest.raises(ArcpipeError, match=rf"^{own}: there already, with another content\. Nothing was written\."):
        init.init(tmp_path)
    assert content(tmp_path) == {name: b"mine"}
    init.init(tmp_path, force=True)
    assert content(tmp_path) == {name: path.read_bytes() for name, path in SOURCES.items()}


def test_a_link_that_leads_nowhere_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.toml").symlink_to(tmp_path / "on a disk that is not mounted")
    with pytest.raises(ArcpipeError, match="there already"):
        init.init(tmp_path)
    assert os.listdir(tmp_path) == ["config.toml"]


def test_a_file_that_cannot_be_read_is_not_taken_as_absent(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(ArcpipeError, match=r"^cannot read .*config\.toml: Is a directory\. Nothing was written\.$"):
        init.init(tmp_path, force=True)
    assert os.listdir(tmp_path) == ["config.toml"]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("arcpipe.disk.Disk.write", full)
    with pytest.raises(ArcpipeError, match=r"^cannot write .*config\.toml: No space left on device\. It is as it was"):
        init.init(tmp_path)
    assert not (tmp_path / "config.toml").exists()


def test_the_unit_starts_the_program_that_wrote_it_unless_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "bin" / "arcpipe"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "init"])
    monkeypatch.setattr(init, "_HIDDEN", ("/home/",))
    init.init(tmp_path / "seen")
    assert f"ExecStart={program} serve" in (tmp_path / "seen/systemd/arcpipe.service").read_text()
    assert "pip install" not in capsys.readouterr().out
    # The sandbox of the service hides home directories and those of temporary files.
    monkeypatch.setattr(init, "_HIDDEN", (str(tmp_path),))
    init.init(tmp_path / "hidden")
    assert content(tmp_path / "hidden")["systemd/arcpipe.service"] == SOURCES["systemd/arcpipe.service"].read_bytes()
    for kernel, what in ((None, f"arcpipe=={__version__}\n"), (native, f"'arcpipe[native]=={__version__}'\n")):
        monkeypatch.setattr(native, "KERNEL", kernel)
        init.init(tmp_path / "hidden")
        assert f"python3 -m venv /opt/arcpipe && /opt/arcpipe/bin/pip install {what}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["with space", "100%"])
def test_a_unit_names_no_path_that_systemd_reads_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    program = tmp_path / name / "arcpipe"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "init"])
    monkeypatch.setattr(init, "_HIDDEN", ("/home/",))
    target = tmp_path / "my dir"
    init.init(target)
    assert content(target)["systemd/arcpipe.service"] == SOURCES["systemd/arcpipe.service"].read_bytes()
    told = capsys.readouterr().out
    assert "python3 -m venv /opt/arcpipe" in told
    assert f"install -D -m 640 '{target}/config.toml' /etc/arcpipe/config.toml" in told

"""`arcpipe load`: options that cannot be are told before anything is sent."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arcpipe.cli.main import app
from arcpipe.errors import ArcpipeError
from tests.support.compression import zstd


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-"], "standard input is gone after one reading"),
        (["a.lp", "--database", "a/b"], "'a/b' is no database name"),
        (["a.lp", "--format", "xml"], "'xml' is not one of lines"),
        (["a.lp", "--precision", "d"], "--precision: 'd' is not one of auto"),
        (["a.lp", "--compression", "lz4"], "compression: 'lz4' is not one of none"),
        (["a.lp", "--types", "x"], "--types: 'x' is not COLUMN="),
        (["a.lp", "--url", "ftp://x"], "is not a URL"),
        (["empty"], "no file in this folder can be loaded"),
        (["b.csv"], "nothing says which measurement"),
        (["a.lp", "--cacert", "a.lp", "--url", "https://localhost"], "ca_file: a.lp cannot be used"),
    ],
)
def test_options_that_cannot_be_are_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.lp").write_text("cpu n=1i 1\n")
    (tmp_path / "b.csv").write_text("time,n\n1,1\n")
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(app, ["load", *arguments])
    assert done.exit_code == 2, done.output
    assert text in " ".join(done.output.split())


def test_a_file_that_is_missing_does_not_keep_the_others_back(tmp_path: Path) -> None:
    (tmp_path / "a.lp").write_text("cpu n=1i 1\n")
    done = CliRunner().invoke(app, ["load", str(tmp_path / "missing.lp"), str(tmp_path / "a.lp"), "--dry-run"])
    assert done.exit_code == 1
    assert "missing.lp: cannot be read: No such file or directory" in done.output
    assert "1 records are good" in done.output
    assert "1 files are not loaded" in done.output


def test_a_folder_stands_for_every_file_that_has_a_format(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.lp", "a.LP", "sub/c.lp", "notes.md"):
        (tmp_path / name).write_text(f"cpu,file={name} n=1i 1\n")
    (tmp_path / "d.lp.gz").write_bytes(gzip.compress(b"cpu n=1i 1\n"))
    for name in ("e.lp.zst", "f.lp.zstd"):
        (tmp_path / name).write_bytes(zstd.compress(b"cpu,file=%b n=1i 1\n" % name.encode()))
    done = CliRunner().invoke(app, ["load", str(tmp_path), "--dry-run"])
    assert done.exit_code == 0, done.output
    loaded = [Path(line.split(":")[0]).name for line in done.output.splitlines()[:-1]]
    assert loaded == ["a.LP", "b.lp", "d.lp.gz", "e.lp.zst", "f.lp.zstd", "c.lp"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "a.lp").write_text("cpu n=1i 1\n")
    listing = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    done = CliRunner().invoke(app, ["load", str(tmp_path), "--dry-run"])
    assert isinstance(done.exception, ArcpipeError)
    assert str(done.exception) == f"{tmp_path}/secret: cannot be read: Permission denied; nothing is loaded"


def test_a_file_without_a_format_is_told_before_the_others_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.lp").write_text("cpu n=1i 1\n")
    (tmp_path / "b.bin").write_text("what?")
    done = CliRunner().invoke(app, ["load", str(tmp_path / "a.lp"), str(tmp_path / "b.bin"), "--dry-run"])
    assert done.exit_code == 2
    assert "its name does not say what it is" in " ".join(done.output.split())
    assert "are good" not in done.output

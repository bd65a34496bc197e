"""The manual pages and completions that packages have: complete, without a fault, and working in real shells."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from arcpipe.cli.main import app
from arcpipe.config.settings import Settings
from tests.repository.test_docs import each_command
from tests.support.program import ROOT


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    subprocess.run(
        [sys.executable, ROOT / "packaging/manual.py", folder],
        env=os.environ | {"PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": "1700000000"},
        check=True,
    )
    return folder


def unescaped(page: Path) -> str:
    return re.sub(r"\\f[BIR]", "", page.read_text()).replace(r"\-", "-").replace(r"\e", "\\")


@pytest.mark.slow
def test_arcpipe_1_has_every_command_and_option(pages: Path) -> None:
    page = unescaped(pages / "arcpipe.1")
    for name, command in each_command(get_command(app)):
        found = re.search(rf"^\.SS {re.escape(name)}\b(.*?)(?=^\.S[SH] )", page, re.DOTALL | re.MULTILINE)
        assert found is not None, name
        for parameter in command.params:
            for option in (option for option in parameter.opts if option.startswith("--")):
                assert option == "--help" or option in found[1], f"{name} {option}"
    assert "3 a process of the server could not be kept alive" in page
    assert "2023-11-14" in page  # the date of the build


@pytest.mark.slow
def test_arcpipe_toml_5_has_every_setting_with_its_text(pages: Path) -> None:
    page = unescaped(pages / "arcpipe.toml.5")
    sections = re.split(r'^\.SH "\[([a-z0-9_.]+)\]"\n', page, flags=re.MULTILINE)
    text = dict(zip(sections[1::2], sections[2::2], strict=True))
    for key in (value.key for value in Settings().effective()):
        section, _, name = key.rpartition(".")
        assert re.search(
            rf"^\.TP\n(.*\n\.TQ\n)*{name} = .*\n(\.TQ\n.*\n)*[^.\n].{{10}}", text[section], re.MULTILINE
        ), key


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mandoc") is None, reason="there is no mandoc here (apt-get install mandoc)")
def test_the_pages_have_no_fault(pages: Path) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", pages / "arcpipe.1", pages / "arcpipe.toml.5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0)


SHELLS = {
    "bash": 'source "$1"; COMP_WORDS=(arcpipe wal s) COMP_CWORD=2; _arcpipe_completion arcpipe; echo "${COMPREPLY[@]}"',
    "fish": 'source "$argv[1]"; complete --do-complete "arcpipe wal s"',
    # What a file in $fpath is to zsh: the body of a function, which completion calls with `words` and `CURRENT`.
    "zsh": 'compdef() { :; }; _arguments() { print "$@"; }; words=(arcpipe wal s); CURRENT=3; source "$1"',
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_completes_a_command(pages: Path, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    program = tmp_path / "arcpipe"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m arcpipe "$@"\n')
    program.chmod(0o755)
    name = {"bash": "arcpipe.bash", "zsh": "_arcpipe", "fish": "arcpipe.fish"}[shell]
    words = [shell, "-c", SHELLS[shell], *(["arcpipe"] if shell != "fish" else []), str(pages / name)]
    done = subprocess.run(
        words,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "salvage" in done.stdout, done.stderr
    assert "replay" not in done.stdout

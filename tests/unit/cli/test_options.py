"""Options that several commands have mean the same in each."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from arcpipe.cli.main import app
from arcpipe.cli.options import token_of
from arcpipe.errors import ArcpipeError

COMMANDS = [["status", "--url", "http://127.0.0.1:1"], ["load", "a.lp", "--url", "http://127.0.0.1:1"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b" \n", "is empty; `arcpipe token create` prints a token"),
        ("tökén".encode(), "has no token but bytes that no token has"),
    ],
    ids=["missing", "empty", "no token"],
)
def test_every_command_tells_of_a_token_file_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], content: bytes | None, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("token").write_bytes(content)
    done = CliRunner().invoke(app, [*command, "--token-file", "token"])
    told = str(done.exception) if isinstance(done.exception, ArcpipeError) else done.output.strip()
    assert told.removeprefix("arcpipe: ") == f"--token-file: token {reason}"


def test_a_token_file_comes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCPIPE_TOKEN", raising=False)
    assert token_of(None) == ""
    monkeypatch.setenv("ARCPIPE_TOKEN", " arc_variable\n")
    assert token_of(None) == "arc_variable"
    (tmp_path / "token").write_text("arc_file\n")
    assert token_of(tmp_path / "token") == "arc_file"

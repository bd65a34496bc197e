"""`arcpipe serve` in its usual form means the same with and without the parser."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcpipe.cli import main
from arcpipe.cli.serving import Plain, plain


@pytest.mark.parametrize("variable", [None, "", "of/the environment.toml"])
@pytest.mark.parametrize("check", [[], ["--check"]])
@pytest.mark.parametrize("options", [[], ["--config", "a.toml"], ["-c", "b.toml"], ["-c", "a=b c"]])
def test_the_parser_would_find_the_same_file(
    monkeypatch: pytest.MonkeyPatch, options: list[str], check: list[str], variable: str | None
) -> None:
    monkeypatch.delenv("ARCPIPE_CONFIG", raising=False)
    if variable is not None:
        monkeypatch.setenv("ARCPIPE_CONFIG", variable)
    parsed: list[Plain] = []

    def start_server(config: Path | None) -> int:
        parsed.append(Plain(config, is_check=False))
        return 0

    def check_server(config: Path | None) -> str:
        parsed.append(Plain(config, is_check=True))
        return "well"

    monkeypatch.setattr(main, "start_server", start_server)
    monkeypatch.setattr(main, "check_server", check_server)
    arguments = ["serve", *options, *check]
    main.app(arguments, standalone_mode=False)
    assert parsed == [plain(arguments)]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["status"],
        ["--help"],
        ["--version", "serve"],
        ["serve", "--help"],
        ["serve", "--check", "--config", "a.toml"],
        ["serve", "--check", "--check"],
        ["serve", "--config"],
        ["serve", "--config", ""],
        ["serve", "--config", "--check"],
        ["status", "--check"],
        ["serve", "--config", "a.toml", "b.toml"],
        ["serve", "--config=a.toml"],
        ["serve", "a.toml"],
    ],
)
def test_any_other_command_line_is_for_the_parser(arguments: list[str]) -> None:
    assert plain(arguments) is None

"""`arcpipe serve` in its usual form means the same with and without the parser."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcpipe.cli import main
from arcpipe.cli.serving import NotPlain, config_of


@pytest.mark.parametrize("variable", [None, "", "of/the environment.toml"])
@pytest.mark.parametrize(
    "arguments", [["serve"], ["serve", "--config", "a.toml"], ["serve", "-c", "b.toml"], ["serve", "-c", "a=b c"]]
)
def test_the_parser_would_find_the_same_file(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], variable: str | None
) -> None:
    monkeypatch.delenv("ARCPIPE_CONFIG", raising=False)
    if variable is not None:
        monkeypatch.setenv("ARCPIPE_CONFIG", variable)
    parsed: list[Path | None] = []

    def start_server(config: Path | None) -> int:
        parsed.append(config)
        return 0

    monkeypatch.setattr(main, "start_server", start_server)
    main.app(arguments, standalone_mode=False)
    assert parsed == [config_of(arguments)]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["status"],
        ["--help"],
        ["--version", "serve"],
        ["serve", "--help"],
        ["serve", "--check"],
        ["serve", "--check", "--config", "a.toml"],
        ["serve", "--config"],
        ["serve", "--config", ""],
        ["serve", "--config", "--check"],
        ["serve", "--config", "a.toml", "--check"],
        ["serve", "--config", "a.toml", "b.toml"],
        ["serve", "--config=a.toml"],
        ["serve", "a.toml"],
    ],
)
def test_any_other_command_line_is_for_the_parser(arguments: list[str]) -> None:
    with pytest.raises(NotPlain):
        config_of(arguments)

"""Options that several commands have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from arcpipe.cli.serving import CONFIG_VARIABLE
from arcpipe.errors import ArcpipeError


def config_option(purpose: str) -> Any:
    """Make the option `--config` of a command; `purpose` is its help text."""
    return typer.Option("--config", "-c", metavar="FILE", envvar=CONFIG_VARIABLE, help=purpose)


ConfigOption = Annotated[
    Path | None,
    config_option("The TOML file with the settings. Without it: ./config.toml if there is one, else the defaults."),
]


def token_option(scope: str) -> Any:
    """Make the option `--token-file` of a command that sends a token with this scope."""
    return typer.Option(metavar="FILE", help=f"File with a token of scope `{scope}`; default: $ARCPIPE_TOKEN.")


def token_of(file: Path | None) -> str:
    """Return the token of the file, or without a file that of the environment, which may be empty.

    Raises:
        ArcpipeError: the file cannot be read, or has no token.
    """
    if file is None:
        return os.environ.get("ARCPIPE_TOKEN", "").strip()
    try:
        token = file.read_text("ascii").strip()
    except UnicodeDecodeError:
        raise ArcpipeError(f"--token-file: {file} has no token but bytes that no token has") from None
    except OSError as error:
        raise ArcpipeError(f"--token-file: {file} cannot be read: {error.strerror or error}") from None
    if not token:
        raise ArcpipeError(f"--token-file: {file} is empty; `arcpipe token create` prints a token")
    return token

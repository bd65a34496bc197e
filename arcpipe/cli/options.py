"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from arcpipe.cli.serving import CONFIG_VARIABLE


def config_option(purpose: str) -> Any:
    """Make the option `--config` of a command; `purpose` is its help text."""
    return typer.Option("--config", "-c", metavar="FILE", envvar=CONFIG_VARIABLE, help=purpose)


ConfigOption = Annotated[
    Path | None,
    config_option("The TOML file with the settings. Without it: ./config.toml if there is one, else the defaults."),
]

"""Options that several commands have, and the settings that they choose."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings


def config_option(purpose: str) -> Any:
    """Make the option `--config` of a command; `purpose` is its help text."""
    return typer.Option("--config", "-c", metavar="FILE", envvar="ARCPIPE_CONFIG", help=purpose)


ConfigOption = Annotated[
    Path | None,
    config_option("The TOML file with the settings. Without it: ./config.toml if there is one, else the defaults."),
]


def load_settings(config_file: Path | None) -> Settings:
    """Load the settings of a command from a file and the environment.

    Args:
        config_file: the named file; None is ./config.toml, if there is one.

    Raises:
        ConfigError: the settings cannot be used.
    """
    from arcpipe.config.load import load

    return load(_settings_file(config_file), os.environ)


def asked_log_format(config_file: Path | None) -> str:
    """Return the format of the log before the settings are checked."""
    from arcpipe.config.load import asked_for

    return "json" if asked_for("log.format", _settings_file(config_file), os.environ) == "json" else "text"


def _settings_file(given: Path | None) -> Path | None:
    default = Path("config.toml")
    return given or (default if default.exists() else None)

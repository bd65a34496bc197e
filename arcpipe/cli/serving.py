"""The command `serve`, and what every command shares that needs no parser of command lines.

The parser takes 0.2 s and 20 MB to load. A server does without it: `arcpipe serve [--config FILE] [--check]`. So this
module must not import the parser.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from arcpipe.errors import ArcpipeError, ConfigError
from arcpipe.libraries import have_one_thread, loading

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings
    from arcpipe.supervisor.upgrade import Former

log = logging.getLogger(__name__)

CONFIG_VARIABLE: Final = "ARCPIPE_CONFIG"
"""The environment variable for the option `--config`."""


class Plain(NamedTuple):
    """A command line that needs no parser."""

    config: Path | None  # None for the default
    is_check: bool


def plain(arguments: Sequence[str]) -> Plain | None:
    """Read the command line of a server; None if it is another command, has other options, or may be wrong."""
    match arguments:
        case ["serve", *options]:
            is_check = options[-1:] == ["--check"]
        case _:
            return None
    match options[:-1] if is_check else options:
        case []:
            named = os.environ.get(CONFIG_VARIABLE, "")
            return Plain(Path(named) if named else None, is_check)
        case ["--config" | "-c", file] if file and not file.startswith("-"):
            return Plain(Path(file), is_check)
    return None


def run(command: Plain) -> int:
    """Run a server or check its start, and return the exit code. Raises ArcpipeError."""
    if command.is_check:
        print(check_server(command.config))
        return 0
    return start_server(command.config)


def start_server(config: Path | None) -> int:
    """Run the server until it stops, and return its exit code.

    Raises:
        ArcpipeError: it cannot start; a ConfigError if the settings are the reason.
    """
    with loading():
        from arcpipe import logs
        from arcpipe.supervisor import upgrade

    def start(former: Former) -> int:
        settings = load_settings(config)
        logs.setup(settings.log.level, settings.log.format, "supervisor")
        have_one_thread()
        with loading():
            from arcpipe.supervisor import supervisor

        return supervisor.serve(settings, lambda: load_settings(config), former)

    # Set up first, so that errors of a start have the format of the log, too.
    logs.setup("INFO", _asked_log_format(config), "supervisor")
    try:
        return upgrade.started(start)
    except OSError:  # of a command it is told in a line; of a server it is a bug, and the place is needed
        log.critical("BUG: the server ended by an error that nothing handles", exc_info=True)
        return 1


def check_server(config: Path | None) -> str:
    """Try everything that a start would do, and return one line that says what would work.

    Raises:
        ArcpipeError: a start would fail; a ConfigError if the settings are the reason.
    """
    settings = load_settings(config)
    tell_warnings(settings)
    have_one_thread()
    _import_the_server()
    from arcpipe.supervisor import startup
    from arcpipe.supervisor.service_manager import take_inheritance

    return startup.check(settings, take_inheritance(os.environ))


def _import_the_server() -> None:
    """Import all modules that the server's processes run.

    Raises:
        ImportError: the installation is incomplete.
    """
    with loading():
        import arcpipe.compaction.process
        import arcpipe.supervisor.supervisor
        import arcpipe.upload.uploader  # noqa: F401


def tell_warnings(settings: Settings) -> None:
    """Print the warnings about settings on stderr."""
    for warning in settings.warnings:
        print(f"arcpipe: warning: {warning}", file=sys.stderr)


def load_settings(config_file: Path | None) -> Settings:
    """Load the settings of a command from a file and the environment.

    Args:
        config_file: the named file; None is ./config.toml, if there is one.

    Raises:
        ConfigError: the settings cannot be used.
    """
    from arcpipe.config.load import load

    return load(_settings_file(config_file), os.environ)


def _asked_log_format(config_file: Path | None) -> str:
    """Return the format of the log before the settings are checked."""
    from arcpipe.config.load import asked_for

    return "json" if asked_for("log.format", _settings_file(config_file), os.environ) == "json" else "text"


def _settings_file(given: Path | None) -> Path | None:
    default = Path("config.toml")
    return given or (default if default.exists() else None)


def end_by_code(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code; say why if it fails."""
    try:
        code = _flushed(command)
    except ArcpipeError as error:
        is_of_settings = isinstance(error, ConfigError)
        if is_of_settings:
            _say("the settings cannot be used:", [f"  {line}" for line in str(error).splitlines()])
        else:
            _say(str(error), [])
        code = 2 if is_of_settings else 1
    except OSError as error:
        code = _refused(error)
    finally:
        gc.freeze()  # Python collects garbage when it ends, which takes 0.05 s with all libraries loaded
    sys.exit(code)


def _flushed(command: Callable[[], int]) -> int:
    """Run a command and write out what it printed, so that a failure of stdout is told as any other is."""
    try:
        code = command()
    except SystemExit as ended:  # the parser's end
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    if sys.stdout is not None:  # it was closed at the start
        sys.stdout.flush()
    return code


def _refused(error: OSError) -> int:
    """Say what the system refused to a command, and return the exit code. A reader that left is no failure to tell."""
    if not isinstance(error, BrokenPipeError):
        reason = error.strerror or str(error)
        _say(f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes) else reason, [])
    # Python writes the rest of the output at its end, and would fail again.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1


def _say(text: str, details: list[str]) -> None:
    """Print the reason of a failure: as log lines if the log is JSON, otherwise as plain text."""
    from arcpipe import logs

    if logs.are_json():
        for line in [" ".join([text, detail.strip()]) for detail in details] or [text]:
            log.critical("%s", line)
    else:
        logs.say([f"arcpipe: {text}", *details])

"""The command line. It parses, calls, prints and turns errors into exit codes; the work is done elsewhere.

Exit codes: 0 done, 1 arcpipe could not do it, 2 wrong usage or settings, 3 a process of the server could not be kept
alive, 4 the server stopped and it is unknown whether everything is uploaded; `status` has its own. Whatever is slow to
import is imported inside the command that needs it, so that `arcpipe --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arcpipe import __version__, cli_status, cli_token, cli_wal
from arcpipe.errors import ArcpipeError, ConfigError

if TYPE_CHECKING:
    from arcpipe.config import EffectiveValue, Settings, Value

app = typer.Typer(
    help="A durable HTTP ingestion gateway: on disk before the answer, Parquet in storage, exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at the settings and check them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
app.add_typer(cli_wal.app, name="wal")
app.add_typer(cli_token.app, name="token")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        envvar="ARCPIPE_CONFIG",
        help="The TOML file with the settings. Without it: ./config.toml if there is one, else the defaults.",
    ),
]


def main() -> None:
    """Entry point of the console script and of `python -m arcpipe`."""
    try:
        app(prog_name="arcpipe")
    except ConfigError as error:
        print("arcpipe: the settings cannot be used:", file=sys.stderr)
        for line in str(error).splitlines():
            print(f"  {line}", file=sys.stderr)
        sys.exit(2)
    except ArcpipeError as error:
        print(f"arcpipe: {error}", file=sys.stderr)
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"arcpipe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only see whether the settings and the program would do, then exit.")
    ] = False,
) -> None:
    """Run the server, until SIGTERM or Ctrl-C.

    SIGHUP reads tokens, certificate and log.level again.
    SIGUSR2 replaces a running server by the version that is installed by then, without refusing a connection.

    \b
    Example:
      arcpipe serve --config config.toml
    """
    settings = load_settings(config)

    # A process that forks had better have one thread. numpy's linear algebra, which nobody uses here, and the allocator
    # that Arrow keeps beside its default one start threads when they are loaded, unless told not to.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    from arcpipe import changeable, logs, supervisor
    from arcpipe.listeners import Listeners

    if check:
        supervisor.import_everything()
        changeable.check(settings)
        Listeners(settings, 1).check()
        return
    logs.setup(settings.log.level, settings.log.format, "supervisor")
    raise typer.Exit(supervisor.serve(settings, lambda: load_settings(config)))


app.command("status")(cli_status.status)


@config_app.command("show")
def config_show(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: key -> value and source.")] = False,
) -> None:
    """Print every setting as it applies and where it came from. Credentials are masked.

    \b
    Example:
      WAL_SYNC_MODE=fsync arcpipe config show --config config.toml
    """
    effective = list(load_settings(config).effective())
    if as_json:
        import orjson

        entries = {key: {"value": value, "source": source} for key, value, source in effective}
        print(orjson.dumps(entries, option=orjson.OPT_INDENT_2).decode())
    elif sys.stdout.isatty():
        _print_table(effective)
    else:
        rows = [(key, _toml_value(value), source) for key, value, source in effective]
        key_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
        for key, value, source in rows:
            print(f"{key:<{key_width}}  {value:<{value_width}}  {source}")


@config_app.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Check the settings and exit: 0 if the server would take them, 2 with a line per problem if not.

    \b
    Example:
      arcpipe config check --config config.toml
    """
    load_settings(config)
    print("The settings are good.")


def load_settings(config_file: Path | None) -> Settings:
    """The settings of a command: the file that was named, else ./config.toml if it is there, and the environment."""
    from arcpipe.config import load

    if config_file is None:
        beside = Path("config.toml")
        config_file = beside if beside.exists() else None
    return load(config_file, os.environ)


def _toml_value(value: Value) -> str:
    import json

    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False)


def _print_table(effective: list[EffectiveValue]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "value", "source")
    section = ""
    for key, value, source in effective:
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            table.add_section()
        style = "dim" if source == "default" else ""
        # Text, because a cell given as str would have its square brackets read as markup.
        table.add_row(*(Text(cell, style) for cell in (key, _toml_value(value), source)))
    Console().print(table)

"""The command line: it parses, calls, prints, and turns errors into exit codes. The work is done elsewhere.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 a process of the server could not be kept alive, 4 the server
stopped and it is unknown whether everything is uploaded; `status` has its own. Slow imports are inside the command that
needs them, so that `arcpipe --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from arcpipe import __version__
from arcpipe.cli import compact as cli_compact
from arcpipe.cli import init as cli_init
from arcpipe.cli import lake, schema, tables, token, wal
from arcpipe.cli import load as cli_load
from arcpipe.cli import status as cli_status
from arcpipe.cli.options import ConfigOption
from arcpipe.cli.serving import check_server, end_by_code, load_settings, start_server, tell_warnings

if TYPE_CHECKING:
    from arcpipe.config.settings import EffectiveValue, Value

app = typer.Typer(
    help="A durable HTTP ingestion gateway: on disk before the answer, Parquet in storage, exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at the settings and check them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
app.add_typer(wal.app, name="wal")
app.add_typer(token.app, name="token")
app.add_typer(schema.app, name="schema")
app.add_typer(lake.app, name="lake")
app.add_typer(tables.app, name="tables")


def main() -> None:
    """Run a command line and exit."""
    end_by_code(lambda: app(prog_name="arcpipe"))


def _print_version(wanted: bool) -> None:
    if wanted:
        from arcpipe.native import KERNEL

        print(f"arcpipe {__version__}" + (", with its native kernel" if KERNEL else ""))
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
        bool, typer.Option("--check", help="Validate the settings and the installation, change nothing, then exit.")
    ] = False,
) -> None:
    """Run the server until SIGTERM or Ctrl-C.

    SIGHUP reads tokens, certificate and log.level again.
    SIGUSR2 replaces a running server by the installed version and refuses no connection. If that version would not
    start, the running one stays.

    \b
    Example:
      arcpipe serve --config config.toml
    """
    if check:
        print(check_server(config))
        return
    raise typer.Exit(start_server(config))


app.command("init")(cli_init.init)
app.command("status")(cli_status.status)
app.command("compact")(cli_compact.compact)
app.command("load")(cli_load.load)


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
    settings = load_settings(config)
    tell_warnings(settings)
    effective = list(settings.effective())
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
    """Check everything that a start needs, and change nothing. It is the same as `arcpipe serve --check`.

    Exit code: 0 the server would start, 2 with a line for each problem of the settings, 1 for any other problem.

    \b
    Example:
      arcpipe config check --config config.toml
    """
    said = check_server(config)
    print("The settings are good.", said)


def _toml_value(value: Value) -> str:
    import json

    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False)


def _print_table(effective: list[EffectiveValue]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ("setting", "value", "source"):
        table.add_column(name, overflow="fold")  # in a narrow terminal, the end of a name is what tells it from others
    section = ""
    for key, value, source in effective:
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            table.add_section()
        style = "dim" if source == "default" else ""
        # Text, because a cell given as str would have its square brackets read as markup.
        table.add_row(*(Text(cell, style) for cell in (key, _toml_value(value), source)))
    Console().print(table)

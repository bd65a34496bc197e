"""`arcpipe schema …`: shows the recorded columns of measurements, and changes them while no server runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcpipe.cli.options import config_option
from arcpipe.cli.output import print_json, print_table
from arcpipe.cli.serving import load_settings
from arcpipe.errors import ArcpipeError

if TYPE_CHECKING:
    from arcpipe.upload.schema import SchemaRegistry

app = typer.Typer(
    help="Show the columns of measurements, and change what is recorded of them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ConfigOption = Annotated[Path | None, config_option("Settings that name the WAL directory.")]
JSONOption = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Database = Annotated[str, typer.Argument(metavar="DATABASE")]
Measurement = Annotated[str, typer.Argument(metavar="MEASUREMENT")]


class ColumnType(StrEnum):
    """The types that a column may be given."""

    I64 = "i64"
    F64 = "f64"
    BOOL = "bool"
    STR = "str"
    BYTES = "bytes"


@app.command("ls")
def ls(config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """List the measurements of which columns are recorded. Works while the server runs.

    \b
    Example:
      arcpipe schema ls
    """
    registry = _load(config)
    rows = (
        {
            "database": table.database,
            "measurement": table.measurement,
            "columns": len(table.columns),
            "siblings": table.width - len(table.columns),
        }
        for table in sorted(registry.tables(), key=lambda table: table.name)
    )
    if as_json:
        print_json(rows)
    elif print_table(("database", "measurement", "columns", "siblings"), rows, ("database", "measurement")) == 0:
        print(f"No columns are recorded in {registry.path}.")


@app.command("show")
def show(
    database: Database, measurement: Measurement, config: ConfigOption = None, as_json: JSONOption = False
) -> None:
    """Show the columns of a measurement: the sender's name, and the column, type and role in the files.

    A sibling has the values of a name that do not fit its first column. Works while the server runs.

    \b
    Example:
      arcpipe schema show default cpu
    """
    registry = _load(config)
    table = registry.draft(database, measurement)
    if not table.columns:
        raise ArcpipeError(f"no columns of {measurement!r} in database {database!r} are recorded in {registry.path}")
    rows: list[dict[str, Any]] = []
    for name, column in table.columns.items():
        role = "tag" if column.tag else "field"
        rows.append({"name": name, "column": column.column or name, "type": column.type, "role": role})
        for type_, sibling in column.siblings.items():
            rows.append({"name": name, "column": sibling, "type": type_, "role": f"sibling of a {role}"})
    if as_json:
        print_json(rows)
    else:
        print_table(("name", "column", "type", "role"), rows, left=("name", "column", "type", "role"))


@app.command("set")
def set_type(
    database: Database,
    measurement: Measurement,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The sender's name of the column.")],
    type_: Annotated[ColumnType, typer.Argument(metavar="TYPE", help="i64, f64, bool, str or bytes.")],
    config: ConfigOption = None,
) -> None:
    """Say the type of a column before its first value comes. The server must be stopped, with everything uploaded.

    For many columns, or all nodes, use the setting schema.types.

    \b
    Example:
      arcpipe schema set default cpu usage f64
    """
    from arcpipe.upload.table_schema import ColumnRules, Columns

    with _changed(config) as registry:
        table = registry.draft(database, measurement)
        known = table.columns.get(name)
        if known is not None:
            raise ArcpipeError(
                f"column {name!r} has the type {known.type}, and files may have it: `arcpipe schema reset` forgets it, "
                "and the next file of the same folder may then have another type, which most readers refuse"
            )
        settings = load_settings(config)
        rules = ColumnRules(hive=settings.storage.layout == "hive", keep_nanoseconds=settings.parquet.keep_nanoseconds)
        if Columns(table, rules, ()).declare(name, type_.value) is None:
            raise ArcpipeError(f"{measurement!r} in database {database!r} has as many columns as a table may have")
        registry.apply([table])
    print(f"{name!r} of {measurement!r} in database {database!r} is {type_.value} from its first value on.")


@app.command("reset")
def reset(
    database: Database,
    measurement: Measurement,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this sender's name.")] = None,
    config: ConfigOption = None,
) -> None:
    """Forget the columns of a measurement, or one of them. The server must be stopped, with everything uploaded.

    The next value decides over type and name anew. Files that are in the folder already keep theirs.

    \b
    Example:
      arcpipe schema reset default cpu usage
    """
    with _changed(config) as registry:
        table = registry.draft(database, measurement)
        names = list(table.columns) if name is None else [name]
        if not names or not table.columns.keys() >= set(names):
            raise ArcpipeError(f"no such columns of {measurement!r} in database {database!r} in {registry.path}")
        for one in names:
            del table.columns[one]
        registry.forget(table.name)
        if table.columns:
            registry.apply([table])
    print(f"{len(names)} columns of {measurement!r} in database {database!r} are forgotten.")


def _load(config: Path | None) -> SchemaRegistry:
    from arcpipe.upload.schema import SchemaRegistry

    path = Path(load_settings(config).wal.dir, "schema.json")
    try:
        return SchemaRegistry.load(path)
    except OSError as error:
        raise ArcpipeError(f"{path} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def _changed(config: Path | None) -> Iterator[SchemaRegistry]:
    """Yield the registry for a change, and save it. The WAL directory is locked meanwhile."""
    from arcpipe.wal.directory import WALDirectory

    directory = WALDirectory(load_settings(config).wal.dir)
    if not os.path.isdir(directory.path):
        raise ArcpipeError(f"{directory.path}: no such directory")
    directory.lock(0.0)
    try:
        # The end of a batch writes the tables that it changed over those that are recorded.
        waiting = [name for name in _names(directory.batches) if name.endswith((".json", ".journal"))]
        if waiting:
            raise ArcpipeError(
                f"{len(waiting)} files in {directory.batches}: a batch is not finished. Start arcpipe, and stop it "
                "once everything is uploaded"
            )
        registry = _load(config)
        yield registry
        try:
            registry.save()
        except OSError as error:
            raise ArcpipeError(f"{registry.path} cannot be written: {error.strerror or error}") from error
    finally:
        directory.unlock()


def _names(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []

"""`arcpipe load`: files into a server, in a way that running it again doubles nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, cast, get_args

import typer

from arcpipe.cli.options import token_of, token_option
from arcpipe.errors import ArcpipeError

if TYPE_CHECKING:
    from arcpipe.cli.load_progress import Shown
    from arcpipe.client.options import Options
    from arcpipe.load.loader import Loader
    from arcpipe.load.plan import FileFormat, Kind, Plan

_DEFAULT_URL: Final = "http://127.0.0.1:8000"
_REFUSED: Final = 3
_INTERRUPTED: Final = 130


def load(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Files, or folders of them.")],
    url: Annotated[
        list[str] | None, typer.Option("--url", metavar="URL", help="The server; give it again for each further node.")
    ] = None,
    database: Annotated[
        str, typer.Option("--database", help="Without it: what an export or Arc's path says, else `default`.")
    ] = "",
    format_: Annotated[
        str, typer.Option("--format", help="lines, csv, annotated-csv, ndjson, parquet or arrow; else by name.")
    ] = "",
    measurement: Annotated[str, typer.Option("--measurement", help="The measurement of all rows.")] = "",
    measurement_column: Annotated[
        str, typer.Option("--measurement-column", help="The column that names the measurement of each row.")
    ] = "",
    tags: Annotated[str, typer.Option("--tags", help="Columns that are tags, such as host,rack.")] = "",
    time_column: Annotated[str, typer.Option("--time-column", help="The column with the time.")] = "",
    no_time: Annotated[bool, typer.Option("--no-time", help="There is none: take the time of arrival.")] = False,
    precision: Annotated[str, typer.Option("--precision", help="Unit of times: ns, us, ms, s or auto.")] = "auto",
    types: Annotated[
        str, typer.Option("--types", help="Types of CSV columns, such as zip=text,n=int; others are found.")
    ] = "",
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, help="At most so many records per second.")] = None,
    batch_records: Annotated[int, typer.Option(min=1, max=1_000_000, help="Records of one request.")] = 5000,
    batch_bytes: Annotated[int, typer.Option(min=1024, max=64 << 20, help="Bytes of one request, about.")] = 1 << 20,
    compression: Annotated[str, typer.Option(help="Of requests: none, gzip or zstd.")] = "none",
    give_up: Annotated[float, typer.Option(min=1, help="Seconds after which a request is tried no more.")] = 600,
    cacert: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM certificates to trust.")] = None,
    token_file: Annotated[Path | None, token_option("write")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check everything, and send nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per file.")] = False,
) -> None:
    """Load files: line protocol, CSV, NDJSON, Parquet, Arrow, and what InfluxDB and Arc export. gz and zst, too.

    Each request has a key of the file's content and the place in it. So after any interruption run the same command
    again: nothing is stored twice, as long as the server remembers the keys (idempotency.window_seconds, a day).

    Exit code: 0 all records are written, 1 it ended before, 2 wrong usage, 3 some records were refused and told,
    130 interrupted.

    \b
    Examples:
      arcpipe load export.lp.gz --url http://127.0.0.1:8000 --database production
      arcpipe load readings.csv --measurement power --tags meter,site --time-column at
      arcpipe load arc-data/ --rate 100000 --json
    """
    with _told_as_wrong_usage():
        plan = _plan(
            *(database, tags, types, precision),
            measurement=measurement,
            measurement_column=measurement_column,
            time_column=time_column,
            has_time=not no_time,
            batch_records=batch_records,
            batch_bytes=batch_bytes,
        )
        options = _options(token_file, cacert, compression, give_up)
        target = None if dry_run else _Target(url or [_DEFAULT_URL], options)
        code = _load(_expanded(files), plan, _format(format_), target, rate, as_json)
    if code:
        raise typer.Exit(code)


@contextmanager
def _told_as_wrong_usage() -> Iterator[None]:
    from arcpipe.client.errors import ClientError
    from arcpipe.load.plan import BadPlan

    try:
        yield
    except (BadPlan, ClientError) as error:
        raise typer.BadParameter(str(error)) from None


class _Target(NamedTuple):
    urls: list[str]
    options: Options


def _options(token_file: Path | None, cacert: Path | None, compression: str, give_up: float) -> Options:
    from arcpipe.client.options import Compression, Options

    return Options(
        token=token_of(token_file),
        compression=cast(Compression, compression),
        ca_file=cacert,
        give_up_seconds=give_up,
        first_pause_seconds=0.1,  # a person looks on
        longest_pause_seconds=10.0,
    )


def _plan(database: str, tags: str, types: str, precision: str, **values: Any) -> Plan:
    """Make the plan of the options. Raises BadParameter and BadPlan."""
    from arcpipe.client.options import Precision
    from arcpipe.load.plan import BadPlan, Plan
    from arcpipe.names import DATABASE_RULE, is_database_name

    if database and not is_database_name(database):
        raise BadPlan(f"--database: {database!r} is no database name; {DATABASE_RULE}")
    if precision not in get_args(Precision):
        raise BadPlan(f"--precision: {precision!r} is not one of {', '.join(get_args(Precision))}")
    named = tuple(tag.strip() for tag in tags.split(",") if tag.strip())
    return Plan(database=database, tags=named, types=_types(types), precision=cast(Precision, precision), **values)


def _types(text: str) -> dict[str, Kind]:
    from arcpipe.load.plan import BadPlan, Kind

    found: dict[str, Kind] = {}
    for pair in filter(None, text.split(",")):
        column, _, kind = pair.rpartition("=")
        if not column or kind not in get_args(Kind):
            raise BadPlan(f"--types: {pair!r} is not COLUMN={'|'.join(get_args(Kind))}")
        found[column.strip()] = cast(Kind, kind)
    return found


def _format(name: str) -> FileFormat | None:
    from arcpipe.load.formats import FORMATS
    from arcpipe.load.plan import BadPlan

    if name and name not in FORMATS:
        raise BadPlan(f"--format: {name!r} is not one of {', '.join(FORMATS)}")
    return name or None


def _expanded(files: list[Path]) -> list[Path]:
    """Return the files, and those below folders, each folder in the order of names.

    Raises:
        ArcpipeError: a folder cannot be read. To pass over it would seem to have loaded what is in it.
        BadPlan: there is nothing to load.
    """
    from arcpipe.load.formats import SUFFIXES
    from arcpipe.load.plan import BadPlan
    from arcpipe.load.source import plain_name

    found: list[Path] = []
    for path in files:
        if str(path) == "-":
            raise BadPlan("standard input is gone after one reading, and keys need a second one: save it to a file")
        if not path.is_dir():
            found.append(path)
            continue
        below = [file for file in sorted(_below(path)) if plain_name(file).endswith(SUFFIXES)]
        if not below:
            raise BadPlan(f"{path}: no file in this folder can be loaded; their names end in {', '.join(SUFFIXES)}")
        found += below
    return found


def _below(folder: Path) -> Iterator[Path]:
    """Find the files below a folder. Raises ArcpipeError."""

    def refuse(error: OSError) -> None:
        raise ArcpipeError(
            f"{os.fsdecode(error.filename)}: cannot be read: {error.strerror}; nothing is loaded"
        ) from None

    for path, _, names in os.walk(folder, onerror=refuse):
        yield from (file for name in names if (file := Path(path, name)).is_file())


def _load(
    files: list[Path], plan: Plan, format_: FileFormat | None, target: _Target | None, rate: float | None, as_json: bool
) -> int:
    """Load files, and return the exit code. Raises ClientError and BadPlan."""
    from arcpipe.cli.load_progress import shown
    from arcpipe.client.delivery import Delivery
    from arcpipe.client.options import read_urls
    from arcpipe.load.loader import Loader, Pace

    with _silent(logging.getLogger("arcpipe.client")), shown(as_json, target is None) as show:
        delivery = None
        if target is not None:
            delivery = Delivery(
                read_urls(target.urls), target.options, lambda failure, s: show.waits(failure.reason, s)
            )
        try:
            return _load_all(files, plan, format_, Loader(delivery, Pace(rate), show), show)
        except KeyboardInterrupt:
            show.says("interrupted: run the same command again; what is written already is not written twice")
            return _INTERRUPTED
        finally:
            if delivery is not None:
                delivery.close()


@contextmanager
def _silent(client: logging.Logger) -> Iterator[None]:
    """Keep the client's log lines away: `Shown` tells the same, beside the bar."""
    before = client.level
    client.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        client.setLevel(before)


def _load_all(files: list[Path], plan: Plan, format_: FileFormat | None, loader: Loader, show: Shown) -> int:
    from arcpipe.load.chunks import BadInput
    from arcpipe.load.formats import format_of, read
    from arcpipe.load.loader import LoadFailed
    from arcpipe.load.source import Source

    for path in files if format_ is None else ():  # wrong usage is told before anything is sent
        with suppress(BadInput):  # told in its turn
            format_of(Source(path))
    seen: dict[tuple[str, ...], str] = {}
    failed = refused = 0
    for path in files:
        try:
            source = Source(path)
            show.begins(str(path), source)
            reader = read(source, plan, format_)
            same = (reader.digest, reader.plan.key(), reader.plan.database)
            if same in seen:
                show.says(f"{path}: skipped, because it has the same content as {seen[same]}")
                continue
            seen[same] = str(path)
            result = loader.load(reader)
        except BadInput as error:  # the other files may be good
            failed += 1
            show.fails(str(path), str(error))
        except LoadFailed as error:
            show.fails(str(path), str(error))
            return 1
        else:
            refused += result.refused
            show.ended(result)
    show.sums_up(failed)
    return 1 if failed else _REFUSED if refused else 0

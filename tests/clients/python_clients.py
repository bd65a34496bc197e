"""How each Python client writes records: one function a client, which nothing is told but where to write."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from tests.clients.comparing import without_nan
from tests.clients.model import Record


class Target(NamedTuple):
    """Where a client writes. The measurement has the name of the database."""

    url: str
    database: str
    gzip: bool = False

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


def write_influxdb(target: Target, records: list[Record]) -> None:
    from influxdb import InfluxDBClient  # type: ignore[import-untyped, unused-ignore]

    points = [
        {"measurement": target.database, "tags": record.tags, "fields": record.fields, "time": record.time_us}
        for record in records
    ]
    with InfluxDBClient(target.host, target.port, database=target.database, gzip=target.gzip) as client:
        client.write_points(points, time_precision="u", batch_size=1000)


def _point(point: type[Any], target: Target, record: Record) -> Any:
    made = point(target.database).time(record.time_us, "us")
    for name, value in record.tags.items():
        made = made.tag(name, value)
    for name, value in record.fields.items():
        made = made.field(name, value)
    return made


def write_influxdb_client(target: Target, records: list[Record]) -> None:
    from influxdb_client.client.influxdb_client import InfluxDBClient
    from influxdb_client.client.write.point import Point
    from influxdb_client.client.write_api import SYNCHRONOUS

    with (
        InfluxDBClient(target.url, "secret", org="me", enable_gzip=target.gzip) as client,
        client.write_api(SYNCHRONOUS) as api,
    ):
        api.write(target.database, record=[_point(Point, target, record) for record in records], write_precision="us")


def write_influxdb_client_in_batches(target: Target, records: list[Record]) -> None:
    from influxdb_client.client.influxdb_client import InfluxDBClient
    from influxdb_client.client.write.point import Point
    from influxdb_client.client.write_api import WriteOptions

    failed: list[Any] = []
    options = WriteOptions(batch_size=1000, flush_interval=100, jitter_interval=0, retry_interval=10)
    with (
        InfluxDBClient(target.url, "secret", org="me", enable_gzip=target.gzip) as client,
        client.write_api(options, error_callback=lambda *about: failed.append(about)) as api,
    ):
        for record in records:
            api.write(target.database, record=_point(Point, target, record), write_precision="us")
    assert not failed, failed


def _write_influxdb3(target: Target, records: list[Record], use_v2_api: bool, batching: bool) -> None:
    from influxdb_client_3 import InfluxDBClient3, Point, WriteOptions, write_client_options
    from influxdb_client_3.write_client.client.write_api import WriteType

    failed: list[Any] = []
    options = write_client_options(
        write_options=WriteOptions(
            write_type=WriteType.batching if batching else WriteType.synchronous,
            flush_interval=100,
            retry_interval=10,
            use_v2_api=use_v2_api,
        ),
        error_callback=lambda *about: failed.append(about),
    )
    with InfluxDBClient3(
        target.url,
        token="secret",
        database=target.database,
        write_client_options=options,
        enable_gzip=target.gzip,
    ) as client:
        client.write([_point(Point, target, record) for record in records], write_precision="us")
    assert not failed, failed


def write_influxdb3(target: Target, records: list[Record]) -> None:
    _write_influxdb3(target, records, use_v2_api=False, batching=False)


def write_influxdb3_by_v2(target: Target, records: list[Record]) -> None:
    _write_influxdb3(target, records, use_v2_api=True, batching=False)


def write_influxdb3_in_batches(target: Target, records: list[Record]) -> None:
    _write_influxdb3(target, records, use_v2_api=False, batching=True)


def write_questdb(target: Target, records: list[Record]) -> None:
    from questdb import Protocol, Sender, TimestampNanos

    with Sender(Protocol.Http, target.host, target.port, auto_flush=False) as sender:
        for record in records:
            symbols: dict[str, str | None] = {**record.tags}
            at = TimestampNanos(record.time_us * 1000)
            sender.row(target.database, symbols=symbols, columns=record.fields, at=at)
        sender.flush()


def _columns(records: list[Record]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for record in records for name in {**record.tags, **record.fields})
    columns = {name: [{**record.tags, **record.fields}.get(name) for record in records] for name in names}
    return {"time": [record.time_us for record in records], **columns}


def write_arc_columns(target: Target, records: list[Record]) -> None:
    from arc_client import ArcClient

    with ArcClient(target.host, target.port, database=target.database, compression=target.gzip) as client:
        client.write.write_columnar(target.database, _columns(records))


def write_arc_rows(target: Target, records: list[Record]) -> None:
    from arc_client import ArcClient

    rows = [
        {
            "measurement": target.database,
            "timestamp": record.time_us,
            "fields": record.fields,
            "tags": record.tags,
        }
        for record in records
    ]
    with ArcClient(target.host, target.port, database=target.database, compression=target.gzip) as client:
        client.write.write_records(rows)


def write_arc_lines(target: Target, records: list[Record]) -> None:
    from arc_client import ArcClient
    from arc_client.ingestion.line_protocol import format_line_protocol

    lines = [format_line_protocol(target.database, record.fields, record.tags, record.time_us) for record in records]
    with ArcClient(target.host, target.port, database=target.database, compression=target.gzip) as client:
        client.write.write_line_protocol(lines)


def write_arc_frame(target: Target, records: list[Record]) -> None:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]
    from arc_client import ArcClient

    frame = pd.DataFrame(_columns(records))
    with ArcClient(target.host, target.port, database=target.database, compression=target.gzip) as client:
        client.write.write_dataframe(frame, target.database)


def _as_influxdb_1(row: dict[str, Any]) -> dict[str, Any]:
    """Show a row as its client sends it and InfluxDB 1 stores it: `\\n` for an end of line, a tag's backslash twice."""
    text = {"text": row["text"].replace("\n", "\\n")} if "text" in row else {}
    return {**row, **text, "host": row["host"].replace("\\", "\\\\")}


def _as_questdb(row: dict[str, Any]) -> dict[str, Any]:
    """Show a row as its client sends it and InfluxDB 1 stores it, where QuestDB would take backslashes away.

    Those are one before an end of line of a text, and every second one of a tag.
    """
    text = {"text": re.sub(r"([\r\n])", r"\\\1", row["text"])} if "text" in row else {}
    return {**row, **text, "host": row["host"].replace("\\", "\\\\")}


class PythonClient(NamedTuple):
    """A client: how it writes, what becomes of a row that it sends, and what it has."""

    write: Callable[[Target, list[Record]], None]
    alters: Callable[[dict[str, Any]], dict[str, Any]] = without_nan
    has_gzip: bool = True
    retries: bool = False
    has_databases: bool = True
    sends_nan: bool = False  # as a word that line protocol does not have, so that the line is refused
    without: tuple[str, ...] = ()  # the sets of records that it cannot write


# InfluxDB 3 reads them in another way: they have a test of their own.
_V3: Final = ("backslashes in tags",)

PYTHON_CLIENTS: Final = {
    "influxdb": PythonClient(write_influxdb, _as_influxdb_1, sends_nan=True),
    "influxdb-client": PythonClient(write_influxdb_client),
    "influxdb-client, batches": PythonClient(write_influxdb_client_in_batches, retries=True),
    "influxdb3-python": PythonClient(write_influxdb3, without=_V3),
    "influxdb3-python, v2 API": PythonClient(write_influxdb3_by_v2),
    "influxdb3-python, batches": PythonClient(write_influxdb3_in_batches, retries=True, without=_V3),
    "questdb": PythonClient(
        write_questdb, _as_questdb, has_gzip=False, retries=True, has_databases=False, sends_nan=True
    ),
    "arc-tsdb-client, columns": PythonClient(write_arc_columns, dict),
    "arc-tsdb-client, rows": PythonClient(write_arc_rows, dict),
    "arc-tsdb-client, lines": PythonClient(write_arc_lines, sends_nan=True),
    # pandas makes NaN of what is missing among numbers.
    "arc-tsdb-client, pandas": PythonClient(write_arc_frame, dict, without=("types",)),
}

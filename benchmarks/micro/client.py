"""CPU time of `arcpipe.client` per record: this process, with the sender's thread, until a server has all of it.

python -m benchmarks.micro.client http://127.0.0.1:8000
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any, Final

import typer

from arcpipe.client import Client, Options

_RECORDS: Final = 200_000
_AT_ONCE: Final = 1000
_RECORD: Final = {"time": 1_790_000_000_000_000, "host": "web-1", "usage": 0.5, "idle": 99.5}
_LINE: Final = "cpu,host=web-1 usage=0.5,idle=99.5 1790000000000000000\n"


def _one_by_one(client: Client) -> None:
    for _ in range(_RECORDS):
        client.write("cpu", _RECORD, tags=["host"])


def _many(client: Client) -> None:
    for _ in range(_RECORDS // _AT_ONCE):
        client.write("cpu", [_RECORD] * _AT_ONCE, tags=["host"])


def _columns(client: Client) -> None:
    columns = {name: [value] * _AT_ONCE for name, value in _RECORD.items()}
    for _ in range(_RECORDS // _AT_ONCE):
        client.write_columns("cpu", columns, tags=["host"])


def _lines(client: Client) -> None:
    for _ in range(_RECORDS // _AT_ONCE):
        client.write_lines(_LINE * _AT_ONCE)


def measure(url: str) -> None:
    """Write the same records in each way, and print the CPU time of each."""
    with tempfile.TemporaryDirectory() as spool:
        ways: list[tuple[str, Callable[[Client], None], dict[str, Any]]] = [
            ("write, one record", _one_by_one, {}),
            ("write, one record, with a spool", _one_by_one, {"spool": spool}),
            (f"write, {_AT_ONCE} records", _many, {}),
            (f"write_columns, {_AT_ONCE} rows", _columns, {}),
            (f"write_lines, {_AT_ONCE} lines", _lines, {}),
        ]
        for name, write, options in ways:
            began = time.process_time()
            with Client(url, Options(database="benchmark", **options)) as client:
                write(client)
            seconds = time.process_time() - began
            assert client.stats().sent_records == _RECORDS
            print(f"{name:32} {seconds / _RECORDS * 1e6:6.2f} µs per record, {_RECORDS / seconds:12,.0f} records/s")


if __name__ == "__main__":
    typer.run(measure)

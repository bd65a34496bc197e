"""The lake that the readers open: made by the real server, once for all processes of a test run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.readers.folders import PARTS, directory_of
from tests.readers.model import SIZES, SMALL, TABLES, database_of
from tests.support.lake import lake_files
from tests.support.server import Server

_REQUEST_ROWS = 5_000
_CASES = Path(__file__).parents[1] / "cases" / "inputs"


def _write_values(server: Server, sizes: list[tuple[str, int]]) -> None:
    with server.client() as client:
        for name, count in sizes:
            database = database_of(name, count)
            for first in range(0, count, _REQUEST_ROWS):
                body = TABLES[name].body(database, first, min(_REQUEST_ROWS, count - first))
                answer = client.request("POST", "/write/v2/msgpack", body, {"x-arc-database": database})
                assert (answer.status, answer.body) == (202, b"")


def _write_part(server: Server, number: int) -> None:
    for database, parts in PARTS.items():
        if number < len(parts):
            answer = server.post(f"/write?db={database}", parts[number].encode())
            assert answer.status == 204, answer.body


def make_lake(directory: Path) -> None:
    """Make `lake/{database}` for each table and folder of the model.

    Each stop of the server makes one file of each measurement that was written since its start.
    """
    with Server(directory, server_workers=1, flush_max_age_seconds=600, flush_max_records=10_000_000) as server:
        for number in range(max(map(len, PARTS.values()))):
            if number:
                server.restart()
            else:
                _write_values(server, SIZES)
            _write_part(server, number)
            server.stop()
        for name, count in SIZES:
            assert len(lake_files(server.lake, database_of(name, count))) == 1
        for database, parts in PARTS.items():
            assert len(lake_files(server.lake, directory_of(database))) == len(parts)


def make_small_lake(directory: Path) -> None:
    """Make `lake/{database}` of some tables, with the encodings that not every reader takes."""
    with Server(
        directory,
        server_workers=1,
        flush_max_age_seconds=600,
        flush_max_records=10_000_000,
        parquet_encodings="small",
    ) as server:
        _write_values(server, SMALL)
        server.stop()
        encodings: set[str] = set()
        for name, count in SMALL:
            (file,) = lake_files(server.lake, database_of(name, count))
            group = pq.ParquetFile(file).metadata.row_group(0)
            encodings.update(name for number in range(group.num_columns) for name in group.column(number).encodings)
        assert encodings >= {"BYTE_STREAM_SPLIT", "DELTA_LENGTH_BYTE_ARRAY"}


def make_hive_lake(directory: Path) -> None:
    """Make `lake/hive` with the columns that the layout's own folders are named after."""
    with Server(directory, server_workers=1, storage_layout="hive") as server:
        assert server.post("/write?db=hive", (_CASES / "f8_hive_columns.lp").read_bytes()).status == 204
        server.stop()
        assert len(lake_files(server.lake, "hive")) == 1


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Make a lake, or wait until another process of this test run has made it; its folder."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        directory = factory.mktemp(name)
        make(directory)
        return directory / "lake"
    directory = factory.getbasetemp().parent / name
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = directory.with_suffix(".done")
        if not done.exists():
            directory.mkdir()
            make(directory)
            done.touch()
    return directory / "lake"

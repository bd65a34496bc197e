"""The cost of commits to tables, as their history grows: `python -m benchmarks.files.commits`.

Commits files of one measurement one after another, or of many measurements in rounds, and prints CPU, wall time and
memory. A commit reads the marker first, as the committer does. Then all rows are counted in the table.

    python -m benchmarks.files.commits                                   # Iceberg: 1000 commits to one table
    python -m benchmarks.files.commits --format delta
    python -m benchmarks.files.commits --tables 1000 --commits 10        # ten rounds over a thousand tables
    python -m benchmarks.files.commits --maintain 60 tables.history_hours=1
    python -m benchmarks.files.commits tables.iceberg.catalog=rest tables.iceberg.uri=http://127.0.0.1:8181
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.config.load import load
from arcpipe.config.settings import Parquet, Settings
from arcpipe.lake.file_schema import ROLE, TIME_TYPE, file_metadata
from arcpipe.lake.keys import Partition
from arcpipe.lake.parquet_file import ParquetFile, Special
from arcpipe.lake.spool import SpoolMemory
from arcpipe.tables import NewFile, TableFormat, open_format
from arcpipe.units import MB

_NODE: Final = "0123456789ab"
_HOUR_US: Final = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z


class Cost(NamedTuple):
    """The cost of one commit."""

    cpu_ms: float
    wall_ms: float


def main() -> None:
    """Commit, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--format", choices=["iceberg", "delta"], default="iceberg")
    parser.add_argument("--commits", type=int, default=1_000, help="to each table")
    parser.add_argument("--tables", type=int, default=1)
    parser.add_argument("--files", type=int, default=1, help="of a commit")
    parser.add_argument("--fields", type=int, default=5, help="floats of a row")
    parser.add_argument("--rows", type=int, default=60, help="of a file")
    parser.add_argument("--maintain", type=int, default=0, metavar="N", help="maintain a table after each N commits")
    parser.add_argument("--data-dir", type=Path, help="on the disk to be measured")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="commits-", dir=options.data_dir) as folder:
        variables = {
            "ARCPIPE_WAL_DIR": f"{folder}/wal",
            "ARCPIPE_STORAGE_URL": f"file://{folder}/lake",
            "ARCPIPE_TABLES_FORMAT": options.format,
        }
        for key, _, value in (setting.partition("=") for setting in options.settings):
            variables[f"ARCPIPE_{key.replace('.', '_').upper()}"] = value
        os.makedirs(f"{folder}/wal")
        _measure(options, load(None, variables), Path(folder))


def _measure(options: argparse.Namespace, settings: Settings, folder: Path) -> None:
    tables = open_format(settings.tables, settings.storage, settings.wal.dir)
    tables.check()
    rounds: list[list[Cost]] = []
    upkeep: list[float] = []
    for number in range(options.commits):
        costs = []
        for table in range(options.tables):
            name = ("default", f"cpu{table}")
            files = [_file(options, folder, name, number * options.files + one) for one in range(options.files)]
            costs.append(_commit(tables, name, files, number + 1))
            if options.maintain and (number + 1) % options.maintain == 0:
                began = time.process_time()
                tables.maintain(name)
                upkeep.append((time.process_time() - began) * 1e3)
        rounds.append(costs)
        if number in (0, 1) or number + 1 in (10, 100, 1_000) or number + 1 == options.commits:
            print(_described(f"commit {number + 1:>5}", costs), flush=True)
    last = [cost for costs in rounds[-100:] for cost in costs]
    print(_described(f"mean of the last {len(rounds[-100:])}", last))
    print(f"CPU of a round: {sum(cost.cpu_ms for cost in rounds[-1]) / 1e3:.2f} s for {options.tables} tables")
    if upkeep:
        print(f"upkeep: {statistics.mean(upkeep):.1f} ms of CPU, {max(upkeep):.1f} at most")
    print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    began = time.perf_counter()
    found = sum(1 for _ in tables.files(("default", "cpu0")))
    assert found == options.commits * options.files, f"{found} files in the table"
    print(f"{found} files of the first table were listed in {time.perf_counter() - began:.2f} s")


def _described(what: str, costs: list[Cost]) -> str:
    cpu, wall = (statistics.mean(part) for part in zip(*costs, strict=True))
    return f"{what}: {cpu:.1f} ms of CPU, {wall:.1f} ms"


def _commit(tables: TableFormat, name: tuple[str, str], files: list[NewFile], seq: int) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    marker = tables.committed(name, _NODE)
    assert marker is None or marker < seq
    assert tables.commit(name, files, _NODE, seq).files == len(files)
    return Cost((time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3)


def _file(options: argparse.Namespace, folder: Path, name: tuple[str, str], number: int) -> NewFile:
    """Make a file of one minute, as the uploader does."""
    minute_us = _HOUR_US + number * 60_000_000
    hour_us = minute_us - minute_us % 3_600_000_000
    times = np.linspace(minute_us, minute_us + 59_000_000, options.rows).astype(np.int64)
    fields = [
        pa.field("time", TIME_TYPE, metadata={ROLE: b"time"}),
        pa.field("host", pa.string(), metadata={ROLE: b"tag"}),
    ]
    columns: list[Any] = [pa.array(times).cast(TIME_TYPE), pa.array([f"host{one % 10}" for one in range(options.rows)])]
    for one in range(options.fields):
        fields.append(pa.field(f"field{one}", pa.float64(), metadata={ROLE: b"field"}))
        columns.append(pa.array(np.random.default_rng(one).random(options.rows)))
    schema = pa.schema(fields, metadata=file_metadata(*name, f"b{number}"))
    table = pa.table(columns, schema=schema)
    file = ParquetFile(Parquet(), SpoolMemory(folder, MB, MB), schema, table["time"][0].value, table, Special(), True)
    file.append(table)
    spool = file.finish()
    data = bytes(spool.read_at(0, spool.size))
    spool.close()
    key = Partition(*name, hour_us).key("arc", minute_us, f"b{number}", 0)
    path = folder / "lake" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return NewFile(key, len(data), len(table), pq.read_metadata(io.BytesIO(data)))


if __name__ == "__main__":
    main()

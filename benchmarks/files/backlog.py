"""A committer that finds many batches waiting: `python -m benchmarks.files.backlog`.

Hands batches over as the uploader does, each with one file of each table, and starts the real committer, which is told
to end: it commits all of it. Prints CPU and wall time from its start, and the peak of its memory.

    python -m benchmarks.files.backlog                                           # 100 batches of 200 tables, 43 columns
    python -m benchmarks.files.backlog --batches 1000 --tables 10 --fields 5     # after a day without a catalogue
    python -m benchmarks.files.backlog --format delta
    python -m benchmarks.files.backlog tables.iceberg.catalog=rest tables.iceberg.uri=http://127.0.0.1:8181
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from arcpipe import logs
from arcpipe.config.load import load
from arcpipe.config.settings import Parquet, Settings
from arcpipe.counters import Committer, Counters, Node
from arcpipe.lake.file_schema import ROLE, TIME_TYPE, file_metadata
from arcpipe.lake.keys import Partition
from arcpipe.lake.parquet_file import ParquetFile, Special
from arcpipe.lake.spool import SpoolMemory
from arcpipe.tables.commit_file import DataFile
from arcpipe.units import MB
from arcpipe.upload.handover import Handover
from arcpipe.upload.spares import Spares
from arcpipe.wal.directory import WALDirectory

_HOUR_US: Final = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
_BATCH_SECONDS: Final = 60  # from one batch to the next


def main() -> None:
    """Hand over, commit, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--format", choices=["iceberg", "delta"], default="iceberg")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--fields", type=int, default=41, help="floats of a row, besides its time and a tag")
    parser.add_argument("--rows", type=int, default=60, help="of a file")
    parser.add_argument("--data-dir", type=Path, help="on the disk to be measured")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="backlog-", dir=options.data_dir) as folder:
        variables = {
            "ARCPIPE_WAL_DIR": f"{folder}/wal",
            "ARCPIPE_STORAGE_URL": f"file://{folder}/lake",
            "ARCPIPE_TABLES_FORMAT": options.format,
        }
        for key, _, value in (setting.partition("=") for setting in options.settings):
            variables[f"ARCPIPE_{key.replace('.', '_').upper()}"] = value
        _hand_over(options, Path(folder))
        print(_measure(options, load(None, variables)), flush=True)


def _hand_over(options: argparse.Namespace, folder: Path) -> None:
    """Make the files, and the commit files that name them."""
    directory = WALDirectory(folder / "wal")
    directory.make()
    node = directory.next_boot()
    handover = Handover(directory, node, Spares(directory, with_tables=True), 1 << 50)
    names = [("default", f"m{number}") for number in range(options.tables)]
    files = {name: _file(options, folder, name) for name in names}  # one for each table, under many names
    for number in range(options.batches):
        batch = f"{node.node}-20260101T000000-{node.boot}.{number + 1}-{number:08x}"
        first_us = _HOUR_US + number * _BATCH_SECONDS * 1_000_000
        found = {}
        for name in names:
            key = Partition(*name, first_us - first_us % 3_600_000_000).key("arc", first_us, batch, 0)
            path = folder / "lake" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(files[name], path)
            found[key] = DataFile(key, options.rows, path.stat().st_size, first_us, first_us)
        assert handover.hand_over(batch, f"file://{folder}/lake", found)


def _file(options: argparse.Namespace, folder: Path, name: tuple[str, str]) -> Path:
    fields = [
        pa.field("time", TIME_TYPE, metadata={ROLE: b"time"}),
        pa.field("host", pa.string(), metadata={ROLE: b"tag"}),
    ]
    times = np.linspace(_HOUR_US, _HOUR_US + 59_000_000, options.rows).astype(np.int64)
    columns: list[Any] = [pa.array(times).cast(TIME_TYPE), pa.array([f"host{one % 10}" for one in range(options.rows)])]
    for one in range(options.fields):
        fields.append(pa.field(f"field{one}", pa.float64(), metadata={ROLE: b"field"}))
        columns.append(pa.array(np.random.default_rng(one).random(options.rows)))
    schema = pa.schema(fields, metadata=file_metadata(*name, "b"))
    table = pa.table(columns, schema=schema)
    file = ParquetFile(Parquet(), SpoolMemory(folder, MB, MB), schema, table["time"][0].value, table, Special(), True)
    file.append(table)
    spool = file.finish()
    path = folder / f"{name[1]}.parquet"
    path.write_bytes(bytes(spool.read_at(0, spool.size)))
    spool.close()
    return path


def _measure(options: argparse.Namespace, settings: Settings) -> str:
    counters = Counters(1)
    counters.node[Node.LOG_LEVEL] = logging.WARNING
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = _commit(settings, counters)
        finally:
            os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.monotonic() - began
    block = counters.committer
    files = options.batches * options.tables
    assert (os.waitstatus_to_exitcode(status), block[Committer.FILES]) == (0, files), "not everything was committed"
    return (
        f"{options.format}: {options.batches} batches of {options.tables} tables with {options.fields + 2} columns, "
        f"{files} files in {block[Committer.COMMITS]} commits: {usage.ru_utime + usage.ru_stime:.1f} s of CPU, "
        f"{seconds:.1f} s, peak {usage.ru_maxrss / 1024:.0f} MB"
    )


def _commit(settings: Settings, counters: Counters) -> int:
    """Be the committer, as the supervisor forks it, with a SIGTERM that waits for the moment in which it takes it."""
    from arcpipe.tables import process

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    logs.setup("WARNING", "text", "committer")
    os.kill(os.getpid(), signal.SIGTERM)
    return process.run(settings, settings.wal.dir, counters)


if __name__ == "__main__":
    main()

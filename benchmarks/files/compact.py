"""Compaction of one hour, by the number of its files: `python -m benchmarks.files.compact`.

Makes the files of an hour as the uploader makes them, in a directory, and merges them in a process of its own. Prints
rows per second of CPU, the peak of memory, and for how long a reader sees rows twice. Settings follow as `KEY=VALUE`:

    python -m benchmarks.files.compact                                  # a million rows in 60 and in 720 files
    python -m benchmarks.files.compact compaction.memory_mb=600 --rows 10000000 --files 60
    python -m benchmarks.files.compact --rows 60000000 --files 200 --fields 20 --digits 17    # an hour of 10 GB
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from arcpipe.config.settings import Parquet
from arcpipe.lake.file_schema import ROLE, TIME_TYPE, file_metadata, file_order
from arcpipe.lake.keys import Partition
from arcpipe.lake.parquet_file import ParquetFile, Special
from arcpipe.lake.spool import SpoolMemory
from arcpipe.units import MB

_COMMAND: Final = (sys.executable, "-m", "benchmarks.files.compact")
NODE: Final = "0123456789ab"
_HOUR_US: Final = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z, a closed hour
_HOSTS: Final = 100
_AGE_SECONDS: Final = 3_600  # of a file, so that it may be merged


def main() -> None:
    """Merge, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the hour")
    parser.add_argument("--files", type=int, nargs="+", default=[60, 720])
    parser.add_argument("--fields", type=int, default=5, help="floats of a row")
    parser.add_argument("--digits", type=int, default=3, help="of a float; with 17 nothing can be compressed")
    parser.add_argument("--data-dir", type=Path, help="on the disk to be measured")
    parser.add_argument("--merge", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.merge:
        print(json.dumps(asyncio.run(merge())))
        return
    for files in options.files:
        print(_measure(options, files), flush=True)


def _measure(options: argparse.Namespace, files: int) -> str:
    with tempfile.TemporaryDirectory(prefix="compact-", dir=options.data_dir) as folder:
        wal = Path(folder) / "wal"
        (wal / "batches").mkdir(parents=True)
        size = _make_files(Path(folder), options, files)
        variables = {"ARCPIPE_WAL_DIR": str(wal), "ARCPIPE_STORAGE_URL": f"file://{folder}/lake"}
        for key, _, value in (setting.partition("=") for setting in options.settings):
            variables[f"ARCPIPE_{key.replace('.', '_').upper()}"] = value
        child = subprocess.Popen([*_COMMAND, "--merge"], env=os.environ | variables, stdout=subprocess.PIPE)
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            return f"{files} files: exit code {child.returncode}"
        found = json.loads(said)
        return (
            f"{files} files, {found['rows']} rows, {size / 1e6:.0f} MB became {found['files']} files, "
            f"{found['bytes'] / 1e6:.0f} MB: {found['rows'] / found['cpu']:,.0f} rows per CPU second, "
            f"{found['seconds']:.1f} s, peak {usage.ru_maxrss / 1024:.0f} MB, "
            f"rows seen twice for {found['twice'] * 1e3:.0f} ms"
        )


async def merge(ahead_seconds: float = 0.0) -> dict[str, Any]:
    """Merge the one hour that is worth it, with the settings of the environment, and return the figures.

    Args:
        ahead_seconds: of the compactor's clock, which judges how old files are.
    """
    from arcpipe.compaction.compactor import Compactor
    from arcpipe.compaction.resources import bound_resources
    from arcpipe.config.load import load
    from arcpipe.storage import open_store

    bound_resources()
    settings = load(None, os.environ)
    store = open_store(settings.storage.url, settings.storage.s3)
    compactor = Compactor(settings, settings.wal.dir, NODE, store, now=lambda: time.time() + ahead_seconds)
    pa.array(np.arange(1))  # has pyarrow import pandas where it is installed, as for the tests: no part of a merge
    started, cpu = time.monotonic(), time.process_time()
    try:
        [work] = [work async for work in compactor.find()]
        outcome = await compactor.compact(work.folder)
    finally:
        await store.close()
    assert outcome is not None, "BUG: nothing was merged"
    return {
        "files": len(outcome.plan.outputs),
        "bytes": outcome.plan.output_bytes,
        "rows": outcome.rows,
        "seconds": time.monotonic() - started,
        "cpu": time.process_time() - cpu,
        "twice": outcome.visible_twice_seconds,
    }


def _make_files(folder: Path, options: argparse.Namespace, files: int) -> int:
    """Make the files of an hour in a directory. Returns their bytes."""
    then = time.time() - _AGE_SECONDS
    total = 0
    for key, data in keys_and_files(folder, options.rows, files, options.fields, options.digits):
        path = folder / "lake" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (then, then))
        total += len(data)
    return total


def keys_and_files(
    folder: Path, rows: int, files: int, fields: int = 5, digits: int = 3
) -> Iterator[tuple[str, bytes]]:
    """Make the files of an hour, each with an equal part of its time.

    Args:
        folder: for temporary files.
        rows: of all files together.
        digits: of a float.
    """
    chance = np.random.default_rng(1)
    names = [f"host-{number:03}" for number in range(_HOSTS)]
    span = 3_600_000_000 // files
    for number in range(files):
        count = rows // files
        times = _HOUR_US + number * span + np.sort(chance.integers(0, span, count))
        columns: dict[str, tuple[pa.Array, bytes]] = {
            "time": (pa.array(times).cast(TIME_TYPE), b"time"),
            "host": (pa.array(random.Random(number).choices(names, k=count)).dictionary_encode(), b"tag"),
        }
        for index in range(fields):
            columns[f"f{index}"] = pa.array(chance.random(count).round(digits)), b"field"
        batch = f"{NODE}-20260101T000000-1.{number + 1}-{number:08x}"
        yield Partition("db", "m", _HOUR_US).key("arc", int(times[0]), batch, 0), _file(columns, folder)


def _file(columns: dict[str, tuple[pa.Array, bytes]], folder: Path) -> bytes:
    """Write a file as the uploader does."""
    fields = [pa.field(name, values.type, metadata={ROLE: role}) for name, (values, role) in columns.items()]
    fields.sort(key=file_order)
    schema = pa.schema(fields)
    table = pa.table([columns[field.name][0] for field in fields], schema=schema)
    memory = SpoolMemory(folder, 512 * MB, 512 * MB)
    texts = [field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field for field in schema]
    schema = pa.schema(texts, file_metadata("db", "m", "b"))
    file = ParquetFile(Parquet(), memory, schema, table["time"][0].value, table, Special(), False)
    file.append(table)
    spool = file.finish()
    try:
        return bytes(spool.read_at(0, spool.size))
    finally:
        spool.close()


if __name__ == "__main__":
    main()

"""Speed at which WAL entries become Parquet, without a WAL, a store or a network: `python -m benchmarks.micro.convert`.

For each kind of body, a new process reads a file of entries one by one, as the uploader does. It passes them to
`BatchTables`, and drops the finished files. The output has rows and entries per second, CPU seconds of all threads per
million rows, the peak of resident memory, and the bytes of Parquet per row.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from arcpipe.allocator import keep_freed_memory
from arcpipe.codec.columns import pack_float64, pack_int64, pack_values
from arcpipe.config.settings import Parquet
from arcpipe.counters import Counters
from arcpipe.lake.parquet_file import Rows
from arcpipe.lake.spool import Spool
from arcpipe.upload.collect import BatchTables
from arcpipe.upload.key_window import KeyWindow
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.uploader import GARBAGE_OBJECTS, KEPT_MEMORY_BYTES
from arcpipe.wal.directory import WALDirectory

_COMMAND = (sys.executable, "-m", "benchmarks.micro.convert")
START_US = 1_700_000_000_000_000
_rng = np.random.default_rng(1)
_random = random.Random(1)


def _times(entry: int, rows: int) -> bytes:
    return pack_int64(START_US + (entry * rows + np.arange(rows)) * 400)  # 9M rows an hour


def _floats(rows: int) -> bytes:
    return pack_float64(_rng.random(rows) * 100)


def _tags(values: int, rows: int, prefix: str = "host") -> bytes:
    return pack_values([f"{prefix}-{_random.randrange(values)}" for _ in range(rows)])


def _mixed(entry: int, rows: int) -> dict[str, bytes]:
    """Return the body of the suites: time, two string tags, three floats."""
    return {
        "time": _times(entry, rows),
        "host": _tags(500, rows),
        "region": _tags(4, rows, "region"),
        **{f"usage{n}": _floats(rows) for n in range(3)},
    }


def _repeating(entry: int, rows: int) -> dict[str, bytes]:
    """Return the same from one of ten agents, each of which repeats its hosts in the same order."""
    tags = _AGENTS.setdefault((entry % 10, rows), {"host": _tags(500, rows), "region": _tags(4, rows, "region")})
    return {**_mixed(entry, rows), **tags}


_AGENTS: dict[tuple[int, int], dict[str, bytes]] = {}


def _numeric(entry: int, rows: int) -> dict[str, bytes]:
    """Return time, one tag, four floats, four counters of mixed width."""
    counters = np.cumsum(_rng.integers(0, 1_000, (4, rows)), axis=1) + entry % 100 * rows
    return {
        "time": _times(entry, rows),
        "host": _tags(500, rows),
        **{f"gauge{n}": _floats(rows) for n in range(4)},
        **{f"counter{n}": pack_values(counters[n].tolist()) for n in range(4)},
    }


def _texts(entry: int, rows: int) -> dict[str, bytes]:
    """Return time, four tags, two texts that rarely repeat."""
    return {
        "time": _times(entry, rows),
        **{f"tag{n}": _tags(10**n + 1, rows, f"tag{n}") for n in range(4)},
        **{f"message{n}": _tags(1 << 40, rows, "a message of some length, with the number") for n in range(2)},
    }


BODIES = {"mixed": _mixed, "repeating": _repeating, "numeric": _numeric, "texts": _texts}
# Name: (body, rows of an entry, measurements).
CASES = {
    "mixed": ("mixed", 1000, 1),
    "mixed, tags repeat": ("repeating", 1000, 1),
    "mixed, 4 tables out of order": ("mixed", 1000, 4),
    "numeric-heavy": ("numeric", 1000, 1),
    "string-heavy": ("texts", 1000, 1),
    "mixed, 10,000 tables": ("mixed", 1000, 10_000),
    "10 rows": ("mixed", 10, 1),
    "1 row": ("mixed", 1, 1),
    "1 row, 1000 tables": ("mixed", 1, 1000),
    "mixed, keys": ("mixed", 1000, 1),
    "10 rows, keys": ("mixed", 10, 1),
    "1 row, keys": ("mixed", 1, 1),
}


def _key_meta() -> dict[str, object]:
    """Make the meta of a request with a token and a new key of 36 characters."""
    return {"in": b"a segment's name", "by": "token-1", "key": str(uuid.UUID(int=_random.getrandbits(128)))}


def write_entries(path: Path, case: str, rows: int) -> None:
    """Write length-prefixed payloads of a case to a file, with `rows` rows in all."""
    body, rows_each, measurements = CASES[case]
    order = list(range(rows // rows_each))
    if "out of order" in case:  # entries of several workers, up to 64 apart
        order = [block + at for block in range(0, len(order), 64) for at in _random.sample(range(64), 64)]
    with path.open("wb") as file:
        for number in order:
            columns = {name: msgspec.Raw(column) for name, column in BODIES[body](number, rows_each).items()}
            tags = [name for name in columns if name in ("host", "region") or name.startswith("tag")]
            measurement = f"m{number % measurements}"
            meta = _key_meta() if "keys" in case else {}
            payload = msgspec.msgpack.encode([1, "db", meta, {"m": measurement, "columns": columns, "tags": tags}])
            file.write(struct.pack(">I", len(payload)) + payload)


def read_entries(path: Path) -> Iterator[memoryview]:
    """Yield the payloads of a file, cut from large reads, as from a segment."""
    with path.open("rb") as file:
        left = b""
        while data := file.read(4 << 20):
            view = memoryview(left + data)
            at = 0
            while at + 4 <= len(view):
                end = at + 4 + int.from_bytes(view[at : at + 4], "big")
                if end > len(view):
                    break
                yield view[at + 4 : end]
                at = end
            left = bytes(view[at:])


class Converted(NamedTuple):
    """What entries became."""

    entries: int
    rows: int
    file_bytes: list[int]  # of each file


def convert(
    payloads: Iterable[bytes | memoryview], threads: int, first_us: int = START_US, directory: Path | None = None
) -> Converted:
    """Make entries Parquet in this process, and drop the files. Keys are decided by a window without older ones.

    Args:
        first_us: the timestamp of the first entry; each further one is 1 µs later.
        directory: where the spool is made; the system's directory for such things by default.
    """
    sizes: list[int] = []
    entries = 0

    def on_file(key: str, blob: Spool, rows: Rows) -> None:
        sizes.append(blob.size)
        blob.close()

    with contextlib.ExitStack() as stack:
        spool = stack.enter_context(tempfile.TemporaryDirectory(dir=directory))
        wal = WALDirectory(Path(spool) / "wal")
        wal.make()
        window = KeyWindow(wal, Counters(1).uploader)
        claims = window.begin("bench")
        tables = BatchTables(
            "bench",
            "arc",
            Parquet(),
            SchemaRegistry.load(Path(spool) / "schema.json"),
            threads=threads,
            spool=spool,
            on_file=on_file,
            on_dead_letter=lambda letter: sys.exit(letter.reason),
            decide=claims.decide,
        )
        stack.enter_context(tables)
        for payload in payloads:
            tables.add(first_us + entries, payload, entries)
            entries += 1
        tables.finish()
        claims.persist()
        window.finish("bench")
    return Converted(entries, tables.rows, sizes)


def measure(path: Path, threads: int) -> dict[str, Any]:
    """Convert a file of entries in this process."""
    logging.disable(logging.WARNING)
    keep_freed_memory(KEPT_MEMORY_BYTES)
    gc.set_threshold(GARBAGE_OBJECTS)
    gc.freeze()  # as in a process that was forked
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started, cpu_started = time.perf_counter(), time.process_time()
    entries, rows, sizes = convert(read_entries(path), threads)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    return {
        "rows/s": f"{rows / seconds / 1e6:.2f}M",
        "entries/s": f"{entries / seconds / 1e3:.1f}k",
        "CPU s/M rows": f"{cpu / rows * 1e6:.3f}",
        "peak RSS MB": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} ({before:.0f} before)",
        "files": len(sizes),
        "bytes/row": f"{sum(sizes) / rows:.1f}",
    }


def main() -> None:
    """Measure the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000, help="rows of each case with 1000 rows an entry")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(msgspec.json.encode(measure(arguments.measure, arguments.threads)).decode())
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "entries"
        for number, case in enumerate(arguments.case or CASES):
            rows = arguments.rows if CASES[case][1] >= 1000 else arguments.rows // 10
            write_entries(path, case, rows)
            command = [*_COMMAND, "--measure", path, "--threads", arguments.threads]
            output = subprocess.run([*map(str, command)], check=True, capture_output=True).stdout
            figures = msgspec.json.decode(output)
            if not number:
                print(f"{'':30}" + "".join(f"{name:>20}" for name in figures))
            print(f"{case:30}" + "".join(f"{value:>20}" for value in figures.values()), flush=True)


if __name__ == "__main__":
    main()

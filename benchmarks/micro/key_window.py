"""Memory and time of ten million idempotency keys: as files, as the uploader holds them, and as it looks them up.

    python -m benchmarks.micro.key_window [MILLIONS]

Times are CPU time of this process.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from arcpipe.counters import Counters, Uploader
from arcpipe.upload.key_files import RECORD, Records, encode_frame, encode_header, new_header
from arcpipe.upload.key_window import KeyWindow
from arcpipe.wal.directory import WALDirectory

_FILE_KEYS = 1 << 20
_LOOKED_UP = 1 << 17  # keys: half of them known
_AT_ONCE = 1024  # as `Budget.held_entries`


def bench(millions: Annotated[int, typer.Argument(min=1)] = 10) -> None:
    """Make the files, load them, and look keys up."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        directory = WALDirectory(folder)
        directory.make()
        keys = Path(folder) / "idempotency"
        keys.mkdir()
        total = millions * 1_000_000
        known = _random(rng, 0)
        for first in range(0, total, _FILE_KEYS):
            known = _random(rng, min(_FILE_KEYS, total - first))
            content = encode_header(new_header("", 0)) + encode_frame(known, int(known["second"].max()))
            (keys / f"{first:016d}.keys").write_bytes(content)
        block = Counters(1).uploader
        before, started = _resident_mb(), time.process_time()
        window = KeyWindow(directory, block, max_keys=total)
        window.load({})
        seconds = time.process_time() - started
        size = sum(path.stat().st_size for path in keys.iterdir()) / 1e6
        print(f"{block[Uploader.KEYS]:,} keys in {len(list(keys.iterdir()))} files, {size:.0f} MB on disk")
        print(f"loaded in {seconds:.2f} s; {_resident_mb() - before:.0f} MB of memory")
        wanted = np.concatenate((known[: _LOOKED_UP // 2], _random(rng, _LOOKED_UP // 2)))
        records = [record.tobytes() for record in rng.permutation(wanted)]
        claims = window.begin("batch")
        started = time.process_time()
        for start in range(0, len(records), _AT_ONCE):
            claims.decide(records[start : start + _AT_ONCE])
        each = (time.process_time() - started) / len(records) * 1e6
        print(f"{each:.2f} µs for each decision; {claims.repeated:,} repeated")


def _random(rng: np.random.Generator, count: int) -> Records:
    records: Records = np.zeros(count, RECORD)
    for half in ("high", "low"):
        records[half] = rng.integers(0, 1 << 63, count, np.uint64)
    records["second"] = 1_800_000_000
    return records


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    typer.run(bench)

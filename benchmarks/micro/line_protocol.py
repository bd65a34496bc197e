"""Speed at which line protocol becomes columns, without a server: `python -m benchmarks.micro.line_protocol`.

Bodies are those of the suites, also with CRLF, and lines with a shape each. Each is read by line, by column, by the
native kernel where it is installed (`make native`), and by line_protocol_parser (PyPI; C). The latter makes a dict of
each line: no columns, no MessagePack, no checks of names. All take turns in one run. A figure is the median of the CPU
time, as lines per second of a core.

The allocator keeps freed memory, as in the ingest workers.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from arcpipe.allocator import keep_freed_memory
from arcpipe.codec.line_protocol.body import encode_by_column, encode_by_kernel, encode_by_line
from arcpipe.native import KERNEL
from benchmarks.load.bodies import KINDS

_OWN_SHAPE: Final = b"m%d,host=h%d,region=eu f%d=%d.5,g=12i 17000000000000%05d\n"
SIZES: Final = (1, 2, 5, 10, 20, 30, 50, 70, 100, 200, 500, 1000, 2000, 5000)
_KEPT_MEMORY_BYTES: Final = 64 << 20  # as in an ingest worker
FORMATS_MEASURED: Final = (
    *("line protocol", "telegraf", "line protocol, CRLF", "telegraf, CRLF"),
    "a shape per line",
)


def bodies(format: str, lines: int, count: int) -> Iterator[bytes]:
    """Yield different bodies: each has its own place in memory and its own values."""
    source = random.Random(lines)
    kind, _, ending = format.partition(", ")
    for number in range(count):
        if kind == "a shape per line":
            yield b"".join([_OWN_SHAPE % ((at,) * 5) for at in range(lines)])
            continue
        body = KINDS[kind](lines, source).at(1_700_000_000_000_000 + number * 1_000_000)
        yield body.replace(b"\n", b"\r\n") if ending else body


def _peer() -> Callable[[bytes], object] | None:
    try:
        from line_protocol_parser import parse_line
    except ImportError:
        return None
    return lambda body: [parse_line(line) for line in body.decode().splitlines()]


def measure(format: str, lines: int, seconds: float) -> dict[str, float]:
    """Return the lines per second of a core, by reader."""
    given = list(bodies(format, lines, max(1, min(64, 4000 // lines))))
    readers: dict[str, Callable[[bytes], object]] = {
        "by line": encode_by_line,
        "by column": encode_by_column,
    }
    if KERNEL is not None:
        readers["by kernel"] = partial(encode_by_kernel, kind=KERNEL.LineReader)
    peer = _peer()
    if peer is not None:
        readers["line_protocol_parser"] = peer
    times: dict[str, list[float]] = {name: [] for name in readers}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times["by line"]) < 3:
        for name, reader in readers.items():
            started = time.process_time()
            for body in given:
                reader(body)
            times[name].append(time.process_time() - started)
    return {name: lines * len(given) / statistics.median(each) for name, each in times.items()}


def main() -> None:
    """Measure the sizes of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each size of body")
    parser.add_argument("--lines", type=int, action="append", help="lines of a body; may be given several times")
    arguments = parser.parse_args()
    keep_freed_memory(_KEPT_MEMORY_BYTES)
    for format in FORMATS_MEASURED:
        print(f"\n{format}, thousands of lines per second of a core")
        for number, lines in enumerate(arguments.lines or SIZES):
            size = len(next(bodies(format, lines, 1)))
            rates = measure(format, lines, arguments.seconds)
            if not number:
                print(f"{'lines':>7}{'bytes':>10}" + "".join(f"{name:>22}" for name in rates))
            print(f"{lines:>7}{size:>10}" + "".join(f"{rate / 1000:>22.0f}" for rate in rates.values()), flush=True)


if __name__ == "__main__":
    main()

"""Longest time for which the encoding thread holds the interpreter: `python -m benchmarks.worst.gil`.

While one call into C holds Python's lock, the loop of a worker stands still, on whichever thread the call runs. For
each case, a new process makes a body of up to `--size` bytes and encodes it on a thread, as a worker does. Its main
thread wakes up each millisecond. The output is the longest time between two such moments and its stage: `encode`, or
`free` of the result. Only CPU time of the encoding thread counts, so other programs make no gap. The best of several
runs counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from arcpipe.allocator import keep_freed_memory
from arcpipe.errors import BadPayload, PayloadTooLarge
from benchmarks.worst.bodies import BODY_BYTES, CASES

COMMAND: Final = (sys.executable, "-m", "benchmarks.worst.gil")
# The settings of an ingest worker.
_KEPT_MEMORY_BYTES: Final = 64 << 20
_SWITCH_INTERVAL_SECONDS: Final = 0.0002
_PAUSE_SECONDS: Final = 0.001
_PRIORITY: Final = -10


class _Probe:
    """Measures, at each look, the CPU time of another thread since the last look."""

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._clock = time.pthread_getcpuclockid(thread)
        self._at = time.perf_counter()
        self._spent = time.clock_gettime(self._clock)
        self.worst: dict[str, float] = {}
        self.at = ""

    def look(self, stage: str) -> None:
        """Measure the gap since the last look, and keep the longest of each stage."""
        now, spent = time.perf_counter(), time.clock_gettime(self._clock)
        gap = min(now - self._at, spent - self._spent)
        if gap > max(self.worst.values(), default=0.0):
            frame = sys._current_frames().get(self._thread)
            self.at = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else ""
        self._at, self._spent = now, spent
        self.worst[stage] = max(self.worst.get(stage, 0.0), gap)


def measure(case: str, size: int, priority: int = 0) -> dict[str, Any]:
    """Encode a case once; return the longest gap of each stage.

    Args:
        case: One of CASES.
        size: About the bytes of its body.
        priority: Niceness of the thread that wakes up, which must not wait for other programs.
    """
    encode, build = CASES[case]
    bodies = [build(size)]
    body_bytes = len(bodies[0])
    stage = "encode"
    found: dict[str, Any] = {}
    ready, go = threading.Event(), threading.Event()

    def work() -> None:
        nonlocal stage
        ready.set()
        go.wait()
        began = time.perf_counter()
        outcome: list[Any] = []
        try:
            outcome.append(encode(bodies[0]))
        except (BadPayload, PayloadTooLarge) as error:
            found["refused"] = str(error)[:150]
        found["seconds"] = round(time.perf_counter() - began, 2)
        stage = "free"
        outcome.clear()
        bodies.clear()
        stage = "end"

    gc.collect()
    gc.freeze()
    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    if priority:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), priority)
    assert thread.ident is not None
    probe = _Probe(thread.ident)
    go.set()
    while stage != "end":
        before = stage
        time.sleep(_PAUSE_SECONDS)
        if stage == "end":
            break
        probe.look(before)
    thread.join()
    gaps = {name: round(seconds * 1000, 1) for name, seconds in probe.worst.items()}
    return {
        "MB": round(body_bytes / 1e6, 1),
        "worst_ms": max(gaps.values(), default=0.0),
        "gaps_ms": gaps,
        "at": probe.at,
        **found,
    }


def measure_apart(case: str, size: int, runs: int) -> dict[str, Any]:
    """Measure a case in several new processes; return the run with the shortest longest gap."""
    found = []
    for _ in range(runs):
        output = subprocess.run(
            [*COMMAND, "--one", case, "--size", str(size)], stdout=subprocess.PIPE, check=True
        ).stdout
        found.append(json.loads(output))
    best: dict[str, Any] = min(found, key=lambda one: one["worst_ms"])
    return best


def main() -> None:
    """Measure the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), action="append", help="a body; all by default")
    parser.add_argument("--size", type=int, default=BODY_BYTES, metavar="BYTES", help="of each body, about")
    parser.add_argument("--runs", type=int, default=3, help="of each case, of which the best counts")
    parser.add_argument("--limit", type=float, default=0.0, metavar="MS", help="fail if one gap is longer")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        keep_freed_memory(_KEPT_MEMORY_BYTES)
        sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
        print(json.dumps(measure(arguments.one, arguments.size, _PRIORITY)))
        return
    over = []
    for case in arguments.case or CASES:
        found = measure_apart(case, arguments.size, arguments.runs)
        if arguments.limit and found["worst_ms"] > arguments.limit:
            over.append(case)
        if arguments.json:
            print(json.dumps({"case": case, **found}), flush=True)
        else:
            refused = f"  {found['refused'][:70]}" if "refused" in found else ""
            worst = f"worst {found['worst_ms']:7.1f} ms at {found['at']:38}"
            print(f"{case:42} {found['MB']:6.1f} MB {found['seconds']:6.2f} s  {worst}{refused}", flush=True)
    if over:
        sys.exit(f"longer than {arguments.limit} ms: {', '.join(over)}")


if __name__ == "__main__":
    main()

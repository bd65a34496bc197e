"""Figures of processes, held against the processes themselves."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time

from arcpipe.monitoring.process_figures import ProcessFigures, look_at

BUSY = """
import os, sys
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)]
block = bytes(range(256)) * (1 << 18)
while os.times().user + os.times().system < 0.3: pass
print(len(os.listdir("/proc/self/fd")) - 1, flush=True)
sys.stdin.read()
"""


def test_the_figures_are_those_of_the_process() -> None:
    before = time.time()
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        files = int(process.stdout.readline())
        found = look_at(process.pid)
        process.stdin.close()
    assert found.pid == process.pid
    assert found.memory_bytes is not None
    assert (1 << 26) < found.memory_bytes < (1 << 28)
    assert found.cpu_seconds is not None
    assert found.cpu_seconds >= 0.3
    assert found.open_files == files >= 43
    assert found.max_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert found.started is not None
    assert before - 1 <= found.started <= time.time() + 1
    assert look_at(process.pid) == ProcessFigures(process.pid, None, None, None, None, None)


def test_a_process_has_one_start_however_often_it_is_looked_at() -> None:
    """Alerts count the changes of it."""
    assert len({look_at(os.getppid()).started for _ in range(100)}) == 1

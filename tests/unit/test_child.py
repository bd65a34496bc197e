"""A child of the supervisor takes SIGTERM to its very last line, as often as it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.program import environment

CHILD = """
import asyncio, signal, sys
import uvloop
from arcpipe.child import take_sigterm

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

async def main() -> int:
    stopping = asyncio.Event()
    take_sigterm(asyncio.get_running_loop(), stopping.set)
    print("ready", flush=True)
    await stopping.wait()
    await asyncio.to_thread(print, "stopping", flush=True)
    return 3

factory = uvloop.new_event_loop if sys.argv[1] == "uvloop" else asyncio.new_event_loop
with asyncio.Runner(loop_factory=factory) as runner:
    code = runner.run(main())
sys.exit(code)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_no_moment_of_its_end_is_open_to_a_second_sigterm(loop: str) -> None:
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, loop],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        while child.poll() is None:
            os.kill(child.pid, signal.SIGTERM)
            time.sleep(0.0002)
        said, failed = child.communicate()
        assert (child.returncode, said, failed) == (3, "stopping\n", "")

"""A sender in a process of its own, to be killed: it numbers its records and tells each that was accepted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.program import environment
from tests.support.waiting import WAIT_SECONDS

_PROGRAM = """
import json, os, sys, time
from arcpipe.client import Client, Options

url, spool, told, first, count = json.loads(sys.argv[1])
options = Options(
    spool=spool, batch_records=7, batch_age_seconds=0.02, first_pause_seconds=0.005, longest_pause_seconds=0.05
)
out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
client = Client(url, options)
for n in range(first, first + count):
    if n % 3:
        client.write("cpu", {"n": n, "host": "web-1"}, tags=["host"])
    else:
        client.write_lines(f"cpu,host=web-1 n={n}i {1_790_000_000_000_000_000 + n}")
    os.write(out, b"%d\\n" % n)
    time.sleep(0.001 if n - first < 200 else 0.1)  # or thousands would wait when it is killed on a busy machine
client.close()
os.write(out, b"closed\\n")
"""


class Sender:
    """One life of the sender: its records have the numbers from `first` on."""

    def __init__(self, url: str, directory: Path, first: int, count: int) -> None:
        self._told = directory / f"told-{first}"
        arguments = json.dumps([url, str(directory / "spool"), str(self._told), first, count])
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, arguments], cwd=directory, env=environment(), stderr=subprocess.DEVNULL
        )

    def accepted(self) -> list[int]:
        """Return the numbers of the records that were accepted until now."""
        text = self._told.read_text() if self._told.exists() else ""
        return [int(line) for line in text.splitlines() if line != "closed"]

    def has_accepted(self, count: int) -> bool:
        """Tell whether it has accepted so many records, and still runs."""
        assert self.process.poll() is None, f"the sender ended with {self.process.returncode}"
        return len(self.accepted()) >= count

    def kill(self) -> None:
        """Kill it, if it still runs."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def ended(self, left: Callable[[], int]) -> bool:
        """Wait for its end while less is left from time to time; whether it was a good one.

        Sixty lives may leave thousands of batches, which take minutes on a busy machine.
        """
        fewest, until = left(), time.monotonic() + WAIT_SECONDS
        while self.process.poll() is None:
            now = left()
            if now < fewest:
                fewest, until = now, time.monotonic() + WAIT_SECONDS
            assert time.monotonic() < until, f"{now} are left, and were {WAIT_SECONDS:g} s ago"
            time.sleep(0.05)
        return self.process.returncode == 0

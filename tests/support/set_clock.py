"""The time of day of a server's processes, which a test sets while they run; their monotonic clock goes on as it is.

By libfaketime (https://github.com/wolfcw/libfaketime), which stands between a program and its C library.
"""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path
from typing import Final

import pytest

from tests.support.server import Server

_PLACES: Final = ("/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/lib64/faketime", "/usr/local/lib/faketime")
_FOUND: Final = [path for place in _PLACES for path in sorted(glob.glob(f"{place}/libfaketime.so.1"))]

needs_libfaketime = pytest.mark.skipif(
    not _FOUND, reason="libfaketime sets the clock: install Debian's package faketime"
)


class SetClock:
    """A running server whose clock is ahead of this machine's by some seconds.

    with SetClock(Server(tmp_path)) as clock:
        clock.set(-3600)
        clock.server.write({"m": "cpu", "columns": {"usage": [0.5]}})
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._file = Path(server.directory, "clock")
        self.ahead = 0.0
        self.set(0)
        server.variables |= {
            "LD_PRELOAD": _FOUND[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def __enter__(self) -> SetClock:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()
        # What the library leaves of processes that were killed.
        for pid in self.server.starts:
            for name in ("faketime_shm", "sem.faketime_sem"):
                Path("/dev/shm", f"{name}_{pid}").unlink(missing_ok=True)

    def set(self, ahead: float) -> None:
        """Set the seconds ahead; all processes see it with their next look."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead:+f}\n")
        os.replace(new, self._file)
        self.ahead = ahead

    def time(self) -> float:
        """Return the time of the server's clock, in seconds since the epoch."""
        return time.time() + self.ahead

"""File descriptors that are kept for the WAL: connections may use up all others, and it has to rotate all the same.

A process that serves connections works with a limit that is a little lower than it may have. Whoever opens a file of
the WAL and finds no descriptor raises the limit for as long as that takes. What was opened stays open above the limit.
"""

from __future__ import annotations

import contextlib
import resource
import threading
from collections.abc import Iterator
from typing import Final

# Descriptors: a rotation has three open at a time. Connections that come just then may take some of them for a while.
RESERVED: Final = 64

_lock = threading.Lock()
_limit = 0  # of this process besides the reserve; 0: it has no reserve


def keep_reserve() -> None:
    """Lower the limit of this process by the reserve, once, before it takes connections."""
    global _limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft <= 2 * RESERVED:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - RESERVED, hard))
    _limit = soft - RESERVED


@contextlib.contextmanager
def reserve() -> Iterator[None]:
    """Open files with what is reserved; for one thread at a time, and without effect where nothing is."""
    with _lock:
        if not _limit:
            yield
            return
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (_limit + RESERVED, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (_limit, hard))

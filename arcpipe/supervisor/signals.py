"""The signals that the supervisor waits for, held back from the first moment on.

The first process of a container gets no signal that it neither handles nor blocks: the kernel drops it. So this room
imports nothing that takes time to load.
"""

from __future__ import annotations

import signal
from typing import Final

SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD})


def hold() -> None:
    """Has them wait until somebody asks for them with sigtimedwait(2)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

"""The signals that the supervisor waits for, held back from the first moment on.

The first process of a container gets no signal that it neither handles nor blocks: the kernel drops it. So this room
imports nothing that takes time to load.
"""

from __future__ import annotations

import signal
from typing import Final

SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD})


def hold() -> None:
    """Has them wait until somebody asks for them with sigtimedwait(2).

    Whoever starts a process may ignore SIGCHLD, and it inherits that: waitpid(2) tells of no child's end then.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

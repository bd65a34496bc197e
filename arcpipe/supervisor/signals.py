"""The signals that the supervisor waits for, blocked from the first moment on.

The first process of a container gets no signal that it neither handles nor blocks: the kernel drops it. So this module
imports nothing that takes time to load.
"""

from __future__ import annotations

import signal
from typing import Final

# SIGUSR1 has no meaning here. Its default would end the instance, and others reopen their logs by it.
SIGNALS: Final = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD}
)


def hold() -> None:
    """Block the signals, so that they wait for sigtimedwait(2).

    Also restore the default of SIGCHLD: a process may inherit that it is ignored, and waitpid(2) then reports nothing.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

"""The command line as a user sees it in a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def drawn_in_terminal(*arguments: str, cwd: Path, env: Mapping[str, str], columns: int) -> str:
    """What a command that succeeds draws in a terminal that is so many columns wide."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "arcpipe", *arguments],
        cwd=cwd,
        env={**env, "COLUMNS": str(columns), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
    ) as process:
        os.close(terminal)
        drawn = b""
        while True:
            try:
                part = os.read(controller, 65536)
            except OSError:  # the terminal is gone with its last user
                break
            if not part:
                break
            drawn += part
        assert process.wait(timeout=60) == 0
    os.close(controller)
    return drawn.decode()

"""The command line as a user sees it in a terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.support.program import COMMAND, environment


class Terminal:
    """A command in a terminal; the text that it has drawn until now is `text`."""

    def __init__(self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, columns: int = 130) -> None:
        self._controller, terminal = pty.openpty()
        self._drawn = b""
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=cwd,
            env={**(environment() if env is None else env), "TERM": "xterm", "COLUMNS": str(columns), "LINES": "60"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._drawn += os.read(self._controller, 65536)
            except OSError:  # the terminal is gone with its last user
                return

    @property
    def text(self) -> str:
        return self._drawn.decode(errors="replace")

    def since(self, position: int) -> str:
        """Return the text that was drawn after that position."""
        return self.text[position:]

    def wait(self) -> int:
        """Wait for the end of the command; its exit code."""
        code = self.process.wait(60)
        self._reader.join(60)
        os.close(self._controller)
        return code

    def end(self, signal_number: signal.Signals) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(signal_number)
        return self.wait()


def drawn_in_terminal(*arguments: str, cwd: Path, env: Mapping[str, str], columns: int) -> str:
    """Return the drawing of a command that succeeds, in a terminal of that width."""
    terminal = Terminal(*arguments, cwd=cwd, env=env, columns=columns)
    assert terminal.wait() == 0
    return terminal.text

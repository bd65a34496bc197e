"""Faults inside of the processes of a running server, switched on and off by a test."""

from __future__ import annotations

from tests.support.program import ROOT
from tests.support.server import Server


class Fault:
    """A fault that the server has for as long as it is switched on."""

    def __init__(self, server: Server, source: str) -> None:
        folder = server.directory / "fault"
        folder.mkdir()
        self._flag = server.directory / "fault is on"
        (folder / "sitecustomize.py").write_text(f"FLAG = {str(self._flag)!r}\n{source}")
        server.variables["PYTHONPATH"] = f"{folder}:{ROOT}"

    def on(self) -> None:
        self._flag.touch()

    def off(self) -> None:
        self._flag.unlink()

"""Use of the machine's cores while a load runs: by the server, its load, other programs, the hypervisor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from benchmarks.system.machine import CPUTime
from benchmarks.system.server import ProcessUse, process_use


class Usage:
    """Use of the cores between `open` and `close`, in CPU seconds per second."""

    def __init__(self, server: Callable[[], dict[int, ProcessUse]], load_pids: list[int]) -> None:
        """Prepare a measurement.

        Args:
            server: Returns the use of each of the server's processes, by pid.
            load_pids: Processes of the load generators.
        """
        self._server = server
        self._load_pids = load_pids
        self._opened = 0.0
        self.is_open = False
        self.is_closed = False
        self.server_cores: dict[int, float] = {}
        self.other_cores = 0.0
        self.stolen_cores = 0.0

    def open(self) -> None:
        """Begin to measure."""
        self.is_open = True
        self._opened = time.perf_counter()
        self._machine = CPUTime()
        self._before = self._server()
        self._own = self._own_seconds()

    def close(self) -> None:
        """End the measurement, and compute the results."""
        self.is_closed = True
        seconds = time.perf_counter() - self._opened
        machine, own = CPUTime(), self._own_seconds()
        for pid, use in self._server().items():
            before = self._before[pid].cpu_seconds if pid in self._before else 0.0
            self.server_cores[pid] = (use.cpu_seconds - before) / seconds
        busy = (machine.busy_seconds - self._machine.busy_seconds - (own - self._own)) / seconds
        self.other_cores = max(0.0, busy - sum(self.server_cores.values()))
        self.stolen_cores = (machine.stolen_seconds - self._machine.stolen_seconds) / seconds

    def _own_seconds(self) -> float:
        """Return the CPU seconds of the harness and its load generators."""
        return sum(use.cpu_seconds for pid in (os.getpid(), *self._load_pids) if (use := process_use(pid)) is not None)

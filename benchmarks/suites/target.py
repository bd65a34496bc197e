"""Runs of the load against a server that already runs, arcpipe or a peer.

The benchmark cannot look into such a server's storage: `parquet_records` of these runs is None.
"""

from __future__ import annotations

from benchmarks.load.drive import load_processes, load_spec
from benchmarks.report.progress import Status
from benchmarks.results.model import LoadOptions, Run
from benchmarks.suites.follow import Outcome, Plan, follow, make_run, now_utc
from benchmarks.suites.protocols import Target
from benchmarks.system.listeners import processes_at
from benchmarks.system.server import ProcessUse, process_use


async def run_target(target: Target, round_number: int, load: LoadOptions, status: Status) -> Run:
    """Run the load once.

    Raises:
        LoadFailed: The load failed, so there is no figure.
    """
    started_at = now_utc()
    spec = load_spec(
        load,
        target.host,
        target.port,
        headers=target.headers,
        tls=target.tls,
        path=target.path,
        verify_certificate=True,
    )
    async with load_processes(spec, load.load_processes) as generators:
        server = _Processes(processes_at(target.host, target.port))

        def tick(state: str) -> None:
            status(f"{state}, {generators.acknowledged_records / 1e6:.2f} M records acknowledged")

        measured = await follow(generators, load, server.use, tick)
    acknowledged = measured.figures.acknowledged_requests * load.records_per_body
    return make_run(Plan(target.name, round_number, load), started_at, measured, Outcome(acknowledged, server.last))


class _Processes:
    """The server's processes, as far as they are on this machine."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self.last: dict[int, ProcessUse] = {}

    def use(self) -> dict[int, ProcessUse]:
        """Return the use of each process that still runs, by pid."""
        uses = {pid: use for pid in self._pids if (use := process_use(pid)) is not None}
        self.last.update(uses)
        return uses

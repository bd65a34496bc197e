"""The real uploader in processes of its own, which die, or meet an error, at the step that a test names.

A step is a call of arcpipe's own code, found by its dotted name and counted. The product has no hooks for this.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.crash.helper import Helper, answer, orders, run_in_fork, serve
from tests.crash.steps import Step, arm_deaths, find

_MODULES: Final = (
    "arcpipe.config.settings",
    "arcpipe.logs",
    "arcpipe.storage.local",
    "arcpipe.storage.s3",
    "arcpipe.upload.uploader",
    "arcpipe.wal.recovery",
)
# A run that takes longer hangs.
_RUN_SECONDS: Final = 240.0


class Outcome(NamedTuple):
    """How a run ended: its exit code, negative for a signal, and the uploader's counters by name.

    `retries` counts all kinds together, `retries_{kind}` one of them.
    """

    exit_code: int
    counters: dict[str, int]


class Uploaders(Helper):
    """Runs uploaders on log directories, one at a time."""

    def __init__(self) -> None:
        super().__init__("tests.crash.uploader_process", _RUN_SECONDS)

    def run(
        self,
        wal: Path,
        settings: Mapping[str, object],
        *,
        die: Step | None = None,
        fail: Step | None = None,
        constants: Mapping[str, object] | None = None,
        restart_server: bool = False,
    ) -> Outcome:
        """An uploader on `wal` that is told to drain from the start: it ends when everything is shipped.

        Args:
            settings: as ARCPIPE_… variables, without the prefix and in lower case.
            die: where it gets a SIGKILL.
            fail: where an I/O error is raised, once.
            constants: values for constants, by "package.module:NAME"; what is a dict is added to.
            restart_server: whether the whole server was started anew: recovery, a new boot number, fresh counters.
                Otherwise the uploader alone is a successor of the one before.
        """
        return Outcome(
            **self.ask(
                wal,
                settings,
                die=die,
                fail=fail,
                constants=dict(constants or {}),
                restart_server=restart_server,
            )
        )


# In the helper process


def _serve() -> None:
    from arcpipe.config.load import load
    from arcpipe.counters import RETRY_KINDS, Counters, Uploader
    from arcpipe.upload import retry
    from arcpipe.wal.directory import NodeIdentity, WALDirectory
    from arcpipe.wal.recovery import recover_at_start

    names = {value: name.lower() for name, value in vars(Uploader).items() if isinstance(value, int) and name != "SIZE"}
    servers: dict[str, tuple[Counters, NodeIdentity]] = {}
    setattr(retry, "_FIRST_SECONDS", 0.05)  # noqa: B010 (how long it waits is shown elsewhere)
    for order in orders(_MODULES):
        directory = WALDirectory(order["wal"])
        if order["restart_server"] or order["wal"] not in servers:
            servers[order["wal"]] = Counters(1), directory.next_boot()
            recover_at_start(directory)
        counters, node = servers[order["wal"]]
        counters.uploader[Uploader.PID] = 0

        def work(
            order: dict[str, Any] = order,
            directory: WALDirectory = directory,
            counters: Counters = counters,
            node: NodeIdentity = node,
        ) -> int:
            from arcpipe.upload import uploader

            for name, value in order["constants"].items():
                owner, constant = find(name)
                before = getattr(owner, constant)
                setattr(owner, constant, before | value if isinstance(before, dict) else value)
            arm_deaths(order)
            return uploader.run(load(None, order["settings"]), directory, counters, node)

        exit_code = run_in_fork(work, order["wal"] + ".log", _RUN_SECONDS)
        values = {name: counters.uploader[index] for index, name in names.items()}
        retries = counters.uploader[Uploader.RETRIES : Uploader.RETRIES + len(RETRY_KINDS)].tolist()
        values |= {f"retries_{kind}": count for kind, count in zip(RETRY_KINDS, retries, strict=True)}
        values["retries"] = sum(retries)
        answer({"exit_code": exit_code, "counters": values})


if __name__ == "__main__":
    serve(_serve)

"""The real committer in processes of its own, which die, meet an error, or are stopped, at the step that a test names.

One helper process imports what is needed, and forks a committer for each run. It imports
pyiceberg, too, which takes longer than a run does; deltalake cannot be used after a fork, and is imported by the fork.
Each run is told to end from its start: it commits all that it can.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.crash.helper import Helper, answer, orders, run_in_fork, serve
from tests.crash.steps import Step, arm, arm_deaths, find

_MODULES: Final = (
    "arcpipe.config.load",
    "arcpipe.storage.local",
    "arcpipe.storage.s3",
    "arcpipe.tables.delta.tables",
    "arcpipe.tables.iceberg.glue_catalogue",
    "arcpipe.tables.iceberg.rest_catalogue",
    "arcpipe.tables.iceberg.sql_catalogue",
    "arcpipe.tables.iceberg.table",
    "arcpipe.tables.process",
    "pyarrow.fs",
    "tests.support.table_model",
)
_RUN_SECONDS = 400.0  # of a committer, one that is stopped meanwhile included


class Outcome(NamedTuple):
    """How a run ended: its exit code, negative for a signal, and the committer's counters by name."""

    exit_code: int
    counters: dict[str, int]


class Committers(Helper):
    """Runs committers, one at a time."""

    def __init__(self) -> None:
        super().__init__("tests.crash.committer_process", _RUN_SECONDS)

    def run(
        self,
        wal: Path,
        settings: Mapping[str, object],
        *,
        model: Path | None = None,
        die: Step | None = None,
        fail: Step | None = None,
        stop: Step | None = None,
        plant: Mapping[str, object] | None = None,
    ) -> Outcome:
        """A committer on `wal` that commits what is handed over, and ends.

        Args:
            settings: as ARCPIPE_… variables, without the prefix and in lower case.
            model: the directory of the tests' own tables, instead of the format of the settings.
            die: where it gets a SIGKILL.
            fail: where an I/O error is raised, once.
            stop: where it gets a SIGSTOP, after it wrote its pid to `{wal}.stopped`. Whoever reads that continues it.
            plant: values for attributes, by "package.module:Class.NAME"; texts stand for functions, see STAND_INS.
        """
        return Outcome(
            **self.ask(
                wal,
                settings,
                model=None if model is None else str(model),
                die=die,
                fail=fail,
                stop=stop,
                plant=dict(plant or {}),
            )
        )


# In the helper process


async def _all_files(self: object, table: object, files: list[Any]) -> list[Any]:
    """Stands in for the search for files that a table without a marker has."""
    return files


STAND_INS: Final[dict[str, Callable[..., object]]] = {
    "all": _all_files,
    "no markers": lambda *_: {},
    "no marker": lambda *_: None,
}


def _stop_here(flag: str) -> None:
    """Stop, as a machine does that is paused, until somebody continues this process."""
    Path(f"{flag}.new").write_text(str(os.getpid()))
    os.rename(f"{flag}.new", flag)
    os.kill(os.getpid(), signal.SIGSTOP)


def _serve() -> None:
    from arcpipe.config.load import load
    from arcpipe.counters import Committer, Counters
    from arcpipe.tables import process
    from tests.support.table_model import ModelTables

    names = {
        value: name.lower() for name, value in vars(Committer).items() if isinstance(value, int) and name != "SIZE"
    }
    setattr(process, "_RETRY_SECONDS", (0.05, 60.0))  # noqa: B010 (how long it waits is shown elsewhere)
    for order in orders(_MODULES):
        counters = Counters(1)

        def work(order: dict[str, Any] = order, counters: Counters = counters) -> int:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            if order["model"] is not None:
                setattr(process, "open_format", lambda *_: ModelTables(Path(order["model"])))  # noqa: B010
            for name, value in order["plant"].items():
                setattr(*find(name), STAND_INS[value] if isinstance(value, str) else value)
            arm_deaths(order)
            if order["stop"] is not None:
                arm(Step(*order["stop"]), lambda: _stop_here(order["wal"] + ".stopped"))
            return process.run(load(None, order["settings"]), order["wal"], counters)

        exit_code = run_in_fork(work, order["wal"] + ".log", _RUN_SECONDS)
        values = {name: counters.committer[index] for index, name in names.items()}
        answer({"exit_code": exit_code, "counters": values})


if __name__ == "__main__":
    serve(_serve)

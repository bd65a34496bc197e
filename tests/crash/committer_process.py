"""The real committer in processes of its own, which die, meet an error, or are stopped, at the step that a test names.

As `uploader_process`: one helper process imports what is needed, and forks a committer for each run. It imports
pyiceberg, too, which takes longer than a run does; deltalake cannot be used after a fork, and is imported by the fork.
Each run is told to end from its start: it commits all that it can.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tests.crash.uploader_process import ROOT, Step, arm, find, raise_io_error, run_in_fork, warm_up

_PR_SET_PDEATHSIG = 1
_RUN_SECONDS = 400.0  # of a committer, one that is stopped meanwhile included


class Outcome(NamedTuple):
    """How a run ended: its exit code, negative for a signal, and the committer's counters by name."""

    exit_code: int
    counters: dict[str, int]


class Committers:
    """Runs committers, one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.committer_process", str(os.getpid())],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_RUN_SECONDS)

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
        order = {
            "wal": str(wal),
            "settings": {f"ARCPIPE_{name.upper()}": str(value) for name, value in settings.items()},
            "model": None if model is None else str(model),
            "die": die,
            "fail": fail,
            "stop": stop,
            "plant": dict(plant or {}),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks committers has ended"
        return Outcome(**json.loads(answer))


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
    for module in (
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
    ):
        importlib.import_module(module)
    warm_up()
    from arcpipe.config.load import load
    from arcpipe.counters import Committer, Counters
    from arcpipe.tables import process
    from tests.support.table_model import ModelTables

    names = {
        value: name.lower() for name, value in vars(Committer).items() if isinstance(value, int) and name != "SIZE"
    }
    setattr(process, "_RETRY_SECONDS", (0.05, 60.0))  # noqa: B010 (how long it waits is shown elsewhere)
    for line in sys.stdin:
        order = json.loads(line)
        counters = Counters(1)

        def work(order: dict[str, Any] = order, counters: Counters = counters) -> int:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            if order["model"] is not None:
                setattr(process, "open_format", lambda *_: ModelTables(Path(order["model"])))  # noqa: B010
            for name, value in order["plant"].items():
                setattr(*find(name), STAND_INS[value] if isinstance(value, str) else value)
            if order["die"] is not None:
                arm(Step(*order["die"]), lambda: os.kill(os.getpid(), signal.SIGKILL))
            if order["fail"] is not None:
                arm(Step(*order["fail"]), raise_io_error)
            if order["stop"] is not None:
                arm(Step(*order["stop"]), lambda: _stop_here(order["wal"] + ".stopped"))
            return process.run(load(None, order["settings"]), order["wal"], counters)

        exit_code = run_in_fork(work, order["wal"] + ".log", _RUN_SECONDS)
        values = {name: counters.committer[index] for index, name in names.items()}
        print(json.dumps({"exit_code": exit_code, "counters": values}), flush=True)


__all__ = ["Committers", "Outcome", "Step"]

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == int(sys.argv[1]):
        _serve()

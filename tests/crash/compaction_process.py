"""The real compactor in processes of its own, which die, or meet an error, at the step that a test names.

As `uploader_process`: one helper process imports what is needed, and forks a compactor for each run.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.crash.uploader_process import ROOT, Step, arm, find, raise_io_error, run_in_fork, warm_up

_PR_SET_PDEATHSIG = 1
_RUN_SECONDS = 240.0
FILE_BYTES = 200_000
"""Bound of an output: three row groups of 2000 rows."""
FAILED = 7
"""Exit code of a run that met an error, which stays for the next run."""


class Compactors:
    """Runs compactors, one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.compaction_process", str(os.getpid())],
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
        die: Step | None = None,
        fail: Step | None = None,
        node: str = "0123456789ab",
        ahead_seconds: float = 0.0,
    ) -> int:
        """Finish what is there, merge all that is worth it, and return the exit code.

        Args:
            die: where it gets a SIGKILL.
            fail: where an I/O error is raised, once.
            ahead_seconds: of its clock.
        """
        order = {
            "wal": str(wal),
            "settings": {f"ARCPIPE_{name.upper()}": str(value) for name, value in settings.items()},
            "die": die,
            "fail": fail,
            "node": node,
            "ahead_seconds": ahead_seconds,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks compactors has ended"
        return int(answer)


async def _compact(order: dict[str, Any]) -> int:
    from arcpipe.compaction.compactor import Compactor
    from arcpipe.compaction.outputs import OutputBounds
    from arcpipe.compaction.rewrite import RewriteBounds
    from arcpipe.config.load import load
    from arcpipe.errors import ArcpipeError
    from arcpipe.storage import open_store

    settings = load(None, order["settings"])
    store = open_store(settings.storage.url, settings.storage.s3)
    compactor = Compactor(
        *(settings, order["wal"], order["node"], store),
        now=lambda: time.time() + order["ahead_seconds"],
        rewrite_bounds=RewriteBounds(outputs=OutputBounds(file_bytes=FILE_BYTES)),
    )
    try:
        await compactor.finish()
        for work in [work async for work in compactor.find()]:
            await compactor.compact(work.folder)
    except (ArcpipeError, OSError) as error:
        print(f"failed: {error!r}", file=sys.stderr)
        return FAILED
    finally:
        await store.close()
    return 0


def _serve() -> None:
    for module in (
        "arcpipe.compaction.compactor",
        "arcpipe.config.load",
        "arcpipe.storage.local",
        "arcpipe.storage.s3",
        "tomllib",
    ):
        importlib.import_module(module)
    warm_up()
    for line in sys.stdin:
        order = json.loads(line)

        def work(order: dict[str, Any] = order) -> int:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            if order["die"] is not None:
                arm(Step(*order["die"]), lambda: os.kill(os.getpid(), signal.SIGKILL))
            if order["fail"] is not None:
                arm(Step(*order["fail"]), raise_io_error)
            return asyncio.run(_compact(order))

        print(run_in_fork(work, order["wal"] + ".log", _RUN_SECONDS), flush=True)


__all__ = ["FAILED", "Compactors", "Step", "find"]

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == int(sys.argv[1]):
        _serve()

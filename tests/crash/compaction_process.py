"""The real compactor in processes of its own, which die, or meet an error, at the step that a test names.

One helper process imports what is needed, and forks a compactor for each run.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.crash.helper import Helper, answer, orders, run_in_fork, serve
from tests.crash.steps import Step, arm_deaths

_MODULES: Final = (
    "arcpipe.compaction.compactor",
    "arcpipe.config.load",
    "arcpipe.storage.local",
    "arcpipe.storage.s3",
    "tomllib",
)
_RUN_SECONDS = 240.0
FILE_BYTES = 200_000
"""Bound of an output: three row groups of 2000 rows."""
FAILED = 7
"""Exit code of a run that met an error, which stays for the next run."""


class Compactors(Helper):
    """Runs compactors, one at a time."""

    def __init__(self) -> None:
        super().__init__("tests.crash.compaction_process", _RUN_SECONDS)

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
        return int(self.ask(wal, settings, die=die, fail=fail, node=node, ahead_seconds=ahead_seconds))


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
    for order in orders(_MODULES):

        def work(order: dict[str, Any] = order) -> int:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            arm_deaths(order)
            return asyncio.run(_compact(order))

        answer(run_in_fork(work, order["wal"] + ".log", _RUN_SECONDS))


if __name__ == "__main__":
    serve(_serve)

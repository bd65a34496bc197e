"""The turn of a target that its command starts: alone on the machine, from the start to the end of its process.

A server that stays up works on what it took before, and shares the cores with the one that is measured. So a target
with a command is started for each of its runs, in a new directory, and stopped before the next one begins.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from benchmarks.suites.probe import TargetFailed, is_there
from benchmarks.suites.protocols import Target
from benchmarks.system.children import die_with_parent

# In a command: the directory of the turn.
PLACE: Final = "{dir}"
_START_SECONDS: Final = 120.0
# Seconds for a server to upload, flush or compact before it ends. One that takes longer is killed, and that is told.
_STOP_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 0.1
_LOG_BYTES: Final = 2000


class Turn:
    """The time in which a target runs; `drain_seconds` is known after its end."""

    drain_seconds = 0.0


@asynccontextmanager
async def turn(target: Target, directory: Path | None) -> AsyncIterator[Turn]:
    """Start the target, wait until it answers, and stop it at the end. A target without a command is left alone.

    Args:
        target: The server, with the command that starts it.
        directory: Where the directory of the turn goes, on the disk to measure; needed for a command.

    Raises:
        TargetFailed: It did not start, something else serves at its port, or it had to be killed.
    """
    its = Turn()
    if not target.command:
        yield its
        return
    assert directory is not None
    if await asyncio.to_thread(is_there, target):
        raise TargetFailed(f"{target.url} serves before {target.name} was started there: stop that server first")
    folder = Path(tempfile.mkdtemp(prefix="turn-", dir=directory))
    try:
        with (folder / "log").open("wb") as log:
            words = [word.replace(PLACE, str(folder)) for word in shlex.split(target.command)]
            try:
                process = await asyncio.create_subprocess_exec(
                    *words,
                    cwd=folder,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            except OSError as error:
                raise TargetFailed(f"{target.name} cannot be started by {target.command!r}: {error}") from None
        try:
            await _wait_until_there(target, process, folder / "log")
            yield its
            its.drain_seconds = await _stop(target, process, folder / "log")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    finally:
        await asyncio.to_thread(shutil.rmtree, folder)


async def _wait_until_there(target: Target, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not await asyncio.to_thread(is_there, target):
        if process.returncode is not None:
            raise TargetFailed(f"{target.name} ended with exit code {process.returncode} at once:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise TargetFailed(
                f"{target.name} does not serve at {target.url} after {_START_SECONDS:g} s:\n{_tail(log)}"
            )
        await asyncio.sleep(_POLL_SECONDS)


async def _stop(target: Target, process: asyncio.subprocess.Process, log: Path) -> float:
    """Ask the process to end, and wait for it; return the seconds that this took."""
    before = time.perf_counter()
    if process.returncode is not None:
        raise TargetFailed(f"{target.name} ended with exit code {process.returncode} in its turn:\n{_tail(log)}")
    process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        raise TargetFailed(f"{target.name} still runs {_STOP_SECONDS:g} s after SIGTERM:\n{_tail(log)}") from None
    return time.perf_counter() - before


def _tail(log: Path) -> str:
    return log.read_bytes()[-_LOG_BYTES:].decode("utf-8", "replace").rstrip()

"""Child processes of the harness: they run this source tree, and end with the harness, however it ends."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LINE_BYTES: Final = 16 << 20


async def spawn(
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    stdin: bool = False,
    stdout: bool = False,
    stderr: bool = False,
) -> asyncio.subprocess.Process:
    """Run `python -m module` in a session of its own, so that Ctrl-C reaches the harness alone.

    Args:
        module: Name of the module.
        arguments: Its command line.
        environment: All variables except PYTHONPATH; by default those of the harness.
        directory: Working directory; by default that of the harness.
        stdin: Make a pipe; otherwise stdin is empty.
        stdout: Make a pipe; otherwise stdout is that of the harness.
        stderr: Make a pipe; otherwise stderr is that of the harness.
    """
    pipe = asyncio.subprocess.PIPE
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=pipe if stdin else asyncio.subprocess.DEVNULL,
        stdout=pipe if stdout else None,
        stderr=pipe if stderr else None,
        env={**(os.environ if environment is None else environment), "PYTHONPATH": path},
        cwd=directory,
        limit=_LINE_BYTES,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


async def end_processes(processes: Sequence[asyncio.subprocess.Process]) -> None:
    """Kill the processes that still run, and wait until all have ended."""
    for process in processes:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
    for process in processes:
        await process.wait()


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends: a `preexec_fn`."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

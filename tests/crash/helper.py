"""A helper process: it imports what a process of arcpipe needs, once, and forks one for each order.

The supervisor forks them so, too. It shares nothing with pytest but two pipes, so pytest's threads are never forked.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.s3models import read_models

ROOT: Final = Path(__file__).parents[2]
_PR_SET_PDEATHSIG: Final = 1


class Helper:
    """The side of the tests: takes one order at a time to the helper process, and its answer back."""

    def __init__(self, module: str, run_seconds: float) -> None:
        """Start the process.

        Args:
            module: its program, which calls `serve` with a loop over `orders`.
            run_seconds: of a run; one that takes longer hangs.
        """
        self._module = module
        self._run_seconds = run_seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(os.getpid())],
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
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends with its input
        self._process.wait(self._run_seconds)

    def ask(self, wal: Path, settings: Mapping[str, object], **order: object) -> Any:
        """Have a run done, and return what the process says of it.

        Args:
            settings: as ARCPIPE_… variables, without the prefix and in lower case.
            order: the rest, as JSON can say it.
        """
        variables = {f"ARCPIPE_{name.upper()}": str(value) for name, value in settings.items()}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"wal": str(wal), "settings": variables, **order}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{self._module} has ended: {self._process.wait(self._run_seconds)}"
        return json.loads(answer)


# In the helper process


def serve(loop: Callable[[], None]) -> None:
    """Run the loop of a helper process, which ends with the tests."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == int(sys.argv[1]):
        loop()


def orders(modules: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Import what the runs need, and yield the orders. Each is answered by `answer`."""
    for module in modules:
        importlib.import_module(module)
    _warm_up()
    for line in sys.stdin:
        yield json.loads(line)


def answer(value: object) -> None:
    """Answer an order."""
    print(json.dumps(value), flush=True)


def _warm_up() -> None:
    """Do here, once, what each fork would do first: it takes several times as long as a batch or a merge."""
    import numpy as np
    import pyarrow as pa

    from arcpipe.config.load import load

    for name in ("fsync", "fdatasync"):
        setattr(os, name, lambda fd: None)  # a kill takes nothing out of the page cache
    load(None, {})  # has msgspec look at the types of all settings: 0.04 s
    pa.array(np.arange(1))  # has pyarrow look for pandas, and import it where it is installed: 0.35 s
    read_models()
    gc.collect()
    gc.freeze()  # as the supervisor does, so that a collection in a fork does not copy all of it


def run_in_fork(work: Callable[[], int], log: str, seconds: float) -> int:
    """`work` in a fork, with a SIGTERM waiting for the moment in which it takes signals; its exit code."""
    from arcpipe import logs

    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    pid = os.fork()
    if pid:
        # `work` is not run by pytest, whose own timeout would end this process's parent alone.
        watchdog = signal.SIGALRM
        signal.signal(watchdog, lambda *_: os.kill(pid, signal.SIGABRT))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        status = os.waitpid(pid, 0)[1]
        signal.setitimer(signal.ITIMER_REAL, 0)
        return os.waitstatus_to_exitcode(status)
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
            logs.setup("INFO", "text", "uploader")
            os.kill(os.getpid(), signal.SIGTERM)
            code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)

"""The real uploader in processes of its own, which die, or meet an error, at the step that a test names.

`Uploaders` starts one helper process that imports what the uploader needs once and then forks an uploader per `run`,
as the supervisor does. A step is a call of arcpipe's own code, found by its dotted name and counted; the product has no
hooks for this. The helper process shares nothing with pytest but two pipes, so pytest's threads are never forked.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import gc
import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1
# A run that takes longer hangs.
_RUN_SECONDS = 60.0


class Step(NamedTuple):
    """The `nth` call (from 1) of a function whose arguments, as text, match a pattern."""

    function: str  # "package.module:Class.method" or "package.module:function"
    when: Literal["before", "after"]
    nth: int = 1
    pattern: str = ""


class Outcome(NamedTuple):
    """How a run ended: its exit code, negative for a signal, and the uploader's counters by name.

    `retries` counts all kinds together, `retries_{kind}` one of them.
    """

    exit_code: int
    counters: dict[str, int]


class Uploaders:
    """Runs uploaders on log directories, one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.uploader_process", str(os.getpid())],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Uploaders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends with its input
        self._process.wait(_RUN_SECONDS)

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
        order = {
            "wal": str(wal),
            "settings": {f"ARCPIPE_{name.upper()}": str(value) for name, value in settings.items()},
            "die": die,
            "fail": fail,
            "constants": dict(constants or {}),
            "restart_server": restart_server,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process that forks uploaders has ended: {self._process.wait(_RUN_SECONDS)}"
        return Outcome(**json.loads(answer))


# In the helper process


def _serve() -> None:
    for module in (
        "arcpipe.config.settings",
        "arcpipe.logs",
        "arcpipe.storage.local",
        "arcpipe.storage.s3",
        "arcpipe.upload.uploader",
        "arcpipe.wal.recovery",
    ):
        importlib.import_module(module)
    warm_up()
    from arcpipe.config.load import load
    from arcpipe.counters import RETRY_KINDS, Counters, Uploader
    from arcpipe.upload import retry
    from arcpipe.wal.directory import NodeIdentity, WALDirectory
    from arcpipe.wal.recovery import recover_at_start

    names = {value: name.lower() for name, value in vars(Uploader).items() if isinstance(value, int) and name != "SIZE"}
    servers: dict[str, tuple[Counters, NodeIdentity]] = {}
    setattr(retry, "_FIRST_SECONDS", 0.05)  # noqa: B010 (how long it waits is shown elsewhere)
    for line in sys.stdin:
        order = json.loads(line)
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
            if order["die"] is not None:
                arm(Step(*order["die"]), lambda: os.kill(os.getpid(), signal.SIGKILL))
            if order["fail"] is not None:
                arm(Step(*order["fail"]), raise_io_error)
            return uploader.run(load(None, order["settings"]), directory, counters, node)

        exit_code = run_in_fork(work, order["wal"] + ".log")
        values = {name: counters.uploader[index] for index, name in names.items()}
        retries = counters.uploader[Uploader.RETRIES : Uploader.RETRIES + len(RETRY_KINDS)].tolist()
        values |= {f"retries_{kind}": count for kind, count in zip(RETRY_KINDS, retries, strict=True)}
        values["retries"] = sum(retries)
        print(json.dumps({"exit_code": exit_code, "counters": values}), flush=True)


def warm_up() -> None:
    """Do here, once, what each fork would do first: it takes several times as long as a batch or a merge."""
    import numpy as np
    import pyarrow as pa

    from arcpipe.config.load import load

    for name in ("fsync", "fdatasync"):
        setattr(os, name, lambda fd: None)  # a kill takes nothing out of the page cache
    load(None, {})  # has msgspec look at the types of all settings: 0.04 s
    pa.array(np.arange(1))  # has pyarrow look for pandas, and import it where it is installed: 0.35 s
    parse_s3_model()
    gc.collect()
    gc.freeze()  # as the supervisor does, so that a collection in a fork does not copy all of it


def parse_s3_model() -> None:
    """Has the SDK read its description of S3 here, once, and not in each fork: 0.2 s."""
    import botocore.loaders
    import botocore.session

    botocore.loaders.create_loader = functools.cache(botocore.loaders.create_loader)
    botocore.session.get_session().create_client(
        "s3", region_name="us-east-1", aws_access_key_id="-", aws_secret_access_key="-"
    )


def run_in_fork(work: Callable[[], int], log: str, seconds: float = _RUN_SECONDS) -> int:
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


def arm(step: Step, strike: Callable[[], None]) -> None:
    """Puts something around a function that strikes at the step, once."""
    owner, name = find(step.function)
    original = getattr(owner, name)
    calls = 0

    def is_it(arguments: tuple[object, ...]) -> bool:
        nonlocal calls
        if re.search(step.pattern, " ".join(map(str, arguments))) is None:
            return False
        calls += 1
        return calls == step.nth

    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def around_async(*args: Any, **kwargs: Any) -> Any:
            hit = is_it(args)
            if hit and step.when == "before":
                strike()
            result = await original(*args, **kwargs)
            if hit and step.when == "after":
                strike()
            return result

        setattr(owner, name, around_async)
        return

    @functools.wraps(original)
    def around(*args: Any, **kwargs: Any) -> Any:
        hit = is_it(args)
        if hit and step.when == "before":
            strike()
        result = original(*args, **kwargs)
        if hit and step.when == "after":
            strike()
        return result

    setattr(owner, name, around)


def find(name: str) -> tuple[Any, str]:
    """Resolve "package.module:path.to.it" to its owner and its name there."""
    module, _, path = name.partition(":")
    *owners, last = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    assert hasattr(owner, last), f"there is no {name} any more"
    return owner, last


def raise_io_error() -> None:
    raise OSError(errno.EIO, "this step fails once, because a test wants it")


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == int(sys.argv[1]):
        _serve()

"""`arcpipe` in processes that are forked from one with all libraries loaded: a start takes 0.1 s instead of 0.5.

    done = run("lake", "ls", "--json", directory=tmp_path, environ=environment(storage_url=url))

The first use in a pytest starts a helper, which imports what the program imports, in the same way, and then forks a
process for each command. From the fork on it is the program's own `main`, with arguments, environment, directory,
files, session and parent's death as they would be after `execve`. What is shown of the start itself, or through another
Python or another environment of it, needs the real command (`Server.by_command`, `tests.support.program`). The helper
ends with pytest, and its children with it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from setproctitle import setproctitle

from arcpipe import libraries
from tests.support.program import COMMAND, ROOT, environment

_PR_SET_PDEATHSIG: Final = 1
_MAX_ORDER: Final = 128 * 1024  # bytes of a datagram


class Process:
    """A process of the helper's, with what `Server` uses of `subprocess.Popen`."""

    def __init__(self, connection: socket.socket, arguments: Sequence[str]) -> None:
        """Take the connection on which the helper tells the process id, and in the end the status."""
        self._connection = connection
        self.args = [*COMMAND, *arguments]
        self.returncode: int | None = None
        told = connection.recv(64)
        assert told, "the helper that forks arcpipe has ended; what it said is in pytest's output"
        self.pid = int(told)

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None:
            self._connection.settimeout(seconds)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                said = self._connection.recv(64)
                # A helper that is gone has taken its children along.
                self.returncode = int(said) if said else -signal.SIGKILL
                self._connection.close()
        return self.returncode


def can_fork(environ: Mapping[str, str]) -> bool:
    """Tell whether no library and no module of its own is in the environment."""
    return "LD_PRELOAD" not in environ and environ.get("PYTHONPATH") == str(ROOT)


def start(
    *arguments: str, directory: Path, environ: Mapping[str, str], output: IO[Any], errors: IO[Any] | None = None
) -> Process:
    """Run `arcpipe` in a directory and a session of its own.

    Args:
        output: a file for stdout, and for stderr if there is no other.
        errors: a file for stderr.
    """
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    order = {"arguments": arguments, "directory": str(directory), "environ": dict(environ)}
    files = [output.fileno(), (errors or output).fileno(), other.fileno()]
    with other:
        socket.send_fds(_helper(os.getpid()), [json.dumps(order).encode()], files)
    return Process(mine, arguments)


def run(
    *arguments: str,
    directory: Path | None = None,
    environ: Mapping[str, str] | None = None,
    seconds: float = 120,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command of `arcpipe` to its end, as `subprocess.run` does, without stdin."""
    place = directory or Path.cwd()
    variables = environment() if environ is None else environ
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process: Process | subprocess.Popen[bytes]
        if can_fork(variables):
            process = start(*arguments, directory=place, environ=variables, output=output, errors=errors)
        else:
            process = subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=place,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        try:
            code = process.wait(seconds)
        except BaseException:
            process.send_signal(signal.SIGKILL)
            raise
        output.seek(0)
        errors.seek(0)
        done = subprocess.CompletedProcess([*COMMAND, *arguments], code, output.read(), errors.read())
    if check:
        done.check_returncode()
    return done


_starting = threading.Lock()


def _helper(pid: int) -> socket.socket:
    with _starting:
        return _start_helper(pid)


@functools.cache  # by process: after a fork there is no helper yet
def _start_helper(_pid: int) -> socket.socket:
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.preloaded", str(other.fileno())],
            env=environment(),
            pass_fds=[other.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end() -> None:
        mine.close()
        process.wait()

    atexit.register(end)
    return mine


# The helper


_SERVER: Final = ("arcpipe.supervisor.supervisor", "arcpipe.upload.uploader", "arcpipe.storage.local")
_COMMANDS: Final = (
    *("arcpipe.cli.main", "arcpipe.cli.report", "arcpipe.cli.tables_compare", "arcpipe.load.formats"),
    *("arcpipe.load.loader", "arcpipe.compaction.process", "arcpipe.lake.inspect", "arcpipe.wal.replay"),
    *("rich.console", "rich.live", "rich.progress", "rich.table"),
)


def _load(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Import what a command with these settings imports. What is there already costs nothing."""
    names = list(_SERVER if "serve" in arguments[:1] else _COMMANDS)
    is_s3 = environ.get("ARCPIPE_STORAGE_URL", "").startswith("s3:")
    if is_s3:
        names.append("arcpipe.storage.s3")
    if environ.get("ARCPIPE_TABLES_FORMAT") == "iceberg":
        names += ["arcpipe.tables.process", "arcpipe.tables.iceberg.table", "arcpipe.tables.iceberg.sql_catalogue"]
    with libraries.loading():
        for name in names:
            importlib.import_module(name)
        if is_s3:
            importlib.import_module("tests.support.s3models").read_models()


def _be_the_program(order: dict[str, Any], output: int, errors: int, helper: int) -> None:
    """Become the process that `execve` would make, and run the program."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != helper:
        return
    os.chdir(order["directory"])
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(order["environ"])
    time.tzset()
    sys.argv = ["arcpipe", *order["arguments"]]
    sys.orig_argv = [*COMMAND, *order["arguments"]]
    importlib.reload(importlib.import_module("arcpipe.clock"))  # it compares two clocks when it is imported
    importlib.import_module("arcpipe.__main__").main()


def _fork(order: dict[str, Any], output: int, errors: int) -> int:
    helper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _be_the_program(order, output, errors, helper)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _orders(control: socket.socket) -> None:
    """Fork a process for each order, and tell the status of each that ends, until pytest is gone."""
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is control:
                message, fds, _, _ = socket.recv_fds(control, _MAX_ORDER, 3)
                if not message:
                    return
                output, errors, connection = fds
                order = json.loads(message)
                _load(order["arguments"], order["environ"])
                pid = _fork(order, output, errors)
                os.close(output)
                os.close(errors)
                teller = socket.socket(fileno=connection)
                teller.send(str(pid).encode())
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, teller))
            else:
                pid, teller = key.data
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                selector.unregister(key.fd)
                os.close(key.fd)
                with teller, contextlib.suppress(OSError):  # whoever asked may be gone
                    teller.send(str(status).encode())


def main() -> None:
    """Run the helper: the control socket's number is the only argument."""
    libraries.have_one_thread()
    libraries.leave_out_unused()
    _load(["serve"], {})
    setproctitle("tests: arcpipe is forked from this")  # this finds its place while the environment is untouched
    _orders(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()

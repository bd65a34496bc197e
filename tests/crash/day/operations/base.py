"""The base of all operations: the instance, its clients, and how to wait for outcomes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Final

from tests.crash.day.instance import Instance
from tests.crash.day.load import ACKNOWLEDGED, NO_CONNECTION, Load
from tests.crash.day.model import Effects, Model
from tests.support.waiting import wait_until

STAYS: Final = "the installed version would not start, so this one stays: "
SERVING: Final = "supervisor: serving on"
# The second, if a worker takes more than five seconds to: it is being started, or the machine is busy.
RELOADED: Final = ("supervisor: reloaded", "supervisor: not reloaded: ")
# Of a trial, on a busy machine.
TOO_SLOW: Final = f"{STAYS}it takes longer than 20 s to say so"
TRIES: Final = 5
ANY: Final = float("inf")
# Requests that go on while something is wrong.
SOME: Final = 20


class Acting:
    """The parts of an operation, for one instance under load."""

    def __init__(self, instance: Instance, load: Load, model: Model, chance: random.Random) -> None:
        self._instance = instance
        self._load = load
        self._model = model
        self._chance = chance

    def _reload(self) -> None:
        """Reload, and do it again where a worker was too slow."""
        for _ in range(TRIES):
            well, before = self._instance.lines(RELOADED[0]), self._reloads()
            os.kill(self._instance.pid, signal.SIGHUP)
            wait_until(lambda before=before: self._reloads() > before, "the end of a reload")  # type: ignore[misc]
            if self._instance.lines(RELOADED[0]) > well:
                return
        raise AssertionError(f"{TRIES} reloads in a row took some worker more than five seconds")

    def _reloads(self) -> int:
        """Count the reloads that are over."""
        return sum(map(self._instance.lines, RELOADED))

    def _wait_for_upgrade(self, serving: int, stays: int) -> None:
        """Waits until it has succeeded, or was refused; both were told so often before."""
        instance = self._instance
        wait_until(lambda: instance.lines(SERVING) > serving or instance.lines(STAYS) > stays, "an outcome")

    def _restart(self) -> Effects:
        since = time.monotonic()
        self._instance.restart()
        self._model.note_start(since)
        return Effects(frozenset({NO_CONNECTION}), no_answers=ANY, restarted=True)

    @contextlib.contextmanager
    def _sick_store(self) -> Iterator[None]:
        """A store that takes nothing; returns when something was tried in vain."""
        proxy, before = self._instance.proxy, self._retries()
        if proxy is None:
            with self._instance.faults.rule("create write", "*/lake/*", errno.EIO, process="*uploader*"):
                wait_until(lambda: self._retries() > before, "an upload that fails")
                yield
            return
        proxy.go_down()
        try:
            wait_until(lambda: self._retries() > before, "an upload that fails")
            yield
        finally:
            proxy.come_up()

    def _retries(self) -> int:
        return sum(self._instance.status()["instance"]["uploader"]["retries"].values())

    def _judge_backlog(self) -> None:
        """Check that the backlog told is the one in the directory, which nothing else changes now."""
        instance = self._instance
        self._load.wait_for_outcomes({ACKNOWLEDGED}, SOME)

        def is_true() -> bool:
            sizes = [path.stat().st_size for path in instance.wal.glob("worker-*.wal.sealed")]
            told = instance.status()["instance"]
            seen = told["backlog_segments"], told["backlog_bytes"], told["oldest_unshipped_seconds"] > 0
            return bool(sizes) and seen == (len(sizes), sum(sizes), True)

        with self._load.paused():
            wait_until(is_true, "a true backlog")

    def _wait_for_issue(self, code: str) -> None:
        wait_until(lambda: self._is_told(code), f"the issue {code}")

    def _is_told(self, code: str) -> bool:
        return code in {issue["code"] for issue in self._instance.status()["issues"]}

    def _judge_end(self, code: int = 0) -> None:
        assert self._instance.exit_code() == code
        self._instance.assert_nobody_left()
        self._model.judge_stop(code)


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process that may have gone by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

"""What may happen to an instance in a day, each operation with what of it clients and figures may notice.

Each returns when the instance is well again, or will be by itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final

from tests.crash.day.instance import Instance
from tests.crash.day.load import ACKNOWLEDGED, NO_CONNECTION, Load
from tests.crash.day.model import Effects, Model
from tests.crash.moments import wait_for_a_moment
from tests.support.waiting import wait_until

_STAYS: Final = "the installed version would not start, so this one stays: "
_SERVING: Final = "supervisor: serving on"
# The second, if a worker takes more than five seconds to: it is being started, or the machine is busy.
_RELOADED: Final = ("supervisor: reloaded", "supervisor: not reloaded: ")
# Of a trial, on a busy machine.
_TOO_SLOW: Final = f"{_STAYS}it takes longer than 20 s to say so"
_TRIES: Final = 5
_ANY: Final = float("inf")
# Requests that go on while something is wrong.
_SOME: Final = 20


class Operations:
    """All of them, for one instance under load."""

    def __init__(self, instance: Instance, load: Load, model: Model, chance: random.Random, is_long: bool) -> None:
        self._instance = instance
        self._load = load
        self._model = model
        self._chance = chance
        self.all: list[Callable[[], Effects]] = [
            *(self.reload, self.reload_bad, self.signals, self.rotate_tokens, self.upgrade, self.upgrade_bad),
            *(self.kill_worker, self.kill_uploader, self.kill_supervisor, self.kill_all, self.kill_in_upgrade),
            *(self.pause, self.step_clock, self.sick_wal, self.sick_listing, self.sick_listing_of_uploader),
            *(self.stop, self.stop_all_at_once, self.stop_with_sick_store, self.stop_blind, self.kill_in_drain),
            self.full_stderr,
            *((self.sick_store,) if instance.proxy is None else (self.sick_store, self.flaky_store)),
        ]
        if is_long:
            self.all += [self.hang_supervisor, self.hang_worker]

    # Signals and settings

    def reload(self) -> Effects:
        self._instance.configure(level=self._chance.choice(["DEBUG", "INFO"]))
        self._reload()
        return Effects()

    def _reload(self) -> None:
        """Again where a worker was too slow."""
        for _ in range(_TRIES):
            well, before = self._instance.lines(_RELOADED[0]), self._reloads()
            os.kill(self._instance.pid, signal.SIGHUP)
            wait_until(lambda before=before: self._reloads() > before, "the end of a reload")  # type: ignore[misc]
            if self._instance.lines(_RELOADED[0]) > well:
                return
        raise AssertionError(f"{_TRIES} reloads in a row took some worker more than five seconds")

    def _reloads(self) -> int:
        """How many are over."""
        return sum(map(self._instance.lines, _RELOADED))

    def reload_bad(self) -> Effects:
        instance = self._instance
        good = instance.tokens.read_bytes()
        text = "the settings are refused, and the log level stays as it was"
        match self._chance.choice(["level", "syntax", "tokens"]):
            case "level":
                instance.configure(level="LOUD")
            case "syntax":
                instance.config.write_text("[server\n")
            case _:
                text = "the tokens file is refused, and the former tokens stay in force"
                instance.tokens.write_bytes(b"[[token]]\nid = 1\n")
        before = instance.lines(text)
        self._reload()
        assert instance.lines(text) > before
        self._load.wait_for_calm()
        instance.tokens.write_bytes(good)
        instance.configure()
        return Effects()

    def signals(self) -> Effects:
        """Many at once, some of them to processes that have no use for them."""
        instance = self._instance
        useless = [signal.SIGHUP, signal.SIGINT, signal.SIGUSR2]
        for pid in instance.pids().values():
            for _ in range(5):
                os.kill(pid, signal.SIGHUP if pid == instance.pid else self._chance.choice(useless))
        self._reload()
        return Effects()

    def rotate_tokens(self) -> Effects:
        """Without a gap, as the documentation has it: make one, reload, change over, revoke the old one, reload."""
        instance = self._instance
        old, new = instance.token, instance.create_token("write")
        self._reload()
        with self._load.paused():
            instance.token = new
        instance.revoke_token(old)
        self._reload()
        for _ in range(4):  # at both workers, most likely
            assert self._load.try_token(old).status == 401
        return Effects()

    def upgrade(self) -> Effects:
        instance = self._instance
        instance.host = self._chance.choice(["127.0.0.1", "0.0.0.0"])
        instance.workers = self._chance.choice([1, 2, 2, 3])
        instance.sync_mode = self._chance.choice(["fdatasync", "fsync", "async"])
        instance.configure()
        for _ in range(_TRIES):
            since = time.monotonic()
            serving, stays, slow = map(instance.lines, (_SERVING, _STAYS, _TOO_SLOW))
            os.kill(instance.pid, signal.SIGUSR2)
            self._wait_for_upgrade(serving, stays)
            if instance.lines(_SERVING) > serving:
                self._model.note_start(since)
                return Effects(restarted=True)
            assert instance.lines(_TOO_SLOW) > slow, "a good upgrade was refused"
        raise AssertionError(f"{_TRIES} trials in a row took too long")

    def _wait_for_upgrade(self, serving: int, stays: int) -> None:
        """Waits until it has succeeded, or was refused; both were told so often before."""
        instance = self._instance
        wait_until(lambda: instance.lines(_SERVING) > serving or instance.lines(_STAYS) > stays, "an outcome")

    def upgrade_bad(self) -> Effects:
        instance = self._instance
        pids, before = instance.pids(), instance.lines(_STAYS)
        files = {path: path.read_bytes() for path in (instance.wal / "node.json", instance.tokens)}
        host = instance.host
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            match self._chance.choice(["port", "wal", "node", "host", "level", "tokens"]):
                case "port":
                    instance.configure(port=taken.getsockname()[1])
                case "wal":
                    instance.configure(wal=instance.directory / "other")
                case "node":
                    (instance.wal / "node.json").write_bytes(b"{")
                case "host":
                    instance.host = "no-such-host.invalid"
                    instance.configure()
                case "level":
                    instance.configure(level="LOUD")
                case _:
                    instance.tokens.write_bytes(b"[[token]]\nid = 1\n")
            os.kill(instance.pid, signal.SIGUSR2)
            instance.wait_for_line(_STAYS, before)
        for path, content in files.items():
            path.write_bytes(content)
        instance.host = host
        instance.configure()
        assert instance.pids() == pids
        return Effects()

    def step_clock(self) -> Effects:
        self._instance.clock.set(self._chance.choice([-7200.0, -3.0, 0.0, 3.0, 18000.0]))
        return Effects()

    # Deaths

    def kill_worker(self) -> Effects:
        instance = self._instance
        role = self._chance.choice(instance.ingest_roles)
        wait_for_a_moment(instance, self._chance)
        killed_at = time.monotonic()
        instance.wait_for_successor(role, instance.kill(role))
        return Effects(no_answers=self._load.threads, worker_killed_at=killed_at, restarts=(1, 0))

    def kill_uploader(self) -> Effects:
        wait_for_a_moment(self._instance, self._chance)
        self._instance.wait_for_successor("uploader", self._instance.kill("uploader"))
        return Effects(uploads_twice=True, restarts=(0, 1))

    def kill_supervisor(self) -> Effects:
        wait_for_a_moment(self._instance, self._chance)
        self._instance.kill("supervisor")
        return self._restart()

    def kill_all(self) -> Effects:
        wait_for_a_moment(self._instance, self._chance)
        self._instance.kill_all()
        return self._restart()

    def _restart(self) -> Effects:
        since = time.monotonic()
        self._instance.restart()
        self._model.note_start(since)
        return Effects(frozenset({NO_CONNECTION}), no_answers=_ANY, restarted=True)

    def kill_in_upgrade(self) -> Effects:
        """Any of its processes, at any moment, the trial among them."""
        instance = self._instance
        since = time.monotonic()
        serving, stays = instance.lines(_SERVING), instance.lines(_STAYS)
        os.kill(instance.pid, signal.SIGUSR2)
        time.sleep(self._chance.uniform(0.0, 1.5))
        pid = self._chance.choice([process.pid for process in instance.processes()])
        killed_at = time.monotonic()
        if pid == instance.pid:
            instance.kill("supervisor")
            return self._restart()
        _send(pid, signal.SIGKILL)
        self._wait_for_upgrade(serving, stays)
        if instance.lines(_SERVING) > serving:
            self._model.note_start(since)
            return Effects(no_answers=self._load.threads, restarted=True, restarts_are_sure=False)
        return Effects(
            no_answers=self._load.threads,
            worker_killed_at=killed_at,
            uploads_twice=True,
            restarts_are_sure=False,
        )

    def pause(self) -> Effects:
        pids = self._instance.pids()
        pid = pids[self._chance.choice(sorted(pids))]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self._chance.uniform(0.0, 1.5))
        os.kill(pid, signal.SIGCONT)
        return Effects()

    def hang_supervisor(self) -> Effects:
        """Nothing is taken by figures that nobody measures, until it goes on."""
        os.kill(self._instance.pid, signal.SIGSTOP)
        try:
            self._load.wait_for_outcomes({"503 log_failure"})
            self._wait_for_issue("supervisor_down")
        finally:
            os.kill(self._instance.pid, signal.SIGCONT)
        return Effects(frozenset({"503 log_failure"}))

    def hang_worker(self) -> Effects:
        """Another one tells it, unless all are too slow to, and the supervisor replaces it."""
        instance = self._instance
        role = self._chance.choice(instance.ingest_roles)
        pid = instance.pids()[role]
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        if instance.workers > 1:
            wait_until(lambda: self._is_told("worker_down") or instance.pids().get(role, pid) != pid, "worker_down")
        instance.wait_for_successor(role, pid)
        assert f"{role} (pid {pid}) shows no sign of life; killing it" in instance.log
        return Effects(no_answers=self._load.threads, worker_killed_at=killed_at, restarts=(1, 0))

    # Disk and store

    def sick_wal(self) -> Effects:
        """Each write is refused, with a code, and health says so."""
        error = self._chance.choice([errno.EIO, errno.ENOSPC, errno.EACCES])
        refusal = "507 no_space" if error == errno.ENOSPC else "503 log_failure"
        with self._instance.faults.rule("write create", "*/wal/*", error, process="*ingest*"):
            self._load.wait_for_outcomes({refusal})
            self._wait_for_issue("write_failures")
        return Effects(frozenset({refusal}), writes_failed=True)

    def sick_listing(self) -> Effects:
        """Nobody knows backlog and space, so nothing is taken; monitoring answers."""
        with self._instance.no_listing("*"):
            self._load.wait_for_outcomes({"503 log_failure"})
            self._wait_for_issue("wal_unlisted")
            assert b"\narcpipe_wal_listed 0.0\n" in self._instance.ask("/metrics").body
        return Effects(frozenset({"503 log_failure"}))

    def sick_listing_of_uploader(self) -> Effects:
        """It waits, and what waits for it is counted."""
        before = self._retries()
        with self._instance.no_listing("*uploader*"):
            wait_until(lambda: self._retries() > before, "a listing that fails")
            self._judge_backlog()
        return Effects()

    def sick_store(self) -> Effects:
        with self._sick_store():
            self._judge_backlog()
        return Effects()

    def flaky_store(self) -> Effects:
        """A share of all requests fails, in every way that there is."""
        proxy = self._instance.proxy
        assert proxy is not None
        before = proxy.injected.total()
        proxy.fail_randomly(0.3, self._chance.randrange(1 << 30))
        wait_until(lambda: proxy.injected.total() > before + 3, "requests that fail")
        proxy.fail_randomly(0.0, 0)
        return Effects()

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
        """What waits is what is in the directory: nothing else happens to it now."""
        instance = self._instance
        self._load.wait_for_outcomes({ACKNOWLEDGED}, _SOME)

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

    def full_stderr(self) -> Effects:
        """Nobody reads what it says: nothing waits for that, and the lines are there afterwards."""
        instance = self._instance
        before = self._reloads()
        role = self._chance.choice(instance.ingest_roles)
        with instance.stderr.nobody_reads():
            os.kill(instance.pid, signal.SIGHUP)
            killed_at = time.monotonic()
            instance.wait_for_successor(role, instance.kill(role))
            self._load.wait_for_calm()
            assert self._reloads() == before
        wait_until(lambda: self._reloads() > before, "what was said meanwhile")
        return Effects(no_answers=self._load.threads, worker_killed_at=killed_at, restarts=(1, 0))

    # Ends

    def stop(self) -> Effects:
        """Who has sent a request is answered; one connection may come after the last look into the queue."""
        self._instance.send_signal(self._chance.choice([signal.SIGTERM, signal.SIGINT]))
        self._judge_end()
        return self._restart()._replace(no_answers=1)

    def stop_all_at_once(self) -> Effects:
        """As service managers do that send the signal to every process."""
        pids = list(self._instance.pids().values())
        self._chance.shuffle(pids)
        self._instance.url = ""
        for pid in pids:
            _send(pid, signal.SIGTERM)
        self._judge_end()
        return self._restart()

    def stop_with_sick_store(self) -> Effects:
        """What is left is told, and uploaded after the next start."""
        with self._sick_store():
            self._load.wait_for_outcomes({ACKNOWLEDGED}, _SOME)
            self._instance.send_signal(signal.SIGTERM)
            wait_until(lambda: "SIGTERM: stopping" in self._instance.log, "the stop")
            time.sleep(self._chance.uniform(0.0, 1.0))
            self._instance.send_signal(signal.SIGTERM)  # do not wait for the store
            self._judge_end()
        return self._restart()

    def stop_blind(self) -> Effects:
        """Whether everything is uploaded cannot be seen, so it is not said."""
        with self._instance.no_listing("*supervisor*"):
            self._instance.send_signal(signal.SIGTERM)
            wait_until(lambda: "SIGTERM: stopping" in self._instance.log, "the stop")
            self._instance.send_signal(signal.SIGTERM)
            self._judge_end(4)
        return self._restart()

    def kill_in_drain(self) -> Effects:
        instance = self._instance
        instance.send_signal(signal.SIGTERM)
        time.sleep(self._chance.uniform(0.0, 0.6))
        if pids := [process.pid for process in instance.processes()]:
            _send(self._chance.choice(pids), signal.SIGKILL)
        if instance.exit_code() != -signal.SIGKILL:
            self._judge_end()
        return self._restart()

    def _judge_end(self, code: int = 0) -> None:
        assert self._instance.exit_code() == code
        self._instance.assert_nobody_left()
        self._model.judge_stop(code)


def _send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process that may have gone by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

"""Operations that kill, stop for a while or hang a process."""

from __future__ import annotations

import os
import signal
import time

from tests.crash.day.model import Effects
from tests.crash.day.operations.base import SERVING, STAYS, Acting, send
from tests.crash.moments import wait_for_a_moment
from tests.support.waiting import wait_until


class DeathsOperations(Acting):
    """Operations that kill, stop for a while or hang a process."""

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

    def kill_in_upgrade(self) -> Effects:
        """Any of its processes, at any moment, the trial among them."""
        instance = self._instance
        since = time.monotonic()
        serving, stays = instance.lines(SERVING), instance.lines(STAYS)
        os.kill(instance.pid, signal.SIGUSR2)
        time.sleep(self._chance.uniform(0.0, 1.5))
        pid = self._chance.choice([process.pid for process in instance.processes()])
        killed_at = time.monotonic()
        if pid == instance.pid:
            instance.kill("supervisor")
            return self._restart()
        send(pid, signal.SIGKILL)
        self._wait_for_upgrade(serving, stays)
        if instance.lines(SERVING) > serving:
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
        assert f"{role} (pid {pid}) has no heartbeat; killing it" in instance.log
        return Effects(no_answers=self._load.threads, worker_killed_at=killed_at, restarts=(1, 0))

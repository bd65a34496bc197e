"""Operations in which a disk, a store or a reader of stderr fails."""

from __future__ import annotations

import errno
import os
import signal
import time

from tests.crash.day.model import Effects
from tests.crash.day.operations.base import Acting
from tests.support.waiting import wait_until


class FaultsOperations(Acting):
    """Operations in which a disk, a store or a reader of stderr fails."""

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

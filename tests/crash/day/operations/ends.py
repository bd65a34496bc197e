"""Operations that stop the instance and start it again."""

from __future__ import annotations

import signal
import time

from tests.crash.day.load import ACKNOWLEDGED
from tests.crash.day.model import Effects
from tests.crash.day.operations.base import SOME, Acting, send
from tests.support.waiting import wait_until


class EndsOperations(Acting):
    """Operations that stop the instance and start it again."""

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
            send(pid, signal.SIGTERM)
        self._judge_end()
        return self._restart()

    def stop_with_sick_store(self) -> Effects:
        """The end tells of the rest, and the next start uploads it."""
        with self._sick_store():
            self._load.wait_for_outcomes({ACKNOWLEDGED}, SOME)
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
            send(self._chance.choice(pids), signal.SIGKILL)
        if instance.exit_code() != -signal.SIGKILL:
            self._judge_end()
        return self._restart()

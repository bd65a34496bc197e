"""Clients that write numbered records without a break, and know what became of each."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Final, NamedTuple

from tests.crash.day.instance import Instance
from tests.support.http import Client, Response, pack
from tests.support.waiting import wait_until

V2: Final = "/write/v2/msgpack"
ACKNOWLEDGED: Final = "202"
# No connection could be made, so nothing was sent.
NO_CONNECTION: Final = "no connection"
NO_ANSWER: Final = "no answer"
# There was none on a connection that was idle for so long that its end may have been on the way: any client expects it.
STALE: Final = "no answer on a connection that was idle"
_STALE_SECONDS: Final = 0.2
# A connection that was idle for longer is not used again.
_IDLE_SECONDS: Final = 0.5
_PAUSE_SECONDS: Final = 0.02
# Tries of a request with a key, at most.
_TRIES: Final = 20
# The last acknowledgements in a row after which all workers are thought to give them.
_IN_A_ROW: Final = 24


class Counts(NamedTuple):
    """The knowledge of all clients at one moment."""

    acknowledged: int
    unknown: int  # tries of which nobody knows whether they were taken
    statuses: Counter[str]


class Load:
    """Threads that each write one record per request. Every second one keeps its connection.

    The second half of them send keys: what has no answer is tried again with its key, and must not be there twice.
    """

    def __init__(self, instance: Instance, threads: int = 4) -> None:
        self.threads = threads
        self.acknowledged: dict[int, float] = {}  # by number, with the time of the answer
        self.refused: set[int] = set()  # they were told that nothing was written
        self.unknown: set[int] = set()
        self.retried = 0  # tries without an answer that had another one after them
        self.outcomes: list[str] = []
        self.statuses: Counter[str] = Counter()
        self._instance = instance
        self._errors: list[BaseException] = []
        self._next = 0
        self._lock = threading.Lock()
        self._quiet = threading.Event()
        self._stop = threading.Event()
        self._idle = [threading.Event() for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._run, args=(idle, number % 2 == 0, number >= threads // 2), daemon=True)
            for number, idle in enumerate(self._idle)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        self.check()

    def check(self) -> None:
        assert self._errors == []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No request is on its way."""
        self._quiet.set()
        for idle in self._idle:
            idle.clear()  # only now: a thread may have set it once more at the end of the former pause
        for idle in self._idle:
            assert idle.wait(90)
        self.check()
        try:
            yield
        finally:
            self._quiet.clear()

    def counts(self) -> Counts:
        """Exact while it is paused."""
        return Counts(len(self.acknowledged), len(self.unknown) + self.retried, self.statuses.copy())

    def wait_for_outcomes(self, wanted: Set[str], count: int = 1) -> None:
        """Waits for some more of these."""
        first = len(self.outcomes)

        def enough() -> bool:
            self.check()
            return sum(outcome in wanted for outcome in self.outcomes[first:]) >= count

        wait_until(enough, f"{count} × {sorted(wanted)}; the last were {self.outcomes[-5:]}")

    def wait_for_calm(self, count: int = _IN_A_ROW) -> None:
        """Waits for acknowledgements in a row, of this moment on."""
        first = len(self.outcomes)

        def calm() -> bool:
            self.check()
            last = self.outcomes[first:][-count:]
            return len(last) == count and set(last) == {ACKNOWLEDGED}

        wait_until(calm, f"{count} acknowledgements in a row")

    def try_token(self, token: str) -> Response:
        """One write with another token than that of all others."""
        number = self._take_number()
        with Client(self._instance.url, timeout_seconds=60) as client:
            answer = client.request("POST", V2, _body(number), {"Authorization": f"Bearer {token}"})
        self._note(number, answer)
        return answer

    def _take_number(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    def _run(self, idle: threading.Event, keeps: bool, has_keys: bool) -> None:
        connection = _Connection()
        try:
            while not self._stop.is_set():
                url = self._instance.url
                if self._quiet.is_set() or not url:
                    connection.close()
                if self._quiet.is_set():
                    idle.set()
                elif url:
                    if has_keys:
                        self._write_with_key(connection)
                    else:
                        self._write(self._take_number(), url, connection, self._instance.token)
                    if not keeps:
                        connection.close()
                self._stop.wait(_PAUSE_SECONDS)
        except BaseException as error:
            self._errors.append(error)
        finally:
            idle.set()
            connection.close()

    def _write_with_key(self, connection: _Connection) -> None:
        """Write a record, and try again while nobody knows whether it is written."""
        number, token = self._take_number(), self._instance.token
        for _ in range(_TRIES):
            url = self._instance.url
            if url:
                self._write(number, url, connection, token, b"Idempotency-Key: day-%d\r\n" % number)
            if number not in self.unknown or self._quiet.is_set() or self._stop.wait(_PAUSE_SECONDS):
                return
            if self._instance.token != token:  # which does not know the keys of the former one
                return

    def _write(self, number: int, url: str, connection: _Connection, token: str, key: bytes = b"") -> None:
        """Try to write a record.

        Args:
            key: a line of the head.
        """
        try:
            client = connection.open(url)
        except OSError:
            self._note_refusal(number)
            self.outcomes.append(NO_CONNECTION)
            return
        before = connection.used_at
        sent = time.monotonic()
        try:
            client.send(connection.request(_body(number), token, key))
            sent = time.monotonic()
            answer = client.receive()
        except OSError:
            connection.close()
            self._note_doubt(number)
            self.outcomes.append(STALE if before and sent - before > _STALE_SECONDS else NO_ANSWER)
            return
        connection.note(answer)
        self.outcomes.append(self._note(number, answer))

    def _note(self, number: int, answer: Response) -> str:
        """Notes an answer; in a word."""
        with self._lock:
            self.statuses[str(answer.status)] += 1
        if answer.status == 202:
            with self._lock:
                if number in self.unknown:
                    self.unknown.remove(number)
                    self.retried += 1
            self.acknowledged[number] = time.monotonic()
            return ACKNOWLEDGED
        if "may have been written" in answer.reason:
            self._note_doubt(number)
        else:
            self._note_refusal(number)
        return f"{answer.status} {answer.json()['code']}"

    def _note_doubt(self, number: int) -> None:
        with self._lock:
            self.retried += number in self.unknown
            self.unknown.add(number)

    def _note_refusal(self, number: int) -> None:
        if number not in self.unknown:  # by an earlier try
            self.refused.add(number)


class _Connection:
    """A connection of one thread, for one request or for many."""

    def __init__(self) -> None:
        self.used_at = 0.0  # its last answer; 0 without one
        self._client: Client | None = None

    def open(self, url: str) -> Client:
        if self._client is not None and time.monotonic() - self.used_at > _IDLE_SECONDS:
            self.close()
        if self._client is None:
            self._client = Client(url, timeout_seconds=90)
            self.used_at = 0.0
        return self._client

    def request(self, body: bytes, token: str, key: bytes) -> bytes:
        head = f"POST {V2} HTTP/1.1\r\nHost: day\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + key + b"\r\n" + body

    def note(self, answer: Response) -> None:
        self.used_at = time.monotonic()
        if answer.headers.get("connection") == "close":
            self.close()

    def close(self) -> None:
        if self._client is not None:
            self._client.socket.close()
            self._client = None


def _body(number: int) -> bytes:
    return pack({"m": "day", "columns": {"n": [number]}})

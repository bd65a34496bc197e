"""Clients behind a proxy that loses answers retry with an idempotency key until they have one.

Each record is there once. Meanwhile every process of the server is killed, and it is upgraded, stopped and started.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.http import Client, free_port, pack
from tests.support.lake import lake_rows
from tests.support.lossy_proxy import LossyProxy
from tests.support.server import Server
from tests.support.sets import IS_LONG
from tests.support.waiting import wait_until

SENDERS = 4
ROWS = 3  # of a request
ROUNDS = 10 if IS_LONG else 1
ANSWERS = 100 if IS_LONG else 12  # between two steps


class Sender(threading.Thread):
    """Sends requests with keys of its own, each until it is answered, and ends when it is told."""

    def __init__(self, number: int, url: str, is_over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._number = number
        self._url = url
        self._is_over = is_over
        self.sent = 0
        self.tries = self.replayed = 0
        self.statuses: Counter[int] = Counter()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._is_over.is_set():
                self._send(self.sent)
                self.sent += 1
        except BaseException as error:
            self.error = error

    def ids_of(self, number: int) -> range:
        """Return the ids of the records of a request."""
        first = (number * SENDERS + self._number) * ROWS
        return range(first, first + ROWS)

    def _send(self, number: int) -> None:
        path, body = self._request(number, list(self.ids_of(number)))
        key = f"sender-{self._number}-request-{number}"
        deadline = time.monotonic() + 100
        while True:
            self.tries += 1
            try:
                with Client(self._url) as client:
                    response = client.request("POST", path, body, {"Idempotency-Key": f'"{key}"'})
            except (OSError, AssertionError, ValueError):  # the answer is lost, or a part of it
                status = 0
            else:
                status = response.status
                self.replayed += "idempotency-replayed" in response.headers
            self.statuses[status] += 1
            if status in (202, 204):
                return
            assert status in (0, 503), status
            assert time.monotonic() < deadline, "no answer in time"
            time.sleep(0.01)

    def _request(self, number: int, ids: list[int]) -> tuple[str, bytes]:
        """The same request in one of several formats."""
        if number % 3:
            lines = "\n".join(f"lines n={identity}i {1_790_000_000 + identity}" for identity in ids)
            return ("/write?db=lossy&precision=s", "/api/v3/write_lp?db=lossy")[number % 3 - 1], lines.encode()
        times = [1_790_000_000 + identity for identity in ids]
        return "/write/v2/msgpack?db=lossy", pack({"m": "columns", "columns": {"time": times, "n": ids}})


class Site:
    """A server, and the senders behind the proxy."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._port = server.port  # of its next starts, too
        self.is_over = threading.Event()
        self.proxy = LossyProxy(lambda: self.server.port or self._port, random.Random(21))
        self.senders = [Sender(number, self.proxy.url, self.is_over) for number in range(SENDERS)]

    def __enter__(self) -> Site:
        self.proxy.__enter__()
        for sender in self.senders:
            sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.proxy.__exit__()

    def end(self) -> None:
        """Let the senders finish their last requests."""
        self.is_over.set()
        for sender in self.senders:
            sender.join(120)

    def wait_for(self, more: int) -> None:
        """Wait until so many further requests are answered."""
        goal = self._answered() + more
        wait_until(lambda: self._answered() >= goal or any(sender.error for sender in self.senders), "answers")

    def _answered(self) -> int:
        return sum(sender.sent for sender in self.senders)

    def check(self) -> None:
        """Assert that each record of each sender is in the lake once."""
        self.end()
        for sender in self.senders:
            assert sender.error is None, sender.error
        self.server.stop()
        self.server.assert_log_is_shipped()
        found = Counter(row["n"] for row in lake_rows(self.server.lake, "lossy"))
        expected = {
            identity for sender in self.senders for number in range(sender.sent) for identity in sender.ids_of(number)
        }
        doubled = [identity for identity, count in found.items() if count > 1]
        assert not doubled, f"{len(doubled)} records are there more than once: {sorted(doubled)[:9]}"
        assert set(found) == expected
        tries = sum(sender.tries for sender in self.senders)
        print(
            f"{self._answered()} requests in {tries} tries: {dict(self.proxy.fates)}, "
            f"{sum(sender.replayed for sender in self.senders)} replayed"
        )
        assert self.proxy.fates["lost"] > 0.1 * tries
        assert self.proxy.fates["cut answer"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with (
        Server(
            tmp_path, server_workers=2, server_port=free_port(), wal_max_size_mb=1, flush_max_age_seconds=0.3
        ) as server,
        Site(server) as site,
    ):
        yield site


def upgrade(server: Server) -> None:
    before = server.log.count("serving on")
    workers = {server.pids()[role] for role in server.pids() if role.startswith("ingest")}
    os.kill(server.pid, signal.SIGUSR2)
    wait_until(lambda: server.log.count("serving on") > before, "the upgrade")
    wait_until(lambda: not workers & set(server.pids().values()), "the former workers to end")


def kill_all(server: Server) -> None:
    server.kill_all()
    server.start()


def kill_supervisor(server: Server) -> None:
    server.kill("supervisor")
    server.assert_nobody_left()
    server.start()


def stop(server: Server) -> None:
    server.send_signal(signal.SIGTERM)
    server.restart()


@pytest.mark.slow
def test_every_record_is_there_once_whatever_dies(site: Site) -> None:
    server = site.server
    steps: list[Callable[[], object]] = [
        partial(server.kill, "uploader"),
        partial(server.kill, "ingest 1"),
        partial(upgrade, server),
        partial(server.kill, "uploader"),
        partial(kill_all, server),
        partial(server.kill, "ingest 2"),
        partial(stop, server),
        partial(kill_supervisor, server),
        partial(server.kill, "uploader"),
    ]
    for step in steps * ROUNDS:
        site.wait_for(ANSWERS)
        step()
    site.wait_for(ANSWERS)
    site.check()


def test_equal_bodies_without_a_key_are_all_there(tmp_path: Path) -> None:
    """And so are equal bodies with other keys. Content is never a key."""
    body = b"cpu n=1i 1790000000"
    with Server(tmp_path, server_workers=2, flush_max_age_seconds=0.1) as server:
        for number in range(20):
            assert server.post("/write?db=equal", body).status == 204
            assert server.post("/write?db=equal", body, {"Idempotency-Key": f"k{number}"}).status == 204
            assert server.post(f"/write?db=equal&idempotency_key=k{number}", body).status == 204
        server.stop()
        assert len(lake_rows(server.lake, "equal")) == 40

"""Callers that `arcpipe.client` has to answer and not to hang on: forks, callbacks, other loops, two who close it."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from arcpipe.client import (
    AsyncClient,
    BadRecord,
    Client,
    ClientError,
    Closed,
    Full,
    Options,
    Refusal,
    Refused,
    SpoolError,
)
from arcpipe.client import spool as client_spool
from arcpipe.disk import Disk
from tests.integration.test_client import QUICK
from tests.support.faulty_proxy import Faults, FaultyProxy
from tests.support.http import free_port
from tests.support.key_model import ModelServer
from tests.support.waiting import WAIT_SECONDS

GIVEN_UP: dict[str, Any] = {"give_up_seconds": 0, **QUICK}


def result_of(call: Callable[[], object]) -> object:
    """Return what a call returns or raises; fail if it does neither."""
    done: list[object] = []

    def run() -> None:
        try:
            done.append(call())
        except Exception as error:
            done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT_SECONDS)
    assert done, "the call hangs"
    return done[0]


# Forks


def test_a_forked_child_is_told_instead_of_waiting_for_a_sender_that_it_lacks() -> None:
    with ModelServer() as server, Client(server.url) as client:
        client.write("cpu", {"n": 1})
        child = os.fork()
        if child == 0:
            calls: list[Callable[[], object]] = [client.flush, client.stats, lambda: client.write("cpu", {"n": 2})]
            os._exit(sum(not isinstance(result_of(call), Closed) for call in calls))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.flush()
        assert server.numbers() == [1]


def test_a_child_that_outlives_its_parent_does_not_keep_the_spool(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        Client(f"http://127.0.0.1:{free_port()}", Options(spool=tmp_path, **QUICK)).write("cpu", {"n": 1})
        if os.fork() == 0:
            os.close(writing)
            os.read(reading, 1)  # until the test is over
        os._exit(0)
    os.waitpid(parent, 0)
    try:
        with ModelServer() as server, Client(server.url, Options(spool=tmp_path)) as client:
            client.flush()
            assert server.numbers() == [1]
    finally:
        os.close(writing)
        os.close(reading)


def test_a_fork_leaves_the_lock_to_the_parent(tmp_path: Path) -> None:
    with ModelServer() as server, Client(server.url, Options(spool=tmp_path)):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(SpoolError, match="is in use by another client"):
            Client(server.url, Options(spool=tmp_path))


# Callbacks


@pytest.mark.parametrize("name", ["flush", "close"])
def test_on_refused_is_told_that_it_cannot_wait_for_itself(name: str) -> None:
    raised: list[Exception] = []

    def refused(_: Refusal) -> None:
        try:
            getattr(client, name)()
        except ClientError as error:
            raised.append(error)

    client = Client(f"http://127.0.0.1:{free_port()}", Options(**GIVEN_UP), refused)
    client.write("cpu", {"n": 1})
    assert result_of(client.close) is None
    assert "call them elsewhere" in str(raised[0])


def test_on_refused_is_told_that_there_is_no_room() -> None:
    """It would wait for room that only its own thread makes."""
    raised: list[Exception] = []

    def refused(_: Refusal) -> None:
        if raised:
            return
        try:
            for n in range(1000):
                client.write("cpu", {"n": n})
        except Full as error:
            raised.append(error)

    client = Client(f"http://127.0.0.1:{free_port()}", Options(memory_bytes=300, **GIVEN_UP), refused)
    client.write("cpu", {"n": 1})
    assert result_of(client.flush) is None
    assert len(raised) == 1
    assert result_of(client.close) is None


# Two at once


def test_two_threads_may_close_a_client_at_once(tmp_path: Path) -> None:
    with ModelServer() as server:
        for n in range(20):
            client = Client(server.url, Options(spool=tmp_path))
            client.write("cpu", {"n": n})
            barrier = threading.Barrier(2)

            def close(client: Client = client, barrier: threading.Barrier = barrier) -> None:
                barrier.wait(WAIT_SECONDS)
                client.close()

            with ThreadPoolExecutor(2) as threads:
                assert list(threads.map(result_of, [close, close])) == [None, None]
        assert server.numbers() == list(range(20))


# Event loops


def test_another_event_loop_is_told_and_can_close_the_client() -> None:
    async def made(url: str) -> AsyncClient:
        client = AsyncClient(url, Options(batch_age_seconds=100))
        await client.write("cpu", {"n": 1})
        return client

    with ModelServer() as server:
        client = asyncio.run(made(server.url))  # its loop is closed now
        told = result_of(lambda: asyncio.run(client.flush()))
        assert "belongs to another event loop" in str(told)
        assert result_of(lambda: asyncio.run(client.close())) is None
        assert server.numbers() == [1]


# Servers that ask for an hour


def test_a_client_gives_up_in_time_though_the_server_asks_for_an_hour() -> None:
    with ModelServer() as server, FaultyProxy(server.url, Faults(refused=1.0, retry_after="3600"), seed=1) as proxy:
        client = Client(proxy.url, Options(give_up_seconds=0.3, **QUICK))
        client.write("cpu", {"n": 1})
        began = time.monotonic()
        told = result_of(client.close)
        assert isinstance(told, Refused)
        assert "gave up after 0.3 s" in str(told)
        assert time.monotonic() - began < 600


# The spool's disk


def test_a_program_may_change_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with ModelServer() as server, Client(server.url, Options(spool="spool", batch_age_seconds=100)) as client:
        client.write("cpu", {"n": 1})
        monkeypatch.chdir(tmp_path / "elsewhere")
        client.flush()
        client.write("cpu", {"n": 2})
        client.flush()
        assert server.numbers() == [1, 2]
    assert os.listdir(tmp_path / "elsewhere") == []


class DiskWithoutDescriptors(Disk):
    """It cannot open a file for reading for some time, or ever."""

    left = 0
    error = errno.EMFILE

    def open_for_reading(self, path: str) -> int:
        if type(self).left > 0:
            type(self).left -= 1
            raise OSError(self.error, os.strerror(self.error))
        return super().open_for_reading(path)


def test_a_batch_is_sent_once_the_system_has_descriptors_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_spool, "Disk", DiskWithoutDescriptors)
    monkeypatch.setattr(DiskWithoutDescriptors, "left", 3)
    with ModelServer() as server, Client(server.url, Options(spool=tmp_path, **QUICK)) as client:
        client.write("cpu", {"n": 1})
        client.flush()
        assert server.numbers() == [1]
        assert (client.stats().sent_records, client.stats().damaged_records) == (1, 0)


def test_flush_does_not_say_that_a_batch_is_sent_whose_file_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_spool, "Disk", DiskWithoutDescriptors)
    monkeypatch.setattr(DiskWithoutDescriptors, "left", 1)
    monkeypatch.setattr(DiskWithoutDescriptors, "error", errno.EIO)
    with ModelServer() as server:
        with Client(server.url, Options(spool=tmp_path, **QUICK)) as client:
            client.write("cpu", {"n": 1})
            with pytest.raises(Refused, match="its file in the spool cannot be read"):
                client.flush()
            assert (client.stats().damaged_records, client.stats().refused_records) == (1, 0)
        with Client(server.url, Options(spool=tmp_path)) as client:  # the file stayed
            client.flush()
        assert server.numbers() == [1]


# Records


PARTLY: dict[str, Any] = {"batch_records": 10, "memory_bytes": 400, "when_full": "raise", **QUICK}


def test_a_call_that_was_accepted_in_part_says_how_much_is_left() -> None:
    """To give the whole call again would store the first records twice."""
    left: list[dict[str, int]] = [{"n": n} for n in range(100)]
    with ModelServer() as server, Client(server.url, Options(**PARTLY)) as client:
        while left:
            try:
                client.write("cpu", left)
            except Full as error:
                left = left[error.accepted :]
                client.flush()
            else:
                left = []
        client.flush()
        assert server.numbers() == list(range(100))


def test_a_call_of_an_async_client_that_was_accepted_in_part_says_how_much_is_left() -> None:
    async def run(url: str) -> None:
        left: list[dict[str, int]] = [{"n": n} for n in range(100)]
        async with AsyncClient(url, Options(**PARTLY)) as client:
            while left:
                try:
                    await client.write("cpu", left)
                except Full as error:
                    left = left[error.accepted :]
                    await client.flush()
                else:
                    left = []

    with ModelServer() as server:
        asyncio.run(run(server.url))
        assert server.numbers() == list(range(100))


def test_a_bad_record_tells_how_many_before_it_were_accepted() -> None:
    records: list[dict[str, Any]] = [{"n": n} for n in range(20)]
    records[15] = {"n": object()}
    with ModelServer() as server, Client(server.url, Options(batch_records=10)) as client:
        with pytest.raises(BadRecord) as raised:
            client.write("cpu", records)
        assert raised.value.accepted == 10
        assert "The first 10 records of this call were accepted" in raised.value.__notes__[0]
        client.flush()
        assert server.numbers() == list(range(10))


@pytest.mark.parametrize("records", [5, None, "text", [1], [{"n": 1}, "text"]])
def test_what_is_no_record_is_a_bad_record(records: Any) -> None:
    with ModelServer() as server, Client(server.url) as client:
        with pytest.raises(BadRecord, match="is no record: give a mapping"):
            client.write("cpu", records)
        client.write("cpu", {"n": 1})
        client.flush()
        assert server.numbers() == [1]

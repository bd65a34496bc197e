"""`arcpipe.client` against servers: what it sends, refuses, tries again, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
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
    NotSent,
    Options,
    Refusal,
    Refused,
    SpoolError,
)
from arcpipe.client.buffer import Buffer
from arcpipe.client.options import Compression
from arcpipe.disk import Disk
from tests.support import tokens
from tests.support.certificates import in_days, write_certificate
from tests.support.faulty_proxy import Faults, FaultyProxy
from tests.support.http import free_port
from tests.support.keepers import KEEPERS, keeper
from tests.support.key_model import ModelServer
from tests.support.server import Server
from tests.support.tls import tls_server
from tests.support.waiting import WAIT_SECONDS, wait_until

FAULTS = Faults(lost_answers=0.2, cut_answers=0.1, cut_requests=0.1, refused=0.1, slow=0.05)
QUICK: dict[str, Any] = {"first_pause_seconds": 0.005, "longest_pause_seconds": 0.02, "batch_age_seconds": 0.02}
COMPRESSIONS: list[Compression] = ["none", "gzip", "zstd"]
START = 1_790_000_000_000_000


def write_all(client: Client, count: int) -> None:
    """Write `count` numbered records in each of the three ways by turns."""
    for n in range(0, count, 3):
        client.write("cpu", {"time": START + n, "host": "web-1", "n": n}, tags=["host"])
        client.write_columns("cpu", {"time": [START + n + 1], "n": [n + 1], "host": ["web-1"]}, tags=["host"])
        client.write_lines(f"cpu,host=web-1 n={n + 2}i {(START + n + 2) * 1000}")


@pytest.mark.slow
@pytest.mark.parametrize("spooled", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("name", KEEPERS)
def test_each_record_arrives_once_over_a_network_that_loses_answers(name: str, spooled: bool, tmp_path: Path) -> None:
    spool = tmp_path / "spool" if spooled else None
    with keeper(name, tmp_path / "server") as kept, FaultyProxy(kept.url, FAULTS, seed=3) as proxy:
        with Client(proxy.url, Options(batch_records=10, spool=spool, **QUICK)) as client:
            write_all(client, 1500)
        stats = client.stats()
        assert kept.numbers(1500) == list(range(1500))
        assert min(proxy.met[name] for name in ("lost_answers", "cut_answers", "cut_requests", "refused")) > 0
        assert stats.sent_records == stats.accepted_records == 1500
        assert stats.retries > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", KEEPERS)
def test_many_tasks_send_each_record_once_through_one_async_client(name: str, tmp_path: Path) -> None:
    async def run(url: str) -> None:
        options = Options(batch_records=10, memory_bytes=2000, compression="gzip", **QUICK)
        async with AsyncClient(url, options) as client:

            async def send(start: int) -> None:
                for n in range(start, 600, 20):
                    await client.write("cpu", {"n": n})

            await asyncio.gather(*(send(start) for start in range(20)))
            await client.flush()
            assert client.stats().waiting_records == 0

    with keeper(name, tmp_path / "server") as kept, FaultyProxy(kept.url, FAULTS, seed=5) as proxy:
        asyncio.run(run(proxy.url))
        assert kept.numbers(600) == list(range(600))


def test_what_is_sent_is_what_was_written(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server:
        for compression in COMPRESSIONS:
            with Client(server.url, Options(database="a b", compression=compression)) as client:
                client.write("cpu", {"time": START, "host": "é", "usage": 0.5, "none": None}, tags=["host", "rack"])
                client.write("cpu", [{"time": START + 1, "n": 1}, {"time": START + 2, "usage": 2.5}])
                client.write_lines("cpu,host=a\\ b usage=3 1790000000000003000\n", database="other")
        rows = server.wait_for_rows(9, "a%20b")
        assert [(row["time"] - START, row["host"], row["usage"], row["n"]) for row in rows[::3]] == [
            (0, "é", 0.5, None),
            (1, None, None, 1),
            (2, None, 2.5, None),
        ]
        assert [row["host"] for row in server.wait_for_rows(3, "other")] == ["a b"] * 3
        server.stop()


# Keys


def test_every_batch_has_a_key_of_its_own() -> None:
    with ModelServer() as server:
        for _ in range(2):
            with Client(server.url, Options(batch_records=1)) as client:
                for n in range(5):
                    client.write("cpu", {"n": n})
        keys = [written.key for written in server.written]
        assert len(set(keys)) == 10
        assert all(1 <= len(key) <= 128 and key.isascii() and key.isprintable() and " " not in key for key in keys)


def test_a_batch_is_tried_with_the_same_key_and_bytes() -> None:
    with ModelServer() as server, FaultyProxy(server.url, Faults(lost_answers=0.5), seed=2) as proxy:
        with Client(proxy.url, Options(batch_records=3, compression="zstd", **QUICK)) as client:
            for n in range(60):
                client.write("cpu", {"n": n})
        assert server.replayed >= client.stats().replayed_batches > 3
        assert server.conflicts == []


# Refusals


@pytest.fixture
def lines_server(tmp_path: Path) -> Any:
    (tmp_path / "server").mkdir()
    with Server(tmp_path / "server", server_workers=1) as server:
        yield server


def test_a_bad_batch_is_told_to_the_callback_and_not_tried_again(lines_server: Server) -> None:
    told: list[Refusal] = []
    with Client(lines_server.url, Options(precision="s"), told.append) as client:
        client.write_lines("cpu v=1 1790000000\nno line at all\ncpu v=2 1790000001")
        client.flush()
        client.write_lines("no line either")
        client.flush()
        with pytest.raises(BadRecord, match="of the years 1 to 9999"):  # it would cost the records beside it
            client.write("cpu", {"time": START, "v": 1})
        client.write("cpu", {"v": 3})
    assert [(refusal.status, refusal.records, refusal.is_partly_written) for refusal in told] == [
        (400, 3, True),
        (400, 1, False),
    ]
    assert b"no line at all" in told[0].body
    assert "unable to parse 'no line either'" in told[1].reason
    stats = client.stats()
    assert (stats.retries, stats.refused_records, stats.sent_records) == (0, 4, 1)
    assert sorted(row["v"] for row in lines_server.wait_for_rows(3)) == [1, 2, 3]


def test_without_a_callback_flush_and_close_raise(lines_server: Server) -> None:
    client = Client(lines_server.url)
    client.write_lines("bad")
    with pytest.raises(Refused, match="1 batches were refused") as raised:
        client.flush()
    assert raised.value.refusals[0].body == b"bad"
    client.flush()  # told once
    client.write_lines("bad")
    with pytest.raises(Refused):
        client.close()


def test_a_refused_batch_stays_in_the_spool_s_folder(lines_server: Server, tmp_path: Path) -> None:
    with Client(lines_server.url, Options(spool=tmp_path / "spool"), on_refused=lambda refusal: None) as client:
        client.write_lines("bad")
    assert len(list((tmp_path / "spool" / "refused").glob("*.batch"))) == 1
    [text] = (tmp_path / "spool" / "refused").glob("*.txt")
    assert text.read_text().startswith("400 ")


def test_a_wrong_token_is_a_refusal_that_says_so(tmp_path: Path) -> None:
    tokens.create(tmp_path, "--scope", "write", "--name", "another one")
    with Server(tmp_path, server_workers=1, auth_enabled=True, auth_tokens_file=tmp_path / "tokens.toml") as server:
        client = Client(server.url, Options(token="arc_wrong"))
        client.write("cpu", {"v": 1})
        with pytest.raises(Refused, match="401"):
            client.close()


# Waiting and bounds


def test_retry_after_is_obeyed() -> None:
    with ModelServer() as server, FaultyProxy(server.url, Faults(refused=1.0, retry_after="1"), seed=1) as proxy:
        client = Client(proxy.url, Options(**QUICK))
        client.write("cpu", {"n": 1})
        wait_until(lambda: len(proxy.times) >= 2)
        with pytest.raises(NotSent, match="1 records were not sent in time"):
            client.flush(0.01)
        proxy.faults = Faults()
        client.close()
        assert server.numbers() == [1]
        assert proxy.times[1] - proxy.times[0] >= 0.99
        assert "503" in client.stats().last_error


def test_a_server_that_comes_later_gets_everything(tmp_path: Path) -> None:
    port = free_port()
    client = Client(f"http://127.0.0.1:{port}", Options(**QUICK))
    for n in range(10):
        client.write("cpu", {"n": n})
    wait_until(lambda: client.stats().retries > 2)
    assert "cannot connect" in client.stats().last_error
    with Server(tmp_path, server_port=port, server_workers=1) as server:
        client.close()
        assert sorted(row["n"] for row in server.wait_for_rows(10)) == list(range(10))


@pytest.mark.parametrize("spooled", [False, True], ids=["memory", "spool"])
def test_a_full_client_raises_or_waits_as_chosen(spooled: bool, tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    bound = {"spool": tmp_path / "spool", "spool_bytes": 3000} if spooled else {"memory_bytes": 1000}
    for choice in ({"when_full": "raise"}, {"block_seconds": 0.05}):
        client = Client(nobody, Options(**bound, **choice, **QUICK))

        def fill(client: Client = client) -> None:
            for n in range(1000):
                client.write("cpu", {"n": n})

        with pytest.raises(Full, match="wait to be sent already"):
            fill()
        assert client.stats().waiting_bytes <= (3000 if spooled else 1000)
        files = list((tmp_path / "spool").glob("*.batch"))
        assert sum(file.stat().st_size for file in files) <= 3000
        if spooled:
            client.close(0)
        else:
            with pytest.raises(NotSent):
                client.close(0)


def test_an_async_client_waits_for_room_without_blocking_its_loop() -> None:
    async def run() -> None:
        with ModelServer() as server, FaultyProxy(server.url, Faults(refused=1.0), seed=1) as proxy:
            client = AsyncClient(proxy.url, Options(memory_bytes=300, **QUICK))

            async def send() -> None:
                for n in range(50):
                    await client.write("cpu", {"n": n})

            sending = asyncio.create_task(send())
            # The loop is free, though the client is full.
            await asyncio.to_thread(wait_until, lambda: client.stats().retries > 3)
            assert not sending.done()
            cancelled = asyncio.create_task(client.write("cpu", {"n": 99}))
            await asyncio.sleep(0.02)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            proxy.faults = Faults()
            await sending
            await client.close()
            assert server.numbers() == list(range(50))

    asyncio.run(run())


def test_an_async_client_never_waits_for_the_disk_in_its_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `spool_sync="always"`, a disk that syncs has the buffer's lock: nothing in the loop may ask for that."""
    calls: set[str] = set()
    in_loop: list[str] = []

    def note(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            calls.add(name)
            if threading.current_thread() is threading.main_thread():
                in_loop.append(name)
            return method(*arguments)

        return noted

    owners = {"fdatasync": Disk, "try_put": Buffer, "seal_all": Buffer, "is_done": Buffer, "end": Buffer}
    for name, owner in owners.items():
        monkeypatch.setattr(owner, name, note(name, getattr(owner, name)))

    async def run() -> None:
        with ModelServer() as server, FaultyProxy(server.url, Faults(refused=1.0), seed=1) as proxy:
            options = Options(spool=tmp_path, spool_sync="always", spool_bytes=1_500, **QUICK)
            client = AsyncClient(proxy.url, options)

            async def send() -> None:
                for n in range(30):
                    await client.write("cpu", {"n": n})

            sending = asyncio.create_task(send())
            await asyncio.to_thread(wait_until, lambda: client.stats().retries > 3)
            assert not sending.done(), "the spool has room for all, so nobody waits"
            proxy.faults = Faults()
            await sending
            await client.flush()
            await client.close()
            assert server.numbers() == list(range(30))

    asyncio.run(run())
    assert calls == set(owners)
    assert not in_loop


def test_a_client_gives_up_where_it_is_told_to() -> None:
    told: list[Refusal] = []
    options = Options(give_up_seconds=0.1, **QUICK)
    with Client(f"http://127.0.0.1:{free_port()}", options, told.append) as client:
        client.write("cpu", {"n": 1})
    assert [(refusal.status, refusal.is_partly_written) for refusal in told] == [(0, False)]
    assert "gave up after 0.1 s: cannot connect" in told[0].reason


def test_close_ends_in_time_though_the_server_hangs(tmp_path: Path) -> None:
    with FaultyProxy("http://127.0.0.1:1", Faults(), seed=1) as proxy, ModelServer() as server:
        proxy.target = server.url
        proxy.faults = Faults(slow=1.0, slow_seconds=120)
        client = Client(proxy.url, Options(spool=tmp_path, **QUICK))
        client.write("cpu", {"n": 1})
        wait_until(lambda: server.written)
        began = time.monotonic()
        client.close(0.05)
        assert time.monotonic() - began < 60
        proxy.faults = Faults()
        with Client(proxy.url, Options(spool=tmp_path)) as client:  # the same records, under the same key
            client.flush()
        assert (server.numbers(), server.replayed) == ([1], 1)


def test_a_closed_client_takes_nothing_and_closes_twice(tmp_path: Path) -> None:
    with ModelServer() as server:
        client = Client(server.url, Options(spool=tmp_path))
        with pytest.raises(SpoolError, match="is in use by another client"):
            Client(server.url, Options(spool=tmp_path))
        client.close()
        client.close()
        with pytest.raises(Closed, match="the client is closed"):
            client.write("cpu", {"n": 1})
        Client(server.url, Options(spool=tmp_path)).close()


def test_a_forked_child_cannot_use_its_parent_s_client() -> None:
    with ModelServer() as server, Client(server.url) as client:
        client.write("cpu", {"n": 1})
        child = os.fork()
        if child == 0:
            code = 1
            try:
                client.close()
                client.write("cpu", {"n": 2})
            except Closed:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.flush()
        assert server.numbers() == [1]


def test_threads_share_a_client() -> None:
    with ModelServer() as server, Client(server.url, Options(batch_records=50)) as client:

        def write(first: int) -> None:
            for n in range(first, 1000, 8):
                client.write("cpu", {"n": n})

        threads = [threading.Thread(target=write, args=[first]) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_SECONDS)
        client.flush()
        assert server.numbers() == list(range(1000))


def test_a_bad_record_is_refused_where_it_is_written() -> None:
    with ModelServer() as server, Client(server.url) as client:
        for record in ({}, {"v": None}, {"v": object()}, {"v": 1, "time": "soon"}, {"\n": 1}):
            with pytest.raises(BadRecord):
                client.write("cpu", record)
        client.write("cpu", {"n": 1})
        client.flush()
        assert server.numbers() == [1]


# Several nodes


def test_two_nodes_share_the_batches_and_one_takes_over() -> None:
    with ModelServer() as first:
        with ModelServer() as second:
            client = Client([first.url, second.url], Options(batch_records=1, **QUICK))
            for n in range(40):
                client.write("cpu", {"n": n})
            client.flush()
            assert first.written
            assert second.written
        for n in range(40, 60):  # the second is gone
            client.write("cpu", {"n": n})
        client.close()
        assert sorted(first.numbers() + second.numbers()) == list(range(60))
        assert client.stats().doubled_batches == 0


def test_a_batch_that_a_node_may_have_waits_for_that_node() -> None:
    faults = Faults(lost_answers=1.0)
    with ModelServer() as server, ModelServer() as other, FaultyProxy(server.url, faults) as proxy:
        client = Client([proxy.url, other.url], Options(batch_records=1, failover_seconds=0.3, **QUICK))
        written = 0
        while not proxy.met["lost_answers"]:  # which node gets a batch follows from its key, which is random
            client.write("cpu", {"n": written})
            client.flush()
            written += 1
        client.close()
        assert client.stats().doubled_batches == len(server.written) == 1
        assert other.numbers() == list(range(written))  # the price of a failover: the last of these is at both


# TLS and sockets


def test_tls_is_checked_against_the_given_authority(tmp_path: Path) -> None:
    write_certificate(tmp_path, in_days(-1), in_days(30))
    with tls_server(tmp_path, server_workers=1) as server:
        url = f"https://localhost:{server.port}"
        with Client(url, Options(ca_file=tmp_path / "cert.pem")) as client:
            client.write("cpu", {"n": 1})
        told: list[Refusal] = []
        with Client(url, Options(give_up_seconds=0.05, **QUICK), told.append) as client:
            client.write("cpu", {"n": 2})
        assert "its certificate is not trusted" in told[0].reason
        assert [row["n"] for row in server.wait_for_rows(1)] == [1]


def test_certificates_that_cannot_be_used_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("x")
    with pytest.raises(ClientError, match=r"ca_file: .* cannot be used"):
        Client("https://localhost", Options(ca_file=tmp_path / "bad.pem"))
    with pytest.raises(ClientError, match=r"certificate_file: .* cannot be used"):
        Client("https://localhost", Options(certificate_file=tmp_path / "missing.pem"))


def test_a_unix_socket_is_a_url(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    listeners = json.dumps([{"address": f"unix:{path}"}])
    with Server(tmp_path, server_workers=1, server_listeners=listeners) as server:
        with Client(f"unix:{path}") as client:
            client.write("cpu", {"n": 1})
        assert [row["n"] for row in server.wait_for_rows(1)] == [1]

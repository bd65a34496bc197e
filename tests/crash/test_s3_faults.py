"""The store goes wrong in every way that it can: acknowledged records arrive all the same, once, without a restart."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from arcpipe.config.settings import StorageS3
from arcpipe.errors import StorageError
from arcpipe.storage import MemoryBlob
from arcpipe.storage.s3 import S3Store
from arcpipe.wal.reader import SegmentScan
from tests.support.directories import batch_files
from tests.support.http import Client, pack
from tests.support.lake import lake_rows
from tests.support.load import Load
from tests.support.s3proxy import ANSWERS, FAULTS, FaultyProxy
from tests.support.s3server import S3Bucket
from tests.support.server import Server
from tests.support.stores import s3_store
from tests.support.sts import TokenService
from tests.support.waiting import WAIT_SECONDS, wait_until

# How often each fault is to strike under load: some 20 s here, some minutes with ARCPIPE_TEST_LONG=1.
STRIKES = 40 if os.environ.get("ARCPIPE_TEST_LONG") == "1" else 2
# 2026-01-01T00:00:00Z
NEW_YEAR = 1_767_225_600
V2 = "/write/v2/msgpack"
# The uploader waits up to 30 s between two tries when an outage was long.
CATCH_UP_SECONDS = WAIT_SECONDS

pytestmark = pytest.mark.timeout(900 if STRIKES > 2 else 600)


def settings_of(s3: S3Bucket, endpoint_url: str) -> dict[str, object]:
    return s3_store(s3, Path()).settings | {"storage_s3_endpoint_url": endpoint_url}


class Numbers:
    """Writes one record after the other, and knows which are to be found."""

    def __init__(self, server: Server, pad: int = 0) -> None:
        self._server = server
        self._pad = "x" * pad
        self.acknowledged: list[int] = []

    def write(self, count: int = 1) -> None:
        with self._server.client() as client:
            for _ in range(count):
                response = self.try_to_write(client)
                assert response.status == 202, response

    def try_to_write(self, client: Client) -> Any:
        number = len(self.acknowledged)
        columns = {"time": [NEW_YEAR + number], "number": [number], "pad": [self._pad]}
        response = client.request("POST", V2, pack({"m": "numbers", "columns": columns}))
        if response.status == 202:
            self.acknowledged.append(number)
        return response

    def assert_exactly_once(self, s3: S3Bucket, directory: Path) -> None:
        rows = lake_rows(s3_store(s3, directory).read())
        assert [row["number"] for row in rows] == self.acknowledged


def is_caught_up(server: Server) -> bool:
    """Nothing that was acknowledged waits to be uploaded any more."""
    try:
        return (
            all(entries(server.wal / name) == 0 for name in server.segments(".wal"))
            and server.segments(".wal.sealed") == []
            and batch_files(server.wal) == []
        )
    except FileNotFoundError:  # renamed since it was listed
        return False


def entries(segment: Path) -> int:
    scan = SegmentScan(segment)
    return sum(1 for _ in scan)


def wait_until_caught_up(server: Server) -> None:
    wait_until(lambda: is_caught_up(server), "an empty backlog", CATCH_UP_SECONDS)


KINDS = {
    "refused": "connection",
    "reset at once": "connection",
    "reset in the body": "connection",
    "lost answer": "connection",
    "reset in the answer": "connection",
    "cut answer": "connection",
    "hanging": "connection",
    "internal error": "server_error",
    "slow down": "throttled",
    "too many requests": "throttled",
    "request timeout": "timeout",
    "clock skew": "clock_skew",
}


def test_each_fault_is_named_in_the_log_and_tried_again(s3: S3Bucket, proxy: FaultyProxy, tmp_path: Path) -> None:
    assert {*KINDS, "slow"} == set(FAULTS)
    with Server(tmp_path, server_workers=1, **settings_of(s3, proxy.url)) as server:
        numbers = Numbers(server)
        for fault, kind in KINDS.items():
            before = len(server.log)
            proxy.fail_next(fault)
            numbers.write()
            wait_until_caught_up(server)
            assert proxy.injected[fault] == 1
            said = server.log[before:]
            lines = re.findall(
                r"\[WARNING\] uploader: uploading (.*?); trying again in [\d.]+ s kind=(\w+) tries=(\d)", said
            )
            assert {found for _, found, _ in lines} == {kind}, said
            # While nobody listens there may be further tries.
            tries = [int(number) for _, _, number in lines]
            assert tries == [1] or (fault == "refused" and tries == [*range(1, len(lines) + 1)]), said
            for text, _, _ in lines:
                # What, where, and what to do about it; and never a secret.
                assert text.startswith("default/numbers/2026/01/01/00/numbers_")
                assert f"cannot write s3://{s3.bucket}/some/prefix/default/numbers/" in text
                assert proxy.url in text
                assert fault not in ANSWERS or str(ANSWERS[fault].status) in text
            assert s3.secret_access_key not in said
        proxy.fail_next("slow")
        before = len(server.log)
        numbers.write()
        wait_until_caught_up(server)
        assert "[WARNING]" not in server.log[before:]
        server.stop()
    numbers.assert_exactly_once(s3, tmp_path)


def test_a_load_through_faults_of_every_kind_arrives_exactly_once(
    s3: S3Bucket, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """The uploader is killed on the way, so that batches are redone through the same faults."""
    chance = random.Random(4)
    with Server(
        tmp_path, server_workers=2, wal_max_size_mb=4, flush_max_age_seconds=0.5, **settings_of(s3, proxy.url)
    ) as server:
        with Load(server, connections=3, pause_seconds=0.05) as load:
            proxy.fail_randomly(0.3, seed=1)

            def has_struck(times: int) -> bool:
                return min(proxy.injected[fault] for fault in FAULTS) >= times

            for strikes in range(1, STRIKES + 1):
                wait_until(
                    functools.partial(has_struck, strikes),
                    f"every fault to strike {strikes} times",
                )
                if chance.random() < 0.5:
                    pid = server.kill("uploader")
                    server.wait_for_successor("uploader", pid)
            proxy.fail_randomly(0, seed=1)
        uploader = server.pids()["uploader"]
        wait_until_caught_up(server)
        assert server.pids()["uploader"] == uploader
        print(f"{load.acknowledged_requests} requests; {dict(proxy.injected)}; {dict(proxy.requests)}")
        server.stop()
        server.assert_log_is_shipped()
    load.assert_exactly_once(s3_store(s3, tmp_path).read())
    assert s3.uploads() == []


def test_an_endpoint_that_is_down_holds_up_no_ingest(s3: S3Bucket, proxy: FaultyProxy, tmp_path: Path) -> None:
    """An endpoint that is down from the start does not keep ingest waiting."""
    proxy.go_down()
    with Server(tmp_path, server_workers=1, **settings_of(s3, proxy.url)) as server:
        numbers = Numbers(server)
        wait_until(lambda: "checking the store" in server.log and "kind=connection tries=2" in server.log)
        numbers.write(100)
        assert server.get("/ready").status == 200
        assert s3.list_keys() == []
        uploader = server.pids()["uploader"]
        proxy.come_up()
        wait_until_caught_up(server)
        assert server.pids()["uploader"] == uploader
        server.stop()
    numbers.assert_exactly_once(s3, tmp_path)


def test_an_endpoint_of_an_unknown_name_can_be_set_right(s3: S3Bucket, tmp_path: Path) -> None:
    """An endpoint whose name is unknown ships everything once it is set right."""
    with Server(
        tmp_path, server_workers=1, shutdown_drain_seconds=0.5, **settings_of(s3, "http://no-such-host.invalid:9000")
    ) as server:
        numbers = Numbers(server)
        numbers.write(10)
        wait_until(
            lambda: re.search(r"\[WARNING\] uploader: checking the store: .*no-such-host.* kind=dns", server.log)
        )
        server.stop()
        server.settings |= settings_of(s3, s3.endpoint_url) | {"shutdown_drain_seconds": 30}
        server.restart()
        wait_until_caught_up(server)
        server.stop()
    numbers.assert_exactly_once(s3, tmp_path)


def test_wrong_credentials_lose_nothing_until_the_right_ones_are_given(
    s3: S3Bucket, proxy: FaultyProxy, tmp_path: Path
) -> None:
    proxy.access_key_id = s3.access_key_id
    wrong = {"storage_s3_access_key_id": "somebody-else", "storage_s3_secret_access_key": "not-the-secret"}
    with Server(tmp_path, server_workers=1, **settings_of(s3, proxy.url) | wrong, shutdown_drain_seconds=0.5) as server:
        numbers = Numbers(server)
        numbers.write(10)
        wait_until(lambda: "kind=credentials tries=2" in server.log)
        line = next(line for line in server.log.splitlines() if "kind=credentials" in line)
        assert "InvalidAccessKeyId" in line
        assert "Check storage.s3.access_key_id and secret_access_key" in line
        assert "not-the-secret" not in server.log
        server.stop()
        assert s3.list_keys() == []
        server.settings |= settings_of(s3, proxy.url) | {"shutdown_drain_seconds": 30}
        server.restart()
        numbers.write(10)
        wait_until_caught_up(server)
        server.stop()
    numbers.assert_exactly_once(s3, tmp_path)


def test_an_expired_session_token_is_an_issue_and_no_loss(s3: S3Bucket, proxy: FaultyProxy, tmp_path: Path) -> None:
    """After it the process gets credentials of its own, by a web identity, and ships everything."""

    def is_told() -> bool:
        found = json.loads(server.get("/api/wal/health").body)["alerts"]
        return "credentials_refused" in [alert["code"] for alert in found]

    def newest_only(token: str) -> None:
        proxy.session_token = token

    proxy.session_token = "the-next-one"
    temporary = settings_of(s3, proxy.url) | {"storage_s3_session_token": "the-last-one"}
    with Server(tmp_path, server_workers=1, **temporary, shutdown_drain_seconds=0.5) as server:
        numbers = Numbers(server)
        numbers.write(10)
        wait_until(is_told, "the issue")
        assert "HTTP 400 ExpiredToken" in server.log
        assert "Give new keys with their storage.s3.session_token" in server.log
        assert "the-last-one" not in server.log
        server.stop()
        assert s3.list_keys() == []
        for name in ("access_key_id", "secret_access_key", "session_token"):
            del server.settings[f"storage_s3_{name}"]
        (tmp_path / "identity").write_text("an identity")
        server.settings["shutdown_drain_seconds"] = 30
        with TokenService(s3.endpoint_url, newest_only) as service:
            server.variables = {
                "AWS_ENDPOINT_URL_STS": service.url,
                "AWS_ROLE_ARN": "arn:aws:iam::111122223333:role/arcpipe",
                "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "identity"),
            }
            server.restart()
            numbers.write(10)
            wait_until_caught_up(server)
            wait_until(lambda: not is_told(), "the end of the issue")
            server.stop()
    numbers.assert_exactly_once(s3, tmp_path)


def test_a_bucket_that_is_made_later_gets_everything_without_a_restart(s3: S3Bucket, tmp_path: Path) -> None:
    later = f"{s3.bucket}-later"
    settings = settings_of(s3, s3.endpoint_url) | {"storage_url": f"s3://{later}/some/prefix"}
    bucket = S3Bucket(**{**vars(s3), "bucket": later})
    with Server(tmp_path, server_workers=1, **settings) as server:
        numbers = Numbers(server)
        numbers.write(10)
        wait_until(lambda: "kind=missing_bucket tries=2" in server.log)
        line = next(line for line in server.log.splitlines() if "kind=missing_bucket" in line)
        assert "Create the bucket, or correct storage.url" in line
        s3.client().create_bucket(Bucket=later)
        try:
            numbers.write(10)
            wait_until_caught_up(server)
            server.stop()
            numbers.assert_exactly_once(bucket, tmp_path)
        finally:
            for key in bucket.list_keys():
                s3.client().delete_object(Bucket=later, Key=key)
            s3.client().delete_bucket(Bucket=later)


def test_a_store_that_comes_back_during_the_stop_gets_everything(
    s3: S3Bucket, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """A store that comes back while the server stops gets everything however long it was down."""
    with Server(tmp_path, server_workers=1, shutdown_drain_seconds=60, **settings_of(s3, proxy.url)) as server:
        numbers = Numbers(server)
        proxy.go_down()
        numbers.write(10)
        wait_until(lambda: re.search(r"trying again in (9|\d\d)\.", server.log), "a long pause")
        before, began = len(server.log), time.monotonic()
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: "trying again in" in server.log[before:], "a try at once")
        assert time.monotonic() - began < 8
        proxy.come_up()
        assert server.exit_code() == 0
        assert "stopped; everything is uploaded" in server.log[before:]
    numbers.assert_exactly_once(s3, tmp_path)


def test_a_full_backlog_refuses_writes_until_the_store_is_back(
    s3: S3Bucket, proxy: FaultyProxy, tmp_path: Path
) -> None:
    with Server(
        tmp_path, server_workers=1, wal_max_size_mb=1, wal_max_backlog_mb=2, **settings_of(s3, proxy.url)
    ) as server:
        numbers = Numbers(server, pad=50_000)
        numbers.write()
        wait_until_caught_up(server)
        proxy.go_down()
        with server.client() as client:

            def refusal() -> Any:
                response = numbers.try_to_write(client)
                return response if response.status != 202 else None

            response = wait_until(refusal, "a refusal")
            assert response.status == 503
            assert int(response.headers["retry-after"]) > 0
            assert response.json()["code"] == "backlog"
            assert "wal.max_backlog_mb = 2 MB" in response.reason
            # A refusal is not the end of the connection, nor of anything else.
            ready = client.request("GET", "/ready")
            assert (ready.status, ready.json()["code"]) == (503, "backlog")
            assert client.request("GET", "/health").status == 200
            processes = server.pids()
            proxy.come_up()
            wait_until(lambda: numbers.try_to_write(client).status == 202, "a write to be taken", CATCH_UP_SECONDS)
            assert client.request("GET", "/ready").status == 200
        wait_until_caught_up(server)
        assert server.pids() == processes
        server.stop()
    # Most went into the log before the limit was reached: it is on what waits, not on what is being written.
    assert len(numbers.acknowledged) > 40
    numbers.assert_exactly_once(s3, tmp_path)


def test_uploads_in_parts_come_through_faults_of_every_kind_whole(s3: S3Bucket, proxy: FaultyProxy) -> None:
    """Objects of several parts each, put as the uploader puts them: again until it succeeds."""
    chance = random.Random(5)
    objects = {f"large/{number}": chance.randbytes((5 << 20) * 2 + number * 100_003) for number in range(4)}
    options = StorageS3(
        endpoint_url=proxy.url,
        region=s3.region,
        access_key_id=s3.access_key_id,
        secret_access_key=s3.secret_access_key,
        addressing_style="path",
    )
    kinds = set()

    async def put(store: S3Store, key: str, content: bytes) -> None:
        while True:
            try:
                return await store.put(key, MemoryBlob(content))
            except StorageError as error:
                kinds.add(error.kind)

    async def put_all() -> None:
        store = S3Store(s3.bucket, "lake", options, multipart_threshold_bytes=5 << 20, part_bytes=5 << 20)
        async with asyncio.TaskGroup() as group:
            for key, content in objects.items():
                group.create_task(put(store, key, content))
        await store.close()

    proxy.fail_next("reset at once", method="POST", target="uploads")  # chance alone may spare all but the parts
    proxy.fail_randomly(0.2, seed=2)
    asyncio.run(put_all())
    proxy.fail_randomly(0, seed=2)
    assert "connection" in kinds
    assert proxy.injected.total() > 4
    assert s3.list_keys() == [f"lake/{key}" for key in sorted(objects)]
    assert all(s3.read(f"lake/{key}") == content for key, content in objects.items())

"""A put that succeeds only where there is no object: what makes one of several writers the first."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from arcpipe.config.settings import StorageS3
from arcpipe.errors import NotOffered, StorageError
from arcpipe.storage import LakeStore, MemoryBlob, open_store
from arcpipe.storage.s3 import S3Store
from tests.support.s3faults import FaultServer, refuses, taken
from tests.support.s3proxy import FaultyProxy
from tests.support.s3server import S3Bucket


def s3_options(s3: S3Bucket, url: str = "") -> StorageS3:
    return StorageS3(
        endpoint_url=url or s3.endpoint_url,
        access_key_id=s3.access_key_id,
        secret_access_key=s3.secret_access_key,
        region=s3.region,
        addressing_style="path",
    )


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], LakeStore]:
    if request.param == "local":
        return lambda: open_store(f"file://{tmp_path}/lake", StorageS3())
    s3: S3Bucket = request.getfixturevalue("s3")
    return lambda: open_store(f"s3://{s3.bucket}/some/prefix", s3_options(s3))


def using(make: Callable[[], LakeStore], work: Callable[[LakeStore], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        store = make()
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(main())


def test_only_the_first_put_of_a_new_object_succeeds(store: Callable[[], LakeStore]) -> None:
    async def work(store: LakeStore) -> None:
        assert await store.put_new("log/1.json", MemoryBlob(b"first"))
        assert not await store.put_new("log/1.json", MemoryBlob(b"the second one"))
        assert await store.read("log/1.json", 0, 100) == b"first"
        assert await store.list_keys("") == ["log/1.json"]

    using(store, work)


def test_of_many_puts_at_once_exactly_one_succeeds(store: Callable[[], LakeStore]) -> None:
    async def work(store: LakeStore) -> None:
        for number in range(5):
            puts = [store.put_new(f"log/{number}.json", MemoryBlob(f"{who}".encode())) for who in range(8)]
            won = [who for who, done in enumerate(await asyncio.gather(*puts)) if done]
            # S3 may tell all that came at the same moment to try again.
            assert len(won) <= 1
            if won:
                assert await store.read(f"log/{number}.json", 0, 100) == str(won[0]).encode()
        assert won or isinstance(store, S3Store)

    using(store, work)


def test_objects_after_a_key_are_listed(store: Callable[[], LakeStore]) -> None:
    async def work(store: LakeStore) -> None:
        for number in range(9):
            await store.put(f"log/{number}", MemoryBlob(b"x"))
        pages = [one.key async for page in store.list_objects("log/", after="log/6") for one in page]
        assert pages == ["log/7", "log/8"]

    using(store, work)


def test_a_lost_answer_is_an_error_and_the_object_is_there(s3: S3Bucket) -> None:
    with FaultyProxy(s3.endpoint_url) as proxy:

        async def work(store: LakeStore) -> None:
            proxy.fail_next("lost answer", target="log/1")
            with pytest.raises(StorageError):
                await store.put_new("log/1", MemoryBlob(b"first"))
            assert not await store.put_new("log/1", MemoryBlob(b"second"))
            assert await store.read("log/1", 0, 100) == b"first"

        using(lambda: open_store(f"s3://{s3.bucket}/p", s3_options(s3, proxy.url)), work)


@pytest.mark.usefixtures("no_credentials_of_this_machine")
@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")], ids=["not implemented", "invalid"]
)
def test_a_server_without_conditional_writes_is_told(faults: FaultServer, status: int, code: str) -> None:
    faults.answers = [refuses(status, code), taken]
    options = StorageS3(endpoint_url=faults.endpoint_url, access_key_id="a", secret_access_key="b", region="us-east-1")

    async def work(store: LakeStore) -> None:
        with pytest.raises(NotOffered, match="no conditional writes"):
            await store.put_new("log/1", MemoryBlob(b"x"))
        assert faults.requests[0].headers["If-None-Match"] == "*"

    using(lambda: open_store("s3://bucket/p", options), work)


def test_a_new_local_object_is_durable_before_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both: the winner's name, and for the loser the other's, which may lack its sync."""
    synced: list[str] = []
    sync = os.fsync

    def recorded(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        sync(fd)

    monkeypatch.setattr("os.fsync", recorded)

    async def work(store: LakeStore) -> None:
        await store.put_new("log/1", MemoryBlob(b"x"))
        assert any(".arcpipe-staging" in path for path in synced)
        assert {f"{tmp_path}/lake/log", f"{tmp_path}/lake"} <= set(synced)
        synced.clear()
        assert not await store.put_new("log/1", MemoryBlob(b"y"))
        assert f"{tmp_path}/lake/log" in synced

    using(lambda: open_store(f"file://{tmp_path}/lake", StorageS3()), work)


def test_a_file_system_without_hard_links_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)

    async def work(store: LakeStore) -> None:
        with pytest.raises(NotOffered, match="no hard links"):
            await store.put_new("log/1", MemoryBlob(b"x"))
        assert await store.list_keys("") == []

    using(lambda: open_store(f"file://{tmp_path}/lake", StorageS3()), work)

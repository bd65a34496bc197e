"""What the upkeep of a lake asks of a store: pages of objects, folders, ranges, renames, deletes of many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from arcpipe.config.settings import StorageS3
from arcpipe.errors import MissingObject
from arcpipe.storage import LakeStore, Listed, MemoryBlob, open_store
from arcpipe.storage.s3 import S3Store
from tests.support.clouds import Cloud
from tests.support.s3server import S3Bucket

KEYS = [f"db/m/2026/01/{day:02}/a{n}.parquet" for day in (1, 2) for n in range(40)] + [
    "db/m2/x",
    "other/x",
    ".hidden/y",
]


@pytest.fixture(params=["local", "s3", "azure", "google"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], LakeStore]:
    if request.param == "local":
        return lambda: open_store(f"file://{tmp_path}/lake", StorageS3())
    if request.param in ("azure", "google"):
        cloud: Cloud = request.getfixturevalue(request.param)
        if not cloud.is_whole:
            pytest.skip(
                "the S3 server that stands for Google's has no copies: ARCPIPE_TEST_GCS_ENDPOINT names a better one"
            )
        for name, value in cloud.variables.items():
            monkeypatch.setenv(name, value)
        return lambda: open_store(cloud.url, StorageS3())
    s3: S3Bucket = request.getfixturevalue("s3")
    options = StorageS3(
        endpoint_url=s3.endpoint_url,
        access_key_id=s3.access_key_id,
        secret_access_key=s3.secret_access_key,
        region=s3.region,
        addressing_style="path",
    )
    return lambda: open_store(f"s3://{s3.bucket}/some/prefix", options)


def using(make: Callable[[], LakeStore], work: Callable[[LakeStore], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        store = make()
        try:
            for key in KEYS:
                await store.put(key, MemoryBlob(key.encode()))
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(main())


async def listed(store: LakeStore, prefix: str) -> list[Listed]:
    return [one async for page in store.list_objects(prefix) for one in page]


def test_objects_are_listed_with_their_sizes_folder_by_folder(store: Callable[[], LakeStore]) -> None:
    async def work(store: LakeStore) -> None:
        found = await listed(store, "db/m/")
        assert [one.key for one in found] == sorted(KEYS[:80])
        assert all(one.size == len(one.key) and one.modified > 1e9 for one in found)
        assert [one.key for one in await listed(store, "db/m")] == sorted([*KEYS[:80], "db/m2/x"])
        assert (await listed(store, "db/m/2026/01/02/a3"))[0].key == "db/m/2026/01/02/a3.parquet"
        assert await listed(store, "nothing/") == []
        assert await store.list_folders("") == [".hidden", "db", "other"]
        assert await store.list_folders("db/") == ["m", "m2"]
        assert await store.list_folders("db/m/2026/01/01/") == []

    using(store, work)


def test_ranges_are_read_and_a_missing_object_is_told(store: Callable[[], LakeStore]) -> None:
    async def work(store: LakeStore) -> None:
        assert await store.read("other/x", 0, 100) == b"other/x"
        assert await store.read("other/x", 2, 3) == b"her"
        assert await store.read("other/x", 7, 3) == b""
        with pytest.raises(MissingObject):
            await store.read("other/y", 0, 1)

    using(store, work)


def test_a_move_replaces_its_target_and_may_be_tried_again(store: Callable[[], LakeStore]) -> None:
    async def work(store: LakeStore) -> None:
        await store.move("other/x", "db/new/folder/x")
        await store.move("db/m2/x", "db/new/folder/x")
        assert await store.read("db/new/folder/x", 0, 100) == b"db/m2/x"
        await store.delete_all(["other/x", "db/m2/x"])
        with pytest.raises(MissingObject):
            await store.move("other/x", "db/new/folder/x")
        assert await store.read("db/new/folder/x", 0, 100) == b"db/m2/x"

    using(store, work)


@pytest.mark.parametrize("at_once", [True, False])
def test_many_objects_are_deleted_and_missing_ones_are_no_error(store: Callable[[], LakeStore], at_once: bool) -> None:
    async def work(store: LakeStore) -> None:
        if isinstance(store, S3Store):
            store._deletes_several = at_once  # as after the answer of a server without that request
        await store.delete_all([*KEYS[:80], "db/m/none", "none/none"])
        assert sorted(one.key for one in await listed(store, "")) == sorted(KEYS[80:])
        await store.delete_all([])

    using(store, work)

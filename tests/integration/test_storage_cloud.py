"""Google's and Azure's stores against their emulators: what each store promises, and a server that uses them."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from obstore.store import MemoryStore as ObjectMemory

from arcpipe.config.settings import CloudLocation, Storage, StorageS3
from arcpipe.errors import MissingObject, StorageError
from arcpipe.storage import LakeStore, MemoryBlob, open_store
from arcpipe.storage.cloud import CloudStore
from arcpipe.tables.delta.checkpoints import options_of, uri_of
from arcpipe.tables.delta.paths import root_of
from tests.support.clouds import Cloud
from tests.support.http import free_port
from tests.support.program import COMMAND, environment
from tests.support.server import Server
from tests.support.waiting import START_SECONDS, wait_until

MB = 1 << 20
TABLES = {"tables_format": "delta", "tables_commit_interval_seconds": 0.2}
ODD = ("a%2Fb/c d~.parquet", "ä/#?{}^`[]*.bin", "_delta_log/0.json", "tr/.x", "x%20y")


@pytest.fixture(params=["azure", "google"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    cloud: Cloud = request.getfixturevalue(request.param)
    for name, value in cloud.variables.items():
        monkeypatch.setenv(name, value)
    return cloud


def require_all_of(cloud: Cloud) -> None:
    if not cloud.is_whole:
        pytest.skip(
            "the S3 server that stands for Google's has no conditions: ARCPIPE_TEST_GCS_ENDPOINT names a better one"
        )


def using(url: str, work: Callable[[LakeStore], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        store = open_store(url, StorageS3())
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(main())


class FailingBlob:
    """Of which the second half cannot be read."""

    size = 70 * MB

    def read_at(self, offset: int, length: int) -> bytes:
        if offset > self.size // 2:
            raise OSError(5, "Input/output error")
        return bytes(length)


def test_keys_of_any_kind_come_back_as_they_are(cloud: Cloud) -> None:
    async def work(store: LakeStore) -> None:
        for key in ODD:
            await store.put(key, MemoryBlob(key.encode()))
            assert await store.read(key, 0, 100) == key.encode()
            assert await store.exists(key)
        assert await store.list_keys("") == sorted(ODD)

    using(cloud.url, work)


def test_a_check_leaves_nothing(cloud: Cloud) -> None:
    async def work(store: LakeStore) -> None:
        await store.check()
        assert await store.list_keys("") == []

    using(cloud.url, work)


def test_a_large_object_is_put_in_parts_and_becomes_visible_whole(cloud: Cloud) -> None:
    content = os.urandom(70 * MB)

    async def work(store: LakeStore) -> None:
        with pytest.raises(StorageError, match=r"cannot read the data to be stored .*Input/output error"):
            await store.put("large", FailingBlob())
        assert not await store.exists("large")
        await store.put("large", MemoryBlob(content))
        assert await store.read("large", 40 * MB, 1000) == content[40 * MB : 40 * MB + 1000]
        assert [len(await store.read("large", at, 100)) for at in (70 * MB - 10, 70 * MB, 80 * MB)] == [10, 0, 0]

    using(cloud.url, work)


def test_of_two_that_put_one_new_object_one_succeeds(cloud: Cloud) -> None:
    require_all_of(cloud)

    async def work(store: LakeStore) -> None:
        done = await asyncio.gather(*(store.put_new("new", MemoryBlob(b"%d" % n)) for n in range(8)))
        assert sorted(done) == [False] * 7 + [True]
        assert await store.read("new", 0, 9) == b"%d" % done.index(True)

    using(cloud.url, work)


def test_of_two_large_new_objects_one_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit of a table is one, and an upload in parts would write over the one that was first."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "nobody")
    content = bytes(65 * MB)

    async def work() -> None:
        store = CloudStore(CloudLocation("az", "container", ""))
        store._store = ObjectMemory()  # obstore's own, which has the conditions of both
        done = await asyncio.gather(*(store.put_new("new", MemoryBlob(content)) for _ in range(2)))
        assert sorted(done) == [False, True]

    asyncio.run(work())


def test_few_large_objects_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client takes their bytes: eight of 60 MB would be as many as the uploader may have for all."""
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "any")
    location = Storage(url="gs://bucket").location
    assert isinstance(location, CloudLocation)
    store = CloudStore(location)
    under_way = dict.fromkeys(("large", "small"), 0)
    most = dict(under_way)
    all_small = asyncio.Event()

    async def put(_: Any, name: str, *content: Any, **options: Any) -> None:
        kind = name.partition("-")[0]
        under_way[kind] += 1
        most[kind] = max(most[kind], under_way[kind])
        if most["small"] == 8:
            all_small.set()
        await all_small.wait()  # meanwhile the others get as far as they may
        under_way[kind] -= 1

    monkeypatch.setattr("obstore.put_async", put)

    async def work() -> None:
        large, small = MemoryBlob(bytes(17 * MB)), MemoryBlob(b"1")
        puts = [
            store.put(f"{kind}-{number}", blob)
            for kind, blob in (("large", large), ("small", small))
            for number in range(8)
        ]
        await asyncio.gather(*puts)

    asyncio.run(asyncio.wait_for(work(), START_SECONDS))
    assert most["large"] <= 2


def test_what_is_not_there_is_told_apart(cloud: Cloud) -> None:
    async def work(store: LakeStore) -> None:
        assert not await store.exists("nothing")
        await store.delete("nothing")
        with pytest.raises(MissingObject):
            await store.read("nothing", 0, 1)
        if cloud.is_whole:
            with pytest.raises(MissingObject):
                await store.move("nothing", "target")

    async def elsewhere(store: LakeStore) -> None:
        tries: list[Callable[[], Awaitable[Any]]] = [
            store.check,
            lambda: store.put("a", MemoryBlob(b"x")),
            lambda: store.exists("a"),
            lambda: store.list_keys(""),
        ]
        for one in tries:
            with pytest.raises(StorageError, match="Create the bucket or container") as error:
                await one()
            assert error.value.kind == "missing_bucket"

    using(cloud.url, work)
    using(f"{cloud.url.split('://')[0]}://not-there-at-all/prefix", elsewhere)


def test_a_server_that_is_not_there_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://127.0.0.1:{free_port()}")

    async def work(store: LakeStore) -> None:
        with pytest.raises(StorageError, match="Check that proxy and firewall") as error:
            await store.put("a", MemoryBlob(b"x"))
        assert error.value.kind == "connection"

    using("az://lake/prefix", work)


def test_a_server_commits_to_delta_tables_with_checkpoints(cloud: Cloud, tmp_path: Path) -> None:
    require_all_of(cloud)
    server = Server(tmp_path, server_workers=1, storage_url=cloud.url, **TABLES)
    server.variables = {**cloud.variables}
    storage = Storage(url=cloud.url)

    def table() -> DeltaTable | None:
        with suppress(TableNotFoundError):
            return DeltaTable(uri_of(storage, root_of(("default", "cpu"))), storage_options=options_of(storage))
        return None

    def rows() -> list[int]:
        found = table()
        return sorted(found.to_pyarrow_table(columns=["n"])["n"].to_pylist()) if found is not None else []

    with server:
        for number in range(12):
            server.write({"m": "cpu", "columns": {"n": [number]}})
            wait_until(lambda count=number + 1: len(rows()) >= count, "the commit")  # type: ignore[misc]
            if number == 5:
                server.kill_all()
                server.restart()
        server.stop()
    assert rows() == list(range(12))

    async def checkpoints(store: LakeStore) -> list[str]:
        return [key for key in await store.list_keys("") if key.endswith(".checkpoint.parquet")]

    assert using(cloud.url, checkpoints)


def test_a_server_uploads_what_it_acknowledged_whatever_dies(cloud: Cloud, tmp_path: Path) -> None:
    server = Server(tmp_path, server_workers=1, storage_url=cloud.url)
    server.variables = {**cloud.variables}
    with server:
        for start in range(0, 300, 100):
            server.write({"m": "cpu", "columns": {"n": list(range(start, start + 100))}})
            server.wait_for_successor("uploader", server.kill("uploader"))
        server.kill_all()
        server.restart()

        def numbers() -> list[int]:
            async def work(store: LakeStore) -> list[int]:

                import pyarrow.parquet as pq

                found: list[int] = []
                for key in await store.list_keys("default/cpu/"):
                    content = await store.read(key, 0, 1 << 20)
                    found += pq.read_table(io.BytesIO(content))["n"].to_pylist()
                return sorted(found)

            result: list[int] = using(cloud.url, work)
            return result

        wait_until(lambda: len(numbers()) >= 300, "the rows")
        assert numbers() == list(range(300))

        counted = subprocess.run(
            [*COMMAND, "lake", "count"],
            cwd=tmp_path,
            env=environment(**server.settings) | cloud.variables,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "300" in counted.stdout
        server.stop()
        assert "stopped; everything is uploaded" in server.log

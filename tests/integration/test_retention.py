"""Retention as a user meets it: `arcpipe lake expire` and the server's own process. And what it deletes in S3."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from arcpipe.compaction.compactor import Bounds, Compactor
from arcpipe.compaction.retention import Retention
from arcpipe.config.settings import WAL, Settings, Storage, StorageS3
from arcpipe.storage import MemoryBlob, open_store
from tests.support import preloaded
from tests.support.compaction import HOUR_US, NODE, OTHER_NODE, key_of, make_wal
from tests.support.lake import lake_files, numbers
from tests.support.program import environment
from tests.support.s3server import S3Bucket
from tests.support.server import Server
from tests.support.waiting import wait_until

HOUR = 3_600_000_000
DAY = 86_400
NOW = int(time.time())


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, server_workers=1, retention_days='{"db": 7}')


def expire(server: Server, *arguments: str, code: int = 0) -> str:
    done = preloaded.run("lake", "expire", *arguments, environ=environment(**server.settings))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_old_hours_are_announced_listed_and_deleted_on_request(server: Server) -> None:
    with server:
        lines = "\n".join(f"m n={days}i {NOW - days * DAY}" for days in (0, 6, 8, 30))
        assert server.post("/write?db=db&precision=s", lines.encode()).status == 204
        assert server.post("/write?db=other&precision=s", f"m n=90i {NOW - 90 * DAY}".encode()).status == 204
        wait_until(lambda: "retention deletes nothing before" in server.log, "the announcement")
        issues = server.get("/api/v1/status").json()["issues"]
        assert ("retention_waits", "info") in {(issue["code"], issue["severity"]) for issue in issues}
        server.stop()
    for path in lake_files(server.lake):
        os.utime(path, (time.time() - 3600,) * 2)
    said = expire(server)
    assert "Nothing was deleted: --yes deletes them." in said
    assert "2 files, 0.0 MB" in said
    assert len(lake_files(server.lake)) == 5
    [row] = map(json.loads, expire(server, "--json", "--yes").splitlines())
    assert (row["database"], row["measurement"], row["hours"], row["files"]) == ("db", "m", 2, 2)
    assert sorted(numbers(server.lake)) == [0, 6, 90]
    assert "is too old" in expire(server)
    assert "has no such database" in expire(server, "--database", "other", code=1)
    assert "--before needs --database" in expire(server, "--before", "2026-01-01", code=2)
    today = time.strftime("%Y-%m-%d", time.gmtime(NOW))
    assert "1 files deleted" in expire(server, "--database", "other", "--before", today, "--yes")
    assert sorted(numbers(server.lake)) == [0, 6]


def test_old_hours_in_s3_are_deleted_and_all_else_stays(tmp_path: Path, s3: S3Bucket) -> None:
    settings = Settings(
        wal=WAL(dir=str(make_wal(tmp_path))),
        storage=Storage(
            url=f"s3://{s3.bucket}/lake",
            s3=StorageS3(
                endpoint_url=s3.endpoint_url,
                access_key_id=s3.access_key_id,
                secret_access_key=s3.secret_access_key,
                region=s3.region,
                addressing_style="path",
            ),
        ),
    )
    newest = HOUR_US + 100 * 24 * HOUR
    kept = {
        key_of(1, hour_us=newest),
        key_of(1, hour_us=newest - 6 * 24 * HOUR),
        key_of(1, hour_us=newest - 9 * 24 * HOUR, node=OTHER_NODE),
        key_of(1, hour_us=newest - 9 * 24 * HOUR, database="other"),
        f".arcpipe/{key_of(1)}",
        f"_dead_letter/{key_of(1)}",
        "db/m/2026/01/01/00/notes.txt",
    }
    gone = {key_of(number, hour_us=newest - days * 24 * HOUR) for number in (1, 2) for days in (8, 9, 99)}

    async def main() -> tuple[int, list[str]]:
        store = open_store(settings.storage.url, settings.storage.s3)
        try:
            for key in kept | gone:
                await store.put(key, MemoryBlob(b"1234"))
            compactor = Compactor(settings, settings.wal.dir, NODE, store, bounds=Bounds(settle_seconds=-DAY))
            retention = Retention(store, compactor)
            limits = await retention.limits({"db": 7})
            # The newest hour is long ago, and not now: what is within 7 days and a day of it stays.
            found = [expired async for expired in retention.find({"db": newest - 7 * 24 * HOUR}) if expired.files]
            for expired in found:
                await retention.delete(expired.folder)
            assert limits == {"db": newest + HOUR + 24 * HOUR - 7 * 24 * HOUR}
            return sum(len(expired.files) for expired in found), await store.list_keys("")
        finally:
            await store.close()

    count, keys = asyncio.run(main())
    assert count == len(gone)
    assert set(keys) == kept

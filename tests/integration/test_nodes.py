"""Four nodes write one table through HAProxy, for clients that retry with keys, while each kind of node is lost.

One is killed, one is stopped for minutes and revived, one is replaced by an old copy of its WAL directory. Long.
"""

from __future__ import annotations

import asyncio
import functools
import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder

from arcpipe.compaction.compactor import Compactor
from arcpipe.config.load import load
from arcpipe.config.settings import Settings
from arcpipe.lake.folders import parse_folder
from arcpipe.storage import open_store
from arcpipe.tables import open_format
from arcpipe.tables.delta.checkpoints import options_of
from arcpipe.tables.swap import TableSwap
from arcpipe.wal.directory import WALDirectory
from tests.support.haproxy import HAPROXY, haproxy
from tests.support.http import free_port
from tests.support.program import COMMAND, environment
from tests.support.s3server import S3Bucket
from tests.support.server import Server
from tests.support.sets import long
from tests.support.stores import s3_store
from tests.support.waiting import wait_until
from tests.support.writers import Writers

pytestmark = [
    long,
    pytest.mark.timeout(1_800),
    pytest.mark.skipif(HAPROXY is None, reason="there is no haproxy here (apt-get install haproxy)"),
]

NODES = 4
STOPPED_SECONDS = 120.0  # longer than every timeout between client, proxy, node, and store
_HOUR = 1_790_000_000 // 3_600 * 3_600  # a closed one: each record has a second of it, and a tag of its own
_PAUSE_SECONDS = 0.2  # of a writer between two records
_TIMEOUT_SECONDS = 5.0  # of a client's request


class KeyedLoad(Writers):
    """Writers that send each record with a key until it is acknowledged, on a new connection for each try."""

    def __init__(self, url: str, writers: int = 4) -> None:
        super().__init__(functools.partial(self._run) for _ in range(writers))
        self._address = urlsplit(url).netloc
        self.acknowledged: list[int] = []
        self.retried: Counter[str] = Counter()

    def wait_for(self, more: int) -> None:
        enough = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) >= enough, f"{more} records")

    def _run(self) -> None:
        while not self._stop.is_set():
            number = self._next_number()
            while (problem := self._send(number)) and not self._stop.is_set():
                self.retried[problem] += 1
                time.sleep(0.05)
            if not problem:
                self.acknowledged.append(number)
            time.sleep(_PAUSE_SECONDS)

    def _send(self, number: int) -> str:
        """Return what went wrong; empty if nothing did."""
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)
        body = f"counted,tag=t{number} n={number}i {_HOUR + number % 3_600}"
        try:
            connection.request("POST", "/write?db=db&precision=s", body, {"Idempotency-Key": f'"record-{number}"'})
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()
        return "" if status == 204 else str(status)


class Cluster:
    """The nodes, their bucket, and the table that they write."""

    def __init__(self, directory: Path, bucket: S3Bucket) -> None:
        self.directory = directory
        self.store = s3_store(bucket, directory)
        more: dict[str, object] = {
            "server_workers": 1,
            "flush_max_age_seconds": 2,
            "tables_format": "delta",
            "tables_commit_interval_seconds": 2,
        }
        self.nodes = []
        for number in range(NODES):
            (directory / f"node{number}").mkdir()
            of_this = {**self.store.settings, **more, "server_port": free_port()}
            self.nodes.append(Server(directory / f"node{number}", **of_this))

    def settings(self, node: Server, **more: object) -> Settings:
        values = node.settings | more
        return load(None, {f"ARCPIPE_{name.upper()}": str(value) for name, value in values.items()})

    def read(self) -> list[int]:
        """Return the rows of the table as two readers see them, which have to agree. No node may write meanwhile."""
        storage = self.settings(self.nodes[0]).storage
        uri, options = f"{storage.url}/db/counted", options_of(storage)
        found = QueryBuilder().register("t", DeltaTable(uri, storage_options=options)).execute("SELECT n FROM t")
        first: list[int] = sorted(pa.table(found)["n"].to_pylist())
        frame = pl.scan_delta(uri, storage_options=options).select("n").collect()
        assert isinstance(frame, pl.DataFrame)
        assert first == sorted(frame["n"].to_list())
        return first

    def run(self, node: Server, *arguments: str) -> str:
        """Run a command with the settings of a node; return what it said."""
        done = subprocess.run(
            [*COMMAND, *arguments], env=environment(**node.settings), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    async def merge(self, node: Server) -> int:
        """Have a node merge the hour, as if all files were older than late requests. Returns the rows that went."""
        settings = self.settings(node, compaction_dedup=json.dumps({"db": "series_time"}))
        identity = WALDirectory(node.wal).node()
        assert identity is not None
        store = open_store(settings.storage.url, settings.storage.s3)
        swap = TableSwap(lambda: open_format(settings.tables, settings.storage, settings.wal.dir), store)
        compactor = Compactor(
            settings, str(node.wal), identity.node, store, now=lambda: time.time() + 3_600, tables=swap
        )
        folder = parse_folder(time.strftime("db/counted/%Y/%m/%d/%H", time.gmtime(_HOUR)))
        assert folder is not None
        try:
            done = await compactor.compact(folder)
            assert done is not None
            return done.superseded
        finally:
            await swap.close()
            await store.close()


@pytest.fixture
def cluster(tmp_path: Path, s3: S3Bucket) -> Iterator[Cluster]:
    made = Cluster(tmp_path, s3)
    with ExitStack() as running:
        for node in made.nodes:
            running.enter_context(node)
        yield made


def issues(node: Server) -> dict[str, str]:
    return {issue["code"]: issue["message"] for issue in json.loads(node.get("/api/v1/status").body)["issues"]}


def test_nothing_is_lost_or_doubled_whatever_becomes_of_nodes(cluster: Cluster) -> None:
    killed, stopped, restored, quiet = cluster.nodes
    with haproxy(cluster.directory, cluster.nodes) as url, KeyedLoad(url) as load:
        load.wait_for(100)
        restored.stop()
        shutil.copytree(restored.wal, cluster.directory / "backup")
        restored.restart()
        load.wait_for(100)

        killed.kill_all()
        load.wait_for(100)
        killed.restart()
        load.wait_for(100)

        os.killpg(stopped.pid, signal.SIGSTOP)
        since = time.monotonic()
        load.wait_for(100)
        wait_until(lambda: time.monotonic() - since > STOPPED_SECONDS, "two minutes", STOPPED_SECONDS + 60)
        os.killpg(stopped.pid, signal.SIGCONT)
        load.wait_for(100)

        restored.stop()
        shutil.rmtree(restored.wal)
        (cluster.directory / "backup").rename(restored.wal)
        restored.restart()
        load.wait_for(100)
        wait_until(lambda: "tables_stopped" in issues(restored), "the issue")
        assert "never issued" in issues(restored)["tables_stopped"]
        load.wait_for(100)
        for node in (killed, stopped, quiet):
            assert "tables_stopped" not in issues(node)
    print(f"{len(load.acknowledged)} acknowledged, tried again: {load.retried}")

    restored.stop()
    assert "batches that are not committed to tables" in restored.log
    # As docs/tables.md tells: it becomes a new node, and what its tables lack is imported.
    identity = WALDirectory(restored.wal).node()
    assert identity is not None
    for path in (restored.wal / "node.json", *(restored.wal / "tables").glob("[0l]*.json")):
        path.unlink()
    restored.restart()
    wait_until(lambda: "tables_stopped" not in issues(restored), "the end of the issue")
    print(cluster.run(restored, "tables", "import", "--node", identity.node))
    for node in cluster.nodes:
        node.stop()
        node.assert_log_is_shipped()
        assert list((node.wal / "tables").glob("0*.json")) == []

    verified = [
        json.loads(line) for line in cluster.run(quiet, "tables", "verify", "--json", "--all-nodes").splitlines()
    ]
    assert all(not one["lost"] and not one["orphans"] for one in verified)
    found = cluster.read()
    assert set(load.acknowledged) <= set(found)
    doubled = len(found) - len(set(found))
    print(f"{doubled} records are there twice, because a retry went to another node")
    assert doubled <= sum(load.retried.values())
    assert asyncio.run(cluster.merge(quiet)) == doubled
    assert cluster.read() == sorted(set(found))

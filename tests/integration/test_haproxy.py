"""Two nodes behind HAProxy, with the example configuration of `ops/`, writing to one bucket."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from deltalake import DeltaTable

from arcpipe.config.settings import Storage, StorageS3
from arcpipe.tables.delta.checkpoints import options_of
from tests.support.careful_load import CarefulLoad
from tests.support.haproxy import HAPROXY, haproxy
from tests.support.http import Client, free_port
from tests.support.lake import lake_rows
from tests.support.s3server import S3Bucket
from tests.support.server import Server
from tests.support.sets import long
from tests.support.stores import Store, s3_store
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="there is no haproxy here (apt-get install haproxy)")


class Cluster(NamedTuple):
    url: str
    nodes: tuple[Server, Server]
    store: Store


@pytest.fixture
def cluster(tmp_path: Path, s3: S3Bucket, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Run two nodes behind the proxy, with the settings of the test's parameter, if it has one."""
    store = s3_store(s3, tmp_path)
    nodes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        settings = {"server_workers": 1, "server_port": free_port(), **store.settings, **getattr(request, "param", {})}
        nodes.append(Server(tmp_path / name, **settings))
    one, two = nodes
    with one, two, haproxy(tmp_path, nodes) as url:
        yield Cluster(url, (one, two), store)


def check(cluster: Cluster, load: CarefulLoad) -> None:
    """Every acknowledged record is in the bucket once; what was not acknowledged at most once."""
    for node in cluster.nodes:
        node.stop()
        node.assert_log_is_shipped()
    found = [row["n"] for row in lake_rows(cluster.store.read())]
    assert len(found) == len(set(found))
    assert set(load.acknowledged) <= set(found)
    assert len(found) <= len(load.acknowledged) + len(load.failures)
    print(
        f"{len(load.acknowledged)} acknowledged, longest {load.longest_seconds:.2f} s, failed: {Counter(load.failures)}"
    )


def keyed_writes(node: Server) -> int:
    """Return the number of requests with a key that a node wrote."""
    return sum(worker["keyed_writes"] for worker in node.get("/api/v1/status").json()["instance"]["workers"])


def test_all_requests_of_a_key_go_to_one_node(cluster: Cluster) -> None:
    """So a retry is known, and each record is there once; requests with other keys go to both."""
    for number in range(24):
        body = f"keyed n={number}i {1_790_000_000 + number}".encode()
        path, headers = "/write?db=keyed&precision=s", {"Idempotency-Key": f'"key {number}"'.replace(" ", "-")}
        if number % 3 == 0:
            path, headers = f"{path}&idempotency_key=key-{number}", {}
        for _ in range(3):
            with Client(cluster.url) as client:
                assert client.request("POST", path, body, headers).status == 204
    wait_until(lambda: all(keyed_writes(node) for node in cluster.nodes), "requests with a key at both nodes")
    for node in cluster.nodes:
        node.stop()
    assert sorted(row["n"] for row in lake_rows(cluster.store.read(), "keyed")) == list(range(24))


# As docs/operations.md tells: longer than the proxy's two failed checks. Without it a request may meet the end of its
# connection.
@pytest.mark.parametrize("cluster", [{"shutdown_delay_seconds": 4}], indirect=True)
def test_a_rolling_restart_under_load_fails_no_write(cluster: Cluster) -> None:
    with CarefulLoad(cluster.url) as load:
        load.wait_for(100)
        for node in cluster.nodes:
            node.stop()
            load.wait_for(50)
            node.restart()
            load.wait_for(50)
        load.stop()
    identities = {(node.wal / "node.json").read_text().split('"node":"')[1].split('"')[0] for node in cluster.nodes}
    assert len(identities) == 2
    check(cluster, load)
    assert load.failures == []


def test_the_loss_of_a_node_costs_only_requests_in_flight(cluster: Cluster) -> None:
    """The loss of a node under load costs no more than what was in flight."""
    lost, other = cluster.nodes
    with CarefulLoad(cluster.url) as load:
        load.wait_for(100)
        wait_until(lambda: lost.segments(".wal"), "a segment")
        lost.kill_all()
        load.wait_for_acknowledged(100)
        lost.restart()
        load.wait_for_acknowledged(100)
        load.stop()
    assert other.is_running
    check(cluster, load)
    assert len(load.failures) <= 4  # one per writer


@long
@pytest.mark.parametrize("cluster", [{"tables_format": "delta", "tables_commit_interval_seconds": 0.5}], indirect=True)
def test_both_nodes_write_one_table_through_loss_and_pause(cluster: Cluster) -> None:
    """One node is killed, the other one is stopped for a while and revived: each row is in the table once."""
    one, other = cluster.nodes
    with CarefulLoad(cluster.url) as load:
        load.wait_for(100)
        one.kill_all()
        load.wait_for_acknowledged(100)
        one.restart()
        load.wait_for_acknowledged(100)
        os.killpg(other.pid, signal.SIGSTOP)
        load.wait_for_acknowledged(100)
        os.killpg(other.pid, signal.SIGCONT)
        load.wait_for_acknowledged(100)
        load.stop()
    for node in cluster.nodes:
        node.stop()
        node.assert_log_is_shipped()
    settings = {name: str(value) for name, value in cluster.store.settings.items()}
    s3 = StorageS3(
        endpoint_url=settings["storage_s3_endpoint_url"],
        region=settings["storage_s3_region"],
        access_key_id=settings["storage_s3_access_key_id"],
        secret_access_key=settings["storage_s3_secret_access_key"],
        addressing_style="path",
    )
    storage = Storage(url=settings["storage_url"], s3=s3)
    options = options_of(storage)
    uri = f"{settings['storage_url']}/default/counted"
    first = sorted(DeltaTable(uri, storage_options=options).to_pyarrow_table()["n"].to_pylist())
    second = sorted(pl.scan_delta(uri, storage_options=options).collect()["n"].to_list())
    # Requests that the stopped node held were sent again to the other one, as far as the proxy did so.
    assert first == second == sorted(row["n"] for row in lake_rows(cluster.store.read()))
    assert set(load.acknowledged) <= set(first)

"""Prometheus and vmagent write what they scrape, and it is read back through DuckDB, value for value."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tests.clients import prometheus_senders as senders
from tests.clients.prometheus_senders import SERIES, exporter, needs_prometheus, needs_vmagent
from tests.support.http import free_port
from tests.support.lake import lake_rows
from tests.support.server import Server
from tests.support.waiting import wait_until


def scraped(server: Server) -> dict[Any, float]:
    """The latest value of each series of the page, by metric and its own label."""
    found = {}
    for row in sorted(lake_rows(server.lake, "default", "prometheus"), key=lambda row: row["time"]):
        labels = json.loads(row["labels"])
        assert labels["job"] == "test"
        found[row["metric"], labels.get("path") or labels.get("le")] = row["value"]
    return found


def times_of(server: Server) -> list[int]:
    """The times of one series in the lake, in ms."""
    rows = lake_rows(server.lake, "default", "prometheus")
    return [row["time"] // 1000 for row in rows if row["metric"] == "seconds_sum"]


def wait_for_all(server: Server) -> dict[Any, float]:
    def all_there() -> dict[Any, float] | None:
        if not any(server.lake.rglob("prometheus_*.parquet")):
            return None
        found = scraped(server)
        return found if SERIES.keys() <= found.keys() else None

    found = wait_until(all_there, "all series in the lake")
    assert found is not None
    return found


def assert_page(server: Server) -> None:
    found = wait_for_all(server)
    assert {key: found[key] for key in SERIES} == SERIES
    assert math.isnan(found["temperature", None])
    texts = {
        json.loads(row["labels"]).get("text")
        for row in lake_rows(server.lake, "default", "prometheus")
        if row["metric"] == "requests_total"
    }
    assert texts == {'a "quoted" one', "plain"}


@needs_prometheus
def test_prometheus_writes_what_it_scrapes(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server, exporter() as port:
        with senders.running_prometheus(tmp_path, server.url, port):
            assert_page(server)
            metadata = server.wait_for_rows(1, "default", "prometheus_metadata")
        assert {"metric": "requests_total", "type": "counter", "help": "Requests so far."}.items() <= next(
            row for row in metadata if row["metric"] == "requests_total"
        ).items()
        server.stop()


@needs_prometheus
def test_prometheus_goes_on_after_the_server_was_killed(tmp_path: Path) -> None:
    """It repeats what was not acknowledged: each sample in its own database is in the lake."""
    with Server(tmp_path, server_workers=1, server_port=free_port()) as server, exporter() as port:
        with senders.running_prometheus(tmp_path, server.url, port) as own_port:
            wait_for_all(server)
            server.kill_all()
            server.restart()
            before = len(lake_rows(server.lake, "default", "prometheus"))
            server.wait_for_rows(before + 50, "default", "prometheus")
            scraped_at = senders.times_of("seconds_sum", own_port)
        server.stop()
    written = set(times_of(server))
    expected = {time for time in scraped_at if min(written) <= time <= max(written)}
    assert len(expected) > 5
    assert expected <= written


@needs_vmagent
def test_vmagent_writes_what_it_scrapes(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server, exporter() as port:
        with senders.running_vmagent(tmp_path, server.url, port):
            assert_page(server)
        server.stop()

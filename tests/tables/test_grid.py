"""Everything that goes wrong, at every step and every request, in every catalogue and store: each row once.

    kill, error       at each step of the committer
    zombie            stopped at each step; a successor commits what it was about to commit; then it goes on
    lost answer, 5xx, timeout, late delivery
                      of each request to the catalogue or the store, one after the other

`tests/crash/test_tables_steps.py` has kill and error for the model of a format, for Iceberg in SQLite and for Delta.
Most cells belong to the release set; those of REST need Java, and run in `make test-tables`.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from arcpipe.tables.delta.checkpoints import options_of, uri_of
from arcpipe.tables.delta.paths import root_of
from tests.crash.committer_process import Committers
from tests.crash.steps import Step
from tests.crash.test_tables_steps import CATALOGUE, OF_FORMATS, OF_THE_COMMITTER, around
from tests.support import cutting_proxy
from tests.support.cutting_proxy import CuttingProxy
from tests.support.s3proxy import LATE, FaultyProxy
from tests.support.sets import long
from tests.support.tables import OTHER_NODE
from tests.tables.grid import DATABASE, KINDS, MEASUREMENTS, Make, Place

OF_KINDS = {
    "iceberg sqlite": dict(
        itertools.chain(
            around("the metadata is written", "arcpipe.tables.iceberg.file_io:LocalFileIO.write", 1, r"metadata\.json"),
            around("the swap of the metadata", "arcpipe.tables.iceberg.sql_catalogue:SQLCatalogue._swap"),
            around("the hint is written", "arcpipe.tables.iceberg.table:write_hint"),
        )
    ),
    "iceberg postgresql": dict(
        around("the swap of the metadata", "arcpipe.tables.iceberg.sql_catalogue:SQLCatalogue._swap")
    ),
}
OF_ICEBERG = dict(
    itertools.chain(
        around("the namespace is made", CATALOGUE + "_ensure_namespace"),
        around("the manifests are staged", "arcpipe.tables.iceberg.change:Change._stage"),
    )
)
# In each run: one cell of each kind that needs nothing but Python and Debian's packages.
ALWAYS = {
    ("iceberg sqlite", "before the swap of the metadata"),
    ("delta local", "before the log entry"),
    ("delta s3", "after the log entry"),
}


def steps_of(kind: str) -> dict[str, Step]:
    format_name = KINDS[kind].format
    more = OF_ICEBERG if format_name == "iceberg" else {}
    return OF_FORMATS[format_name] | more | OF_KINDS.get(kind, {}) | OF_THE_COMMITTER


def cells(kinds: list[str]) -> Iterator[Any]:
    for kind in kinds:
        for name, step in steps_of(kind).items():
            marks = () if (kind, name) in ALWAYS else (long,)
            yield pytest.param(kind, step, marks=marks, id=f"{kind}, {name}")


# Steps


@pytest.mark.parametrize(("kind", "step"), [*cells(["iceberg rest", "iceberg postgresql", "iceberg glue"])])
@pytest.mark.parametrize("how", ["die", "fail"])
def test_rows_are_there_once_after_a_kill_or_an_error(make: Make, kind: str, step: Step, how: str) -> None:
    place = make(kind)
    assert place.commit(**{how: step}) == (-9 if how == "die" else 0)
    assert place.commit() == 0
    place.check()


@pytest.mark.parametrize(("kind", "step"), [*cells(list(KINDS))])
def test_rows_are_there_once_after_a_zombie(make: Make, zombies: Committers, kind: str, step: Step) -> None:
    """It is stopped at the step; its successor commits all that waits; then it goes on with what it remembers."""
    place = make(kind)
    with place.stopped(zombies, step) as go_on:
        assert place.commit() == 0
        assert go_on() == 0
    assert place.commit() == 0
    place.check()


def test_a_zombie_of_delta_does_not_commit_to_the_past(make: Make, zombies: Committers) -> None:
    """While it is stopped, others commit, and clean the log: the version that it is about to make is free again."""
    place = make("delta local")
    later = max((place.wal / "tables").glob("0*.json"))
    later.rename(place.wal / later.name)
    assert place.commit() == 0
    (place.wal / later.name).rename(later)
    step, is_late = OF_FORMATS["delta"]["before the log entry"], {"arcpipe.tables.delta.tables:_LATE_SECONDS": 0}
    with closing(place.tables()) as others, place.stopped(zombies, step, plant=is_late) as go_on:
        for table, seq in itertools.product(others.all_tables(), range(1, 14)):
            others.commit(table, [], OTHER_NODE, seq)
        place.world.lake.age(2 * 86_400)
        for table in others.all_tables():
            assert others.maintain(table).expired > 2
        assert go_on() == 0
    assert place.commit() == 0
    place.check()


# Requests

FAULTS = ("lost answer", "internal error", "hanging", LATE)
PARTS = 12  # of the requests of a commit: as many tests as that share them
# Seconds until a request to a REST catalogue times out: half of the time for which the proxy says nothing.
_TIMEOUT = {"arcpipe.tables.iceberg.rest_catalogue:_READ_SECONDS": 0.5}


@contextmanager
def proxied(place: Place) -> Iterator[FaultyProxy]:
    """Have the committers of a place go through a proxy, to the catalogue of REST, and to all of S3 and Glue."""
    endpoint = place.settings.get("storage_s3_endpoint_url") or place.settings["tables_iceberg_uri"]
    with FaultyProxy(str(endpoint)) as proxy:
        place.settings |= {name: proxy.url for name, value in place.settings.items() if value == endpoint}
        yield proxy
        place.settings = dict(place.real)


@long
@pytest.mark.parametrize("kind", ["iceberg rest", "iceberg glue", "delta s3"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("part", range(PARTS))
def test_rows_are_there_once_after_a_fault_of_each_request(
    make: Make, tmp_path: Path, kind: str, fault: str, part: int
) -> None:
    for number in itertools.count(part, PARTS):
        place = make(kind, f"{number}")
        with proxied(place) as proxy:
            proxy.fail_at(number, fault)
            assert place.commit(plant=_TIMEOUT) == 0
            is_over = len(proxy.seen) <= number
            proxy.deliver()
        assert place.commit() == 0
        place.check()
        if is_over:
            assert number > 8, "a commit to two tables takes more requests"
            return
        shutil.rmtree(tmp_path / f"{number}")


@pytest.mark.parametrize("fault", ["lost answer", LATE])
def test_rows_are_there_once_after_a_fault_of_the_commit_itself(make: Make, fault: str) -> None:
    """The put of a Delta log's entry: of those of the test above the one that matters most."""
    place = make("delta s3")
    with proxied(place) as proxy:
        proxy.fail_next(fault, 1, "PUT", "/_delta_log/0")
        assert place.commit() == 0
        assert proxy.injected[fault] == 1
        statuses = proxy.deliver()
    assert place.commit() == 0
    assert statuses == ([412] if fault == LATE else [])
    place.check()


@long
@pytest.mark.parametrize("fault", cutting_proxy.FAULTS)
@pytest.mark.parametrize("part", range(PARTS))
def test_rows_are_there_once_after_a_fault_of_each_message_to_postgresql(
    make: Make, tmp_path: Path, fault: cutting_proxy.Fault, part: int
) -> None:
    for number in itertools.count(part, PARTS):
        place = make("iceberg postgresql", f"{number}")
        server = urlsplit(str(place.settings["tables_iceberg_uri"]))
        assert server.hostname is not None
        assert server.port is not None
        with CuttingProxy((server.hostname, server.port)) as proxy:
            proxy.strike_at(number, fault)
            place.settings["tables_iceberg_uri"] = server._replace(netloc=f"arcpipe@127.0.0.1:{proxy.port}").geturl()
            # A transaction whose commit is late keeps its rows locked.
            assert place.commit(plant={"arcpipe.tables.iceberg.sql_catalogue:_STATEMENT_MS": 300}) == 0
            proxy.deliver()
            place.settings = dict(place.real)
            assert place.commit() == 0
            is_over = not proxy.struck
        place.check()
        if is_over:
            assert number > 8, "a commit to two tables takes more messages"
            return
        shutil.rmtree(tmp_path / f"{number}")


# Others rewrite what was committed, before it is committed again


def rewrite(place: Place, forgets: bool) -> None:
    """Have others put the rows of each table into one file: deltalake, or in Iceberg another node.

    Args:
        forgets: whether earlier states go, with their files.
    """
    for measurement in MEASUREMENTS:
        table = DATABASE, measurement
        if place.kind.format == "delta":
            uri = uri_of(place.storage, root_of(table))
            found = DeltaTable(uri, storage_options=options_of(place.storage))
            found.optimize.compact()
            if forgets:
                found.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
            continue
        with closing(place.world.open(history_hours=0)) as tables:
            old = list(tables.files(table))
            if not old:  # two tables at once: the other one's second attempt ended first
                assert place.kind.catalogue in ("rest", "postgresql", "glue")
                continue
            rows = pa.concat_tables(pq.read_table(place.handed.lake / key, partitioning=None) for key in old)
            tables.replace(table, old, [place.world.lake.put(table, rows, "merged")])
            if forgets:
                tables.maintain(table)
                assert len(place.world.load(table).metadata.snapshots) == 1


ATTEMPTED = OF_THE_COMMITTER["after the second attempt"]
NO_MARKERS = {
    "iceberg": {"arcpipe.tables.iceberg.layout:markers": "no markers"},
    "delta": {"arcpipe.tables.delta.state:State.marker": "no marker"},
}


@pytest.mark.parametrize(
    "kind", [kind if kind in ("iceberg sqlite", "delta local") else pytest.param(kind, marks=long) for kind in KINDS]
)
@pytest.mark.parametrize("looks_at_markers", [True, False])
def test_only_the_marker_knows_what_was_committed(make: Make, kind: str, looks_at_markers: bool) -> None:
    """All files were rewritten, and earlier states forgotten, between the kill and the redo.

    The control: with the look at the marker patched out, rows are doubled, and the checks of this module see it. There
    the earlier states stay: a committer that does not find its files waits for them.
    """
    place = make(kind)
    assert place.commit(die=ATTEMPTED) == -9
    rewrite(place, forgets=looks_at_markers)
    plant: dict[str, object] = {"arcpipe.tables.table_commits:TableCommits._without_present": "all"}
    plant |= {} if looks_at_markers else NO_MARKERS[KINDS[kind].format]
    assert place.commit(plant=plant) == 0
    if looks_at_markers:
        place.check_rows()
        return
    with pytest.raises(AssertionError, match="there twice"):
        place.check()

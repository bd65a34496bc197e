"""Iceberg's commits through everything that goes wrong between arcpipe, catalogue and store: each row once."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from arcpipe.disk import Disk
from arcpipe.tables.base import Conflict, NewFile, Refused, Unavailable
from tests.support.iceberg import World, glue_world, postgresql_world, rest_world, sqlite_world
from tests.support.s3proxy import FAULTS, FaultyProxy
from tests.support.s3server import S3Bucket
from tests.support.sets import long
from tests.support.tables import CPU, rows

A = "0123456789ab"
QUICK_FAULTS = ("lost answer",)


def commit_until_it_is_there(world: World, files: list[NewFile], node: str, seq: int, attempts: int = 200) -> int:
    """Commit as the committer does. Returns the number of failures."""
    tables = world.open()
    failures = 0
    for _ in range(attempts):
        try:
            marker = tables.committed(CPU, node)
            if marker is not None and marker >= seq:
                return failures
            tables.commit(CPU, files, node, seq)
        except (Conflict, Unavailable, Refused) as error:  # a fault may be a 403, and is tried again, more slowly
            print(error)
            failures += 1
            time.sleep(0.05)  # a proxy that refuses does so for half a second
    raise AssertionError(f"{attempts} attempts failed")


@pytest.fixture
def proxied_glue(s3: S3Bucket, tmp_path: Path) -> Iterator[tuple[World, FaultyProxy]]:
    """Glue behind a proxy, and the store beside it."""
    world = glue_world(s3, tmp_path)
    with FaultyProxy(s3.endpoint_url) as proxy:
        yield World(world.lake, msgspec.structs.replace(world.options, uri=proxy.url), world.properties), proxy


@pytest.fixture
def proxied_rest(iceberg_rest: str, tmp_path: Path) -> Iterator[tuple[World, FaultyProxy]]:
    world = rest_world(iceberg_rest, tmp_path)
    with FaultyProxy(iceberg_rest) as proxy:
        yield World(world.lake, msgspec.structs.replace(world.options, uri=proxy.url), world.properties), proxy


@pytest.mark.parametrize(
    "fault", [*QUICK_FAULTS, *(pytest.param(one, marks=long) for one in FAULTS if one not in QUICK_FAULTS)]
)
@pytest.mark.parametrize("first", [pytest.param(True, marks=long, id="new table"), pytest.param(False, id="old table")])
def test_rows_are_there_once_after_a_fault_of_glue(
    proxied_glue: tuple[World, FaultyProxy], fault: str, first: bool
) -> None:
    world, proxy = proxied_glue
    expected = [3, 4, 5]
    if not first:
        world.open().commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
        expected = [0, 1, 2, *expected]
    # One after another: reading the namespace or the table, changing it, …
    for skipped in range(4 if first else 3):
        proxy.fail_next("slow", skipped, "POST")
        proxy.fail_next(fault, 1, "POST")
        commit_until_it_is_there(world, [world.lake.put(CPU, rows(3), "b")], A, 2)
        assert world.numbers() == expected


@long
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_rows_are_there_once_after_a_fault_of_rest(
    proxied_rest: tuple[World, FaultyProxy], fault: str, method: str
) -> None:
    world, proxy = proxied_rest
    world.open().commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
    proxy.fail_next(fault, 1, method, "/tables/cpu")
    commit_until_it_is_there(world, [world.lake.put(CPU, rows(3), "b")], A, 2)
    assert proxy.injected[fault] == 1
    assert world.numbers() == list(range(6))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_page_of_a_proxy_is_no_answer_of_a_catalogue(
    iceberg_rest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Something between answers 200 with a page, and has passed the commit on, or not."""
    world = rest_world(iceberg_rest, tmp_path)
    world.open().commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
    send = HTTPAdapter.send
    waiting = [True]

    def page(self: HTTPAdapter, request: PreparedRequest, *args: Any, **options: Any) -> Response:
        if request.method != "POST" or not waiting:
            return send(self, request, *args, **options)
        waiting.pop()
        answer = send(self, request, *args, **options) if when == "after" else Response()
        answer.status_code, answer._content = 200, b"<html>Please log in</html>"
        return answer

    monkeypatch.setattr(HTTPAdapter, "send", page)
    assert commit_until_it_is_there(world, [world.lake.put(CPU, rows(3), "b")], A, 2) == 1
    assert not waiting
    assert world.numbers() == list(range(6))


@long
def test_rows_are_there_once_through_random_faults_of_rest(proxied_rest: tuple[World, FaultyProxy]) -> None:
    world, proxy = proxied_rest
    proxy.fail_randomly(0.2, 7)
    failures = 0
    for number in range(20):
        file = world.lake.put(CPU, rows(3 * number), f"b{number}")
        failures += commit_until_it_is_there(world, [file], A, number + 1)
    assert failures > 5
    assert world.numbers() == list(range(60))


@long
@pytest.mark.parametrize("seed", range(5))
def test_rows_are_there_once_through_random_faults_of_the_store(s3: S3Bucket, tmp_path: Path, seed: int) -> None:
    """Manifests, their list and metadata are written and read through faults, as Glue is called."""
    world = glue_world(s3, tmp_path)
    with FaultyProxy(s3.endpoint_url) as proxy:
        storage = msgspec.structs.replace(
            world.lake.storage, s3=msgspec.structs.replace(world.lake.storage.s3, endpoint_url=proxy.url)
        )
        faulty = World(
            world.lake._replace(storage=storage),
            msgspec.structs.replace(world.options, uri=proxy.url),
            world.properties,
        )
        proxy.fail_randomly(0.1, seed)
        for number in range(4):
            file = world.lake.put(CPU, rows(3 * number), f"b{number}")
            commit_until_it_is_there(faulty, [file], A, number + 1)
        assert proxy.injected
    assert world.numbers() == list(range(12))


@pytest.mark.parametrize("when", ["before", "after"])
def test_rows_are_there_once_after_a_database_lost_its_connection(
    postgresql: str, s3: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    world = postgresql_world(postgresql, s3, tmp_path)
    world.open().commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
    commit = Session.commit
    waiting = [True]

    def lost(self: Session) -> None:
        if waiting and when == "after":
            commit(self)
        if waiting:
            waiting.pop()
            raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))
        commit(self)

    monkeypatch.setattr(Session, "commit", lost)
    failures = commit_until_it_is_there(world, [world.lake.put(CPU, rows(3), "b")], A, 2)
    assert failures == 1
    assert not waiting
    assert world.numbers() == list(range(6))


def _node(world: World, files: list[tuple[Any, ...]], node: str) -> None:
    for seq, (key, size, count, metadata) in enumerate(files, 1):
        commit_until_it_is_there(world, [NewFile(key, size, count, metadata)], node, seq)


def _commit_from_all(world: World, nodes: int, commits: int) -> None:
    context = multiprocessing.get_context("spawn")
    running = []
    for number in range(nodes):
        mine = [
            tuple(world.lake.put(CPU, rows(10 * (number * commits + one), 2), f"n{number}b{one}"))
            for one in range(commits)
        ]
        running.append(context.Process(target=_node, args=(world, mine, f"node{number}")))
    for process in running:
        process.start()
    for process in running:
        process.join(300)
    assert [process.exitcode for process in running] == [0] * nodes
    assert world.numbers() == sorted(10 * one + two for one in range(nodes * commits) for two in range(2))
    assert world.open().markers(CPU) == {f"node{number}": commits for number in range(nodes)}


def test_two_processes_commit_to_one_table_at_once(tmp_path: Path) -> None:
    _commit_from_all(sqlite_world(tmp_path), 2, 5)


@long
def test_four_nodes_commit_to_one_table_in_postgresql(postgresql: str, s3: S3Bucket, tmp_path: Path) -> None:
    _commit_from_all(postgresql_world(postgresql, s3, tmp_path), 4, 10)


@long
def test_four_nodes_commit_to_one_table_of_a_rest_catalogue(iceberg_rest: str, tmp_path: Path) -> None:
    _commit_from_all(rest_world(iceberg_rest, tmp_path), 4, 10)


# What a check says.


def test_a_catalogue_that_does_not_answer_is_named(tmp_path: Path) -> None:
    world = rest_world("http://127.0.0.1:9", tmp_path)
    with pytest.raises(Unavailable, match=r"the catalogue at http://127\.0\.0\.1:9 does not work"):
        world.open().check()


def test_a_missing_bucket_is_named(s3: S3Bucket, tmp_path: Path) -> None:
    world = glue_world(s3, tmp_path)
    options = msgspec.structs.replace(world.options, warehouse="s3://no-such-bucket-here/x")
    with pytest.raises(
        Unavailable, match=r"cannot write to tables\.iceberg\.warehouse, s3://no-such-bucket-here/x: .*no"
    ):
        World(world.lake, options, world.properties).open().check()


def test_a_password_is_in_no_text(postgresql: str, s3: S3Bucket, tmp_path: Path) -> None:
    world = postgresql_world(postgresql, s3, tmp_path)
    uri = world.options.uri.replace("arcpipe@", "arcpipe:hidden1@").replace("/t", "/no_such_")
    options = msgspec.structs.replace(world.options, uri=uri, password="hidden2")
    with pytest.raises(Unavailable, match="the catalogue at 127") as caught:
        World(world.lake, options, world.properties).open().check()
    assert "hidden" not in f"{caught.value} {options!r}"


def test_a_warehouse_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"cannot write to tables\.iceberg\.warehouse, file:///.*/file/x"):
        sqlite_world(tmp_path, warehouse=f"file://{tmp_path}/file/x").open().check()


def test_a_new_table_is_durable_before_the_catalogue_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut between the two left a table whose metadata was an empty file."""
    world = sqlite_world(tmp_path)
    synced: list[str] = []
    fsync = Disk.fsync

    def recorded(self: Disk, fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(self, fd)

    monkeypatch.setattr(Disk, "fsync", recorded)
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0), "b0")], A, 1)
    tables.close()
    made = [one.name for one in tmp_path.rglob("*.metadata.json")]
    assert sorted(one[:6] for one in made) == ["00000-", "00001-"]
    for name in made:
        assert any(name in one for one in synced), (name, synced)


def test_tables_that_a_lost_catalogue_knew_are_not_begun_anew(tmp_path: Path) -> None:
    world = sqlite_world(tmp_path)
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
    tables.close()
    (world.lake.wal_dir / "tables" / "iceberg.db").unlink()
    file = world.lake.put(CPU, rows(3), "b")
    with pytest.raises(Refused, match=r"has tables that the catalogue .* does not know"):
        world.open().commit(CPU, [file], A, 2)
    hint = next(world.lake.root.glob("_iceberg/*/*/metadata/version-hint.text"))
    catalogue = world.catalogue()  # as docs/tables.md tells
    catalogue.create_namespace("default")
    catalogue.register_table(("default", "cpu"), f"file://{hint.parent}/{hint.read_text()}.metadata.json")
    world.open().commit(CPU, [file], A, 2)
    assert world.numbers() == list(range(6))

"""A SQLite catalogue that went back in time is noticed; one that a crash left behind its files goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcpipe.tables.base import Older
from arcpipe.tables.iceberg import table as table_module
from arcpipe.tables.iceberg.sql_catalogue import SQLCatalogue
from arcpipe.tables.iceberg.table import IcebergTables
from tests.support.iceberg import World, sqlite_world
from tests.support.tables import CPU, rows

A, B = "a" * 12, "b" * 12


@pytest.fixture
def world(tmp_path: Path) -> World:
    return sqlite_world(tmp_path)


def commit(world: World, number: int, node: str = A) -> None:
    tables = world.open()
    try:
        tables.commit(CPU, [world.lake.put(CPU, rows(number * 10), f"b{number}")], node, number)
    finally:
        tables.close()


def catalogue_of(world: World) -> Path:
    return world.lake.wal_dir / "tables" / "iceberg.db"


def back_up(world: World) -> Callable[[], None]:
    copy = world.lake.wal_dir / "copy.db"
    shutil.copy(catalogue_of(world), copy)

    def restore() -> None:
        shutil.copy(copy, catalogue_of(world))

    return restore


def refused(world: World, work: Callable[[IcebergTables], Any]) -> str:
    tables = world.open()
    try:
        with pytest.raises(Older) as caught:
            work(tables)
        return str(caught.value)
    finally:
        tables.close()


@pytest.mark.parametrize("later", [1, 3])
def test_a_catalogue_that_was_restored_is_refused(world: World, later: int) -> None:
    commit(world, 1)
    restore = back_up(world)
    for number in range(later):
        commit(world, 2 + number)
    restore()
    file = world.lake.put(CPU, rows(90), "b9")
    for work in (
        lambda tables: tables.check(),
        lambda tables: tables.committed(CPU, A),
        lambda tables: tables.commit(CPU, [file], A, 9),
        lambda tables: tables.remove(CPU, [file.key]),
    ):
        assert "the catalogue was restored from an old copy" in refused(world, work)


def test_a_catalogue_that_lacks_even_its_metadata_file_is_refused(world: World) -> None:
    """The metadata that it names was deleted by later commits."""
    commit(world, 1)
    restore = back_up(world)
    commit(world, 2)
    restore()
    hint = next(world.lake.root.rglob("version-hint.text")).read_text()
    for path in world.lake.root.rglob("*.metadata.json"):
        if not path.name.startswith(hint):
            path.unlink()
    assert "restored from an old copy" in refused(world, lambda tables: tables.committed(CPU, A))


def test_another_catalogue_of_the_same_lake_is_noticed(world: World) -> None:
    """As many commits, but others."""
    commit(world, 1)
    restore = back_up(world)
    commit(world, 2)
    ours = catalogue_of(world).read_bytes()
    hint = next(world.lake.root.rglob("version-hint.text"))
    hint.unlink()
    restore()
    commit(world, 3, B)
    catalogue_of(world).write_bytes(ours)
    assert "another copy of it is in use" in refused(world, lambda tables: tables.committed(CPU, A))


def test_a_commit_that_was_cut_short_before_the_catalogue_is_no_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metadata file is there, with the next version, and was never committed."""
    commit(world, 1)

    def die(self: SQLCatalogue, *_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(SQLCatalogue, "_swap", die)
        with pytest.raises(SystemExit):
            commit(world, 2)
    assert len(list(world.lake.root.rglob("00002-*.metadata.json"))) == 1
    commit(world, 2)
    assert len(list(world.lake.root.rglob("00002-*.metadata.json"))) == 2
    commit(world, 3)
    assert len(world.numbers()) == 9


def test_a_commit_that_was_cut_short_before_the_hint_is_no_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(world, 1)

    def die(location: str) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(table_module, "write_hint", die)
        with pytest.raises(SystemExit):
            commit(world, 2)
    tables = world.open()
    tables.check()
    assert tables.committed(CPU, A) == 2
    tables.close()
    commit(world, 3)
    assert len(world.numbers()) == 9


def test_a_commit_between_the_two_looks_is_no_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process commits, and writes the hint, after the catalogue was asked."""
    commit(world, 1)
    find = SQLCatalogue.location
    asked = 0

    def overtaken(self: SQLCatalogue, identifier: tuple[str, str]) -> str | None:
        nonlocal asked
        found = find(self, identifier)
        asked += 1
        if asked == 1:
            commit(world, 2)
        return found

    monkeypatch.setattr(SQLCatalogue, "location", overtaken)
    tables = world.open()
    assert tables.committed(CPU, A) == 2
    tables.close()


def test_a_table_that_was_dropped_is_made_anew(world: World) -> None:
    for number in range(1, 4):
        commit(world, number)
    world.catalogue().drop_table(world.identifier())
    tables = world.open()
    assert tables.committed(CPU, A) is None
    assert tables.left_behind(CPU, A) == 3
    assert tables.left_behind(CPU, B) is None
    tables.check()
    tables.close()
    commit(world, 4)
    commit(world, 5)
    assert len(world.numbers()) == 6


def test_it_goes_on_after_the_tables_are_registered_anew(world: World) -> None:
    """As docs/tables.md tells."""
    commit(world, 1)
    restore = back_up(world)
    commit(world, 2)
    restore()
    assert refused(world, lambda tables: tables.check())
    catalogue = world.catalogue()
    folder = next(world.lake.root.rglob("version-hint.text")).parent
    version = (folder / "version-hint.text").read_text()
    catalogue.drop_table(("default", "cpu"))
    catalogue.register_table(("default", "cpu"), f"file://{folder}/{version}.metadata.json")
    commit(world, 3)
    assert len(world.numbers()) == 9

"""Several tables are committed to at once: never more than the format allows, and a table by one at a time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from arcpipe.tables.base import Committed, NewFile, TableName, Unavailable
from arcpipe.tables.committer import Bounds, Foreign
from tests.support.commits import Block, Handed, Working, in_tables
from tests.support.table_model import ModelTables

TABLES = [("db", f"m{number}") for number in range(12)]


class Watched(ModelTables):
    """Tables that note who is in a commit at the same time."""

    at_once = 4

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.together = threading.Barrier(self.at_once)
        self.waits = False
        self.inside: Counter[TableName] = Counter()
        self.most = 0
        self.order: list[tuple[TableName, int]] = []
        self._lock = threading.Lock()

    def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
        with self._lock:
            self.inside[table] += 1
            self.most = max(self.most, self.inside.total())
            assert self.inside[table] == 1, "two threads are in one table"
            self.order.append((table, seq))
        if self.waits:
            self.together.wait(60)  # it ends only if as many are there as may be
        try:
            return super().commit(table, files, node, seq)
        finally:
            with self._lock:
                self.inside[table] -= 1

    def _write(self, table: TableName, version: int, content: dict[str, object]) -> None:
        path = self._path(table)
        path.mkdir(parents=True, exist_ok=True)
        super()._write(table, version, content)


@pytest.fixture
def handed(tmp_path: Path) -> Handed:
    return Handed(tmp_path)


def work(handed: Handed, tables: ModelTables, bounds: Bounds = Bounds()) -> Working:  # noqa: B008
    return Working(handed.directory.path, handed.lake, tables, bounds)


def test_as_many_tables_as_the_format_allows_are_in_a_commit(handed: Handed, tmp_path: Path) -> None:
    tables = Watched(tmp_path / "tables")
    tables.waits = True
    handed.batch(TABLES)
    assert work(handed, tables).round() == (12, 12, 24, 0, 0)
    assert tables.most == 4
    assert in_tables(tables) == sorted(handed.keys)
    assert handed.files.names() == []


def test_the_numbers_of_a_table_come_in_their_order(handed: Handed, tmp_path: Path) -> None:
    """With commits of one file each."""
    tables = Watched(tmp_path / "tables")
    for _ in range(3):
        handed.batch(TABLES[:6])
    assert work(handed, tables, Bounds(commit_files=1)).round() == (18, 18, 36, 0, 0)
    for table in TABLES[:6]:
        seqs = [seq for one, seq in tables.order if one == table]
        assert seqs == sorted(seqs)
        assert len(seqs) == 3


def test_footers_in_memory_are_bounded_over_all_tables(
    handed: Handed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Watched(tmp_path / "tables")
    handed.batch(TABLES, files=3)
    assert work(handed, tables, Bounds(commit_files=6)).round().commits == 12
    assert tables.most <= 2
    assert in_tables(tables) == sorted(handed.keys)


def test_a_table_that_fails_keeps_its_commit_file_and_no_other(handed: Handed, tmp_path: Path) -> None:
    class Failing(Watched):
        def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
            if table == TABLES[3]:
                raise Unavailable("not now")
            return super().commit(table, files, node, seq)

    handed.batch(TABLES[:3])
    handed.batch(TABLES)
    handed.batch(TABLES[4:])
    working = work(handed, Failing(tmp_path / "tables"))
    assert working.round() == (11, 22, 44, 1, 1)
    assert len(handed.files.names()) == 1
    assert working[Block.WAITING_BATCHES] == 1
    assert work(handed, Watched(tmp_path / "tables")).round() == (1, 1, 2, 0, 0)


def test_a_marker_that_was_never_issued_stops_all_tables(handed: Handed, tmp_path: Path) -> None:
    """Those that are in a commit end it; no other one begins."""
    tables = Watched(tmp_path / "tables")
    handed.batch(TABLES)
    tables.commit(TABLES[0], [], handed.node, 99 << 32 | 5)
    with pytest.raises(Foreign, match="never issued"):
        work(handed, tables).round()
    assert in_tables(tables) == []
    assert tables.inside.total() == 0
    assert len(handed.files.names()) == 1


def test_two_folders_of_one_table_are_no_two_tables(handed: Handed, tmp_path: Path) -> None:
    """As after the format was changed: names are encoded in another way."""
    tables = Watched(tmp_path / "tables")
    handed.batch([("d b", "m")])
    key = next(iter(handed.keys))
    batch = handed.files.names()[0]
    content = handed.files.read(batch)
    assert content is not None
    other = key.replace("d%20b", "d~20b")
    (handed.lake / other).parent.mkdir(parents=True)
    (handed.lake / other).write_bytes((handed.lake / key).read_bytes())
    assert handed.handover.hand_over("0123456789ab-x", "file:///", {other: content.tables[0].files[0]})
    assert work(handed, tables).round()[:2] == (2, 2)
    assert in_tables(tables) == sorted([key, other])

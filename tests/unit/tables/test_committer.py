"""Rounds of the committer, with the tables of the tests: what is committed, what waits, and why."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables as Settings
from arcpipe.errors import DamagedFile
from arcpipe.lake.footers import find_footer
from arcpipe.lake.keys import Hidden, encode_name
from arcpipe.storage import local_files
from arcpipe.tables import states, table_commits
from arcpipe.tables.base import Committed, Conflict, NewFile, TableName, Unavailable
from arcpipe.tables.committer import Bounds, Foreign
from arcpipe.tables.delta.tables import DeltaTables
from arcpipe.tables.pending import Blocked
from tests.support.commits import Block, Handed, Working, in_tables
from tests.support.compaction import NODE, OTHER_NODE, file_bytes, key_of, put, table_of
from tests.support.table_model import ModelTables


@pytest.fixture
def handed(tmp_path: Path) -> Handed:
    return Handed(tmp_path)


@pytest.fixture
def tables(tmp_path: Path) -> ModelTables:
    return ModelTables(tmp_path / "tables")


def work(handed: Handed, tables: ModelTables, bounds: Bounds = Bounds()) -> Working:  # noqa: B008
    return Working(handed.directory.path, handed.lake, tables, bounds)


def test_all_batches_of_a_table_share_one_commit(handed: Handed, tables: ModelTables) -> None:
    for _ in range(5):
        handed.batch([("db", "m"), ("db", "other")], files=2)
    working = work(handed, tables)
    assert working.round() == (2, 20, 40, 0, 0)
    assert in_tables(tables) == sorted(handed.keys)
    assert tables.load(("db", "m"))[0] == 1  # type: ignore[index]
    assert handed.files.names() == []
    assert working.round() == (0, 0, 0, 0, 0)


def test_the_marker_is_the_highest_number_of_the_table(handed: Handed, tables: ModelTables) -> None:
    handed.batch([("db", "m"), ("db", "other")])
    handed.batch([("db", "m")])
    first, second = (name.seq for name in handed.files.names())
    work(handed, tables).round()
    assert tables.markers(("db", "m")) == {handed.node: second}
    assert tables.markers(("db", "other")) == {handed.node: first}


def test_files_that_a_marker_covers_are_not_added_again(handed: Handed, tables: ModelTables, tmp_path: Path) -> None:
    """As after a crash between the commit and the removal of the commit file."""
    handed.batch()
    shutil.copytree(tmp_path / "wal", tmp_path / "before")
    work(handed, tables).round()
    shutil.rmtree(tmp_path / "wal")
    (tmp_path / "before").rename(tmp_path / "wal")
    assert work(handed, tables).round() == (0, 0, 0, 0, 0)
    assert in_tables(tables) == sorted(handed.keys)
    assert handed.files.names() == []


def test_a_commit_file_stays_while_its_batch_is_not_forgotten(handed: Handed, tables: ModelTables) -> None:
    batch = handed.batch()
    manifest = Path(handed.directory.batches, f"{batch}.uploaded.json")
    manifest.touch()
    working = work(handed, tables)
    assert working.round() == (1, 1, 2, 0, 0)
    assert len(handed.files.names()) == 1
    assert working[Block.WAITING_BATCHES] == 0
    manifest.unlink()
    assert work(handed, tables).round() == (0, 0, 0, 0, 0)
    assert handed.files.names() == []


def test_a_table_that_fails_waits_while_others_go_on(handed: Handed, tables: ModelTables) -> None:
    handed.batch([("db", "m"), ("db", "other")])
    handed.batch([("db", "m"), ("db", "other")])

    class Failing(ModelTables):
        def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
            if table == ("db", "m"):
                raise Unavailable("the catalogue does not answer")
            return super().commit(table, files, node, seq)

    working = work(handed, Failing(tables.root))
    once, again = working.rounds(True, False)
    assert once == (1, 2, 4, 2, 1)
    assert again == (0, 0, 0, 2, 1)
    assert working[Block.FAILURES] == 1  # it was not its turn in the second round
    assert (working[Block.FAILING], working[Block.WAITING_BATCHES]) == (1, 2)
    state = states.read(handed.files.folder).listed[0]
    assert (state.measurement, state.kind, state.problem) == ("m", "unavailable", "the catalogue does not answer")
    assert state.waiting_files == 2
    assert work(handed, tables).round() == (1, 2, 4, 0, 0)
    assert in_tables(tables) == sorted(handed.keys)


def test_a_lost_answer_commits_nothing_twice(handed: Handed, tables: ModelTables) -> None:
    handed.batch()

    class Losing(ModelTables):
        def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
            super().commit(table, files, node, seq)
            raise Unavailable("the answer is lost")

    assert work(handed, Losing(tables.root)).round() == (0, 0, 0, 1, 1)
    assert work(handed, tables).round() == (0, 0, 0, 0, 0)
    assert in_tables(tables) == sorted(handed.keys)


def test_conflicts_are_tried_again_at_once_and_not_for_ever(handed: Handed, tables: ModelTables) -> None:
    """Somebody else commits between each read of the table and the commit on it."""
    handed.batch()
    others: list[int] = []
    numbers = itertools.count(1)

    def overtake() -> None:
        others.append(1)
        if len(others) < 4:
            other = ModelTables(tables.root)
            other.commit(("db", "m"), [], "other", next(numbers))

    working = work(handed, ModelTables(tables.root, overtake))
    assert working.round() == (1, 1, 2, 0, 0)
    assert working[Block.CONFLICTS] == 3
    assert len(working.sleeps) == 3
    others.clear()
    handed.batch()
    working = work(handed, ModelTables(tables.root, overtake), bounds=Bounds(attempts=2))
    assert working.round() == (0, 0, 0, 1, 1)
    assert len(others) == 2


def test_a_table_that_no_file_can_fit_is_refused_with_its_reason(handed: Handed, tables: ModelTables) -> None:
    """Of somebody else, with other times: only columns of senders have siblings."""
    tables._write(("db", "m"), 1, {"files": [], "markers": {}, "types": {"time": "i64"}})
    handed.batch()
    handed.batch([("db", "other")])
    working = work(handed, tables)
    assert working.round() == (1, 1, 2, 1, 1)
    assert working[Block.REFUSED] == 1
    [state] = [one for one in states.read(handed.files.folder).listed if one.kind]
    assert state.kind == "refused"
    assert "the column 'time' is i64 in the table and time in" in state.problem


def test_an_object_that_is_gone_is_waited_for_until_it_is_let_go(handed: Handed, tables: ModelTables) -> None:
    handed.batch(files=3)
    key = sorted(handed.keys)[1]
    data = (handed.lake / key).read_bytes()
    (handed.lake / key).unlink()
    working = work(handed, tables)
    assert working.round() == (0, 0, 0, 1, 1)
    assert working[Block.MISSING] == 1
    assert "1 of 3 files cannot be committed" in states.read(handed.files.folder).listed[0].problem
    (handed.lake / key).write_bytes(data[:-5])
    assert work(handed, tables).round().failed == 1
    (handed.lake / key).write_bytes(data)
    assert work(handed, tables).round() == (1, 3, 6, 0, 0)


def test_files_that_are_left_out_by_wish_do_not_hold_the_others_back(
    handed: Handed, tables: ModelTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arcpipe.tables.committer import Committer

    handed.batch(files=3)
    key = sorted(handed.keys)[1]
    (handed.lake / key).unlink()
    init = Committer.__init__

    def skipping(self: Committer, *arguments: object, **options: object) -> None:
        init(self, *arguments, **options)  # type: ignore[arg-type]
        self.commits.skip_missing = True

    monkeypatch.setattr(Committer, "__init__", skipping)
    assert work(handed, tables).round() == (1, 2, 4, 0, 0)
    assert in_tables(tables) == sorted(handed.keys - {key})


def test_a_marker_that_was_never_issued_stops_everything(handed: Handed, tables: ModelTables) -> None:
    handed.batch([("db", "a"), ("db", "m")])
    tables.commit(("db", "m"), [], handed.node, 99 << 32 | 5)
    with pytest.raises(Foreign, match=r"never issued .* an old copy"):
        work(handed, tables).round()
    assert in_tables(tables) == []  # not even of the other table
    assert len(handed.files.names()) == 1


def test_a_commit_file_that_cannot_be_read_holds_back_later_ones(handed: Handed, tables: ModelTables) -> None:
    for _ in range(3):
        handed.batch()
    names = handed.files.names()
    path = Path(handed.files.path(names[1].filename))
    data = path.read_bytes()
    path.unlink()
    path.mkdir()  # a read of it fails
    with pytest.raises(Blocked, match="cannot be read"):
        work(handed, tables).round()
    assert tables.markers(("db", "m")) == {}  # all markers are checked before the first commit
    path.rmdir()
    path.write_bytes(data[:-1])
    with pytest.raises(DamagedFile):
        work(handed, tables).round()
    path.write_bytes(data)
    assert work(handed, tables).round() == (1, 3, 6, 0, 0)


def test_what_came_before_a_damaged_commit_file_is_committed(handed: Handed, tables: ModelTables) -> None:
    working = work(handed, tables)
    damaged: list[tuple[Path, bytes]] = []

    def damage() -> None:
        """Let two more batches follow, the second one damaged, after the first round."""
        handed.batch()
        handed.batch()
        path = Path(handed.files.path(handed.files.names()[-1].filename))
        damaged.append((path, path.read_bytes()))
        path.write_bytes(path.read_bytes()[:-2])

    handed.batch()
    with pytest.raises(DamagedFile):
        working.rounds(True, True, between=damage)
    assert len(in_tables(tables)) == 2
    damaged[0][0].write_bytes(damaged[0][1])
    assert work(handed, tables).round().files == 1
    assert in_tables(tables) == sorted(handed.keys)


def test_chunks_and_commits_are_bounded(handed: Handed, tables: ModelTables) -> None:
    for _ in range(6):
        handed.batch([("db", "m"), ("db", "other")], files=3)
    working = work(handed, tables, bounds=Bounds(chunk_files=12, commit_files=4))
    assert working.round() == (12, 36, 72, 0, 0)
    assert in_tables(tables) == sorted(handed.keys)
    assert tables.load(("db", "m"))[0] == 6  # type: ignore[index]


def test_a_table_that_was_dropped_is_made_anew(handed: Handed, tables: ModelTables) -> None:
    handed.batch()
    working = work(handed, tables)
    working.round()
    tables.drop(("db", "m"))
    handed.batch()
    assert work(handed, tables).round() == (1, 1, 2, 0, 0)
    assert len(in_tables(tables)) == 1


def test_files_of_a_table_without_a_marker_are_not_added_twice(handed: Handed, tables: ModelTables) -> None:
    """Somebody replaced the table by one with the same files, and its properties are gone."""
    handed.batch()
    handed.batch()
    work(handed, tables).round()
    version, content = tables.load(("db", "m"))  # type: ignore[misc]
    tables._write(("db", "m"), version + 1, content | {"markers": {}})
    handed.handover._sizes.clear()
    again = Handed(handed.base / "again", handed.lake)
    again.batch()  # the key of the first one
    again.number = 5
    again.batch()
    assert Working(again.directory.path, again.lake, tables).round().files == 1
    assert len(in_tables(tables)) == 3


def test_a_name_that_was_cut_comes_from_the_footer(handed: Handed, tables: ModelTables) -> None:
    long_name = "ü" * 22
    assert "~" in encode_name(long_name)
    handed.batch([("db", long_name), ("d/b", "a b")])
    assert work(handed, tables).round().commits == 2
    assert tables.markers(("db", long_name)).keys() == {handed.node}
    assert tables.markers(("d/b", "a b")).keys() == {handed.node}


def test_two_nodes_commit_to_one_table(tmp_path: Path, tables: ModelTables) -> None:
    nodes = [Handed(tmp_path / node, tmp_path / "lake", node * 12) for node in "ab"]
    for _ in range(3):
        for one in nodes:
            one.batch()
            assert work(one, tables).round().files == 1
    assert in_tables(tables) == sorted(nodes[0].keys | nodes[1].keys)
    assert set(tables.markers(("db", "m"))) == {"a" * 12, "b" * 12}


def test_the_state_of_tables_can_be_read_by_others(handed: Handed, tables: ModelTables) -> None:
    handed.batch()
    work(handed, tables).round()
    content = json.loads(Path(handed.files.folder, "state.json").read_text())
    assert content["tables"] == 1
    assert content["listed"][0]["commits"] == 1
    assert states.read(handed.files.folder).listed[0].snapshot == 1
    Path(handed.files.folder, "state.json").write_text("{")
    assert states.read(handed.files.folder) == states.TablesState()


def test_a_node_with_many_files_is_not_overtaken_for_ever(
    handed: Handed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node commits whenever a footer is read: the more files, the more often."""
    other = DeltaTables(Settings(format="delta"), Storage(url=f"file://{handed.lake}"))
    handed.batch()
    tables = DeltaTables(Settings(format="delta"), Storage(url=f"file://{handed.lake}"))
    Working(handed.directory.path, handed.lake, tables).round()
    for _ in range(3):
        handed.batch(files=20)
    seqs, one_by_one = itertools.count(1), asyncio.Lock()

    async def overtaken(*arguments: Any) -> Any:
        async with one_by_one:
            await asyncio.to_thread(other.commit, ("db", "m"), [NewFile(*_file(handed))], OTHER_NODE, next(seqs))
        return await find_footer(*arguments)

    _file(handed)
    monkeypatch.setattr(table_commits, "find_footer", overtaken)
    tables = DeltaTables(Settings(format="delta"), Storage(url=f"file://{handed.lake}"))
    working = Working(handed.directory.path, handed.lake, tables)
    assert working.round() == (1, 60, 120, 0, 0)
    assert working[Block.CONFLICTS] <= 1
    other.close()


def test_a_marker_is_durable_before_commit_files_are_removed_by_it(
    handed: Handed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committer died after the name of its commit was there, and before that was synced."""
    tables = DeltaTables(Settings(format="delta"), Storage(url=f"file://{handed.lake}"))
    handed.batch()
    Working(handed.directory.path, handed.lake, tables).round()
    tables.close()
    synced: list[str] = []
    monkeypatch.setattr(local_files, "sync_directory", synced.append)
    tables = DeltaTables(Settings(format="delta"), Storage(url=f"file://{handed.lake}"))
    assert tables.committed(("db", "m"), NODE) is not None
    assert f"{handed.lake}/db/m/_delta_log" in synced
    synced.clear()
    assert tables.committed(("db", "m"), NODE) is not None
    assert synced == []
    tables.close()


def _file(handed: Handed) -> tuple[str, int, int, Any]:
    """Describe a file of another node."""
    key = key_of(1, node=OTHER_NODE)
    path = handed.lake / key
    if not path.exists():
        put(handed.lake, key, file_bytes(table_of([{"time": 0, "host": "b", "n": -1}]), handed.base, "db", "m"))
    return key, path.stat().st_size, 1, pq.read_metadata(path)


def test_a_table_that_others_commit_to_is_tried_in_the_next_round(handed: Handed, tables: ModelTables) -> None:
    class Contested(ModelTables):
        conflicts = 0

        def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
            self.conflicts += 1
            if self.conflicts <= Bounds().attempts:
                raise Conflict("somebody else committed first")
            return super().commit(table, files, node, seq)

    handed.batch()
    rounds = work(handed, Contested(tables.root)).rounds(False, False)
    assert [(one.commits, one.failed) for one in rounds] == [(0, 1), (1, 0)]


SPACED = ("db", "a b")


def test_two_folders_of_one_table_are_committed_in_the_order_of_their_batches(tmp_path: Path) -> None:
    """A batch that was planned before the format changed has another folder, and may end after younger ones."""
    handed, tables = Handed(tmp_path), ModelTables(tmp_path / "tables")
    ways: tuple[Hidden, ...] = ("._", "._~", "._")
    for hidden in ways:
        handed.batch([SPACED], hidden=hidden)
    assert len({key.split("/")[1] for key in handed.keys}) == 2
    assert Working(handed.directory.path, handed.lake, tables).round().waiting == 0
    assert in_tables(tables) == sorted(handed.keys)


def test_a_folder_that_waits_holds_back_the_other_of_its_table(tmp_path: Path) -> None:
    """A marker says that everything up to it is there."""
    handed, tables = Handed(tmp_path), ModelTables(tmp_path / "tables")
    handed.batch([SPACED], hidden="._")
    [missing] = handed.keys
    handed.batch([SPACED], hidden="._~")
    elsewhere = (handed.lake / missing).rename(tmp_path / "elsewhere")
    working = Working(handed.directory.path, handed.lake, tables)
    assert working.round().waiting == 2
    assert in_tables(tables) == []
    elsewhere.rename(handed.lake / missing)
    assert working.round().waiting == 0
    assert in_tables(tables) == sorted(handed.keys)

"""Delta tables on real files and a real S3 server: what commits do, and what readers that are not ours see."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field, Schema, write_deltalake
from deltalake.schema import PrimitiveType

from arcpipe.config.settings import Storage
from arcpipe.errors import StorageError
from arcpipe.storage.local import LocalStore
from arcpipe.tables.base import (
    Conflict,
    Dropped,
    NewFile,
    Refused,
    TableError,
    TableName,
    Unavailable,
    UnreadableTables,
)
from arcpipe.tables.delta.checkpoints import options_of, uri_of
from arcpipe.tables.delta.log import Log
from arcpipe.tables.delta.paths import root_of
from arcpipe.tables.delta.state import State
from arcpipe.tables.delta.tables import DeltaTables
from tests.support.delta import CPU, DeltaLake, local_lake, rows_of, s3_lake, s3_storage
from tests.support.s3proxy import FaultyProxy
from tests.support.s3server import S3Bucket
from tests.support.waiting import wait_until


@pytest.fixture(params=["local", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeltaLake]:
    made = local_lake(tmp_path) if request.param == "local" else s3_lake(request.getfixturevalue("s3"), tmp_path)
    yield made
    made.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[DeltaLake]:
    made = local_lake(tmp_path)
    yield made
    made.close()


def numbers(lake: DeltaLake, table: TableName = CPU) -> list[int]:
    """The rows of a table, as two readers see them."""
    rows = sorted(row["n"] for row in lake.rows_by_deltalake(table, "n"))
    assert sorted(row["n"] for row in lake.rows_by_polars(table)) == rows
    return rows


def test_commits_add_files_and_the_marker_at_once(lake: DeltaLake) -> None:
    tables = lake.open()
    tables.check()
    assert tables.committed(CPU, "n1") is None
    assert lake.listed() == []
    done = tables.commit(CPU, [lake.file(rows_of(0)), lake.file(rows_of(10))], "n1", 5)
    assert done == (5, 0, 2, True)
    done = tables.commit(CPU, [lake.file(rows_of(20))], "n2", 1 << 40)
    assert done == (1 << 40, 1, 1, False)
    assert numbers(lake) == list(range(30))
    assert tables.markers(CPU) == {"n1": 5, "n2": 1 << 40}
    assert [tables.committed(CPU, node) for node in ("n1", "n2", "n3")] == [5, 1 << 40, None]
    assert lake.delta().transaction_version("arcpipe.node.n2") == 1 << 40
    assert sorted(tables.files(CPU)) == [key for key in lake.listed() if key.endswith("0.parquet")]
    assert tables.all_tables() == [CPU]
    assert [(column.name, column.type) for column in tables.columns(CPU)] == [
        ("time", "time"),
        ("host", "str"),
        ("n", "i64"),
        ("v", "f64"),
    ]


def test_a_marker_that_is_there_stops_a_second_commit(lake: DeltaLake) -> None:
    file = lake.file(rows_of(0))
    lake.open().commit(CPU, [file], "n1", 7)
    for tables in (lake.open(), lake.open()):
        for seq in (7, 6):
            assert tables.commit(CPU, [file], "n1", seq) == (7, 0, 0, False)
    assert numbers(lake) == list(range(10))


def test_a_table_opens_from_its_checkpoints(lake: DeltaLake) -> None:
    tables = lake.open()
    for seq in range(1, 25):
        tables.commit(CPU, [lake.file(rows_of(seq * 10, 2))], "n1", seq)
    tables.commit(CPU, [lake.file([{"n": 1000, "extra": "x"}])], "n2", 3)
    log = [key.rpartition("/")[2] for key in lake.listed("db/cpu/_delta_log/")]
    assert [name for name in log if "checkpoint" in name] == [
        "00000000000000000010.checkpoint.parquet",
        "00000000000000000020.checkpoint.parquet",
        "_last_checkpoint",
    ]
    # What came before the checkpoint is not needed any more.
    lake.delete_objects("db/cpu/_delta_log/0000000000000000000")
    other = lake.open()
    assert other.markers(CPU) == {"n1": 24, "n2": 3}
    assert len(set(other.files(CPU))) == 25
    assert other.columns(CPU)[-1].name == "extra"
    assert other.commit(CPU, [lake.file(rows_of(2000, 1))], "n1", 25).snapshot == 25
    assert len(numbers(lake)) == 24 * 2 + 2


def test_a_node_that_was_idle_sees_all_commits_since(local: DeltaLake) -> None:
    tables, idle = local.open(), local.open()
    tables.commit(CPU, [local.file(rows_of(0, 1))], "n1", 1)
    assert idle.markers(CPU) == {"n1": 1}
    for seq in range(2, 60):
        tables.commit(CPU, [local.file(rows_of(seq, 1))] if seq in (20, 40) else [], "n1", seq)
        if seq in (7, 9, 10, 11, 20, 58, 59):
            assert idle.markers(CPU) == {"n1": seq}
    assert idle.commit(CPU, [local.file(rows_of(99, 1))], "n2", 1).snapshot == 59


@pytest.mark.parametrize("damage", ["hint", "hint is gone", "checkpoint", "checkpoint is gone"])
def test_a_damaged_checkpoint_is_passed_over(local: DeltaLake, damage: str) -> None:
    """A power cut leaves such files where deltalake or Spark wrote them."""
    tables = local.open()
    for seq in range(1, 23):
        tables.commit(CPU, [local.file(rows_of(seq, 1))], "n1", seq)
    log = local.root / "db/cpu/_delta_log"
    hint, checkpoint = log / "_last_checkpoint", log / f"{20:020}.checkpoint.parquet"
    match damage:
        case "hint":
            hint.write_bytes(b"\0" * 20)
        case "hint is gone":
            hint.unlink()
        case "checkpoint":
            checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
        case "checkpoint is gone":
            checkpoint.unlink()
    other = local.open()
    assert other.markers(CPU) == {"n1": 22}
    assert len(list(other.files(CPU))) == 22
    assert other.commit(CPU, [local.file(rows_of(99, 1))], "n1", 23).snapshot == 22


def test_a_log_with_a_gap_is_refused(local: DeltaLake) -> None:
    tables = local.open()
    for seq in range(1, 5):
        tables.commit(CPU, [local.file(rows_of(seq, 1))], "n1", seq)
    log = local.root / "db/cpu/_delta_log"
    kept = (log / f"{2:020}.json").read_bytes()
    (log / f"{2:020}.json").unlink()
    with pytest.raises(Refused, match="no version 2, but a later one, 3"):
        local.open().committed(CPU, "n1")
    (log / f"{2:020}.json").write_bytes(kept)
    (log / f"{0:020}.json").unlink()
    with pytest.raises(Refused, match="no version 0"):
        local.open().committed(CPU, "n1")


def test_a_commit_of_zeros_is_refused(local: DeltaLake) -> None:
    """So a power cut leaves one that another program wrote and did not sync."""
    local.open().commit(CPU, [local.file(rows_of(1, 1))], "n1", 1)
    (local.root / f"db/cpu/_delta_log/{1:020}.json").write_bytes(bytes(100))
    with pytest.raises(Refused, match="cannot be read"):
        local.open().commit(CPU, [local.file(rows_of(2, 1))], "n1", 2)


# Columns


def test_columns_are_added_with_the_files_that_need_them(lake: DeltaLake) -> None:
    tables = lake.open()
    tables.commit(CPU, [lake.file([{"n": 1}])], "n1", 1)
    tables.commit(CPU, [lake.file([{"n": 2, "b": "x"}]), lake.file([{"n": 3, "c": True}])], "n1", 2)
    assert [column.name for column in tables.columns(CPU)] == ["time", "n", "b", "c"]
    assert {row["n"]: (row["b"], row["c"]) for row in lake.rows_by_polars()} == {
        1: (None, None),
        2: ("x", None),
        3: (None, True),
    }
    assert len(lake.rows_by_deltalake(columns="n, b, c")) == 3


def test_two_nodes_add_the_same_and_other_columns_at_once(lake: DeltaLake) -> None:
    lake.open().commit(CPU, [lake.file([{"n": 0}])], "n0", 1)
    nodes = [(f"n{number}", lake.open()) for number in range(4)]
    files = [lake.file([{"n": number, "new": 1.5, f"own{number}": number}]) for number in range(4)]
    for node, tables in nodes:
        tables.committed(CPU, node)  # all of them have seen the same version
    together = threading.Barrier(4)
    conflicts = []

    def commit(number: int) -> None:
        node, tables = nodes[number]
        together.wait()
        for _ in range(20):
            try:
                tables.commit(CPU, [files[number]], node, 2)
                return
            except Conflict:
                conflicts.append(node)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(commit, range(4)))
    names = [column.name for column in lake.open().columns(CPU)]
    assert sorted(names) == ["n", "new", "own0", "own1", "own2", "own3", "time"]
    assert numbers(lake) == [0, 0, 1, 2, 3]


def test_columns_of_any_name_are_read(local: DeltaLake) -> None:
    names = ["a b", "c,d;e", "f(x)", "g=h", "i.j", "k{l}", "ü", "%m", 'q"r', "-s", "\u65e5\u672c"]
    local.open().commit(CPU, [local.file([dict.fromkeys(names, 1) | {"n": 5}])], "n1", 1)
    row = local.rows_by_polars()[0]
    assert {name: row[name] for name in names} == dict.fromkeys(names, 1)
    assert local.rows_by_deltalake()[0] == row


def test_a_type_that_differs_is_refused_and_nothing_happens(lake: DeltaLake) -> None:
    tables = lake.open()
    tables.commit(CPU, [lake.file([{"n": 1, "v": 1.5}])], "n1", 1)
    with pytest.raises(Refused) as caught:
        tables.commit(CPU, [lake.file([{"n": 2, "v": 1.5}]), lake.file([{"n": 3, "v": "x"}])], "n1", 2)
    assert (caught.value.column, caught.value.table_type, caught.value.file_type) == ("v", "f64", "str")
    assert tables.markers(CPU) == {"n1": 1}
    assert numbers(lake) == [1]


def test_every_type_is_read_as_it_was_written(local: DeltaLake) -> None:
    row = {"n": -5, "f": 2.5, "b": True, "s": "ü", "x": b"\0\xff", "u": 2**64 - 1}
    file = local.file([row, dict.fromkeys(row, None) | {"n": 1}], x=pa.binary(), u=pa.decimal128(20, 0))
    local.open().commit(CPU, [file], "n1", 1)
    for rows in (local.rows_by_polars(), local.rows_by_deltalake()):
        found = next(one for one in rows if one["n"] == -5)
        assert {name: found[name] for name in row} == row


# Names


def read_by_all(lake: DeltaLake, table: TableName) -> None:
    tables = lake.open()
    tables.commit(table, [lake.file(rows_of(0), table)], "n1", 1)
    tables.replace(table, [], [])  # a commit that has nothing
    for seq in range(2, 10):
        tables.commit(table, [], "n1", seq)
    tables.commit(table, [lake.file(rows_of(10), table)], "n1", 10)
    tables.commit(table, [lake.file(rows_of(20), table)], "n1", 11)
    assert numbers(lake, table) == list(range(30))
    assert tables.all_tables() == [table]
    assert set(tables.files(table)) <= set(lake.listed())
    assert any(key.endswith("10.checkpoint.parquet") for key in lake.listed())
    assert lake.open().markers(table) == {"n1": 11}


NAMES = {
    "spaces": ("my db", "cpu load"),
    "hidden": ("_internal", "_x"),
    "percent": ("d%20b", "100%"),
    "slashes": ("日本", "a/b\\c"),
    "tilde": ("~", "~20"),
    "cut": ("x" * 128, "ü" * 90),
    "signs": ("é" * 64, "#?&=+,;:@"),
}


@pytest.mark.parametrize("table", NAMES.values(), ids=NAMES)
def test_tables_of_any_name_are_read_by_all(local: DeltaLake, table: TableName) -> None:
    read_by_all(local, table)


@pytest.mark.parametrize("table", [(NAMES["percent"][0], NAMES["signs"][1]), NAMES["cut"]], ids=["signs", "cut"])
def test_tables_of_any_name_are_read_from_s3(s3: S3Bucket, tmp_path: Path, table: TableName) -> None:
    lake = s3_lake(s3, tmp_path)
    read_by_all(lake, table)
    lake.close()


@pytest.mark.parametrize("layout", ["arc", "hive"])
def test_files_in_folders_with_percent_signs_are_of_a_table_beside_them(tmp_path: Path, layout: Any) -> None:
    """Such a lake is from before its tables. deltalake and DuckDB read it, Polars does not."""
    lake = local_lake(tmp_path, layout=layout, hidden="._")
    table = ("my db", "cpu load")
    tables = lake.open()
    for seq in range(1, 12):
        tables.commit(table, [lake.file(rows_of(seq * 10), table)] if seq < 3 else [], "n1", seq)
    assert sorted(row["n"] for row in lake.rows_by_deltalake(table, "n")) == list(range(10, 30))
    assert set(tables.files(table)) == set(lake.listed("my%20db/cpu%20load/"))
    assert any("my~20db/cpu~20load/_delta_log" in key for key in lake.listed())
    lake.close()


@pytest.mark.parametrize("layout", ["arc", "hive"])
def test_both_layouts_are_read_by_four(tmp_path: Path, layout: Any) -> None:
    lake = local_lake(tmp_path, layout=layout)
    lake.open().commit(CPU, [lake.file(rows_of(0)), lake.file(rows_of(10))], "n1", 1)
    assert numbers(lake) == list(range(20))
    assert lake.rows_by_duckdb(columns="count(*), max(v)") == [(20, 9.5)]
    assert lake.delta().to_pyarrow_table().num_rows == 20
    lake.close()


def test_statistics_leave_out_no_file_that_has_rows(local: DeltaLake) -> None:
    tables = local.open()
    texts = ["a", "b" * 40, "c" * 31 + "\U0010ffff" * 5, "ü"]
    for seq, text in enumerate(texts, 1):
        tables.commit(CPU, [local.file([{"n": seq, "s": text, "v": float("nan") if seq == 1 else 1.0}])], "n1", seq)
    # A dataset of pyarrow leaves out files by the statistics in the log.
    dataset = local.delta().to_pyarrow_dataset()
    for seq, text in enumerate(texts, 1):
        assert dataset.to_table(filter=pa.compute.field("s") == text)["n"].to_pylist() == [seq]
        assert dataset.to_table(filter=pa.compute.field("s") >= text).num_rows >= 1
        assert dataset.to_table(filter=pa.compute.field("n") == seq)["s"].to_pylist() == [text]
    times = dataset.to_table()["time"].to_pylist()
    assert dataset.to_table(filter=pa.compute.field("time") <= pa.scalar(times[0])).num_rows == 4
    assert local.rows_by_deltalake(columns="count(*) AS c, min(n) AS a, max(n) AS b") == [{"c": 4, "a": 1, "b": 4}]


# Conflicts and lost answers


def test_the_second_of_two_writers_meets_a_conflict(lake: DeltaLake, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = lake.open(), lake.open()
    first.commit(CPU, [lake.file(rows_of(0))], "n1", 1)
    files = [lake.file(rows_of(10)), lake.file(rows_of(20))]
    commit = Log.commit

    async def after_another(log: Log, state: State | None, lines: list[bytes]) -> State | None:
        monkeypatch.setattr(Log, "commit", commit)
        assert await commit(log, state, [*lines[:1], b'{"txn":{"appId":"arcpipe.node.n2","version":9}}']) is not None
        return await commit(log, state, lines)

    monkeypatch.setattr(Log, "commit", after_another)
    with pytest.raises(Conflict):
        second.commit(CPU, [files[0]], "n1", 2)
    assert second.commit(CPU, [files[0]], "n1", 2) == (2, 2, 1, False)
    assert first.markers(CPU) == {"n1": 2, "n2": 9}
    assert first.commit(CPU, [files[1]], "n1", 3).snapshot == 3
    assert numbers(lake) == list(range(30))


def test_log_and_checkpoints_are_encrypted_with_the_key(s3: S3Bucket, tmp_path: Path) -> None:
    """The log, which arcpipe writes, has the storage class, too; deltalake cannot give one to its checkpoints."""
    lake = s3_lake(s3, tmp_path)
    options = msgspec.structs.replace(
        lake.storage.s3,
        server_side_encryption="aws:kms",
        kms_key_id="alias/lake",
        storage_class="STANDARD_IA",
        session_token="a-token",
    )
    lake.storage = msgspec.structs.replace(lake.storage, s3=options)
    tables = lake.open()
    for number in range(1, 12):
        tables.commit(CPU, [lake.file(rows_of(number))], "a" * 12, number)
    tables.close()
    heads = {key: s3.client().head_object(Bucket=s3.bucket, Key=key) for key in s3.list_keys() if "/_delta_log/" in key}
    assert {(head.get("ServerSideEncryption"), head.get("SSEKMSKeyId")) for head in heads.values()} == {
        ("aws:kms", "alias/lake")
    }
    assert {head.get("StorageClass") for key, head in heads.items() if key.endswith("0.json")} == {"STANDARD_IA"}
    assert [key for key in heads if key.endswith(".checkpoint.parquet")]


def test_a_commit_asks_the_store_five_times(s3: S3Bucket, tmp_path: Path) -> None:
    """However many versions there are: two reads for the marker, one more just before the conditional put."""
    with FaultyProxy(s3.endpoint_url) as proxy:
        lake = s3_lake(s3, tmp_path)
        tables = lake.open(s3_storage(s3, proxy.url))
        for seq in range(1, 14):
            file = lake.file(rows_of(seq * 10))
            del proxy.seen[:]
            tables.committed(CPU, "n1")
            tables.commit(CPU, [file], "n1", seq)
            if seq not in (1, 11):  # the table is made; a checkpoint is made
                reads = 3 if seq == 2 else 4  # nothing is before version 0
                assert [request.split()[0] for request in proxy.seen] == ["GET"] * reads + ["PUT"]
        lake.close()


def test_a_table_that_is_dropped_before_its_commit_is_made_again(lake: DeltaLake) -> None:
    tables = lake.open()
    tables.commit(CPU, [lake.file(rows_of(0))], "n1", 1)
    assert tables.committed(CPU, "n1") == 1
    lake.delete_objects("db/cpu/")
    assert tables.commit(CPU, [lake.file(rows_of(10))], "n1", 2) == (2, 0, 1, True)
    assert numbers(lake) == list(range(10, 20))


def test_a_table_that_is_dropped_within_its_commit_is_refused_from_then_on(
    local: DeltaLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look at the log and the put: the log begins with the commit, and nobody takes it for a table.

    The file is not lost: it is imported again, as the message says.
    """
    tables = local.open()
    for seq in range(1, 4):
        tables.commit(CPU, [local.file(rows_of(seq * 10))], "n1", seq)
    assert tables.committed(CPU, "n1") == 3
    look = Log.is_there

    async def dropped_after(self: Log, known: State) -> bool:
        found = await look(self, known)
        local.delete_objects("db/cpu/_delta_log/")
        return found

    file = local.file(rows_of(50))
    with monkeypatch.context() as patched:
        patched.setattr(Log, "is_there", dropped_after)
        assert tables.commit(CPU, [file], "n1", 4).files == 1
    assert local.listed("db/cpu/_delta_log/") == [f"db/cpu/_delta_log/{3:020}.json"]
    for opened in (tables, local.open()):
        for work in (
            lambda opened=opened: opened.committed(CPU, "n1"),
            lambda opened=opened: opened.commit(CPU, [file], "n1", 5),
            lambda opened=opened: list(opened.files(CPU)),
        ):
            with pytest.raises(Refused, match=r"no version 0 .*remove _delta_log and import the files again"):
                work()
    local.delete_objects("db/cpu/_delta_log/")
    assert tables.committed(CPU, "n1") is None
    assert tables.commit(CPU, [file], "import", 1).created
    assert numbers(local) == list(range(50, 60))


def test_the_history_of_a_table_that_is_there_is_changed_in_the_table(local: DeltaLake) -> None:
    """As docs/tables.md tells: the setting is of tables that are made from then on."""
    local.open(history_hours=12).commit(CPU, [local.file(rows_of(0))], "n1", 1)
    local.delta().alter.set_table_properties({"delta.logRetentionDuration": "interval 48 hours"})
    tables = local.open(history_hours=1)
    tables.commit(CPU, [local.file(rows_of(10))], "n1", 2)
    tables.maintain(CPU)
    assert local.delta().metadata().configuration["delta.logRetentionDuration"] == "interval 48 hours"
    assert numbers(local) == list(range(20))


def test_of_two_that_make_a_table_one_meets_a_conflict(lake: DeltaLake) -> None:
    files = [lake.file(rows_of(number * 10)) for number in range(2)]
    nodes = [lake.open() for _ in files]
    together = threading.Barrier(2)

    def commit(number: int) -> int:
        together.wait()
        for tries in range(20):
            try:
                nodes[number].commit(CPU, [files[number]], f"n{number}", 1)
                return tries
            except Conflict:
                pass
        raise AssertionError("no try succeeded")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(commit, range(2)))
    assert numbers(lake) == list(range(20))
    assert sum("metaData" in action for version in (0, 1) for action in lake.commit_of(version)) == 1


LOST = ("lost answer", "reset in the answer", "internal error", "hanging", "slow down", "reset in the body", "refused")


@pytest.mark.parametrize("fault", LOST)
def test_a_fault_of_the_store_never_adds_a_file_twice(s3: S3Bucket, tmp_path: Path, fault: str) -> None:
    with FaultyProxy(s3.endpoint_url) as proxy:
        lake = s3_lake(s3, tmp_path)
        tables = lake.open(s3_storage(s3, proxy.url))
        lake.open().commit(CPU, [lake.file(rows_of(0))], "n0", 1)
        file = lake.file(rows_of(10))
        assert tables.committed(CPU, "n1") is None
        proxy.fail_next(fault, target="_delta_log")
        with pytest.raises(Unavailable):
            tables.commit(CPU, [file], "n1", 1)
        assert sum(proxy.injected.values()) == 1
        redo(tables, file)
        assert numbers(lake) == list(range(20))
        commits = [lake.commit_of(version) for version in range(lake.delta().version() + 1)]
        assert sum("add" in action for commit in commits for action in commit) == 2
        lake.close()


def redo(tables: DeltaTables, file: NewFile) -> None:
    """Do as the committer, which does not know the outcome: begin again with the marker."""

    def committed() -> bool:
        try:
            if tables.committed(CPU, "n1") != 1:
                tables.commit(CPU, [file], "n1", 1)
            return True
        except (Conflict, Unavailable):
            return False

    wait_until(committed)


def test_without_the_markers_check_a_lost_answer_adds_twice(
    s3: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the test above would notice a commit without the check."""
    with FaultyProxy(s3.endpoint_url) as proxy:
        lake = s3_lake(s3, tmp_path)
        tables = lake.open(s3_storage(s3, proxy.url))
        file = lake.file(rows_of(10))
        monkeypatch.setattr(State, "marker", lambda state, node: None)
        proxy.fail_next("lost answer", target="_delta_log")
        with pytest.raises(Unavailable):
            tables.commit(CPU, [file], "n1", 1)
        tables.commit(CPU, [file], "n1", 1)
        found = [action for version in (0, 1) for action in lake.commit_of(version) if "add" in action]
        assert len(found) == 2
        assert found[0]["add"]["path"] == found[1]["add"]["path"]
        lake.close()


def test_an_answer_that_is_lost_on_a_local_disk_is_found(local: DeltaLake, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = local.open()
    file = local.file(rows_of(0))
    sync = LocalStore._sync_entries

    def failed(store: LocalStore, paths: Any) -> None:
        sync(store, paths)
        raise StorageError("the disk reports an error")

    monkeypatch.setattr(LocalStore, "_sync_entries", failed)
    with pytest.raises(Unavailable):
        tables.commit(CPU, [file], "n1", 1)
    monkeypatch.setattr(LocalStore, "_sync_entries", sync)
    assert tables.commit(CPU, [file], "n1", 1) == (1, 0, 0, False)
    assert numbers(local) == list(range(10))


def test_a_table_that_was_dropped_is_made_again(lake: DeltaLake) -> None:
    tables, other = lake.open(), lake.open()
    for seq in range(1, 4):
        tables.commit(CPU, [lake.file(rows_of(seq * 10))], "n1", seq)
    assert other.markers(CPU) == {"n1": 3}
    lake.delete_objects("db/cpu/")
    assert tables.committed(CPU, "n1") is None
    assert tables.columns(CPU) == []
    assert tables.markers(CPU) == {}
    assert tables.all_tables() == []
    for missing in (lambda: list(tables.files(CPU)), lambda: tables.maintain(CPU), lambda: tables.replace(CPU, [], [])):
        with pytest.raises(Dropped):
            missing()
    assert tables.commit(CPU, [lake.file(rows_of(50))], "n1", 4) == (4, 0, 1, True)
    # The other still remembers version 2 of the dropped one, which the new one has not.
    assert other.commit(CPU, [lake.file(rows_of(60))], "n2", 1) == (1, 1, 1, False)
    assert numbers(lake) == list(range(50, 70))


def test_a_table_that_was_made_again_with_more_versions_is_seen(lake: DeltaLake) -> None:
    tables = lake.open()
    tables.commit(CPU, [lake.file(rows_of(0))], "n1", 5)
    lake.delete_objects("db/cpu/_delta_log/")
    other = lake.open()
    for seq in range(1, 4):
        other.commit(CPU, [lake.file(rows_of(seq * 10))], "n2", seq)
    assert tables.markers(CPU) == {"n2": 3}
    assert tables.commit(CPU, [lake.file(rows_of(90))], "n1", 6).snapshot == 3
    assert numbers(lake) == [*range(10, 40), *range(90, 100)]


# Replacing and removing


def test_merged_files_take_the_place_of_others_in_one_commit(lake: DeltaLake) -> None:
    tables = lake.open()
    old = [lake.file(rows_of(number * 10)) for number in range(12)]
    for seq, file in enumerate(old, 1):
        tables.commit(CPU, [file], "n1", seq)
    merged = lake.file(rows_of(0, 100))
    tables.replace(CPU, [file.key for file in old[:10]], [merged])
    assert numbers(lake) == list(range(120))
    assert sorted(tables.files(CPU)) == sorted(file.key for file in (*old[10:], merged))
    assert tables.markers(CPU) == {"n1": 12}
    actions = [action for action in lake.commit_of(12) if "add" in action or "remove" in action]
    assert [next(iter(action.values()))["dataChange"] for action in actions] == [False] * 11
    with pytest.raises(Conflict, match="1 of the files"):
        tables.replace(CPU, [old[0].key, old[11].key], [lake.file(rows_of(500))])
    assert numbers(lake) == list(range(120))
    tables.commit(CPU, [lake.file(rows_of(120))], "n1", 13)
    assert numbers(lake) == list(range(130))


def test_files_are_removed_with_their_rows(lake: DeltaLake) -> None:
    tables = lake.open()
    files = [lake.file(rows_of(number * 10)) for number in range(3)]
    tables.commit(CPU, files, "n1", 1)
    tables.remove(CPU, [files[0].key, files[2].key, "db/cpu/never.parquet"])
    assert numbers(lake) == list(range(10, 20))
    tables.remove(CPU, [files[0].key])  # gone already: no commit is made
    assert lake.delta().version() == 1
    assert files[0].key in lake.listed()


def test_a_table_that_is_append_only_keeps_its_files(local: DeltaLake) -> None:
    tables = local.open()
    file = local.file(rows_of(0))
    tables.commit(CPU, [file], "n1", 1)
    local.delta().alter.set_table_properties({"delta.appendOnly": "true"})
    with pytest.raises(Refused, match="appendOnly"):
        tables.remove(CPU, [file.key])


# Upkeep


def age(lake: DeltaLake, version: int, hours: float) -> None:
    """Make what the log says of files that were taken out older."""
    path = lake.root / f"db/cpu/_delta_log/{version:020}.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "remove" in line:
            line["remove"]["deletionTimestamp"] -= int(hours * 3_600_000)
    path.write_text("\n".join(map(json.dumps, lines)))


def test_upkeep_deletes_what_no_readable_state_needs(local: DeltaLake) -> None:
    tables = local.open(upkeep_seconds=0.0, history_hours=2)
    files = [local.file(rows_of(number * 10)) for number in range(4)]
    waiting = local.file(rows_of(1000))
    tables.commit(CPU, files, "n1", 1)
    tables.replace(CPU, [file.key for file in files[:2]], [local.file(rows_of(0, 20))])
    tables.remove(CPU, [files[2].key])
    assert tables.maintain(CPU) == (0, 0, 0)
    age(local, 1, 3)
    age(local, 2, 1)
    tables = local.open(upkeep_seconds=0.0)
    assert tables.maintain(CPU) == (0, 0, 2)
    left = local.listed()
    assert [file.key in left for file in files] == [False, False, True, True]
    assert waiting.key in left
    assert numbers(local) == [*range(20), *range(30, 40)]
    assert tables.maintain(CPU).deleted == 0
    assert local.open().maintain(CPU).deleted == 2  # it does not know that they are gone; that is no error


def test_upkeep_keeps_a_file_that_is_in_the_table_again(local: DeltaLake) -> None:
    tables = local.open(upkeep_seconds=0.0, history_hours=2)
    file = local.file(rows_of(0))
    tables.commit(CPU, [file], "n1", 1)
    tables.remove(CPU, [file.key])
    local.delta().restore(0)
    age(local, 1, 50)
    tables.maintain(CPU)
    assert numbers(local) == list(range(10))


def test_upkeep_ends_old_states_after_a_checkpoint(local: DeltaLake) -> None:
    tables = local.open(upkeep_seconds=0.0, history_hours=2)
    for seq in range(1, 26):
        tables.commit(CPU, [local.file(rows_of(seq * 10))], "n1", seq)
    log = local.root / "db/cpu/_delta_log"
    for path in log.iterdir():
        if path.name[:20].isdigit() and int(path.name[:20]) < 15:
            os.utime(path, (1, 1))
    done = tables.maintain(CPU)
    # Version 15 is young, and needs the checkpoint before it.
    assert done.expired == 10
    assert sorted(path.name[18:] for path in log.glob("*.json"))[:3] == ["10.json", "11.json", "12.json"]
    for reader in (local.open(), tables):
        assert reader.markers(CPU) == {"n1": 25}
        assert len(list(reader.files(CPU))) == 25
    assert numbers(local) == list(range(10, 260))
    assert tables.maintain(CPU).expired == 0


def test_upkeep_keeps_the_log_before_a_damaged_checkpoint(local: DeltaLake) -> None:
    tables = local.open(upkeep_seconds=0.0, history_hours=2)
    for seq in range(1, 26):
        tables.commit(CPU, [local.file(rows_of(seq))], "n1", seq)
    log = local.root / "db/cpu/_delta_log"
    for number in (10, 20):
        (log / f"{number:020}.checkpoint.parquet").write_bytes(b"PAR1")
    for path in log.iterdir():
        os.utime(path, (1, 1))
    assert tables.maintain(CPU).expired == 0
    assert local.open().markers(CPU) == {"n1": 25}


def test_upkeep_makes_the_checkpoint_that_others_did_not(local: DeltaLake) -> None:
    tables = local.open()
    for seq in range(1, 10):
        tables.commit(CPU, [local.file(rows_of(seq))], "n1", seq)
    for number in range(3):
        write_deltalake(uri_of(local.storage, root_of(CPU)), local.file_rows(rows_of(100 + number, 1)), mode="append")
    log = local.root / "db/cpu/_delta_log"
    for path in log.glob("*checkpoint*"):
        path.unlink()
    assert tables.maintain(CPU).merged == 11
    assert (log / f"{11:020}.checkpoint.parquet").exists()
    assert tables.maintain(CPU).merged == 0


def test_a_checkpoint_that_fails_is_logged_and_the_commit_stays(
    local: DeltaLake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failed(table: DeltaTable) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(DeltaTable, "create_checkpoint", failed)
    tables = local.open()
    for seq in range(1, 13):
        tables.commit(CPU, [local.file(rows_of(seq))], "n1", seq)
    assert "no checkpoint of the Delta table db/cpu could be made" in caplog.text
    assert local.open().markers(CPU) == {"n1": 12}


# Tables of others


def test_a_table_of_somebody_else_is_taken_if_it_fits(local: DeltaLake) -> None:
    path = uri_of(local.storage, root_of(CPU))
    write_deltalake(path, local.file_rows(rows_of(0)))
    tables = local.open()
    assert tables.committed(CPU, "n1") is None
    assert tables.commit(CPU, [local.file(rows_of(10))], "n1", 1) == (1, 1, 1, False)
    write_deltalake(path, local.file_rows(rows_of(20)), mode="append")
    tables.commit(CPU, [local.file(rows_of(30))], "n1", 2)
    assert numbers(local) == list(range(40))


@pytest.mark.parametrize("features", [{}, {"delta.enableDeletionVectors": "true"}])
def test_a_table_of_somebody_else_is_not_looked_after(local: DeltaLake, features: dict[str, str]) -> None:
    """It may be in a folder as arcpipe's are. Its files are its owner's to delete."""
    path = uri_of(local.storage, root_of(CPU))
    configuration = {"delta.logRetentionDuration": "interval 2 hours", **features}
    schema = Schema([Field("n", PrimitiveType("long"))])
    DeltaTable.create(path, schema, configuration=configuration)
    key = "db/cpu/part-0.parquet"
    (local.root / key).write_bytes(b"of somebody else")
    log = local.root / "db/cpu/_delta_log"
    removal = {"remove": {"path": "part-0.parquet", "deletionTimestamp": 1, "dataChange": True}}
    (log / f"{1:020}.json").write_text(json.dumps(removal))
    tables = local.open(upkeep_seconds=0.0)
    unreadable: UnreadableTables = {}
    assert tables.all_tables(unreadable) == []
    assert unreadable == {}
    with pytest.raises(TableError):
        tables.maintain(CPU)
    assert (local.root / key).exists()


def test_a_table_that_arcpipe_has_appended_to_is_looked_after(local: DeltaLake) -> None:
    write_deltalake(uri_of(local.storage, root_of(CPU)), local.file_rows(rows_of(0)))
    tables = local.open()
    tables.commit(CPU, [local.file(rows_of(10))], "n1", 1)
    assert tables.all_tables() == [CPU]
    assert local.open().all_tables() == [CPU]
    tables.maintain(CPU)


def test_a_table_whose_log_is_damaged_is_named(local: DeltaLake) -> None:
    local.open().commit(CPU, [local.file(rows_of(0))], "n1", 1)
    (local.root / f"db/cpu/_delta_log/{0:020}.json").write_bytes(bytes(100))
    unreadable: UnreadableTables = {}
    assert local.open().all_tables(unreadable) == []
    assert "cannot be read" in str(unreadable[CPU])
    with pytest.raises(Refused):
        local.open().all_tables()


def test_a_table_of_somebody_else_is_refused_with_the_difference(local: DeltaLake) -> None:
    path = uri_of(local.storage, root_of(CPU))
    write_deltalake(path, pa.table({"time": pa.array([1], pa.timestamp("us", "UTC")), "n": ["x"]}))
    with pytest.raises(Refused) as caught:
        local.open().commit(CPU, [local.file(rows_of(10))], "n1", 1)
    assert (caught.value.column, caught.value.table_type, caught.value.file_type) == ("n", "str", "i64")


@pytest.mark.parametrize("kind", ["partitioned", "mapped", "vectors"])
def test_a_table_that_arcpipe_cannot_write_is_refused(local: DeltaLake, kind: str) -> None:
    path = uri_of(local.storage, root_of(CPU))
    fields = Schema([Field("time", PrimitiveType("timestamp")), Field("day", PrimitiveType("date"))])
    configuration: dict[str, dict[str, str | None]] = {
        "partitioned": {},
        "mapped": {"delta.columnMapping.mode": "name"},
        "vectors": {"delta.enableDeletionVectors": "true"},
    }
    partitions = ["day"] if kind == "partitioned" else None
    DeltaTable.create(path, fields, partition_by=partitions, configuration=configuration[kind])
    for call in (lambda: local.open().committed(CPU, "n1"), lambda: local.open().commit(CPU, [], "n1", 1)):
        with pytest.raises(Refused, match="cannot write to"):
            call()


def test_commits_and_compaction_by_deltalake_go_together(lake: DeltaLake) -> None:
    """OPTIMIZE and VACUUM of others, between commits and at once with them."""
    tables = lake.open()
    for seq in range(1, 17):
        tables.commit(CPU, [lake.file(rows_of(seq * 10))], "n1", seq)
        if seq % 8 == 5:
            lake.delta().optimize.compact()
        if seq % 8 == 7:
            lake.delta().vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert numbers(lake) == list(range(10, 170))
    assert lake.open().markers(CPU) == {"n1": 16}
    assert set(tables.files(CPU)) <= set(lake.listed())


def test_a_short_retention_of_vacuum_is_told(local: DeltaLake, caplog: pytest.LogCaptureFixture) -> None:
    tables = local.open()
    tables.commit(CPU, [local.file(rows_of(0))], "n1", 1)
    local.delta().alter.set_table_properties({"delta.deletedFileRetentionDuration": "interval 12 hours"})
    for seq in (2, 3):
        tables.commit(CPU, [local.file(rows_of(seq * 10))], "n1", seq)
    assert caplog.text.count("wait for their commit for more than 12.0 hours") == 1


# The start


def test_the_check_leaves_nothing_behind(lake: DeltaLake) -> None:
    lake.open().check()
    assert lake.listed() == []


def test_a_folder_with_a_percent_sign_is_refused_at_the_start(tmp_path: Path) -> None:
    lake = DeltaLake(Storage(url=f"file://{tmp_path}/a%20b"), tmp_path)
    with pytest.raises(Refused, match="percent sign"):
        lake.open().check()
    lake.close()


def test_a_store_that_overwrites_is_refused_at_the_start(local: DeltaLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """As do servers that know no conditions and pass the header over."""

    async def overwrite(store: LocalStore, key: str, blob: Any) -> bool:
        await store.put(key, blob)
        return True

    monkeypatch.setattr(LocalStore, "put_new", overwrite)
    with pytest.raises(Refused, match="If-None-Match"):
        local.open().check()
    assert local.listed() == []


def test_denied_access_is_refused_and_a_dead_store_is_unavailable(s3: S3Bucket, tmp_path: Path) -> None:
    with FaultyProxy(s3.endpoint_url) as proxy:
        lake = s3_lake(s3, tmp_path)
        tables = lake.open(s3_storage(s3, proxy.url))
        proxy.deny("PUT .*_delta_log")
        with pytest.raises(Refused, match="s3:PutObject"):
            tables.commit(CPU, [lake.file(rows_of(0))], "n1", 1)
        proxy.deny()
        proxy.go_down()
        with pytest.raises(Unavailable):
            tables.commit(CPU, [lake.file(rows_of(0))], "n1", 1)
        with pytest.raises(Unavailable):
            tables.check()
        proxy.come_up()
        assert tables.commit(CPU, [lake.file(rows_of(0))], "n1", 1).files == 1
        lake.close()


def test_options_lead_deltalake_to_the_store() -> None:
    storage = Storage(url="s3://bucket/p")
    assert options_of(storage) == {}
    assert uri_of(storage, "db/cpu") == "s3://bucket/p/db/cpu"
    assert options_of(Storage(url="file:///x")) == {}

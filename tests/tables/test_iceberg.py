"""Iceberg tables in every catalogue: each row once, as two readers count, whatever answer is lost, whoever is first."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import BucketTransform, MonthTransform
from pyiceberg.types import LongType, NestedField, StringType, TimestamptzType

from arcpipe.tables.base import Committed, Conflict, Dropped, Refused, Unavailable
from arcpipe.tables.iceberg import layout
from arcpipe.tables.iceberg.catalogue import Catalogue
from arcpipe.tables.iceberg.change import Change
from arcpipe.tables.iceberg.table import IcebergTables
from tests.support.compaction import table_of
from tests.support.iceberg import World
from tests.support.tables import CPU, rows

A, B = "0123456789ab", "ba9876543210"

pytest_plugins = ["tests.support.iceberg"]


@pytest.mark.every_catalogue
def test_what_is_committed_is_what_two_readers_read(world: World) -> None:
    tables = world.open()
    tables.check()
    assert tables.committed(CPU, A) is None
    files = [world.lake.put(CPU, rows(0), "a"), world.lake.put(CPU, rows(3), "b", hour=30)]
    made = tables.commit(CPU, files, A, 7)
    assert made == Committed(7, made.snapshot, 2, created=True)
    assert tables.committed(CPU, A) == 7
    assert tables.committed(CPU, B) is None
    assert sorted(tables.files(CPU)) == sorted(file.key for file in files)
    assert tables.all_tables() == [CPU]
    assert world.numbers() == list(range(6))
    table = world.load()
    assert [field.name for field in table.spec().fields] == ["__time_day"]
    assert len({entry.data_file.partition[0] for entry in entries_of(table)}) == 2
    tables.close()


def loaded(world: World) -> Any:
    return world.load()


def entries_of(table: Any) -> list[Any]:
    return [
        entry for one in table.current_snapshot().manifests(table.io) for entry in one.fetch_manifest_entry(table.io)
    ]


def test_the_same_commit_again_does_nothing(world: World) -> None:
    tables = world.open()
    file = world.lake.put(CPU, rows(0), "a")
    first = tables.commit(CPU, [file], A, 7)
    assert tables.commit(CPU, [file], A, 7) == Committed(7, first.snapshot, 0)
    assert world.open().commit(CPU, [file], A, 6) == Committed(7, first.snapshot, 0)
    assert world.numbers() == [0, 1, 2]


Patch = Callable[[pytest.MonkeyPatch], None]


def lose_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue commits, and the answer to the first attempt does not arrive."""
    commit = Catalogue.commit
    attempts = []

    def losing(self: Catalogue, *arguments: Any) -> Any:
        answer = commit(self, *arguments)
        attempts.append(answer)
        if len(attempts) == 1:
            raise Unavailable("the answer was lost")
        return answer

    monkeypatch.setattr(Catalogue, "commit", losing)


def commit_until_it_is_there(world: World, files: list[Any], seq: int) -> None:
    """Commit as the committer does: after a failure begin again, with nothing remembered."""
    for _ in range(10):
        tables = world.open()
        marker = tables.committed(CPU, A)
        if marker is not None and marker >= seq:
            return
        try:
            tables.commit(CPU, files, A, seq)
        except (Conflict, Unavailable):
            continue
    raise AssertionError("ten attempts failed")


@pytest.mark.every_catalogue
def test_an_answer_that_was_lost_doubles_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_the_answer(monkeypatch)
    commit_until_it_is_there(world, [world.lake.put(CPU, rows(0), "a")], 1)
    assert world.numbers() == [0, 1, 2]


def test_without_the_marker_a_lost_answer_doubles_rows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with the check patched out, the test above fails."""
    lose_the_answer(monkeypatch)
    file = world.lake.put(CPU, rows(0), "a")
    with monkeypatch.context() as blind:
        blind.setattr(layout, "markers", lambda loaded: {})
        with pytest.raises(AssertionError):
            commit_until_it_is_there(world, [file], 1)
    assert len(world.numbers()) > 3


def first_comes(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Somebody else acts once, after a change was staged and before its attempt."""
    attempt = Change.attempt
    waiting = [act]

    def late(self: Change) -> Any:
        while waiting:
            waiting.pop()()
        return attempt(self)

    monkeypatch.setattr(Change, "attempt", late)


@pytest.mark.every_catalogue
def test_of_two_nodes_at_once_one_begins_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = world.open(), world.open()
    ours.commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
    file = world.lake.put(CPU, rows(3), "b")
    first_comes(monkeypatch, lambda: theirs.commit(CPU, [world.lake.put(CPU, rows(6), "c")], B, 1))
    with pytest.raises(Conflict, match="somebody else"):
        ours.commit(CPU, [file], A, 2)
    assert ours.markers(CPU) == {A: 1, B: 1}
    assert world.numbers() == [0, 1, 2, 6, 7, 8]
    ours.commit(CPU, [file], A, 2)
    assert ours.markers(CPU) == {A: 2, B: 1}
    assert world.numbers() == list(range(9))


def test_a_zombie_of_a_node_cannot_commit_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A committer is stopped between staging and attempt; its successor commits the same files; then it goes on."""
    zombie, successor = world.open(), world.open()
    zombie.commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
    file = world.lake.put(CPU, rows(3), "b")
    first_comes(monkeypatch, lambda: successor.commit(CPU, [file], A, 2))
    with pytest.raises(Conflict):
        zombie.commit(CPU, [file], A, 2)
    assert world.numbers() == list(range(6))


def test_of_two_nodes_that_make_a_table_one_begins_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = world.open(), world.open()
    create = Catalogue.create
    waiting = [lambda: theirs.commit(CPU, [world.lake.put(CPU, rows(3), "b")], B, 1)]

    def late(self: Catalogue, *arguments: Any) -> Any:
        while waiting:
            waiting.pop()()
        return create(self, *arguments)

    monkeypatch.setattr(Catalogue, "create", late)
    file = world.lake.put(CPU, rows(0), "a")
    with pytest.raises(Conflict):
        ours.commit(CPU, [file], A, 1)
    ours.commit(CPU, [file], A, 1)
    assert world.numbers() == list(range(6))


def test_columns_are_added_before_the_files_that_have_them(world: World) -> None:
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
    tables.commit(CPU, [world.lake.put(CPU, rows(3, load=0.5), "b"), world.lake.put(CPU, rows(6, note="x"), "c")], A, 2)
    assert {column.name: column.type for column in tables.columns(CPU)} == {
        "time": "time", "host": "str", "n": "i64", "load": "f64", "note": "str",
    }  # fmt: skip
    assert world.numbers() == list(range(9))
    found = {row["n"]: (row["load"], row["note"]) for row in world.load().scan().to_arrow().to_pylist()}
    assert (found[0], found[3], found[6]) == ((None, None), (0.5, None), (None, "x"))


@pytest.mark.parametrize("theirs", ["load", "other"])
def test_two_nodes_add_columns_at_once(world: World, monkeypatch: pytest.MonkeyPatch, theirs: str) -> None:
    ours, other = world.open(), world.open()
    ours.commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
    more: dict[str, Any] = {theirs: 1.5}
    file = world.lake.put(CPU, rows(3, load=0.5), "b")
    first_comes(monkeypatch, lambda: other.commit(CPU, [world.lake.put(CPU, rows(6, **more), "c")], B, 1))
    with pytest.raises(Conflict):
        ours.commit(CPU, [file], A, 2)
    ours.commit(CPU, [file], A, 2)
    assert [column.name for column in ours.columns(CPU)].count("load") == 1
    assert world.numbers() == list(range(9))
    loads = {row["n"]: row["load"] for row in world.load().scan().to_arrow().to_pylist()}
    assert loads[3] == 0.5
    assert loads[6] == (1.5 if theirs == "load" else None)


def test_a_column_of_another_type_is_refused_with_both(world: World) -> None:
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0, load=1), "a")], A, 1)
    file = world.lake.put(CPU, rows(3, load=0.5), "b")
    with pytest.raises(Refused, match="'load' is i64 in the table and f64 in") as caught:
        tables.commit(CPU, [file], B, 1)
    refused = caught.value
    assert (refused.column, refused.table_type, refused.file_type, refused.key) == ("load", "i64", "f64", file.key)
    assert world.numbers() == [0, 1, 2]
    assert tables.markers(CPU) == {A: 1}


def test_a_marker_survives_the_expiry_of_all_snapshots(world: World) -> None:
    tables = world.open(history_hours=0)
    for number in range(4):
        tables.commit(CPU, [world.lake.put(CPU, rows(3 * number), f"b{number}")], A, number + 1)
    tables.maintain(CPU)
    assert len(world.load().metadata.snapshots) == 1
    assert tables.commit(CPU, [world.lake.put(CPU, rows(9), "b3")], A, 4).files == 0
    assert world.numbers() == list(range(12))


def test_a_table_that_was_dropped_is_made_anew(world: World) -> None:
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
    world.catalogue().drop_table(world.identifier())
    assert tables.committed(CPU, A) is None
    with pytest.raises(Dropped):
        list(tables.files(CPU))
    assert tables.commit(CPU, [world.lake.put(CPU, rows(3), "b")], A, 2).created
    assert world.numbers() == [3, 4, 5]


def test_a_table_dropped_and_made_between_staging_and_attempt_takes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)

    def drop_and_make() -> None:
        world.catalogue().drop_table(world.identifier())
        world.open().commit(CPU, [world.lake.put(CPU, rows(6), "c")], B, 1)

    file = world.lake.put(CPU, rows(3), "b")
    first_comes(monkeypatch, drop_and_make)
    with pytest.raises(Conflict):
        tables.commit(CPU, [file], A, 2)
    assert world.numbers() == [6, 7, 8]


def test_files_are_replaced_at_once_and_markers_stay(world: World) -> None:
    tables = world.open(history_hours=0)
    small = [world.lake.put(CPU, rows(3 * number), f"b{number}") for number in range(4)]
    for number, file in enumerate(small):
        tables.commit(CPU, [file], A, number + 1)
    merged = world.lake.put(CPU, rows(0, 9), "merged")
    tables.replace(CPU, [file.key for file in small[:3]], [merged])
    assert sorted(tables.files(CPU)) == sorted([merged.key, small[3].key])
    assert world.numbers() == list(range(12))
    assert tables.markers(CPU) == {A: 4}
    assert loaded(world).current_snapshot().summary.operation.value == "replace"
    with pytest.raises(Conflict, match="not in the table any more"):
        tables.replace(CPU, [small[0].key], [merged])
    tables.maintain(CPU)  # no snapshot needs the small ones now
    assert {key for key in world.lake.objects() if key.endswith(".parquet")} == {merged.key, small[3].key}
    assert world.numbers() == list(range(12))


def test_a_replacement_is_refused_after_somebody_else_deleted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = world.open()
    file = world.lake.put(CPU, rows(0), "a")
    tables.commit(CPU, [file], A, 1)
    merged = world.lake.put(CPU, rows(0), "merged")
    first_comes(monkeypatch, lambda: world.load().delete("n < 9"))
    with pytest.raises(Conflict):
        tables.replace(CPU, [file.key], [merged])
    assert world.numbers() == []


def test_retention_takes_files_out_and_their_objects_later(world: World) -> None:
    tables = world.open(history_hours=0)
    old, new = world.lake.put(CPU, rows(0), "a"), world.lake.put(CPU, rows(3), "b", hour=50)
    tables.commit(CPU, [old, new], A, 1)
    waiting = world.lake.put(CPU, rows(9), "c")  # uploaded, and not committed yet
    tables.remove(CPU, [old.key, "default/cpu/not/there.parquet"])
    assert world.numbers() == [3, 4, 5]
    assert old.key in world.lake.objects()
    assert tables.maintain(CPU).deleted > 0
    assert {key for key in world.lake.objects() if key.endswith(".parquet")} == {new.key, waiting.key}
    tables.remove(CPU, [old.key])  # it is gone already
    tables.commit(CPU, [waiting], A, 2)
    assert world.numbers() == [3, 4, 5, 9, 10, 11]


def foreign(world: World, *fields: NestedField, spec: PartitionSpec | None = None) -> None:
    catalogue = world.catalogue()
    catalogue.create_namespace_if_not_exists(world.identifier()[0])
    more: dict[str, Any] = {"partition_spec": spec} if spec is not None else {}
    location = None if world.options.catalog == "rest" else f"{world.lake.storage.url}/_iceberg/foreign"
    catalogue.create_table(world.identifier(), Schema(*fields), location=location, **more)


TIME = NestedField(1, "time", TimestamptzType(), required=True)
N = NestedField(2, "n", LongType())


def test_a_table_of_somebody_else_is_taken_if_it_fits(world: World) -> None:
    spec = PartitionSpec(PartitionField(1, 1000, MonthTransform(), "month"))
    foreign(world, TIME, N, NestedField(3, "site", StringType()), spec=spec)
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
    assert [column.name for column in tables.columns(CPU)] == ["time", "n", "site", "host"]
    assert world.numbers() == [0, 1, 2]
    assert tables.all_tables() == [CPU]


@pytest.mark.parametrize(
    ("fields", "spec", "reason"),
    [
        ([N], None, "no column 'time'"),
        ([TIME, NestedField(2, "n", StringType())], None, "'n' is str in the table and i64"),
        ([TIME, N], PartitionSpec(PartitionField(2, 1000, BucketTransform(4), "b")), "partitioned by 'b'"),
        ([TIME, N, NestedField(3, "site", StringType(), required=True)], None, "requires a value in the column 'site'"),
        ([TIME, N, NestedField(3, "Host", StringType())], None, "differ in case"),
    ],
)
def test_a_table_of_somebody_else_is_refused_with_the_difference(
    world: World, fields: list[NestedField], spec: PartitionSpec | None, reason: str
) -> None:
    foreign(world, *fields, spec=spec)
    tables = world.open()
    with pytest.raises(Refused, match=reason):
        tables.commit(CPU, [world.lake.put(CPU, rows(0), "a")], A, 1)
    assert tables.all_tables() == []
    assert world.load().current_snapshot() is None


def test_a_column_that_was_renamed_keeps_its_new_name(world: World) -> None:
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0, load=0.5), "a")], A, 1)
    with world.load().update_schema() as update:
        update.rename_column("load", "load_1m")
    tables.commit(CPU, [world.lake.put(CPU, rows(3, load=1.5), "b")], A, 2)
    found = world.load().scan().to_arrow()
    assert "load" not in found.schema.names
    assert sorted(found["load_1m"].to_pylist()) == [0.5] * 3 + [1.5] * 3


def test_a_column_that_was_dropped_comes_back_with_new_files(world: World) -> None:
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0, load=0.5), "a")], A, 1)
    with world.load().update_schema() as update:
        update.delete_column("load")
    tables.commit(CPU, [world.lake.put(CPU, rows(3, load=1.5), "b")], A, 2)
    found = {row["n"]: row["load"] for row in world.load().scan().to_arrow().to_pylist()}
    assert found[3] == 1.5
    assert world.numbers() == list(range(6))


def test_every_type_of_the_lake_has_one_in_the_table(world: World) -> None:
    row = {"big": None, "raw": None, "ok": True, "x": 0.5, "time_ns": 7, "note": "é"}
    data = table_of(
        [{"time": number, "n": number} | row for number in range(3)],
        big=pa.decimal128(20, 0),
        raw=pa.binary(),
        time_ns=pa.int16(),
    )
    values = pa.array([Decimal(2**64 - 1), Decimal(2**63), None], pa.decimal128(20, 0))
    data = data.set_column(data.schema.get_field_index("big"), data.schema.field("big"), values)
    raw = pa.array([b"\x00\xff", b"", None], pa.binary())
    data = data.set_column(data.schema.get_field_index("raw"), data.schema.field("raw"), raw)
    world.open().commit(CPU, [world.lake.put(CPU, data, "a")], A, 1)
    found = sorted(world.load().scan().to_arrow().to_pylist(), key=lambda row: row["n"])
    assert [int(row["big"]) if row["big"] is not None else None for row in found] == [2**64 - 1, 2**63, None]
    assert [row["raw"] for row in found] == [b"\x00\xff", b"", None]
    assert [(row["ok"], row["x"], row["time_ns"], row["note"]) for row in found] == [(True, 0.5, 7, "é")] * 3


def test_an_unsigned_column_of_an_old_file_is_refused(world: World) -> None:
    data = table_of([{"time": number, "n": number, "u": number} for number in range(3)], u=pa.uint64())
    with pytest.raises(Refused, match="no type for u64, which the column 'u'"):
        world.open().commit(CPU, [world.lake.put(CPU, data, "a")], A, 1)


@pytest.mark.parametrize(
    "name", [("Prod-EU", "http.requests"), ("a b/c?", "tempé_x41"), ("x", "m" * 250), ("_", "ſ%2F")]
)
def test_any_name_has_a_table(world: World, name: tuple[str, str]) -> None:
    tables = world.open()
    tables.commit(name, [world.lake.put(name, rows(0), "a")], A, 1)
    assert tables.all_tables() == [name]
    assert tables.markers(name) == {A: 1}
    assert world.numbers(name) == [0, 1, 2]


def test_manifests_stay_few_and_all_files_are_there(world: World) -> None:
    tables = world.open()
    for number in range(40):
        tables.commit(CPU, [world.lake.put(CPU, rows(number, 1), f"b{number}")], A, number + 1)
    table: Any = world.load()
    assert len(table.current_snapshot().manifests(table.io)) < 15
    assert table.current_snapshot().summary["total-data-files"] == "40"
    assert table.current_snapshot().summary["total-records"] == "40"
    assert world.numbers() == list(range(40))
    assert tables.maintain(CPU).merged > 0
    assert world.numbers() == list(range(40))
    assert isinstance(tables, IcebergTables)

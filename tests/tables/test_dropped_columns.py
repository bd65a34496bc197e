"""A column of an Iceberg table that a person dropped: its name keeps its type, for the files that have it."""

from __future__ import annotations

import pyarrow as pa
import pytest

from arcpipe.tables.base import Column, Refused
from tests.support.compaction import table_of
from tests.support.iceberg import World
from tests.support.tables import CPU, rows
from tests.tables.test_renamed import read

A = "0123456789ab"

pytest_plugins = ["tests.support.iceberg"]


def drop(world: World) -> None:
    """Drop the column `load` as a person does."""
    with world.load().update_schema() as update:
        update.delete_column("load")


@pytest.mark.parametrize(("type_", "value", "word"), [(pa.string(), "high", "str"), (pa.int64(), 7, "i64")])
def test_a_dropped_column_does_not_come_back_with_another_type(
    world: World, type_: pa.DataType, value: object, word: str
) -> None:
    """Files from before have no field ids, so readers would find the old values by the name, and fail."""
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0, load=0.5), "a")], A, 1)
    drop(world)
    data = table_of([{"time": 10, "n": 3, "load": value}], load=type_)
    with pytest.raises(Refused, match=f"'load' is f64 in .* and {word} in") as caught:
        tables.commit(CPU, [world.lake.put(CPU, data, "b")], A, 2)
    assert (caught.value.column, caught.value.table_type) == ("load", "f64")
    assert Column("load", "f64", is_dropped=True) in tables.columns(CPU)
    assert [row["n"] for row in read(world)] == [0, 1, 2]


def test_a_merge_brings_no_dropped_column_back(world: World) -> None:
    tables = world.open()
    files = [world.lake.put(CPU, rows(number, 1, load=0.5), f"b{number}") for number in range(2)]
    tables.commit(CPU, files, A, 1)
    drop(world)
    tables.replace(CPU, [file.key for file in files], [world.lake.put(CPU, rows(0, 2, load=0.5), "c")])
    assert [sorted(row) for row in read(world)] == [["host", "n", "time"]] * 2

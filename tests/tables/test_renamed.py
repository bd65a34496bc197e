"""A column of an Iceberg table that a person renamed, while files have its present name, a former one, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from arcpipe.tables.base import Column, Refused
from tests.integration.test_tables import MOMENT, serving, wait_for_rows, write
from tests.support.compaction import table_of
from tests.support.iceberg import World
from tests.support.table_readers import iceberg_of
from tests.support.tables import CPU, rows
from tests.support.waiting import wait_until

A = "0123456789ab"
BOTH = table_of(
    [{"time": 10, "n": 3, "load": 1.5}, {"time": 11, "n": 4, "load_1m": 2.5}], load=pa.float64(), load_1m=pa.float64()
)

pytest_plugins = ["tests.support.iceberg"]


def rename(world: World, *names: str) -> None:
    """Rename the column `load` as a person does, once for each name."""
    for before, after in zip(["load", *names], names, strict=False):
        with world.load().update_schema() as update:
            update.rename_column(before, after)


def read(world: World) -> list[dict[str, Any]]:
    """Read the table with two readers, which have to agree; by the column `n`."""
    table = world.load()
    first = sorted(table.scan().to_arrow().to_pylist(), key=lambda row: int(row["n"]))
    second = pl.scan_iceberg(table, reader_override="native").sort("n").collect().to_dicts()
    assert [(row["n"], *by_name(row)) for row in first] == [(row["n"], *by_name(row)) for row in second]
    return first


def by_name(row: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted((name, value) for name, value in row.items() if name != "time")


def test_a_file_with_both_names_of_a_column_is_refused(world: World) -> None:
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0, load=0.5), "a")], A, 1)
    rename(world, "load_1m")
    assert Column("load", "f64", "load_1m") in tables.columns(CPU)
    with pytest.raises(Refused, match=r"'load' and 'load_1m' of .* are one column of the table") as caught:
        tables.commit(CPU, [world.lake.put(CPU, BOTH, "b")], A, 2)
    assert caught.value.column == "load"
    assert [row["load_1m"] for row in read(world)] == [0.5] * 3


def test_a_file_with_two_former_names_of_a_column_is_refused(world: World) -> None:
    tables = world.open()
    tables.commit(CPU, [world.lake.put(CPU, rows(0, load=0.5), "a")], A, 1)
    rename(world, "load_1m", "load_avg")
    with pytest.raises(Refused, match="which was renamed to 'load_avg'") as caught:
        tables.commit(CPU, [world.lake.put(CPU, BOTH, "b")], A, 2)
    assert caught.value.column == "load_1m"


def test_a_merge_of_files_with_either_name_is_refused(world: World) -> None:
    tables = world.open()
    first = world.lake.put(CPU, rows(0, load=0.5), "a")
    tables.commit(CPU, [first], A, 1)
    rename(world, "load_1m")
    second = world.lake.put(CPU, rows(3, load_1m=1.5), "b")
    tables.commit(CPU, [second], A, 2)
    merged = table_of(
        [{"time": n, "n": n, "load" if n < 3 else "load_1m": 0.5} for n in range(6)],
        load=pa.float64(),
        load_1m=pa.float64(),
    )
    with pytest.raises(Refused) as caught:
        tables.replace(CPU, [first.key, second.key], [world.lake.put(CPU, merged, "c")])
    assert caught.value.column == "load"
    assert [row["load_1m"] for row in read(world)] == [0.5] * 3 + [1.5] * 3


def test_senders_of_both_names_have_all_values_in_the_table(tmp_path: Path) -> None:
    with serving(tmp_path, "iceberg") as server:
        world = iceberg_of(server.lake, server.wal)
        write(server, 1, load=[0.5])
        wait_for_rows(server, "iceberg", [1])
        rename(world, "load_1m")
        write(server, 2, load=[1.5])
        wait_for_rows(server, "iceberg", [1, 2])
        time = [MOMENT + 3, MOMENT + 4, MOMENT + 5]
        columns = {"time": time, "n": [3, 4, 5], "load": [2.5, None, 3.5], "load_1m": [None, 4.5, 5.5]}
        server.write({"m": "cpu", "columns": columns})
        wait_for_rows(server, "iceberg", [1, 2, 3, 4, 5])
        assert "'load' is a former name of 'load_1m', and files have both: its values go to 'load_2'" in server.log
        wait_until(lambda: '"load_2"' in (server.wal / "schema.json").read_text(), "the uploader knows the name")
        write(server, 6, load=[6.5])
        wait_for_rows(server, "iceberg", [1, 2, 3, 4, 5, 6])
        server.stop()
        assert server.log.count("its values go to") == 1
        assert [(row["n"], row["load_1m"], row["load_2"]) for row in read(world)] == [
            (1, 0.5, None),
            (2, 1.5, None),
            (3, None, 2.5),
            (4, 4.5, None),
            (5, 5.5, 3.5),
            (6, None, 6.5),
        ]

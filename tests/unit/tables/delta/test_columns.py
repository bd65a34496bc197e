"""Columns of files against those of tables: what is added, and what is refused."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe.lake.file_schema import TIME_TYPE
from arcpipe.tables.base import Column, NewFile, Refused
from arcpipe.tables.delta.columns import columns_of, fields_of, new_fields, schema_of

TABLE = ("db", "cpu")


def file(values: dict[str, pa.Array], key: str = "db/cpu/x.parquet") -> NewFile:
    memory = io.BytesIO()
    pq.write_table(pa.table(values), memory)
    metadata = pq.read_metadata(memory)
    return NewFile(key, len(memory.getvalue()), metadata.num_rows, metadata)


def test_every_type_of_arcpipe_has_one_in_the_table() -> None:
    types = [TIME_TYPE, pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.binary(), pa.decimal128(20, 0)]
    fields = new_fields(TABLE, [], [file({f"c{n}": pa.nulls(1, type_) for n, type_ in enumerate(types)})])
    assert [field["type"] for field in fields] == [
        *("timestamp", "long", "double", "boolean", "string", "binary", "decimal(20,0)")
    ]
    assert fields_of(schema_of(fields)) == fields
    assert columns_of(fields)[:3] == [Column("c0", "time"), Column("c1", "i64"), Column("c2", "f64")]
    assert columns_of(fields)[6].type == str(pa.decimal128(20, 0))


def test_columns_are_added_in_the_order_in_which_they_come() -> None:
    old = new_fields(TABLE, [], [file({"time": pa.nulls(1, TIME_TYPE), "b": pa.array([1])})])
    files = [file({"b": pa.array([1]), "d": pa.array([1.0])}), file({"c": pa.array(["x"]), "d": pa.array([2.0])})]
    assert [(field["name"], field["type"]) for field in new_fields(TABLE, old, files)] == [
        ("d", "double"),
        ("c", "string"),
    ]
    assert new_fields(TABLE, old, [file({"b": pa.array([1])})]) == []


@pytest.mark.parametrize("name", ["a b", "a,b", "(x)", "k{l}", "g=h", "n\nl", "%", "i.j", "ü"])
def test_every_name_may_be_that_of_a_column(name: str) -> None:
    assert [field["name"] for field in new_fields(TABLE, [], [file({name: pa.array([1])})])] == [name]


def test_another_type_is_refused_with_both() -> None:
    old = new_fields(TABLE, [], [file({"v": pa.array([1.0])})])
    with pytest.raises(Refused, match="'v' is f64 in the table and i64 in db/cpu/y") as caught:
        new_fields(TABLE, old, [file({"v": pa.array([1])}, "db/cpu/y.parquet")])
    assert (caught.value.column, caught.value.table_type, caught.value.file_type) == ("v", "f64", "i64")
    assert caught.value.key == "db/cpu/y.parquet"


@pytest.mark.parametrize(
    "type_", [pa.uint64(), pa.timestamp("ns", tz="UTC"), pa.timestamp("us"), pa.list_(pa.int64())], ids=str
)
def test_a_type_that_delta_has_not_is_refused(type_: pa.DataType) -> None:
    with pytest.raises(Refused, match="no type for"):
        new_fields(TABLE, [], [file({"v": pa.nulls(1, type_)})])


def test_a_name_that_differs_in_case_is_refused() -> None:
    old = new_fields(TABLE, [], [file({"Usage": pa.array([1])})])
    with pytest.raises(Refused, match="case"):
        new_fields(TABLE, old, [file({"usage": pa.array([1])})])


def test_a_column_that_may_not_be_null_needs_values() -> None:
    old = new_fields(TABLE, [], [file({"time": pa.array([1], TIME_TYPE), "v": pa.array([1])})])
    old[0]["nullable"] = False
    assert new_fields(TABLE, old, [file({"time": pa.array([1], TIME_TYPE)})]) == []
    for values in ({"time": pa.array([1, None], TIME_TYPE)}, {"v": pa.array([1])}):
        with pytest.raises(Refused, match="may not be null"):
            new_fields(TABLE, old, [file(values)])


@pytest.mark.parametrize("schema", ["", "{}", '{"fields": 1}', '{"fields": [{"name": "x"}]}', "[]"])
def test_a_schema_that_cannot_be_read_is_told(schema: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        fields_of(schema)

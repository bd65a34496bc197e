"""Which columns of a file move, where to, and that every value is found again."""

from __future__ import annotations

import itertools
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.lake.file_schema import RESCUED_DATA, ROLE, SENDERS_NAME, TIME_TYPE, file_order
from arcpipe.tables.base import Column
from arcpipe.tables.fitting import Move, moved, moved_back, moved_schema, moves
from arcpipe.tables.schema import word_of

_VALUES: dict[str, tuple[pa.DataType, Any]] = {
    "i64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "f64": (pa.float64(), st.floats(allow_nan=False)),
    "bool": (pa.bool_(), st.booleans()),
    "str": (pa.string(), st.text(max_size=5)),
    "bytes": (pa.binary(), st.binary(max_size=5)),
    "u64": (pa.decimal128(20, 0), st.integers(2**63, 2**64 - 1).map(Decimal)),
}


def schema_of(**columns: pa.DataType) -> pa.Schema:
    fields = [pa.field(name, type_, metadata={ROLE: b"field"}) for name, type_ in columns.items()]
    time = pa.field("time", TIME_TYPE, False, metadata={ROLE: b"time"})
    return pa.schema(sorted([time, *fields], key=file_order))


def columns_of(known: dict[str, str]) -> list[Column]:
    return [Column(*item) for item in known.items()]


def targets(known: dict[str, str], schema: pa.Schema, **chosen: str) -> dict[str, str]:
    earlier = {tuple(name.split("__")): target for name, target in chosen.items()}
    return {move.column: move.target for move in moves(columns_of(known), schema, earlier)}  # type: ignore[arg-type]


def test_what_fits_or_is_new_stays() -> None:
    assert targets({"time": "time", "a": "i64"}, schema_of(a=pa.int64(), b=pa.string())) == {}


def test_a_value_of_another_type_goes_to_its_sibling() -> None:
    assert targets({"n": "i64"}, schema_of(n=pa.string())) == {"n": "n_str"}
    assert targets({"n": "str"}, schema_of(n=pa.decimal128(20, 0))) == {"n": "n_u64"}
    assert targets({"n": "i32"}, schema_of(n=pa.int64())) == {"n": "n_i64"}  # of somebody else's table


def test_a_sibling_is_shared_with_columns_of_its_type_only() -> None:
    assert targets({"n": "i64", "n_str": "str"}, schema_of(n=pa.string())) == {"n": "n_str"}
    assert targets({"n": "i64", "n_str": "i64"}, schema_of(n=pa.string())) == {"n": "n_str_2"}
    assert targets({"n": "i64", "N_STR": "str"}, schema_of(n=pa.string())) == {"n": "n_str_2"}


def test_a_column_of_the_file_is_no_sibling_of_another() -> None:
    assert targets({"n": "i64"}, schema_of(n=pa.string(), n_str=pa.string())) == {"n": "n_str_2"}


def test_a_former_name_of_a_column_that_the_file_has_gets_a_number() -> None:
    known = [Column("load_1m", "f64"), Column("load", "f64", "load_1m"), Column("old", "f64", "load_1m")]

    def found(**columns: pa.DataType) -> dict[str, str]:
        return {move.column: move.target for move in moves(known, schema_of(**columns), {})}

    assert found(load=pa.float64()) == {}
    assert found(load_1m=pa.float64(), load=pa.float64()) == {"load": "load_2"}
    assert found(old=pa.float64(), load=pa.float64(), load_1m=pa.float64()) == {"load": "load_2", "old": "old_2"}
    assert found(old=pa.float64(), load=pa.float64()) == {"old": "old_2"}
    assert found(load=pa.string()) == {"load": "load_str"}
    assert found(load=pa.int64(), load_1m=pa.float64()) == {"load": "load_2"}


def test_the_name_of_a_dropped_column_keeps_its_type() -> None:
    known = [Column("load", "f64", is_dropped=True)]
    assert moves(known, schema_of(load=pa.float64()), {}) == []
    assert [move.target for move in moves(known, schema_of(load=pa.string()), {})] == ["load_str"]


def test_names_that_differ_in_case_only_get_a_number() -> None:
    assert targets({"usage": "i64"}, schema_of(Usage=pa.int64())) == {"Usage": "Usage_2"}
    assert targets({"usage": "i64", "Usage_2": "str"}, schema_of(Usage=pa.int64())) == {"Usage": "Usage_3"}


def test_a_choice_is_kept_while_it_fits() -> None:
    assert targets({"n": "i64"}, schema_of(n=pa.string()), n__str="other") == {"n": "other"}
    assert targets({"n": "i64", "other": "i64"}, schema_of(n=pa.string()), n__str="other") == {"n": "n_str"}


@pytest.mark.parametrize("name", ["time", RESCUED_DATA, "time_ns"])
def test_columns_that_no_sender_names_stay(name: str) -> None:
    schema = pa.schema([pa.field(name, pa.string(), metadata={ROLE: b"field"})])
    assert moves(columns_of({name: "i64"}), schema, {}) == []


def test_the_senders_name_stays_with_the_values() -> None:
    field = pa.field("time_field", pa.string(), metadata={ROLE: b"tag", SENDERS_NAME: b"time"})
    schema = pa.schema([field])
    found = moves(columns_of({"time_field": "i64"}), schema, {})
    assert found == [Move("time_field", "time", "str", "i64", "time_field_str")]
    [after] = moved_schema(schema, found)
    assert after.metadata == {ROLE: b"tag", SENDERS_NAME: b"time"}


@pytest.mark.parametrize(("in_table", "in_file"), [*itertools.permutations(_VALUES, 2)])
@settings(max_examples=15)
@given(data=st.data())
def test_every_value_is_found_again(in_table: str, in_file: str, data: st.DataObject) -> None:
    type_, strategy = _VALUES[in_file]
    values = data.draw(st.lists(st.none() | strategy, max_size=6))
    schema = schema_of(n=type_, other=pa.int64())
    columns = {"time": pa.array(range(len(values)), TIME_TYPE), "n": pa.array(values, type_), "other": None}
    columns["other"] = pa.array(range(len(values)), pa.int64())
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    word = word_of(_VALUES[in_table][0])
    found = moves(columns_of({"n": word}), schema, {})
    after = moved_schema(schema, found)
    changed = moved(table, found, after)
    assert changed.schema.names == after.names
    for field in after:
        if field.name == "n":
            assert word_of(field.type) == word
    assert moved_back(changed, found, schema.names).to_pydict() == table.to_pydict()


def test_integers_that_are_exact_as_floats_stay() -> None:
    schema = schema_of(n=pa.int64())
    values = [1, None, -(2**53), 2**53, 2**53 + 1]
    table = pa.table([pa.array(range(5), TIME_TYPE), pa.array(values, pa.int64())], schema=schema)
    found = moves(columns_of({"n": "f64"}), schema, {})
    changed = moved(table, found, moved_schema(schema, found))
    assert changed["n"].to_pylist() == [1.0, None, -(2.0**53), 2.0**53, None]
    assert changed["n_i64"].to_pylist() == [None] * 4 + [2**53 + 1]


def test_text_with_a_dictionary_moves_as_it_is() -> None:
    schema = schema_of(n=pa.string())
    texts = pa.array(["a", "b", None, "a"]).dictionary_encode()
    table = pa.table({"time": pa.array(range(4), TIME_TYPE), "n": texts})
    found = moves(columns_of({"n": "i64"}), schema, {})
    changed = moved(table, found, moved_schema(schema, found))
    assert changed["n_str"].type == texts.type
    assert moved_back(changed, found, schema.names)["n"].to_pylist() == ["a", "b", None, "a"]

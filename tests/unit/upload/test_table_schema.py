"""A sender's name has the same columns for ever, and no two columns have a name that a reader takes for one."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.codec.arrow.find import find_values
from arcpipe.codec.arrow.values import Values
from arcpipe.lake.column_names import folded, is_reserved, numbered
from arcpipe.upload import table_schema
from arcpipe.upload.table_schema import ColumnRules, Columns, ColumnSchema, TableSchema, TypeWord


def values(*given: Any) -> Values:
    return find_values(b"".join(map(msgpack.packb, given)), len(given))


def settle(
    table: TableSchema,
    name: str,
    found: Values | None = None,
    hints: Collection[str] = (),
    tag: bool = False,
    coming: Collection[str] = (),
    **rules: Any,
) -> str | None:
    """The name and type of a column after its values came."""
    columns = Columns(table, ColumnRules(**rules), coming or [name])
    column = columns.settle(name, values(1.5) if found is None else found, hints, tag)
    return None if column is None else f"{column.column or name} {column.type}"


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        (values(1), values(2.5), "i64"),
        (values(1.5), values(2), "f64"),
        (values(2**63), values(2.5), "i64"),
        (values(1), values("x", "y"), "i64"),
        (values("x"), values(1, 2), "str"),
        (values(True), values(1), "bool"),
        (values(b"x"), values("x"), "bytes"),
        (values(msgpack.Timestamp(1)), values("x"), "time"),
        (values(1, float("nan")), values("x"), "f64"),
    ],
)
def test_the_first_type_stays(first: Values, second: Values, word: str) -> None:
    table = TableSchema("db", "m")
    assert settle(table, "a", first) == settle(table, "a", second) == f"a {word}"


def test_nil_nan_and_nested_values_settle_no_type() -> None:
    table = TableSchema("db", "m")
    assert settle(table, "a", values(None, [1], float("nan"))) is None
    assert table.columns == {}
    assert settle(table, "a", values("x")) == "a str"


@pytest.mark.parametrize(
    ("hints", "word"),
    [
        ({"u64"}, "i64"),
        ({"f64"}, "f64"),
        ({"i64", "u64"}, "i64"),
        ({"i64", "f64"}, "f64"),
        ({"str"}, "str"),
        ({"str", "i64"}, "i64"),
        ((), "i64"),
    ],
)
def test_senders_decide_over_a_new_column(hints: set[str], word: str) -> None:
    assert settle(TableSchema("db", "m"), "a", values(1, 2), hints) == f"a {word}"


def test_no_sender_changes_a_known_type() -> None:
    table = TableSchema("db", "m", {"a": ColumnSchema("i64"), "b": ColumnSchema("u64")})
    assert settle(table, "a", values(1), {"f64"}) == "a i64"
    assert settle(table, "b", values(1.5), {"f64"}) == "b u64"


def test_settings_decide_before_senders() -> None:
    types: tuple[tuple[str, TypeWord], ...] = (("*.cpu.us*", "f64"), ("db.*", "str"))
    assert settle(TableSchema("db", "cpu"), "usage", values("x"), {"str"}, types=types) == "usage f64"
    assert settle(TableSchema("db", "cpu"), "other", types=types) == "other str"
    assert settle(TableSchema("d", "mem"), "usage", values(1), types=types) == "usage i64"
    assert settle(TableSchema("d", "m"), "a", values(1), untyped_integers="f64") == "a f64"
    assert settle(TableSchema("d", "m"), "a", values(1), {"i64"}, untyped_integers="f64") == "a i64"


def test_once_a_tag_always_a_tag() -> None:
    table = TableSchema("db", "m")
    for tag in (False, True, False):
        settle(table, "a", values("x"), (), tag)
    assert table.columns["a"] == ColumnSchema("str", True)


def test_further_columns_than_the_bound_have_no_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_schema, "MAX_COLUMNS", 2)
    table = TableSchema("db", "m")
    assert [settle(table, name) for name in "abcab"] == ["a f64", "b f64", None, "a f64", "b f64"]
    assert Columns(table, ColumnRules(), ()).sibling("a", "str") is None


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("Time", "time_field"),
        ("TIME", "time_field"),
        ("time_ns", "time_ns_field"),
        ("_rescued_data", "_rescued_data_field"),
        ("_File", "_file_field"),
        ("__name__", "_name___field"),
        ("__", "_column_field"),
        ("year", "year"),
        ("_", "_"),
    ],
)
def test_words_that_readers_take_get_a_suffix(name: str, column: str) -> None:
    assert settle(TableSchema("db", "m"), name) == f"{column} f64"


def test_folders_of_the_layout_hive_are_no_columns() -> None:
    table = TableSchema("db", "m")
    assert settle(table, "Month", hive=True) == "month_field f64"
    assert settle(table, "day", tag=True, hive=True) == "day_tag f64"
    assert settle(table, "minute", hive=True) == "minute f64"
    assert settle(table, "day", hive=False) == "day_tag f64"


def test_a_name_that_is_taken_later_moves_once() -> None:
    table = TableSchema("db", "m", {"year": ColumnSchema("i64"), "time_ns": ColumnSchema("str")})
    assert settle(table, "year", hive=True) == "year_field i64"
    assert settle(table, "year") == "year_field i64"
    assert settle(table, "time_ns") == "time_ns str"
    assert settle(table, "time_ns", keep_nanoseconds=True) == "time_ns_field str"


def test_names_that_differ_in_case_are_numbered_in_their_order() -> None:
    table = TableSchema("db", "m")
    coming = ["Host", "host", "HOST", "host_2"]
    found = [settle(table, name, coming=coming) for name in coming]
    assert found == ["Host f64", "host_3 f64", "HOST_4 f64", "host_2 f64"]
    assert [settle(table, name) for name in reversed(coming)] == found[::-1]


def test_a_sibling_leaves_the_names_of_senders_to_them() -> None:
    table = TableSchema("db", "m", {"a": ColumnSchema("i64"), "B": ColumnSchema("i64", column="b_2")})
    columns = Columns(table, ColumnRules(), ["a", "a_F64", "B"])
    assert columns.sibling("a", "f64") == "a_f64_2"
    assert columns.sibling("B", "str") == "b_2_str"
    assert settle(table, "a_F64") == "a_F64 f64"
    assert settle(table, "b_2_STR") == "b_2_STR_2 f64"
    assert Columns(table, ColumnRules(), ["x"]).sibling("a", "f64") == "a_f64_2"


def test_many_names_that_are_one_are_numbered_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0

    def counting(wanted: str, is_free: Any, first: int) -> tuple[str, int]:
        nonlocal tried
        found = numbered(wanted, is_free, first)
        tried += found[1] - first
        return found

    monkeypatch.setattr(table_schema, "numbered", counting)
    names = [
        "".join(letter.upper() if n >> at & 1 else letter for at, letter in enumerate("abcdefghij"))
        for n in range(1024)
    ]
    columns = Columns(TableSchema("db", "m"), ColumnRules(), names)
    for name in names:
        columns.settle(name, values(1), (), False)
    assert tried == 1023


NAMES = st.one_of(
    st.sampled_from(
        ["a", "A", "a_f64", "A_F64", "a_f64_2", "time", "Time", "time_field", "__a", "_a_f64", "year", "ı"]
    ),
    st.text(st.sampled_from("aAbBıIiİſsSßK_2"), min_size=1, max_size=4),
)
STEPS = st.lists(st.tuples(NAMES, st.sampled_from(["settle", "f64", "str", "u64"]), st.booleans(), st.booleans()))


@given(STEPS, st.booleans())
def test_columns_are_unique_and_stay(steps: list[tuple[str, str, bool, bool]], hive: bool) -> None:
    table = TableSchema("db", "m")
    seen: dict[tuple[str, str], str] = {}
    for name, step, tag, keep_nanoseconds in steps:
        columns = Columns(table, ColumnRules(hive=hive, keep_nanoseconds=keep_nanoseconds), [name])
        column = columns.settle(name, values(1), (), tag)
        assert column is not None
        found = column.column or name
        if step != "settle":
            sibling = columns.sibling(name, step)  # type: ignore[arg-type]
            assert sibling is not None
            found = sibling
        assert seen.setdefault((name, step), found) == found
        assert not is_reserved(found, hive)
    names = list(seen.values())
    assert len(set(map(folded, names))) == len(names)
    assert len({re.sub("[İı]", "i", name).lower() for name in names if name.isascii()}) == sum(map(str.isascii, names))


@pytest.mark.parametrize(("one", "other"), [("ı", "I"), ("ſ", "s"), ("K", "k"), ("ß", "SS"), ("Å", "å")])
def test_names_that_some_engine_takes_for_one_are_one(one: str, other: str) -> None:
    assert folded(one) == folded(other)

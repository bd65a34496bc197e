"""Column types stay what they were, and the file that keeps them never stops anybody."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from arcpipe.codec.arrow_columns import Values, find_values
from arcpipe.upload import schema as schema_module
from arcpipe.upload.schema import ColumnSchema, SchemaRegistry, TableSchema


def values(*given: Any) -> Values:
    return find_values(b"".join(map(msgpack.packb, given)), len(given))


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        (values(1), values(2.5), "f64"),
        (values(2**63), values(2.5), "f64"),
        (values(1.5), values(2), "f64"),
        (values(1), values(2**63), "i64"),
        (values(2**63), values(-1), "u64"),
        (values(1), values("x", "y"), "i64"),
        (values("x"), values(1, 2), "str"),
        (values(True), values(1), "bool"),
        (values(b"x"), values("x"), "bytes"),
        (values("x"), values(None), "str"),
    ],
)
def test_the_first_type_stays_but_integers_widen(first: Values, second: Values, word: str) -> None:
    table = TableSchema("db", "m")
    table.settle("a", first, (), False)
    assert table.settle("a", second, (), False) == word
    assert table.columns["a"].type == word


def test_what_has_no_type_is_not_remembered() -> None:
    table = TableSchema("db", "m")
    assert table.settle("a", values(None, [1]), (), False) is None
    assert table.columns == {}
    assert table.settle("a", values(1), (), False) == "i64"


@pytest.mark.parametrize(
    ("hints", "word"),
    [
        ({"u64"}, "u64"),
        ({"f64"}, "f64"),
        ({"i64", "u64"}, "i64"),
        ({"i64", "f64"}, "f64"),
        ({"str"}, "str"),
        ({"str", "i64"}, "i64"),
        ((), "i64"),
    ],
)
def test_senders_decide_over_a_new_column(hints: set[str], word: str) -> None:
    assert TableSchema("db", "m").settle("a", values(1, 2), hints, False) == word


def test_a_sender_cannot_change_a_known_type_but_to_a_float() -> None:
    table = TableSchema("db", "m", {"a": ColumnSchema("i64"), "b": ColumnSchema("str")})
    assert table.settle("a", values(1), {"u64"}, False) == "i64"
    assert table.settle("a", values(1), {"f64"}, False) == "f64"
    assert table.settle("b", values(1), {"f64"}, False) == "str"


def test_once_a_tag_always_a_tag() -> None:
    table = TableSchema("db", "m")
    for tag in (False, True, False):
        table.settle("a", values("x"), (), tag)
    assert table.columns["a"] == ColumnSchema("str", True)


def test_further_columns_than_the_bound_have_no_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_module, "MAX_COLUMNS", 2)
    table = TableSchema("db", "m")
    assert [table.settle(name, values(1), (), False) for name in "abcab"] == ["i64", "i64", None, "i64", "i64"]


def test_the_registry_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    registry = SchemaRegistry.load(tmp_path / "schema.json")
    drafts = [registry.draft("db", name) for name in ("b", "a", "untouched")]
    for draft in drafts[:2]:
        draft.settle("host", values("x"), (), True)
        draft.settle("v", values(1.5), (), False)
    changes = registry.changed(drafts)
    assert [change.measurement for change in changes] == ["a", "b"]
    registry.apply(changes)
    registry.save()
    again = SchemaRegistry.load(str(tmp_path / "schema.json"))
    assert len(again) == 2
    assert again.draft("db", "a") == drafts[1]
    assert again.changed([again.draft("db", "a")]) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "schema.json"]


def test_changes_survive_json() -> None:
    changes = [TableSchema("db", "m", {"a": ColumnSchema("i64"), "h": ColumnSchema("str", True)})]
    assert msgspec.json.decode(msgspec.json.encode(changes), type=list[TableSchema]) == changes


def test_a_draft_does_not_change_the_registry(tmp_path: Path) -> None:
    registry = SchemaRegistry(tmp_path / "schema.json", [TableSchema("db", "m", {"a": ColumnSchema("i64")})])
    registry.draft("db", "m").settle("a", values(1.5), (), False)
    assert registry.draft("db", "m").columns == {"a": ColumnSchema("i64")}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\x00", b'{"version":2,"tables":[]}', b'{"version":1,"tables":[["d","m",{"a":["i32"]}]]}'],
)
def test_a_file_that_cannot_be_read_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "schema.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert len(SchemaRegistry.load(tmp_path / "schema.json")) == 0
    assert "column types start anew" in caplog.text


def test_a_missing_file_is_an_empty_registry(tmp_path: Path) -> None:
    assert len(SchemaRegistry.load(tmp_path / "none" / "schema.json")) == 0


def test_tables_that_changed_longest_ago_are_forgotten_first_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_module, "MAX_TABLES", 3)
    registry = SchemaRegistry(tmp_path / "schema.json")
    for name in ("a", "b", "c", "a", "d"):
        draft = registry.draft("db", name)
        draft.settle(f"column{len(draft.columns)}", values(1), (), False)
        registry.apply([draft])
        registry.save()
        registry = SchemaRegistry.load(tmp_path / "schema.json")
    assert [len(registry.draft("db", name).columns) for name in "abcd"] == [2, 0, 1, 1]


def test_many_columns_are_forgotten_with_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_module, "MAX_REMEMBERED", 5)
    registry = SchemaRegistry(tmp_path / "schema.json")
    for name in "abc":
        registry.apply([TableSchema("db", name, {f"c{n}": ColumnSchema("i64") for n in range(2)})])
    assert [len(registry.draft("db", name).columns) for name in "abc"] == [0, 2, 2]
    registry.apply([TableSchema("db", "c", {f"c{n}": ColumnSchema("i64") for n in range(3)})])
    assert [len(registry.draft("db", name).columns) for name in "abc"] == [0, 2, 3]

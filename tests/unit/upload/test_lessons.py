"""The types of tables, taught to the registry of columns: later files fit, and nothing changes twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgpack
import pytest

from arcpipe.codec.arrow.find import find_values
from arcpipe.disk import Disk
from arcpipe.tables.fitting import Move
from arcpipe.tables.learned import Learned
from arcpipe.upload.lessons import Lessons
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.table_schema import ColumnRules, Columns, ColumnSchema, TableSchema

M = ("db", "m")


class Class:
    """A registry that is taught."""

    def __init__(self, folder: Path, **columns: ColumnSchema) -> None:
        self.registry = SchemaRegistry(folder / "schema.json", [TableSchema(*M, columns)])
        self.learned = Learned.load(folder, Disk())
        self.lessons = Lessons(folder, Disk())

    def learn(self, *moves: Move) -> dict[str, ColumnSchema]:
        self.learned.add(M, moves)
        self.lessons.refresh()
        self.lessons.teach(self.registry)
        once = self.columns
        self.lessons.teach(self.registry)
        assert self.columns == once, "it changes twice"
        return once

    @property
    def columns(self) -> dict[str, ColumnSchema]:
        found = self.registry.find(M)
        assert found is not None
        return found.columns


def move(column: str, type_: str, table_type: str, target: str, senders: str = "") -> Move:
    return Move(column, senders or column, type_, table_type, target)


def test_a_column_gets_the_tables_type_and_a_sibling(tmp_path: Path) -> None:
    taught = Class(tmp_path, n=ColumnSchema("str", True), other=ColumnSchema("i64"))
    assert taught.learn(move("n", "str", "i64", "n_str")) == {
        "n": ColumnSchema("i64", True, siblings={"str": "n_str"}),
        "other": ColumnSchema("i64"),
    }


def test_the_sibling_of_the_tables_type_goes(tmp_path: Path) -> None:
    taught = Class(tmp_path, n=ColumnSchema("str", siblings={"i64": "n_i64", "f64": "n_f64"}))
    columns = taught.learn(move("n", "str", "i64", "n_str"))
    assert columns["n"] == ColumnSchema("i64", siblings={"f64": "n_f64", "str": "n_str"})


def test_a_type_that_arcpipe_cannot_write_leaves_the_column(tmp_path: Path) -> None:
    taught = Class(tmp_path, n=ColumnSchema("i64"))
    assert taught.learn(move("n", "i64", "i32", "n_i64")) == {"n": ColumnSchema("i64", column="n_i64")}


def test_a_name_that_differs_in_case_gets_its_number(tmp_path: Path) -> None:
    taught = Class(tmp_path, Usage=ColumnSchema("f64"))
    assert taught.learn(move("Usage", "f64", "", "Usage_2")) == {"Usage": ColumnSchema("f64", column="Usage_2")}


def test_a_sibling_moves_alone(tmp_path: Path) -> None:
    taught = Class(tmp_path, n=ColumnSchema("i64", siblings={"f64": "n_f64"}))
    columns = taught.learn(move("n_f64", "f64", "i64", "n_f64_f64", senders="n"))
    assert columns == {"n": ColumnSchema("i64", siblings={"f64": "n_f64_f64"})}


def test_a_target_that_another_name_has_is_left_to_the_registry(tmp_path: Path) -> None:
    taught = Class(tmp_path, n=ColumnSchema("str"), n_str=ColumnSchema("str"))
    columns = taught.learn(move("n", "str", "i64", "n_str"))
    assert columns == {"n": ColumnSchema("i64"), "n_str": ColumnSchema("str")}


def test_a_table_that_was_made_anew_is_followed_again(tmp_path: Path) -> None:
    """There and back: the last lesson counts, and the first is forgotten."""
    taught = Class(tmp_path, n=ColumnSchema("str"))
    taught.learn(move("n", "str", "i64", "n_str"))
    assert taught.learn(move("n", "i64", "str", "n_i64")) == {"n": ColumnSchema("str", siblings={"i64": "n_i64"})}
    assert taught.learn(move("n", "str", "i64", "n_str"))["n"].type == "i64"


def test_what_the_registry_does_not_know_is_not_taught(tmp_path: Path) -> None:
    taught = Class(tmp_path, other=ColumnSchema("i64"))
    assert taught.learn(move("n", "str", "i64", "n_str")) == {"other": ColumnSchema("i64")}


def test_values_go_where_the_committer_put_them(tmp_path: Path) -> None:
    taught = Class(tmp_path, n=ColumnSchema("str"))
    taught.learn(move("n", "str", "i64", "n_text"))
    draft = taught.registry.draft(*M)
    columns = Columns(draft, ColumnRules(), ["n"])
    settled = columns.settle("n", values("a", 1), (), False)
    assert settled is not None
    assert (settled.type, columns.sibling("n", "str")) == ("i64", "n_text")


def values(*given: Any) -> Any:
    return find_values(b"".join(map(msgpack.packb, given)), len(given))


@pytest.mark.parametrize("content", [b"", b"{", b'{"version":1,"tables":[]}'])
def test_a_file_that_is_damaged_teaches_nothing(tmp_path: Path, content: bytes) -> None:
    taught = Class(tmp_path, n=ColumnSchema("str"))
    (tmp_path / "learned.json").write_bytes(content)
    taught.lessons.refresh()
    taught.lessons.teach(taught.registry)
    assert taught.columns == {"n": ColumnSchema("str")}
    assert taught.learn(move("n", "str", "i64", "n_str"))["n"].type == "i64"


def test_a_file_is_read_again_only_if_it_changed(tmp_path: Path) -> None:
    taught = Class(tmp_path, n=ColumnSchema("str"))
    taught.lessons.refresh()
    assert not taught.lessons.are_new
    taught.learn(move("n", "str", "i64", "n_str"))
    taught.lessons.are_new = False
    taught.lessons.refresh()
    assert not taught.lessons.are_new
    os.utime(tmp_path / "learned.json", (1, 1))
    taught.lessons.refresh()
    assert taught.lessons.are_new

"""Columns of files against columns of a table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe.tables.base import NewFile, Refused
from arcpipe.tables.schema import Wanted, added, wanted, word_of
from tests.support.compaction import file_bytes, table_of

TABLE = ("db", "m")


def new_file(directory: Path, key: str, **columns: Any) -> NewFile:
    data = file_bytes(table_of([{"time": 0} | columns]), directory)
    return NewFile(key, len(data), 1, pq.read_metadata(io.BytesIO(data)))


def test_columns_of_files_are_joined(tmp_path: Path) -> None:
    files = [new_file(tmp_path, "a", n=1), new_file(tmp_path, "b", n=1), new_file(tmp_path, "c", x=0.5)]
    found = wanted(TABLE, files)
    assert [(one.name, word_of(one.type), one.key) for one in found] == [
        ("time", "time", "a"), ("n", "i64", "a"), ("x", "f64", "c"),
    ]  # fmt: skip


def test_files_that_differ_among_each_other_are_refused(tmp_path: Path) -> None:
    files = [new_file(tmp_path, "a", n=1), new_file(tmp_path, "b", n=0.5)]
    with pytest.raises(Refused, match="'n' is i64 in the table and f64 in b"):
        wanted(TABLE, files)


def test_dictionaries_are_plain_texts(tmp_path: Path) -> None:
    table = table_of([{"time": 0, "host": "a"}])
    at = table.schema.get_field_index("host")
    encoded = table.set_column(at, table.schema.field(at).with_type(pa.dictionary(pa.int32(), pa.string())), table["host"].dictionary_encode())  # fmt: skip  # noqa: E501
    sink = io.BytesIO()
    pq.write_table(encoded, sink)
    file = NewFile("a", 1, 1, pq.read_metadata(io.BytesIO(sink.getvalue())))
    assert [word_of(one.type) for one in wanted(TABLE, [file])] == ["time", "str"]


def test_what_the_table_has_is_not_added() -> None:
    columns = [Wanted("n", pa.int64(), "a"), Wanted("x", pa.float64(), "a")]
    assert added(TABLE, ["n"], columns, word_of) == [(columns[1], "f64")]


@pytest.mark.parametrize(("known", "new"), [("usage", "Usage"), ("i", "ı"), ("straße", "STRASSE")])
def test_names_that_engines_take_for_one_are_refused(known: str, new: str) -> None:
    with pytest.raises(Refused, match="differ in case") as caught:
        added(TABLE, [known], [Wanted(new, pa.int64(), "a")], word_of)
    assert caught.value.column == new


def test_two_new_names_that_are_one_are_refused() -> None:
    with pytest.raises(Refused, match="differ in case"):
        added(TABLE, [], [Wanted("a", pa.int64(), "f"), Wanted("A", pa.int64(), "f")], word_of)

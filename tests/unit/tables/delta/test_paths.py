"""Folders of tables, and the paths of their files in the log."""

from __future__ import annotations

import re
from typing import Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arcpipe.lake.keys import Partition
from arcpipe.tables.base import TableName
from arcpipe.tables.delta.paths import key_of, path_of, root_of, table_of

NAMES: Final = st.text(max_size=30) | st.text("%20~a/ .:", max_size=6)
URL: Final = "s3://bucket/some/prefix"


@given(st.tuples(NAMES, NAMES), st.sampled_from(["arc", "hive"]), st.sampled_from(["._", "._~"]))
def test_the_log_names_a_file_so_that_its_key_is_found(table: TableName, layout: str, hidden: str) -> None:
    assume(not re.search("[\ud800-\udfff]", "".join(table)))
    key = Partition(*table, 0).key(layout, 0, "batch", 0, hidden)  # type: ignore[arg-type]
    root = root_of(table)
    path = path_of(root, key)
    assert key_of(root, path, URL) == key
    assert "%" not in root
    assert hidden == "._" or not path.startswith("../")
    assert table_of(root) == (None if "~~" in root else table)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("2026/a%20b.parquet", "db/cpu/2026/a b.parquet"),
        ("2026/a%2520b.parquet", "db/cpu/2026/a%20b.parquet"),
        ("../../d%2520b/x.parquet", "d%20b/x.parquet"),
        ("s3://bucket/some/prefix/d/x%2520y", "d/x%20y"),
        ("s3a://bucket/some/prefix/d/x", "d/x"),
        ("s3://bucket/some/prefixed/x", "s3://bucket/some/prefixed/x"),
        ("s3://other/x", "s3://other/x"),
        ("../../../x", "s3://bucket/some/prefix/../x"),
    ],
)
def test_paths_of_other_writers_lead_to_keys_too(path: str, key: str) -> None:
    assert key_of("db/cpu", path, URL) == key


def test_an_absolute_path_of_java_leads_to_a_key() -> None:
    for path in ("file:/lake/d%2520b/x", "file:///lake/d%2520b/x"):
        assert key_of("db/cpu", path, "file:///lake") == "d%20b/x"


def test_a_table_whose_name_was_cut_is_named_by_its_metadata() -> None:
    assert table_of(root_of(("db", "ü" * 100))) is None

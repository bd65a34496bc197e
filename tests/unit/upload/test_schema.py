"""Column types stay what they were, whatever becomes of the file that keeps them."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from arcpipe.codec.arrow.find import find_values
from arcpipe.codec.arrow.values import Values
from arcpipe.disk import Disk
from arcpipe.errors import UnknownVersion
from arcpipe.upload import schema as schema_module
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.table_schema import ColumnRules, Columns, ColumnSchema, TableSchema
from arcpipe.wal.checksum import with_checksum


def values(*given: Any) -> Values:
    return find_values(b"".join(map(msgpack.packb, given)), len(given))


def test_the_registry_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    registry = SchemaRegistry.load(tmp_path / "schema.json")
    drafts = [registry.draft("db", name) for name in ("b", "a", "untouched")]
    for draft in drafts[:2]:
        Columns(draft, ColumnRules(), ()).settle("host", values("x"), (), True)
        Columns(draft, ColumnRules(), ()).settle("v", values(1.5), (), False)
    changes = registry.changed(drafts)
    assert [change.measurement for change in changes] == ["a", "b"]
    registry.apply(changes)
    registry.save()
    again = SchemaRegistry.load(str(tmp_path / "schema.json"))
    assert len(again) == 2
    assert again.draft("db", "a") == drafts[1]
    assert again.changed([again.draft("db", "a")]) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["schema.json", "schema.json.copy"]


def test_changes_survive_json() -> None:
    changes = [TableSchema("db", "m", {"a": ColumnSchema("i64"), "h": ColumnSchema("str", True)})]
    assert msgspec.json.decode(msgspec.json.encode(changes), type=list[TableSchema]) == changes


def test_a_draft_does_not_change_the_registry(tmp_path: Path) -> None:
    registry = SchemaRegistry(tmp_path / "schema.json", [TableSchema("db", "m", {"a": ColumnSchema("i64")})])
    Columns(registry.draft("db", "m"), ColumnRules(), ()).settle("b", values(1.5), (), False)
    assert registry.draft("db", "m").columns == {"a": ColumnSchema("i64")}


DAMAGED = [b"", b"{", b"[]", b"\xff\x00", b'{"version":1,"tables":[["d","m",{"a":["i32"]}]]}', b'{"version":1}']


def saved(path: Path, *names: str) -> SchemaRegistry:
    """A registry that was saved once for each of these tables."""
    registry = SchemaRegistry.load(path)
    for name in names:
        registry.apply([TableSchema("db", name, {"a": ColumnSchema("i64")})])
        registry.save()
    return registry


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_goes_to_quarantine_and_its_copy_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path, quarantine = tmp_path / "schema.json", tmp_path / "quarantine"
    quarantine.mkdir()
    saved(path, "first", "second")
    path.write_bytes(content)
    registry = SchemaRegistry.load(path, None, quarantine)
    assert len(registry) == 2
    assert registry.draft("db", "second").columns
    assert f"{path} is damaged" in caplog.text
    assert (quarantine / "schema.json").read_bytes() == content
    assert not path.exists()
    registry.save()
    assert len(SchemaRegistry.load(path, None, quarantine)) == 2


@pytest.mark.slow
def test_any_flipped_bit_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    saved(path, "first", "second")
    content = path.read_bytes()
    for at in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        assert SchemaRegistry.load(path).draft("db", "second").columns == {"a": ColumnSchema("i64")}, f"bit {at}"


def test_without_an_intact_file_types_start_anew_and_it_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "schema.json"
    saved(path, "first", "second")
    for name in ("schema.json", "schema.json.copy"):
        (tmp_path / name).write_bytes(b"{")
    assert len(SchemaRegistry.load(path, None, tmp_path)) == 0
    assert "column types start anew" in caplog.text
    assert any(record.levelno == logging.ERROR for record in caplog.records)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["schema.json", "schema.json.copy"])
def test_a_file_that_cannot_be_read_is_never_replaced(name: str, number: int, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    saved(path, "first", "second")
    if name != "schema.json":
        path.write_bytes(b"{")

    class Failing(Disk):
        def open_for_reading(self, path: str) -> int:
            if path.endswith(name):
                raise OSError(number, "the disk says no", path)
            return super().open_for_reading(path)

    with pytest.raises(OSError, match="the disk says no"):
        SchemaRegistry.load(path, Failing())


@pytest.mark.parametrize(
    "content",
    [
        b'{"version":3,"tables":[]}',
        with_checksum(b'{"version":3,"tables":{}}'),
        with_checksum(b'{"version":1,"tables":[["d","m",{"a":["i128"]}]]}'),
    ],
)
def test_a_newer_file_stops_and_stays(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(content)
    with pytest.raises(UnknownVersion, match="is of another version of arcpipe"):
        SchemaRegistry.load(path, None, tmp_path)
    assert path.read_bytes() == content


def test_a_file_of_before_the_checksum_is_read(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(b'{"version":1,"tables":[["db","m",{"a":["i64"],"h":["str",true]}]]}')
    assert SchemaRegistry.load(path).draft("db", "m").columns["h"] == ColumnSchema("str", True)


def test_a_crash_between_the_two_names_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    registry = saved(path, "first")

    class Crashing(Disk):
        def rename(self, source: str, target: str) -> None:
            if source.endswith(".tmp"):
                raise KeyboardInterrupt
            super().rename(source, target)

    crashing = SchemaRegistry.load(path, Crashing())
    crashing.apply([TableSchema("db", "second", {"a": ColumnSchema("i64")})])
    with pytest.raises(KeyboardInterrupt):
        crashing.save()
    assert len(SchemaRegistry.load(path)) == len(registry) == 1


def test_the_file_is_for_its_owner_and_group(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        saved(tmp_path / "schema.json", "first")
    finally:
        os.umask(before)
    assert (tmp_path / "schema.json").stat().st_mode & 0o777 == 0o640


def test_a_missing_file_is_an_empty_registry(tmp_path: Path) -> None:
    assert len(SchemaRegistry.load(tmp_path / "none" / "schema.json")) == 0


def test_tables_that_changed_longest_ago_are_forgotten_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that changed longest ago are forgotten first, after a restart, too."""
    monkeypatch.setattr(schema_module, "MAX_TABLES", 3)
    registry = SchemaRegistry(tmp_path / "schema.json")
    for name in ("a", "b", "c", "a", "d"):
        draft = registry.draft("db", name)
        Columns(draft, ColumnRules(), ()).declare(f"column{len(draft.columns)}", "i64")
        registry.apply([draft])
        registry.save()
        registry = SchemaRegistry.load(tmp_path / "schema.json")
    assert [len(registry.draft("db", name).columns) for name in "abcd"] == [2, 0, 1, 1]


def test_a_busy_table_is_kept_however_many_others_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_module, "MAX_TABLES", 10)
    registry = SchemaRegistry(tmp_path / "schema.json", [TableSchema("db", "busy", {"a": ColumnSchema("i64")})])
    for number in range(123):
        registry.begin()
        draft = registry.draft("db", f"m{number}")
        Columns(draft, ColumnRules(), ()).declare("a", "i64")
        registry.draft("db", "busy")
        changed, used = registry.changed([draft]), registry.used
        assert used == ([("db", f"m{number}"), ("db", "busy")] if len(registry) > 9 else [])
        registry.apply(changed, registry.drafted)
    assert registry.draft("db", "busy").columns == {"a": ColumnSchema("i64")}
    assert len(registry) == 10


def test_what_a_copy_takes_over_is_not_in_the_registry(tmp_path: Path) -> None:
    registry = SchemaRegistry(tmp_path / "schema.json", [TableSchema("db", "m", {"a": ColumnSchema("i64")})])
    copy = registry.copy()
    copy.apply([TableSchema("db", "m", {"a": ColumnSchema("f64")}), TableSchema("db", "n", {"a": ColumnSchema("f64")})])
    assert (len(registry), len(copy)) == (1, 2)
    assert registry.draft("db", "m").columns["a"].type == "i64"


def test_many_columns_are_forgotten_with_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_module, "MAX_REMEMBERED", 5)
    registry = SchemaRegistry(tmp_path / "schema.json")
    for name in "abc":
        registry.apply([TableSchema("db", name, {f"c{n}": ColumnSchema("i64") for n in range(2)})])
    assert [len(registry.draft("db", name).columns) for name in "abc"] == [0, 2, 2]
    registry.apply([TableSchema("db", "c", {f"c{n}": ColumnSchema("i64") for n in range(3)})])
    assert [len(registry.draft("db", name).columns) for name in "abc"] == [0, 2, 3]

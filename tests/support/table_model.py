"""A real table format of the tests: a table is a directory of versions, and a commit is a link that may exist already.

    {root}/{database}/{measurement}/{version:08}.json      {"files": [key, …], "markers": {node: seq}, "types": {…}}

It has no library behind it, so the protocol of the committer is tested without one, by the thousand and through every
crash. It commits as Iceberg and Delta do: on exactly the state that was read, once, and whoever is second fails.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from arcpipe.tables.base import (
    Column,
    Committed,
    Conflict,
    Dropped,
    Maintained,
    NewFile,
    TableName,
    UnreadableTables,
)
from arcpipe.tables.schema import differing, word_of


class ModelTables:
    """Tables below a directory."""

    name = "delta"  # one of the setting's words
    at_once = 1
    checks_markers = True
    """False plants the bug that every harness has to find."""

    def __init__(self, root: Path, between: Callable[[], None] = lambda: None) -> None:
        """Open them.

        Args:
            between: called between the read of a table and the commit on it.
        """
        self.root = root
        self._between = between

    def check(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        pass

    def committed(self, table: TableName, node: str) -> int | None:
        found = self.load(table)
        marker = None if found is None or not self.checks_markers else found[1]["markers"].get(node)
        return marker if marker is None else int(marker)

    def left_behind(self, table: TableName, node: str) -> int | None:
        return None

    def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
        version, content = self.load(table) or (0, {"files": [], "markers": {}, "types": {}})
        marker = content["markers"].get(node)
        if self.checks_markers and marker is not None and marker >= seq:
            return Committed(marker, version, 0)
        types = dict(content["types"])
        for file in files:
            for field in file.metadata.schema.to_arrow_schema():
                word = word_of(field.type)
                if types.setdefault(field.name, word) != word:
                    raise differing(table, field.name, types[field.name], word, file.key)
        self._between()
        added = [*content["files"], *(file.key for file in files)]
        self._write(table, version + 1, {"files": added, "markers": content["markers"] | {node: seq}, "types": types})
        return Committed(seq, version + 1, len(files), version == 0)

    def all_tables(self, unreadable: UnreadableTables | None = None) -> list[TableName]:
        return sorted(
            (unquote(path.parent.name), unquote(path.name)) for path in self.root.glob("*/*") if self._versions(path)
        )

    def columns(self, table: TableName) -> list[Column]:
        found = self.load(table)
        return [] if found is None else [Column(name, type_) for name, type_ in found[1]["types"].items()]

    def files(self, table: TableName) -> Iterator[str]:
        found = self.load(table)
        if found is None:
            raise Dropped(f"there is no table {table}")
        yield from found[1]["files"]

    def former(self, table: TableName) -> set[str]:
        path = self._path(table)
        found = [json.loads((path / f"{version:08}.json").read_text())["files"] for version in self._versions(path)]
        return {key for files in found for key in files}.difference(found[-1] if found else ())

    def markers(self, table: TableName) -> dict[str, int]:
        found = self.load(table)
        return {} if found is None else dict(found[1]["markers"])

    def replace(self, table: TableName, old: Sequence[str], new: Sequence[NewFile]) -> None:
        version, content = self._existing(table)
        if not set(old) <= set(content["files"]):
            raise Conflict("an old file is gone")
        kept = [key for key in content["files"] if key not in set(old)]
        self._write(table, version + 1, content | {"files": [*kept, *(file.key for file in new)]})

    def remove(self, table: TableName, keys: Sequence[str]) -> None:
        version, content = self._existing(table)
        kept = [key for key in content["files"] if key not in set(keys)]
        self._write(table, version + 1, content | {"files": kept})

    def maintain(self, table: TableName) -> Maintained:
        path = self._path(table)
        old = self._versions(path)[:-1]
        for version in old:
            (path / f"{version:08}.json").unlink(missing_ok=True)
        return Maintained(expired=len(old))

    # What tests ask

    def load(self, table: TableName) -> tuple[int, dict[str, Any]] | None:
        """Return the newest version, and its content."""
        path = self._path(table)
        versions = self._versions(path)
        return (versions[-1], json.loads((path / f"{versions[-1]:08}.json").read_text())) if versions else None

    def drop(self, table: TableName) -> None:
        path = self._path(table)
        for file in path.iterdir():
            file.unlink()
        path.rmdir()

    def _existing(self, table: TableName) -> tuple[int, dict[str, Any]]:
        found = self.load(table)
        if found is None:
            raise Dropped(f"there is no table {table}")
        return found

    def _path(self, table: TableName) -> Path:
        return self.root / (quote(table[0], safe="") or "%") / (quote(table[1], safe="") or "%")

    def _versions(self, path: Path) -> list[int]:
        try:
            return sorted(int(name[:-5]) for name in os.listdir(path) if name.endswith(".json"))
        except FileNotFoundError:
            return []

    def _write(self, table: TableName, version: int, content: dict[str, Any]) -> None:
        path = self._path(table)
        path.mkdir(parents=True, exist_ok=True)
        temporary = path / f"{os.getpid()}.new"
        temporary.write_text(json.dumps(content))
        try:
            os.link(temporary, path / f"{version:08}.json")
        except FileExistsError:
            raise Conflict(f"version {version} of {table} is there already") from None
        finally:
            temporary.unlink()

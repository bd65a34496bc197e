"""Footers are read by ranges, whole and in order; what is gone or has another size is told apart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from arcpipe.errors import MissingObject
from arcpipe.lake import footers
from arcpipe.lake.footers import Unreadable, read_footer, read_footers
from arcpipe.storage.local import LocalStore
from tests.support.compaction import file_bytes, table_of


def write(root: Path, key: str, rows: int) -> int:
    data = file_bytes(table_of([{"time": number, "n": number} for number in range(rows)]), root)
    (root / key).write_bytes(data)
    return len(data)


def read(root: Path, files: list[tuple[str, int]], at_once: int = 16) -> list[tuple[str, Any]]:
    async def work() -> list[tuple[str, Any]]:
        store = LocalStore(root, 4)
        try:
            return [found async for found in read_footers(store, files, at_once)]
        finally:
            await store.close()

    return asyncio.run(work())


def test_footers_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    files = [(f"f{number}", write(tmp_path, f"f{number}", number)) for number in range(1, 6)]
    found = read(tmp_path, files, at_once=2)
    assert [(key, metadata.num_rows) for key, metadata in found] == [(f"f{n}", n) for n in range(1, 6)]


def test_a_file_that_is_gone_is_none(tmp_path: Path) -> None:
    size = write(tmp_path, "f", 3)
    assert [found is None for _, found in read(tmp_path, [("gone", 100), ("f", size)])] == [True, False]


@pytest.mark.parametrize("tail", [16, 64 * 1024])
def test_a_footer_longer_than_the_first_read_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: int
) -> None:
    monkeypatch.setattr(footers, "_TAIL_BYTES", tail)
    assert read(tmp_path, [("f", write(tmp_path, "f", 3))])[0][1].num_rows == 3


def test_a_file_of_another_size_is_unreadable(tmp_path: Path) -> None:
    size = write(tmp_path, "f", 3)
    for wrong in (size + 1, size - 1, 3, 0):
        with pytest.raises(Unreadable, match="f: "):
            read(tmp_path, [("f", wrong)])


def test_one_footer_says_if_its_file_is_gone(tmp_path: Path) -> None:
    async def work() -> None:
        store = LocalStore(tmp_path, 1)
        try:
            await read_footer(store, "gone", 100)
        finally:
            await store.close()

    with pytest.raises(MissingObject):
        asyncio.run(work())

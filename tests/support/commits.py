"""A WAL directory and a local lake with what an uploader has handed over, and a committer that works on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from arcpipe.config.settings import StorageS3
from arcpipe.counters import Committer as Block
from arcpipe.counters import Counters
from arcpipe.disk import Disk
from arcpipe.lake.file_schema import HOUR_US
from arcpipe.lake.keys import Hidden
from arcpipe.storage import open_store
from arcpipe.tables.base import TableFormat, TableName
from arcpipe.tables.commit_file import CommitFiles, DataFile
from arcpipe.tables.committer import Bounds, Committer, Round
from arcpipe.upload.handover import Handover
from arcpipe.upload.spares import Spares
from arcpipe.wal.directory import NodeIdentity, WALDirectory
from tests.support.compaction import HOUR_US as FIRST_US
from tests.support.compaction import NODE, file_bytes, key_of, put, table_of
from tests.support.table_model import ModelTables

_MAKERS: dict[Any, Callable[[int], Any]] = {pa.string(): str, pa.float64(): float}


class Handed:
    """Batches of one node, with their files, in a lake that may be shared."""

    def __init__(self, base: Path, lake: Path | None = None, node: str = NODE, boot: int = 1) -> None:
        self.lake = lake or base / "lake"
        self.base = base
        self.directory = WALDirectory(base / "wal")
        self.directory.make()
        self.node = node
        self.boot = boot
        self.number = 0
        self.rows: dict[TableName, list[int]] = {}  # the values of `n` that a reader has to see
        self.keys: set[str] = set()
        self.handover = Handover(
            self.directory, NodeIdentity(node, boot), Spares(self.directory, with_tables=True), 1 << 40
        )

    @property
    def files(self) -> CommitFiles:
        return CommitFiles(self.directory.path)

    def batch(
        self,
        tables: Sequence[tuple[str, str]] = (("db", "m"),),
        files: int = 1,
        count: int = 2,
        rename: Mapping[str, str] = MappingProxyType({}),
        hidden: Hidden = "._",
        hour: int = 0,
        **types: Any,
    ) -> str:
        """Put the files of a batch, and hand it over. Returns its id.

        Args:
            count: rows of each file.
            rename: new names of columns.
            hidden: how names become folders.
            hour: of its times, from the first one.
            types: of columns.
        """
        self.number += 1
        found: dict[str, DataFile] = {}
        for table in tables:
            for file in range(files):
                key = key_of(
                    self.number,
                    node=self.node,
                    boot=self.boot,
                    file=file,
                    database=table[0],
                    measurement=table[1],
                    hour_us=FIRST_US + hour * HOUR_US,
                    hidden=hidden,
                )
                numbers = [self.number * 1_000 + file * 10 + one for one in range(count)]
                value = _MAKERS.get(types.get("n"), int)
                rows = [{"time": hour * HOUR_US + one, "host": "a", "n": value(one)} for one in numbers]
                content = table_of(rows, **types)
                content = content.rename_columns([rename.get(name, name) for name in content.schema.names])
                data = file_bytes(content, self.base, *table)
                put(self.lake, key, data)
                found[key] = DataFile(key, count, len(data), 0, 1)
                self.rows.setdefault(table, []).extend(numbers)
                self.keys.add(key)
        [batch] = {key.split("_")[-2] for key in found}
        assert self.handover.hand_over(batch, f"file://{self.lake}", found)
        return batch


class Working:
    """A committer on a WAL directory and a lake."""

    def __init__(
        self,
        wal: Path | str,
        lake: Path,
        tables: TableFormat,
        bounds: Bounds = Bounds(),  # noqa: B008
        disk: Disk | None = None,
    ) -> None:
        self.counters = Counters(1)
        self.block = self.counters.committer
        self.sleeps: list[float] = []
        self._wal, self._lake, self._tables = wal, lake, tables
        self._bounds, self._disk = bounds, disk

    async def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)

    def rounds(self, *forces: bool, between: Callable[[], None] = lambda: None) -> list[Round]:
        """Do rounds of one process, each with its `force`."""
        return asyncio.run(self._rounds(forces, between))

    def round(self, force: bool = True) -> Round:
        """Do one round."""
        return self.rounds(force)[0]

    async def _rounds(self, forces: Sequence[bool], between: Callable[[], None]) -> list[Round]:
        store = open_store(f"file://{self._lake}", StorageS3())
        committer = Committer(
            *(self._tables, store, self._wal, self.block),
            disk=self._disk,
            bounds=self._bounds,
            sleep=self._sleep,
        )
        try:
            done: list[Round] = []
            for force in forces:
                if done:
                    between()
                done.append(await committer.round(force))
            return done
        finally:
            committer.close()
            await store.close()

    def __getitem__(self, field: int) -> int:
        return int(self.block[field])


def in_tables(tables: TableFormat) -> list[str]:
    """The keys of the files in all tables, each as often as it is there."""
    return sorted(key for table in tables.all_tables() for key in tables.files(table))


__all__ = ["Block", "Handed", "ModelTables", "Working", "in_tables"]

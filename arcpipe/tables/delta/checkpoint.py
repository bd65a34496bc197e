"""Reading checkpoints: one column at a time, by ranges, so that a table of a million files takes no memory for them.

A checkpoint is Parquet with a column for each kind of action. A row has one of them; the others are null.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.errors import ArcpipeError, MissingObject
from arcpipe.lake.parts_file import PartsFile
from arcpipe.storage import LakeStore


class DamagedCheckpoint(ArcpipeError):
    """A checkpoint is missing, or cannot be read."""


class CheckpointFile(NamedTuple):
    """A checkpoint, or a part of one, in the store."""

    store: LakeStore
    key: str
    size: int  # bytes


class Removed(NamedTuple):
    """A file that is not in the table any more."""

    path: str  # as the log has it
    deleted_ms: int  # since the epoch; 0 if the log does not say it


async def read_state(files: Sequence[CheckpointFile]) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Return protocol, metadata and markers.

    Raises:
        DamagedCheckpoint: a file cannot be read as a checkpoint.
        StorageError: the store does not answer.
    """
    protocol: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    markers: dict[str, int] = {}
    for file in files:
        for table in await _columns(file, ("protocol", "metaData", "txn")):
            for row in _rows(table, "protocol"):
                protocol = row
            for row in _rows(table, "metaData"):
                metadata = _as_in_a_commit(row)
            for row in _rows(table, "txn"):
                markers[row["appId"]] = row["version"]
    if not protocol or not metadata:
        raise DamagedCheckpoint(f"{files[0].key} has no protocol or no metadata")
    return protocol, metadata, markers


async def read_paths(files: Sequence[CheckpointFile]) -> dict[str, int]:
    """Return the files of the table: their paths, as the log has them, and their sizes. Raises as `read_state`."""
    found: dict[str, int] = {}
    for file in files:
        for table in await _columns(file, ("add.path", "add.size")):
            column = table["add"].combine_chunks().drop_null()
            found.update(zip(column.field("path").to_pylist(), column.field("size").to_pylist(), strict=True))
    return found


async def read_removed(files: Sequence[CheckpointFile]) -> list[Removed]:
    """Return the files that were taken out of the table and are still remembered. Raises as `read_state`."""
    found: list[Removed] = []
    for file in files:
        for table in await _columns(file, ("remove.path", "remove.deletionTimestamp")):
            found += [Removed(row["path"], row.get("deletionTimestamp") or 0) for row in _rows(table, "remove")]
    return found


def _as_in_a_commit(metadata: dict[str, Any]) -> dict[str, Any]:
    """Turn the pairs of maps into objects, and leave out what is null: it is written into a commit again."""
    format_ = metadata.get("format") or {}
    return {name: value for name, value in metadata.items() if value is not None} | {
        "configuration": dict(metadata.get("configuration") or ()),
        "format": {"provider": format_.get("provider", "parquet"), "options": dict(format_.get("options") or ())},
    }


def _rows(table: pa.Table, name: str) -> Iterator[dict[str, Any]]:
    if name in table.column_names:
        yield from table[name].combine_chunks().drop_null().to_pylist()


async def _columns(file: CheckpointFile, names: Sequence[str]) -> list[pa.Table]:
    """Read some columns of a file, a row group at a time."""
    loop = asyncio.get_running_loop()

    def read() -> list[pa.Table]:
        source = pa.PythonFile(_as_file(file, loop), mode="r")
        with pq.ParquetFile(source, pre_buffer=False) as parquet:
            return [parquet.read_row_group(number, names) for number in range(parquet.num_row_groups)]

    try:
        return await asyncio.to_thread(read)
    except MissingObject as error:
        raise DamagedCheckpoint(str(error)) from error
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DamagedCheckpoint(f"{file.key} is damaged: {error}") from error


def _as_file(file: CheckpointFile, loop: asyncio.AbstractEventLoop) -> PartsFile:
    """Return an object of the store as a file, for a thread other than that of the store's event loop."""

    def read(offset: int, length: int) -> bytes:
        return asyncio.run_coroutine_threadsafe(file.store.read(file.key, offset, length), loop).result()

    return PartsFile(file.size, read)

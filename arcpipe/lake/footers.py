"""Read the footers of Parquet files from a store by ranges, several at once: a request for each file, nearly always.

    metadata = await read_footer(store, key, size)
    async for key, found in read_footers(store, [(key, size), …]): ...   # in their order

This module must not know the columns of arcpipe's files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.errors import ArcpipeError, MissingObject
from arcpipe.lake.footer_check import check_footer
from arcpipe.lake.parts_file import PartsFile
from arcpipe.storage import LakeStore
from arcpipe.units import KB

T = TypeVar("T")
R = TypeVar("R")

_TAIL_BYTES: Final = 64 * KB  # read at once of the end of a file: nearly every footer is shorter
_AT_ONCE: Final = 16  # files that are looked at at the same time, for stores with latency
_MAGIC: Final = b"PAR1"


class Unreadable(ArcpipeError):
    """A file is no Parquet file that can be read; the text says why."""


async def read_footer(store: LakeStore, key: str, size: int) -> Any:
    """Read the footer of a file: a pyarrow.parquet.FileMetaData.

    Args:
        size: bytes of the file.

    Raises:
        MissingObject: there is no such file.
        Unreadable: it is no Parquet file, or has another size.
        StorageError: the store does not give it.
    """
    length = min(size, _TAIL_BYTES)
    while True:
        tail = await store.read(key, size - length, length)
        if len(tail) != length:
            raise Unreadable(f"{key}: it is shorter than its {size} bytes")
        needed = int.from_bytes(tail[-8:-4], "little") + 8
        if needed <= length or needed > size or not tail.endswith(_MAGIC):
            break
        length = needed
    with readable(key):
        metadata = pq.read_metadata(_ending_with(size, tail))
        check_footer(tail, metadata)
        return metadata


class StoredFooter(NamedTuple):
    """A footer, and the size in bytes of the file that it was read from."""

    metadata: Any  # pyarrow.parquet.FileMetaData
    size: int


async def find_footer(store: LakeStore, key: str, size: int) -> StoredFooter:
    """Read the footer of a file whose size may be another one than is known.

    Args:
        size: bytes of the file, as far as known; -1 if it is not.

    Raises:
        MissingObject: there is no such file.
        Unreadable: it is no Parquet file.
        StorageError: the store does not give it.
    """
    problem: Unreadable | None = None
    if size > 0:
        try:
            return StoredFooter(await read_footer(store, key, size), size)
        except Unreadable as error:
            problem = error
    async for page in store.list_objects(key):
        for listed in page:
            if listed.key == key and listed.size != size:
                return StoredFooter(await read_footer(store, key, listed.size), listed.size)
            if listed.key == key and problem is not None:
                raise problem
    raise MissingObject(f"{key} is not in {store.url}")


async def read_footers(
    store: LakeStore, files: Iterable[tuple[str, int]], at_once: int = _AT_ONCE
) -> AsyncIterator[tuple[str, Any]]:
    """Yield the key of each file with its footer, in the order of the files; None if the file is gone.

    Args:
        files: keys and sizes in bytes.

    Raises:
        Unreadable: one is no Parquet file, or has another size.
        StorageError: the store does not give one.
    """

    async def look(file: tuple[str, int]) -> Any:
        try:
            return await read_footer(store, *file)
        except MissingObject:
            return None

    async for (key, _), metadata in in_parallel(files, look, at_once):
        yield key, metadata


async def in_parallel(
    items: Iterable[T], work: Callable[[T], Awaitable[R]], at_once: int = _AT_ONCE
) -> AsyncIterator[tuple[T, R]]:
    """Do the work for some items at a time; yield each item with its result, in the order of the items."""
    waiting: list[tuple[T, asyncio.Task[R]]] = []
    try:
        for item in items:
            waiting.append((item, asyncio.ensure_future(work(item))))
            if len(waiting) == at_once:
                first, task = waiting.pop(0)
                yield first, await task
        while waiting:
            first, task = waiting.pop(0)
            yield first, await task
    finally:
        for _, task in waiting:
            task.cancel()


@contextmanager
def readable(key: str) -> Iterator[None]:
    """Raise Unreadable for what pyarrow raises on a file that is damaged, or is no Parquet file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Unreadable(f"{key}: it cannot be read: {' '.join(str(error).split())[:300]}") from error


def _ending_with(size: int, tail: bytes) -> PartsFile:
    """Return a file of which only the end is there. Before that it has zeros, which readers of footers ask for, too."""
    begin = size - len(tail)

    def read(offset: int, length: int) -> bytes:
        stop = offset + length
        return bytes(max(min(begin, stop) - offset, 0)) + tail[max(offset - begin, 0) : max(stop - begin, 0)]

    return PartsFile(size, read)

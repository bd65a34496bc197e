"""Read the footers of Parquet files in a store, without the rest of the files. This module must not know tables."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.errors import ArcpipeError, MissingObject
from arcpipe.storage import LakeStore
from arcpipe.units import KB

_TAIL_BYTES: Final = 64 * KB  # read at once of the end of a file: nearly every footer is shorter
_MAGIC: Final = b"PAR1"


class Unreadable(ArcpipeError):
    """A file is no Parquet file that can be read; the text says why."""


class StoredFooter(NamedTuple):
    """A footer, and the size in bytes of the file that it was read from."""

    metadata: Any  # pyarrow.parquet.FileMetaData
    size: int


async def read_metadata(store: LakeStore, key: str, size: int) -> Any:
    """Read the footer of a file as pyarrow's FileMetaData.

    Args:
        size: of the file, in bytes.

    Raises:
        MissingObject: the file is gone.
        Unreadable: it is no Parquet file, or has another size.
        StorageError: the store does not give it.
    """
    length = min(size, _TAIL_BYTES)
    while True:
        tail = await store.read(key, size - length, length)
        needed = int.from_bytes(tail[-8:-4], "little") + 8
        if needed <= length or needed > size or not tail.endswith(_MAGIC):
            break
        length = needed
    if len(tail) < length:
        raise Unreadable(f"{key}: it cannot be read: it has less than {size} bytes")
    with readable(key):
        return pq.read_metadata(_Tail(size, tail))


async def read_footer(store: LakeStore, key: str, size: int) -> StoredFooter:
    """Read the footer of a file whose size may be another one than is known.

    Raises:
        MissingObject: the file is gone.
        Unreadable: it is no Parquet file.
        StorageError: the store does not give it.
    """
    problem: Unreadable | None = None
    if size > 0:
        try:
            return StoredFooter(await read_metadata(store, key, size), size)
        except Unreadable as error:
            problem = error
    async for page in store.list_objects(key):
        for listed in page:
            if listed.key == key and listed.size != size:
                return StoredFooter(await read_metadata(store, key, listed.size), listed.size)
            if listed.key == key and problem is not None:
                raise problem
    raise MissingObject(f"{key} is not in {store.url}")


@contextmanager
def readable(key: str) -> Iterator[None]:
    """Raise Unreadable for what pyarrow raises on a file that is damaged, or is no Parquet file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Unreadable(f"{key}: it cannot be read: {' '.join(str(error).split())[:300]}") from error


class _Tail(io.RawIOBase):
    """A file of which only the end is there. Before that it has zeros, which readers of footers ask for, too."""

    def __init__(self, size: int, tail: bytes) -> None:
        self._size = size
        self._tail = tail
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._at + size, self._size)
        begin = self._size - len(self._tail)
        data = bytes(max(min(begin, stop) - self._at, 0))
        data += self._tail[max(self._at - begin, 0) : max(stop - begin, 0)]
        self._at += len(data)
        return data

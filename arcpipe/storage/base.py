"""Blobs, keys and the operations that every object store has, with their promises.

This module must not know any particular store, nor the content of a blob.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from arcpipe.errors import UnreadableBlob

if TYPE_CHECKING:

    class Buffer(Protocol):
        """Anything with the buffer protocol: bytes, memoryview, pyarrow.Buffer (collections.abc, from 3.12 on)."""

        def __buffer__(self, flags: int, /) -> memoryview: ...


class Blob(Protocol):
    """Data to upload. It can be read at any offset and several times, because a put may be retried."""

    @property
    def size(self) -> int:
        """Return the size in bytes; it must not change while the blob is in use."""
        ...

    def read_at(self, offset: int, length: int) -> bytes | memoryview:
        """Read `length` bytes at `offset`; fewer only at the end. May block. Several threads may call it."""
        ...


class MemoryBlob:
    """A blob over bytes in memory; nothing is copied."""

    __slots__ = ("_view",)

    def __init__(self, buffer: Buffer) -> None:
        """Make a blob.

        Args:
            buffer: contiguous bytes, a memoryview or a pyarrow.Buffer; kept alive as long as the blob.
        """
        self._view = memoryview(buffer).cast("B")

    @property
    def size(self) -> int:
        return len(self._view)

    def read_at(self, offset: int, length: int) -> memoryview:
        return self._view[offset : offset + length]


class Listed(NamedTuple):
    """An object as a listing shows it."""

    key: str
    size: int  # bytes
    modified: float  # seconds since the epoch, by the store's clock
    etag: str = ""  # changes with the content; empty where the store has none


class ObjectStore(Protocol):
    """A flat space of named objects. Operations may run concurrently, on one event loop.

    A failure is a StorageError. Its text names the object, the reason and the next step, and never a secret. A key that
    `require_key` refuses is a ValueError.
    """

    async def put(self, key: str, blob: Blob) -> None:
        """Store the whole blob under `key`, in place of an earlier object.

        The object becomes visible at once and whole, and is durable when this returns. After a failure or a
        cancellation either the earlier object or the new one is there, whole.
        """
        ...

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        """Put each of these keys and blobs. After a failure any of them may be there, each one whole."""
        ...

    @property
    def objects_at_once(self) -> int:
        """Return the best number of small objects for one `put_all`; 1 if that is no faster than single puts."""
        ...

    async def exists(self, key: str) -> bool:
        """Tell if an object of this key is there, whole, and durable: who wrote it may have died before that.

        Raises:
            StorageError: that cannot be found out, for instance without the permission to look.
        """
        ...

    async def abort_uploads(self, key: str) -> int:
        """Abort the multipart uploads that an earlier try left open under this key.

        Call it before the put, because it aborts a running upload as well. If the store does not list uploads, a
        warning is logged: they cost space and no more.

        Returns:
            The number of aborted uploads.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove the object, durably. A missing object is no error."""
        ...

    async def list_keys(self, prefix: str) -> list[str]:
        """List the keys that begin with `prefix`, sorted. It may be any text, not only whole components of a key."""
        ...

    def list_objects(self, prefix: str, after: str = "") -> AsyncIterator[list[Listed]]:
        """Yield the objects whose keys begin with `prefix`, a page at a time. Objects of one folder come together.

        Args:
            after: if not empty, only keys that are greater than this text are listed.

        Raises:
            StorageError: the list is incomplete. What was yielded before is right.
        """
        ...

    async def check(self) -> None:
        """Try every operation that may be needed later, and remove what a dead process left half-written.

        Raises:
            StorageError: an operation does not work. If a permission is missing, the text names it.
        """
        ...

    async def close(self) -> None:
        """Release threads and connections after running operations have ended. May be called twice."""
        ...

    @property
    def url(self) -> str:
        """Return the location of the store, without secrets, for log lines."""
        ...


class LakeStore(ObjectStore, Protocol):
    """An object store whose objects are read, renamed and listed, too: what the upkeep of a lake needs."""

    async def list_folders(self, folder: str) -> list[str]:
        """List the names of the folders in a folder, sorted. `folder` ends in a slash, or is empty for the root."""
        ...

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Read `length` bytes of an object at `offset`; fewer only at its end.

        Raises:
            MissingObject: there is no such object.
            StorageError: it cannot be read.
        """
        ...

    async def put_new(self, key: str, blob: Blob) -> bool:
        """Store the whole blob under `key`, unless an object is there: of several at once, one succeeds.

        The object becomes visible at once and whole, and is durable when this returns True. An object that is there
        may be that of an earlier try whose answer was lost.

        Returns:
            False if there is an object already; then nothing happened.

        Raises:
            StorageError: the object is there, whole, or it is not.
            NotOffered: the server refuses such a request, or does not know it.
        """
        ...

    async def move(self, source: str, target: str) -> None:
        """Rename an object, in place of an earlier one. The target becomes visible whole, and is durable.

        After a failure the target is there, whole, or is not. The source may stay in either case, and after a success.

        Raises:
            MissingObject: there is no source; an earlier try may have moved it.
        """
        ...

    async def delete_all(self, keys: Sequence[str]) -> None:
        """Remove the objects, durably. Missing ones are no error. After a failure any of them may be there."""
        ...

    async def remove_empty(self, folder: str, modified_before: float) -> None:
        """Remove a folder that is empty, and the empty ones above it, where a store has folders at all. Not durably.

        Args:
            folder: without a slash at its end.
            modified_before: seconds since the epoch; a folder that was changed later stays.
        """
        ...


def require_key(key: str) -> None:
    """Refuse a key unless it is a relative POSIX path in UTF-8 without empty, `.` or `..` components.

    Raises:
        ValueError: the key is something else.
    """
    if not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise ValueError(f"object key {key!r} is not a plain relative path")
    if "\0" in key:
        raise ValueError(f"object key {key!r} holds a NUL")
    key.encode()  # UnicodeEncodeError is a ValueError


def read_exactly(blob: Blob, offset: int, length: int) -> bytes | memoryview:
    """Read exactly `length` bytes of a blob. Stores use this, so that a failing blob is not taken for a failing store.

    Raises:
        UnreadableBlob: it cannot be read, or is shorter than its size.
    """
    try:
        data = blob.read_at(offset, length)
    except Exception as error:
        raise UnreadableBlob(
            f"cannot read the data to be stored ({length} bytes at {offset} of {blob.size}): {error}. "
            "Check the disk that holds it"
        ) from error
    if len(data) != length:
        raise UnreadableBlob(
            f"the data to be stored is shorter than its size of {blob.size} bytes: "
            f"{len(data)} of {length} bytes at {offset}. Was it changed meanwhile?"
        )
    return data

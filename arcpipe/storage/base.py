"""Blobs, keys and the operations of every object store: what it takes and promises.

This room must not know any particular store, nor what is in a blob.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from arcpipe.errors import StorageError

if TYPE_CHECKING:

    class Buffer(Protocol):
        """Anything with the buffer protocol: bytes, memoryview, pyarrow.Buffer (collections.abc, from 3.12 on)."""

        def __buffer__(self, flags: int, /) -> memoryview: ...


class Blob(Protocol):
    """What is uploaded: seekable and readable any number of times, because a put may be tried again."""

    @property
    def size(self) -> int:
        """Bytes; must not change while the blob is in use."""
        ...

    def read_at(self, offset: int, length: int) -> bytes | memoryview:
        """`length` bytes from `offset` on, fewer only at the end. May block; called from several threads."""
        ...


class MemoryBlob:
    """A blob over memory that is already there; nothing is copied."""

    __slots__ = ("_view",)

    def __init__(self, buffer: Buffer) -> None:
        """`buffer`: contiguous bytes, a memoryview or a pyarrow.Buffer, kept alive as long as the blob."""
        self._view = memoryview(buffer).cast("B")

    @property
    def size(self) -> int:
        return len(self._view)

    def read_at(self, offset: int, length: int) -> memoryview:
        return self._view[offset : offset + length]


class ObjectStore(Protocol):
    """A flat space of named objects. Every operation may be called concurrently, on one event loop.

    Failures are StorageError, whose text names the object, the reason and what to do next, and never a secret.
    A key that `require_key` refuses is a ValueError.
    """

    async def put(self, key: str, blob: Blob) -> None:
        """Stores the whole blob under `key`, over whatever was there.

        It becomes visible at once and whole, and is durable when this returns. After a failure or a cancellation
        either the former object or the new one is there, whole.
        """
        ...

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        """As `put` of each of these keys and blobs; after a failure, any of them may be there, each one whole."""
        ...

    @property
    def objects_at_once(self) -> int:
        """So many small objects are best given to one `put_all`: 1 where that is no faster than as many puts."""
        ...

    async def exists(self, key: str) -> bool:
        """Whether an object of this key is there, whole.

        Raises:
            StorageError: it cannot be told, because objects may not be looked for, for instance.
        """
        ...

    async def abort_uploads(self, key: str) -> int:
        """Abort multipart uploads that a former try left open under this key.

        One that is under way is aborted as well: call it before the put. A store that does not let us list them is
        no failure, but a warning in the log, as they cost space and no more.

        Returns:
            How many it aborted; 0 where there are no such uploads.
        """
        ...

    async def delete(self, key: str) -> None:
        """Removes the object, durably; one that is not there is fine."""
        ...

    async def list_keys(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix` (any text, not only whole components), sorted, as given to `put`."""
        ...

    async def check(self) -> None:
        """Try all that may be needed later, after a crash too, and tidy up what a former process left half-written.

        Raises:
            StorageError: an operation does not work; for a missing permission, the text names it.
        """
        ...

    async def close(self) -> None:
        """Lets go of threads and connections, once nothing is under way. Closing twice is fine."""
        ...

    @property
    def url(self) -> str:
        """Where this store is, without secrets, for logs."""
        ...


def require_key(key: str) -> None:
    """Raises ValueError unless `key` is a relative POSIX path in UTF-8 without empty, `.` or `..` components."""
    if not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise ValueError(f"object key {key!r} is not a plain relative path")
    if "\0" in key:
        raise ValueError(f"object key {key!r} holds a NUL")
    key.encode()  # UnicodeEncodeError is a ValueError


def read_exactly(blob: Blob, offset: int, length: int) -> bytes | memoryview:
    """`length` bytes of the blob. Raises StorageError if it cannot be read or is shorter than its size said.

    Stores read through here, so that a failing source is not taken for a failing store.
    """
    try:
        data = blob.read_at(offset, length)
    except Exception as error:
        raise StorageError(
            f"cannot read the data to be stored ({length} bytes at {offset} of {blob.size}): {error}. "
            "Check the disk that holds it"
        ) from error
    if len(data) != length:
        raise StorageError(
            f"the data to be stored is shorter than its size of {blob.size} bytes: "
            f"{len(data)} of {length} bytes at {offset}. Was it changed meanwhile?"
        )
    return data

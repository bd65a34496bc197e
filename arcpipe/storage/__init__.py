"""Object stores with one small protocol: a local directory, or S3 and what speaks like it.

This package takes named blobs and makes them durable. It must not know what is in them, how their names are chosen,
or what anybody does about a failure: it counts nothing, and retries nothing but the parts of a large S3 object.

Every operation raises StorageError and nothing else, cancellation and a malformed key (ValueError, a bug of the
caller) excepted.
"""

from __future__ import annotations

from typing import Final

from arcpipe.config.settings import FileLocation, Storage, StorageS3
from arcpipe.errors import ConfigError
from arcpipe.storage.base import Blob, MemoryBlob, ObjectStore

__all__ = ["Blob", "MemoryBlob", "ObjectStore", "open_store"]


# Connections to S3, at least: eight uploads of large objects, each in four parts. They cost nothing until used.
_LEAST_CONNECTIONS: Final = 32
_LEAST_THREADS: Final = 8  # file operations at once: with fewer, a slow one would hold up the others


def open_store(url: str, s3: StorageS3, uploads_at_once: int = 1) -> ObjectStore:
    """Open the store of `url` (`file:///absolute`, `file://./relative` or `s3://bucket/prefix`).

    Does no I/O and needs no event loop; a store opens what it needs at the first use and belongs to the loop of
    that use from then on. The caller closes it.

    Args:
        uploads_at_once: puts that go on side by side; further ones wait.

    Raises:
        ConfigError: for a URL that is none of these.
    """
    try:
        location = Storage(url=url).location
    except ConfigError as error:
        raise ConfigError(f"storage.url: {error}") from None
    # Imported here, because a process that writes to S3 or to a directory pays for one of the two only
    # (aiobotocore: 0.3 s and 35 MB).
    if isinstance(location, FileLocation):
        from arcpipe.storage.local import LocalStore

        return LocalStore(location.path, max(_LEAST_THREADS, uploads_at_once))
    from arcpipe.storage.s3 import S3Store

    return S3Store(location.bucket, location.prefix, s3, max_connections=max(_LEAST_CONNECTIONS, uploads_at_once))

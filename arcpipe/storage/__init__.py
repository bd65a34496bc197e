"""Object stores with one small protocol: a local directory, S3 and what speaks its protocol, Google's, and Azure's.

    store = open_store("s3://bucket/prefix", settings.storage.s3)
    await store.put("production/cpu/file.parquet", blob)     # durable when it returns
    await store.close()

This package makes named blobs durable. It must not know their content, how names are chosen, or how failures are
handled: it counts nothing, and retries nothing but the parts of a large S3 object.

An operation raises StorageError and nothing else. The exceptions are cancellation, and ValueError for a malformed key,
which is a bug of the caller.
"""

from __future__ import annotations

from typing import Final

from arcpipe.config.settings import CloudLocation, FileLocation, S3Location, Storage, StorageS3
from arcpipe.errors import ConfigError
from arcpipe.storage.base import Blob, LakeStore, Listed, MemoryBlob, ObjectStore

__all__ = ["Blob", "LakeStore", "Listed", "MemoryBlob", "ObjectStore", "load_store", "open_store"]


# Connections: enough for eight large objects of four parts each. They cost nothing until they are used.
_LEAST_CONNECTIONS: Final = 32
# Threads, each for one file operation: with fewer, a slow operation would delay the others.
_LEAST_THREADS: Final = 8


def open_store(url: str, s3: StorageS3, uploads_at_once: int = 1) -> LakeStore:
    """Open the store at `url` (`file:///absolute`, `file://./relative`, `s3://`, `gs://` or `az://bucket/prefix`).

    Does no I/O and needs no event loop. A store connects at its first use, and belongs to the event loop of that use.
    The caller closes it.

    Args:
        url: the location, as `storage.url` has it.
        s3: the settings of `[storage.s3]`; only used for S3.
        uploads_at_once: the number of puts that run at the same time; further ones wait.

    Raises:
        ConfigError: the URL has another form, or what its store needs is not installed.
    """
    location = _location(url)
    # Imported here, so that a process pays only for the store that it uses (aiobotocore: 0.3 s and 35 MB).
    if isinstance(location, FileLocation):
        from arcpipe.storage.local import LocalStore

        return LocalStore(location.path, max(_LEAST_THREADS, uploads_at_once))
    if isinstance(location, CloudLocation):
        from arcpipe.storage.cloud import CloudStore

        return CloudStore(location)
    from arcpipe.storage.s3 import S3Store

    return S3Store(location.bucket, location.prefix, s3, max_connections=max(_LEAST_CONNECTIONS, uploads_at_once))


def load_store(url: str) -> None:
    """Import the modules of the store at `url`, for processes that are forked later.

    Raises:
        ConfigError: the URL has another form.
    """
    location = _location(url)
    if isinstance(location, FileLocation):
        import arcpipe.storage.local
    elif isinstance(location, CloudLocation):
        import arcpipe.storage.cloud
    else:
        import arcpipe.storage.s3  # noqa: F401


def _location(url: str) -> FileLocation | S3Location | CloudLocation:
    try:
        return Storage(url=url).location
    except ConfigError as error:
        raise ConfigError(f"storage.url: {error}") from None

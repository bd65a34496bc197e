"""Google Cloud Storage and Azure Blob Storage, through obstore (extra `arcpipe[cloud]`).

obstore is Rust's object_store: one client for both, with the credential chains of their SDKs. Credentials, addresses
and accounts come from the environment, by its own names, such as `GOOGLE_APPLICATION_CREDENTIALS` and
`AZURE_STORAGE_ACCOUNT_NAME`: https://developmentseed.org/obstore/latest/api/store/gcs/

This module knows which requests make an operation. Its own retries are off, because the uploader retries and counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar

from arcpipe.config.settings import CloudLocation
from arcpipe.errors import ConfigError, MissingObject, StorageError
from arcpipe.storage import cloud_errors
from arcpipe.storage.base import Blob, Listed, MemoryBlob, read_exactly, require_key
from arcpipe.storage.cloud_environment import is_without_tls
from arcpipe.units import MB

try:
    import obstore
    from obstore import exceptions as refusals
    from obstore.store import AzureStore, GCSStore
except ModuleNotFoundError as error:
    raise ConfigError(
        f"storage.url: gs:// and az:// need `pip install 'arcpipe[cloud]'`, and there is no {error.name}"
    ) from None

T = TypeVar("T")

_PROBE_KEY: Final = ".arcpipe-write-check"
_DELETES_AT_ONCE: Final = 16
_PAGE_OBJECTS: Final = 1000
# Larger objects are sent in parts, of which each is one request.
_MULTIPART_THRESHOLD_BYTES: Final = 64 * MB
_PART_BYTES: Final = 16 * MB
_PARALLEL_PARTS: Final = 4
# Objects above `_PART_BYTES` that are put at the same time: each has up to 80 MB in memory, as this client takes bytes.
_LARGE_AT_ONCE: Final = 2
_CONNECT_SECONDS: Final = 10
_REQUEST_SECONDS: Final = 300  # of 64 MB: less is a line of 2 Mbit/s


class CloudStore:
    """A LakeStore in a bucket of Google or a container of Azure, under a prefix."""

    def __init__(self, location: CloudLocation) -> None:
        """Open a store; it connects at the first use.

        Raises:
            ConfigError: the environment names no account, or has settings that are none.
        """
        self._location = location
        self._prefix = f"{location.prefix}/" if location.prefix else ""
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        kind: Any = GCSStore if location.scheme == "gs" else AzureStore
        options = {
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
            "timeout": timedelta(seconds=_REQUEST_SECONDS),
            "allow_http": is_without_tls(),
        }
        try:
            self._store: Any = kind(location.bucket, client_options=options, retry_config={"max_retries": 0})
        except refusals.BaseError as error:
            raise ConfigError(f"storage.url: {self.url}: {cloud_errors.reason_of(error)}") from None

    @property
    def url(self) -> str:
        return f"{self._location.scheme}://{self._location.bucket}/{self._prefix}".rstrip("/")

    @property
    def objects_at_once(self) -> int:
        return 1

    async def put(self, key: str, blob: Blob) -> None:
        await self._put(key, blob, "overwrite")

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        for key, blob in objects:
            await self.put(key, blob)

    async def put_new(self, key: str, blob: Blob) -> bool:
        try:
            await self._put(key, blob, "create")
        except _Exists:
            return False
        return True

    async def exists(self, key: str) -> bool:
        require_key(key)
        try:
            await self._done("look for", key, obstore.head_async(self._store, self._prefix + key))
        except MissingObject:
            await self._require_bucket()
            return False
        return True

    async def abort_uploads(self, key: str) -> int:
        """Do nothing: neither store lists them to this client. Azure forgets them after a week, Google by a rule."""
        require_key(key)
        return 0

    async def delete(self, key: str) -> None:
        require_key(key)
        try:
            await self._done("delete", key, obstore.delete_async(self._store, self._prefix + key))
        except MissingObject:
            await self._require_bucket()

    async def delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            require_key(key)
        slots = asyncio.Semaphore(_DELETES_AT_ONCE)

        async def delete(key: str) -> None:
            async with slots:
                await self.delete(key)

        # All are tried, and none runs on when this returns.
        for outcome in await asyncio.gather(*map(delete, keys), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def list_keys(self, prefix: str) -> list[str]:
        return sorted([one.key async for page in self.list_objects(prefix) for one in page])

    async def list_objects(self, prefix: str, after: str = "") -> AsyncIterator[list[Listed]]:
        """Yield the objects of the prefix's folder whose keys begin with it: these stores list whole folders alone."""
        require_key(prefix + "x")
        folder, name = (self._prefix + prefix).rpartition("/")[0], self._prefix + prefix
        offset = self._prefix + after if after else None
        try:
            async for page in obstore.list(self._store, folder or None, offset=offset, chunk_size=_PAGE_OBJECTS):
                found = [
                    Listed(
                        one["path"].removeprefix(self._prefix),
                        one["size"],
                        one["last_modified"].timestamp(),
                        (one["e_tag"] or "").strip('"'),
                    )
                    for one in page
                    if one["path"].startswith(name)
                ]
                if found:
                    yield found
        except StorageError:
            raise
        except Exception as error:
            raise cloud_errors.explain("list", f"{self.url}/{prefix}", error) from error

    async def list_folders(self, folder: str) -> list[str]:
        require_key(folder + "x")
        name = self._prefix + folder
        found = await self._done("list", folder, obstore.list_with_delimiter_async(self._store, name or None))
        return sorted(one.rstrip("/").removeprefix(name) for one in found["common_prefixes"])

    async def read(self, key: str, offset: int, length: int) -> bytes:
        require_key(key)
        if not length:
            return b""
        reading = obstore.get_range_async(self._store, self._prefix + key, start=offset, length=length)
        try:
            return bytes(await self._done("read", key, reading))
        except MissingObject:
            raise
        except StorageError:
            # Each store refuses a range that begins at the end in its own words, so the size decides.
            found = await self._done("look for", key, obstore.head_async(self._store, self._prefix + key))
            if offset >= found["size"]:
                return b""
            raise

    async def move(self, source: str, target: str) -> None:
        """Copy the object at the server. The source stays, as with S3: many are deleted at once later."""
        require_key(source)
        require_key(target)
        names = self._prefix + source, self._prefix + target
        await self._done("write", target, obstore.copy_async(self._store, *names))
        # Azure may answer before a copy is complete.
        sizes = [(await self._done("look for", name, obstore.head_async(self._store, name)))["size"] for name in names]
        if sizes[0] != sizes[1]:
            raise StorageError(
                f"cannot write {self.url}/{target}: the copy has {sizes[1]} bytes, and {source} has {sizes[0]}. "
                "It is tried again"
            )

    async def remove_empty(self, folder: str, modified_before: float) -> None:
        """Do nothing: a folder is there as long as it has an object."""

    async def check(self) -> None:
        """Try every request that may be needed: write, read, list and delete. It leaves no object."""
        await self.put(_PROBE_KEY, MemoryBlob(b"arcpipe"))
        if not await self.exists(_PROBE_KEY):
            raise StorageError(f"cannot look for {self.url}/{_PROBE_KEY}: it was written, and is not there")
        async for _ in self.list_objects(_PROBE_KEY):
            break
        await self.delete(_PROBE_KEY)

    async def close(self) -> None:
        """Do nothing: the client's connections end with the process."""

    # Single steps.

    async def _put(self, key: str, blob: Blob, mode: Literal["create", "overwrite"]) -> None:
        require_key(key)
        async with self._large if blob.size > _PART_BYTES else contextlib.nullcontext():
            await self._put_now(key, blob, mode)

    async def _put_now(self, key: str, blob: Blob, mode: Literal["create", "overwrite"]) -> None:
        name, size = self._prefix + key, blob.size
        if size <= _MULTIPART_THRESHOLD_BYTES or mode == "create":  # an upload in parts has no condition
            content = await asyncio.to_thread(read_exactly, blob, 0, size)
            putting = obstore.put_async(self._store, name, bytes(content), mode=mode, use_multipart=False)
            await self._done("write", key, putting)
            return
        failures: list[BaseException] = []

        async def parts() -> AsyncIterator[bytes]:
            for at in itertools.count(0, _PART_BYTES):
                if at >= size:
                    return
                try:
                    yield bytes(await asyncio.to_thread(read_exactly, blob, at, min(_PART_BYTES, size - at)))
                except StorageError as error:
                    failures.append(error)
                    raise

        putting = obstore.put_async(
            self._store, name, parts(), use_multipart=True, chunk_size=_PART_BYTES, max_concurrency=_PARALLEL_PARTS
        )
        try:
            await self._done("write", key, putting)
        except StorageError:
            if failures:  # what is wrong is the disk with the data
                raise failures[0] from None
            raise

    async def _require_bucket(self) -> None:
        """Raise unless the bucket is there: a missing one is answered as a missing object."""
        async for _ in self.list_objects(_PROBE_KEY):
            break

    async def _done(self, action: str, key: str, request: Awaitable[T]) -> T:
        place = f"{self.url}/{key}"
        try:
            return await request
        except refusals.AlreadyExistsError:
            raise _Exists from None
        except cloud_errors.MISSING as error:
            if action == "write":
                raise await self._missing(place, error) from error
            raise MissingObject(f"cannot {action} {place}: there is no such object") from error
        except Exception as error:
            raise cloud_errors.explain(action, place, error) from error

    async def _missing(self, place: str, error: Exception) -> StorageError:
        """Tell a copy without a source from a bucket that is not there."""
        await self._require_bucket()
        return MissingObject(f"cannot write {place}: there is no such object to copy ({cloud_errors.reason_of(error)})")


class _Exists(Exception):
    """There is an object already."""

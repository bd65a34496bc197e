"""The S3 store: AWS and every server that speaks its protocol, through aiobotocore.

This module knows which requests make a put, a listing or a check. It must not know the content of objects. `s3_client`
sends one request, `s3_multipart` puts a large object, `s3_errors` explains failures.

One client lives as long as the store. The SDK's own retries are off, because the uploader retries and counts. Only the
parts of a large object are retried here, because otherwise the parts before would be lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from arcpipe.config.settings import StorageS3
from arcpipe.errors import MissingObject, NotOffered, StorageError
from arcpipe.storage import s3_errors
from arcpipe.storage.base import Blob, Listed, MemoryBlob, require_key
from arcpipe.storage.s3_client import Requests, S3Client
from arcpipe.storage.s3_errors import S3Error
from arcpipe.storage.s3_fields import fields_of_objects
from arcpipe.storage.s3_multipart import UPLOAD_MARKERS, OpenUploads, Parts, PartwisePut, begin_upload
from arcpipe.units import MB

log = logging.getLogger(__name__)

# Seconds to make a client, which may have to ask the instance's role or a token service for credentials.
_CLIENT_SECONDS: Final = 60.0
_PROBE_KEY: Final = ".arcpipe-write-check"
_LOOK_KEY: Final = ".arcpipe-look-check"
_LIST_MARKERS: Final = {"ContinuationToken": "NextContinuationToken"}
# Deletes that run at once: a thousand objects take some seconds, and leave connections for puts.
_DELETES_AT_ONCE: Final = 16
_DELETES_OF_A_REQUEST: Final = 1000  # S3's own limit
# Answers to a put on condition that there is no object, when there is one, or another put is under way.
_IS_THERE: Final = (409, 412)
# Answers of servers that do not know the request for several objects.
_HAS_NO_SUCH_REQUEST: Final = {400, 404, 405, 411, 501}


class S3Store:
    """An ObjectStore in a bucket, under a prefix."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        options: StorageS3,
        *,
        multipart_threshold_bytes: int = 64 * MB,
        part_bytes: int = 16 * MB,
        parallel_parts: int = 4,
        part_tries: int = 4,
        part_pause_seconds: float = 0.5,
        max_connections: int = 32,
        connect_timeout_seconds: float = 10.0,
        read_timeout_seconds: float = 60.0,
    ) -> None:
        """Open a store; it connects at the first use.

        Args:
            prefix: no slash at either end; may be empty.
            multipart_threshold_bytes: objects up to this size are one request, larger ones are sent in parts.
            parallel_parts: the number of parts of one object that are sent at the same time.
            part_tries: tries of each part.
            part_pause_seconds: the pause before the second try; it grows with each further one.
            max_connections: the number of requests at the same time, of all objects.
            connect_timeout_seconds: a request fails if connecting takes this long.
            read_timeout_seconds: a request fails if no answer comes for this long. It also fails if no byte of its
                body is taken for the sum of both timeouts.
        """
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._options = options
        self._multipart_threshold_bytes = multipart_threshold_bytes
        self._parts = Parts(part_bytes, parallel_parts, part_tries, part_pause_seconds)
        self._kept = fields_of_objects(options)
        self._requests = Requests(
            bucket,
            options,
            max_connections=max_connections,
            connect_timeout_seconds=connect_timeout_seconds,
            read_timeout_seconds=read_timeout_seconds,
        )
        self._connecting = asyncio.Lock()
        self._client: S3Client | None = None
        self._deletes_several = True  # until the server says that it has no such request
        self._looking = asyncio.Lock()  # held while the object of `_sees_objects` exists
        self._uploads = OpenUploads()

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    async def put(self, key: str, blob: Blob) -> None:
        require_key(key)
        name = self._prefix + key
        async with self._connected("write", name) as client:
            if blob.size <= self._multipart_threshold_bytes:
                await client.put(name, blob, self._kept)
            else:
                await self._put_in_parts(client, name, blob)

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        for key, blob in objects:
            await self.put(key, blob)

    async def put_new(self, key: str, blob: Blob) -> bool:
        require_key(key)
        name = self._prefix + key
        async with self._connected("write", name) as client:
            content = await client.content(blob, 0, blob.size)
            try:
                wanted = {"Key": name, "IfNoneMatch": "*", **self._kept, **content}
                answer = await client.call("write", "put_object", wanted)
            except S3Error as error:
                if error.status in _IS_THERE:
                    return False
                if error.status == 501 or error.code in ("NotImplemented", "InvalidArgument"):
                    raise NotOffered(f"{error}. This server has no conditional writes (If-None-Match)") from error
                raise
            client.require_taken(name, answer, content)
            return True

    @property
    def objects_at_once(self) -> int:
        return 1

    async def exists(self, key: str) -> bool:
        require_key(key)
        name = self._prefix + key
        async with self._connected("look for", name) as client:
            try:
                await client.call("look for", "head_object", {"Key": name})
            except S3Error as error:
                # Without s3:ListBucket, AWS answers 403 for an object that is not there.
                if s3_errors.is_denied(error) and await self._sees_objects(client):
                    return False
                if error.status != 404:
                    raise
            else:
                return True
            await self._require_bucket(client, name)
            return False

    async def abort_uploads(self, key: str) -> int:
        require_key(key)
        name = self._prefix + key
        async with self._connected("end the upload of", name) as client:
            found = self._uploads.of(name)
            try:
                async for page in client.pages("list_multipart_uploads", name, UPLOAD_MARKERS):
                    found |= {upload["UploadId"] for upload in page.get("Uploads", []) if upload["Key"] == name}
            except S3Error as error:
                if not (s3_errors.is_denied(error) or s3_errors.is_not_offered(error)):
                    raise
                log.warning("multipart uploads of %s that an earlier try left open, if any, stay: %s", name, error)
            for upload_id in found:
                await self._uploads.abort(client, name, upload_id)
            return len(found)

    async def delete(self, key: str) -> None:
        require_key(key)
        name = self._prefix + key
        async with self._connected("delete", name) as client:
            await self._delete(client, name)

    async def list_keys(self, prefix: str) -> list[str]:
        require_key(prefix + "x")
        name = self._prefix + prefix
        keys: list[str] = []
        async with self._connected("list", name) as client:
            async for page in client.pages("list_objects_v2", name, _LIST_MARKERS):
                keys += [entry["Key"].removeprefix(self._prefix) for entry in page.get("Contents", [])]
        return sorted(keys)

    async def list_objects(self, prefix: str, after: str = "") -> AsyncIterator[list[Listed]]:
        require_key(prefix + "x")
        name = self._prefix + prefix
        fields = {"StartAfter": self._prefix + after} if after else {}
        async with self._connected("list", name) as client:
            async for page in client.pages("list_objects_v2", name, _LIST_MARKERS, **fields):
                yield [
                    Listed(
                        entry["Key"].removeprefix(self._prefix),
                        entry["Size"],
                        entry["LastModified"].timestamp(),
                        entry.get("ETag", "").strip('"'),
                    )
                    for entry in page.get("Contents", [])
                ]

    async def list_folders(self, folder: str) -> list[str]:
        require_key(folder + "x")
        name = self._prefix + folder
        folders: list[str] = []
        async with self._connected("list", name) as client:
            async for page in client.pages("list_objects_v2", name, _LIST_MARKERS, Delimiter="/"):
                folders += [entry["Prefix"].removeprefix(name)[:-1] for entry in page.get("CommonPrefixes", [])]
        return sorted(folders)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        require_key(key)
        name = self._prefix + key
        async with self._connected("read", name) as client:
            try:
                return await client.read_range(name, offset, length)
            except S3Error as error:
                if error.code == "InvalidRange" or error.status == 416:  # it begins at the end, or after it
                    return b""
                if error.code == "NoSuchKey":
                    raise MissingObject(str(error)) from error
                raise

    async def move(self, source: str, target: str) -> None:
        """Copy the object at the server. The source stays: one request can delete many of them later."""
        require_key(source)
        require_key(target)
        name = self._prefix + target
        copied = {"Bucket": self._bucket, "Key": self._prefix + source}
        async with self._connected("write", name) as client:
            try:
                answer = await client.call("write", "copy_object", {"Key": name, "CopySource": copied, **self._kept})
            except S3Error as error:
                if error.code == "NoSuchKey":
                    raise MissingObject(str(error)) from error
                raise
            client.require_taken(name, answer.get("CopyObjectResult", {}))

    async def delete_all(self, keys: Sequence[str]) -> None:
        """Delete by a request for each thousand objects; by single ones, many at once, where the server has no such."""
        for key in keys:
            require_key(key)
        for start in range(0, len(keys), _DELETES_OF_A_REQUEST):
            await self._delete_some([self._prefix + key for key in keys[start : start + _DELETES_OF_A_REQUEST]])

    async def _delete_some(self, names: Sequence[str]) -> None:
        async with self._connected("delete", names[0]) as client:
            if len(names) > 1 and self._deletes_several:
                wanted = {"Objects": [{"Key": name} for name in names], "Quiet": True}
                try:
                    answer = await client.call("delete", "delete_objects", {"Delete": wanted})
                except S3Error as error:
                    if error.status not in _HAS_NO_SUCH_REQUEST or error.is_passing:
                        raise
                    log.debug("this server deletes objects one by one: %s", error)
                    self._deletes_several = False
                else:
                    # What was not deleted is told by the requests for single objects below.
                    names = [one["Key"] for one in answer.get("Errors", []) if one.get("Code") != "NoSuchKey"]
            slots = asyncio.Semaphore(_DELETES_AT_ONCE)

            async def delete(name: str) -> None:
                async with slots:
                    await self._delete(client, name)

            # All are tried, and none runs on when this returns.
            for outcome in await asyncio.gather(*map(delete, names), return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    async def remove_empty(self, folder: str, modified_before: float) -> None:
        """Do nothing: a folder is there as long as it has an object."""

    async def check(self) -> None:
        """Try every request that a crash may make necessary: write, abort, delete, and look for an object.

        Begins a multipart upload and aborts it: this needs the bucket and the right to write, and leaves no object and
        no version. Then aborts uploads under our prefix that began over a day ago. Without a prefix it leaves them,
        because they may belong to somebody else.
        """
        name = self._prefix + _PROBE_KEY
        async with self._connected("write", name) as client:
            for upload_id in self._uploads.of(name):
                await self._uploads.abort(client, name, upload_id)
            await self._uploads.abort(client, name, await begin_upload(client, name, self._kept))
            await self._check_delete(client, name)
            await self._check_head(client, name)
            if self._prefix:
                await self._uploads.abort_abandoned(client, self._prefix)

    async def close(self) -> None:
        async with self._connecting:
            client, self._client = self._client, None
        if client is not None:
            await client.retire()
        await asyncio.to_thread(self._requests.executor.shutdown)

    @asynccontextmanager
    async def _connected(self, action: str, name: str) -> AsyncIterator[S3Client]:
        """Lend the client. It is made at the first use, and anew after its credentials were refused."""
        async with self._connecting:
            if self._client is None:
                try:
                    async with asyncio.timeout(_CLIENT_SECONDS):
                        self._client = await self._requests.connect()
                except Exception as error:
                    raise s3_errors.explain(action, self._requests.place(name), error) from error
            client = self._client
            client.users += 1
        try:
            yield client
        except StorageError as error:
            # The SDK reads a profile, a file or the instance's role once. A new client reads them again, so correcting
            # them needs no restart of arcpipe.
            if error.kind == "credentials" and not self._options.access_key_id and self._client is client:
                self._client = None
                await client.retire()
            raise
        finally:
            await client.release()

    async def _put_in_parts(self, client: S3Client, name: str, blob: Blob) -> None:
        for upload_id in self._uploads.of(name):
            await self._uploads.abort_if_possible(client, name, upload_id)
        upload_id = await begin_upload(client, name, self._kept)
        try:
            await PartwisePut(client, name, upload_id, blob, self._parts).run()
        except BaseException:  # cancellation too: parts cost money until they are aborted
            await self._uploads.abort_if_possible(client, name, upload_id)
            raise

    # Single steps.

    async def _delete(self, client: S3Client, name: str, **version: str) -> str | None:
        """Delete an object. A missing object is no error.

        Returns:
            The version of the delete marker that a bucket with versions made; else None.
        """
        try:
            answer = await client.call("delete", "delete_object", {"Key": name, **version})
        except S3Error as error:
            # For a missing object AWS answers 204, and some other servers answer NoSuchKey.
            if error.code != "NoSuchKey":
                raise
            return None
        return answer.get("VersionId") if answer.get("DeleteMarker") else None

    async def _check_delete(self, client: S3Client, name: str) -> None:
        """Delete a missing object, and then the delete marker that a bucket with versions makes."""
        marker = await self._delete(client, name)
        if marker:
            try:
                await self._delete(client, name, VersionId=marker)
            except S3Error as error:
                log.debug("the delete marker of %s stays: %s", name, error)

    async def _delete_version(self, client: S3Client, name: str, version: str | None) -> None:
        """Delete an object that we made. In a bucket with versions delete the version, so that nothing stays."""
        if version:
            try:
                await self._delete(client, name, VersionId=version)
                return
            except S3Error as error:
                log.debug("version %s of %s stays: %s", version, name, error)
        await self._delete(client, name)

    async def _check_head(self, client: S3Client, name: str) -> None:
        """Look for a missing object."""
        try:
            await client.call("look for", "head_object", {"Key": name})
        except S3Error as error:
            if s3_errors.is_denied(error):
                # AWS denies this without s3:GetObject, and also without s3:ListBucket alone.
                log.info("cannot tell whether objects may be looked for: %s", error)
            elif error.status != 404:
                raise

    async def _sees_objects(self, client: S3Client) -> bool:
        """Tell if we are allowed to look for an existing object. Writes one to find out, and deletes it."""
        name = self._prefix + _LOOK_KEY
        content = await client.content(MemoryBlob(b""), 0, 0)
        async with self._looking:
            answer = await client.call("write", "put_object", {"Key": name, **self._kept, **content})
            try:
                await client.call("look for", "head_object", {"Key": name})
            except S3Error as error:
                if s3_errors.is_denied(error):
                    return False
                raise
            finally:
                await self._delete_version(client, name, answer.get("VersionId"))
            return True

    async def _require_bucket(self, client: S3Client, name: str) -> None:
        """Raise if the bucket is missing. A 404 to a HEAD has no body, so it does not say which one is missing.

        Raises:
            StorageError: there is no such bucket.
        """
        try:
            await client.call("look for", "head_bucket", {})
        except S3Error as error:
            if error.status == 404:
                raise client.failure("look for", name, "HTTP 404: there is no such bucket", "missing_bucket") from error
            if not s3_errors.is_denied(error):
                raise

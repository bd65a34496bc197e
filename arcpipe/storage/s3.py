"""The S3 store, through aiobotocore: AWS and every server that speaks its protocol.

This file knows which requests make a put, a listing and so on, and what `check` finds out; it must not know what it
stores. `s3_client` sends a request, `s3_multipart` puts a large object, `s3_errors` explains failures.

One client lives as long as the store; the SDK's own retries are off, because the uploader retries and counts. Only the
parts of a large object are retried here, as the parts before would be lost otherwise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

from arcpipe.config.settings import StorageS3
from arcpipe.errors import StorageError
from arcpipe.storage import s3_errors
from arcpipe.storage.base import Blob, MemoryBlob, require_key
from arcpipe.storage.s3_client import MIB, Client, Requests
from arcpipe.storage.s3_errors import S3Error
from arcpipe.storage.s3_multipart import Parts, PartwisePut, abort_upload, begin_upload

__all__ = ["MIB", "S3Store"]

log = logging.getLogger(__name__)

_CLIENT_SECONDS: Final = 60.0  # to make a client, which may ask the instance's role or a token service for credentials
_ABANDONED_AFTER: Final = timedelta(hours=24)
_PROBE_KEY: Final = ".arcpipe-write-check"
_LOOK_KEY: Final = ".arcpipe-look-check"
_UPLOAD_MARKERS: Final = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
_MAX_LEFT_OPEN: Final = 1000  # objects whose open uploads are remembered, 200 bytes each; parts of others cost space


class S3Store:
    """An ObjectStore in a bucket, under a prefix."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        options: StorageS3,
        *,
        multipart_threshold_bytes: int = 64 * MIB,
        part_bytes: int = 16 * MIB,
        parallel_parts: int = 4,
        part_tries: int = 4,
        part_pause_seconds: float = 0.5,
        max_connections: int = 32,
        connect_timeout_seconds: float = 10.0,
        read_timeout_seconds: float = 60.0,
    ) -> None:
        """`prefix`: no slash at either end, may be empty. Objects up to `multipart_threshold_bytes` are one request,
        larger ones parts of `part_bytes`, `parallel_parts` at a time, each tried up to `part_tries` times with pauses
        that begin at `part_pause_seconds`; `max_connections` requests at once in all.

        A request fails when connecting takes `connect_timeout_seconds`, or when for `read_timeout_seconds` no answer
        comes or (up to the sum of the two) no byte of the body is taken.
        """
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._options = options
        self._multipart_threshold_bytes = multipart_threshold_bytes
        self._parts = Parts(part_bytes, parallel_parts, part_tries, part_pause_seconds)
        encryption: str = options.server_side_encryption
        self._encryption = {"ServerSideEncryption": encryption} if encryption else {}
        self._requests = Requests(
            bucket,
            options,
            max_connections=max_connections,
            connect_timeout_seconds=connect_timeout_seconds,
            read_timeout_seconds=read_timeout_seconds,
        )
        self._connecting = asyncio.Lock()
        self._client: Client | None = None
        self._looking = asyncio.Lock()  # one at a time makes and deletes the object that is looked for
        # Multipart uploads that could not be aborted, by the name of their object: the next put of it tries again.
        self._left_open: dict[str, set[str]] = {}

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    async def put(self, key: str, blob: Blob) -> None:
        require_key(key)
        name = self._prefix + key
        async with self._connected("write", name) as client:
            if blob.size <= self._multipart_threshold_bytes:
                content = await client.content(blob, 0, blob.size)
                answer = await client.call("write", "put_object", {"Key": name, **self._encryption, **content})
                client.require_taken(name, answer, content)
            else:
                await self._put_in_parts(client, name, blob)

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        for key, blob in objects:
            await self.put(key, blob)

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
            found = set(self._left_open.get(name, ()))
            try:
                async for page in client.pages("list_multipart_uploads", name, _UPLOAD_MARKERS):
                    found |= {upload["UploadId"] for upload in page.get("Uploads", []) if upload["Key"] == name}
            except S3Error as error:
                if not (s3_errors.is_denied(error) or s3_errors.is_not_offered(error)):
                    raise
                log.warning("multipart uploads of %s that a former try left open, if any, stay: %s", name, error)
            for upload_id in found:
                await self._abort(client, name, upload_id)
            return len(found)

    async def delete(self, key: str) -> None:
        require_key(key)
        name = self._prefix + key
        async with self._connected("delete", name) as client:
            await self._delete(client, name)

    async def list_keys(self, prefix: str) -> list[str]:
        require_key(prefix + "x")
        name = self._prefix + prefix
        markers = {"ContinuationToken": "NextContinuationToken"}
        keys: list[str] = []
        async with self._connected("list", name) as client:
            async for page in client.pages("list_objects_v2", name, markers):
                keys += [entry["Key"].removeprefix(self._prefix) for entry in page.get("Contents", [])]
        return sorted(keys)

    async def check(self) -> None:
        """Try what a crash may make necessary: to write, to abort, to delete, to look for an object.

        It begins a multipart upload and aborts it, which needs the bucket and the right to write, and leaves nothing
        behind, no object and no version. Then it aborts uploads under our prefix that began over a day ago. Without a
        prefix it leaves them all: they may be somebody else's.
        """
        name = self._prefix + _PROBE_KEY
        async with self._connected("write", name) as client:
            for upload_id in list(self._left_open.get(name, ())):
                await self._abort(client, name, upload_id)
            await self._abort(client, name, await begin_upload(client, name, self._encryption))
            await self._check_delete(client, name)
            await self._check_head(client, name)
            if self._prefix:
                await self._abort_abandoned(client)

    async def close(self) -> None:
        async with self._connecting:
            client, self._client = self._client, None
        if client is not None:
            await client.retire()
        await asyncio.to_thread(self._requests.executor.shutdown)

    @asynccontextmanager
    async def _connected(self, action: str, name: str) -> AsyncIterator[Client]:
        """The client: made at the first use, and anew after its credentials were refused."""
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
            # The SDK reads a profile, a file or the instance's role once. Whoever sets them right should not have
            # to restart arcpipe.
            if error.kind == "credentials" and not self._options.access_key_id and self._client is client:
                self._client = None
                await client.retire()
            raise
        finally:
            await client.release()

    # Uploads in parts.

    async def _put_in_parts(self, client: Client, name: str, blob: Blob) -> None:
        for upload_id in list(self._left_open.get(name, ())):
            await self._abort_if_possible(client, name, upload_id)
        upload_id = await begin_upload(client, name, self._encryption)
        try:
            await PartwisePut(client, name, upload_id, blob, self._parts).run()
        except BaseException:  # cancellation too: parts cost money until they are aborted
            await self._abort_if_possible(client, name, upload_id)
            raise

    async def _abort(self, client: Client, name: str, upload_id: str) -> None:
        """Abort an upload, and remember it until that is done."""
        if name in self._left_open or len(self._left_open) < _MAX_LEFT_OPEN:
            self._left_open.setdefault(name, set()).add(upload_id)
        await abort_upload(client, name, upload_id)
        if left := self._left_open.get(name):
            left.discard(upload_id)
            if not left:
                del self._left_open[name]

    async def _abort_if_possible(self, client: Client, name: str, upload_id: str) -> None:
        try:
            await self._abort(client, name, upload_id)
        except StorageError as error:
            log.warning("a multipart upload of %s stays open: %s", name, error)

    async def _abort_abandoned(self, client: Client) -> None:
        """Abort what crashes left under our prefix. Best effort: it costs space, and no more than that."""
        before = datetime.now(UTC) - _ABANDONED_AFTER
        try:
            async for page in client.pages("list_multipart_uploads", self._prefix, _UPLOAD_MARKERS):
                for upload in page.get("Uploads", []):
                    name = upload["Key"]
                    if upload["Initiated"] < before:
                        log.info("aborting a multipart upload of %s begun at %s", name, upload["Initiated"])
                        await self._abort_if_possible(client, name, upload["UploadId"])
        except StorageError as error:
            log.warning("abandoned multipart uploads, if there are any, stay: %s", error)

    # Single steps.

    async def _delete(self, client: Client, name: str, **version: str) -> str | None:
        """Delete an object; one that is not there is fine.

        Returns:
            The version of the delete marker that a bucket with versions made of it, if so.
        """
        try:
            answer = await client.call("delete", "delete_object", {"Key": name, **version})
        except S3Error as error:
            # AWS answers 204 whether it was there or not; some servers say that it was not.
            if error.code != "NoSuchKey":
                raise
            return None
        return answer.get("VersionId") if answer.get("DeleteMarker") else None

    async def _check_delete(self, client: Client, name: str) -> None:
        """Delete an object that is not there, and the mark that a bucket with versions makes of that."""
        marker = await self._delete(client, name)
        if marker:
            try:
                await self._delete(client, name, VersionId=marker)
            except S3Error as error:
                log.debug("the delete marker of %s stays: %s", name, error)

    async def _delete_version(self, client: Client, name: str, version: str | None) -> None:
        """Delete an object that we made; in a bucket with versions that version, so that nothing of it stays."""
        if version:
            try:
                await self._delete(client, name, VersionId=version)
                return
            except S3Error as error:
                log.debug("version %s of %s stays: %s", version, name, error)
        await self._delete(client, name)

    async def _check_head(self, client: Client, name: str) -> None:
        """Look for an object that is not there."""
        try:
            await client.call("look for", "head_object", {"Key": name})
        except S3Error as error:
            if s3_errors.is_denied(error):
                # AWS answers so where s3:GetObject lacks, and also where only s3:ListBucket does.
                log.info("cannot tell whether objects may be looked for: %s", error)
            elif error.status != 404:
                raise

    async def _sees_objects(self, client: Client) -> bool:
        """Whether we may look for an object that is there. Writes one for that, and deletes it."""
        name = self._prefix + _LOOK_KEY
        content = await client.content(MemoryBlob(b""), 0, 0)
        async with self._looking:
            answer = await client.call("write", "put_object", {"Key": name, **self._encryption, **content})
            try:
                await client.call("look for", "head_object", {"Key": name})
            except S3Error as error:
                if s3_errors.is_denied(error):
                    return False
                raise
            finally:
                await self._delete_version(client, name, answer.get("VersionId"))
            return True

    async def _require_bucket(self, client: Client, name: str) -> None:
        """Raise if there is no bucket. A HEAD has no body: a 404 does not say whether object or bucket is missing."""
        try:
            await client.call("look for", "head_bucket", {})
        except S3Error as error:
            if error.status == 404:
                raise client.failure("look for", name, "HTTP 404: there is no such bucket", "missing_bucket") from error
            if not s3_errors.is_denied(error):
                raise

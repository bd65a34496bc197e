"""Put one object in parts: S3's multipart upload.

Each part, and the completion, is retried a few times, with growing pauses. The upload is aborted only if one of them
fails for good or the put is cancelled, because parts cost money until they are completed or aborted.

The answer to a completion may be lost after the server has done it. The retry is then told that there is no such
upload. In this case size and ETag of the object decide if the completion was done.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from arcpipe.errors import StorageError
from arcpipe.storage import s3_errors
from arcpipe.storage.base import Blob
from arcpipe.storage.s3_client import S3Client
from arcpipe.units import MB

log = logging.getLogger(__name__)

T = TypeVar("T")

# S3's limit on the parts of one object.
_MAX_PARTS = 10_000
# Seconds for a completion: AWS may take minutes to join many parts, and sends blanks meanwhile.
_COMPLETE_SECONDS = 300.0
# Seconds for aborting a failed upload; its failure is reported only afterwards.
_ABORT_SECONDS = 10.0

_ABANDONED_AFTER: Final = timedelta(hours=24)
UPLOAD_MARKERS: Final = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
# Objects whose open uploads are remembered, 200 bytes each. The parts of a forgotten one go on costing space.
_MAX_LEFT_OPEN: Final = 1000


@dataclass(frozen=True)
class Parts:
    """Options for putting an object in parts.

    Each pause between tries is twice as long as the one before. All are shortened at random by up to a half, so that
    many parts are not sent again at the same moment.
    """

    part_bytes: int = 16 * MB
    parallel: int = 4  # parts at the same time
    tries: int = 4  # of each part, and of the completion
    pause_seconds: float = 0.5  # before the second try


async def begin_upload(client: S3Client, name: str, parameters: dict[str, str]) -> str:
    """Begin an upload and return its id."""
    checksum = {"ChecksumAlgorithm": "CRC32"} if client.checksums else {}
    answer = await client.call("write", "create_multipart_upload", {"Key": name, **parameters, **checksum})
    upload_id = answer.get("UploadId")
    if not isinstance(upload_id, str):
        raise client.failure("write", name, s3_errors.NOT_S3)
    return upload_id


async def abort_upload(client: S3Client, name: str, upload_id: str) -> None:
    """Abort an upload. A missing upload is no error.

    Raises:
        StorageError: the upload stays open, and its parts cost space.
    """
    action = "end the upload of"
    try:
        async with asyncio.timeout(_ABORT_SECONDS):
            await client.call(action, "abort_multipart_upload", {"Key": name, "UploadId": upload_id})
    except s3_errors.S3Error as error:
        if error.code != "NoSuchUpload":
            raise
    except TimeoutError as error:
        raise client.failure(action, name, "no answer in time", "timeout") from error


class OpenUploads:
    """The uploads that could not be aborted, by the name of their object. Its next put retries that."""

    def __init__(self) -> None:
        self._left: dict[str, set[str]] = {}

    def of(self, name: str) -> set[str]:
        """Copy the ids of an object's uploads."""
        return set(self._left.get(name, ()))

    async def abort(self, client: S3Client, name: str, upload_id: str) -> None:
        """Abort an upload, and remember it until that has succeeded."""
        if name in self._left or len(self._left) < _MAX_LEFT_OPEN:
            self._left.setdefault(name, set()).add(upload_id)
        await abort_upload(client, name, upload_id)
        if left := self._left.get(name):
            left.discard(upload_id)
            if not left:
                del self._left[name]

    async def abort_if_possible(self, client: S3Client, name: str, upload_id: str) -> None:
        """Abort an upload; log a warning if it stays open."""
        try:
            await self.abort(client, name, upload_id)
        except StorageError as error:
            log.warning("a multipart upload of %s stays open: %s", name, error)

    async def abort_abandoned(self, client: S3Client, prefix: str) -> None:
        """Abort the uploads that crashes left under a prefix. Best effort: they cost space and no more."""
        before = datetime.now(UTC) - _ABANDONED_AFTER
        try:
            async for page in client.pages("list_multipart_uploads", prefix, UPLOAD_MARKERS):
                for upload in page.get("Uploads", []):
                    name = upload["Key"]
                    if upload["Initiated"] < before:
                        log.info("aborting a multipart upload of %s begun at %s", name, upload["Initiated"])
                        await self.abort_if_possible(client, name, upload["UploadId"])
        except StorageError as error:
            log.warning("abandoned multipart uploads, if there are any, stay: %s", error)


class PartwisePut:
    """One blob that is sent as the parts of an upload that was begun."""

    def __init__(self, client: S3Client, name: str, upload_id: str, blob: Blob, how: Parts) -> None:
        self._client = client
        self._name = name
        self._upload = {"Key": name, "UploadId": upload_id}
        self._blob = blob
        self._how = how
        self._may_be_complete = False  # a completion failed, but the server may have done it

    async def run(self) -> None:
        """Send all parts, `parallel` at a time, and complete the upload.

        Raises:
            StorageError: a part or the completion failed for good; the caller aborts the upload.
        """
        part_bytes = max(self._how.part_bytes, -(-self._blob.size // _MAX_PARTS))
        offsets = range(0, self._blob.size, part_bytes)
        parts: list[dict[str, Any]] = [{} for _ in offsets]
        waiting = iter(enumerate(offsets))

        async def send_waiting() -> None:
            for index, offset in waiting:
                length = min(part_bytes, self._blob.size - offset)
                parts[index] = await self._again(
                    f"part {index + 1}", functools.partial(self._send, index + 1, offset, length)
                )

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._how.parallel, len(parts))):
                    group.create_task(send_waiting())
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            raise first from first.__cause__
        await self._again("the completion", lambda: self._complete(parts))

    async def _send(self, number: int, offset: int, length: int) -> dict[str, Any]:
        """Send a part, and return its entry for the completion."""
        content = await self._client.content(self._blob, offset, length)
        answer = await self._client.call("write", "upload_part", {**self._upload, "PartNumber": number, **content})
        self._client.require_taken(self._name, answer, content)
        del content["Body"]
        return {"PartNumber": number, **content, "ETag": answer["ETag"]}

    async def _complete(self, parts: list[dict[str, Any]]) -> None:
        parameters = {**self._upload, "MultipartUpload": {"Parts": parts}}
        try:
            answer = await self._client.call(
                "write", "complete_multipart_upload", parameters, seconds=_COMPLETE_SECONDS
            )
        except s3_errors.S3Error as error:
            if error.code == "NoSuchUpload" and self._may_be_complete and await self._is_complete(parts):
                return
            self._may_be_complete |= error.is_passing
            raise
        self._client.require_taken(self._name, answer)

    async def _is_complete(self, parts: list[dict[str, Any]]) -> bool:
        """Tell if the object is there, and its size and ETag prove that it has these parts."""
        try:
            head = await self._client.call("look for", "head_object", {"Key": self._name})
        except s3_errors.S3Error as error:
            if error.is_passing:
                raise
            return False  # missing, or we are not allowed to look: the whole put is repeated, which is always safe
        return bool(head.get("ContentLength") == self._blob.size and head.get("ETag", "").strip('"') == _etag(parts))

    async def _again(self, what: str, request: Callable[[], Awaitable[T]]) -> T:
        """Send a request until it succeeds: up to `tries` times, and only while a retry may help."""
        tries = 1
        while True:
            try:
                return await request()
            except StorageError as error:
                if tries >= self._how.tries or not s3_errors.is_passing(error):
                    raise
                pause = self._how.pause_seconds * 2 ** (tries - 1) * random.uniform(0.5, 1)
                log.warning(
                    "%s of a multipart upload: %s; trying again in %.1f s",
                    what,
                    error,
                    pause,
                    extra={"fields": {"kind": error.kind, "tries": tries}},
                )
            await asyncio.sleep(pause)
            tries += 1


def _etag(parts: list[dict[str, Any]]) -> str:
    """Compute the ETag that S3 gives an object of these parts: the MD5 of their MD5s, and their number.

    Empty, and so equal to no ETag, if the parts' ETags are not MD5s.
    """
    try:
        digests = b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in parts)
    except ValueError:
        return ""
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"

"""The S3 store, through aiobotocore: AWS and every server that speaks its protocol.

This room knows requests, parts, checksums and what the many ways to fail mean; it must not know what it stores.
One client lives as long as the store; the SDK's own retries are off, because the uploader retries and counts.

A body is streamed from the blob and never gathered, so memory does not grow with the size or the number of puts.
Each request carries the CRC32 of its body, as AWS recommends (`AWS_REQUEST_CHECKSUM_CALCULATION=when_required`, the
SDK's own switch, leaves it out for servers that refuse the header); without it, or without TLS, the signature covers
the body's SHA-256, as the SDK has it too. Both are computed in a thread, in a first reading of the body.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.auth
import botocore.exceptions as sdk
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.loaders import create_loader
from botocore.parsers import ResponseParserError
from isal.isal_zlib import crc32

from arcpipe.errors import StorageError
from arcpipe.storage.base import Blob, MemoryBlob, S3Options, read_exactly, require_key

log = logging.getLogger(__name__)

MIB = 1 << 20

# S3's limit on the parts of one object.
_MAX_PARTS = 10_000
# One write to the connection: large enough to cost little, small enough to notice a peer that stopped reading.
_CHUNK_BYTES = 512 * 1024
# Making a client may mean to ask the instance's role or a token service for credentials.
_CLIENT_SECONDS = 60.0
# How long a failed multipart upload may hold up the report of its failure; `check` finds what stays behind.
_ABORT_SECONDS = 10.0
# AWS may take minutes to join many parts, and sends blanks meanwhile.
_COMPLETE_SECONDS = 300.0
_ABANDONED_AFTER = timedelta(hours=24)
_PROBE_KEY = ".arcpipe-write-check"

_THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "TooManyRequests",
        "TooManyRequestsException",
    }
)
_CREDENTIALS = frozenset(
    {
        "AccessDenied",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_CLOCK_SKEW = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
_NO_SPACE = frozenset({"InsufficientCapacity", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull"})
_TIMEOUT = frozenset({"RequestTimeout", "RequestTimeoutException"})
_OTHER_REGION = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect"}
)

# What the SDK raises when it finds no credentials or cannot get or renew them.
_NO_CREDENTIALS = (
    sdk.NoCredentialsError,
    sdk.PartialCredentialsError,
    sdk.CredentialRetrievalError,
    sdk.NoAuthTokenError,
    sdk.TokenRetrievalError,
    sdk.ProfileNotFound,
    sdk.SSOError,
)

_NEXT_STEP = {
    "connection": "Check that the server is up and that storage.s3.endpoint_url, proxy and firewall let it be reached",
    "dns": "Check the host name in storage.s3.endpoint_url (or storage.s3.region) and this machine's name servers",
    "timeout": "Check the network and the load of the server",
    "throttled": "The server wants fewer requests: lower uploader.concurrent_uploads if this goes on",
    "server_error": "The fault is the server's: see its status page or its log if this goes on",
    "credentials": "Check storage.s3.access_key_id and secret_access_key (or the AWS credentials of this process), "
    "and that they allow s3:PutObject, DeleteObject, ListBucket and AbortMultipartUpload here",
    "missing_bucket": "Create the bucket, or correct storage.url",
    "clock_skew": "Set the clock of this machine: run an NTP client",
    "no_space": "Free space or raise the quota on the server",
    "other": "See the reason given",
}


class S3Store:
    """An ObjectStore in a bucket, under a prefix."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        options: S3Options,
        *,
        multipart_threshold_bytes: int = 64 * MIB,
        part_bytes: int = 16 * MIB,
        parallel_parts: int = 4,
        max_connections: int = 32,
        connect_timeout_seconds: float = 10.0,
        read_timeout_seconds: float = 60.0,
    ) -> None:
        """`prefix`: no slash at either end, may be empty. Objects up to `multipart_threshold_bytes` are one request,
        larger ones parts of `part_bytes`, `parallel_parts` at a time; `max_connections` requests at once in all.

        A request fails when connecting takes `connect_timeout_seconds`, or when for `read_timeout_seconds` no answer
        comes or (up to the sum of the two) no byte of the body is taken.
        """
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._options = options
        self._multipart_threshold_bytes = multipart_threshold_bytes
        self._part_bytes = part_bytes
        self._parallel_parts = parallel_parts
        self._max_connections = max_connections
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        self._stall_seconds = connect_timeout_seconds + read_timeout_seconds
        self._endpoint = options.endpoint_url or "AWS"
        encryption = options.server_side_encryption
        self._encryption = {"ServerSideEncryption": encryption} if encryption else {}

        # A request waits here and not in the connection pool, where waiting would count as its own delay.
        self._slots = asyncio.Semaphore(max_connections)
        self._connecting = asyncio.Lock()
        self._client: _Client | None = None
        self._executor = ThreadPoolExecutor(4, thread_name_prefix="s3-store")

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    async def put(self, key: str, blob: Blob) -> None:
        require_key(key)
        name = self._prefix + key
        async with self._connected("write", name) as client:
            if blob.size <= self._multipart_threshold_bytes:
                await self._put_whole(client, name, blob)
            else:
                await self._put_in_parts(client, name, blob)

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        for key, blob in objects:
            await self.put(key, blob)

    @property
    def objects_at_once(self) -> int:
        return 1

    async def delete(self, key: str) -> None:
        require_key(key)
        name = self._prefix + key
        async with self._connected("delete", name) as client:
            # AWS answers 204 whether it was there or not; some servers say that it was not.
            await self._call(client, "delete", "delete_object", {"Key": name}, tolerate="NoSuchKey")

    async def exists(self, key: str) -> bool:
        require_key(key)
        name = self._prefix + key
        async with self._connected("look for", name) as client:
            return bool(await self._call(client, "look for", "head_object", {"Key": name}, tolerate="404"))

    async def abort_uploads(self, key: str) -> int:
        require_key(key)
        name = self._prefix + key
        markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        count = 0
        async with self._connected("list", name) as client:
            async for page in self._pages(client, "list_multipart_uploads", name, markers):
                for upload in page.get("Uploads", []):
                    if upload["Key"] == name:
                        await self._abort_upload(client, name, upload["UploadId"])
                        count += 1
        return count

    async def list_keys(self, prefix: str) -> list[str]:
        require_key(prefix + "x")
        name = self._prefix + prefix
        markers = {"ContinuationToken": "NextContinuationToken"}
        keys: list[str] = []
        async with self._connected("list", name) as client:
            async for page in self._pages(client, "list_objects_v2", name, markers):
                keys += [entry["Key"].removeprefix(self._prefix) for entry in page.get("Contents", [])]
        return sorted(keys)

    async def check(self) -> None:
        """Begins a multipart upload and aborts it: that needs the bucket and the right to write, and leaves nothing
        behind, no object and no version. Then aborts uploads under our prefix that began over a day ago."""
        name = self._prefix + _PROBE_KEY
        async with self._connected("write", name) as client:
            upload_id = await self._begin_upload(client, name)
            await self._abort_upload(client, name, upload_id)
            try:
                await self._abort_abandoned(client)
            except StorageError as error:
                log.warning("abandoned multipart uploads, if there are any, stay: %s", error)

    async def close(self) -> None:
        async with self._connecting:
            client, self._client = self._client, None
        if client is not None:
            await client.retire()
        await asyncio.to_thread(self._executor.shutdown)

    # The client: made at the first use, and anew after its credentials were refused.

    @asynccontextmanager
    async def _connected(self, action: str, name: str) -> AsyncIterator[_Client]:
        async with self._connecting:
            if self._client is None:
                try:
                    async with asyncio.timeout(_CLIENT_SECONDS):
                        self._client = await self._connect()
                except Exception as error:
                    raise self._storage_error(action, name, error) from error
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

    async def _connect(self) -> _Client:
        options = self._options
        session = get_session()
        session.register_component("data_loader", await asyncio.to_thread(_sdk_models))
        config = AioConfig(
            connect_timeout=self._connect_timeout_seconds,
            read_timeout=self._read_timeout_seconds,
            max_pool_connections=self._max_connections,
            retries={"total_max_attempts": 1, "mode": "standard"},
            s3={"addressing_style": options.addressing_style},
            connector_args={"socket_factory": self._socket},
        )
        context = session.create_client(
            "s3",
            # Servers of one's own want some region in the signature, and this is the one that all of them take;
            # AWS names the right one in its answer, and the SDK follows.
            region_name=options.region or session.get_config_variable("region") or "us-east-1",
            endpoint_url=options.endpoint_url or None,
            aws_access_key_id=options.access_key_id or None,
            aws_secret_access_key=options.secret_access_key or None,
            config=config,
        )
        client = await context.__aenter__()
        client.meta.events.register("before-sign.s3", _drop_expect)
        client.meta.events.register("choose-signer.s3", _choose_signer)
        self._endpoint = client.meta.endpoint_url
        wanted = session.get_config_variable("request_checksum_calculation") or "when_supported"
        checksums = wanted.lower() != "when_required"
        return _Client(client, context, checksums, not checksums or self._endpoint.startswith("http:"))

    def _socket(self, address: tuple[int, int, int, str, Any]) -> socket.socket:
        """For the HTTP client. It closes a connection gently, which with a peer that stopped reading would take for
        ever and hold what was still to be sent; the kernel gives that up."""
        family, kind, protocol, _name, _address = address
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._stall_seconds * 1000))
        return made

    # One request.

    async def _call(
        self,
        client: _Client,
        action: str,
        operation: str,
        parameters: dict[str, Any],
        *,
        tolerate: str = "",
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """The answer to one request; an error of the code `tolerate` is an empty answer. Raises StorageError."""
        body = parameters.get("Body")
        async with self._slots:
            try:
                async with asyncio.timeout(seconds or self._stall_seconds) as limit:
                    if body is not None:
                        body.limit = limit
                    answer: dict[str, Any] = await getattr(client.sdk, operation)(Bucket=self._bucket, **parameters)
                    return answer
            except Exception as error:
                if (
                    tolerate
                    and isinstance(error, sdk.ClientError)
                    and error.response.get("Error", {}).get("Code") == tolerate
                ):
                    return {}
                if body is not None and body.failure is not None:
                    raise body.failure from error
                name = parameters["Key" if "Key" in parameters else "Prefix"]
                raise self._storage_error(action, name, error) from error

    async def _pages(
        self, client: _Client, operation: str, name: str, markers: dict[str, str]
    ) -> AsyncIterator[dict[str, Any]]:
        """Every page of a listing of the names that begin with `name`. `markers`: request field -> answer field."""
        start: dict[str, str] = {}
        while True:
            page = await self._call(client, "list", operation, {"Prefix": name, **start})
            if "IsTruncated" not in page:
                raise self._failure("list", name, _NOT_S3)
            yield page
            if not page["IsTruncated"]:
                return
            following = {field: page[source] for field, source in markers.items() if page.get(source)}
            if following == start:
                raise self._failure("list", name, "the list goes on without saying where")
            start = following

    # One object.

    async def _put_whole(self, client: _Client, name: str, blob: Blob) -> None:
        content = await self._content(client, blob, 0, blob.size)
        answer = await self._call(client, "write", "put_object", {"Key": name, **self._encryption, **content})
        self._require_taken(name, answer, content)

    async def _put_in_parts(self, client: _Client, name: str, blob: Blob) -> None:
        upload_id = await self._begin_upload(client, name)
        try:
            parts = await self._put_parts(client, name, upload_id, blob)
            answer = await self._call(
                client,
                "write",
                "complete_multipart_upload",
                {"Key": name, "UploadId": upload_id, "MultipartUpload": {"Parts": parts}},
                seconds=_COMPLETE_SECONDS,
            )
            self._require_taken(name, answer)
        except BaseException:  # cancellation too: parts cost money until they are aborted
            await self._abort_upload(client, name, upload_id)
            raise

    async def _put_parts(self, client: _Client, name: str, upload_id: str, blob: Blob) -> list[dict[str, Any]]:
        part_bytes = max(self._part_bytes, -(-blob.size // _MAX_PARTS))
        offsets = range(0, blob.size, part_bytes)
        parts: list[dict[str, Any]] = [{} for _ in offsets]
        waiting = iter(enumerate(offsets))

        async def put_waiting() -> None:
            for index, offset in waiting:
                content = await self._content(client, blob, offset, min(part_bytes, blob.size - offset))
                number = {"PartNumber": index + 1}
                answer = await self._call(
                    client, "write", "upload_part", {"Key": name, "UploadId": upload_id, **number, **content}
                )
                self._require_taken(name, answer, content)
                del content["Body"]
                parts[index] = {**number, **content, "ETag": answer["ETag"]}

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._parallel_parts, len(parts))):
                    group.create_task(put_waiting())
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            raise first from first.__cause__
        return parts

    async def _begin_upload(self, client: _Client, name: str) -> str:
        checksum = {"ChecksumAlgorithm": "CRC32"} if client.checksums else {}
        answer = await self._call(
            client, "write", "create_multipart_upload", {"Key": name, **self._encryption, **checksum}
        )
        upload_id = answer.get("UploadId")
        if not isinstance(upload_id, str):
            raise self._failure("write", name, _NOT_S3)
        return upload_id

    async def _abort_upload(self, client: _Client, name: str, upload_id: str) -> None:
        """Best effort: the parts of an upload that stays open cost space until `check` aborts it."""
        parameters = {"Key": name, "UploadId": upload_id}
        try:
            async with asyncio.timeout(_ABORT_SECONDS):
                await self._call(
                    client, "end the upload of", "abort_multipart_upload", parameters, tolerate="NoSuchUpload"
                )
        except (StorageError, TimeoutError) as error:
            log.warning("a multipart upload of %s stays open: %s", name, str(error) or "no answer")

    async def _abort_abandoned(self, client: _Client) -> None:
        """Aborts what a crash left. A bucket without a prefix may hold uploads of others: there only of Parquet."""
        markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        before = datetime.now(UTC) - _ABANDONED_AFTER
        async for page in self._pages(client, "list_multipart_uploads", self._prefix, markers):
            for upload in page.get("Uploads", []):
                name = upload["Key"]
                if upload["Initiated"] < before and (self._prefix or name.endswith(".parquet")):
                    log.info("aborting a multipart upload of %s begun at %s", name, upload["Initiated"])
                    await self._abort_upload(client, name, upload["UploadId"])

    async def _content(self, client: _Client, blob: Blob, offset: int, length: int) -> dict[str, Any]:
        """The request parameters for this range of the blob: the body and, if the server is to check it, its CRC32."""
        body = _Body(blob, offset, length, self._executor, self._stall_seconds)
        loop = asyncio.get_running_loop()
        crc, body.signed_as = await loop.run_in_executor(
            self._executor, _digests, blob, offset, length, client.signs_bodies
        )
        content: dict[str, Any] = {"Body": body}
        if client.checksums:
            content["ChecksumCRC32"] = base64.b64encode(crc.to_bytes(4, "big")).decode()
        return content

    # Failures.

    def _require_taken(self, name: str, answer: dict[str, Any], content: dict[str, Any] | None = None) -> None:
        """S3 answers a write with an ETag and, if it knows checksums, with that of what it stored."""
        if not answer.get("ETag"):
            raise self._failure("write", name, _NOT_S3)
        if content is not None:
            sent = content.get("ChecksumCRC32")
            stored = answer.get("ChecksumCRC32")
            if sent and stored and sent != stored:
                raise self._failure("write", name, f"sent was CRC32 {sent}, stored is {stored}")

    def _failure(self, action: str, name: str, reason: str, kind: str = "other", next_step: str = "") -> StorageError:
        place = f"s3://{self._bucket}/{name} at {self._endpoint}"
        return StorageError(f"cannot {action} {place}: {reason}. {next_step or _NEXT_STEP[kind]}", kind)

    def _storage_error(self, action: str, name: str, error: Exception) -> StorageError:
        """The one border where what SDK, HTTP client and sockets raise becomes a StorageError."""
        if isinstance(error, StorageError):
            return error
        if isinstance(error, sdk.ClientError):
            kind, reason, next_step = _explain_answer(error)
        else:
            kind, reason, next_step = _explain_exception(error)
        return self._failure(action, name, reason, kind, next_step)


_NOT_S3 = "the answer says success but is none that S3 gives; is this an S3 endpoint?"


@functools.cache
def _sdk_models() -> Any:
    """What the SDK knows of S3: 0.2 s of JSON, for a thread to read once, and not for every client."""
    loader = create_loader()
    for name in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", name)
    loader.load_data("endpoints")
    return loader


class _Client:
    """An SDK client and how many puts, listings and so on use it; closed when retired and unused."""

    def __init__(self, client: Any, context: Any, checksums: bool, signs_bodies: bool) -> None:
        self.sdk = client
        self.checksums = checksums
        self.signs_bodies = signs_bodies
        self.users = 0
        self._context = context
        self._retired = False

    async def release(self) -> None:
        self.users -= 1
        await self._close_if_unused()

    async def retire(self) -> None:
        self._retired = True
        await self._close_if_unused()

    async def _close_if_unused(self) -> None:
        if self._retired and self.users == 0:
            await self._context.__aexit__(None, None, None)


class _Body:
    """A range of a blob as the body of one request: a file to the SDK, an asynchronous iterable to the HTTP client.

    As the connection takes chunks it moves `limit`, the request's deadline, ahead of itself: the HTTP client's own
    timeouts do not watch over the sending of a body.
    """

    def __init__(
        self, blob: Blob, offset: int, length: int, executor: ThreadPoolExecutor, stall_seconds: float
    ) -> None:
        self._blob = blob
        self._offset = offset
        self._length = length
        self._executor = executor
        self._stall_seconds = stall_seconds
        self._position = 0
        self.limit: asyncio.Timeout | None = None
        # What the signature says of the body: its SHA-256 in hexadecimal, or that it does not cover it.
        self.signed_as = ""
        # Why the blob could not be read, if so: the HTTP client reports that as a broken connection.
        self.failure: StorageError | None = None

    # For the SDK, which takes a file for a body, and asks how long it is.

    def __len__(self) -> int:
        return self._length

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, length: int) -> bytes | memoryview:
        length = min(length, self._length - self._position)
        if length <= 0:
            return b""
        data = self._read(self._position, length)
        self._position += length
        return data

    # For the HTTP client; each iteration begins at the beginning.

    async def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        loop = asyncio.get_running_loop()
        for position in range(0, self._length, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, self._length - position)
            if isinstance(self._blob, MemoryBlob):
                chunk = self._read(position, length)
            else:
                chunk = await loop.run_in_executor(self._executor, self._read, position, length)
            if self.limit is not None:
                with suppress(RuntimeError):  # the request is over: the server answered before it had read all
                    self.limit.reschedule(loop.time() + self._stall_seconds)
            yield chunk

    def _read(self, position: int, length: int) -> bytes | memoryview:
        try:
            return read_exactly(self._blob, self._offset + position, length)
        except StorageError as error:
            self.failure = error
            raise


class _Signer(botocore.auth.S3SigV4Auth):  # type: ignore[misc]
    """The SDK's signer, but that a body brings along what it would read it for, on the event loop."""

    def payload(self, request: Any) -> str:
        signed_as: str = getattr(request.data, "signed_as", "")
        return signed_as or super().payload(request)


# The only way in which the SDK takes a signer: by a name in its table.
_SIGNER = "arcpipe-s3v4"
botocore.auth.AUTH_TYPE_MAPS[_SIGNER] = _Signer


def _choose_signer(context: dict[str, Any], **_: Any) -> str | None:
    """Ours where the SDK would take S3SigV4Auth; other kinds of endpoints have signers of their own."""
    return _SIGNER if context.get("auth_type") == "v4" else None


def _digests(blob: Blob, offset: int, length: int, signed: bool) -> tuple[int, str]:
    """CRC32 of this range of the blob, and what the signature says of it."""
    crc = 0
    sha256 = hashlib.sha256()
    for position in range(offset, offset + length, MIB):
        data = read_exactly(blob, position, min(MIB, offset + length - position))
        crc = crc32(data, crc)
        if signed:
            sha256.update(data)
    return crc, sha256.hexdigest() if signed else botocore.auth.UNSIGNED_PAYLOAD


def _drop_expect(request: Any, **_: Any) -> None:
    """The SDK asks for `100 Continue` before a streamed body. Servers that never say it would cost a whole timeout
    per request, and the HTTP client, unlike the SDK's own, does not go on by itself."""
    del request.headers["Expect"]


def _explain_answer(error: sdk.ClientError) -> tuple[str, str, str]:
    """Kind, reason and next step (empty: the kind's) for an error that the server sent."""
    said = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code, message = str(said.get("Code", "")), str(said.get("Message", ""))
    # The SDK makes a code of the status where the server sent none.
    reason = f"HTTP {status}" if code in ("", str(status)) else f"HTTP {status} {code}"
    if message:
        reason += f": {_short(message)}"
    next_step = ""
    if code in _CLOCK_SKEW:
        kind = "clock_skew"
    elif code == "NoSuchBucket":
        kind = "missing_bucket"
    elif code in _THROTTLED or code.startswith("Throttl") or status == 429:
        kind = "throttled"
    elif code in _NO_SPACE or status == 507:
        kind = "no_space"
    elif code in _TIMEOUT or status == 408:
        kind = "timeout"
    elif code in _OTHER_REGION or status in (301, 307):
        kind = "other"
        region = said.get("Region") or "the bucket's region"
        next_step = f"Set storage.s3.region to {region}"
    elif code in _CREDENTIALS or status in (401, 403):
        kind = "credentials"
    elif status >= 500 or code == "InternalError":
        kind = "server_error"
    else:
        kind = "other"
    return kind, reason, next_step


def _explain_exception(error: Exception) -> tuple[str, str, str]:
    """Kind, reason and next step (empty: the kind's) where there was no answer, or none that could be read."""
    causes = list(_causes(error))
    deepest = causes[-1]
    reason = _short(str(deepest)) or type(deepest).__name__
    next_step = ""
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        kind = "dns"
    elif isinstance(error, _NO_CREDENTIALS):
        kind, reason = "credentials", _short(str(error))
    elif any(isinstance(cause, TimeoutError | sdk.ConnectTimeoutError | sdk.ReadTimeoutError) for cause in causes):
        kind, reason = "timeout", "no answer in time"
    elif isinstance(error, sdk.SSLError):
        kind, next_step = "connection", "Check the server's certificate (AWS_CA_BUNDLE names additional authorities)"
    elif isinstance(error, sdk.HTTPClientError | sdk.ConnectionError | OSError):
        kind = "connection"
    elif isinstance(error, ResponseParserError):
        kind, reason = "other", "the answer is none that S3 gives; is this an S3 endpoint?"
    else:
        kind, reason = "other", f"{type(error).__name__}: {_short(str(error))}"
    return kind, reason, next_step


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it stems from, outermost first; the SDK keeps the cause among its keyword arguments."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        kept = getattr(cause, "kwargs", {}).get("error")
        cause = kept if isinstance(kept, BaseException) else (cause.__cause__ or cause.__context__)


def _short(text: str) -> str:
    """One line of at most 300 characters: what a server says ends in our log."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= 300 else line[:299] + "…"

"""Send requests to an S3 server: the SDK's client, the body of a request, its checksum and its signature.

This module knows one request at a time: slots, time limits, bodies and answers. It must not know which requests make a
put, nor retry one.

- A body is streamed from the blob, so memory does not grow with the size or the number of puts.
- Each request carries the CRC32 of its body, as AWS recommends. The SDK's own switch,
  `AWS_REQUEST_CHECKSUM_CALCULATION=when_required`, leaves it out, for servers that refuse the header.
- Without the CRC32, or without TLS, the signature covers the body's SHA-256, as the SDK does it.
- Both are computed in a thread, by reading the blob once before it is sent; those of a small one in memory at once.
- Puts of small objects repeat what the SDK did for the first (`s3_repeat`), at a third of the cost.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import botocore.auth
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.loaders import create_loader
from isal.isal_zlib import crc32

from arcpipe.config.settings import StorageS3
from arcpipe.errors import StorageError
from arcpipe.storage import s3_errors
from arcpipe.storage.base import Blob, MemoryBlob, read_exactly
from arcpipe.storage.s3_repeat import RepeatedPut, SignedBytes, Unsigned, repeated
from arcpipe.units import KB, MB

# Bytes per write to the connection: large enough to cost little, small enough to notice a peer that stopped reading.
_CHUNK_BYTES: Final = 512 * KB
# Bytes of a blob in memory that is put without a thread: its digests take 0.3 ms, and a thread 0.1 ms.
_SMALL_BYTES: Final = 256 * KB


class Requests:
    """Makes the clients of one bucket, and holds what they share: slots, threads and time limits."""

    def __init__(
        self,
        bucket: str,
        options: StorageS3,
        *,
        max_connections: int,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
    ) -> None:
        self.bucket = bucket
        self.endpoint = options.endpoint_url or "AWS"
        # Requests wait here and not in the connection pool, where the waiting would count against their timeouts.
        self.slots = asyncio.Semaphore(max_connections)
        self.executor = ThreadPoolExecutor(4, thread_name_prefix="s3-store")
        self.stall_seconds = connect_timeout_seconds + read_timeout_seconds
        self._options = options
        self._max_connections = max_connections
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds

    def place(self, name: str) -> str:
        """Describe the place of an object for the text of an error."""
        return f"s3://{self.bucket}/{name} at {self.endpoint}"

    async def connect(self) -> S3Client:
        """Make a client. This looks for credentials, and may ask the instance's role or a token service."""
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
            # Self-hosted servers want some region in the signature, and all of them take this one. AWS names the right
            # region in its answer, and the SDK follows.
            region_name=options.region or session.get_config_variable("region") or "us-east-1",
            endpoint_url=options.endpoint_url or None,
            aws_access_key_id=options.access_key_id or None,
            aws_secret_access_key=options.secret_access_key or None,
            config=config,
        )
        client = await context.__aenter__()
        client.meta.events.register("before-sign.s3", _before_sign)
        client.meta.events.register("choose-signer.s3", _choose_signer)
        self.endpoint = client.meta.endpoint_url
        wanted = session.get_config_variable("request_checksum_calculation") or "when_supported"
        checksums = wanted.lower() != "when_required"
        return S3Client(self, client, context, checksums, not checksums or self.endpoint.startswith("http:"))

    def _socket(self, address: tuple[int, int, int, str, Any]) -> socket.socket:
        """Make a socket for the HTTP client, with TCP_USER_TIMEOUT.

        aiohttp closes gracefully, which never ends if the peer has stopped reading. The timeout makes the kernel drop
        the connection and its send buffer.
        """
        family, kind, protocol, _name, _address = address
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.stall_seconds * 1000))
        return made


class S3Client:
    """One SDK client, and the number of operations that use it. It is closed when it is retired and unused."""

    def __init__(self, shared: Requests, sdk_client: Any, context: Any, checksums: bool, signs_bodies: bool) -> None:
        self.checksums = checksums
        self.users = 0
        self._shared = shared
        self._sdk = sdk_client
        self._context = context
        self._signs_bodies = signs_bodies
        self._retired = False
        # How to put a small object as the SDK did. Unknown at first, and after each failure.
        self._repeated: RepeatedPut | None = None

    async def release(self) -> None:
        self.users -= 1
        await self._close_if_unused()

    async def retire(self) -> None:
        self._retired = True
        await self._close_if_unused()

    async def _close_if_unused(self) -> None:
        if self._retired and self.users == 0:
            await self._context.__aexit__(None, None, None)

    async def call(
        self, action: str, operation: str, parameters: dict[str, Any], *, seconds: float | None = None
    ) -> dict[str, Any]:
        """Send one request and return its answer.

        Args:
            action: a verb for a sentence that begins with "cannot".
            operation: the SDK's name of the request.
            seconds: the limit for the whole request; by default it may stand still for `stall_seconds`.

        Raises:
            S3Error: the request failed at the server, or on the way to it.
            StorageError: the blob could not be read.
        """
        body = parameters.get("Body")
        name = parameters.get("Key", parameters.get("Prefix", ""))
        async with self._request(action, name, operation, body, seconds):
            answer: dict[str, Any] = await getattr(self._sdk, operation)(Bucket=self._shared.bucket, **parameters)
            return answer

    @asynccontextmanager
    async def _request(
        self, action: str, name: str, operation: str, body: Body | None = None, seconds: float | None = None
    ) -> AsyncIterator[None]:
        """Give a request a slot and a time limit, and explain its failure."""
        shared = self._shared
        async with shared.slots:
            try:
                async with asyncio.timeout(seconds or shared.stall_seconds) as limit:
                    if body is not None:
                        body.limit = limit
                    yield
            except Exception as error:
                if body is not None and body.failure is not None:
                    raise body.failure from error
                raise s3_errors.explain(action, shared.place(name), error, operation) from error

    async def put(self, name: str, blob: Blob, fields: dict[str, str]) -> None:
        """Put a blob in one request.

        Args:
            fields: further fields of the SDK's request, the same ones at each call.

        Raises:
            S3Error: the request failed at the server, or on the way to it, or the answer is no proof of success.
            StorageError: the blob could not be read.
        """
        if self._repeated is not None and _is_small(blob):
            try:
                if await self._repeat(self._repeated, name, blob):
                    return
            except Exception:
                self._repeated = None
                raise
            self._repeated = None
        content = await self.content(blob, 0, blob.size)
        answer = await self.call("write", "put_object", {"Key": name, **fields, **content})
        self.require_taken(name, answer, content)
        unsigned = content["Body"].unsigned
        if self._repeated is None and unsigned is not None:
            self._repeated = repeated(self._sdk._endpoint.http_session, unsigned, name, answer, _SIGNER)

    async def _repeat(self, earlier: RepeatedPut, name: str, blob: Blob) -> bool:
        """Put a small blob as an earlier one. Returns False if the SDK has to do it, and to judge the answer."""
        data = SignedBytes(read_exactly(blob, 0, blob.size))
        crc, data.signed_as = _digests(blob, 0, blob.size, self._signs_bodies)
        content = {"ChecksumCRC32": _header(crc)} if self.checksums else {}
        async with self._request("write", name, "put_object"):
            answer = await earlier.send(name, data, content.get("ChecksumCRC32"))
        if answer is None:
            return False
        self.require_taken(name, answer, content)
        return True

    async def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes of an object; fewer at its end.

        Raises:
            S3Error: the request failed, or the body ended early.
        """
        shared = self._shared
        parameters = {"Key": name, "Range": f"bytes={offset}-{offset + length - 1}"}
        async with shared.slots:
            try:
                async with asyncio.timeout(shared.stall_seconds):
                    answer = await self._sdk.get_object(Bucket=shared.bucket, **parameters)
                    async with answer["Body"] as stream:
                        data: bytes = await stream.read()
            except Exception as error:
                raise s3_errors.explain("read", shared.place(name), error, "get_object") from error
        if len(data) != answer.get("ContentLength", len(data)) or len(data) > length:
            raise self.failure("read", name, f"{len(data)} bytes came", is_passing=True)
        return data

    async def pages(
        self, operation: str, name: str, markers: dict[str, str], **fields: str
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the pages of a listing of the names that begin with `name`.

        Args:
            markers: request fields of the next page, each with the answer field that holds its value.
            fields: further fields of each request.
        """
        start: dict[str, str] = {}
        while True:
            page = await self.call("list", operation, {"Prefix": name, **fields, **start})
            if "IsTruncated" not in page:
                raise self.failure("list", name, s3_errors.NOT_S3)
            yield page
            if not page["IsTruncated"]:
                return
            following = {field: page[source] for field, source in markers.items() if page.get(source)}
            if following == start:
                raise self.failure("list", name, "the list goes on without saying where")
            start = following

    async def content(self, blob: Blob, offset: int, length: int) -> dict[str, Any]:
        """Make the request parameters for a range of the blob: the body, and its CRC32 for the server to check."""
        shared = self._shared
        body = Body(blob, offset, length, shared.executor, shared.stall_seconds)
        if _is_small(blob):
            crc, body.signed_as = _digests(blob, offset, length, self._signs_bodies)
        else:
            crc, body.signed_as = await asyncio.get_running_loop().run_in_executor(
                shared.executor, _digests, blob, offset, length, self._signs_bodies
            )
        content: dict[str, Any] = {"Body": body}
        if self.checksums:
            content["ChecksumCRC32"] = _header(crc)
        return content

    def require_taken(self, name: str, answer: dict[str, Any], content: dict[str, Any] | None = None) -> None:
        """Raise unless the answer proves that the server stored the content.

        A proof is an ETag, and the right CRC32 if the server sends one.

        Raises:
            S3Error: the answer has no ETag, or another CRC32.
        """
        if not answer.get("ETag"):
            raise self.failure("write", name, s3_errors.NOT_S3)
        if content is not None:
            sent = content.get("ChecksumCRC32")
            stored = answer.get("ChecksumCRC32")
            if sent and stored and sent != stored:
                raise self.failure(
                    "write", name, f"checksum mismatch: sent CRC32 {sent}, the server stored {stored}", is_passing=True
                )

    def failure(
        self, action: str, name: str, reason: str, kind: str = "other", *, is_passing: bool = False
    ) -> s3_errors.S3Error:
        """Make an error that has no exception as its cause."""
        return s3_errors.failure(action, self._shared.place(name), reason, kind, is_passing=is_passing)


@functools.cache
def _sdk_models() -> Any:
    """Load the SDK's models of S3: 0.2 s of JSON. A thread does this once, for all clients."""
    loader = create_loader()
    for name in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", name)
    loader.load_data("endpoints")
    return loader


class Body:
    """A range of a blob as the body of one request: a file to the SDK, an asynchronous iterable to the HTTP client.

    Each chunk that the connection takes moves the request's deadline, `limit`, because the HTTP client's own timeouts
    do not cover the sending of a body.
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
        # The body's part of the signature: its SHA-256 in hexadecimal, or the text for an unsigned body.
        self.signed_as = ""
        # The request that has this body, as the SDK made it.
        self.unsigned: Unsigned | None = None
        # The error of reading the blob, which the HTTP client would report as a broken connection.
        self.failure: StorageError | None = None

    # For the SDK, which expects a file, and asks for its length.

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

    # For the HTTP client; each iteration starts from the first byte.

    async def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        loop = asyncio.get_running_loop()
        for position in range(0, self._length, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, self._length - position)
            if isinstance(self._blob, MemoryBlob):
                chunk = self._read(position, length)
            else:
                chunk = await loop.run_in_executor(self._executor, self._read, position, length)
            if self.limit is not None:
                with suppress(RuntimeError):  # the request has ended: the server answered before it had read all
                    self.limit.reschedule(loop.time() + self._stall_seconds)
            yield chunk

    def _read(self, position: int, length: int) -> bytes | memoryview:
        try:
            return read_exactly(self._blob, self._offset + position, length)
        except StorageError as error:
            self.failure = error
            raise


class _Signer(botocore.auth.S3SigV4Auth):  # type: ignore[misc]
    """The SDK's signer, except that it does not read a body on the event loop: the body has its hash already."""

    def payload(self, request: Any) -> str:
        signed_as: str = getattr(request.data, "signed_as", "")
        return signed_as or super().payload(request)


# The only way in which the SDK takes a signer: by a name in its table.
_SIGNER: Final = "arcpipe-s3v4"
botocore.auth.AUTH_TYPE_MAPS[_SIGNER] = _Signer


def _choose_signer(context: dict[str, Any], **_: Any) -> str | None:
    """Choose our signer in place of S3SigV4Auth. Other kinds of endpoints keep their own signers."""
    return _SIGNER if context.get("auth_type") == "v4" else None


def _is_small(blob: Blob) -> bool:
    return isinstance(blob, MemoryBlob) and blob.size <= _SMALL_BYTES


def _header(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def _digests(blob: Blob, offset: int, length: int, signed: bool) -> tuple[int, str]:
    """Compute the CRC32 of a range of the blob, and its part of the signature."""
    crc = 0
    sha256 = hashlib.sha256()
    for position in range(offset, offset + length, MB):
        data = read_exactly(blob, position, min(MB, offset + length - position))
        crc = crc32(data, crc)
        if signed:
            sha256.update(data)
    return crc, sha256.hexdigest() if signed else botocore.auth.UNSIGNED_PAYLOAD


def _before_sign(
    request: Any, request_signer: Any, signing_name: str, region_name: str, signature_version: str, **_: Any
) -> None:
    """Remove the header `Expect: 100-continue`, which the SDK sends with a streamed body, and keep the request.

    A server that never answers 100 would cost a whole timeout per request: unlike the SDK's own HTTP client, this one
    does not go on without the answer.
    """
    del request.headers["Expect"]
    if isinstance(request.data, Body):
        request.data.unsigned = Unsigned.of(request, request_signer, signing_name, region_name, signature_version)

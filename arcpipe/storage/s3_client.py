"""Send requests to an S3 server: the SDK's client, the body of a request, its checksum and its signature.

This file knows one request at a time: slots, time limits, bodies and answers. It must not know which requests make a
put, nor retry one.

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
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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

MIB: Final = 1 << 20

# Bytes of one write to the connection: large enough to cost little, small enough to notice a peer that stopped reading.
_CHUNK_BYTES: Final = MIB // 2


class Requests:
    """Make clients of one bucket, and what they share: slots, threads and time limits."""

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
        # A request waits here and not in the connection pool, where waiting would count as its own delay.
        self.slots = asyncio.Semaphore(max_connections)
        self.executor = ThreadPoolExecutor(4, thread_name_prefix="s3-store")
        self.stall_seconds = connect_timeout_seconds + read_timeout_seconds
        self._options = options
        self._max_connections = max_connections
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds

    def place(self, name: str) -> str:
        """Where an object is, for the text of an error."""
        return f"s3://{self.bucket}/{name} at {self.endpoint}"

    async def connect(self) -> Client:
        """Make a client. It looks for credentials, which may mean to ask the instance's role or a token service."""
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
        self.endpoint = client.meta.endpoint_url
        wanted = session.get_config_variable("request_checksum_calculation") or "when_supported"
        checksums = wanted.lower() != "when_required"
        return Client(self, client, context, checksums, not checksums or self.endpoint.startswith("http:"))

    def _socket(self, address: tuple[int, int, int, str, Any]) -> socket.socket:
        """For the HTTP client. It closes a connection gently, which with a peer that stopped reading would take for
        ever and hold what was still to be sent; the kernel gives that up."""
        family, kind, protocol, _name, _address = address
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.stall_seconds * 1000))
        return made


class Client:
    """One SDK client and how many puts, listings and so on use it; closed when retired and unused."""

    def __init__(self, shared: Requests, sdk_client: Any, context: Any, checksums: bool, signs_bodies: bool) -> None:
        self.checksums = checksums
        self.users = 0
        self._shared = shared
        self._sdk = sdk_client
        self._context = context
        self._signs_bodies = signs_bodies
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

    async def call(
        self, action: str, operation: str, parameters: dict[str, Any], *, seconds: float | None = None
    ) -> dict[str, Any]:
        """Send one request and return its answer.

        Args:
            action: what it does, for a sentence that begins with "cannot".
            operation: the SDK's name of the request.
            seconds: how long it may take; by default how long it may stand still.

        Raises:
            StorageError: an S3Error if the server, or the way to it, is to blame.
        """
        shared = self._shared
        body = parameters.get("Body")
        async with shared.slots:
            try:
                async with asyncio.timeout(seconds or shared.stall_seconds) as limit:
                    if body is not None:
                        body.limit = limit
                    answer: dict[str, Any] = await getattr(self._sdk, operation)(Bucket=shared.bucket, **parameters)
                    return answer
            except Exception as error:
                if body is not None and body.failure is not None:
                    raise body.failure from error
                name = parameters.get("Key", parameters.get("Prefix", ""))
                raise s3_errors.explain(action, shared.place(name), error, operation) from error

    async def pages(self, operation: str, name: str, markers: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
        """Every page of a listing of the names that begin with `name`. `markers`: request field -> answer field."""
        start: dict[str, str] = {}
        while True:
            page = await self.call("list", operation, {"Prefix": name, **start})
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
        """The request parameters for this range of the blob: the body and, if the server is to check it, its CRC32."""
        shared = self._shared
        body = Body(blob, offset, length, shared.executor, shared.stall_seconds)
        loop = asyncio.get_running_loop()
        crc, body.signed_as = await loop.run_in_executor(
            shared.executor, _digests, blob, offset, length, self._signs_bodies
        )
        content: dict[str, Any] = {"Body": body}
        if self.checksums:
            content["ChecksumCRC32"] = base64.b64encode(crc.to_bytes(4, "big")).decode()
        return content

    def require_taken(self, name: str, answer: dict[str, Any], content: dict[str, Any] | None = None) -> None:
        """Raise unless the server stored this: it answers with an ETag and, if it knows checksums, with that of what
        it stored."""
        if not answer.get("ETag"):
            raise self.failure("write", name, s3_errors.NOT_S3)
        if content is not None:
            sent = content.get("ChecksumCRC32")
            stored = answer.get("ChecksumCRC32")
            if sent and stored and sent != stored:
                raise self.failure("write", name, f"sent was CRC32 {sent}, stored is {stored}", is_passing=True)

    def failure(
        self, action: str, name: str, reason: str, kind: str = "other", *, is_passing: bool = False
    ) -> s3_errors.S3Error:
        """Make an error of something that no exception told."""
        return s3_errors.failure(action, self._shared.place(name), reason, kind, is_passing=is_passing)


@functools.cache
def _sdk_models() -> Any:
    """Load all that the SDK knows of S3: 0.2 s of JSON, for a thread to read once, and not for every client."""
    loader = create_loader()
    for name in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", name)
    loader.load_data("endpoints")
    return loader


class Body:
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

"""Send requests to an S3 server through the SDK's client.

This module knows one request at a time: slots, time limits and answers. It must not know which requests make a put, nor
retry one. Bodies are in `s3_body`. Puts of small objects repeat what the SDK did for the first, at a third of the cost:
see `s3_repeat`.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.loaders import create_loader

from arcpipe.config.settings import StorageS3
from arcpipe.storage import s3_errors
from arcpipe.storage.base import Blob, read_exactly
from arcpipe.storage.s3_body import SIGNER, Body, before_sign, choose_signer, crc_header, digests, is_small
from arcpipe.storage.s3_repeat import Content, RepeatedPut, repeated


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
            aws_session_token=options.session_token or None,
            config=config,
        )
        client = await context.__aenter__()
        client.meta.events.register("before-sign.s3", before_sign)
        client.meta.events.register("choose-signer.s3", choose_signer)
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
        # The SDK's HTTP session. A later SDK may keep it elsewhere: then nothing is repeated.
        self._session = getattr(getattr(sdk_client, "_endpoint", None), "http_session", None)
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
        if self._repeated is not None and is_small(blob):
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
        if self._repeated is None and unsigned is not None and self._session is not None:
            self._repeated = repeated(self._session, unsigned, name, answer, SIGNER)

    async def _repeat(self, earlier: RepeatedPut, name: str, blob: Blob) -> bool:
        """Put a small blob as an earlier one. Returns False if the SDK has to do it, and to judge the answer."""
        crc, signed_as = digests(blob, 0, blob.size, self._signs_bodies)
        data = Content(read_exactly(blob, 0, blob.size), signed_as)
        content = {"ChecksumCRC32": crc_header(crc)} if self.checksums else {}
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
        if is_small(blob):
            crc, body.signed_as = digests(blob, offset, length, self._signs_bodies)
        else:
            crc, body.signed_as = await asyncio.get_running_loop().run_in_executor(
                shared.executor, digests, blob, offset, length, self._signs_bodies
            )
        content: dict[str, Any] = {"Body": body}
        if self.checksums:
            content["ChecksumCRC32"] = crc_header(crc)
        return content

    def require_taken(self, name: str, answer: dict[str, Any], content: dict[str, Any] | None = None) -> None:
        """Raise unless the answer proves that the server stored the content.

        A proof is an ETag, and the right CRC32 if the server sends one. A web page that comes for content is none: web
        servers and caches give their pages an ETag, too.

        Raises:
            S3Error: the answer has no ETag, or another CRC32, or is a web page.
        """
        if not answer.get("ETag"):
            raise self.failure("write", name, s3_errors.NOT_S3)
        if content is not None:
            if "ChecksumCRC32" not in answer and _is_web_page(answer):
                raise self.failure("write", name, s3_errors.NOT_S3)
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


def _is_web_page(answer: dict[str, Any]) -> bool:
    """Tell whether an answer has a text for a browser. That of S3 to a put is empty, whatever its type."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("content-type", "")).startswith("text/html") and headers.get("content-length") != "0"


@functools.cache
def _sdk_models() -> Any:
    """Load the SDK's models of S3: 0.2 s of JSON. A thread does this once, for all clients."""
    loader = create_loader()
    for name in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", name)
    loader.load_data("endpoints")
    return loader

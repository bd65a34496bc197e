"""The body of a request to an S3 server: its bytes, its checksum and its part of the signature.

- A body is streamed from the blob, so memory does not grow with the size or the number of puts.
- Each request carries the CRC32 of its body, as AWS recommends. The SDK's own switch,
  `AWS_REQUEST_CHECKSUM_CALCULATION=when_required`, leaves it out, for servers that refuse the header.
- Without the CRC32, or without TLS, the signature covers the body's SHA-256, as the SDK does it.
- Both are computed in a thread, by reading the blob once before it is sent; those of a small one in memory at once.

This module must not know clients, objects nor answers.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import botocore.auth
from isal.isal_zlib import crc32

from arcpipe.errors import StorageError
from arcpipe.storage.base import Blob, MemoryBlob, read_exactly
from arcpipe.storage.s3_repeat import Unsigned
from arcpipe.units import KB, MB

# Bytes per write to the connection: large enough to cost little, small enough to notice a peer that stopped reading.
_CHUNK_BYTES: Final = 512 * KB
# Bytes of a blob in memory that is put without a thread: its digests take 0.3 ms, and a thread 0.1 ms.
_SMALL_BYTES: Final = 256 * KB


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
SIGNER: Final = "arcpipe-s3v4"
botocore.auth.AUTH_TYPE_MAPS[SIGNER] = _Signer


def choose_signer(context: dict[str, Any], **_: Any) -> str | None:
    """Choose our signer in place of S3SigV4Auth. Other kinds of endpoints keep their own signers."""
    return SIGNER if context.get("auth_type") == "v4" else None


def is_small(blob: Blob) -> bool:
    """Tell whether a blob is in memory and so small that a thread for it would cost more than its digests."""
    return isinstance(blob, MemoryBlob) and blob.size <= _SMALL_BYTES


def crc_header(crc: int) -> str:
    """Write a CRC32 as the header has it."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def digests(blob: Blob, offset: int, length: int, signed: bool) -> tuple[int, str]:
    """Compute the CRC32 of a range of the blob, and its part of the signature."""
    crc = 0
    sha256 = hashlib.sha256()
    for position in range(offset, offset + length, MB):
        data = read_exactly(blob, position, min(MB, offset + length - position))
        crc = crc32(data, crc)
        if signed:
            sha256.update(data)
    return crc, sha256.hexdigest() if signed else botocore.auth.UNSIGNED_PAYLOAD


def before_sign(
    request: Any, request_signer: Any, signing_name: str, region_name: str, signature_version: str, **_: Any
) -> None:
    """Remove the header `Expect: 100-continue`, which the SDK sends with a streamed body, and keep the request.

    A server that never answers 100 would cost a whole timeout per request: unlike the SDK's own HTTP client, this one
    does not go on without the answer.
    """
    del request.headers["Expect"]
    if isinstance(request.data, Body):
        request.data.unsigned = Unsigned.of(request, request_signer, signing_name, region_name, signature_version)

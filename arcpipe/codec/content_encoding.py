"""Content-Encoding: gzip, deflate, zstd and snappy bodies, decoded with a hard bound on what comes out.

A body is decoded piece by piece: the output exceeds its bound by at most one piece, and the caller decides how long to
go on. This module must not know HTTP messages, settings or threads.

gzip (RFC 1952): one or several members; `x-gzip` is the same (RFC 9110 §8.4.1.3).
deflate: the zlib format (RFC 1950), as RFC 9110 §8.4.1.2 says, and raw deflate (RFC 1951), as some clients send it.
snappy: one block, whose size stands in front; it is decoded in one step.
zstd (RFC 8878): one or several frames, skippable ones too, with windows up to 8 MB (RFC 9659).

Bytes after the end of the encoded data are refused. Checksums are verified.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Final, Literal, Protocol

from isal import igzip_lib

from arcpipe.codec import snappy
from arcpipe.errors import BadPayload, PayloadTooLarge, UnsupportedEncoding
from arcpipe.units import KB

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Coding = Literal["gzip", "deflate", "zstd", "snappy"]
# The codings that can be decoded, as an Accept-Encoding field lists them.
ACCEPTED: Final = "gzip, deflate, zstd, snappy"

# Bytes per piece of input, and of output. A piece takes 15 ms at most: deflate may have a block in each 10 bits.
_INPUT_BYTES: Final = 32 * KB
_OUTPUT_BYTES: Final = 256 * KB
# The least cost of a call into the decompressor, in bytes of output that it could have made instead.
_CALL_BYTES: Final = 4 * KB
# Members or frames of a body: without a bound there could be millions of empty ones. Tools make them of 64 KB and more.
_MAX_PARTS: Final = 10_000
_WINDOW_LOG: Final = 23

_NAMES: Final[dict[bytes, Coding]] = {
    b"gzip": "gzip",
    b"x-gzip": "gzip",
    b"deflate": "deflate",
    b"zstd": "zstd",
    b"snappy": "snappy",
}
_PARTS: Final[dict[Coding, str]] = {"gzip": "member", "deflate": "stream", "zstd": "frame"}
# isal's own type hints call its exception an instance.
_DecodingError: Final[tuple[type[Exception], ...]] = (igzip_lib.IsalError, zstd.ZstdError)  # type: ignore[assignment]
_SKIPPABLE: Final = range(0x184D2A50, 0x184D2A60)
_FRAME: Final = 0xFD2FB528


def coding_of(field: bytes) -> Coding | None:
    """Return the coding that a Content-Encoding field names; None for `identity` or nothing.

    Raises:
        UnsupportedEncoding: it names another one, or several, which no client needs.
    """
    coding = _NAMES.get(field)
    if coding is not None:
        return coding
    names = [name for part in field.split(b",") if (name := part.strip().lower()) not in (b"", b"identity")]
    if not names:
        return None
    if len(names) > 1:
        raise UnsupportedEncoding(f"Content-Encoding names {len(names)} encodings; one at a time is supported")
    if names[0] not in _NAMES:
        shown = names[0][:40].decode("ascii", "backslashreplace")
        raise UnsupportedEncoding(f"Content-Encoding '{shown}' is not supported; use one of {ACCEPTED}")
    return _NAMES[names[0]]


def decode(coding: Coding, data: bytes, max_bytes: int) -> bytes:
    """Decode a whole body.

    Raises:
        BadPayload: the data are damaged, truncated, or go on after their end; the text says how and where.
        PayloadTooLarge: more than `max_bytes` would come out.
    """
    decoder = Decoder(coding, data, max_bytes)
    while not decoder.advance(max_bytes):
        pass
    return decoder.decoded()


def told_bytes(coding: Coding, data: bytes | memoryview) -> int:
    """Return the size that encoded data tell of their content, without decoding; 0 if they tell none.

    It may be wrong: gzip tells the size of its last member only, and senders may invent it.
    """
    if coding == "gzip":
        return int.from_bytes(data[-4:], "little")
    if coding == "zstd":
        try:
            return zstd.get_frame_info(data).decompressed_size or 0
        except zstd.ZstdError:  # damaged, or a skippable frame
            return 0
    if coding == "snappy":
        try:
            return snappy.decoded_bytes(data)
        except BadPayload:
            return 0
    return 0


class _Decompressor(Protocol):
    """The interface that the decompressors of isal, zstd and the standard library share."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: memoryview | bytes, max_length: int) -> bytes: ...


class Decoder:
    """Decode one body, step by step."""

    def __init__(self, coding: Coding, data: bytes | memoryview, max_bytes: int) -> None:
        self._coding = coding
        self._data = memoryview(data)
        self._max_bytes = max_bytes
        self._position = 0  # of the input that goes in next
        self._stream: _Decompressor | None = None  # of the part (member, frame) at hand
        self._part_start = 0
        self._parts = 0
        self._pieces: list[bytes] = []
        self._size = 0

    def advance(self, budget_bytes: int, deadline: float | None = None) -> bool:
        """Decode about `budget_bytes` more of output. Returns True when the body is whole.

        Args:
            deadline: no further piece is begun after this time, by perf_counter.

        Raises:
            BadPayload, PayloadTooLarge: as `decode` does.
        """
        if self._coding == "snappy":
            return self._decode_block(budget_bytes)
        while True:
            stream = self._stream
            if stream is None:
                if self._position == len(self._data) and self._parts:
                    return True
                stream = self._stream = self._begin_part()
            piece = self._step(stream)
            if piece:
                self._size += len(piece)
                if self._size > self._max_bytes:
                    raise PayloadTooLarge(f"the decoded body has more than {self._max_bytes} bytes")
                self._pieces.append(piece)
            if stream.eof:
                self._position -= len(stream.unused_data)
                self._stream = None
            budget_bytes -= max(len(piece), _CALL_BYTES)
            is_over = budget_bytes <= 0 or (deadline is not None and perf_counter() > deadline)
            if is_over and not (self._stream is None and self._position == len(self._data)):
                return False

    @property
    def decoded_bytes(self) -> int:
        """Bytes that were decoded so far. A snappy block is decoded in one step."""
        return self._size

    def decoded(self) -> bytes:
        """Return the decoded body."""
        pieces = self._pieces
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _decode_block(self, budget_bytes: int) -> bool:
        """Decode a block at the second call, or at the first if it is small: there are no steps in between."""
        if not self._parts and snappy.decoded_bytes(self._data) > budget_bytes:
            self._parts = 1
            return False
        self._pieces.append(snappy.decode_block(self._data, self._max_bytes))
        return True

    def _begin_part(self) -> _Decompressor:
        rest = self._data[self._position :]
        if self._parts and not _continues(self._coding, rest):
            raise BadPayload(f"trailing bytes after the {self._coding} data at byte {self._position}")
        if self._parts == _MAX_PARTS:
            raise BadPayload(f"the body has more than {_MAX_PARTS} {self._coding} {_PARTS[self._coding]}s")
        self._parts += 1
        self._part_start = self._position
        return _decompressor(self._coding, rest)

    def _step(self, stream: _Decompressor) -> bytes:
        data: memoryview | bytes = b""
        needs_input = stream.needs_input
        if needs_input:
            data = self._data[self._position : self._position + _INPUT_BYTES]
            self._position += len(data)
        try:
            # One byte more than allowed shows that it is too much.
            piece = stream.decompress(data, min(_OUTPUT_BYTES, self._max_bytes - self._size + 1))
        except _DecodingError as error:
            part = _PARTS[self._coding]
            raise BadPayload(
                f"invalid {self._coding} data in the {part} that starts at byte {self._part_start}: {_reason(error)}"
            ) from None
        # A decompressor whose last piece was as long as it may be cannot tell that nothing is left for another one.
        if not piece and not data and not stream.eof and (needs_input or not stream.needs_input):
            part = _PARTS[self._coding]
            raise BadPayload(
                f"truncated {self._coding} data: the body ends at byte {len(self._data)}, "
                f"within the {part} that starts at byte {self._part_start}"
            )
        return piece


def _decompressor(coding: Coding, data: memoryview) -> _Decompressor:
    if coding == "zstd":
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    if coding == "gzip":
        flag = igzip_lib.DECOMP_GZIP
    elif _has_zlib_header(data):
        flag = igzip_lib.DECOMP_ZLIB
    else:
        flag = igzip_lib.DECOMP_DEFLATE
    decompressor: _Decompressor = igzip_lib.IgzipDecompressor(flag=flag)
    return decompressor


def _has_zlib_header(data: memoryview) -> bool:
    """Tell zlib from raw deflate, by RFC 1950 §2.2.

    Raw deflate begins like this only with a stored block whose padding is not zero; no encoder writes such a block.
    """
    return len(data) >= 2 and data[0] & 0x8F == 0x08 and (data[0] << 8 | data[1]) % 31 == 0


def _continues(coding: Coding, data: memoryview) -> bool:
    """Tell by the first bytes whether another part (member, frame) follows."""
    if coding == "gzip":
        return data[:2].tobytes() == b"\x1f\x8b"
    if coding == "zstd":
        magic = int.from_bytes(data[:4], "little")
        return magic == _FRAME or magic in _SKIPPABLE
    return False


def _reason(error: Exception) -> str:
    """Cut the front off a library's text: "Error -6 Incorrect checksum found", "Unable to …: Data corruption"."""
    text = str(error).rpartition(": ")[2]
    if text.startswith("Error "):
        text = text.split(" ", 2)[-1]
    return text[:1].lower() + text[1:]

"""Request bodies: joining their pieces and decoding them, in the loop or on a thread."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Final

from arcpipe.codec.content_encoding import Decoder, told_bytes
from arcpipe.errors import BadPayload, PayloadTooLarge
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.background import ClientGone
from arcpipe.ingest.http.head_checks import body_too_large
from arcpipe.units import KB, MB

if TYPE_CHECKING:
    from arcpipe.codec.content_encoding import Coding
    from arcpipe.codec.effort import Check
    from arcpipe.ingest.http.context import IngestContext
    from arcpipe.ingest.http.exchange import Exchange

Pieces = list[bytes | bytearray]

# Bytes. Smaller pieces of a body are joined as they arrive, larger ones when the body is complete.
_PIECE_BYTES: Final = KB
# Bytes up to which small pieces are joined: growing larger ones would copy them again and again.
_JOINED_PIECE_BYTES: Final = MB
# Bytes of a body up to which it is joined in the loop, which takes a millisecond.
JOINED_BYTES: Final = 4 * MB
# Decoded bytes up to which a body is decoded in the loop, which takes less than a millisecond.
_INLINE_BYTES: Final = 256 * KB
# Times its size that a body probably has once it is decoded, if it does not tell that. One that is begun in the loop,
# and becomes too large, is decoded twice.
_GROWTH: Final = 4


def add_piece(pieces: Pieces, piece: bytes) -> None:
    """Keep a piece of a body."""
    if len(piece) >= _PIECE_BYTES or not pieces:
        pieces.append(piece)
    elif type(pieces[-1]) is bytearray and len(pieces[-1]) < _JOINED_PIECE_BYTES:
        pieces[-1] += piece  # chunks may be of one byte each: a list of them would take many times that
    else:
        pieces.append(bytearray(piece))


def join_apart(
    context: IngestContext, exchange: Exchange, pieces: Pieces, size: int, go_on: Callable[[], None]
) -> None:
    """Have a body joined on a thread: 100 MB would block the loop for about 50 ms.

    Args:
        size: bytes of all pieces.
        go_on: called in the loop when the exchange has its body.
    """

    def join(_: Check) -> None:
        # Of `bytes` only: otherwise the join keeps the interpreter from other threads.
        exchange.body = b"".join([piece if type(piece) is bytes else bytes(piece) for piece in pieces])
        pieces.clear()

    def done(error: Exception | None) -> None:
        if error is None:
            go_on()
        elif isinstance(error, ClientGone):
            exchange.cut_off()
        else:
            exchange.connection.answer_bug(exchange, error)

    context.encoding.add(exchange.connection, size, join, done)


def decode(context: IngestContext, exchange: Exchange, coding: Coding, go_on: Callable[[], None]) -> None:
    """Decode a body, at once or on a thread if that takes longer; answer a request whose body cannot be decoded.

    A body that waits for the thread keeps nothing of what was decoded: thousands may wait, of some kilobytes each.

    Args:
        go_on: called in the loop when the exchange has its decoded body.
    """
    data, exchange.body = exchange.body, b""
    max_body, inline_seconds = context.limits.max_body, context.turns.budget.inline_seconds

    def to_the_end(check: Check) -> None:
        decoder = Decoder(coding, data, max_body)
        while not decoder.advance(_INLINE_BYTES, perf_counter() + inline_seconds):
            check(0.0, decoder.decoded_bytes)
        exchange.body = decoder.decoded()

    def done(error: Exception | None) -> None:
        if error is None:
            go_on()
        elif isinstance(error, ClientGone):
            exchange.cut_off()
        elif isinstance(error, BadPayload):
            exchange.answer(responses.error(400, "bad_request", str(error)))
        elif isinstance(error, PayloadTooLarge):
            exchange.answer(body_too_large(context.limits, "decoded body"))
        else:
            exchange.connection.answer_bug(exchange, error)

    size = told_bytes(coding, data) or _GROWTH * len(data)
    if context.turns.spent < context.turns.budget.turn_seconds and size <= _INLINE_BYTES:
        decoder = Decoder(coding, data, max_body)
        try:
            is_whole = decoder.advance(_INLINE_BYTES, perf_counter() + inline_seconds)
        except (BadPayload, PayloadTooLarge) as error:
            done(error)
            return
        if is_whole:
            exchange.body = decoder.decoded()
            go_on()
            return
    context.decoding.add(exchange.connection, len(data), to_the_end, done)

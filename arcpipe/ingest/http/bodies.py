"""Bodies of requests: from the pieces in which they arrive to what the handler gets, at once or on a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from arcpipe.codec.content_encoding import Decoder
from arcpipe.errors import BadPayload, PayloadTooLarge
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.background import ClientGone
from arcpipe.ingest.http.head_checks import body_too_large
from arcpipe.ingest.http.turns import TURN_SECONDS

if TYPE_CHECKING:
    from arcpipe.codec.content_encoding import Coding
    from arcpipe.ingest.http.background import Check
    from arcpipe.ingest.http.context import IngestContext
    from arcpipe.ingest.http.exchange import Exchange

Pieces = list[bytes | bytearray]

# Bytes. Smaller pieces of a body are joined as they arrive, larger ones when all are there.
_PIECE_BYTES: Final = 1024
# Bytes that small pieces are joined to at most: more would be copied again and again as they grow.
_JOINED_PIECE_BYTES: Final = 1 << 20
# Bytes of a body that is joined in the loop: a millisecond's work.
JOINED_BYTES: Final = 4 << 20
# Bytes that may come out of an encoded body in the loop itself: less than a millisecond's work.
_INLINE_BYTES: Final = 256 << 10


def add_piece(pieces: Pieces, piece: bytes) -> None:
    """Keep what has arrived of a body."""
    if len(piece) >= _PIECE_BYTES or not pieces:
        pieces.append(piece)
    elif type(pieces[-1]) is bytearray and len(pieces[-1]) < _JOINED_PIECE_BYTES:
        pieces[-1] += piece  # chunks may be of one byte each: a list of them would take many times that
    else:
        pieces.append(bytearray(piece))


def join_apart(
    context: IngestContext, exchange: Exchange, pieces: Pieces, size: int, go_on: Callable[[], None]
) -> None:
    """Have a body joined on a thread: 100 MB would hold up the loop for some 50 ms.

    Args:
        size: bytes of all pieces.
        go_on: is called in the loop when the exchange has its body.
    """

    def join(_: Check) -> None:
        # Of nothing but `bytes`: then, and only then, others run meanwhile.
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

    Args:
        go_on: is called in the loop when the exchange has its decoded body.
    """
    decoder = Decoder(coding, exchange.body, context.limits.max_body)
    exchange.body = b""

    def to_the_end(_: Check) -> None:
        while not decoder.advance(_INLINE_BYTES):
            pass
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

    try:
        whole = context.turns.spent < TURN_SECONDS and decoder.advance(_INLINE_BYTES)
    except (BadPayload, PayloadTooLarge) as error:
        done(error)
    else:
        if whole:
            exchange.body = decoder.decoded()
            done(None)
        else:
            context.decoding.add(exchange.connection, decoder.encoded_bytes, to_the_end, done)

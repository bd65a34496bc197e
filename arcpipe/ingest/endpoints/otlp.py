"""Endpoints for senders of OTLP over HTTP: `/v1/logs`, `/v1/traces` and `/v1/metrics`.

Reference: https://opentelemetry.io/docs/specs/otlp/#otlphttp

Answers are messages in the type of the request, protobuf or JSON. Senders repeat what is answered 429, 502, 503 or 504
and drop what has any other status, so a full disk is 503 here. `responses.as_rpc_status` makes the errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from arcpipe.codec.effort import Check
from arcpipe.codec.otlp.body import Outcome, Signal, encode
from arcpipe.codec.otlp.json_form import varint
from arcpipe.errors import BadPayload
from arcpipe.ingest.endpoints.targets import Target
from arcpipe.ingest.endpoints.write import WriteEndpoints, costly_inline_bytes
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.router import WRITE, Fields, Handler, Judge, Table

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

# Unit of all times, by the specification.
_PRECISION: Final = "ns"
_PROTOBUF: Final = b"application/x-protobuf"
_JSON: Final = b"application/json"
_UNKNOWN_TYPE: Final = responses.error(
    415,
    "unsupported_media_type",
    "this path takes Content-Type: application/x-protobuf or application/json; nothing was written",
)
# The field of a partial success that counts what was refused.
_REFUSED: Final[dict[Signal, str]] = {
    "logs": "rejectedLogRecords",
    "traces": "rejectedSpans",
    "metrics": "rejectedDataPoints",
}


class OTLPEndpoints:
    """Handlers of the paths of OTLP."""

    def __init__(self, writes: WriteEndpoints, settings: Settings) -> None:
        self._writes = writes
        self._promote = settings.otlp.promote

    def routes(self) -> Table:
        """Return the router's entries for them."""
        return {("POST", f"/v1/{signal}"): self._route(signal) for signal in _REFUSED}

    def _route(self, signal: Signal) -> Fields:
        return self._write(signal), WRITE, self._judge()

    def _judge(self) -> Judge:
        judge = self._writes.judge(_PRECISION)

        def judge_head(exchange: Exchange) -> bytes | None:
            return judge(exchange) if _is_json(exchange) is not None else _UNKNOWN_TYPE

        return judge_head

    def _write(self, signal: Signal) -> Handler:
        by_type = {
            is_json: self._writes.handler(
                _PRECISION,
                self._encoder(signal, is_json=is_json),
                self._settler(signal, is_json=is_json),
                inline_bytes=costly_inline_bytes,
                tiny_bytes=0,
            )
            for is_json in (False, True)
        }

        def handle(exchange: Exchange) -> None:
            is_json = _is_json(exchange)
            if is_json is None:
                self._writes.refuse(exchange, _UNKNOWN_TYPE)
            else:
                by_type[is_json](exchange)

        return handle

    def _encoder(self, signal: Signal, *, is_json: bool) -> Callable[[bytes, Check, Target], Outcome]:
        def encode_request(body: bytes, check: Check, target: Target) -> Outcome:
            if target.precision != _PRECISION:
                raise BadPayload("query parameter 'precision': times of OTLP are in ns, always")
            return encode(body, check, signal=signal, is_json=is_json, promote=self._promote)

        return encode_request

    def _settler(self, signal: Signal, *, is_json: bool) -> Callable[[Exchange, Target, Outcome], None]:
        def settle(exchange: Exchange, target: Target, outcome: Outcome) -> None:
            answer = _answer(signal, outcome, is_json=is_json)
            if outcome.encoded is None:
                exchange.answer(answer)
            elif outcome.refused and not target.accept_partial:
                self._writes.refuse(
                    exchange, responses.error(400, "bad_request", _told(outcome, "nothing was written"))
                )
            else:
                self._writes.append(exchange, target, outcome.encoded, answer)

        return settle


def _is_json(exchange: Exchange) -> bool | None:
    """Return whether a body is JSON by its type; None for a type that is not taken."""
    media_type = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return True if media_type == _JSON else False if media_type == _PROTOBUF else None


def _told(outcome: Outcome, rest: str) -> str:
    return f"{outcome.refused} items were refused: {outcome.reason}; {rest}"


def _answer(signal: Signal, outcome: Outcome, *, is_json: bool) -> bytes:
    """Make an Export…ServiceResponse, with a partial success if something was refused."""
    told = _told(outcome, "all others were written") if outcome.refused else ""
    if is_json:
        partial = {_REFUSED[signal]: str(outcome.refused), "errorMessage": told}
        return responses.json(200, {"partialSuccess": partial} if told else {})
    if not told:
        return _WHOLE
    text = told.encode()
    inner = b"".join((b"\x08", varint(outcome.refused), b"\x12", varint(len(text)), text))
    return responses.body(200, _PROTOBUF, b"".join((b"\x0a", varint(len(inner)), inner)))


_WHOLE: Final = responses.body(200, _PROTOBUF, b"")

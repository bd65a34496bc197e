"""Endpoints for senders of Prometheus remote write, 1.0 and 2.0, and what they and Grafana ask besides.

References: https://prometheus.io/docs/specs/prw/remote_write_spec/ and …/remote_write_spec_2_0/

A sender gives up what is answered 400, and sends again what is answered 429 or 5xx. So a series that can never be
written is 400, after the good ones were written; and the headers tell how many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from arcpipe import __version__
from arcpipe.codec.effort import Check
from arcpipe.codec.remote_write.body import Outcome, Version, encode
from arcpipe.codec.remote_write.tables import Layout
from arcpipe.codec.snappy import decode_block
from arcpipe.errors import BadPayload
from arcpipe.ingest.endpoints.targets import Target
from arcpipe.ingest.endpoints.write import WriteEndpoints, costly_inline_bytes
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.router import OPEN, WRITE, Handler, Judge, Table
from arcpipe.units import MB

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

# Unit of all times, by the specification.
_PRECISION: Final = "ms"
_PROTOBUF: Final = b"application/x-protobuf"
_VERSIONS: Final[dict[bytes, Version]] = {b"prometheus.writerequest": 1, b"io.prometheus.write.v2.request": 2}
_UNKNOWN_TYPE: Final = responses.error(
    415,
    "unsupported_media_type",
    "this path takes Content-Type: application/x-protobuf, with proto=prometheus.WriteRequest or "
    "proto=io.prometheus.write.v2.Request; nothing was written",
)

# Grafana asks this before it offers a data source. The version is that of a Prometheus with this API.
_BUILD_INFO: Final = responses.json(
    200,
    {
        "status": "success",
        "data": {
            "version": "2.55.0",
            "revision": f"arcpipe {__version__}",
            "branch": "",
            "buildUser": "",
            "buildDate": "",
            "goVersion": "",
        },
    },
)


class _Form(NamedTuple):
    """The form of a body."""

    version: Version
    is_packed: bool  # whether it is a snappy block that no header names


class RemoteWriteEndpoints:
    """Handlers of the paths that senders of remote write use."""

    def __init__(self, writes: WriteEndpoints, settings: Settings) -> None:
        self._writes = writes
        self._max_body = settings.server.max_body_mb * MB
        chosen = settings.remote_write
        self._layout = Layout(chosen.tables == "metric", chosen.promote, chosen.metadata)

    def routes(self) -> Table:
        """Return the router's entries for them."""
        write = (self._write(), WRITE, self._judge())
        return {
            ("POST", "/api/v1/write"): write,
            ("POST", "/api/v1/push"): write,
            ("GET", "/api/v1/status/buildinfo"): (lambda exchange: exchange.answer(_BUILD_INFO), OPEN),
        }

    def _judge(self) -> Judge:
        judge = self._writes.judge(_PRECISION)

        def judge_head(exchange: Exchange) -> bytes | None:
            return judge(exchange) if _form_of(exchange) is not None else _UNKNOWN_TYPE

        return judge_head

    def _write(self) -> Handler:
        handlers = {
            form: self._writes.handler(
                _PRECISION, self._encoder(form), self._settle, inline_bytes=costly_inline_bytes, tiny_bytes=0
            )
            for form in (_Form(1, False), _Form(1, True), _Form(2, False), _Form(2, True))
        }

        def handle(exchange: Exchange) -> None:
            form = _form_of(exchange)
            if form is None:
                self._writes.refuse(exchange, _UNKNOWN_TYPE)
            else:
                handlers[form](exchange)

        return handle

    def _encoder(self, form: _Form) -> Callable[[bytes, Check, Target], Outcome]:
        def encode_series(body: bytes, check: Check, target: Target) -> Outcome:
            if target.precision != _PRECISION:
                raise BadPayload("query parameter 'precision': times of remote write are in ms, always")
            if form.is_packed:
                body = decode_block(body, self._max_body)
                check()
            return encode(body, check, version=form.version, layout=self._layout)

        return encode_series

    def _settle(self, exchange: Exchange, target: Target, outcome: Outcome) -> None:
        writes, encoded = self._writes, outcome.encoded
        if not outcome.errors:
            answer = responses.empty(204, _written(outcome))
            if encoded is None:
                exchange.answer(answer)
            else:
                writes.append(exchange, target, encoded, answer)
        elif encoded is not None and target.accept_partial:
            writes.append(exchange, target, encoded, _refusal(outcome, True))
        else:
            writes.refuse(exchange, _refusal(outcome, False))


def _form_of(exchange: Exchange) -> _Form | None:
    """Return the form of a request's body by its headers; None for a type that is not taken."""
    media_type, *parameters = exchange.headers.get(b"content-type", _PROTOBUF).lower().split(b";")
    if media_type.strip() != _PROTOBUF:
        return None
    version: Version | None = 1
    for parameter in parameters:
        name, _, value = parameter.strip().partition(b"=")
        if name == b"proto":
            version = _VERSIONS.get(value.strip(b'"'))
    if version is None:
        return None
    return _Form(version, not exchange.headers.get(b"content-encoding"))


def _written(outcome: Outcome) -> bytes:
    return (
        b"X-Prometheus-Remote-Write-Samples-Written: %d\r\n"
        b"X-Prometheus-Remote-Write-Histograms-Written: %d\r\n"
        b"X-Prometheus-Remote-Write-Exemplars-Written: %d\r\n"
        % (outcome.samples, outcome.histograms, outcome.exemplars)
    )


_NOTHING: Final = Outcome(None, 0, 0, 0, [], 0)


def _refusal(outcome: Outcome, partial: bool) -> bytes:
    """Make the answer to a body with bad series; the others are written if `partial`."""
    text = "; ".join(outcome.errors)
    if outcome.more_errors:
        text += f"; and {outcome.more_errors} more"
    text += "; all others were written" if partial else "; nothing was written"
    return responses.error(400, "bad_request", text, _written(outcome if partial else _NOTHING))

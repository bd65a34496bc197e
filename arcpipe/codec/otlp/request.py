"""The common frame of all requests: resources, their scopes, and the items of these."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from arcpipe.codec.collected import Collected
from arcpipe.codec.effort import Check, Growth
from arcpipe.codec.otlp.values import Attributes
from arcpipe.codec.protobuf.buffer import Buffer, Ints
from arcpipe.codec.protobuf.fields import Level
from arcpipe.codec.protobuf.pairs import is_named
from arcpipe.codec.protobuf.scan import LENGTH_DELIMITED, Spans, scan, scan_one
from arcpipe.errors import BadPayload

# Resources of a request, and scopes: they are read all at once.
_MOST: Final = 65_536
_SERVICE_NAME: Final = b"service.name"


class Resources(NamedTuple):
    """A value for each resource."""

    attributes: pa.Array
    schema_url: pa.Array
    service: pa.Array
    promoted: tuple[pa.Array, ...]


class Scopes(NamedTuple):
    """A value for each scope; `resource` is the index of its resource."""

    resource: Ints
    name: pa.Array
    version: pa.Array
    attributes: pa.Array
    schema_url: pa.Array


class Request(NamedTuple):
    """A request, with the places of its items; the owner of an item is its scope."""

    buffer: Buffer
    resources: Resources
    scopes: Scopes
    items: Spans
    collected: Collected  # the rows that were read


def read_request(body: bytes, promote: tuple[str, ...], check: Check, arrow_rows: int) -> Request:
    """Find the items of a request.

    Raises:
        BadPayload: it is malformed.
    """
    buffer = Buffer(body)
    of_resources = scan_one(buffer, buffer.start, buffer.end, check).of(1, LENGTH_DELIMITED)
    count = len(of_resources.owner)
    _check_count(count, "resources")
    level = Level(buffer, scan(buffer, of_resources.start, of_resources.end, check), count)
    resources = _read_resources(level, promote, check)
    of_scopes = level.fields.of(2, LENGTH_DELIMITED)
    _check_count(len(of_scopes.owner), "scopes")
    inner = Level(buffer, scan(buffer, of_scopes.start, of_scopes.end, check), len(of_scopes.owner))
    collected = Collected(Growth(len(body), check), check, arrow_rows)
    scopes = _read_scopes(inner, of_scopes.owner, check)
    return Request(buffer, resources, scopes, inner.fields.of(2, LENGTH_DELIMITED), collected)


def _read_resources(level: Level, promote: tuple[str, ...], check: Check) -> Resources:
    buffer = level.buffer
    spans = level.message(1, "a resource")
    fields = scan(buffer, spans.start, spans.end, check).of(1, LENGTH_DELIMITED)
    owned = Spans(spans.owner[fields.owner], fields.start, fields.end)
    attributes = Attributes(buffer, owned, level.count, check)
    return Resources(
        attributes.json(),
        buffer.gather_texts(*level.spans(3), "a schema URL"),
        attributes.named(np.flatnonzero(is_named(buffer, attributes.pairs, _SERVICE_NAME))).fill_null(""),
        promoted_of(buffer, attributes, promote),
    )


def _read_scopes(level: Level, resource: Ints, check: Check) -> Scopes:
    buffer = level.buffer
    spans = level.message(1, "a scope")
    found = Level(buffer, scan(buffer, spans.start, spans.end, check), len(spans.owner))
    index = np.full(level.count, -1)
    index[spans.owner] = np.arange(found.count)
    at = pa.array(index, mask=index < 0)
    fields = found.fields.of(3, LENGTH_DELIMITED)
    return Scopes(
        resource,
        buffer.gather_texts(*found.spans(1), "a scope's name").take(at).fill_null(""),
        buffer.gather_texts(*found.spans(2), "a scope's version").take(at).fill_null(""),
        Attributes(buffer, fields, found.count, check).json().take(at).fill_null("{}"),
        buffer.gather_texts(*level.spans(3), "a schema URL"),
    )


def promoted_of(buffer: Buffer, attributes: Attributes, promote: tuple[str, ...]) -> tuple[pa.Array, ...]:
    """Return the values of attributes that are columns of their own."""
    return tuple(
        attributes.named(np.flatnonzero(is_named(buffer, attributes.pairs, name.encode()))) for name in promote
    )


def _check_count(count: int, what: str) -> None:
    if count > _MOST:
        raise BadPayload(f"the request has more than {_MOST} {what}; send it in parts")

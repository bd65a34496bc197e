"""The payloads of WAL entries: one MessagePack value each -> columnar maps whose columns are still encoded.

Reads envelopes and, through `arc_payloads`, the two payloads that an Arc installation leaves. It only finds the
columns; `codec.arrow` decodes their values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from arcpipe.codec.envelope import (
    ENVELOPE_MARK,
    KIND_BATCH,
    KIND_COLUMNAR,
    KIND_END,
    KIND_START,
    ArrowBody,
    ColumnMap,
    Envelope,
    Meta,
    decode_arrow,
    decode_envelope,
)
from arcpipe.codec.messagepack import arc_payloads
from arcpipe.codec.messagepack.walk import Walker, value_end
from arcpipe.codec.rescued import unpack_value
from arcpipe.errors import BadPayload


class DecodedEntry(NamedTuple):
    """The content of an entry. `maps` are (database, columnar map); segment start and end have none."""

    meta: Meta
    maps: list[tuple[str, ColumnMap]]


def decode_entry(payload: bytes | memoryview) -> DecodedEntry:
    """Find the columnar maps of any payload in a WAL: an envelope, or one of the payloads of `arc_payloads`.

    Raises BadPayload for any other payload.
    """
    if not payload:
        raise BadPayload("payload is empty")
    if arc_payloads.is_arc_payload(payload):
        arc = arc_payloads.decode(payload)
        return DecodedEntry(
            Meta(), [(each.database, ColumnMap(each.measurement, each.columns, each.tags or None)) for each in arc]
        )
    arrow = decode_arrow(payload)
    if arrow is not None:
        database, meta, stream = arrow
        return DecodedEntry(meta, [(database, columns) for columns in _arrow_maps(stream, meta.precision)])
    try:
        envelope = decode_envelope(payload)
    except RecursionError:
        envelope = _envelope(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadPayload(f"payload is no envelope: {error}") from None
    body = envelope.body
    if envelope.kind == KIND_COLUMNAR and isinstance(body, ColumnMap):
        return DecodedEntry(envelope.meta, [(envelope.database, body)])
    if envelope.kind == KIND_BATCH and isinstance(body, list):
        return DecodedEntry(envelope.meta, [(envelope.database, columns) for columns in body])
    if envelope.kind in (KIND_START, KIND_END) and body is None:
        return DecodedEntry(Meta(), [])
    raise BadPayload(f"envelope of kind {envelope.kind} with a body that is not its own")


class Front(NamedTuple):
    """The parts of an envelope before its body, and where that begins."""

    database: str
    meta: Meta
    body: int  # its offset in the payload


def decode_front(payload: bytes | memoryview) -> Front | None:
    """Decode an envelope up to its body; None for a payload that is none.

    It reads any envelope, even one with a body that `decode_entry` refuses.
    """
    try:
        prefix, body = _prefix(payload)
        front = msgspec.msgpack.decode(prefix + b"\xc0", type=Envelope)
    except (BadPayload, IndexError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Front(front.database, front.meta, body)


def key_place(payload: bytes | memoryview, front: Front) -> range | None:
    """Find the bytes of the idempotency key of an envelope.

    Returns:
        Where they are in the payload; an empty range without a key. None if that is not plain: the key is empty or not
        ASCII, or the meta has several.
    """
    key = front.meta.key
    if key is None:
        return range(0)
    count, at = _length(payload, value_end(payload, value_end(payload, 1)), 0x80, 0xDE)
    places = []
    for _ in range(count):
        name_end = value_end(payload, at)
        end = value_end(payload, name_end)
        if unpack_value(bytes(payload[at:name_end])) == "key":
            places.append(range(end - len(key), end))
        at = end
    return places[0] if len(places) == 1 and key and key.isascii() else None


def _arrow_maps(body: ArrowBody, precision: str | None) -> Iterator[ColumnMap]:
    from arcpipe.codec.arrow_ipc.columns import column_maps  # most who read entries meet no Arrow, and need not wait

    return column_maps(body, precision)


def entry_meta(payload: bytes | memoryview) -> Meta:
    """Return the meta of any payload in a WAL. Raises BadPayload as `decode_entry`."""
    arrow = decode_arrow(payload) if payload else None
    return arrow[1] if arrow is not None else decode_entry(payload).meta


def entry_records(payload: bytes | memoryview) -> int:
    """Count the records of any payload in a WAL. Raises BadPayload as `decode_entry`."""
    arrow = decode_arrow(payload) if payload else None
    if arrow is not None:
        return arrow[2].rows
    firsts = [next(iter(columnar.columns.values()), b"\x90") for _, columnar in decode_entry(payload).maps]
    return sum(array_length(memoryview(column))[0] for column in firsts)


def batch_length(payload: bytes | memoryview) -> int:
    """Count the maps of a batch entry; 0 for any other payload."""
    try:
        _, body = _prefix(payload)
        return _length(payload, body, 0x90, 0xDC)[0] if payload[1] == KIND_BATCH else 0
    except (BadPayload, IndexError):
        return 0


def batch_parts(payload: bytes | memoryview) -> Iterator[bytes]:
    """Make each map of a batch entry the payload of an entry of its own, one after the other.

    Raises BadPayload, before the first of them, if the maps cannot be found.
    """
    prefix, body = _prefix(payload)
    count, start = _length(payload, body, 0x90, 0xDC)
    Walker(payload, start).skip(count)
    walker = Walker(payload, start)
    for _ in range(count):
        start = walker.offset
        walker.skip(1)
        yield prefix + bytes(payload[start : walker.offset])


def split_batch(payload: bytes | memoryview) -> list[bytes]:
    """Make each map of a batch entry the payload of an entry of its own; leave any other payload as it is.

    So one bad map does not take the others of its entry along. Raises nothing.
    """
    try:
        return list(batch_parts(payload)) if batch_length(payload) else [bytes(payload)]
    except (BadPayload, IndexError):
        return [bytes(payload)]


def array_length(column: bytes | memoryview) -> tuple[int, int]:
    """Return (values, bytes of its header) of a MessagePack array. Raises BadPayload if `column` is no array."""
    return _length(column, 0, 0x90, 0xDC)


def _length(data: bytes | memoryview, pos: int, fix: int, wide: int) -> tuple[int, int]:
    """Return (count, the offset after the header) of an array or map whose header markers are `fix` and `wide`."""
    marker = data[pos] if pos < len(data) else 0xC1
    if marker & 0xF0 == fix:
        return marker & 15, pos + 1
    if marker == wide:
        return int.from_bytes(data[pos + 1 : pos + 3], "big"), pos + 3
    if marker == wide + 1:
        return int.from_bytes(data[pos + 1 : pos + 5], "big"), pos + 5
    raise BadPayload(f"byte {marker:#04x} at {pos} does not begin {'an array' if fix == 0x90 else 'a map'}")


def _prefix(payload: bytes | memoryview) -> tuple[bytes, int]:
    """Make the part before the body of a columnar envelope with this payload's database and meta.

    Returns:
        That part, and the offset of the body in the payload.
    """
    if payload[0] != ENVELOPE_MARK:
        raise BadPayload("payload is no envelope")
    database = value_end(payload, 1)
    body = value_end(payload, value_end(payload, database))
    return b"\x94\x01" + bytes(payload[database:body]), body


def _envelope(payload: bytes | memoryview) -> Envelope:
    """Do as `decode_envelope` for columns nested deeper than its recursion goes: linear, without recursion, slow."""
    data = bytes(payload)
    prefix, body = _prefix(data)
    front = msgspec.msgpack.decode(prefix + b"\xc0", type=Envelope)
    if data[1] == KIND_COLUMNAR:
        return Envelope(KIND_COLUMNAR, front.database, front.meta, _column_map(data, body))
    return Envelope(
        KIND_BATCH, front.database, front.meta, [_column_map(map_, _prefix(map_)[1]) for map_ in split_batch(data)]
    )


def _column_map(data: bytes, pos: int) -> ColumnMap:
    count, pos = _length(data, pos, 0x80, 0xDE)
    shell: list[bytes] = []
    columns: dict[str, msgspec.Raw] = {}
    for _ in range(count):
        key_end = value_end(data, pos)
        end = value_end(data, key_end)
        if unpack_value(data[pos:key_end]) == "columns":
            names, name = _length(data, key_end, 0x80, 0xDE)
            for _ in range(names):
                start = value_end(data, name)
                after = value_end(data, start)
                columns[str(unpack_value(data[name:start]))] = msgspec.Raw(data[start:after])
                name = after
        else:
            shell.append(data[pos:end])
        pos = end
    head = b"\xdf" + (len(shell) + 1).to_bytes(4, "big") + b"".join(shell)
    try:
        column_map = msgspec.msgpack.decode(head + b"\xa7columns\x80", type=ColumnMap)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadPayload(f"body is no columnar map: {error}") from None
    column_map.columns = columns
    return column_map

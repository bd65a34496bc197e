"""Values that fit no column: read from MessagePack, written as JSON, read back. This text is the reference of the JSON.

A row's odd values stand in the string column `_rescued_data` as one JSON object, `{sender's name: value, ...}`; the
column is null where a row has none. JSON holds nil, booleans, integers up to 64 bits, finite floats (1 is an integer,
1.0 a float), text, arrays and maps as they are. Anything else is an object with one key that begins with `$`:

    {"$base64": "..."}              binary
    {"$utf8_base64": "..."}         a string that is not valid UTF-8
    {"$float": "NaN"}               also "Infinity" and "-Infinity"
    {"$time_ns": 1}                 a MessagePack timestamp, ns since the epoch
    {"$ext": [5, "..."]}            any other extension: its code, its bytes in base64
    {"$map": [[key, value], ...]}   a map with keys that are no text or not unique, or one that would look like
                                    one of these objects
    {"$msgpack": "..."}             base64 of an encoded array or map that is nested deeper than `MAX_DEPTH` or has more
                                    than `MAX_NESTED_BYTES`

`rescued_json` writes the object of a row, `parse_rescued` reads it. No value changes between them, except that a
float32 comes back as the float64 of the same value. This module must not know which values are odd, or why.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import orjson

from arcpipe.codec.messagepack.layout import (
    ARRAY,
    BINARY,
    BOOLEAN,
    EXTENSION,
    FLOAT,
    INTEGER,
    KIND,
    LAYOUT,
    MAP,
    NIL,
    STRING,
)
from arcpipe.codec.messagepack.walk import value_end
from arcpipe.units import MB

MAX_DEPTH: Final = 100
"""Deepest nesting of arrays and maps in a value that is written as JSON (orjson itself stops at 254)."""

MAX_NESTED_BYTES: Final = MB
"""Largest array or map that is written as JSON, in encoded bytes: Python objects may take a hundred times more."""


class InvalidText(NamedTuple):
    """A MessagePack string that is not valid UTF-8."""

    raw: bytes


class Timestamp(NamedTuple):
    """A MessagePack timestamp extension, of any of its three sizes."""

    ns: int


class Ext(NamedTuple):
    """Any other MessagePack extension."""

    code: int
    data: bytes


class Pairs(NamedTuple):
    """A map that is no JSON object: keys that are not text, or that come twice."""

    items: tuple[tuple[Any, Any], ...]


class StillEncoded(NamedTuple):
    """An array or map nested deeper than `MAX_DEPTH`, or of more than `MAX_NESTED_BYTES`, still encoded."""

    data: bytes


def unpack_value(element: bytes) -> Any:
    """Decode one MessagePack value: None, bool, int, float, str, bytes, list, dict or a class of this module.

    Raises BadPayload if it is not whole.
    """
    value_end(element, 0)
    if len(element) > MAX_NESTED_BYTES and KIND[element[0]] in (ARRAY, MAP):
        return StillEncoded(element)
    try:
        return _unpack(element, 0, 0)[0]
    except _TooDeep:
        return StillEncoded(element)


class _TooDeep(Exception):
    pass


def _unpack(data: bytes, pos: int, depth: int) -> tuple[Any, int]:
    marker = data[pos]
    if marker <= 0x7F:
        return marker, pos + 1
    if marker >= 0xE0:
        return marker - 0x100, pos + 1
    kind, width, count = LAYOUT[marker]
    if width:
        count = int.from_bytes(data[pos + 1 : pos + 1 + width], "big")
    start = pos + 1 + width
    if kind in (ARRAY, MAP):
        if depth == MAX_DEPTH:
            raise _TooDeep
        items = []
        for _ in range(count if kind == ARRAY else 2 * count):
            item, start = _unpack(data, start, depth + 1)
            items.append(item)
        return (items if kind == ARRAY else _map(items[::2], items[1::2])), start
    if kind == EXTENSION and width:
        return _ext(data[start], data[start + 1 : start + 1 + count]), start + 1 + count
    end = start + count
    raw = data[start:end]
    if kind == STRING:
        try:
            return raw.decode(), end
        except UnicodeDecodeError:
            return InvalidText(raw), end
    if kind in (NIL, BOOLEAN):
        return (None, None, False, True)[marker - 0xC0], end
    if kind == BINARY:
        return raw, end
    if kind == FLOAT:
        return struct.unpack(">f" if count == 4 else ">d", raw)[0], end
    if kind == INTEGER:
        return int.from_bytes(raw, "big", signed=marker >= 0xD0), end
    return _ext(raw[0], raw[1:]), end


def _map(keys: list[Any], values: list[Any]) -> dict[str, Any] | Pairs:
    if all(type(key) is str for key in keys):
        as_dict = dict(zip(keys, values, strict=True))
        if len(as_dict) == len(keys):
            return as_dict
    return Pairs(tuple(zip(keys, values, strict=True)))


def _ext(code: int, data: bytes) -> Timestamp | Ext:
    # https://github.com/msgpack/msgpack/blob/master/spec.md#timestamp-extension-type
    if code == 0xFF:
        if len(data) == 4:
            return Timestamp(int.from_bytes(data, "big") * 1_000_000_000)
        if len(data) == 8:
            both = int.from_bytes(data, "big")
            ns, seconds = both >> 34, both & ((1 << 34) - 1)
            if ns < 1_000_000_000:
                return Timestamp(seconds * 1_000_000_000 + ns)
        if len(data) == 12:
            ns, seconds = struct.unpack(">Iq", data)
            if ns < 1_000_000_000:
                return Timestamp(seconds * 1_000_000_000 + ns)
    return Ext(code - 0x100 if code >= 0x80 else code, data)


def rescued_json(values: Mapping[str, Any]) -> bytes:
    """Write the content of `_rescued_data` for a row: its odd values (see `unpack_value`) by column name."""
    return orjson.dumps({name: _to_json(value) for name, value in values.items()})


def parse_rescued(text: str | bytes) -> dict[str, Any]:
    """Read the values of a row, by column name, from the content of `_rescued_data`."""
    return {name: _from_json(value) for name, value in orjson.loads(text).items()}


def _to_json(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        if value - value == 0.0:
            return value
        return {"$float": "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"}
    if value is None or kind is str or kind is int or kind is bool:
        return value
    if kind is list:
        return [_to_json(item) for item in value]
    if kind is dict:
        if len(value) == 1 and next(iter(value)).startswith("$"):
            return {"$map": [[key, _to_json(item)] for key, item in value.items()]}
        return {key: _to_json(item) for key, item in value.items()}
    return _to_tagged(value)


def _to_tagged(value: Any) -> dict[str, Any]:
    match value:
        case bytes():
            return {"$base64": _base64(value)}
        case InvalidText(raw):
            return {"$utf8_base64": _base64(raw)}
        case Timestamp(ns):
            # Years far from ours need more than 64 bits of nanoseconds, which JSON writers do not take as a number.
            return {"$time_ns": ns if -(1 << 63) <= ns < 1 << 63 else str(ns)}
        case Ext(code, data):
            return {"$ext": [code, _base64(data)]}
        case Pairs(items):
            return {"$map": [[_to_json(key), _to_json(item)] for key, item in items]}
        case StillEncoded(data):
            return {"$msgpack": _base64(data)}
    raise TypeError(f"{type(value).__name__} is no MessagePack value")


def _from_json(value: Any) -> Any:
    if type(value) is list:
        return [_from_json(item) for item in value]
    if type(value) is not dict:
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag.startswith("$"):
            return _FROM_TAG[tag](content)
    return {key: _from_json(item) for key, item in value.items()}


_FROM_TAG: Final[dict[str, Callable[[Any], Any]]] = {
    "$base64": base64.b64decode,
    "$utf8_base64": lambda text: InvalidText(base64.b64decode(text)),
    "$float": lambda text: float(text.replace("Infinity", "inf")),
    "$time_ns": lambda ns: Timestamp(int(ns)),
    "$ext": lambda pair: Ext(pair[0], base64.b64decode(pair[1])),
    "$map": lambda items: _map([_from_json(key) for key, _ in items], [_from_json(item) for _, item in items]),
    "$msgpack": lambda text: StillEncoded(base64.b64decode(text)),
}


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")

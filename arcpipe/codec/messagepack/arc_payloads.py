"""The two payloads in the WAL of an Arc installation, so that it can be drained into arcpipe.

- an array of row maps: `measurement` (or `m`), the database in `_database`, the time in `time`, `timestamp` or `t`,
  the fields in a map `fields`, or flat in the row, tags in a map `tags`;
- the byte 0x01, the length of the database name as big-endian uint16, the name, then MessagePack: such an array, or
  columnar maps `{"m" or "measurement", "columns"}`, one or an array of them.

Everything becomes columns; each value keeps its bytes. Rows are gathered by database, measurement and their names.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from arcpipe.codec.columns import TIME, array_header, field_column_names
from arcpipe.errors import BadPayload

DEFAULT_DATABASE: Final = "default"

_MEASUREMENT_KEYS: Final = ("measurement", "m")
_TIME_KEYS: Final = ("time", "timestamp", "t")
_PREFIXED: Final = 0x01

_decode_maps = msgspec.msgpack.Decoder(list[dict[str, Raw]]).decode
_decode_map = msgspec.msgpack.Decoder(dict[str, Raw]).decode
_decode_text = msgspec.msgpack.Decoder(str).decode
_decode_names = msgspec.msgpack.Decoder(tuple[str, ...]).decode


class ArcColumns(NamedTuple):
    """Columns of one measurement; each value of `columns` is a whole MessagePack array."""

    database: str
    measurement: str
    columns: dict[str, Raw]
    tags: tuple[str, ...]


class _Rows(NamedTuple):
    """Rows of one shape while they are gathered: one list of encoded values for each name."""

    database: str
    measurement: str
    columns: dict[str, list[Raw]]
    tags: tuple[str, ...]

    def packed(self) -> ArcColumns:
        columns = {name: Raw(array_header(len(row)) + b"".join(row)) for name, row in self.columns.items()}
        return ArcColumns(self.database, self.measurement, columns, self.tags)


def is_arc_payload(payload: bytes | memoryview) -> bool:
    """Tell whether a payload is Arc's: it begins with 0x01, or is an array that is empty or begins with a map."""
    marker = payload[0]
    if marker == _PREFIXED or marker == 0x90:
        return True
    header = 1 if marker & 0xF0 == 0x90 else {0xDC: 3, 0xDD: 5}.get(marker, 0)
    return bool(header) and _is_map(payload[header:])


def decode(payload: bytes | memoryview) -> list[ArcColumns]:
    """Decode the columns of a payload, in the order of their first rows. Raises BadPayload for any other payload."""
    database = DEFAULT_DATABASE
    try:
        if payload[0] == _PREFIXED:
            body = 3 + int.from_bytes(payload[1:3], "big")
            database = bytes(payload[3:body]).decode() or DEFAULT_DATABASE
            payload = payload[body:]
        return _gather(database, [_decode_map(payload)] if _is_map(payload) else _decode_maps(payload))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadPayload(f"Arc's payload cannot be read: {error}") from None


def _gather(default: str, records: list[dict[str, Raw]]) -> list[ArcColumns]:
    found: dict[object, ArcColumns | _Rows] = {}
    for number, record in enumerate(records):
        database = _decode_text(record.pop("_database")) if "_database" in record else default
        key = next((key for key in _MEASUREMENT_KEYS if key in record), None)
        if key is None:
            raise BadPayload(f"record {number} of Arc's payload has no measurement")
        measurement = _decode_text(record.pop(key))
        if "columns" in record:
            found[number] = _columnar(database, measurement, record, number)
            continue
        tags = _map_at(record, "tags")
        fields = _map_at(record, "fields")
        time_key = next((key for key in _TIME_KEYS if key in record), None)
        time = {} if time_key is None else {TIME: record.pop(time_key)}
        # Other keys are fields, too. They may repeat names of `fields`: both values stay.
        fields |= zip(field_column_names(fields, record), record.values(), strict=True)
        if not fields and not tags:
            raise BadPayload(f"row {number} of Arc's payload has no fields")
        names = field_column_names({*tags, TIME}, fields)
        row = time | tags | dict(zip(names, fields.values(), strict=True))
        shape = (database, measurement, len(tags), *row)
        rows = found.get(shape)
        if not isinstance(rows, _Rows):
            rows = found[shape] = _Rows(database, measurement, {name: [] for name in row}, tuple(tags))
        for column, value in zip(rows.columns.values(), row.values(), strict=True):
            column.append(value)
    return [columns.packed() if isinstance(columns, _Rows) else columns for columns in found.values()]


def _columnar(database: str, measurement: str, record: dict[str, Raw], number: int) -> ArcColumns:
    columns = _decode_map(record.pop("columns"))
    tags = _decode_names(record.pop("tags")) if "tags" in record else ()
    if record:
        raise BadPayload(f"record {number} of Arc's payload has the unknown key {next(iter(record))!r}")
    if TIME not in columns:
        time_key = next((key for key in _TIME_KEYS if key in columns), None)
        columns = {TIME if name == time_key else name: column for name, column in columns.items()}
    return ArcColumns(database, measurement, columns, tags)


def _map_at(record: dict[str, Raw], key: str) -> dict[str, Raw]:
    raw = record.pop(key, None)
    return {} if raw is None or memoryview(raw)[0] == 0xC0 else _decode_map(raw)


def _is_map(data: bytes | memoryview) -> bool:
    return len(data) > 0 and (data[0] & 0xF0 == 0x80 or data[0] in (0xDE, 0xDF))

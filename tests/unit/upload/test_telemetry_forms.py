"""Telemetry is in the WAL as columnar maps or as Arrow streams: both become the same rows in the same columns."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pytest

from arcpipe.codec.columns import Encoded
from arcpipe.codec.otlp.body import Signal
from arcpipe.codec.otlp.body import encode as encode_otlp
from arcpipe.codec.remote_write.body import encode as encode_series
from arcpipe.codec.remote_write.tables import Layout
from arcpipe.codec.snappy import decode_block
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.table_schema import ColumnRules
from benchmarks.load.telemetry import LogsBody, PointsBody, SeriesBody, SpansBody
from tests.support.entry_rows import ARROW
from tests.unit.codec.otlp.messages import Maker
from tests.unit.codec.remote_write.test_body import STALE, make
from tests.unit.upload.test_convert_arrow import NOW_US, Result, convert

Encode = Callable[[bytes, int], Encoded | None]
SIGNALS: Final[tuple[Signal, ...]] = ("logs", "traces", "metrics")
NEVER: Final = 1 << 40


def payload(encoded: Encoded | None, precision: str) -> bytes:
    assert encoded is not None
    return msgspec.msgpack.encode([1 + encoded.batch, "db", {"precision": precision}, msgspec.Raw(encoded.body)])


def both_forms(
    path: Path,
    bodies: list[bytes],
    encode: Encode,
    precision: str,
    rules: ColumnRules = ColumnRules(),  # noqa: B008
) -> tuple[Result, Result, Result]:
    """Convert bodies in each form, and in both by turns."""
    streams = [encode(body, 1) for body in bodies]
    maps = [encode(body, NEVER) for body in bodies]
    mixed = [maps[number] if number % 2 else one for number, one in enumerate(streams)]
    found = []
    for number, entries in enumerate((maps, streams, mixed)):
        folder = path / str(number)
        folder.mkdir()
        registry = SchemaRegistry(folder / "s.json")
        registry.rules = rules
        found.append(convert(folder, [payload(one, precision) for one in entries], registry))
        assert not found[-1].letters
    return found[0], found[1], found[2]


def encode_rows(body: bytes, arrow_rows: int) -> Encoded | None:
    return encode_series(body, layout=Layout(promote=("job", "nowhere")), arrow_rows=arrow_rows).encoded


def test_samples_are_the_same_in_both_forms(tmp_path: Path) -> None:
    source = random.Random(1)
    bodies = [decode_block(SeriesBody(700, source).at(NOW_US), 1 << 30) for _ in range(4)]
    assert all(one is not None and one.batch == ARROW for one in (encode_rows(body, 1) for body in bodies))
    maps, streams, mixed = both_forms(tmp_path, bodies, encode_rows, "ms")
    assert maps.rows() == streams.rows() == mixed.rows()
    assert len(maps.rows()) == 2_800


@pytest.mark.parametrize(("signal", "make"), [("logs", LogsBody), ("traces", SpansBody), ("metrics", PointsBody)])
def test_items_of_otlp_are_the_same_in_both_forms(tmp_path: Path, signal: Signal, make: Any) -> None:
    source = random.Random(1)
    bodies = [make(300, source).at(NOW_US) for _ in range(4)]

    def encode(body: bytes, arrow_rows: int) -> Encoded | None:
        return encode_otlp(body, signal=signal, promote=("host.name",), arrow_rows=arrow_rows).encoded

    assert all(one is not None and one.batch == ARROW for one in (encode(body, 1) for body in bodies))
    maps, streams, mixed = both_forms(tmp_path, bodies, encode, "ns")
    assert maps.rows() == streams.rows() == mixed.rows()
    assert len(maps.rows()) == 1_200


@pytest.mark.parametrize("signal", SIGNALS)
def test_odd_requests_are_the_same_in_both_forms(tmp_path: Path, signal: Signal) -> None:
    """Requests of all kinds of values, missing times and several tables."""
    bodies = [Maker(seed).request(signal).SerializeToString() for seed in range(12)]

    def encode(body: bytes, arrow_rows: int) -> Encoded | None:
        return encode_otlp(body, signal=signal, arrow_rows=arrow_rows).encoded

    bodies = [body for body in bodies if encode(body, NEVER) is not None]
    maps, streams, mixed = both_forms(tmp_path, bodies, encode, "ns")
    assert maps.rows() == streams.rows() == mixed.rows()


@pytest.mark.parametrize("signal", SIGNALS)
def test_integers_of_telemetry_have_a_type_whatever_the_settings_say(tmp_path: Path, signal: Signal) -> None:
    """Those of small requests had the type of untyped integers: durations were doubles or not by a request's size."""
    bodies = [Maker(seed).request(signal).SerializeToString() for seed in range(12)]

    def encode(body: bytes, arrow_rows: int) -> Encoded | None:
        return encode_otlp(body, signal=signal, arrow_rows=arrow_rows).encoded

    bodies = [body for body in bodies if encode(body, NEVER) is not None]
    maps, streams, mixed = both_forms(tmp_path, bodies, encode, "ns", ColumnRules(untyped_integers="f64"))
    assert maps.rows() == streams.rows() == mixed.rows()
    types = {(field.name, str(field.type)) for table in maps.tables for field in table.schema}
    assert ("DroppedAttributesCount" if signal != "metrics" else "Flags", "int64") in types


@pytest.mark.parametrize("arrow_rows", [1, NEVER])
def test_a_stale_marker_is_kept_in_the_first_request_of_a_table(tmp_path: Path, arrow_rows: int) -> None:
    """NaN settles no type, but the value of a sample has one. It was null until a number came."""
    body = make([({"__name__": "up"}, [(NOW_US // 1000, STALE)], [])], 1)
    (table,) = convert(tmp_path, [payload(encode_rows(body, arrow_rows), "ms")]).tables
    assert table["value"].cast(pa.float64()).to_numpy().tobytes() == struct.pack("<d", STALE)

"""Timestamps out of range: each line is refused, with the unit that the number fits."""

from __future__ import annotations

from typing import Any, Protocol

import msgpack
import pytest

from arcpipe.codec.line_protocol.body import Lines, encode, encode_by_column, encode_by_line
from arcpipe.codec.line_protocol.grammar import UNITS, Unit
from arcpipe.codec.time_units import UNIT_NS
from tests.support import kernel

MAX = (1 << 63) - 1
MIN = -(1 << 63)


class Path(Protocol):
    def __call__(self, body: bytes, *, unit: Unit) -> Lines: ...


_PATHS: dict[str, Path] = {"by line": encode_by_line, "by column": encode_by_column}
if kernel.can_be_built():
    _PATHS["by kernel"] = kernel.by_kernel
PATHS = pytest.mark.parametrize("path", _PATHS.values(), ids=_PATHS)


def _columns(lines: Lines) -> dict[str, list[Any]]:
    assert lines.encoded is not None
    columns: dict[str, list[Any]] = msgpack.unpackb(lines.encoded.body)["columns"]
    return columns


@PATHS
@pytest.mark.parametrize("word", UNITS)
def test_the_first_and_the_last_time_are_the_ones_of_64_bits_of_nanoseconds(path: Path, word: str) -> None:
    unit = UNITS[word]
    first, last = -(-MIN // UNIT_NS[word]), MAX // UNIT_NS[word]
    body = b"".join(b"m f=1i %d\nm f=2i %d\n" % (first, last) for _ in range(12))
    lines = path(body, unit=unit)
    assert lines.errors == []
    assert _columns(lines)["time"] == [first, last] * 12
    body = b"".join(b"m f=1i %d\nm f=2i %d\nm f=3i 5\n" % (first - 1, last + 1) for _ in range(12))
    lines = path(body, unit=unit)
    assert [error.line for error in lines.errors] == [line for line in range(1, 37) if line % 3]
    assert _columns(lines)["f"] == [3] * 12


# (precision that was asked for, timestamp, the one that it fits): 2026 in each unit.
SENT = [
    ("s", 1_790_000_000_000, "ms"),
    ("s", 1_790_000_000_000_000, "us"),
    ("s", 1_790_000_000_000_000_000, "ns"),
    ("ms", 1_790_000_000_000_000, "us"),
    ("ms", 1_790_000_000_000_000_000, "ns"),
    ("us", 1_790_000_000_000_000_000, "ns"),
    ("m", 1_790_000_000, "s"),
    ("m", 1_790_000_000_000, "ms"),
    ("h", 1_790_000_000, "s"),
    ("h", 29_833_333, "m"),
    ("s", -1_790_000_000_000, "ms"),
]


@PATHS
@pytest.mark.parametrize(("word", "time", "other"), SENT)
def test_the_reason_names_the_precision_that_fits(path: Path, word: str, time: int, other: str) -> None:
    body = b"m,t=v f=1i %d\n" % time * 40 + b"m,t=v f=1i 5\n"
    lines = path(body, unit=UNITS[word])
    reason = f"timestamp '{time}' is out of the range of precision={word} (use precision={other}?) at column 12"
    assert [(error.line, error.reason) for error in lines.errors] == [(line, reason) for line in range(1, 41)]
    assert lines.encoded is not None
    assert lines.encoded.records == 1


def test_only_the_lines_that_are_out_of_range_are_refused() -> None:
    good = b"".join(b"m,t=v f=%di,g=2.5 %d\n" % (n, 1_790_000_000 + n) for n in range(100))
    late = b"m,t=v f=7i,g=2.5 1790000000000\n"
    lines = encode(good + late + good, unit=UNITS["s"])
    assert [error.line for error in lines.errors] == [101]
    assert lines.encoded is not None
    assert lines.encoded.records == 200
    # An integer field may be as large as it likes.
    lines = encode(b"m f=1790000000000000000i 1790000000\n" * 100, unit=UNITS["s"])
    assert lines.errors == []


def test_without_a_unit_any_integer_of_64_bits_is_a_time() -> None:
    lines = encode(b"m f=1i %d\nm f=1i %d\nm f=1i %d\n" % (MIN, MAX, MAX + 1))
    assert [(error.line, error.reason) for error in lines.errors] == [
        (3, f"timestamp '{MAX + 1}' is out of the range of 64 bits at column 8")
    ]

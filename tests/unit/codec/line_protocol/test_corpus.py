"""What each generation of InfluxDB makes of a line: `corpus` says it, and both paths do it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any, Final, Protocol

import msgpack
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arcpipe.codec.columns import Encoded
from arcpipe.codec.line_protocol.body import Lines, encode, encode_by_column, encode_by_line
from tests.support import kernel
from tests.unit.codec.line_protocol.corpus import (
    BS,
    FAMILIES,
    GENERATIONS,
    Bad,
    Family,
    Generation,
    Kind,
    Outcome,
    Point,
    U,
)


class Path(Protocol):
    def __call__(self, body: bytes, *, escapes: Generation) -> Lines: ...


PATHS: Final[dict[str, Path]] = {"by line": encode_by_line, "by column": encode_by_column}
if kernel.can_be_built():
    PATHS["by kernel"] = kernel.by_kernel

REASONS: Final[dict[Kind, str]] = {
    "no measurement": "measurement is missing",
    "no fields": "fields are missing",
    "no tag key": "tag key is missing",
    "tag without a value": "tag '.*' has no value",
    "tag value is empty": "value of tag '.*' is missing",
    "equals sign in a tag value": "'=' in .* is not escaped",
    "no field key": "field key is missing",
    "field without a value": "field '.*' has no value",
    "field value is empty": "value of field '.*' is missing",
    "no value of any type": "is no number, boolean or quoted string",
    "too large": "is too large for a float|is out of the range of 64 bits",
    "string is open": "is not closed",
    "text after a string": "is followed by neither comma, space nor line end",
    "no timestamp": "timestamp '.*' is no integer",
    "text after the timestamp": "after the timestamp",
    "no UTF-8": "UTF-8",
    "control character": "has a control character",
    "long name": "more than 256",
    "tag twice": "is there twice",
    "tag is called time": "a tag cannot be called 'time'",
}


def _points(encoded: Encoded | None) -> Iterator[Point]:
    if encoded is None:
        return
    maps = msgpack.unpackb(encoded.body)
    for each in maps if encoded.batch else [maps]:
        tags, types = each.get("tags", []), each.get("types", {})
        for values in zip(*each["columns"].values(), strict=True):
            row = dict(zip(each["columns"], values, strict=True))
            time = row.pop("time", None)
            of_tags = {tag: row.pop(tag) for tag in tags}
            yield Point(
                each["m"], of_tags, {name: U(value) if name in types else value for name, value in row.items()}, time
            )


def _shown(points: Iterator[Point] | list[Point]) -> list[str]:
    """Points as texts that differ where values differ in type or in a bit; in no particular order."""

    def value(of: Any) -> str:
        return struct.pack(">d", of).hex() if type(of) is float else repr(of)

    return sorted(
        f"{point.measurement!r} {sorted(point.tags.items())} "
        f"{sorted((name, value(of)) for name, of in point.fields.items())} {point.time}"
        for point in points
    )


def _check(lines: Lines, outcome: Outcome, times: int = 1) -> None:
    assert _shown(_points(lines.encoded)) == _shown([each for each in outcome if isinstance(each, Point)] * times)
    bad = [each for each in outcome if isinstance(each, Bad)]
    if times == 1:
        assert [error.line for error in lines.errors] == [each.line for each in bad]
    for error, each in zip(lines.errors, bad * times, strict=True):
        assert re.search(REASONS[each.kind], error.reason), error.reason


_FAMILIES: Final = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
_GENERATIONS: Final = pytest.mark.parametrize("generation", GENERATIONS)
_PATHS: Final = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
_TIMES: Final = 12  # a line that is there so often is a block


@_PATHS
@_GENERATIONS
@_FAMILIES
def test_a_body_becomes_what_its_generation_makes_of_it(family: Family, generation: Generation, path: Path) -> None:
    for case in family.cases:
        _check(path(case.body, escapes=generation), case.outcome(generation))


@_GENERATIONS
@_FAMILIES
def test_many_lines_become_the_same(family: Family, generation: Generation) -> None:
    for case in family.cases:
        outcome = case.outcome(generation)
        if Bad("string is open") not in outcome and not case.body.endswith(b"\\"):
            _check(encode_by_column((case.body + b"\n") * _TIMES, escapes=generation), outcome, _TIMES)


def test_a_body_has_the_escapes_of_influxdb_1_and_2_unless_it_says_else() -> None:
    body = rb"m,t=a\\b f=1i"
    assert encode(body) == encode(body, escapes="v1") != encode(body, escapes="v3")


# Any name, written as a client of the generation can write it.

_names: Final = st.text(st.sampled_from([BS, BS, *',= "nxü']), min_size=1, max_size=12)
_values: Final[dict[str, float | str]] = {"1i": 1, "2.5": 2.5, r'"a\"b\\"': 'a"b\\'}

# By generation: the characters that get a backslash in measurements, tags and field keys.
_ESCAPED: Final[dict[Generation, tuple[str, str, str]]] = {
    "v1": (', ="', ", =", ', ="'),
    "v3": (", " + BS, ", =" + BS, ", =" + BS),
}


def _written(name: str, escaped: str) -> str:
    return "".join(BS + char if char in escaped else char for char in name)


@_GENERATIONS
@given(
    measurement=_names,
    tags=st.dictionaries(_names, _names, max_size=3),
    fields=st.dictionaries(_names, st.sampled_from(sorted(_values)), min_size=1, max_size=3),
)
def test_any_name_is_read_as_it_was_written(
    generation: Generation, measurement: str, tags: dict[str, str], fields: dict[str, str]
) -> None:
    # `v1` has no way to write a backslash at the end of a name.
    assume(generation == "v3" or not any(name.endswith(BS) for name in (measurement, *tags, *tags.values(), *fields)))
    assume(tags.keys().isdisjoint(fields))
    of_measurement, of_tags, of_fields = _ESCAPED[generation]
    series = [_written(measurement, of_measurement)]
    series += [f"{_written(tag, of_tags)}={_written(value, of_tags)}" for tag, value in tags.items()]
    line = f"{','.join(series)} {','.join(f'{_written(field, of_fields)}={value}' for field, value in fields.items())}"
    point = Point(measurement, tags, {field: _values[value] for field, value in fields.items()})
    for path in PATHS.values():
        _check(path(line.encode(), escapes=generation), (point,))
    _check(encode_by_column((line + "\n").encode() * _TIMES, escapes=generation), (point,), _TIMES)


# Any bytes: all paths agree, in each generation.


@_GENERATIONS
@given(
    st.lists(
        st.sampled_from([BS, BS, BS * 2, ",", "=", " ", '"', "a", "m", "f=1i", " f=1i", "\n", "#", "ü"]), max_size=24
    )
)
def test_all_paths_agree_on_any_escapes(generation: Generation, parts: list[str]) -> None:
    body = ("".join(parts) + "\n").encode() * _TIMES
    by_line = encode_by_line(body, escapes=generation)
    for path in PATHS.values():
        others = path(body, escapes=generation)
        assert by_line.errors == others.errors
        assert _shown(_points(by_line.encoded)) == _shown(_points(others.encoded))

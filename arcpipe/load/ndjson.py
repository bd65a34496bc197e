"""JSON objects, one on a line -> chunks of rows.

The whole file is read once to find columns of numbers with a fraction in some line: those are floats in each. Integers
of more than 64 bits are text, so that no digit is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, Final

import msgspec

from arcpipe.client.encoding import Stream
from arcpipe.codec.integers import fitting
from arcpipe.load.chunks import BadInput, Chunk, Row, RowChunk, within
from arcpipe.load.plan import DEFAULT_DATABASE, TIME, BadPlan, Plan
from arcpipe.load.texts import EXACT
from arcpipe.units import MB

MAX_LINE_BYTES: Final = 16 * MB
_MEASUREMENT: Final = "measurement"  # the key that names it unless the plan says otherwise
_MAX_COLUMNS: Final = 1_000_000  # of one file, whose types are remembered

_decode: Final = msgspec.json.Decoder().decode
# ValueError: an integer of more than 4300 digits.
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError)

Floats = frozenset[tuple[str, str]]
"""Measurements and columns of floats."""


def _objects(file: IO[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    while text := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        if len(text) > MAX_LINE_BYTES:
            raise BadInput(f"{name}: line {line}: it has more than {MAX_LINE_BYTES // MB} MB: remove it")
        if not text.strip():
            continue
        try:
            found = _decode(text)
        except _UNDECODABLE as error:
            raise BadInput(f"{name}: line {line}: no JSON: {error}") from None
        if not isinstance(found, dict):
            raise BadInput(
                f"{name}: line {line}: it is no JSON object but {type(found).__name__}: write one on each line"
            )
        yield line, found


def _measurement_of(record: dict[str, Any], plan: Plan, place: str) -> str:
    """Take the measurement out of a record."""
    column = plan.measurement_column or ("" if plan.measurement else _MEASUREMENT)
    found = record.pop(column, plan.measurement) if column else plan.measurement
    if not isinstance(found, str) or not found:
        raise BadInput(f"{place}: it has no {column!r} that names its measurement: give --measurement NAME")
    return found


def survey(file: IO[bytes], plan: Plan, name: str) -> Floats:
    """Find the columns that have a float in some line.

    Raises:
        BadInput: a line is no record. It is found while nothing is written: a mended file is another one.
    """
    floats: set[tuple[str, str]] = set()
    for line, record in _objects(file, name):
        place = f"{name}: line {line}"
        measurement = _measurement_of(record, plan, place)
        _values_of(measurement, record, plan, frozenset(), place)
        floats.update((measurement, column) for column, value in record.items() if isinstance(value, float))
        if len(floats) > _MAX_COLUMNS:
            raise BadInput(f"{name}: line {line}: the file has more than {_MAX_COLUMNS} columns: split it")
    return frozenset(floats)


def read(file: IO[bytes], plan: Plan, name: str, floats: Floats) -> Iterator[Chunk]:
    """Make chunks. Raises BadInput."""
    stream = Stream("msgpack", plan.database or DEFAULT_DATABASE, plan.precision)
    first = 0
    gathered: list[Row] = []
    for line, record in _objects(file, name):
        gathered.append(_row(line, record, plan, floats, f"{name}: line {line}"))
        if len(gathered) == plan.batch_records:
            yield from within(RowChunk(stream, first, gathered), plan.batch_bytes)
            first += len(gathered)
            gathered = []
    if gathered:
        yield from within(RowChunk(stream, first, gathered), plan.batch_bytes)


def _row(line: int, record: dict[str, Any], plan: Plan, floats: Floats, place: str) -> Row:
    measurement = _measurement_of(record, plan, place)
    return Row(measurement, plan.tags, _values_of(measurement, record, plan, floats, place), line)


def _values_of(measurement: str, record: dict[str, Any], plan: Plan, floats: Floats, place: str) -> dict[str, Any]:
    try:
        time = plan.time_of([column for column, value in record.items() if value is not None])
    except BadPlan as error:
        raise BadInput(f"{place}: {error}") from None
    values: dict[str, Any] = {}
    for column, value in record.items():
        if value is None:
            continue
        if column == time:
            column = TIME
        elif (measurement, column) in floats and type(value) is int and abs(value) <= EXACT:
            value = float(value)
        try:
            values[column] = fitting(value)
        except RecursionError:
            raise BadInput(f"{place}: the value of {column!r} is nested too deep: remove the line") from None
    return values

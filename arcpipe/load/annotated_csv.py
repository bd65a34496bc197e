"""InfluxDB's annotated CSV, as `influx query --raw` and the API of InfluxDB 2 export it -> chunks of rows.

    #datatype,string,long,dateTime:RFC3339,double,string,string,string
    #group,false,false,false,false,true,true,true
    #default,_result,,,,,,
    ,result,table,_time,_value,_field,_measurement,host

Tables follow each other, each with annotations and names of its own. A row with `_field` and `_value` is a record with
one field; of a pivoted table every column that is no group key is a field. Text columns of the group key are tags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any, Final, NamedTuple

from arcpipe.client.encoding import Stream
from arcpipe.load.chunks import BadInput, Chunk, Row, RowChunk, within
from arcpipe.load.csv_files import rows_of
from arcpipe.load.plan import DEFAULT_DATABASE, TIME, Plan

_ANNOTATIONS: Final = ("#datatype", "#group", "#default")
_OWN: Final = {"", "result", "table", "_start", "_stop", "_time", "_value", "_field", "_measurement"}


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _bytes(text: str) -> bytes:
    import base64

    return base64.b64decode(text, validate=True)


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "double": float,
    "long": int,
    "unsignedLong": int,
    "boolean": _boolean,
    "base64Binary": _bytes,
}


class _Table(NamedTuple):
    """The columns of a table."""

    names: list[str]
    readers: list[Callable[[str], Any]]
    defaults: list[str]
    tags: tuple[str, ...]
    is_pivoted: bool


def is_annotated(start: bytes) -> bool:
    """Tell whether a file with this beginning is annotated CSV."""
    return start.removeprefix(b"\xef\xbb\xbf").startswith(tuple(name.encode() for name in _ANNOTATIONS))


def survey(file: IO[bytes], plan: Plan, name: str) -> None:
    """Read all records, while nothing is written: a mended file is another one. Raises BadInput."""
    for _ in _records(file, plan, name):
        pass


def read(file: IO[bytes], plan: Plan, name: str) -> Iterator[Chunk]:
    """Make chunks. Raises BadInput."""
    stream = Stream("msgpack", plan.database or DEFAULT_DATABASE, plan.precision)
    first = 0
    gathered: list[Row] = []
    for row in _records(file, plan, name):
        gathered.append(row)
        if len(gathered) == plan.batch_records:
            yield from within(RowChunk(stream, first, gathered), plan.batch_bytes)
            first += len(gathered)
            gathered = []
    if gathered:
        yield from within(RowChunk(stream, first, gathered), plan.batch_bytes)


def _records(file: IO[bytes], plan: Plan, name: str) -> Iterator[Row]:
    annotations: dict[str, list[str]] = {}
    table: _Table | None = None
    for line, cells in rows_of(file, name):
        if cells and cells[0] in _ANNOTATIONS:
            annotations = annotations if table is None else {}
            annotations[cells[0]] = cells
            table = None
        elif not any(cells):
            continue
        elif table is None:
            table = _table_of(cells, annotations, plan, f"{name}: line {line}")
        else:
            yield _record(cells, table, plan, line, name)


def _table_of(names: list[str], annotations: dict[str, list[str]], plan: Plan, place: str) -> _Table:
    types = annotations.get("#datatype")
    if types is None:
        raise BadInput(f"{place}: there is no annotation #datatype ahead of the names; export with annotations")
    if "error" in names and "reference" in names:
        raise BadInput(f"{place}: the export ends in an error of InfluxDB; the next line has it")
    defaults = annotations.get("#default", [""] * len(names))
    groups = annotations.get("#group", ["false"] * len(names))
    if not len(names) == len(types) == len(defaults) == len(groups):
        raise BadInput(
            f"{place}: it has {len(names)} names, and the annotations have {len(types)} columns: export it again"
        )
    if "_time" not in names:
        raise BadInput(f"{place}: there is no column _time: have the query keep it, and export again")
    if "_measurement" not in names and not plan.measurement:
        raise BadInput(f"{place}: there is no column _measurement: give --measurement NAME")
    is_pivoted = not ("_field" in names and "_value" in names)
    others = [(column, group) for column, group in zip(names, groups, strict=True) if column not in _OWN]
    tags = tuple(column for column, group in others if not is_pivoted or group == "true")
    return _Table(names, [_READERS.get(type_, str) for type_ in types], ["", *defaults[1:]], tags, is_pivoted)


def _record(cells: list[str], table: _Table, plan: Plan, line: int, name: str) -> Row:
    if len(cells) != len(table.names):
        raise BadInput(
            f"{name}: line {line}: it has {len(cells)} values, its table has {len(table.names)} names: mend it"
        )
    values: dict[str, Any] = {}
    for column, read_value, text, default in zip(table.names, table.readers, cells, table.defaults, strict=True):
        text = text or default
        if not text:
            continue
        try:
            values[column] = read_value(text)
        except (ValueError, KeyError):
            raise BadInput(f"{name}: line {line}: column {column!r}: {text!r} is not of its #datatype") from None
    record = {column: value for column, value in values.items() if column not in _OWN}
    if not table.is_pivoted and "_field" in values and "_value" in values:
        record[str(values["_field"])] = values["_value"]
    if not record.keys() - set(table.tags):
        raise BadInput(f"{name}: line {line}: there is no value: remove the line")
    if "_time" not in values:
        raise BadInput(f"{name}: line {line}: there is no time: write one into _time, or remove the line")
    record[TIME] = values["_time"]
    return Row(str(values.get("_measurement", plan.measurement)), table.tags, record, line)

"""Whatever types a name's values have, in any order: DuckDB, pyarrow and Polars read each value in its type's column.

The model is plain Python and knows nothing of names: a column's metadata say whose values it has. Each body is a batch
of its own, so that each has files of its own, over which columns come and go.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import duckdb
import msgpack
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import arcpipe
from arcpipe.codec.columns import array_header, map_header
from arcpipe.codec.rescued import parse_rescued
from arcpipe.config.settings import Parquet
from arcpipe.lake.file_schema import ROLE, SENDERS_NAME
from arcpipe.lake.parquet_file import Rows
from arcpipe.lake.spool import Spool
from arcpipe.upload.collect import BatchTables
from arcpipe.upload.schema import SchemaRegistry

T_US = 1_790_000_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ARROW = {
    "i64": pa.int64(),
    "u64": pa.decimal128(20, 0),
    "f64": pa.float64(),
    "bool": pa.bool_(),
    "str": pa.string(),
    "bytes": pa.binary(),
    "time": pa.timestamp("us", "UTC"),
}

Body = dict[str, list[Any]]


# The model


def type_of(value: Any) -> str | None:
    """The type that a value has by itself; None for nil and nested ones."""
    match value:
        case bool():
            return "bool"
        case int():
            return "i64" if value < 2**63 else "u64"
        case float():
            return "f64"
        case str():
            return "str"
        case bytes():
            return "bytes"
        case datetime():
            return "time"
    return None


def natural(values: Sequence[Any]) -> str | None:
    """The type of most values, of which numbers are one kind; NaN is none of them."""
    kinds = Counter({"number": 0, "str": 0, "bool": 0, "bytes": 0, "time": 0})
    for value in values:
        type_ = type_of(value)
        if type_ is not None and value == value:
            kinds["number" if type_ in ("i64", "u64", "f64") else type_] += 1
    kind, count = max(kinds.items(), key=lambda item: item[1])
    if not count:
        return None
    if kind != "number":
        return kind
    return "f64" if any(type_of(value) == "f64" for value in values) else "i64"


def place_of(value: Any, type_: str) -> str | None:
    """The type of the column that has a value of a name of this type; None for `_rescued_data`."""
    if type_ == "f64" and type(value) is int and abs(value) <= 2**53:
        return "f64"
    return type_of(value)


Cell = tuple[str, str, Hashable]
"""The sender's name, the type of the column, the value."""


class Model:
    def __init__(self) -> None:
        self.types: dict[str, str] = {}

    def rows(self, body: Body) -> list[frozenset[Cell]]:
        for name, values in body.items():
            type_ = natural(values)
            if type_ is not None:
                self.types.setdefault(name, type_)
        return [
            frozenset(self._cell(name, value) for name, value in row if self._is_kept(name, value))
            for row in (list(zip(body, values, strict=True)) for values in zip(*body.values(), strict=True))
        ]

    def _is_kept(self, name: str, value: Any) -> bool:
        return value is not None and (name in self.types or value == value)

    def _cell(self, name: str, value: Any) -> Cell:
        place = place_of(value, self.types[name]) if name in self.types else None
        return (name, "rescued", repr(value)) if place is None else (name, place, comparable(value, place))


def comparable(value: Any, type_: str) -> Hashable:
    if type_ == "f64":
        return "NaN" if math.isnan(value) else (float(value), math.copysign(1, value))
    return int(value) if type_ == "u64" else value


# The lake


class Lake:
    """The files of one table, of as many batches as were written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.registry = SchemaRegistry(directory / "schema.json")
        self.files: dict[str, bytes] = {}
        self._batches = 0

    def write(self, body: Body) -> None:
        """Convert a body as a batch, twice, as after a crash; the second time with a registry that was saved."""
        self._batches += 1
        tables, files = self._convert(body, self.registry)
        self.registry.save()
        loaded = SchemaRegistry.load(self.registry.path)
        loaded.rules = self.registry.rules
        again, files_again = self._convert(body, loaded)
        assert (again.schema_changes, files_again) == (tables.schema_changes, files)
        self.registry.apply(tables.schema_changes)
        self.files |= files

    def _convert(self, body: Body, registry: SchemaRegistry) -> tuple[BatchTables, dict[str, bytes]]:
        files: dict[str, bytes] = {}

        def on_file(key: str, blob: Spool, rows: Rows) -> None:
            files[key] = bytes(blob.read_at(0, blob.size))
            blob.close()

        tables = BatchTables(
            f"batch-{self._batches}",
            "arc",
            Parquet(),
            registry,
            threads=1,
            spool=self.directory,
            on_file=on_file,
            on_dead_letter=lambda letter: pytest.fail(letter.reason),
        )
        with tables:
            tables.add(T_US, payload_of(body), 0)
            tables.finish()
        return tables, files

    def paths(self) -> list[Path]:
        paths = []
        for number, data in enumerate(self.files.values()):
            path = self.directory / f"{number}.parquet"
            path.write_bytes(data)
            paths.append(path)
        return paths


def payload_of(body: Body) -> bytes:
    columns = b"".join(
        msgpack.packb(name) + array_header(len(values)) + b"".join(map(packed, values)) for name, values in body.items()
    )
    return b"\x94\x01\xa2db\x80\x82\xa1m\xa1m\xa7columns" + map_header(len(body)) + columns


def packed(value: Any) -> bytes:
    found: bytes = msgpack.packb(value, datetime=True)
    return found


def read_by_pyarrow(paths: list[Path]) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in paths]
    pa.unify_schemas([table.schema.remove_metadata() for table in tables])  # raises where a type changes
    rows: list[dict[str, Any]] = pa.concat_tables(tables, promote_options="default").to_pylist()
    return rows


def read_by_polars(paths: list[Path]) -> list[dict[str, Any]]:
    return polars.concat([polars.read_parquet(path) for path in paths], how="diagonal").to_dicts()


def read_by_duckdb(paths: list[Path]) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        found = connection.execute("from read_parquet(?, union_by_name = true)", [[str(path) for path in paths]])
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


READERS = {"pyarrow": read_by_pyarrow, "Polars": read_by_polars, "DuckDB": read_by_duckdb}


class Owner(NamedTuple):
    name: str
    type: str


def owners_of(paths: list[Path]) -> dict[str, Owner]:
    """Whose values each column has, and of which type: one answer in all files."""
    words = {type_: word for word, type_ in ARROW.items()}
    owners: dict[str, Owner] = {}
    for path in paths:
        for field in pq.read_schema(path):
            if field.metadata[ROLE] in (b"tag", b"field"):
                name = field.metadata.get(SENDERS_NAME, field.name.encode()).decode()
                owner = Owner(name, words[field.type])
                assert owners.setdefault(field.name, owner) == owner
    assert len({name.lower() for name in owners}) == len(owners) == len(set(owners.values()))
    return owners


def cells_of(row: dict[str, Any], owners: dict[str, Owner]) -> frozenset[Cell]:
    cells: set[Cell] = set()
    for name, value in row.items():
        if value is None or name == "time":
            continue
        if name == "_rescued_data":
            cells |= {(name, "rescued", repr(odd)) for name, odd in parse_rescued(value).items()}
        else:
            owner = owners[name]
            cells.add((owner.name, owner.type, comparable(value, owner.type)))
    return frozenset(cells)


KINDS: list[st.SearchStrategy[Any]] = [
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, 2**64 - 1]),
    st.floats(),
    st.just(math.nan),
    st.booleans(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.integers(0, 2**50).map(lambda us: EPOCH + timedelta(microseconds=us)),
    st.lists(st.integers(0, 3), max_size=2),
    st.none(),
]
NAMES = st.sampled_from(["a", "A", "a_f64", "A_STR", "time_field", "Time", "b"])


@st.composite
def bodies(draw: st.DrawFn) -> list[Body]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(1, 5))
        names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
        found.append({name: draw(column(rows)) for name in names})
    return found


@st.composite
def column(draw: st.DrawFn, rows: int) -> list[Any]:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    return draw(st.lists(st.one_of(kinds), min_size=rows, max_size=rows))


@given(bodies())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([{"a": [1]}, {"a": [2.5]}])
@example([{"a": ["n/a"]}, {"a": [1.5, math.nan]}, {"a": [1, 2**53 + 1, 2**64 - 1]}])
@example([{"a": [math.nan]}, {"a": ["x"]}])
@example([{"a": [1], "A": [2.5], "a_f64": ["x"]}, {"a": [1.5], "A_STR": [b""]}, {"A": ["x"]}])
def test_every_value_is_read_in_the_column_of_its_type(
    tmp_path_factory: pytest.TempPathFactory, given_bodies: list[Body]
) -> None:
    lake, model = Lake(tmp_path_factory.mktemp("lake")), Model()
    wanted: Counter[frozenset[Cell]] = Counter()
    for body in given_bodies:
        lake.write(body)
        wanted.update(model.rows(body))
    paths = lake.paths()
    owners = owners_of(paths)
    for name, read in READERS.items():
        assert Counter(cells_of(row, owners) for row in read(paths)) == wanted, name


def test_columns_of_a_registry_of_version_1_keep_their_types_and_names(tmp_path: Path) -> None:
    """A column that was widened stays as wide; unsigned integers, and names that differ in case, stay what they are."""
    columns = '{"wide":["f64"],"un":["u64"],"V":["i64"],"v":["i64"],"host":["str",true]}'
    (tmp_path / "schema.json").write_text(f'{{"version":1,"tables":[["db","m",{columns}]]}}')
    lake = Lake(tmp_path)
    lake.registry = SchemaRegistry.load(tmp_path / "schema.json")
    lake.write({"wide": [3], "un": [2**64 - 1], "V": [1], "v": [2], "host": ["a"]})
    lake.write({"wide": [2**53 + 1], "un": [-1], "V": [1.5], "v": ["x"], "host": [1]})
    tables = [pq.read_table(path).drop_columns("time") for path in lake.paths()]
    assert [row for table in tables for row in table.to_pylist()] == [
        {"host": "a", "V": 1, "un": 2**64 - 1, "v": 2, "wide": 3.0},
        {"host": None, "host_i64": 1, "V": None, "V_f64": 1.5, "un": None, "un_i64": -1, "v": None, "v_str": "x"}
        | {"wide": None, "wide_i64": 2**53 + 1},
    ]
    assert tables[0].schema.field("un").type == pa.uint64()
    assert SchemaRegistry.load(tmp_path / "schema.json").draft("db", "m").columns["un"].type == "u64"


def test_a_batch_that_was_begun_with_other_settings_decides_the_same_about_known_columns(tmp_path: Path) -> None:
    """Settings say what new columns are; those that are recorded stay as they are."""
    lake = Lake(tmp_path)
    lake.write({"a": [1]})
    rules = lake.registry.rules
    lake.registry.rules = rules._replace(untyped_integers="f64", types=(("*", "str"),))
    lake.write({"a": [2], "b": [1]})
    assert {name: owner.type for name, owner in owners_of(lake.paths()).items()} == {
        "a": "i64",
        "b": "str",
        "b_i64": "i64",
    }


def test_no_value_of_a_column_of_misfits_is_looked_at_alone(tmp_path: Path) -> None:
    """One "n/a" first made JSON of all floats after it, at 30 times their cost."""
    floats = [n / 7 for n in range(200_000)]
    calls = {}
    for first in (0.5, "n/a"):
        lake = Lake(tmp_path)
        lake.registry.apply(lake._convert({"a": [first]}, lake.registry)[0].schema_changes)
        payload = {"a": floats}
        with counting_calls() as count:
            tables, _ = lake._convert(payload, lake.registry)
        calls[first] = count()
        assert (tables.rows, tables.rescued) == (200_000, 0)
    assert calls["n/a"] < 2 * calls[0.5] < 50_000, calls


@contextmanager
def counting_calls() -> Iterator[Callable[[], int]]:
    """Count what arcpipe calls meanwhile, in this thread and in those that begin."""
    events: list[None] = []
    package = str(Path(arcpipe.__file__).parent)

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(package):
            events.append(None)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield lambda: len(events)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)

"""Entries go in, Parquet files come out: every value once, the same files every time, memory and files bounded."""

from __future__ import annotations

import io
import random
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgpack
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe.codec.arrow.times import MAX_TIME_US, MIN_TIME_US
from arcpipe.codec.columns import array_header
from arcpipe.codec.envelope import decode_envelope
from arcpipe.codec.rescued import StillEncoded, Timestamp, parse_rescued, unpack_value
from arcpipe.config.settings import Parquet
from arcpipe.lake.file_schema import ROLE, SENDERS_NAME
from arcpipe.lake.open_files import OPEN_FILES, OpenFiles, open_file_cost, row_group_cost
from arcpipe.lake.parquet_file import Rows
from arcpipe.lake.spool import Spool
from arcpipe.units import MB
from arcpipe.upload import conversion_jobs, conversion_pool
from arcpipe.upload import convert as convert_module
from arcpipe.upload.budget import BUDGET, Budget
from arcpipe.upload.collect import BatchTables, WriterFailed
from arcpipe.upload.conversion_jobs import ConversionJobs
from arcpipe.upload.dead_letters import DeadLetter
from arcpipe.upload.parquet import OnFile, PartitionWriters
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.table_schema import ColumnSchema, TableSchema
from tests.support.values import any_value, as_sent, booleans, floats, integers, nil, same, short_text, texts
from tests.support.waiting import wait_until

NOW_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000


class File(NamedTuple):
    key: str
    data: bytes
    rows: int
    times: tuple[int, int] = (0, 0)  # the least and the greatest, as `on_file` was told

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Read by one thread and no data set: the files are small, and there are thousands."""
        return pq.ParquetFile(pa.BufferReader(self.data)).read(columns, use_threads=False)

    def rows_read(self) -> list[dict[str, Any]]:
        """The rows by the sender's names, their times as µs. A value is in its column or in one sibling of that."""
        rows: list[dict[str, Any]] = [{} for _ in range(self.rows)]
        table = self.table()
        for field, column in zip(table.schema, table.columns, strict=True):
            name = field.metadata.get(SENDERS_NAME, field.name.encode()).decode()
            if field.metadata[ROLE] in (b"time", b"rescued"):
                name = {"time_ns": "digits", "_rescued_data": "rescued JSON"}.get(name, name)
            for row, value in zip(rows, column.to_pylist(), strict=True):
                if value is None:
                    row.setdefault(name, None)
                else:
                    assert row.get(name) is None, "a value is in one column"
                    value = as_sent(value)
                    row[name] = value.ns // 1_000 if name == "time" else value
        return rows


class Result(NamedTuple):
    files: list[File]
    letters: list[DeadLetter]
    tables: BatchTables

    def rows(self) -> list[dict[str, Any]]:
        """All rows as a reader has them, values of siblings and rescued ones in their places."""
        return [with_rescued(row) for file in self.files for row in file.rows_read()]


def with_rescued(row: dict[str, Any]) -> dict[str, Any]:
    rescued = parse_rescued(row.pop("rescued JSON", None) or "{}")
    if "time" in rescued:
        row["rescued time"] = rescued.pop("time")
    row = {name: value for name, value in row.items() if value is not None}
    assert not row.keys() & rescued.keys(), "a value is in its column or rescued, not both"
    return row | rescued


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., Result]:
    def run(
        entries: Iterable[bytes | tuple[int, bytes]],
        registry: SchemaRegistry | None = None,
        threads: int = 2,
        layout: str = "arc",
        careful: Collection[tuple[str, str]] = (),
        open_files: OpenFiles = OPEN_FILES,
        budget: Budget = BUDGET,
        **parquet: Any,
    ) -> Result:
        files: list[File] = []
        letters: list[DeadLetter] = []

        def on_file(key: str, blob: Spool, rows: Rows) -> None:
            files.append(File(key, bytes(blob.read_at(0, blob.size)), rows.total, (rows.min_us, rows.max_us)))
            blob.close()

        tables = BatchTables(
            "node-1",
            layout,  # type: ignore[arg-type]
            Parquet(**parquet),
            registry or SchemaRegistry(tmp_path / "schema.json"),
            threads=threads,
            spool=tmp_path,
            on_file=on_file,
            on_dead_letter=letters.append,
            careful=careful,
            open_files=open_files,
            budget=budget,
        )
        with tables:
            for number, entry in enumerate(entries):
                timestamp, payload = entry if isinstance(entry, tuple) else (NOW_US + number, entry)
                tables.add(timestamp, memoryview(payload), number)
            tables.finish()
        for file in files[:50]:
            times = file.table(["time"])["time"].cast(pa.int64())
            assert (file.rows, file.times) == (len(times), tuple(pc.min_max(times).as_py().values())), file.key
        return Result(sorted(files), letters, tables)

    return run


def columnar(columns: dict[str, list[Any]], measurement: str = "cpu", database: str = "db", **others: Any) -> bytes:
    """The payload of an entry; values that are bytes are MessagePack already."""
    return envelope(database, columnar_map(columns, measurement, **others))


def columnar_map(columns: dict[str, list[Any]], measurement: str = "cpu", **others: Any) -> bytes:
    packed = b"".join(
        msgpack.packb(name)
        + array_header(len(values))
        + b"".join(value if type(value) is bytes else msgpack.packb(value) for value in values)
        for name, values in columns.items()
    )
    header = struct.pack(">BH", 0xDE, len(columns))
    rest = b"".join(msgpack.packb(name) + msgpack.packb(value) for name, value in others.items())
    return b"".join(
        [bytes([0x82 + len(others)]), b"\xa1m", msgpack.packb(measurement), b"\xa7columns", header, packed, rest]
    )


def envelope(database: str, body: bytes, kind: int = 1, meta: dict[str, Any] | None = None) -> bytes:
    return b"".join([b"\x94", msgpack.packb(kind), msgpack.packb(database), msgpack.packb(meta or {}), body])


def batch(*maps: bytes, database: str = "db") -> bytes:
    return envelope(database, array_header(len(maps)) + b"".join(maps), kind=2)


# Total conversion

names = st.sampled_from(["a", "b", "host", "ünïcode", "with.dot", "time_ns", "_rescued_data", ""])
column_kinds = st.sampled_from(
    [floats, integers, short_text, texts, booleans, st.one_of(integers, floats, nil), any_value]
)
time_values = st.one_of(
    st.integers(NOW_US, NOW_US + 3 * HOUR_US).map(msgpack.packb),
    st.integers(1_700_000_000, 1_700_010_000).map(msgpack.packb),
    any_value,
)


@st.composite
def entries(draw: st.DrawFn) -> list[dict[str, list[bytes]]]:
    """Columns of several entries; a column mostly, but not always, has one kind of value."""
    kinds = {name: draw(column_kinds) for name in draw(st.lists(names, min_size=1, max_size=5, unique=True))}
    found = []
    for _ in range(draw(st.integers(1, 8))):
        rows = draw(st.integers(1, 6))
        some = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, unique=True))
        columns = {name: draw(st.lists(kinds[name], min_size=rows, max_size=rows)) for name in some}
        if draw(st.booleans()):
            columns["time"] = draw(st.lists(time_values, min_size=rows, max_size=rows))
        found.append(columns)
    return found


def expected(columns: dict[str, list[bytes]], timestamp_us: int, digits: bool) -> list[dict[str, Any]]:
    rows = []
    for row in range(len(next(iter(columns.values())))):
        elements = {name: column[row] for name, column in columns.items()}
        time = elements.pop("time", b"\xc0")
        values = {name: unpack_value(element) for name, element in elements.items()}
        us, sub_us = expected_time(time)
        if us is None:
            us = timestamp_us
            values["rescued time"] = unpack_value(time)
        values |= {"time": us} | ({"digits": sub_us} if digits else {})
        rows.append({name: value for name, value in values.items() if value is not None})
    return rows


def expected_time(element: bytes) -> tuple[int | None, int]:
    """The plain reading of one time: µs and digits, or None."""
    value = unpack_value(element)
    us, sub_us = None, 0
    if type(value) is int:
        size = abs(value)
        us, sub_us = divmod(
            value * (10**9 if size < 10**11 else 10**6 if size < 10**14 else 10**3 if size < 10**17 else 1), 1000
        )
    elif type(value) is float and abs(value) < 1e12:
        us = round(value * 1e6)
    elif isinstance(value, Timestamp) and element[:2] not in (b"\xc7\x04", b"\xc7\x08"):
        us, sub_us = divmod(value.ns, 1000)
    return (us, sub_us) if us is not None and MIN_TIME_US <= us <= MAX_TIME_US else (None, 0)


def comparable(value: Any) -> str:
    """A value as text that is equal for equal values; an integer may have become the equal float.

    The digits of a timestamp below µs are cut.
    """
    value = as_sent(value)
    if type(value) is int and int(float(value)) == value:
        value = float(value)
    return "nan" if value != value else repr(value)


def canonical(rows: Iterable[dict[str, Any]]) -> list[Any]:
    """Rows without order. NaN is left out: it is null where its column had no type yet."""
    return sorted(
        sorted((name, comparable(value)) for name, value in row.items() if value == value or name == "rescued time")
        for row in rows
    )


PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@given(entries(), st.booleans())
@settings(PROPERTY, max_examples=100)
def test_every_value_is_read_back_from_its_column_or_as_rescued(
    convert: Callable[..., Result], given_entries: list[dict[str, list[bytes]]], digits: bool
) -> None:
    result = convert(map(columnar, given_entries), keep_nanoseconds=digits)
    wanted = [row for number, columns in enumerate(given_entries) for row in expected(columns, NOW_US + number, digits)]
    assert_reads_back(result, wanted)
    for file in result.files:
        times = [row["time"] for row in file.rows_read()]
        assert times == sorted(times)


def assert_reads_back(result: Result, wanted: list[dict[str, Any]]) -> None:
    assert result.letters == []
    assert canonical(result.rows()) == canonical(wanted)
    assert sum(file.rows for file in result.files) == result.tables.rows == len(wanted)


TINY = Budget(
    table_bytes=700,
    slice_rows=4,
    slice_bytes=40,
    whole_batch_maps=1,
    whole_batch_bytes=0,
    rescued_bytes=300,
    rescued_at_once_bytes=200,
    sibling_bytes=100,
    huge_value_bytes=10,
)
"""A few dozen bytes are enormous: entries are cut into slices, batches read map by map, JSON is made by parts."""


@pytest.mark.slow
@pytest.mark.parametrize("as_batch", [False, True])
@given(entries())
@settings(PROPERTY, max_examples=40)
def test_nothing_changes_where_entries_are_too_large_to_be_converted_whole(
    convert: Callable[..., Result], as_batch: bool, given_entries: list[dict[str, list[bytes]]]
) -> None:
    whole = [batch(*map(columnar_map, given_entries))]
    result = convert(whole if as_batch else map(columnar, given_entries), budget=TINY)
    wanted = [
        row
        for number, columns in enumerate(given_entries)
        for row in expected(columns, NOW_US if as_batch else NOW_US + number, digits=False)
    ]
    assert_reads_back(result, wanted)


def test_a_slice_has_a_dead_letter_of_its_own(convert: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """They would overwrite one another otherwise."""

    def failing(*_: Any) -> Any:
        raise ValueError("because a test wants it")

    monkeypatch.setattr(conversion_jobs, "convert", failing)
    result = convert([columnar({"value": [*range(100)]})], budget=TINY)
    assert result.files == []
    assert len({(letter.origin, letter.part) for letter in result.letters}) == len(result.letters) == 25
    values = [
        value
        for letter in sorted(result.letters, key=lambda letter: letter.part)
        for value in msgpack.unpackb(letter.payload)[3]["columns"]["value"]
    ]
    assert values == [*range(100)]


def test_arrays_and_maps_too_large_for_json_are_kept_encoded(convert: Callable[..., Result]) -> None:
    large = msgpack.packb([None] * (1 << 20))
    result = convert([columnar({"value": [1, large]})])
    assert result.rows() == [{"time": NOW_US, "value": 1}, {"time": NOW_US, "value": StillEncoded(large)}]


def test_duckdb_reads_the_same_values(convert: Callable[..., Result], tmp_path: Path) -> None:
    result = convert(
        [
            columnar({"time": [NOW_US, NOW_US + 1], "f": [1.5, None], "s": ["é", "x"], "n": [1, 2**63 - 1]}),
            columnar({"time": [NOW_US + 2], "f": ["odd"], "b": [True], "n": [-(2**63)]}),
        ]
    )
    for file in result.files:
        (tmp_path / "file.parquet").write_bytes(file.data)
    rows = duckdb.execute(
        f"select epoch_us(time), f, s, n, b, f_str from '{tmp_path / 'file.parquet'}' order by time"
    ).fetchall()
    assert rows == [
        (NOW_US, 1.5, "é", 1, None, None),
        (NOW_US + 1, None, "x", 2**63 - 1, None, None),
        (NOW_US + 2, None, None, -(2**63), True, "odd"),
    ]


def test_a_row_without_a_time_has_the_timestamp_of_its_entry(convert: Callable[..., Result]) -> None:
    result = convert([(NOW_US + 7, columnar({"a": [1, 2]})), (NOW_US + 9, columnar({"a": [3], "time": [None]}))])
    assert [(row["time"], row["a"]) for row in result.rows()] == [(NOW_US + 7, 1), (NOW_US + 7, 2), (NOW_US + 9, 3)]


@pytest.mark.parametrize("road", ["columnar", "batch", "large batch", "batch with a bad part", "deep"])
def test_a_row_without_a_time_has_the_time_that_the_clock_showed(convert: Callable[..., Result], road: str) -> None:
    """A row of an entry that tells how far the clock was behind has the time of the clock."""
    meta = {"clock": -HOUR_US, "precision": "us"}
    budget = BUDGET
    maps = [columnar_map({"a": [1]}), columnar_map({"a": [2], "time": [NOW_US + 5]})]
    match road:
        case "columnar":
            payloads = [envelope("db", one, meta=meta) for one in maps]
        case "deep":
            nested = b"\x91" * 2000 + b"\x01"
            maps[0] = columnar_map({"a": [1], "b": [nested]})
            payloads = [envelope("db", one, meta=meta) for one in maps]
        case "batch with a bad part":
            bad = bytes([0x81]) + b"\xa1m\xa1x"
            payloads = [envelope("db", array_header(3) + maps[0] + bad + maps[1], kind=2, meta=meta)]
        case _:
            if road == "large batch":
                budget = Budget(whole_batch_bytes=1, whole_batch_maps=1)
            payloads = [envelope("db", array_header(2) + b"".join(maps), kind=2, meta=meta)]
    result = convert([(NOW_US + 7, payload) for payload in payloads], budget=budget)
    assert sorted((row["time"], row["a"]) for row in result.rows()) == [(NOW_US + 7 - HOUR_US, 1), (NOW_US + 5, 2)]
    assert len(result.letters) == (road == "batch with a bad part")


def test_no_clock_leads_to_a_time_before_the_epoch(convert: Callable[..., Result]) -> None:
    result = convert([(7, envelope("db", columnar_map({"a": [1]}), meta={"clock": -HOUR_US}))])
    assert [row["time"] for row in result.rows()] == [0]


def test_no_clock_leads_to_a_time_after_all_others(convert: Callable[..., Result]) -> None:
    result = convert([(2**64 - 1, envelope("db", columnar_map({"a": [1]}), meta={"clock": HOUR_US}))])
    assert [row["time"] for row in result.rows()] == [MAX_TIME_US]
    assert result.letters == []


def test_columns_of_some_of_many_shapes_are_null_in_the_rows_of_all_others(convert: Callable[..., Result]) -> None:
    shapes = [{f"f{number % 7}", f"g{number % 11}", f"h{number}"} for number in range(77)]
    given = [columnar({name: [name, f"{name}!"] for name in sorted(shape)}, tags=["f1", "g2"]) for shape in shapes]
    result = convert(given)
    rows = [{name: value for name, value in row.items() if value is not None} for row in result.rows()]
    wanted = [
        {"time": NOW_US + number, **{name: name + end for name in shape}}
        for number, shape in enumerate(shapes)
        for end in ("", "!")
    ]
    assert rows == wanted


def test_a_damaged_timestamp_of_an_entry_is_the_last_moment_that_there_is(convert: Callable[..., Result]) -> None:
    result = convert([(2**64 - 1, columnar({"a": [1]}))])
    assert [row["time"] for row in result.rows()] == [MAX_TIME_US]


def test_a_time_that_is_none_is_rescued_and_the_entry_timestamp_stands_in(convert: Callable[..., Result]) -> None:
    result = convert([(NOW_US, columnar({"time": ["soon", float("nan"), NOW_US + 5], "a": [1, 2, 3]}))])
    assert result.tables.rescued == 2
    rows = result.rows()
    assert [row["time"] for row in rows] == [NOW_US, NOW_US, NOW_US + 5]
    assert same(rows[0]["rescued time"], "soon")
    assert same(rows[1]["rescued time"], float("nan"))


def test_a_float_of_the_year_10000_is_no_time(convert: Callable[..., Result]) -> None:
    """The last microsecond of the year 9999 is no float64: as one it is the first of the year 10000."""
    last = 253_402_300_799.0
    result = convert([(NOW_US, columnar({"time": [last, last + 1], "a": [1, 2]}))], layout="hive")
    rows = sorted(result.rows(), key=lambda row: row["a"])
    assert [row["time"] for row in rows] == [int(last) * 1_000_000, NOW_US]
    assert same(rows[1]["rescued time"], last + 1)
    assert result.letters == []


def test_the_precision_of_the_envelope_is_that_of_its_times(convert: Callable[..., Result]) -> None:
    result = convert([envelope("db", columnar_map({"time": [5], "a": [1]}), meta={"precision": "s"})])
    assert [row["time"] for row in result.rows()] == [5_000_000]


@pytest.mark.slow
def test_rows_of_many_hours_go_to_a_file_for_each_hour(convert: Callable[..., Result]) -> None:
    times = [NOW_US + hour * HOUR_US + second * 1_000_000 for second in range(60) for hour in range(100)]
    result = convert([columnar({"time": times[::-1], "n": list(range(6000))})])
    assert len(result.files) == 100
    assert result.files[0].key == "db/cpu/2023/11/14/22/cpu_20231114T221320000000_node-1_0.parquet"
    assert sorted(row["n"] for row in result.rows()) == list(range(6000))
    for file in result.files:
        assert len({row["time"] // HOUR_US for row in file.rows_read()}) == 1


def test_the_hive_layout_names_its_parts(convert: Callable[..., Result]) -> None:
    (file,) = convert([columnar({"time": [NOW_US], "a": [1]})], layout="hive").files
    assert file.key.startswith("db/cpu/year=2023/month=11/day=14/hour=22/cpu_")


def test_tags_come_first_and_are_called_tags(convert: Callable[..., Result]) -> None:
    (file,) = convert([columnar({"z": [1.5], "host": ["a"], "b": [1], "area": ["x"]}, tags=["host", "area"])]).files
    schema = file.table().schema
    assert schema.names == ["time", "area", "host", "b", "z"]
    assert [field.metadata[b"arcpipe.role"] for field in schema] == [b"time", b"tag", b"tag", b"field", b"field"]
    assert schema.metadata[b"arcpipe.measurement"] == b"cpu"


def test_a_column_of_nothing_but_nil_is_left_out_unless_its_type_is_known(convert: Callable[..., Result]) -> None:
    (file,) = convert([columnar({"a": [1], "b": [None]})]).files
    assert file.table().schema.names == ["time", "a"]
    (file,) = convert([columnar({"a": [1], "b": [None]}, types={"b": "str"})]).files
    assert file.table().schema.field("b").type == pa.string()


def test_types_that_senders_say_decide(convert: Callable[..., Result]) -> None:
    (file,) = convert([columnar({"a": [1], "b": [1], "c": [1]}, types={"a": "u64", "b": "f64", "c": "i64"})]).files
    assert [str(field.type) for field in file.table().schema][1:] == ["int64", "double", "int64"]


def test_types_stay_from_batch_to_batch(convert: Callable[..., Result], tmp_path: Path) -> None:
    registry = SchemaRegistry(tmp_path / "schema.json")
    first = convert([columnar({"a": [1.5], "b": ["x"]})], registry)
    registry.apply(first.tables.schema_changes)
    second = convert([columnar({"a": [2], "b": [7]})], registry)
    (change,) = second.tables.schema_changes
    assert change.columns == {"a": ColumnSchema("f64"), "b": ColumnSchema("str", siblings={"i64": "b_i64"})}
    (file,) = second.files
    assert [str(field.type) for field in file.table().schema] == ["timestamp[us, tz=UTC]", "double", "string", "int64"]
    assert second.rows() == [{"time": NOW_US, "a": 2.0, "b": 7}]


def test_a_batch_leaves_the_registry_alone(convert: Callable[..., Result], tmp_path: Path) -> None:
    registry = SchemaRegistry(tmp_path / "schema.json")
    convert([columnar({"a": [1]})], registry)
    assert len(registry) == 0


def test_a_column_or_sibling_that_is_new_begins_another_file(convert: Callable[..., Result]) -> None:
    result = convert(
        [
            columnar({"a": [1, 2]}),
            columnar({"a": [3, 4]}),
            columnar({"a": [1.5, 6]}),
            columnar({"b": ["x", "y"]}),
            columnar({"a": [2.5, None]}),
        ],
        row_group_rows=2,
    )
    assert [file.key.rpartition("_")[2] for file in result.files] == ["0.parquet", "1.parquet", "2.parquet"]
    assert [file.rows for file in result.files] == [4, 2, 4]
    assert [file.table().schema.names for file in result.files] == [
        ["time", "a"],
        ["time", "a", "a_f64"],
        ["time", "a", "a_f64", "b"],
    ]
    assert [row.get("a") for row in result.rows()] == [1, 2, 3, 4, 1.5, 6, None, None, 2.5, None]


def test_columns_that_come_and_go_are_null_where_they_are_not(convert: Callable[..., Result]) -> None:
    payloads = [
        columnar({"time": [NOW_US + n], "a" if n % 2 else "b": [n], f"c{n % 3}": [f"text {n}"]}) for n in range(9_000)
    ]
    (file,) = convert(payloads).files
    for n, row in enumerate(file.rows_read()):
        wanted = {"time": NOW_US + n, "a" if n % 2 else "b": n, f"c{n % 3}": f"text {n}"}
        assert {name: value for name, value in row.items() if value is not None} == wanted


def test_repeated_tags_are_read_back_as_they_were(convert: Callable[..., Result]) -> None:
    chunks: list[list[Any]] = [[f"host-{n}" for n in range(50)], [None, *("ü" for _ in range(49))], ["x" * 300] * 50]
    payloads = [
        columnar({"time": [NOW_US + 50 * n + row for row in range(50)], "host": chunks[n * n % 3]}) for n in range(200)
    ]
    (file,) = convert(payloads).files
    assert file.table().column("host").to_pylist() == [value for n in range(200) for value in chunks[n * n % 3]]


def test_repeated_text_that_fits_no_column_is_kept_in_every_row(convert: Callable[..., Result], tmp_path: Path) -> None:
    text = [f"text {n}" if n % 7 else None for n in range(20)]
    text[0] = "first"
    registry = SchemaRegistry(tmp_path / "schema.json", [TableSchema("db", "cpu", {"s": ColumnSchema("i64")})])
    result = convert([columnar({"time": text, "s": text, "n": [n] * 20}) for n in range(30)], registry)
    wanted = [
        {"time": NOW_US + n, "n": n} | ({"rescued time": value, "s": value} if value else {})
        for n in range(30)
        for value in text
    ]
    assert canonical(result.rows()) == canonical(wanted)
    assert result.tables.rescued == 30 * sum(value is not None for value in text)


def test_text_of_few_and_of_many_values_lives_in_one_file(convert: Callable[..., Result]) -> None:
    def text(n: int, few: bool) -> dict[str, list[Any]]:
        return {
            "time": [NOW_US + n * 5000 + row for row in range(5000)],
            "s": [str(row % 9 if few else row) for row in range(5000)],
        }

    for order in ([True, False, True], [False, True, False]):
        (file,) = convert([columnar(text(n, few)) for n, few in enumerate(order)], row_group_rows=5000).files
        assert file.table().schema.field("s").type == pa.string()
        assert file.table().column("s").to_pylist() == [
            value for n, few in enumerate(order) for value in text(n, few)["s"]
        ]


def test_unsorted_rows_are_sorted_by_time_and_stay_whole(convert: Callable[..., Result]) -> None:
    count = 20_000
    times = [NOW_US + (row * 7_919) % count for row in range(count)]
    columns: dict[str, list[Any]] = {
        "time": times,
        "n": list(range(count)),
        "s": [f"s{row % 11}" for row in range(count)],
        "x": times,
    }
    (file,) = convert([columnar(columns)]).files
    rows = file.rows_read()
    assert [row["time"] for row in rows] == sorted(times)
    assert all(row["x"] == row["time"] == times[row["n"]] and row["s"] == f"s{row['n'] % 11}" for row in rows)
    assert file.table().schema.names == ["time", "n", "s", "x"]


# What is no columnar map


def test_an_entry_that_is_no_envelope_is_a_dead_letter(convert: Callable[..., Result]) -> None:
    """An entry that is no envelope is a dead letter, and the rest goes on."""
    result = convert([columnar({"a": [1]}), b"\xc1 what is this", columnar({"a": [2]})])
    (letter,) = result.letters
    assert (letter.payload, letter.origin, letter.part) == (b"\xc1 what is this", 1, 0)
    assert [row["a"] for row in result.rows()] == [1, 2]


@pytest.mark.parametrize(
    "columns",
    [
        {"a": [1, 2], "b": [1]},
        {"a": [], "b": [1]},
        {"b": [1], "a": []},
        {"a": [1], "b": ["x"] * 20},
        {"a": ["y" * 900, "z"], "b": ["x" * 900]},
        {},
    ],
)
def test_columns_of_different_lengths_are_a_dead_letter(
    convert: Callable[..., Result], columns: dict[str, list[Any]]
) -> None:
    good = {name: values and ["x" * 900] for name, values in columns.items()} or {"a": ["x"]}
    good = {name: ["x" * 900] for name in good}
    result = convert([columnar(good), columnar(columns, tags=["a"]), columnar(good)])
    (letter,) = result.letters
    assert (letter.database, letter.origin) == ("db", 1)
    assert decode_envelope(letter.payload) == decode_envelope(columnar(columns, tags=["a"]))
    assert result.tables.rows == 2


def test_a_column_that_is_no_array_is_a_dead_letter(convert: Callable[..., Result]) -> None:
    good = columnar({"a": [1], "b": [1]})
    for bad in (good.replace(b"\xa1a\x91\x01", b"\xa1a\x01"), good.replace(b"\xa1b\x91\x01", b"\xa1b\x81\x01\x01")):
        result = convert([good, bad, good])
        assert [letter.origin for letter in result.letters] == [1]
        assert result.tables.rows == 2


def test_a_bad_map_does_not_take_its_batch_along(convert: Callable[..., Result]) -> None:
    good, bad = columnar_map({"a": [1]}), b"\x81\xa1m\xa3cpu"
    uneven = columnar_map({"a": [1], "b": [1, 2]})
    result = convert([batch(good, bad, uneven, good), batch(good, good)])
    assert sorted((letter.origin, letter.part, letter.payload) for letter in result.letters) == [
        (0, 1, envelope("db", bad)),
        (0, 2, columnar({"a": [1], "b": [1, 2]}).replace(b"\xde\x00\x02", b"\x82")),
    ]
    assert result.tables.rows == 4


def test_what_fails_alone_is_a_dead_letter_and_the_rest_is_converted(
    convert: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fragile(pieces: Any, *others: Any) -> Any:
        if any(b"poison" in column.data.tobytes() for piece in pieces for column in piece.columns):
            raise RuntimeError("cannot digest this")
        return convert_module.convert(pieces, *others)

    monkeypatch.setattr(conversion_jobs, "convert", fragile)
    payloads = [
        columnar({"a": ["poison" if n in (3, 77) else "fine", "x"], f"b{n % 3}": [n, n]}, tags=["a"]) for n in range(99)
    ]
    result = convert(payloads)
    assert sorted((letter.origin, letter.reason) for letter in result.letters) == [
        (3, "RuntimeError: cannot digest this"),
        (77, "RuntimeError: cannot digest this"),
    ]
    for letter in result.letters:
        assert decode_envelope(letter.payload) == decode_envelope(payloads[int(str(letter.origin))])
    numbers = sorted(value for row in result.rows() for name, value in row.items() if name.startswith("b"))
    assert numbers == sorted([n for n in range(99) if n not in (3, 77)] * 2)


def test_columns_nested_deeper_than_any_recursion_are_rescued(convert: Callable[..., Result]) -> None:
    deep = b"\x91" * 5_000 + b"\x01"
    result = convert([columnar({"a": [1, deep]}), batch(columnar_map({"a": [deep]}), columnar_map({"a": [2]}))])
    assert result.letters == []
    assert [row["a"] for row in result.rows()] == [1, unpack_value(deep), unpack_value(deep), 2]


def test_segment_start_and_end_entries_are_no_rows(convert: Callable[..., Result]) -> None:
    result = convert([envelope("", b"\xc0", kind=0), columnar({"a": []}), envelope("", b"\xc0", kind=255)])
    assert (result.files, result.letters) == ([], [])


def test_arc_payloads_become_rows(convert: Callable[..., Result]) -> None:
    rows = [
        {"measurement": "cpu", "_database": "prod", "time": NOW_US, "fields": {"a": 1.5}, "tags": {"host": "h"}},
        {"measurement": "cpu", "timestamp": NOW_US // 1000, "a": 2.5, "host": "h"},
    ]
    prefixed = b"\x01\x00\x03old" + msgpack.packb({"m": "mem", "columns": {"t": [NOW_US], "a": [1]}})
    result = convert([msgpack.packb(rows), prefixed])
    assert result.letters == []
    assert [(file.key.split("/")[:2], row) for file in result.files for row in file.rows_read()] == [
        (["default", "cpu"], {"time": NOW_US, "a": 2.5, "host": "h"}),
        (["old", "mem"], {"time": NOW_US, "a": 1}),
        (["prod", "cpu"], {"time": NOW_US, "a": 1.5, "host": "h"}),
    ]


# Bounds, and the same files every time


def mixed_batch() -> list[bytes]:
    payloads = []
    for n in range(1_500):
        times = [NOW_US + n * 1_000_000 + row * 50 for row in range(1 + n % 5)]
        columns: dict[str, list[Any]] = {"time": times, "v": [n / 4] * len(times)}
        columns[f"extra{n % 7}"] = ["x" * (n % 40), *range(len(times) - 1)]
        payloads.append(columnar(columns, f"m{n % 50 if n % 3 else 0}"))
    return payloads


@pytest.mark.slow
def test_doing_it_again_makes_the_same_files_however_many_threads(convert: Callable[..., Result]) -> None:
    budget = Budget(collected_bytes=200_000, jobs_bytes=400_000)
    few = OpenFiles(files=8, tables=4, cost=3 * MB)
    results = [
        convert(mixed_batch(), threads=threads, open_files=few, budget=budget, row_group_rows=300)
        for threads in (1, 4, 2)
    ]
    assert len(results[0].files) > 60
    for result in results[1:]:
        assert result.files == results[0].files
        assert result.tables.schema_changes == results[0].tables.schema_changes


@pytest.mark.slow
def test_the_size_of_memory_windows_does_not_lose_rows(convert: Callable[..., Result]) -> None:
    plain = convert(mixed_batch())
    budget = Budget(collected_bytes=60_000, table_bytes=9_000, release_bytes=10_000, compact_entries=20)
    small = convert(mixed_batch(), budget=budget)
    assert canonical(small.rows()) == canonical(plain.rows())
    assert len(small.files) > len(plain.files)


@pytest.mark.slow
def test_thousands_of_measurements_in_one_batch(convert: Callable[..., Result]) -> None:
    payloads = [
        batch(*(columnar_map({"time": [NOW_US + n], "v": [n], "s": ["x"]}, f"m{n * 4 + part}") for part in range(4)))
        for n in range(500)
    ]
    result = convert(payloads)
    assert len(result.files) == 2_000
    assert result.tables.rows == 2_000
    assert len({file.key.split("/")[1] for file in result.files}) == 2_000


@pytest.mark.slow
def test_many_tables_of_single_rows_are_not_scattered_over_many_files(convert: Callable[..., Result]) -> None:
    payloads = [columnar({"time": [NOW_US + n], "v": [n], "s": ["x"]}, f"m{n % 300}") for n in range(9_000)]
    result = convert(payloads, budget=Budget(collected_bytes=3_000_000))
    assert sorted(row["v"] for row in result.rows()) == list(range(9_000))
    assert len(result.files) < 600


@pytest.mark.parametrize(("measurements", "is_one_each"), [(40, True), (64, True), (70, False)])
def test_some_dozens_of_measurements_make_a_file_each_however_large_the_batch(
    convert: Callable[..., Result], measurements: int, is_one_each: bool
) -> None:
    """Of more measurements, files are finished whenever entries are converted to free memory."""
    payloads = [
        columnar({"time": [NOW_US + n], "v": [n], "s": ["x" * 5_000]}, f"m{n % measurements}") for n in range(1_400)
    ]
    result = convert(payloads, budget=Budget(collected_bytes=1_500_000))
    assert sorted(row["v"] for row in result.rows()) == list(range(1_400))
    assert (len(result.files) == measurements) is is_one_each


@pytest.mark.slow
def test_rows_of_a_small_table_that_grows_keep_their_order(
    convert: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small tables are converted together, by others' jobs: what comes later waits for them."""
    bundle_job = ConversionJobs._bundle_job

    def slow(*args: Any) -> None:
        time.sleep(0.02)
        bundle_job(*args)

    monkeypatch.setattr(ConversionJobs, "_bundle_job", slow)
    budget = Budget(collected_bytes=100_000, block_entries=1)  # in a block, the table would be large at once
    grows = [columnar({"time": [NOW_US + n] * 30, "v": [n] * 30}, "grows") for n in range(200)]
    others = [columnar({"time": [NOW_US], "v": [0]}, f"m{n}") for n in range(100)]
    few = OpenFiles(tables=16)
    result = convert([*grows[:10], *others, *grows[10:]], budget=budget, open_files=few, row_group_rows=1_000)
    grown = [file for file in result.files if "/grows/" in file.key]
    assert len(grown) > 1
    assert [file.key.rpartition("_")[2] for file in grown] == [f"{n}.parquet" for n in range(len(grown))]
    assert [row["v"] for file in grown for row in file.rows_read()] == sorted(list(range(200)) * 30)


@pytest.mark.slow
def test_columns_beyond_the_bound_are_rescued(convert: Callable[..., Result]) -> None:
    columns = {f"c{n}": [n] for n in range(5_000)}
    result = convert([columnar(columns)])
    assert result.rows() == [{"time": NOW_US, **{name: values[0] for name, values in columns.items()}}]
    assert result.tables.rescued == 5_000 - 4_096


def test_an_entry_too_large_to_be_decoded_at_once_is_converted_by_parts(convert: Callable[..., Result]) -> None:
    columns: dict[str, list[Any]] = {
        "n": list(range(5_000)),
        "s": [f"text {n}" for n in range(5_000)],
        "mixed": [n if n % 3 else "x" for n in range(5_000)],
    }
    result = convert([columnar(columns)], budget=Budget(table_bytes=10_000, slice_rows=600))
    assert sorted(row["n"] for row in result.rows()) == list(range(5_000))
    assert sum(pq.ParquetFile(io.BytesIO(file.data)).num_row_groups for file in result.files) >= 8


def test_new_columns_beside_many_rows_do_not_multiply_memory(
    convert: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def watching(pieces: Any, *others: Any) -> Any:
        converted = convert_module.convert(pieces, *others)
        sizes.append(converted.table.num_rows * converted.table.num_columns * 8)
        return converted

    monkeypatch.setattr(conversion_jobs, "convert", watching)
    result = convert(
        [columnar({"a": [1] * 1_000}), columnar({f"c{n}": [n] for n in range(1_000)}), columnar({"a": [1] * 1_000})],
        budget=Budget(table_bytes=100_000),
    )
    assert result.tables.rows == 2_001
    assert max(sizes) < 200_000


@pytest.mark.slow
def test_a_file_stays_below_its_largest_size(convert: Callable[..., Result]) -> None:
    source = random.Random(1)
    noise = [source.random() for _ in range(400_000)]
    payloads = [
        columnar({"time": [NOW_US + row for row in range(start, start + 50_000)], "v": noise[start : start + 50_000]})
        for start in range(0, 400_000, 50_000)
    ]
    for row_group_rows in (50_000, 1_000_000):
        result = convert(payloads, max_file_mb=1, row_group_rows=row_group_rows)
        assert len(result.files) >= 3
        assert all(len(file.data) <= 1 << 20 for file in result.files)
        assert sum(file.rows for file in result.files) == 400_000


def interrupted(tmp_path: Path, on_file: OnFile, error: type[BaseException] | None) -> None:
    """A batch whose callback raises, or (`error`) whose caller does before it is finished."""
    with BatchTables(
        "b",
        "arc",
        Parquet(row_group_rows=10),
        SchemaRegistry(tmp_path / "schema.json"),
        threads=2,
        spool=tmp_path,
        on_file=on_file,
        on_dead_letter=lambda letter: None,
    ) as tables:
        for n in range(100):
            tables.add(NOW_US, columnar({"a": [n]}), n)
        if error is not None:
            raise error
        tables.finish()


def converting_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("convert")]


def test_what_a_callback_raises_ends_the_batch(tmp_path: Path) -> None:
    def full(key: str, blob: Spool, rows: Rows) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        interrupted(tmp_path, full, None)
    assert converting_threads() == []


def test_leaving_in_the_middle_ends_the_threads_and_hands_nothing_out(tmp_path: Path) -> None:
    files: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, lambda key, blob, rows: files.append(key), KeyboardInterrupt)
    assert files == []
    assert converting_threads() == []


# What the Parquet writer refuses


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[pa.Table], None]], None]:
    """Plants something that looks at each row group before the real writer gets it, and may raise."""

    def plant(look: Callable[[pa.Table], None]) -> None:
        write = pq.ParquetWriter.write_table

        def watched(writer: pq.ParquetWriter, table: pa.Table, *args: Any, **named: Any) -> None:
            look(table)
            write(writer, table, *args, **named)

        monkeypatch.setattr(pq.ParquetWriter, "write_table", watched)

    return plant


def refuse_poison(table: pa.Table) -> None:
    for name in table.schema.names:
        if table.schema.field(name).type == pa.string() and "poison" in table.column(name).to_pylist():
            raise pa.ArrowNotImplementedError("no such poison")


def poisoned_batch() -> list[bytes]:
    """Entries of a large and of small tables; some of the large one's, and one small table, hold poison."""
    payloads = []
    for n in range(400):
        value = "poison" if n in (33, 34, 371) else f"fine {n}"
        payloads.append(columnar({"time": [NOW_US + n * HOUR_US // 50] * 2, "s": [value, "x"], "n": [n, n]}, "large"))
        small = "poison" if n == 250 else "fine"
        payloads.append(columnar({"time": [NOW_US], "s": [small], "n": [n]}, f"small-{n % 40}"))
    return payloads


POISONED = frozenset({("db", "large"), ("db", "small-10")})


SMALL_WINDOWS = Budget(collected_bytes=40_000, small_table_bytes=3_000)


@pytest.mark.slow
def test_what_the_writer_refuses_names_its_tables_and_ends(
    convert: Callable[..., Result], refusing: Callable[..., None]
) -> None:
    refusing(refuse_poison)
    for threads in (1, 2):
        with pytest.raises(WriterFailed, match=r"'large' in database 'db' and of 1 other.*no such poison") as caught:
            convert(poisoned_batch(), threads=threads, budget=SMALL_WINDOWS)
        assert (caught.value.table, caught.value.tables) == (("db", "large"), POISONED)
    assert converting_threads() == []


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_careful_tables_make_a_refused_row_a_dead_letter(
    convert: Callable[..., Result], refusing: Callable[..., None], threads: int
) -> None:
    """In careful tables what the writer refuses is a dead letter and the rest is written."""
    refusing(refuse_poison)
    payloads = poisoned_batch()
    result = convert(payloads, threads=threads, careful=POISONED, budget=SMALL_WINDOWS)
    refused = [66, 68, 501, 742]
    assert sorted((letter.origin, letter.reason) for letter in result.letters) == [
        (number, "the Parquet writer refuses it: ArrowNotImplementedError: no such poison") for number in refused
    ]
    for letter in result.letters:
        assert decode_envelope(letter.payload) == decode_envelope(payloads[int(str(letter.origin))])
    kept = [payload for number, payload in enumerate(payloads) if number not in refused]
    wanted = [value for payload in kept for value in msgpack.unpackb(payload)[3]["columns"]["n"]]
    assert sorted(row["n"] for row in result.rows()) == sorted(wanted)
    assert result.tables.rows == sum(file.rows for file in result.files) == len(wanted)
    assert len({file.key for file in result.files}) == len(result.files)
    again = convert(payloads, threads=3 - threads, careful=POISONED, budget=SMALL_WINDOWS)
    assert again.files == result.files
    assert sorted(again.letters) == sorted(result.letters)


@pytest.mark.slow
def test_a_careful_table_changes_no_file_of_another_one(convert: Callable[..., Result]) -> None:
    """Objects of an interrupted pass are put again under the same keys."""
    plain, careful = (convert(poisoned_batch(), careful=names, budget=SMALL_WINDOWS) for names in ((), POISONED))
    others = [[file for file in result.files if "/small-1/" in file.key] for result in (plain, careful)]
    assert others[0] == others[1] != []
    assert canonical(plain.rows()) == canonical(careful.rows())


def test_rows_of_many_hours_that_are_refused_leave_no_half_of_themselves(
    convert: Callable[..., Result], refusing: Callable[..., None]
) -> None:
    """The entry's first hours are written well before the one that is refused."""
    refusing(refuse_poison)
    times = [NOW_US + hour * HOUR_US for hour in range(8)]
    payloads = [
        columnar({"time": times, "n": [n] * 8, "s": ["x"] * 7 + ["poison" if n == 2 else "x"]}) for n in range(5)
    ]
    result = convert(payloads, careful=[("db", "cpu")])
    assert [letter.origin for letter in result.letters] == [2]
    assert sorted(row["n"] for row in result.rows()) == sorted([0, 1, 3, 4] * 8)


def test_a_refused_slice_of_an_enormous_entry_is_a_dead_letter_of_its_own(
    convert: Callable[..., Result], refusing: Callable[..., None]
) -> None:
    def refuse_42(table: pa.Table) -> None:
        if 42 in table.column("value").to_pylist():
            raise ValueError("not this one")

    refusing(refuse_42)
    with pytest.raises(WriterFailed):
        convert([columnar({"value": [*range(100)]})], budget=TINY)
    result = convert([columnar({"value": [*range(100)]})], careful=[("db", "cpu")], budget=TINY)
    (letter,) = result.letters
    lost = msgpack.unpackb(letter.payload)[3]["columns"]["value"]
    assert 42 in lost
    assert sorted([*lost, *(row["value"] for row in result.rows())]) == [*range(100)]


def test_a_complaint_of_parquet_is_a_refusal_and_a_full_disk_is_none(
    convert: Callable[..., Result], refusing: Callable[..., None]
) -> None:
    """pyarrow raises OSError for both; that of the system has a number."""
    errors = iter([OSError("Parquet cannot encode this"), OSError(28, "No space left on device"), MemoryError()])

    def fail(table: pa.Table) -> None:
        raise next(errors)

    refusing(fail)
    with pytest.raises(WriterFailed, match="OSError: Parquet cannot encode this"):
        convert([columnar({"a": [1]})])
    with pytest.raises(OSError, match="No space"):
        convert([columnar({"a": [1]})])
    with pytest.raises(MemoryError):
        convert([columnar({"a": [1]})])


def test_a_spool_that_cannot_be_written_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """The writer comes to it through Arrow, which must not make another error of it."""
    tables = BatchTables(
        "b", "arc", Parquet(compression="none"), SchemaRegistry(tmp_path / "schema.json"), threads=2,
        spool=tmp_path / "missing", on_file=lambda key, blob, rows: blob.close(), on_dead_letter=lambda letter: None,
    )  # fmt: skip
    with tables:
        tables.add(NOW_US, columnar({"a": [msgpack.packb(random.Random(1).randbytes(17 << 20))]}), 0)
        with pytest.raises(FileNotFoundError, match="missing"):
            tables.finish()


# Threads


def test_threads_that_cannot_start_are_an_error_and_no_wait(
    convert: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name == "convert_1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(OSError, match="cannot start thread 2 to convert with"):
        convert([columnar({"a": [1]})])
    assert converting_threads() == []


def test_what_a_job_raises_ends_no_thread_and_stops_no_lane() -> None:
    errors: list[BaseException] = []
    done: list[int] = []
    pool = conversion_pool.Pool(1, "convert", errors.append)
    lane = conversion_pool.Lane(pool)

    def fail() -> None:
        raise SystemExit("because a test wants it")

    lane.submit(fail)
    lane.submit(lambda: done.append(1))
    pool.submit(fail)
    pool.submit(lambda: done.append(2))
    pool.start()
    pool.stop()
    assert sorted(done) == [1, 2]
    assert len(errors) == 2


def test_open_files_begin_only_once_others_have_given_back_their_share() -> None:
    """A table that had all the memory has to finish files before another one may open any."""
    in_hand = conversion_pool.InHand(100, 64, 96 * MB)
    first, second = conversion_pool.FileCost(), conversion_pool.FileCost()
    in_hand.begin_writing(0, first, 1_000, 100)
    in_hand.end_writing(0, first, 90)
    in_hand.begin_writing(0, first, 0, 50)  # a smaller share; it does not wait
    begun = threading.Event()

    def begin() -> None:
        in_hand.begin_writing(0, second, 1_000, 50)
        begun.set()

    thread = threading.Thread(target=begin)
    thread.start()
    wait_until(lambda: second.most == 50)
    assert not begun.is_set()
    in_hand.end_writing(0, first, 45)
    thread.join()
    assert begun.is_set()
    in_hand.end_writing(0, second, 20)
    in_hand.wait()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_the_open_files_of_all_tables_cost_no_more_than_they_may(
    convert: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Tables join one by one, so that those that had all the memory have to give some of it back."""
    budget = Budget(collected_bytes=400_000, small_table_bytes=1_000)
    all_writers: set[PartitionWriters] = set()
    costs: list[int] = []
    append = PartitionWriters.append

    def watched(writers: PartitionWriters, *args: Any, **named: Any) -> None:
        all_writers.add(writers)
        append(writers, *args, **named)
        costs.append(sum(each.cost for each in list(all_writers)))

    monkeypatch.setattr(PartitionWriters, "append", watched)
    bound = OpenFiles(files=24, tables=8, cost=5 * MB, file_cost=2 * MB)
    row = {f"c{number}": [number] for number in range(120)}
    payloads = [
        columnar({"time": [NOW_US + n % 4 * HOUR_US + n], **row}, f"m{n % (1 + n // 40)}", tags=["c0"])
        for n in range(400)
    ]
    result = convert(payloads, threads=threads, open_files=bound, budget=budget)
    assert result.tables.rows == 400
    assert max(costs) > bound.cost // 2
    # A thread may be in the middle of one row group, which is not yet trimmed.
    assert max(costs) <= bound.cost + threads * (open_file_cost(122) + row_group_cost(122))

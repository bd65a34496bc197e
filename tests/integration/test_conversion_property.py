"""Whatever is acknowledged comes back from the lake, value for value, whatever it is; what is refused does not.

Random bodies go over HTTP to one real server, in several rounds with a restart between them, so that a measurement has
several files, over which columns come, go and change. Then DuckDB reads everything: the columns of a row, together
with what `_rescued_data` holds of it, are the values that were sent, as multisets of rows.

The bodies are packed by hand here, because no MessagePack library writes all that the format allows: numbers wider than
need be, text that is no UTF-8, keys that are there twice.
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from arcpipe.codec.rescued import Ext, InvalidText, Pairs, StillEncoded, Timestamp, parse_rescued
from tests.support.http import Client
from tests.support.lake import lake_files
from tests.support.server import Server
from tests.support.values import as_sent

# Other seeds are other examples; what one seed makes is always the same.
SEEDS = range(20 if os.environ.get("ARCPIPE_TEST_LONG") == "1" else 1)
EXAMPLES = 80
ROUNDS = 3

# Years 1 to 9999, in µs since the epoch: what a time column may hold.
MIN_TIME_US = -62_135_596_800_000_000
MAX_TIME_US = 253_402_300_799_999_999
NEW_YEAR = 1_767_225_600


# Values: what is sent, and what it means


class Cell(NamedTuple):
    """A MessagePack value and what it is in Python: see `codec.odd_values` for what Python has no type for."""

    packed: bytes
    value: Any


NIL = Cell(b"\xc0", None)


def sized(kind: int, sizes: Sequence[int], count: int, form: int, short: bytes | None) -> bytes:
    """A header with a length, in one of the forms that can hold it. `short` is the one without a length field."""
    forms = [short] if short is not None else []
    forms += [
        bytes([kind + index]) + count.to_bytes(width, "big")
        for index, width in enumerate(sizes)
        if count < 1 << 8 * width
    ]
    return forms[form % len(forms)]


def integer(number: int, form: int) -> Cell:
    forms = [number.to_bytes(1, "big", signed=number < 0)] if -32 <= number < 128 else []
    for index in range(4):
        bits = 8 << index
        if 0 <= number < 1 << bits:
            forms.append(bytes([0xCC + index]) + number.to_bytes(1 << index, "big"))
        if -(1 << bits - 1) <= number < 1 << bits - 1:
            forms.append(bytes([0xD0 + index]) + number.to_bytes(1 << index, "big", signed=True))
    return Cell(forms[form % len(forms)], number)


def float64(number: float) -> Cell:
    return Cell(b"\xcb" + struct.pack(">d", number), number)


def float32(number: float) -> Cell:
    return Cell(b"\xca" + struct.pack(">f", number), number)


def raw_text(raw: bytes, form: int) -> Cell:
    header = sized(0xD9, (1, 2, 4), len(raw), form, bytes([0xA0 | len(raw)]) if len(raw) < 32 else None)
    try:
        return Cell(header + raw, raw.decode())
    except UnicodeDecodeError:
        return Cell(header + raw, InvalidText(raw))


def text(string: str, form: int = 0) -> Cell:
    return raw_text(string.encode(), form)


def binary(raw: bytes, form: int) -> Cell:
    return Cell(sized(0xC4, (1, 2, 4), len(raw), form, None) + raw, raw)


def extension(code: int, data: bytes, form: int) -> Cell:
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(len(data))
    header = sized(0xC7, (1, 2, 4), len(data), form, None if fixed is None else bytes([fixed]))
    return Cell(header + code.to_bytes(1, "big", signed=True) + data, Ext(code, data))


def timestamp(seconds: int, nanoseconds: int, form: int) -> Cell:
    """The extension of type -1, in the forms of 4, 8 and 12 bytes that can hold it."""
    forms = [b"\xc7\x0c\xff" + struct.pack(">Iq", nanoseconds, seconds)]
    if 0 <= seconds < 1 << 34:
        forms.append(b"\xd7\xff" + struct.pack(">Q", nanoseconds << 34 | seconds))
        if not nanoseconds and seconds < 1 << 32:
            forms.append(b"\xd6\xff" + struct.pack(">I", seconds))
    return Cell(forms[form % len(forms)], Timestamp(seconds * 1_000_000_000 + nanoseconds))


def array(items: Sequence[Cell], form: int = 0) -> Cell:
    header = sized(0xDC, (2, 4), len(items), form, bytes([0x90 | len(items)]) if len(items) < 16 else None)
    return Cell(header + b"".join(item.packed for item in items), [item.value for item in items])


def mapping(items: Sequence[tuple[Cell, Cell]], form: int = 0) -> Cell:
    header = sized(0xDE, (2, 4), len(items), form, bytes([0x80 | len(items)]) if len(items) < 16 else None)
    packed = header + b"".join(key.packed + value.packed for key, value in items)
    keys = [key.value for key, _ in items]
    if all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys):
        return Cell(packed, {key.value: value.value for key, value in items})
    return Cell(packed, Pairs(tuple((key.value, value.value) for key, value in items)))


def deep(levels: int, inner: Cell) -> Cell:
    """Arrays in each other; more than 100 are kept as they are encoded."""
    packed = b"\x91" * levels + inner.packed
    if levels + isinstance(inner.value, list) > 100:
        return Cell(packed, StillEncoded(packed))
    value = inner.value
    for _ in range(levels):
        value = [value]
    return Cell(packed, value)


FORM = st.integers(0, 7)
BORDERS = [0, 1, -1, 127, 128, -32, -33, 255, 256, -128, -129, 65_535, 65_536, 2**31, 2**32, 2**53, 2**53 + 1]
BORDERS += [-(2**31) - 1, -(2**53) - 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]
INTEGERS = st.builds(integer, st.one_of(st.sampled_from(BORDERS), st.integers(-(2**63), 2**64 - 1)), FORM)
SMALL_INTEGERS = st.builds(integer, st.integers(-40, 300), FORM)
FLOATS = st.one_of(
    st.builds(float64, st.floats()),
    st.builds(float32, st.floats(width=32)),
    st.sampled_from([float64(x) for x in (0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 5e-324, 1.7e308, 2.0**53)]),
)
BOOLEANS = st.sampled_from([Cell(b"\xc2", False), Cell(b"\xc3", True)])
ASCII = st.builds(text, st.text("abc \n\x00\"\\'", max_size=40), FORM)
TEXTS = st.one_of(
    ASCII,
    st.builds(text, st.text(max_size=12), FORM),
    st.builds(
        lambda unit, times: text(unit * times, 0), st.sampled_from(["x", "ü", "😀"]), st.sampled_from([31, 32, 300])
    ),
)
NOT_TEXTS = st.builds(
    raw_text, st.sampled_from([b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\x80" * 40]), FORM
)
BINARIES = st.builds(binary, st.binary(max_size=40), FORM)
EXTENSIONS = st.builds(extension, st.integers(-128, 127).filter(lambda code: code != -1), st.binary(max_size=20), FORM)
TIMESTAMPS = st.builds(timestamp, st.integers(-(2**40), 2**40), st.integers(0, 999_999_999), FORM)
SIMPLE = st.one_of(st.just(NIL), INTEGERS, FLOATS, BOOLEANS, TEXTS, NOT_TEXTS, BINARIES, EXTENSIONS, TIMESTAMPS)
LISTS = st.builds(array, st.lists(SIMPLE, max_size=4), FORM)
KEYS = st.one_of(st.builds(text, st.sampled_from(["a", "b", "$ext", "$base64", ""])), INTEGERS, NOT_TEXTS, BINARIES)
MAPS = st.builds(mapping, st.lists(st.tuples(KEYS, st.one_of(SIMPLE, LISTS)), max_size=4), FORM)
DEEP = st.builds(deep, st.sampled_from([5, 99, 100, 101, 300, 1000]), st.one_of(st.just(array([])), SMALL_INTEGERS))
ANYTHING = st.one_of(SIMPLE, LISTS, MAPS, st.builds(array, st.lists(st.one_of(LISTS, MAPS), max_size=2)), DEEP)

# What the values of one column are: mostly of one kind, as columns are.
COLUMN_KINDS = st.sampled_from(
    [
        *(SMALL_INTEGERS, INTEGERS, FLOATS, BOOLEANS, ASCII, TEXTS, BINARIES, st.just(NIL), ANYTHING),
        *(st.one_of(SMALL_INTEGERS, FLOATS), st.one_of(INTEGERS, FLOATS), st.one_of(TEXTS, st.just(NIL))),
        *(st.one_of(FLOATS, ASCII), st.one_of(BOOLEANS, SMALL_INTEGERS), st.one_of(BINARIES, TEXTS, NOT_TEXTS)),
    ]
)

SECONDS = st.integers(NEW_YEAR - 4000, NEW_YEAR + 4000)
GOOD_TIMES = st.one_of(
    st.builds(integer, SECONDS, FORM),
    st.builds(lambda s, ms: integer(s * 1000 + ms, 0), SECONDS, st.integers(0, 999)),
    st.builds(lambda s, us: integer(s * 1_000_000 + us, 0), SECONDS, st.integers(0, 999_999)),
    st.builds(lambda s, ns: integer(s * 1_000_000_000 + ns, 0), SECONDS, st.integers(0, 999_999_999)),
    st.builds(lambda s, part: float64(s + part), SECONDS, st.floats(0, 1)),
    st.builds(timestamp, SECONDS, st.integers(0, 999_999_999), FORM),
)
EDGE_TIMES = st.one_of(
    INTEGERS,
    FLOATS,
    TIMESTAMPS,
    st.just(NIL),
    st.builds(integer, st.sampled_from([s * 10**d for s in (1, -1) for d in (11, 14, 17)]), FORM),
).filter(lambda cell: is_usable(cell.value))


# Rows: what is sent, and what is to be found


class Row(NamedTuple):
    """A row as it is to be found. `time_us` is None where it is the moment of the write."""

    time_us: int | None
    values: dict[str, Any]  # nil is not among them


class Body(NamedTuple):
    """A request, and the rows that it is to become; none if it is to be refused."""

    packed: bytes
    database: str
    rows: list[tuple[str, Row]]  # with their measurement

    @property
    def is_good(self) -> bool:
        return bool(self.rows)


def row_of(moment: Cell | None, values: dict[str, Any]) -> Row:
    """A row of a time value and of values by column."""
    at = None if moment is None or moment.value is None else time_us(moment.value)
    return Row(at, {name: value for name, value in values.items() if value is not None})


def is_usable(value: Any) -> bool:
    """Tell whether a value is no time or one that is taken, and read alike on both paths: Arc has other borders."""
    if isinstance(value, int | float) and any(10**n <= value < 10 ** (n + 1) for n in (10, 13, 16)):
        return False
    return value is None or time_us(value) is not None


def time_us(value: Any) -> int | None:
    """µs since the epoch, or None for what is no time."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        size = abs(value)
        if size >= 10**17:
            return value // 1000
        us = value * (1_000_000 if size < 10**11 else 1000 if size < 10**14 else 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            return None
        per_us = 1e-6 if abs(value) < 1e11 else 1e-3 if abs(value) < 1e14 else 1 if abs(value) < 1e17 else 1e3
        us = round(value / 1e3 if per_us == 1e3 else value * round(1 / per_us))
    elif isinstance(value, Timestamp):
        us = value.ns // 1000
    else:
        return None
    return us if MIN_TIME_US <= us <= MAX_TIME_US else None


# `_rescued_data` is arcpipe's own name for a column, and the last two differ in case alone.
NAMES = st.sampled_from(["a", "b", "c", "value", "host", "time_ns", "a b\"';", "ü😀", "_rescued_data", "v", "V"])
HINTS = st.sampled_from(["i64", "u64", "f64", "bool", "str", "bytes"])


@st.composite
def frames(draw: st.DrawFn, measurement: str) -> tuple[Cell, list[Row]]:
    """A columnar map, and its rows."""
    count = draw(st.integers(1, 6))
    repeat = draw(st.sampled_from([1, 1, 2, 7, 150]))
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    columns = {name: draw(st.lists(draw(COLUMN_KINDS), min_size=count, max_size=count)) * repeat for name in names}
    times = draw(
        st.one_of(
            st.none(),
            *(st.lists(kind, min_size=count, max_size=count) for kind in (GOOD_TIMES, GOOD_TIMES, EDGE_TIMES)),
        )
    )
    packed = [(text(name), array(cells)) for name, cells in columns.items()]
    if times is not None:
        times *= repeat
        packed.insert(draw(st.integers(0, len(packed))), (text("time"), array(times)))
    parts = [(text("m"), text(measurement)), (text("columns"), mapping(packed))]
    if tags := draw(st.lists(st.sampled_from(names), max_size=2, unique=True)):
        parts.append((text("tags"), array([text(tag) for tag in tags])))
    if hints := draw(st.dictionaries(st.sampled_from(names), HINTS, max_size=2)):
        parts.append((text("types"), mapping([(text(name), text(word)) for name, word in hints.items()])))
    rows = [
        row_of(None if times is None else times[index], {name: cells[index].value for name, cells in columns.items()})
        for index in range(count * repeat)
    ]
    return mapping(draw(st.permutations(parts)) if draw(st.booleans()) else parts), rows


@st.composite
def single_rows(draw: st.DrawFn, measurement: str) -> tuple[Cell, list[Row]]:
    """A row map, and its row."""
    kind = draw(COLUMN_KINDS)
    fields = draw(st.dictionaries(NAMES, st.one_of(kind, kind, ANYTHING), min_size=1, max_size=4))
    tags = draw(st.dictionaries(NAMES, st.one_of(ASCII, ASCII, ANYTHING), max_size=2))
    parts = [(text("m"), text(measurement)), (text("fields"), named(fields))]
    moment = draw(st.one_of(st.none(), GOOD_TIMES, GOOD_TIMES, EDGE_TIMES))
    if moment is not None:
        parts.append((text("t"), moment))
    if bool(tags) or draw(st.booleans()):
        parts.append((text("tags"), named(tags)))
    if "host" not in tags:
        host = draw(st.one_of(st.none(), st.just(NIL), ASCII))
        if host is not None:
            parts.append((text("h"), host))
            if host.value is not None:
                tags = {"host": host, **tags}
    values = {name: cell.value for name, cell in tags.items()}
    # A field whose name a tag has gets another one.
    values |= {f"{name}_field" if name in tags else name: cell.value for name, cell in fields.items()}
    return mapping(draw(st.permutations(parts))), [row_of(moment, values)]


def named(cells: dict[str, Cell]) -> Cell:
    return mapping([(text(name), cell) for name, cell in cells.items()])


@st.composite
def bodies(draw: st.DrawFn, measurements: Sequence[str], databases: Sequence[str]) -> Body:
    """A request that is good, or one that is not."""
    elements = []
    rows = []
    shape = draw(st.sampled_from(["one", "one", "array", "batch", "rows"]))
    for _ in range(1 if shape == "one" else draw(st.integers(1, 4))):
        measurement = draw(st.sampled_from(measurements))
        element, found = draw(
            single_rows(measurement) if shape == "rows" else st.one_of(frames(measurement), single_rows(measurement))
        )
        elements.append(element)
        rows += [(measurement, row) for row in found]
    if shape == "one":
        body = elements[0]
    elif shape == "array":
        body = array(elements)
    else:
        body = mapping([(text("batch"), array(elements))])
    database = draw(st.sampled_from(databases))
    match draw(st.integers(0, 24)):
        case 7:
            return Body(body.packed[: -draw(st.integers(1, min(len(body.packed), 9)))], database, [])
        case 11:
            return Body(body.packed + b"\xc0", database, [])
        case 15:
            ragged = [(text("a"), array([integer(1, 0)])), (text("b"), array([integer(1, 0)] * 2))]
            bad = mapping([(text("m"), text(measurements[0])), (text("columns"), mapping(ragged))])
            return Body(array([*elements, bad]).packed, database, [])
    return Body(body.packed, database, rows)


def send(client: Client, body: Body, number: int) -> None:
    path, success = [("/write/v2/msgpack", 202), ("/api/v1/write/msgpack", 204)][number % 2]
    response = client.request("POST", path, body.packed, {"x-arc-database": body.database})
    assert response.status == (success if body.is_good else 400), (response, body)


# What is found


def read_back(lake: Path) -> dict[tuple[str, str], list[Row]]:
    """All rows by database and measurement, as the files themselves name these."""
    files: dict[tuple[str, str], list[Path]] = defaultdict(list)
    types: dict[tuple[str, str], dict[str, set[tuple[str, str]]]] = defaultdict(lambda: defaultdict(set))
    for path in lake_files(lake):
        file = pq.ParquetFile(path)
        metadata = file.schema_arrow.metadata
        table = metadata[b"arcpipe.database"].decode(), metadata[b"arcpipe.measurement"].decode()
        files[table].append(path)
        for field in file.schema_arrow:
            sender = field.metadata.get(b"arcpipe.name", field.name.encode()).decode()
            types[table][field.name].add((sender, str(field.type)))
        assert_is_of_one_hour(path, file)
    found = {}
    with duckdb.connect() as connection:
        connection.execute("SET timezone = 'UTC'")
        for table, paths in files.items():
            assert len({name.casefold() for name in types[table]}) == len(types[table])
            assert all(len(each) == 1 for each in types[table].values())
            found[table] = read_with_duckdb(connection, paths)
    return found


def assert_is_of_one_hour(path: Path, file: pq.ParquetFile) -> None:
    year, month, day, hours = map(int, path.parts[-5:-1])
    hour = datetime(year, month, day, hours, tzinfo=UTC)
    for number in range(file.metadata.num_row_groups):
        statistics = file.metadata.row_group(number).column(0).statistics
        assert hour <= statistics.min <= statistics.max < hour + timedelta(hours=1)


def read_with_duckdb(connection: duckdb.DuckDBPyConnection, paths: list[Path]) -> list[Row]:
    senders = {
        field.name: field.metadata.get(b"arcpipe.name", field.name.encode()).decode()
        for path in paths
        for field in pq.read_schema(path)
    }
    cursor = connection.execute(
        "SELECT * REPLACE (epoch_us(time) AS time) "
        "FROM read_parquet(?, union_by_name = true, hive_partitioning = false)",
        [[str(path) for path in paths]],
    )
    names = [column[0] for column in cursor.description or []]
    return [found_row(dict(zip(names, row, strict=True)), senders) for row in cursor.fetchall()]


def found_row(columns: dict[str, Any], senders: dict[str, str]) -> Row:
    """A row of what stands in the columns and their siblings, by the senders' names, and of what was rescued."""
    at = columns.pop("time")
    rescued = columns.pop("_rescued_data", None)
    values: dict[str, Any] = {}
    by_sender = [(senders.get(name, name), value) for name, value in columns.items()]
    # What was rescued has the sender's name, which may be that of another column.
    for sender, value in [*by_sender, *parse_rescued(rescued or "{}").items()]:
        if value is not None:
            assert sender not in values
            values[sender] = value
    return Row(at, values)


# What is equal


def canonical_row(row: Row, window_us: tuple[int, int]) -> Hashable:
    """Rows that are equal have one canonical form. The moment of the write is somewhere in the window."""
    is_of_write = row.time_us is None or window_us[0] <= row.time_us <= window_us[1]
    # NaN is null where its column had no type yet.
    return "written" if is_of_write else row.time_us, frozenset(
        (name, canonical(value)) for name, value in row.values.items() if value == value
    )


def canonical(value: Any) -> Hashable:
    """Equal values have one form: a whole number is the same as a float; NaN is itself, -0.0 not 0.0, True not 1."""
    value = as_sent(value)
    match value:
        case None | bool() | str() | bytes():
            return type(value).__name__, value
        case int():
            return "number", value
        case float():
            is_whole = value.is_integer() and not (value == 0 and math.copysign(1, value) < 0)
            return "number", int(value) if is_whole else value.hex()
        case list():
            return "list", tuple(map(canonical, value))
        case dict():
            return "map", frozenset((key, canonical(item)) for key, item in value.items())
        case Pairs(items):
            return "pairs", tuple((canonical(key), canonical(item)) for key, item in items)
    assert isinstance(value, InvalidText | Timestamp | Ext | StillEncoded)
    return type(value).__name__, tuple(value)


@pytest.mark.parametrize("seed_number", SEEDS)
def test_what_is_acknowledged_comes_back_value_for_value(seed_number: int, tmp_path: Path) -> None:
    examples: list[list[Body]] = []

    @seed(seed_number)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def draw_examples(data: st.DataObject) -> None:
        number = len(examples)
        names = [f"p{number}", f"p{number} ä/{'%' * (number % 3)}"]
        examples.append(data.draw(st.lists(bodies(names, ["default", "other"]), min_size=2, max_size=ROUNDS)))

    draw_examples()
    expected: dict[tuple[str, str], list[Row]] = defaultdict(list)
    started_us = time.time_ns() // 1000
    with Server(tmp_path, server_workers=2) as server:
        for number in range(ROUNDS):
            if number:
                server.restart()
            with server.client() as client:
                for example in examples:
                    if number < len(example):
                        send(client, example[number], number)
                        for measurement, row in example[number].rows:
                            expected[example[number].database, measurement].append(row)
            server.stop()
        server.assert_log_is_shipped()
        window_us = started_us, time.time_ns() // 1000
    assert not (server.lake / "_dead_letter").exists()

    found = read_back(server.lake)
    wrong = []
    for table in expected.keys() | found.keys():
        sent, got = (
            Counter(canonical_row(row, window_us) for row in side.get(table, [])) for side in (expected, found)
        )
        if sent != got:
            wrong.append((len(repr(sent)), table, sent - got, got - sent))
    wrong.sort(key=lambda each: each[0])
    assert not wrong, (
        f"{len(wrong)} of {len(expected)} tables are not as they were sent; the smallest, {wrong[0][1]}:\n"
        f"missing    {list(wrong[0][2].elements())[:5]}\nunexpected {list(wrong[0][3].elements())[:5]}"
    )

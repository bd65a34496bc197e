"""A batch makes the same files with the native kernel and without it, byte for byte, whatever its entries are."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgpack
import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe import native
from arcpipe.codec.columns import array_header
from arcpipe.config.settings import Parquet
from arcpipe.lake.parquet_file import Rows
from arcpipe.lake.spool import Spool
from arcpipe.units import KB
from arcpipe.upload.budget import BUDGET, Budget
from arcpipe.upload.collect import BatchTables
from arcpipe.upload.dead_letters import DeadLetter
from arcpipe.upload.key_decisions import Decide
from arcpipe.upload.key_record import key_record, make_record, make_records
from arcpipe.upload.schema import SchemaRegistry
from tests.support.kernel import kernel_of_checkout
from tests.support.sets import IS_LONG

NOW_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000

SMALL = Budget(
    collected_bytes=200 * KB,
    table_bytes=120 * KB,
    release_bytes=40 * KB,
    compact_entries=6,
    compact_entry_bytes=6 * KB,
    slice_bytes=30 * KB,
    slice_rows=300,
)


@pytest.fixture(scope="module", autouse=True)
def kernel() -> ModuleType:
    """Skip all of this where no kernel can be built."""
    return kernel_of_checkout()


class Made(NamedTuple):
    """What a batch has become."""

    files: list[tuple[str, bytes]]
    letters: list[DeadLetter]
    rows: int
    rescued: int
    schemas: list[bytes]


Entry = tuple[int, bytes]


def convert(
    entries: Sequence[Entry],
    kernel: object | None,
    folder: Path,
    budget: Budget = BUDGET,
    decide: Decide | None = None,
) -> Made:
    files: list[tuple[str, bytes]] = []
    letters: list[DeadLetter] = []

    def on_file(key: str, blob: Spool, rows: Rows) -> None:
        files.append((key, bytes(blob.read_at(0, blob.size))))
        blob.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "KERNEL", kernel)
        tables = BatchTables(
            "node-1",
            "arc",
            Parquet(),
            SchemaRegistry(folder / "schema.json"),
            threads=2,
            spool=folder,
            on_file=on_file,
            on_dead_letter=letters.append,
            decide=decide,
            budget=budget,
        )
        with tables:
            for number, (timestamp, payload) in enumerate(entries):
                tables.add(timestamp, memoryview(payload), number)
            tables.finish()
    schemas = [msgspec.msgpack.encode(schema) for schema in tables.schema_changes]
    letters.sort(key=lambda letter: (letter.origin, letter.part))
    return Made(sorted(files), letters, tables.rows, tables.rescued, sorted(schemas))


# Entries


pack: Callable[[Any], bytes] = msgpack.packb


def times(source: random.Random, rows: int) -> list[bytes]:
    start = NOW_US + source.choice([0, 0, 1_000_000, HOUR_US, -2 * HOUR_US])
    step = source.choice([1, 400, -3])
    return [pack(start + row * step) for row in range(rows)]


def wide(values: Sequence[int]) -> list[bytes]:
    return [b"\xd3" + value.to_bytes(8, "big", signed=True) for value in values]


KINDS: dict[str, Callable[[random.Random, int], list[bytes]]] = {
    "floats": lambda source, rows: [pack(source.random()) for _ in range(rows)],
    "rounded": lambda source, rows: [pack(round(source.random(), 1)) for _ in range(rows)],
    "NaN": lambda source, rows: [pack(float("nan"))] * rows,
    "integers": lambda source, rows: [pack(source.randrange(-300, 70_000)) for _ in range(rows)],
    "wide": lambda source, rows: wide([source.randrange(-(1 << 63), 1 << 63) for _ in range(rows)]),
    "few": lambda source, rows: [pack(f"host-{source.randrange(40)}") for _ in range(rows)],
    "many": lambda source, rows: [pack(f"{source.random()} µ") for _ in range(rows)],
    "agent": lambda source, rows: KINDS["few"](random.Random(source.randrange(2)), rows),  # others have the same ones
    "one": lambda source, rows: [pack("always the same")] * rows,
    "nil": lambda source, rows: [b"\xc0"] * rows,
    "gaps": lambda source, rows: [pack(source.choice([None, source.random()])) for _ in range(rows)],
    "text with gaps": lambda source, rows: [pack(source.choice([None, "a", "b"])) for _ in range(rows)],
    "numbers": lambda source, rows: [pack(source.choice([1, 2.5, 1 << 60])) for _ in range(rows)],
    "anything": lambda source, rows: [
        pack(source.choice([1, 2.5, "a", None, True, [1, {"a": 2}], b"bytes", 1 << 63])) for _ in range(rows)
    ],
    "no text": lambda source, rows: [source.choice([b"\xa1\xff", pack("good")]) for _ in range(rows)],
    "long headers": lambda source, rows: [source.choice([b"\xd9\x01a", b"\xa1a"]) for _ in range(rows)],
    "long": lambda source, rows: [pack("x" * source.randrange(400)) for _ in range(rows)],
}
USUAL = ("floats", "few", "integers", "floats", "agent", "many", "gaps")


def columnar(source: random.Random, table: int, rows: int) -> dict[str, Any]:
    """The body of an entry: mostly the columns and kinds of its table, sometimes others."""
    kinds = dict(zip(("host", "usage", "count", "idle", "region", "text", "gap"), [*USUAL[1:], USUAL[0]], strict=True))
    names = list(kinds)[: 3 + table % 4]
    if source.random() < 0.2:
        names.append(source.choice(["new", "Usage", "year", "_file"]))
    values = {"time": times(source, rows)} if source.random() < 0.9 else {}
    for name in names:
        kind = kinds.get(name, "floats") if source.random() < 0.85 else source.choice(list(KINDS))
        values[name] = KINDS[kind](source, rows)
    if source.random() < 0.06:
        values[source.choice(list(values))].append(pack(1))
    columns = {}
    for name, encoded in values.items():
        header = array_header(len(encoded))
        if source.random() < 0.03:
            header = b"\xdd" + len(encoded).to_bytes(4, "big")
        columns[name] = msgspec.Raw(header + b"".join(encoded))
    body: dict[str, Any] = {"m": f"m{table}", "columns": columns, "tags": ["host", "region"]}
    if source.random() < 0.1:
        body["types"] = {"count": source.choice(["f64", "u64", "i64", "str"])}
    return body


def entry(source: random.Random, tables: int) -> bytes:
    rows = source.choice([1, 3, 15, 16, 40, 100, 300, 1_500])
    body: Any = columnar(source, source.randrange(tables), rows)
    meta: dict[str, Any] = {"in": b"0123456789abcdef"}
    chance = source.random()
    if chance < 0.05:
        meta["precision"] = source.choice(["us", "ns", "s"])
    elif chance < 0.08:
        meta["clock"] = 5_000_000
    elif chance < 0.24:
        meta |= source.choice([{}, {"by": "token"}, {"part": 1}])
        meta["key"] = f"key-{source.choice([1, 2, 3, 10, 'ü'])}"
    elif chance < 0.28:
        return msgspec.msgpack.encode([2, "db", meta, [body, columnar(source, 0, 50)]])
    elif chance < 0.31:
        whole = msgspec.msgpack.encode([1, "db", meta, body])
        at = source.randrange(len(whole))
        return source.choice([whole[:-1], whole[:at] + b"\xc1" + whole[at + 1 :], whole + b"\x00", b"no envelope"])
    return msgspec.msgpack.encode([1, "db", meta, body])


def every_second() -> Decide:
    """Let every second entry with a key count, however many are asked at a time."""
    numbers = itertools.count()
    return lambda records: [bool(next(numbers) % 2) for _ in records]


@pytest.mark.slow
@settings(
    max_examples=400 if IS_LONG else 6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.integers(0, 1 << 32), st.integers(1, 60), st.integers(1, 4), st.booleans(), st.booleans())
def test_any_batch_makes_the_same_files(
    tmp_path: Path, kernel: ModuleType, seed: int, number: int, tables: int, small: bool, keyed: bool
) -> None:
    source = random.Random(seed)
    entries = [(NOW_US + at, entry(source, tables)) for at in range(number)]
    budget = SMALL if small else BUDGET
    decides = [every_second() if keyed else None for _ in range(2)]
    by_kernel = convert(entries, kernel, tmp_path, budget, decides[0])
    assert by_kernel == convert(entries, None, tmp_path, budget, decides[1])


class Spy:
    """The kernel, and how many columns and entries it has taken or left."""

    def __init__(self, kernel: ModuleType) -> None:
        self._kernel = kernel
        self.array_headers = kernel.array_headers
        self.columns = [0, 0]  # taken, left
        self.entries = [0, 0]

    def read_column(self, *args: Any) -> Any:
        found = self._kernel.read_column(*args)
        self.columns[found is None] += 1
        return found

    def find_columns(self, *args: Any) -> Any:
        found = self._kernel.find_columns(*args)
        self.entries[found is None] += 1
        return found


def mixed(number: int, rows: int = 200, kinds: Sequence[str] = ("few", "floats", "floats", "integers")) -> bytes:
    source = random.Random(number)
    columns = {"time": wide([NOW_US + number * rows + row for row in range(rows)])}
    columns |= {f"{kind} {at}": KINDS[kind](source, rows) for at, kind in enumerate(kinds)}
    raws = {name: msgspec.Raw(array_header(rows) + b"".join(values)) for name, values in columns.items()}
    return msgspec.msgpack.encode([1, "db", {}, {"m": f"m{number % 2}", "columns": raws, "tags": ["few 0"]}])


def same(entries: Sequence[Entry], kernel: ModuleType, folder: Path, budget: Budget = BUDGET) -> tuple[Made, Spy]:
    spy = Spy(kernel)
    made = convert(entries, spy, folder, budget)
    assert made == convert(entries, None, folder, budget)
    return made, spy


def test_plain_entries_are_all_taken_by_the_kernel(tmp_path: Path, kernel: ModuleType) -> None:
    made, spy = same([(NOW_US + number, mixed(number)) for number in range(60)], kernel, tmp_path)
    assert made.rows == 60 * 200
    assert spy.columns == [2 * 5, 0], "five columns of two tables"
    assert spy.entries == [60, 0], "the first of each table is found again, once its layout is learned"


def test_one_unusual_value_leaves_its_column_alone(tmp_path: Path, kernel: ModuleType) -> None:
    entries = [(NOW_US + number, mixed(number)) for number in range(20)]
    entries.append((NOW_US + 20, mixed(20, kinds=("few", "floats", "anything", "integers"))))
    made, spy = same(entries, kernel, tmp_path)
    # The column "anything 2" makes it another shape, whose entry is nested: it is decoded.
    assert made.rows == 21 * 200
    assert spy.entries[0] == 20


def test_shapes_of_one_table_are_joined(tmp_path: Path, kernel: ModuleType) -> None:
    shapes = (("few", "floats"), ("few", "floats", "integers"), ("text with gaps", "few", "gaps"))
    entries = [(NOW_US + number, mixed(number, 50, shapes[number // 2 % 3])) for number in range(40)]
    made, spy = same(entries, kernel, tmp_path)
    assert made.rows == 40 * 50
    assert not spy.columns[1]


def test_small_entries_are_read_from_their_runs(tmp_path: Path, kernel: ModuleType) -> None:
    made, spy = same([(NOW_US + number, mixed(number, 10)) for number in range(900)], kernel, tmp_path)
    assert made.rows == 900 * 10
    assert spy.columns == [2 * 5, 0]
    assert spy.entries == [0, 0], "they are found by their outlines, many at once"


def test_an_entry_in_slices_is_read_by_the_kernel(tmp_path: Path, kernel: ModuleType) -> None:
    made, spy = same([(NOW_US, mixed(0, 9_000))], kernel, tmp_path, SMALL)
    assert made.rows == 9_000
    assert spy.columns[0] >= 5 * 9_000 // SMALL.slice_rows
    assert not spy.columns[1]


def test_keyed_entries_are_found_by_the_layout_without_their_keys(tmp_path: Path, kernel: ModuleType) -> None:
    """Keys of one length share a layout. One that is not ASCII is decoded; nothing differs but the work."""

    def keyed(number: int) -> bytes:
        kind, database, _, body = msgspec.msgpack.decode(mixed(number), type=tuple[int, str, msgspec.Raw, msgspec.Raw])
        key = f"key {number // 2:03}" if number % 10 else f"kü {number:03}"
        return msgspec.msgpack.encode([kind, database, {"in": b"i" * 16, "by": "token", "key": key}, body])

    payloads = [keyed(number) for number in range(40)]
    spy = Spy(kernel)
    asked: list[bytes] = []
    second = every_second()

    def decide(records: Sequence[bytes]) -> list[bool]:
        asked.extend(records)
        return second(records)

    found = convert([(NOW_US + at, payload) for at, payload in enumerate(payloads)], spy, tmp_path, decide=decide)
    assert asked == [key_record(NOW_US + at, payload, None) for at, payload in enumerate(payloads)]
    assert found == convert(list(enumerate(payloads, NOW_US)), None, tmp_path, decide=every_second())
    assert found.rows == 20 * 200
    assert spy.entries == [36, 0]
    assert spy.columns[0] == 5
    assert not spy.columns[1]


def test_records_of_keys_are_those_that_python_makes(kernel: ModuleType) -> None:
    """Names around the size of a block of the hash, and of several; bodies of none to 3,000 bytes, 16 kB in all."""
    source = random.Random(1)
    data = memoryview(source.randbytes(4_000))
    for width in (1, 20, 63, 64, 127, 128, 129, 255, 256, 257, 700):
        for count in (1, 40):
            names = np.frombuffer(source.randbytes(count * width), np.uint8).reshape(count, width)
            times = np.array([source.choice([0, NOW_US, (1 << 64) - 1]) for _ in range(count)], np.uint64)
            starts = np.array([source.randrange(1_001) for _ in range(count)], np.int64)
            sizes = np.array([source.choice([0, 1, 15, 16, 17, 100, 3_000]) for _ in range(count)], np.int64)
            made = []
            for each in (kernel, None):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(native, "KERNEL", each)
                    made.append(make_records(names, times, data, starts, sizes).tobytes())
            alone = [
                make_record(bytes(name), int(time), data[start : start + size])
                for name, time, start, size in zip(names, times, starts.tolist(), sizes.tolist(), strict=True)
            ]
            assert made == [b"".join(alone)] * 2


def test_wrong_calls_for_records_of_keys_are_refused(kernel: ModuleType) -> None:
    def call(
        names: int = 20, starts: Sequence[int] = (0, 50), sizes: Sequence[int] = (50, 50), count: int = 2
    ) -> bytes:
        made: bytes = kernel.key_records(
            bytes(names), bytes(100), bytes(4 * count), np.array(starts, np.int64), np.array(sizes, np.int64)
        )
        return made

    assert len(call()) == 2 * 28
    wrong: list[dict[str, Any]] = [
        *({"names": 21}, {"starts": [0]}, {"sizes": [0, 1, 2]}, {"count": 0}, {"count": 3}),
        *({"starts": [0, -1]}, {"starts": [0, 51]}, {"starts": [0, 101]}, {"sizes": [-1, 50]}, {"sizes": [1 << 62, 1]}),
    ]
    for each in wrong:
        with pytest.raises(ValueError, match="entry"):
            call(**each)
    with pytest.raises(TypeError):
        kernel.key_records("names", b"", b"", b"", b"")


def test_a_file_does_not_tell_that_the_kernel_made_it(tmp_path: Path, kernel: ModuleType) -> None:
    """Readers see plain texts, whose pages are dictionaries, with statistics: as without it."""
    made, _ = same([(NOW_US + number, mixed(number, 2_000)) for number in range(6)], kernel, tmp_path)
    path = tmp_path / "file.parquet"
    path.write_bytes(made.files[0][1])
    file = pq.ParquetFile(path)
    assert str(file.schema_arrow.field("few 0").type) == "string"
    column = file.metadata.row_group(0).column(1)
    assert column.path_in_schema == "few 0"
    assert "RLE_DICTIONARY" in column.encodings
    assert (column.statistics.min, column.statistics.max) == ("host-0", "host-9")


def test_layouts_are_bounded(tmp_path: Path, kernel: ModuleType) -> None:
    """Names of all lengths, and a shape for each entry: what is not learned is decoded."""

    def strange(number: int) -> bytes:
        columns = {"x" * (1 + number % 90): msgspec.Raw(array_header(300) + pack(number / 7) * 300)}
        return msgspec.msgpack.encode([1, "db", {}, {"m": f"m{number % 3}", "columns": columns}])

    made, spy = same([(NOW_US + number, strange(number)) for number in range(400)], kernel, tmp_path)
    assert made.rows == 400 * 300
    assert spy.entries[0] < 200


def test_wrong_calls_of_the_search_are_refused(kernel: ModuleType) -> None:
    assert kernel.find_columns(b"a\x91\x01b", (b"a", b"b")) is not None
    for payload in (b"a\x91\x01", b"a\x91\x01bc", b"a\x91", b"a\x91\x91\x01b", b"a\x90b", b"b\x91\x01b", b""):
        assert kernel.find_columns(payload, (b"a", b"b")) is None
    for literals in ((), (b"a",)):
        with pytest.raises(ValueError, match="literal"):
            kernel.find_columns(b"a", literals)
    with pytest.raises(TypeError):
        kernel.find_columns(b"a", ("a", "b"))
    with pytest.raises(TypeError):
        kernel.find_columns("a", (b"a", b"b"))

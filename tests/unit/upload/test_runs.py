"""Small entries are taken in runs: the same files and dead letters come out as when each entry is taken by itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe.codec.columns import array_header
from arcpipe.codec.envelope import ColumnMap, decode_envelope
from arcpipe.config.settings import Parquet
from arcpipe.lake.parquet_file import Rows
from arcpipe.lake.spool import Spool
from arcpipe.upload.budget import BUDGET, Budget
from arcpipe.upload.collect import BatchTables
from arcpipe.upload.key_claims import BatchClaims, ClaimTry
from arcpipe.upload.key_decisions import Decide
from arcpipe.upload.key_files import RECORD, new_header
from arcpipe.upload.key_index import Run as KeyRun
from arcpipe.upload.key_record import key_record
from arcpipe.upload.outlines import PADDING, Block
from arcpipe.upload.runs import Run, RunFinder
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.staging import group_key
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.stretch import MOST_BYTES
from tests.support.sets import IS_LONG
from tests.support.values import any_value, booleans, floats, integers, nil, short_text, texts

NOW_US = 1_700_000_000_000_000
ONE_BY_ONE = Budget(block_entries=1)


class Result(NamedTuple):
    files: dict[str, bytes]
    letters: list[tuple[Any, ...]]

    def column(self, name: str) -> list[Any]:
        """The values of a column in the files, file by file."""
        tables = [pq.ParquetFile(pa.BufferReader(data)).read([name]) for _, data in sorted(self.files.items())]
        return [value for table in tables for value in table[name].to_pylist()]


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., Result]:
    def run(payloads: Sequence[bytes], budget: Budget = BUDGET, decide: Decide | None = None) -> Result:
        files: dict[str, bytes] = {}
        letters: list[tuple[Any, ...]] = []

        def on_file(key: str, blob: Spool, rows: Rows) -> None:
            files[key] = bytes(blob.read_at(0, blob.size))
            blob.close()

        with BatchTables(
            "node-1",
            "arc",
            Parquet(keep_nanoseconds=True, row_group_rows=300),
            SchemaRegistry(tmp_path / "schema.json"),
            threads=1,
            spool=tmp_path,
            on_file=on_file,
            on_dead_letter=lambda letter: letters.append(tuple(letter)),
            decide=decide,
            budget=budget,
        ) as tables:
            for number, payload in enumerate(payloads):
                tables.add(NOW_US + number, memoryview(payload), number)
            tables.finish()
        return Result(files, sorted(letters, key=lambda letter: letter[2:4]))

    return run


def entry(
    columns: dict[str, list[Any]],
    measurement: str = "cpu",
    database: str = "db",
    meta: dict[str, Any] | None = None,
    **others: Any,
) -> bytes:
    """The payload of an entry; values that are bytes are MessagePack already."""
    packed = b"".join(
        msgpack.packb(name)
        + array_header(len(values))
        + b"".join(value if type(value) is bytes else msgpack.packb(value) for value in values)
        for name, values in columns.items()
    )
    rest = b"".join(msgpack.packb(name) + msgpack.packb(value) for name, value in others.items())
    head = [b"\x94\x01", msgpack.packb(database), msgpack.packb(meta or {}), bytes([0x82 + len(others)])]
    return b"".join(
        [*head, b"\xa1m", msgpack.packb(measurement), b"\xa7columns", bytes([0x80 + len(columns)]), packed, rest]
    )


def block(payloads: Sequence[bytes]) -> Block:
    sizes = np.array(list(map(len, payloads)))
    return Block(b"".join(payloads) + bytes(PADDING), np.cumsum(sizes) - sizes, sizes)


def find(payloads: Sequence[bytes]) -> tuple[list[Run], list[int]]:
    finder, some = RunFinder(), block(payloads)
    return finder.find(some, finder.fronts(some))


def usual(number: int, rows: int = 1, **others: Any) -> bytes:
    times = [NOW_US + number * 1000 + row for row in range(rows)]
    hosts = [f"host-{number * 7 % 1000}"] * rows
    return entry({"time": times, "host": hosts, "v": [number / 3] * rows, "n": [number, 2**40][:rows]}, **others)


def identity(number: int) -> bytes:
    return number.to_bytes(16, "big")


class Asked:
    """The decisions of one try at a batch, where another batch has some of the keys."""

    def __init__(self, before: Sequence[bytes] = ()) -> None:
        others = [KeyRun.of(np.frombuffer(b"".join(before[:3]), RECORD))] if before else []
        claims = BatchClaims(WALDirectory("unused"), "unused", new_header("batch", 0), 0, None)
        self._claims = ClaimTry(claims, others, 100)
        self.records: list[bytes] = []

    def __call__(self, records: Sequence[bytes]) -> list[bool]:
        self.records += records
        return self._claims.decide(records)

    @property
    def counters(self) -> tuple[int, int]:
        return self._claims.repeated, self._claims.other_bodies


metas = st.sampled_from(
    [
        {},
        {"precision": "ms"},
        {"in": identity(1)},
        {"in": identity(2)},
        {"in": identity(2), "by": "token-1"},
        {"clock": 5_000},
        {"in": identity(2), "key": "a key"},
        {"in": identity(1), "by": "token-1", "key": "another key, of another length", "precision": "ms"},
        {"key": "ü", "clock": 5_000},
        {"part": 1, "key": "12345", "by": ""},
    ]
)
kinds = st.sampled_from([floats, integers, short_text, texts, booleans, st.one_of(integers, floats, nil), any_value])


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Some columns with values to choose from, and what goes around them."""
    names = draw(st.lists(st.sampled_from(["time", "a", "host", "ü", ""]), min_size=1, max_size=3, unique=True))
    others = draw(st.sampled_from([{}, {"tags": ["host"]}, {"types": {"a": "f64"}}, {"unknown": [1, {"m": 2}]}]))
    return {
        "columns": {name: draw(st.lists(draw(kinds), min_size=1, max_size=6)) for name in names},
        "metas": draw(st.lists(metas, min_size=1, max_size=2)),
        "measurement": draw(st.sampled_from(["cpu", "memory", "m"])),
        "rows": draw(st.sampled_from([[1], [1], [3], [1, 2]])),
        "others": others,
    }


def drawn(shape: dict[str, Any], source: random.Random) -> bytes:
    rows = source.choice(shape["rows"])
    columns = {name: source.choices(values, k=rows) for name, values in shape["columns"].items()}
    meta = source.choice(shape["metas"])
    if "key" in meta:
        meta = meta | {"key": meta["key"][:-1] + source.choice("abcdefghijklmnopqrstuvwxyzü")}
    return entry(columns, shape["measurement"], meta=meta, **shape["others"])


def damaged(payload: bytes, source: random.Random) -> bytes:
    """Another byte somewhere, a byte less, or one more."""
    at = source.randrange(len(payload))
    how = source.randrange(4)
    if how == 0:
        return payload[:at] + payload[at + 1 :]
    if how == 1:
        return payload[:at] + bytes([source.randrange(256)]) + payload[at:]
    return payload[:at] + bytes([source.randrange(256)]) + payload[at + 1 :]


@pytest.mark.slow
@given(
    st.lists(shapes(), min_size=1, max_size=3),
    st.integers(16, 120),
    st.sampled_from([16, 50, 4_096]),
    st.sampled_from([0, 0, 0.02, 0.3]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
@settings(
    deadline=None, max_examples=500 if IS_LONG else 6, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_blocks_make_the_files_and_dead_letters_of_single_entries(
    convert: Callable[..., Result],
    some_shapes: list[dict[str, Any]],
    count: int,
    block: int,
    bad: float,
    keyed: bool,
    source: random.Random,
) -> None:
    payloads = [drawn(source.choice(some_shapes), source) for _ in range(count)]
    payloads = [damaged(payload, source) if source.random() < bad else payload for payload in payloads]
    before = [record for payload in payloads[::5] if (record := key_record(NOW_US, payload, None))]
    asked = [Asked(before), Asked(before)] if keyed else [None, None]
    blocks = convert(payloads, budget=Budget(block_entries=block), decide=asked[0])
    assert blocks == convert(payloads, budget=ONE_BY_ONE, decide=asked[1])
    if asked[0] and asked[1]:
        assert asked[0].records == asked[1].records
        assert asked[0].counters == asked[1].counters


EXAMPLES = {
    "tags after the columns": entry({"time": [NOW_US], "s": ["ab"], "v": [0.5]}, meta={"in": identity(1)}, tags=["s"]),
    "columns at the end": entry({"v": [0.5, 1.5], "s": ["ab", b"\xd9\x03abc"]}, meta={"in": identity(1), "by": "t"}),
    "one column": entry({"n": [b"\xc7\x01\x05x", 300, -1]}),
    "a key": entry({"v": [0.5]}, meta={"in": identity(1), "by": "t", "key": "8e03978e"}),
}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=list(EXAMPLES))
def test_each_entry_of_a_run_has_the_columns_that_decoding_it_finds(example: bytes) -> None:
    """Every byte is replaced by every other one, left out, and doubled. What is found is what msgspec finds."""
    others = [example[:at] + bytes([byte]) + example[at + 1 :] for at in range(len(example)) for byte in range(256)]
    shorter = [example[:at] + example[at + 1 :] for at in range(len(example))]
    longer = [example[:at] + example[at:][:1] + example[at:] for at in range(len(example) + 1)]
    payloads = [example, *others, *shorter, *longer]
    finder, some = RunFinder(), block(payloads)
    fronted = finder.fronts(some)
    runs, left = finder.find(some, fronted)
    assert sum(len(run.numbers) for run in runs) + len(left) == len(payloads)
    timestamps = np.full(len(payloads), NOW_US, np.uint64)
    for front, numbers in fronted:
        records = front.records(some, numbers, timestamps) if front.key else [None] * len(numbers)
        for number, record in zip(numbers.tolist(), records, strict=True):
            assert key_record(NOW_US, payloads[number], None) == (record if record is None else record.tobytes())
    assert sum(len(run.numbers) for run in runs) > 300  # numbers and letters that are others
    for run in runs:
        piece = run.piece(np.zeros(len(payloads), np.uint64), np.arange(len(payloads)))
        ends = [np.cumsum(column.sizes) for column in piece.columns]
        for at, number in enumerate(run.numbers.tolist()):
            envelope = decode_envelope(payloads[number])
            assert isinstance(envelope.body, ColumnMap)
            assert group_key(envelope.database, envelope.meta.precision, envelope.body) == run.key
            assert not envelope.meta.clock
            for raw, column, stop in zip(envelope.body.columns.values(), piece.columns, ends, strict=True):
                values = column.data[stop[at] - column.sizes[at] : stop[at]].tobytes()
                assert bytes(memoryview(raw)) == array_header(int(run.rows[at])) + values


def test_entries_of_one_shape_are_one_run_whatever_their_sizes() -> None:
    metas = [{"in": identity(number % 3), "by": f"token-{number % 2}"} for number in range(300)]
    payloads = [usual(number, 1 + number % 2, meta=meta) for number, meta in enumerate(metas)]
    (run,), left = find(payloads)
    assert (run.numbers.tolist(), left) == (list(range(300)), [])
    assert run.sizes.tolist() == list(map(len, payloads))
    piece = run.piece(np.arange(300, dtype=np.uint64), np.arange(300) * 2)
    assert piece.total_rows == 450
    assert [piece.payload(number) for number in (0, 9, 299)] == [
        usual(number, 1 + number % 2) for number in (0, 9, 299)
    ]
    assert piece.origins.tolist() == list(range(0, 600, 2))


def test_entries_with_keys_are_in_the_runs_of_those_without() -> None:
    """Keys of two lengths and two tokens; one key is not ASCII."""
    metas: list[dict[str, Any]] = [{"in": identity(number % 3)} for number in range(300)]
    for number in range(0, 300, 2):
        metas[number] |= {"by": f"token-{number % 4}", "key": f"{number:03}" * (1 + number % 3)}
    payloads = [usual(number, meta=meta) for number, meta in enumerate(metas)]
    payloads[150] = usual(150, meta={"in": identity(1), "by": "token-2", "key": "\u00fc"})
    (run,), left = find(payloads)
    assert left == [150]
    assert run.numbers.tolist() == [number for number in range(300) if number != 150]


def test_a_front_that_goes_on_in_the_next_entry_is_none() -> None:
    """Otherwise an entry without a whole key, which becomes a dead letter, would be dropped for another one's key."""
    keyed = [usual(number, meta={"in": identity(1), "key": f"{number:036}"}) for number in range(40)]
    at = keyed[0].index(b"\xa3key") + 20
    some = block([*keyed[:20], keyed[20][:at], keyed[20][at:], *keyed[21:]])
    ((front, numbers),) = RunFinder().fronts(some)
    assert len(front.key) == 36
    assert numbers.tolist() == [number for number in range(41) if number not in (20, 21)]


def test_databases_measurements_and_precisions_have_runs_of_their_own() -> None:
    owners = [("db", "cpu", {}), ("other", "cpu", {}), ("db", "memory", {}), ("db", "cpu", {"precision": "ms"})]
    payloads = [
        usual(number, database=database, measurement=measurement, meta=meta)
        for number in range(100)
        for database, measurement, meta in owners
    ]
    runs, left = find(payloads)
    assert left == []
    assert sorted((*run.numbers.tolist(),) for run in runs) == [tuple(range(at, 400, 4)) for at in range(4)]


def test_many_shapes_of_few_entries_are_left() -> None:
    payloads = [usual(number, measurement=f"m{number % 300}") for number in range(1_000)]
    assert find(payloads) == ([], list(range(1_000)))


@pytest.mark.parametrize("odd", [b"\xc1", b"\xda\x00\x01x", b"\x91\x01", b"\xc7\x03\x05abc", b"\xc4\xff"])
def test_a_value_of_unknown_size_leaves_its_entry_to_others(odd: bytes) -> None:
    payloads = [entry({"v": [number / 3]}, tags=["v"]) for number in range(100)]
    payloads[50] = entry({"v": [odd]}, tags=["v"])
    payloads[99] = entry({"v": [odd]})
    (run,), left = find(payloads)
    kept = {b"\xc7\x03\x05abc": [99]}.get(odd, [50, 99])  # its size is in its second byte
    assert left == kept
    assert len(run.numbers) + len(left) == 100


def test_a_value_that_goes_on_in_the_next_entry_is_none() -> None:
    """The last value claims bytes of the entry after it, which begins as the rest would."""
    payloads = [entry({"v": ["abcdefgh"]}) for _ in range(40)]
    payloads[20] = entry({"v": [b"\xbf" + b"abcdefgh"]})
    payloads[39] = entry({"v": [b"\xd9\xff" + b"abcdefgh"]})
    (_,), left = find(payloads)
    assert left == [20, 39]


def test_rows_of_one_time_keep_their_order_over_odd_entries_and_sizes(convert: Callable[..., Result]) -> None:
    def at_once(number: int) -> bytes:
        odd = b"\xda\x00\x01x" if number % 61 == 60 else "x" * (number % 40)
        return entry(
            {"time": [NOW_US] * (1 + number % 3), "n": [number] * (1 + number % 3), "s": [odd] * (1 + number % 3)}
        )

    result = convert([at_once(number) for number in range(500)])
    assert result.column("n") == [number for number in range(500) for _ in range(1 + number % 3)]


def test_entries_that_wait_for_their_keys_hold_back_those_after_them(convert: Callable[..., Result]) -> None:
    def payload(number: int) -> bytes:
        return entry(
            {"time": [NOW_US], "n": [number]},
            meta={"in": identity(1)} | ({"key": "again"} if number % 100 == 50 else {}),
        )

    first = iter([True])

    def decide(records: Sequence[bytes]) -> list[bool]:
        return [next(first, False) for _ in records]

    result = convert([payload(number) for number in range(300)], decide=decide)
    assert result.column("n") == [number for number in range(300) if number not in (150, 250)]


def test_runs_fill_row_groups_and_stay_within_the_bounds_of_memory(convert: Callable[..., Result]) -> None:
    payloads = [usual(number) for number in range(1_000)]
    budget = Budget(table_bytes=60_000, collected_bytes=90_000)
    result = convert(payloads, budget=budget)
    assert result.column("v") == [number / 3 for number in range(1_000)]
    assert result == convert(payloads, budget=budget)
    whole = convert(payloads)
    assert whole.column("v") == result.column("v")
    for data in whole.files.values():
        meta = pq.ParquetFile(pa.BufferReader(data)).metadata
        assert [meta.row_group(number).num_rows for number in range(meta.num_row_groups - 1)] == [300] * 3


def test_large_entries_between_small_ones_keep_the_order(convert: Callable[..., Result]) -> None:
    payloads = [
        entry({"time": [NOW_US] * rows, "n": [number] * rows})
        for number in range(200)
        for rows in [MOST_BYTES if number % 70 == 69 else 1]
    ]
    counts = [MOST_BYTES if number % 70 == 69 else 1 for number in range(200)]
    assert convert(payloads).column("n") == [number for number, rows in enumerate(counts) for _ in range(rows)]

"""Keys follow from files and plans; a refused chunk is halved until its bad rows are alone."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.client.delivery import Accepted, Delivery, Message
from arcpipe.client.encoding import Stream
from arcpipe.client.errors import Refusal
from arcpipe.load.chunks import BadInput, BadRecord, Chunk, ColumnChunk, Row, RowChunk, within
from arcpipe.load.formats import Reader, read
from arcpipe.load.loader import Loader, LoadFailed, Pace, Result
from arcpipe.load.plan import BadPlan, Plan
from arcpipe.load.source import Source
from arcpipe.units import MB
from tests.support.compression import zstd

STREAM = Stream("msgpack", "default", "auto")


def write(path: Path, content: bytes | str) -> Source:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Source(path)


def keys(source: Source, plan: Plan) -> list[str]:
    reader = read(source, plan)
    return [reader.key(chunk) for chunk in reader.chunks()]


# Keys

LINES = "".join(f"cpu n={n}i {n}\n" for n in range(100))


def test_the_same_content_has_the_same_keys_wherever_it_is(tmp_path: Path) -> None:
    plan = Plan(batch_records=7)
    first = keys(write(tmp_path / "a.lp", LINES), plan)
    assert len(set(first)) == len(first) == 15
    assert all(1 <= len(key) <= 128 and key.isascii() for key in first)
    (tmp_path / "b").mkdir()
    assert keys(write(tmp_path / "b" / "other.lp", LINES), plan) == first
    assert keys(write(tmp_path / "a.lp.gz", gzip.compress(LINES.encode())), plan) == first
    assert keys(write(tmp_path / "a.lp.zst", zstd.compress(LINES.encode())), plan) == first
    assert not set(keys(write(tmp_path / "c.lp", LINES + "#"), plan)) & set(first)


@pytest.mark.parametrize(
    "other",
    [
        {"precision": "s"},
        {"batch_records": 8},
        {"batch_bytes": 2000},
        {"database": "x"},
        {"measurement": "x"},
        {"measurement_column": "x"},
        {"tags": ("x",)},
        {"time_column": "x"},
        {"has_time": False},
        {"types": {"x": "int"}},
        {"format": "csv"},
    ],
)
def test_every_option_that_changes_chunks_is_in_the_key(other: dict[str, Any]) -> None:
    assert Plan(**other).key() != Plan().key()


def test_another_database_is_no_other_plan() -> None:
    """It is the scope of a key already."""
    assert Plan(database="x").key() == Plan(database="y").key()


# Files


def test_a_file_that_changes_while_it_is_loaded_is_given_up(tmp_path: Path) -> None:
    source = write(tmp_path / "a.lp", LINES)
    reader = read(source, Plan(batch_records=10))
    chunks = reader.chunks()
    next(chunks)
    with (tmp_path / "a.lp").open("a") as file:
        file.write("cpu n=1\n")
    with pytest.raises(BadInput, match="it changed while it was loaded"):
        next(chunks)


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_a_compressed_file_that_is_cut_is_refused_before_anything_is_sent(tmp_path: Path, pack: Any) -> None:
    data = pack(os.urandom(5000))
    with pytest.raises(BadInput, match="cannot be read"):
        read(write(tmp_path / "a.lp.gz", data[: len(data) // 2]), Plan())


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        Source(tmp_path / "missing.lp")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="it is no regular file"):
        Source(tmp_path / "pipe")
    with pytest.raises(BadPlan, match="its name does not say what it is: give --format"):
        read(write(tmp_path / "x.bin", b"x"), Plan())
    with pytest.raises(BadInput, match="decompress it first"):
        read(write(tmp_path / "x.parquet.gz", gzip.compress(b"PAR1")), Plan(measurement="x"))


@pytest.mark.parametrize(
    ("name", "start", "format_"),
    [
        ("a.lp", b"cpu v=1", "lines"),
        ("a", b"# INFLUXDB EXPORT: x\n", "lines"),
        ("a.CSV.gz", gzip.compress(b"time,v\n", mtime=0), "csv"),
        ("a.csv", b"\xef\xbb\xbf#datatype,x\n,_time\n", "annotated-csv"),
        ("a.jsonl", b"", "ndjson"),
    ],
)
def test_the_format_is_told_by_name_and_beginning(tmp_path: Path, name: str, start: bytes, format_: str) -> None:
    assert read(write(tmp_path / name, start), Plan(measurement="m")).plan.format == format_


CSV = "time,m,n\n" + "1,cpu,1\n" * 20
ANNOTATED = (
    "#datatype,string,long,dateTime:RFC3339,double,string,string\n,result,table,_time,_value,_field,_measurement\n"
)
ANNOTATED += ",,0,2026-01-01T00:00:00Z,1,n,cpu\n" * 20


@pytest.mark.parametrize(
    ("name", "content", "plan", "reason"),
    [
        ("a.csv", CSV + "1,cpu\n", {"measurement": "x"}, "line 22: it has 2 values"),
        ("a.csv", CSV + "1,cpu,x\n", {"measurement": "x", "types": {"n": "int"}}, "line 22: column 'n': 'x' is not of"),
        ("a.csv", CSV + "1,,1\n", {"measurement_column": "m"}, "line 22: column 'm' names no measurement"),
        (
            "a.ndjson",
            '{"measurement":"m","time":1,"n":1}\n' * 20 + '{"measurement":"m"}',
            {},
            "line 21: there is no col",
        ),
        ("a.ndjson", '{"measurement":"m","time":1,"n":1}\n' * 20 + "{}", {}, "line 21: it has no 'measurement'"),
        ("a.csv", ANNOTATED + ",,0,,1,n,cpu\n", {}, "line 23: there is no time"),
    ],
)
def test_what_ends_a_load_is_found_before_anything_is_sent(
    tmp_path: Path, name: str, content: str, plan: dict[str, Any], reason: str
) -> None:
    """The mended file is another one: what came before the bad line would be stored again."""
    source = write(tmp_path / name, content)
    with pytest.raises(BadInput, match=reason):
        read(source, Plan(batch_records=5, **plan))


def test_a_type_of_the_time_is_no_check_of_it(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", "time,n\n2026-01-01,1\n")
    [chunk] = read(source, Plan(measurement="x", types={"time": "int"})).chunks()
    assert chunk.records == 1


@pytest.mark.parametrize("is_dry_run", [False, True])
def test_a_load_that_ends_within_a_file_says_what_is_written(tmp_path: Path, is_dry_run: bool) -> None:
    source = write(tmp_path / "a.lp", LINES + "x" * (3 * MB) + " n=1i 1\n")
    loader = Loader(None if is_dry_run else Limited(100), Pace(None), Quiet())  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="line 101: it has more than 1 MB") as raised:
        loader.load(read(source, Plan(batch_records=10)))
    assert ("100 records before it are written" in str(raised.value)) is not is_dry_run


# Halves


@given(st.integers(1, 60), st.integers(30, 400))
def test_chunks_are_halved_to_fit_and_keep_every_row(count: int, most: int) -> None:
    whole = ColumnChunk(STREAM, "cpu", [], {"time": list(range(count)), "v": ["x" * 10] * count}, 100)
    parts = within(whole, most)
    assert all(len(part.body()) <= most or part.records == 1 for part in parts)
    assert [time for part in parts for time in msgpack.unpackb(part.body())[0]["columns"]["time"]] == list(range(count))
    assert [part.label for part in parts] == [part.label for part in within(whole, most)]
    assert sum(part.records for part in parts) == count


def test_places_are_those_of_the_file() -> None:
    rows = [Row("cpu", (), {"v": n}, 10 + n) for n in range(3)]
    assert RowChunk(STREAM, 0, rows).place == "lines 10 to 12"
    assert [half.place for half in RowChunk(STREAM, 0, rows).halves()] == ["line 10", "lines 11 to 12"]
    assert ColumnChunk(STREAM, "cpu", [], {"v": [1, 2]}, 5).place == "rows 6 to 7"
    assert ColumnChunk(STREAM, "cpu", [], {"v": [1]}, 5, [9]).place == "line 9"


# Sending


class Judge:
    """Stands where a delivery would: refuses bodies with a value of `bad`, and remembers keys."""

    def __init__(self, bad: Sequence[int], status: int = 400) -> None:
        self.bad = set(bad)
        self.status = status
        self.kept: dict[str, bytes] = {}
        self.written: list[int] = []

    def deliver(self, message: Message) -> Accepted | Refusal:
        if message.key in self.kept:
            assert self.kept[message.key] == message.body
            return Accepted(True, False)
        values = [value for element in msgpack.unpackb(message.body) for value in element["columns"]["v"]]
        if self.bad & set(values):
            return Refusal(message.key, "d", "msgpack", message.records, self.status, "bad value", False, message.body)
        self.kept[message.key] = message.body
        self.written += values
        return Accepted(False, False)


class Quiet:
    def __init__(self) -> None:
        self.too_large: list[str] = []

    def progressed(self, result: Result, reader: Reader) -> None: ...

    def was_refused(self, result: Result, bad: BadRecord) -> None: ...

    def was_too_large(self, result: Result, reason: str) -> None:
        self.too_large.append(reason)


def loaded(judge: Judge, reader: Reader) -> Result:
    return Loader(judge, Pace(None), Quiet()).load(reader)  # type: ignore[arg-type]


@pytest.mark.slow
@given(st.sets(st.integers(0, 39), max_size=6), st.integers(1, 40))
def test_bad_rows_are_found_and_all_others_written_once(bad: set[int], most: int) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"arcpipe-load-{os.getpid()}.csv"
    try:
        source = write(path, "time,v\n" + "".join(f"{n},{n}\n" for n in range(40)))
        judge = Judge(list(bad))
        for _ in range(2):  # the second load finds everything there
            reader = read(source, Plan(measurement="cpu", batch_records=most))
            result = loaded(judge, reader)
            assert sorted(judge.written) == [n for n in range(40) if n not in bad]
            assert sorted(one.place for one in result.bad) == sorted(f"line {n + 2}" for n in bad)
            assert (result.records, result.refused) == (40 - len(bad), len(bad))
        assert result.replayed == result.records
    finally:
        path.unlink()


@pytest.mark.parametrize(("status", "told"), [(413, 2), (400, 0)])
def test_requests_that_are_too_large_are_told(tmp_path: Path, status: int, told: int) -> None:
    """Their halves have other keys, so a server that takes them whole would store them again."""
    source = write(tmp_path / "x.csv", "time,v\n" + "".join(f"{n},{n}\n" for n in range(4)))
    judge, watcher = Judge([1], status), Quiet()
    with suppress(LoadFailed):  # of 413 for one row
        Loader(judge, Pace(None), watcher).load(read(source, Plan(measurement="cpu")))  # type: ignore[arg-type]
    assert watcher.too_large == ["bad value"] * told


def test_an_interrupted_load_is_finished_by_the_next(tmp_path: Path) -> None:
    source = write(tmp_path / "x.csv", "time,v\n" + "".join(f"{n},{n}\n" for n in range(50)))
    judge = Judge([])
    reader = read(source, Plan(measurement="cpu", batch_records=7))
    for number, chunk in enumerate(reader.chunks()):
        if number == 4:
            break
        judge.deliver(Message(reader.key(chunk), chunk.stream, chunk.records, chunk.body()))
    result = loaded(judge, read(source, Plan(measurement="cpu", batch_records=7)))
    assert judge.written == list(range(50))
    assert (result.records, result.replayed) == (50, 28)


@pytest.mark.parametrize(
    ("status", "text"),
    [(401, "answered 401: bad value"), (0, "bad value"), (413, r"raise server\.max_body_mb there .* again\Z")],
)
def test_what_is_no_fault_of_the_records_ends_the_load(tmp_path: Path, status: int, text: str) -> None:
    source = write(tmp_path / "x.csv", "time,v\n1,1\n")
    with pytest.raises(LoadFailed, match=text):
        loaded(Judge([1], status), read(source, Plan(measurement="cpu")))


class Limited:
    """A server that takes some requests, and finds the next one too large."""

    def __init__(self, taken: int) -> None:
        self._left = taken

    def deliver(self, message: Message) -> Accepted | Refusal:
        self._left -= 1
        if self._left >= 0:
            return Accepted(False, False)
        return Refusal(message.key, "d", "lines", message.records, 413, "too large", False, message.body)


@pytest.mark.parametrize(
    ("taken", "advice"),
    [(0, r"lower --batch-bytes\Z"), (2, "with another --batch-bytes the 20 records before it would be stored twice")],
)
def test_no_advice_about_lines_that_are_too_large_doubles_others(tmp_path: Path, taken: int, advice: str) -> None:
    reader = read(write(tmp_path / "a.lp", LINES), Plan(batch_records=10))
    with pytest.raises(LoadFailed, match=advice):
        Loader(Limited(taken), Pace(None), Quiet()).load(reader)  # type: ignore[arg-type]


def test_a_file_that_is_wrong_as_a_whole_is_given_up(tmp_path: Path) -> None:
    source = write(tmp_path / "x.csv", "time,v\n" + "1,1\n" * 3000)
    with pytest.raises(LoadFailed, match="more records are refused than written"):
        loaded(Judge([1]), read(source, Plan(measurement="cpu")))


# Pace


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(st.floats(1, 10_000), st.lists(st.tuples(st.integers(1, 500), st.floats(0, 5)), min_size=1, max_size=20))
def test_the_rate_is_never_exceeded(rate: float, steps: list[tuple[int, float]]) -> None:
    time = Time()
    pace = Pace(rate, lambda: time.now, time.sleep)
    sent = []
    for records, pause in steps:
        pace.wait_for(records)
        sent.append((time.now, records))
        time.now += pause
    for index, (start, _) in enumerate(sent):
        total = sum(records for _, records in sent[index:-1])
        assert sent[-1][0] - start >= total / rate * (1 - 1e-9) - 1e-9


def test_chunks_of_any_kind_are_chunks() -> None:
    chunk: Chunk = ColumnChunk(STREAM, "cpu", ["host", "none"], {"v": [1], "host": ["a"]}, 0)
    assert msgpack.unpackb(chunk.body()) == [{"m": "cpu", "columns": {"v": [1], "host": ["a"]}, "tags": ["host"]}]
    assert replace(Plan(), database="x").database == "x"
    assert Delivery is not None

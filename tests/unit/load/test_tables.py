"""CSV, annotated CSV, NDJSON, Parquet and Arrow become columns whose values and types are those of the file."""

from __future__ import annotations

import csv
import decimal
import io
import itertools
import json
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import msgpack
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arcpipe.load import annotated_csv, csv_files, ndjson, texts
from arcpipe.load.chunks import BadInput, Chunk
from arcpipe.load.formats import read
from arcpipe.load.plan import BadPlan, Plan
from arcpipe.load.source import Source


def rows_of(chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
    """Return the records of chunks in the order of the file, if they are of one measurement."""
    found = []
    for chunk in chunks:
        for element in msgpack.unpackb(chunk.body(), timestamp=3):
            columns = element["columns"]
            for values in zip(*columns.values(), strict=True):
                row = {k: v for k, v in zip(columns, values, strict=True) if v is not None}
                found.append({"m": element["m"], **row})
    return found


def load_csv(text: str, plan: Plan) -> list[Chunk]:
    types = csv_files.survey(io.BytesIO(text.encode()), plan, "x.csv")
    return list(csv_files.read(io.BytesIO(text.encode()), plan, "x.csv", types))


def csv_plan(**options: Any) -> Plan:
    return Plan(**{"format": "csv", "measurement": "power", **options})


# Types of texts

cells = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_infinity=False).map(str),
    st.booleans().map(str),
    st.sampled_from(["", "007", "1_000", "1e5", ".5", "5.", "-", "NaN", "inf", "0x1", " 1", "true", "TRUE", "é"]),
    st.text(max_size=5),
)


@pytest.mark.slow
@given(st.lists(st.lists(cells, min_size=1, max_size=5), min_size=1, max_size=5))
def test_the_type_of_a_column_fits_all_its_values_and_loses_none(groups: list[list[str]]) -> None:
    kind = None
    for group in groups:
        kind = texts.kind_of(group, kind)
    assert kind == texts.kind_of([cell for group in groups for cell in group], None), "the grouping decides nothing"
    for group in groups:
        for text, value in zip(group, texts.typed(group, kind), strict=True):
            assert (value is None) == (text == "")
            if kind == "text" and text:
                assert value == text
            if kind == "int" and text:
                assert str(value) == text or text == "-0"
            if kind == "float" and text:
                assert value == float(text) or value != value or (str(value) == text and abs(value) > 2**53)
            if kind == "float" and text.removeprefix("-").isdigit():
                assert value == int(text), "no digit is lost"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "", "-5"], "int"),
        (["1", "2.5"], "float"),
        (["true", "False"], "bool"),
        (["007"], "text"),
        (["1_000"], "text"),
        (["-9223372036854775808", "18446744073709551615"], "int"),  # what 64 bits hold, as in NDJSON and over HTTP
        (["18446744073709551616"], "text"),
        (["-9223372036854775809"], "text"),
        (["18446744073709551616", "2.5"], "text"),
        (["123456789012345678901"], "text"),
        (["1" * 5000], "text"),
        (["-" + "1" * 5000, "1.5"], "text"),
        (["1" + "\u0968"], "text"),
        (["1.\u0968"], "text"),
        (["1e30", "2.", "12"], "float"),
        (["1", "true"], "text"),
        (["", ""], None),
    ],
)
def test_types_are_read_strictly(values: list[str], kind: str | None) -> None:
    assert texts.kind_of(values, None) == kind


def test_an_integer_of_more_than_64_bits_is_refused_where_integers_are_wanted() -> None:
    with pytest.raises(ValueError, match="18446744073709551616") as refused:
        texts.typed(["7", "18446744073709551616"], "int", found=False)
    assert refused.value.args[0] == 1


# CSV


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**40),
            st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=8),
            st.floats(-1e9, 1e9),
        ),
        max_size=40,
    ),
    st.integers(1, 7),
)
def test_csv_comes_back_with_every_value(records: list[tuple[int, str, float]], most: int) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["time", "note", "v"])
    writer.writerows([(time, "n" + note, repr(v)) for time, note, v in records])
    chunks = load_csv(file.getvalue(), csv_plan(batch_records=most))
    assert rows_of(chunks) == [{"m": "power", "time": t, "note": "n" + note, "v": v} for t, note, v in records]
    assert all(chunk.records <= most for chunk in chunks)


def test_a_column_of_floats_is_one_from_its_first_row_on() -> None:
    [first, *_] = load_csv("time,v\n1,1\n2,2\n3,2.5\n", csv_plan(batch_records=1))
    assert rows_of([first]) == [{"m": "power", "time": 1, "v": 1.0}]
    assert isinstance(rows_of([first])[0]["v"], float)


def test_csv_keeps_integers_that_no_float_holds() -> None:
    text = "time,v\n1,9007199254740993\n2,0.5\n3,-9007199254740993\n4,9007199254740992\n"
    values = [row["v"] for row in rows_of(load_csv(text, csv_plan()))]
    assert values == [2**53 + 1, 0.5, -(2**53) - 1, 2.0**53]
    assert [type(value) for value in values] == [int, float, int, float]
    named = rows_of(load_csv(text, csv_plan(types={"v": "float"})))
    assert [type(row["v"]) for row in named] == [float] * 4


def test_measurements_tags_and_types_may_be_named() -> None:
    plan = csv_plan(measurement="", measurement_column="what", tags=("site",), types={"zip": "text"}, time_column="at")
    chunks = load_csv("at,what,site,zip,v\n1,power,7,12,1\n2,water,8,13,2\n", plan)
    assert rows_of(chunks) == [
        {"m": "power", "time": 1, "site": "7", "zip": "12", "v": 1},
        {"m": "water", "time": 2, "site": "8", "zip": "13", "v": 2},
    ]
    assert msgpack.unpackb(chunks[0].body())[0]["tags"] == ["site"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1: the first line has to name every column"),
        ("time,,v\n", "line 1: the first line has to name every column"),
        ("time,v,v\n", "line 1: column 'v' is there twice"),
        ("time,v\n1,2\n\n3\n", "line 4: it has 1 values, the first line has 2 names"),
        ('time,v\n1,"a\nb"\n2,"x\n', "line 4: no CSV"),
    ],
)
def test_bad_csv_is_refused_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(BadInput, match=f"x.csv: {reason}"):
        load_csv(text, csv_plan())


def test_csv_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(BadInput, match=r"x.csv: after line \d+: not UTF-8"):
        csv_files.survey(io.BytesIO(b"time,v\n1,\xff\n"), csv_plan(), "x.csv")


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (csv_plan(measurement=""), "nothing says which measurement"),
        (csv_plan(time_column="at"), "there is no column at: give --time-column"),
        (csv_plan(tags=("host",)), "--tags: there is no column 'host'"),
        (csv_plan(types={"x": "int"}), "--types: there is no column 'x'"),
        (csv_plan(time_column="v"), "there is another column 'time'"),
    ],
)
def test_options_that_do_not_fit_the_file_are_refused(plan: Plan, reason: str) -> None:
    with pytest.raises(BadPlan, match=reason):
        load_csv("time,v\n1,2\n", plan)


def test_a_value_that_is_not_of_the_given_type_is_refused_with_its_line() -> None:
    with pytest.raises(BadInput, match=r"x\.csv: line 3: column 'v': 'x' is not of the type int"):
        load_csv("time,v\n1,2\n2,x\n", csv_plan(types={"v": "int"}))


def test_without_a_time_the_plan_has_to_say_so() -> None:
    assert rows_of(load_csv("v\n1\n", csv_plan(has_time=False))) == [{"m": "power", "v": 1}]


# Annotated CSV

ANNOTATED = """#datatype,string,long,dateTime:RFC3339,dateTime:RFC3339,dateTime:RFC3339,double,string,string,string\r
#group,false,false,true,true,false,false,true,true,true\r
#default,_result,,,,,,,,\r
,result,table,_start,_stop,_time,_value,_field,_measurement,host\r
,,0,2026-01-01T00:00:00Z,2026-02-01T00:00:00Z,2026-01-02T00:00:00Z,1.5,usage,cpu,a\r
,,0,2026-01-01T00:00:00Z,2026-02-01T00:00:00Z,2026-01-02T00:00:01.123456789Z,2,usage,cpu,a\r
\r
#datatype,string,long,dateTime:RFC3339,long,string,string\r
#group,false,false,false,false,true,true\r
#default,_result,,,,,\r
,result,table,_time,_value,_field,_measurement\r
,,1,2026-01-02T00:00:02Z,7,count,mem\r
"""


def annotated(text: str, **options: Any) -> list[Chunk]:
    return list(annotated_csv.read(io.BytesIO(text.encode()), Plan(format="annotated-csv", **options), "x.csv"))


def test_annotated_csv_becomes_records_with_types_and_tags() -> None:
    chunks = annotated(ANNOTATED)
    assert rows_of(chunks) == [
        {"m": "cpu", "host": "a", "usage": 1.5, "time": "2026-01-02T00:00:00Z"},
        {"m": "cpu", "host": "a", "usage": 2.0, "time": "2026-01-02T00:00:01.123456789Z"},
        {"m": "mem", "count": 7, "time": "2026-01-02T00:00:02Z"},
    ]
    assert [element.get("tags") for element in msgpack.unpackb(chunks[0].body())] == [["host"], None]


def test_a_pivoted_table_has_fields_of_its_other_columns() -> None:
    text = (
        "#datatype,string,long,dateTime:RFC3339,string,string,double,boolean\n"
        "#group,false,false,false,true,true,false,false\n#default,,,,,,,\n"
        ",result,table,_time,_measurement,host,usage,ok\n,,0,2026-01-02T00:00:00Z,cpu,a,1,true\n"
    )
    chunks = annotated(text)
    assert rows_of(chunks) == [{"m": "cpu", "host": "a", "usage": 1.0, "ok": True, "time": "2026-01-02T00:00:00Z"}]
    assert msgpack.unpackb(chunks[0].body())[0]["tags"] == ["host"]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("#datatype,string,long,dateTime:RFC3339,dateTime", "#type,string,long,dateTime:RFC3339,dateTime", "#datatype"),
        (",1.5,", ",one,", "line 5: column '_value': 'one' is not of its #datatype"),
        (",usage,cpu,a\r\n,,0", ",usage,cpu\r\n,,0", "line 5: it has 9 values, its table has 10 names"),
        ("2026-01-02T00:00:00Z,1.5", ",1.5", "line 5: there is no time"),
        (",_time,", ",_when,", "there is no column _time"),
    ],
)
def test_bad_annotated_csv_is_refused_with_its_line(before: str, after: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        annotated(ANNOTATED.replace(before, after, 1))


# NDJSON

records = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e9, 1e9) | st.text(max_size=5),
)


@pytest.mark.slow
@given(st.lists(records, max_size=30), st.integers(1, 7))
@example([{"c": 2**53 + 1}, {"c": 0.0}], 1)  # which no float holds
def test_ndjson_comes_back_with_every_value(found: list[dict[str, Any]], most: int) -> None:
    found = [{"time": number, "n": number, **record} for number, record in enumerate(found)]
    data = "\n".join(json.dumps(record) for record in found).encode()
    plan = Plan(format="ndjson", measurement="cpu", batch_records=most)
    floats = ndjson.survey(io.BytesIO(data), plan, "x")
    back = rows_of(list(ndjson.read(io.BytesIO(data), plan, "x", floats)))
    assert back == [{"m": "cpu", **{k: v for k, v in record.items() if v is not None}} for record in found]
    for name in "abc":
        kinds = {
            type(row[name])
            for row in back
            if isinstance(row.get(name), int | float) and not isinstance(row[name], bool)
            if type(row[name]) is float or abs(row[name]) <= 2**53
        }
        assert len(kinds) <= 1, "a column of numbers has one type in the whole file"


def test_ndjson_integers_of_more_than_64_bits_are_text() -> None:
    line = b'{"time":1,"a":18446744073709551616,"b":18446744073709551615,"c":-9223372036854775809,"d":[1,{"e":%d}]}'
    data = line % 10**30 + b"\n" + b'{"time":2,"a":0.5}'
    plan = Plan(format="ndjson", measurement="cpu")
    floats = ndjson.survey(io.BytesIO(data), plan, "x")
    first, second = rows_of(list(ndjson.read(io.BytesIO(data), plan, "x", floats)))
    assert (first["a"], first["b"], first["c"]) == (str(2**64), 2**64 - 1, str(-(2**63) - 1))
    assert (first["d"], second["a"]) == ([1, {"e": str(10**30)}], 0.5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"time":1,"v":1}\n{"v":', "line 2: no JSON"),
        ('{"time":1,"v":' + "1" * 5000 + "}", "line 1: no JSON"),
        ('{"time":1,"v":' + "[" * 5000 + "]" * 5000 + "}", "line 1: no JSON"),
        ('{"time":1,"v":' + "[" * 900 + "]" * 900 + "}", "line 1: the value of 'v' is nested too deep"),
        ("[1]", "line 1: it is no JSON object but list"),
        ('{"time":1,"v":1}\n\n{"v":1}', "line 3: there is no column time"),
    ],
)
def test_bad_json_is_refused_with_its_line(text: str, reason: str) -> None:
    plan = Plan(format="ndjson", measurement="cpu")
    with pytest.raises(BadInput, match=reason):
        list(ndjson.read(io.BytesIO(text.encode()), plan, "x", frozenset()))


def test_json_says_its_measurement_or_the_plan_does() -> None:
    with pytest.raises(BadInput, match="it has no 'measurement' that names its measurement"):
        ndjson.survey(io.BytesIO(b'{"time":1,"v":1}'), Plan(format="ndjson"), "x")


# Parquet and Arrow

START = datetime(2026, 1, 1, tzinfo=UTC)
TABLE = pa.table(
    {
        "time": pa.array([START + timedelta(seconds=n) for n in range(5)], pa.timestamp("us", "UTC")),
        "host": pa.array(["a", None, "b", "c", "d"]).dictionary_encode(),
        "i": pa.array([1, 2, None, 4, 5], pa.int32()),
        "f": pa.array([0.5, 1.5, 2.5, 3.5, 4.5], pa.float32()),
        "u": pa.array([2**64 - 1] * 5, pa.uint64()),
        "ok": [True, False, None, True, True],
        "d": pa.array([decimal.Decimal("1.10")] * 5, pa.decimal128(10, 2)),
        "big": pa.array([decimal.Decimal(2**64 - 1)] * 5, pa.decimal128(20, 0)),
        "day": pa.array([date(2026, 1, 1)] * 5),
        "raw": pa.array([b"\x00\xff"] * 5),
        "at": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * 5, pa.timestamp("ns", "UTC")),
        "list": [[1, 2]] * 5,
    }
)  # fmt: skip


def write_parquet(path: Path) -> Path:
    path = path / "x.parquet"
    pq.write_table(TABLE, path, row_group_size=2)
    return path


def write_ipc(path: Path) -> Path:
    path = path / "x.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=2)
    return path


def write_stream(path: Path) -> Path:
    path = path / "x.arrows"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=1)
    return path


@pytest.mark.parametrize("write", [write_parquet, write_ipc, write_stream])
def test_parquet_and_arrow_come_back_with_every_value(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    reader = read(Source(path), Plan(measurement="cpu", tags=("host",), batch_records=3))
    chunks = list(reader.chunks())
    assert [chunk.label for chunk in chunks] == ["0+3", "3+2"]  # whatever groups the file has
    assert chunks[0].stream.precision == "us"
    rows = rows_of(chunks)
    assert rows[0] == {
        "m": "cpu",
        "time": 1_767_225_600_000_000,
        "host": "a",
        "i": 1,
        "f": 0.5,
        "u": 2**64 - 1,
        "ok": True,
        "d": "1.10",
        "big": 2**64 - 1,
        "day": "2026-01-01",
        "raw": b"\x00\xff",
        "at": datetime(2026, 1, 1, tzinfo=UTC),
        "list": [1, 2],
    }
    assert "host" not in rows[1]
    assert "i" not in rows[2]
    assert msgpack.unpackb(chunks[0].body(), timestamp=3)[0]["tags"] == ["host"]


@pytest.mark.parametrize("write", [write_parquet, write_ipc, write_stream])
def test_a_damaged_file_of_arrow_is_refused(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match=r"or a damaged one|cannot be read"):
        list(read(Source(path), Plan(measurement="cpu"), "parquet" if path.suffix == ".parquet" else "arrow").chunks())


def test_a_stream_of_arrow_with_a_wrong_byte_is_read_or_refused(tmp_path: Path) -> None:
    """Names that are no UTF-8, offsets out of the values, lengths of any size: pyarrow takes most of these."""
    path = tmp_path / "x.arrow"
    table = pa.table({"a": ["x", "yy", None]})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    good = path.read_bytes()
    refused = 0
    for byte, value in itertools.product(range(len(good)), (0x7F, 0xFF)):
        path.write_bytes(good[:byte] + bytes([value]) + good[byte + 1 :])
        try:
            for chunk in read(Source(path), Plan(measurement="cpu", has_time=False), "arrow").chunks():
                chunk.body()
        except BadInput:
            refused += 1
    assert refused > len(good) // 2


def test_a_zone_that_nobody_knows_changes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    table = pa.table({"at": pa.array([1_000_000, None], pa.timestamp("us", "No/Where"))})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    [chunk] = read(Source(path), Plan(measurement="cpu", has_time=False), "arrow").chunks()
    assert msgpack.unpackb(chunk.body(), timestamp=3)[0]["columns"]["at"] == [datetime.fromtimestamp(1, UTC), None]


def test_nested_times_that_python_does_not_hold_are_text(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    far, nowhere = pa.list_(pa.timestamp("ms")), pa.list_(pa.timestamp("ms", "No/Where"))
    table = pa.table({"v": [1, 2], "far": pa.array([[2**60], None], far), "at": pa.array([[0], []], nowhere)})
    pq.write_table(table, path)
    [chunk] = read(Source(path), Plan(measurement="cpu", has_time=False)).chunks()
    columns = msgpack.unpackb(chunk.body())[0]["columns"]
    assert columns["far"] == [["36536598-01-28 21:54:06.976"], None]
    assert columns["at"] == [["1970-01-01 00:00:00.000+00:00"], []]


@pytest.fixture
def arc_file(tmp_path: Path) -> Path:
    path = tmp_path / "pro%20d" / "cpu" / "2026" / "01" / "01" / "00" / "x.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(TABLE.select(["time", "f"]), path)
    return path


def test_arc_s_layout_names_database_and_measurement(arc_file: Path) -> None:
    [chunk] = read(Source(arc_file), Plan()).chunks()
    assert (chunk.stream.database, rows_of([chunk])[0]["m"]) == ("pro d", "cpu")
    [chunk] = read(Source(arc_file), Plan(database="x", measurement="y")).chunks()
    assert (chunk.stream.database, rows_of([chunk])[0]["m"]) == ("x", "y")


def test_int96_of_any_year_is_sent_as_it_is(tmp_path: Path) -> None:
    moments = [datetime(year, 12, 31, 23, 59, 59, 123_456, UTC) for year in (1600, 2026, 9999)]
    table = pa.table({"time": [1, 2, 3], "at": pa.array(moments, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "x.parquet", use_deprecated_int96_timestamps=True)
    source = Source(tmp_path / "x.parquet")
    found = rows_of(list(read(source, Plan(measurement="cpu"), "parquet").chunks()))
    assert [row["at"] for row in found] == moments


@pytest.mark.parametrize("unit", ["s", "ms"])
def test_moments_of_which_microseconds_have_no_64_bits_are_text(tmp_path: Path, unit: str) -> None:
    table = pa.table({"v": [1, 2], "at": pa.array([2**62, 0], pa.timestamp(unit))})
    with pa.OSFile(str(tmp_path / "x.arrows"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    plan = Plan(measurement="cpu", has_time=False)
    far, near = rows_of(list(read(Source(tmp_path / "x.arrows"), plan, "arrow").chunks()))
    assert far["at"] == {"s": "146138514283-06-19 07:45:04+00:00", "ms": "146140482-04-24 15:36:27.904+00:00"}[unit]
    assert near["at"] == datetime(1970, 1, 1, tzinfo=UTC)

"""Records become bytes that the server's own codec reads back, or are refused with the name of what is wrong."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.client import BadRecord, encoding
from arcpipe.client.encoding import Part, Stream
from arcpipe.codec.messagepack.body import encode
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.errors import BadPayload
from tests.support.compression import zstd
from tests.support.program import ROOT, environment

RULES = {word: TimeRule(None if word == "auto" else word) for word in ("auto", "ns", "us", "ms", "s")}
names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()


def unpacked(part: Part) -> Any:
    return msgpack.unpackb(part.data, timestamp=3)


@pytest.mark.slow
@given(names, st.dictionaries(names, scalars, min_size=1), st.lists(names))
def test_a_record_becomes_a_row_with_all_its_values(measurement: str, record: dict[str, Any], tags: list[str]) -> None:
    record.pop("time", None)
    given_ = {name: value for name, value in record.items() if value is not None}
    if not given_.keys() - set(tags):
        with pytest.raises(BadRecord, match="has no field"):
            encoding.encode_record(measurement, record, tags, "auto")
        return
    row = unpacked(encoding.encode_record(measurement, record, tags, "auto"))
    assert (row["m"], {**row["fields"], **row.get("tags", {})}) == (measurement, given_)
    assert row.get("tags", {}).keys() <= set(tags)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), scalars), min_size=1, max_size=30), st.integers(1, 10))
def test_records_become_columns_without_losing_a_value(records: list[dict[str, Any]], most: int) -> None:
    records = [{"n": number, **record} for number, record in enumerate(records)]
    parts = list(encoding.encode_records("cpu", records, ["a"], "us", most))
    back = []
    for part in parts:
        value = unpacked(part)
        columns = value["columns"]
        assert {len(values) for values in columns.values()} == {part.records}
        assert part.records <= most
        back += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for row in back:
        assert isinstance(row.pop("time"), int)
    filled = [{name: value for name, value in row.items() if value is not None} for row in back]
    assert filled == [{k: v for k, v in record.items() if v is not None} for record in records]


def test_columns_may_be_arrays_and_keep_their_times() -> None:
    moment = datetime(2026, 11, 29, tzinfo=UTC)
    columns = {"time": [1, None, moment], "v": np.arange(3) / 2, "host": ("a", "b", "c")}
    [part] = encoding.encode_columns("cpu", columns, ["host"], "us", 100)
    value = unpacked(part)
    assert value["columns"]["v"] == [0.0, 0.5, 1.0]
    assert value["columns"]["time"][0] == 1
    assert value["columns"]["time"][1] > 1_700_000_000_000_000
    assert value["columns"]["time"][2] == moment
    assert value["tags"] == ["host"]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"v": [1], "w": [1, 2]}, "column 'w' of 'cpu' has 2 values, others have 1"),
        ({"time": [1]}, "there is no column but tags and time"),
        ({"v": "abc"}, "column 'v' is no list of values but str"),
        ({"v": 1}, "column 'v' is no list of values but int"),
        ({"v": [1], "time": [True]}, "time True is no time"),
        ({"v": [1], "time": ["tomorrow"]}, "time 'tomorrow' is no time"),
        ({"v": [1], "time": [float("nan")]}, "time nan is no time"),
        ({"v": [1], "time": [-62_135_596_801]}, "time -62135596801 is no time"),
        ({"v": [1], "time": ["2026-W01-1"]}, "time '2026-W01-1' is no time"),
        ({"": [1]}, "column '': use 1 to 256 bytes"),
        ({"a\n": [1]}, "use 1 to 256 bytes of UTF-8 without control characters"),
        ({"\ud800": [1]}, "is not valid Unicode"),
        ({1: [1]}, "column 1 is no text"),
        ({"v": [object()]}, "a record of 'cpu' cannot be encoded"),
        ({"v": [2**64]}, "a record of 'cpu' cannot be encoded"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_once(columns: dict[Any, Any], text: str) -> None:
    with pytest.raises(BadRecord, match=text.replace("[", r"\[")):
        list(encoding.encode_columns("cpu", columns, [], "auto", 10))


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.integers(-(10**12), 10**12) | st.floats() | st.floats(-1e19, 1e19)
EDGES = st.sampled_from([-62_135_596_800, -62_135_596_801, 253_402_300_799, 253_402_300_800])
DATES = st.from_regex(
    r"[0129]\d{3}-?(W?[01]\d-?[0-3]?\d)([Tx ][012]\d:?[0-5]\d(:?[0-6]\d([.,]\d+)?)?)?(Z|[+-]\d\d:?\d\d(:30)?)?"
)
MOMENTS = st.datetimes(
    timezones=st.none() | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
)


@given(
    st.lists(
        NUMBERS | EDGES | EDGES.map(float) | EDGES.map(lambda second: second * 1000) | DATES | MOMENTS,
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["auto", "ns", "us", "ms", "s"]),
)
def test_times_are_refused_as_the_server_refuses_them(times: list[Any], precision: Any) -> None:
    """One bad time would cost the records of a whole batch, of other calls, too."""
    columns = {"time": times, "v": times}
    try:
        parts = list(encoding.encode_columns("cpu", columns, ["time"], precision, 10))
    except BadRecord:
        if any(isinstance(time, datetime) for time in times):
            return  # not all of them have an encoding
        parts = [Part(msgspec.msgpack.encode({"m": "cpu", "columns": columns}), len(times))]
        with pytest.raises(BadPayload):
            encode(encoding.body_of("msgpack", [part.data for part in parts]), rule=RULES[precision])
    else:
        body = encoding.body_of("msgpack", [part.data for part in parts])
        assert encode(body, rule=RULES[precision]).records == len(times)


def test_lines_are_counted_and_blank_text_is_no_part() -> None:
    part = encoding.encode_lines(["cpu v=1", "# a comment", "", "cpu v=2\n"])
    assert part == Part(b"cpu v=1\n# a comment\n\ncpu v=2", 2)
    assert encoding.encode_lines("\n#\n") is None
    with pytest.raises(BadRecord, match="not UTF-8"):
        encoding.encode_lines(b"cpu v=\xff")


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_parts_become_one_array(count: int) -> None:
    elements = [number % 100 for number in range(count)]
    body = encoding.body_of("msgpack", [msgpack.packb(element) for element in elements])
    assert msgpack.unpackb(body) == elements


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_the_same_body_has_the_same_compressed_bytes(compression: Any) -> None:
    body = b"cpu v=1\n" * 1000
    first = encoding.compressed(body, compression)
    assert first == encoding.compressed(body, compression)
    if compression == "zstd":
        assert zstd.decompress(first) == body


def test_names_of_databases_are_encoded_in_the_target() -> None:
    assert Stream("lines", "a b&c/é", "ns").target == "/write?db=a%20b%26c%2F%C3%A9&precision=ns&accept_partial=true"
    with pytest.raises(BadRecord, match="is no database name"):
        encoding.check_database("..")


@pytest.mark.slow
def test_the_client_is_light_to_import(tmp_path: Path) -> None:
    """Whoever sends some records loads neither Arrow nor numpy nor the server."""
    program = "import sys, arcpipe.client; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"pyarrow", "numpy", "aiohttp", "aiobotocore", "typer", "rich", "uvloop", "httptools"}
    ours = {name.split(".")[1] for name in loaded if name.startswith("arcpipe.")}
    assert ours <= {"client", "errors", "units", "names", "iso_8601", "disk", "descriptors", "durable"}
    assert ROOT.exists()


def test_a_text_for_a_list_of_tags_is_refused() -> None:
    """Its characters would be the names of tags, and the tag a field for ever."""
    for parts in (
        lambda: encoding.encode_record("cpu", {"host": "a", "v": 1}, "host", "auto"),
        lambda: list(encoding.encode_records("cpu", [{"host": "a", "v": 1}], "host", "auto", 9)),
        lambda: list(encoding.encode_columns("cpu", {"host": ["a"], "v": [1]}, "host", "auto", 9)),
    ):
        with pytest.raises(BadRecord, match="tags 'host' is one text"):
            parts()

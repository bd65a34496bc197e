"""Times in MessagePack: which ones are refused, and that worker and uploader read the others alike."""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from arcpipe.codec.arrow.find import find_values
from arcpipe.codec.arrow.times import decode_time
from arcpipe.codec.messagepack.body import encode
from arcpipe.codec.messagepack.times import RULE, TimeRule
from arcpipe.codec.time_units import UNIT_NS, fitting_unit
from arcpipe.errors import BadPayload

MAX_US = 253_402_300_799_999_999
MIN_US = -62_135_596_800_000_000
AS_ARC = TimeRule(as_arc=True)
RULES = {word: TimeRule(word) for word in UNIT_NS}
T_US = 1_790_000_000_123_000  # 2026-09-21T14:13:20.123Z


def columns(times: list[Any]) -> bytes:
    body: bytes = msgpack.packb({"m": "m", "columns": {"v": list(range(len(times))), "time": times}})
    return body


def rows(times: list[Any]) -> bytes:
    body: bytes = msgpack.packb([{"m": "m", "t": time, "fields": {"v": 1}} for time in times])
    return body


SHAPES = pytest.mark.parametrize("shape", [columns, rows])


def written(body: bytes, rule: TimeRule = RULE) -> list[int | None]:
    """What the uploader reads of the times in µs since the epoch; None: it takes the time of arrival."""
    encoded = encode(body, rule=rule)
    maps = msgpack.unpackb(encoded.body, timestamp=0)
    times: list[int | None] = []
    for named in [each["columns"] for each in (maps if encoded.batch else [maps])]:
        values = named.get("time") or [None] * len(named["v"])
        decoded = decode_time(find_values(b"".join(map(msgpack.packb, values)), len(values)), rule.precision)
        assert not len(decoded.odd)
        missing = set(decoded.missing.tolist())
        times += [None if row in missing else us for row, us in enumerate(decoded.us.tolist())]
    return times


def refusal(body: bytes, rule: TimeRule = RULE) -> str:
    with pytest.raises(BadPayload) as caught:
        encode(body, rule=rule)
    return str(caught.value)


@SHAPES
@pytest.mark.parametrize(
    ("time", "us"),
    [
        (1_790_000_000_123.0, T_US),
        (1_790_000_000_123.456, T_US + 456),
        (1_790_000_000_123_456.0, T_US + 456),
        (1.79e18, 1_790_000_000_000_000),
        (99_999_999_999.0, 99_999_999_999_000_000),
        (100_000_000_000.0, 100_000_000_000_000),
        (-100_000_000_000.0, -100_000_000_000_000),
        (1_790_000_000.25, 1_790_000_000_250_000),
    ],
)
def test_the_size_of_a_float_tells_its_unit(shape: Any, time: float, us: int) -> None:
    for count in (1, 3, 5_000):
        assert written(shape([time] * count)) == [us] * count


ISO = {
    "2026-09-21": 1_789_948_800_000_000,
    "2026-09-21T14:13:20Z": 1_790_000_000_000_000,
    "2026-09-21T14:13:20.123Z": T_US,
    "2026-09-21T14:13:20,123Z": T_US,
    "2026-09-21 14:13:20.123456": T_US + 456,
    "2026-09-21T14:13:20.123456789Z": T_US + 456,
    "2026-09-21T14:13:20.1234567891234Z": T_US + 456,
    "2026-09-21T16:13:20.123+02:00": T_US,
    "2026-09-21T05:43:20.123-0830": T_US,
    "2026-09-21t15:13:20.123+01": T_US,
    "2026-09-21T14:13": 1_789_999_980_000_000,
    "20260921T141320.123Z": T_US,
    "1969-12-31T23:59:59.999999Z": -1,
    "0001-01-01T00:00:00Z": MIN_US,
    "9999-12-31T23:59:59.999999Z": MAX_US,
}


@SHAPES
@pytest.mark.parametrize("text", ISO)
def test_iso_8601_text_is_a_time(shape: Any, text: str) -> None:
    for count in (1, 3, 5_000):
        assert written(shape([text] * count)) == [ISO[text]] * count


@SHAPES
def test_texts_of_many_forms_and_other_times_may_be_mixed(shape: Any) -> None:
    times = [*ISO, 1_790_000_000, None, 1_790_000_000.5, 1_790_000_000_123.0, msgpack.Timestamp(1, 5_000)] * 300
    us = [*ISO.values(), 1_790_000_000_000_000, None, 1_790_000_000_500_000, T_US, 1_000_005] * 300
    assert written(shape(times)) == us
    # A precision is that of numbers only.
    assert written(shape(["2026-09-21", 1_790_000_000]), RULES["s"]) == [1_789_948_800_000_000, 1_790_000_000_000_000]


BAD = {
    "yesterday": "text 'yesterday' is no ISO 8601 time",
    "": "text '' is no ISO 8601 time",
    "1790000000": "text '1790000000' is no ISO 8601 time",
    "2026-02-30": "text '2026-02-30' is no ISO 8601 time",
    "2026-09-21T24:00:00Z": "text '2026-09-21T24:00:00Z' is no ISO 8601 time",
    "2026-09-21T14:13:60Z": "text '2026-09-21T14:13:60Z' is no ISO 8601 time",
    "2026-09-21T14:13:20+24:00": "text '2026-09-21T14:13:20+24:00' is no ISO 8601 time",
    "2026-09-21x14:13:20": "text '2026-09-21x14:13:20' is no ISO 8601 time",
    "0000-01-01": "text '0000-01-01' is no ISO 8601 time",
    "0001-01-01T00:00:00+01:00": "text '0001-01-01T00:00:00+01:00' is no ISO 8601 time",
    "٢٠٢٦-09-21": "is no ISO 8601 time",
    math.nan: "nan is no time",
    math.inf: "inf is no time",
    1e300: "1e+300 is no time",
    True: "a boolean",
    b"2026-09-21": "binary",
    msgpack.ExtType(5, b"1234"): "an extension",
}


@SHAPES
@pytest.mark.parametrize("time", BAD, ids=repr)
@pytest.mark.parametrize("good", [[], [1_790_000_000] * 3, ["2026-09-21"] * 3, [None] * 3_000, [1.5] * 3_000])
def test_what_is_no_time_is_refused_and_named(shape: Any, time: Any, good: list[Any]) -> None:
    text = refusal(shape([*good, time, *good]))
    assert BAD[time] in text
    assert f"row {len(good)}:" in text


@SHAPES
def test_a_timestamp_with_a_second_of_nanoseconds_is_refused(shape: Any) -> None:
    good, bad = (b"\xd7\xff" + struct.pack(">Q", ns << 34 | 5) for ns in (10**9 - 1, 10**9))
    body = shape([msgpack.Timestamp(5, 10**9 - 1)] * 3)
    assert encode(body).records == 3
    assert body.count(good) == 3
    text = "an extension that is no timestamp of the years 1 to 9999"
    assert text in refusal(body.replace(good, bad, 1))
    late = b"\xc7\x0c\xff" + struct.pack(">Iq", 0, 1 << 40)
    assert text in refusal(body.replace(good, late, 1))


def test_the_refusal_of_a_single_row_has_no_number() -> None:
    body = msgpack.packb({"m": "m", "t": "now", "fields": {"v": 1}})
    assert refusal(body) == "'t': text 'now' is no ISO 8601 time"


@SHAPES
@pytest.mark.parametrize(
    ("word", "time", "other"),
    [
        ("s", 1_790_000_000_000, "ms"),
        ("s", 1_790_000_000_000_000_000, "ns"),
        ("ms", 1_790_000_000_000_000, "us"),
        ("us", 1_790_000_000_000_000_000, "ns"),
        ("m", 1_790_000_000_000, "ms"),
        ("h", 1_790_000_000, "s"),
        ("s", -1_790_000_000_000, "ms"),
        ("s", 1_790_000_000_000.0, "ms"),
        ("s", 253_402_300_800.0, "ms"),
        ("ms", 253_402_300_800_000.0, "us"),
    ],
)
def test_a_time_out_of_the_range_of_the_precision_is_refused(shape: Any, word: str, time: float, other: str) -> None:
    reason = f"{time} is out of the range of precision={word} (use precision={other}?)"
    for good in ([], [5] * 3, [1_790_000] * 3_000):
        text = refusal(shape([*good, time]), RULES[word])
        assert reason in text
        assert f"row {len(good)}:" in text


@given(st.integers(1_000_000_000, 4_000_000_000), st.sampled_from(list(UNIT_NS)))
def test_a_time_of_this_century_fits_the_unit_that_it_has(seconds: int, unit: str) -> None:
    time = seconds * 10**9 // UNIT_NS[unit]
    assert fitting_unit(time) == unit


numbers = (
    st.integers(-(1 << 63), (1 << 64) - 1)
    | st.integers(0, 10**12)
    | st.sampled_from([10**n + d for n in (10, 11, 13, 14, 16, 17) for d in (-1, 0, 1)])
    | st.floats()
    | st.floats(-1e20, 1e20)
    | st.none()
)


def model(time: Any, rule: TimeRule) -> float | None:
    """A number as µs, before it is rounded."""
    if time is None:
        return None
    if rule.precision is not None:
        unit = UNIT_NS[rule.precision]
    else:
        size = abs(time)
        borders = (10**10, 10**13, 10**16) if rule.as_arc and time > 0 else (10**11, 10**14, 10**17)
        unit = 10 ** (9 - 3 * bisect_right(borders, size)) if not math.isnan(time) else 1
    return time * unit // 1_000 if isinstance(time, int) else time / 1_000 if unit == 1 else time * (unit // 1_000)


@pytest.mark.parametrize("rule", [RULE, AS_ARC, *RULES.values()], ids=["auto", "Arc", *RULES])
@SHAPES
@given(times=st.lists(numbers, min_size=1, max_size=6), times_over=st.sampled_from([1, 1, 1, 700]))
@example(times=[math.nan], times_over=1)
def test_any_number_is_a_time_for_both_processes_or_refused(
    shape: Any, rule: TimeRule, times: list[Any], times_over: int
) -> None:
    first_is_of_arc = rule.as_arc and isinstance(times[0], int) and model(times[0], rule) != model(times[0], RULE)
    if rule.as_arc and shape is columns and not first_is_of_arc and len({type(time) for time in times}) == 1:
        assume(all(model(time, rule) == model(time, RULE) for time in times))
    expected = [model(time, rule) for time in times]
    if all(us is None or MIN_US - 0.5 <= us <= MAX_US + 0.5 for us in expected):
        found = written(shape(times * times_over), rule)
        assert found == [us if us is None else round(us) for us in expected] * times_over
    else:
        assert "row" in refusal(shape(times * times_over), rule)


@given(
    st.lists(
        st.tuples(
            st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)),
            st.sampled_from(["", "Z", "+00:00", "+05:30", "-0800", "+02"]),
            st.sampled_from(["seconds", "milliseconds", "microseconds"]),
            st.sampled_from("T "),
            st.sampled_from(["", "000", "789"]),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([1, 20]),
)
def test_any_iso_8601_text_is_the_time_that_it_says(parts: list[Any], times_over: int) -> None:
    texts, us = [], []
    for time, zone, spec, separator, digits in parts:
        text = time.isoformat(separator, spec) + (digits if spec == "microseconds" else "")
        texts.append(text + zone)
        full = zone + ":00" if zone == "+02" else zone
        parsed = datetime.fromisoformat(time.isoformat("T", spec) + full)
        parsed = parsed.replace(tzinfo=parsed.tzinfo or UTC)
        us.append((parsed - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution))
    assert written(columns(texts * times_over)) == us * times_over


@SHAPES
def test_arc_has_other_borders(shape: Any) -> None:
    """Its integers of 11, 14 and 17 digits are milliseconds, microseconds and nanoseconds."""
    times = [20_000_000_000, 9_999_999_999, 20_000_000_000_000, 20_000_000_000_000_000, 20_000_000_000.0]
    us = [20_000_000_000_000, 9_999_999_999_000_000, 20_000_000_000_000, 20_000_000_000_000, 20_000_000_000_000]
    assert written(shape(times), AS_ARC) == us
    for time, expected in zip(times, us, strict=True):
        assert written(shape([time] * 3_000), AS_ARC) == [expected] * 3_000
    for time in (-20_000_000_000, -20_000_000_000.0):
        assert written(shape([time]), AS_ARC) == [-20_000_000_000_000_000]
    assert written(shape([1_790_000_000] * 3), AS_ARC) == [1_790_000_000_000_000] * 3


def test_only_what_the_wal_does_not_know_is_written_anew() -> None:
    for times in ([1_790_000_000] * 3, [1.5, 2.5], [None, 1], [msgpack.Timestamp(1, 5)], [1, 1 << 40, 5.0]):
        body = columns(times)
        assert encode(body).body is body
    body = columns([5.0, 1_790_000_000_123.0, 7])
    time = msgpack.unpackb(encode(body).body)["columns"]["time"]
    assert time == [5.0, msgpack.Timestamp(1_790_000_000, 123_000_000), 7]


def test_in_the_wal_a_time_means_what_it_meant_to_older_versions() -> None:
    """Text, and floats that are too large for seconds, were no times: their rows have the time of the entry."""
    times = [1_790_000_000_123.0, "2026-09-21T14:13:20Z", True, 20_000_000_000, 120_000_000_000.0]
    decoded = decode_time(find_values(b"".join(map(msgpack.packb, times)), len(times)))
    assert decoded.odd.tolist() == [0, 1, 2]
    assert decoded.us[3:].tolist() == [20_000_000_000_000_000, 120_000_000_000_000_000]


def test_nanoseconds_of_a_text_are_kept() -> None:
    body = columns(["2026-09-21T14:13:20.123456789Z", "1965-01-01T00:00:00.000000001Z"])
    time = msgpack.unpackb(encode(body).body)["columns"]["time"]
    assert [stamp.nanoseconds for stamp in time] == [123_456_789, 1]
    assert time[1].seconds == -157_766_400


def test_a_time_that_is_cut_off_is_refused() -> None:
    for time in (1_790_000_000, 1_790_000_000_123.0, "2026-09-21T14:13:20Z"):
        body = columns([time] * 3)
        for size in range(body.index(b"time"), len(body)):
            with pytest.raises(BadPayload):
                encode(body[:size])

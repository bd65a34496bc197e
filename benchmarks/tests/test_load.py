"""The load: latencies, the generator, and bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hdrh.histogram import HdrHistogram

from arcpipe.codec.content_encoding import Coding, decode
from arcpipe.codec.line_protocol import body as line_protocol
from arcpipe.codec.messagepack import body as messagepack
from arcpipe.codec.otlp import body as otlp
from arcpipe.codec.otlp.body import Signal
from arcpipe.codec.records import csv_lines, json_array, json_lines
from arcpipe.codec.records.roles import Roles
from arcpipe.codec.remote_write import body as remote_write
from benchmarks.load.bodies import FORMATS, Body, make_bodies
from benchmarks.load.generator import Load, LoadSpec
from benchmarks.results.histogram import Histogram

# Latencies


def test_percentiles_are_right_to_a_thousandth() -> None:
    """Percentiles of a histogram are those of its values to a thousandth."""
    seconds = np.random.default_rng(1).lognormal(-6, 1, 100_000)
    histogram = Histogram()
    histogram.add(seconds[:1000])
    histogram.add(seconds[1000:])
    assert histogram.count == len(seconds)
    for percent in (50, 90, 99, 99.9):
        exact = np.percentile(seconds, percent, method="inverted_cdf")
        assert abs(histogram.percentile(percent) - exact) <= exact / 1000 + 1e-6
    assert abs(histogram.maximum_seconds - seconds.max()) <= seconds.max() / 1000 + 1e-6


def test_histograms_of_several_processes_add_up() -> None:
    whole, halves = Histogram(), Histogram()
    seconds = np.random.default_rng(2).uniform(1e-4, 2, 10_000)
    whole.add(seconds)
    for half in (seconds[:5000], seconds[5000:]):
        part = Histogram()
        part.add(half)
        halves.merge(Histogram(part.encoded()))
    assert [halves.percentile(p) for p in (1, 50, 99.9)] == [whole.percentile(p) for p in (1, 50, 99.9)]
    assert halves.count == whole.count


def test_an_encoded_histogram_is_read_by_hdrhistogram_in_microseconds() -> None:
    histogram = Histogram()
    histogram.add(np.array([0.0, 0.001, 0.002, 7200.0]))
    decoded = HdrHistogram.decode(histogram.encoded())
    assert decoded.get_total_count() == 4
    assert decoded.values_are_equivalent(decoded.get_value_at_percentile(75), 2000)


def test_an_empty_histogram_has_zeros() -> None:
    histogram = Histogram(Histogram().encoded())
    assert (histogram.count, histogram.percentile(99), histogram.maximum_seconds) == (0, 0.0, 0.0)


# Load

STALL_SECONDS = 0.4
RATE = 200.0
CONNECTIONS = 4
TRIES = 3  # a busy machine makes stalls of its own


async def load_with_a_stall(requests_per_second: float, stall_at_seconds: float) -> Histogram:
    """The latencies of a second of load on a server that answers at once, but not while it stalls."""
    goes_on = asyncio.Event()
    goes_on.set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]))
            await goes_on.wait()
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    spec = LoadSpec(
        host="127.0.0.1",
        port=server.sockets[0].getsockname()[1],
        format="columnar",
        records=1,
        connections=CONNECTIONS,
        warmup_seconds=0,
        seconds=1,
        requests_per_second=requests_per_second,
    )
    load = Load(spec)
    await load.connect()
    asyncio.get_running_loop().call_later(stall_at_seconds, goes_on.clear)
    asyncio.get_running_loop().call_later(stall_at_seconds + STALL_SECONDS, goes_on.set)
    finished = await load.run(lambda acknowledged: None)
    server.close()
    return Histogram(finished.histogram)


def slower_than(histogram: Histogram, seconds: float) -> int:
    decoded = HdrHistogram.decode(histogram.encoded())
    return sum(
        item.count_at_value_iterated_to
        for item in decoded.get_recorded_iterator()
        if item.value_iterated_to > seconds * 1e6
    )


@pytest.mark.parametrize("stall_at_seconds", [0.2, 0.8], ids=["within the load", "over its end"])
def test_an_open_loop_charges_a_stall_to_each_request_due(
    stall_at_seconds: float,
) -> None:
    """Latencies of an open loop contain a stall for every request that was due in it."""
    # A request that was due t seconds into the stall waited for the rest of it.
    half_of_it = RATE * min(STALL_SECONDS / 2, 1 - stall_at_seconds)
    for _ in range(TRIES):
        histogram = asyncio.run(load_with_a_stall(RATE, stall_at_seconds))
        assert abs(histogram.count - RATE * 1) <= 1  # due at the very end, as floats add up
        waited = slower_than(histogram, STALL_SECONDS / 2)
        assert half_of_it * 0.9 <= waited
        if waited <= half_of_it * 2:
            break
    assert waited <= half_of_it * 2


def test_a_closed_loop_sees_a_stall_once_per_connection() -> None:
    for _ in range(TRIES):
        waited = slower_than(asyncio.run(load_with_a_stall(0, 0.2)), STALL_SECONDS / 2)
        assert waited >= CONNECTIONS
        if waited < 3 * CONNECTIONS:
            break
    assert waited < 3 * CONNECTIONS  # not 80, as an open loop does


# Bodies

NOW_US = 1_700_000_000_123_456


def decoded(body: Body) -> bytes:
    content = body.at(NOW_US)
    if body.content_encoding:
        content = decode(cast(Coding, body.content_encoding), content, 1 << 30)
    return content


ENCODERS: dict[str, Callable[[bytes], Any]] = {
    "application/msgpack": messagepack.encode,
    "text/plain": line_protocol.encode,
    "application/x-ndjson": partial(json_lines.encode, roles=Roles("cpu")),
    "application/json": partial(json_array.encode, roles=Roles("cpu")),
    "text/csv": partial(csv_lines.encode, roles=Roles("cpu")),
}


def columns_of(body: Body) -> list[tuple[str, dict[str, list[object]]]]:
    """(measurement, columns) of a body as the server reads it."""
    content = decoded(body)
    if body.content_type == "application/vnd.apache.arrow.stream":
        table = pa.ipc.open_stream(content).read_all()
        times = table["time"].cast(pa.int64())
        return [("cpu", {**table.to_pydict(), "time": times.to_pylist()})]
    signal = body.path.partition("?")[0].removeprefix("/v1/")
    encoded: Any
    if signal in ("logs", "traces", "metrics"):
        encoded = otlp.encode(content, signal=cast(Signal, signal))
    elif "protobuf" in body.content_type:
        encoded = remote_write.encode(content)
    else:
        encoded = ENCODERS[body.content_type.partition(";")[0]](content)
    maps = msgspec.msgpack.decode(getattr(encoded, "encoded", encoded).body)
    return [(one["m"], one["columns"]) for one in (maps if isinstance(maps, list) else [maps])]


@pytest.mark.parametrize("format", FORMATS)
def test_every_body_holds_as_many_records_as_it_says_up_to_now(format: str) -> None:
    for body in make_bodies(format, 200, seed=1):
        tables = columns_of(body)
        assert sum(len(columns["time"]) for _, columns in tables) == body.records == 200
        times = [int(str(time)[:10]) for _, columns in tables for time in columns["time"]]
        assert NOW_US // 1_000_000 - 10 <= min(times) <= max(times) <= NOW_US // 1_000_000


def test_row_columnar_and_line_bodies_have_the_same_columns() -> None:
    names = {
        format: {name for _, columns in columns_of(make_bodies(format, 10, seed=1)[0]) for name in columns}
        for format in ("columnar", "rows", "line protocol", "ndjson", "json", "csv", "arrow")
    }
    assert all(found == names["columnar"] for found in names.values())


def test_each_body_has_a_measurement_of_its_own_if_that_is_asked_for() -> None:
    bodies = make_bodies("columnar", 1, seed=1, measurements=100)
    assert len({measurement for body in bodies for measurement, _ in columns_of(body)}) == 100

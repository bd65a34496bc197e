"""The pure parts of the benchmark harness."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import msgspec
import numpy as np
import pytest
from backports import zstd
from hdrh.histogram import HdrHistogram

from arcpipe.codec.line_protocol import body as line_protocol
from arcpipe.codec.messagepack import body as messagepack
from arcpipe.wal.directory import ACTIVE, SEALED, WALDirectory
from arcpipe.wal.reader import SegmentScan
from benchmarks.load.bodies import FORMATS, KINDS, Body, make_bodies
from benchmarks.load.generator import Load, LoadSpec
from benchmarks.report.progress import PlannedRun, Progress
from benchmarks.results.histogram import Histogram
from benchmarks.results.model import (
    CaseResult,
    DeviceLimit,
    Latency,
    LoadOptions,
    RecoveryRun,
    Run,
    SuiteResult,
    WALUse,
)
from benchmarks.suites.catalogue import SUITES
from benchmarks.suites.device import device_limit
from benchmarks.suites.stored import make_wal
from benchmarks.worst.bodies import CASES
from benchmarks.worst.gil import measure

# Latencies


def test_percentiles_of_a_histogram_are_those_of_its_values_to_a_thousandth() -> None:
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
def test_latencies_of_an_open_loop_contain_a_stall_for_every_request_that_was_due_in_it(
    stall_at_seconds: float,
) -> None:
    histogram = asyncio.run(load_with_a_stall(RATE, stall_at_seconds))
    assert abs(histogram.count - RATE * 1) <= 1  # due at the very end, as floats add up
    # A request that was due t seconds into the stall waited for the rest of it.
    half_of_it = RATE * min(STALL_SECONDS / 2, 1 - stall_at_seconds)
    assert half_of_it * 0.9 <= slower_than(histogram, STALL_SECONDS / 2) <= half_of_it * 2


def test_a_closed_loop_sees_a_stall_once_per_connection() -> None:
    histogram = asyncio.run(load_with_a_stall(0, 0.2))
    assert slower_than(histogram, STALL_SECONDS / 2) in range(
        CONNECTIONS, 3 * CONNECTIONS
    )  # not 80, as an open loop does


# Bodies

NOW_US = 1_700_000_000_123_456


def decoded(body: Body) -> bytes:
    content = body.at(NOW_US)
    if body.content_encoding:
        content = {"gzip": gzip.decompress, "zstd": zstd.decompress}[body.content_encoding](content)
    return content


def columns_of(body: Body) -> list[tuple[str, dict[str, list[object]]]]:
    """(measurement, columns) of a body as the server reads it."""
    content = decoded(body)
    encoded = (messagepack if "msgpack" in body.content_type else line_protocol).encode(content)
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
        for format in ("columnar", "rows", "line protocol")
    }
    assert names["columnar"] == names["rows"] == names["line protocol"]


def test_each_body_has_a_measurement_of_its_own_if_that_is_asked_for() -> None:
    bodies = make_bodies("columnar", 1, seed=1, measurements=100)
    assert len({measurement for body in bodies for measurement, _ in columns_of(body)}) == 100


# Suites and their results


def test_what_a_suite_compares_with_is_one_of_its_cases() -> None:
    for suite in SUITES.values():
        names = [case.name for case in suite.cases]
        assert len(set(names)) == len(names)
        assert suite.baseline in {"", *names}
        for index, case in enumerate(suite.cases):
            assert not case.half_of or case.half_of in names[:index]
            assert (case.format or suite.format).partition(" + ")[0] in {*KINDS, "a format per case"}


def test_the_share_of_the_baseline_is_that_of_the_same_round() -> None:
    def run(case: str, round_number: int, records_per_second: float) -> Run:
        latency = Latency(0, 0, 0, 0, 0, "")
        load = LoadOptions(
            format="columnar",
            records_per_body=1,
            connections=1,
            warmup_seconds=1,
            seconds=1,
            records_per_second=0,
            load_processes=1,
        )
        return Run(
            case=case,
            round=round_number,
            load=load,
            started_at="",
            workers=1,
            seconds=1,
            requests_per_second=records_per_second,
            records_per_second=records_per_second,
            body_bytes_per_second=1,
            latency=latency,
            acknowledged_records=1,
            parquet_records=1,
            drain_seconds=0,
            to_parquet=None,
            processes=[],
            load_cores=0,
            other_cores=0,
            stolen_cores=0,
            complaints=[],
            samples=[],
            wal=WALUse(30e6, 100, 3e5),
            device=DeviceLimit("fdatasync", 1, 300_000, 120e6, 60e6),
        )

    base = CaseResult("base", {}, "", [run("base", 1, 100), run("base", 2, 10), run("base", 3, 1000)])
    other = CaseResult("other", {}, "", [run("other", 1, 90), run("other", 2, 9), run("other", 3, 500)])
    suite = SuiteResult("name", "title", base.runs[0].load, "base", [base, other])
    assert suite.share_of_baseline(other) == pytest.approx(0.9)
    assert other.runs[0].share_of_device == pytest.approx(0.25)


def test_a_recovery_tells_what_a_start_waits_for_from_what_follows() -> None:
    run = RecoveryRun(
        round=1,
        started_at="",
        wal_bytes=2_000_000_000,
        segments=20,
        records=10,
        parquet_records=9,
        empty_start_seconds=1.0,
        start_seconds=3.0,
        scan_seconds=1.6,
        uploaded_seconds=13.0,
    )
    assert run.scan_bytes_per_second == pytest.approx(1.25e9)
    assert run.ready_bytes_per_second == pytest.approx(1e9)
    assert run.upload_bytes_per_second == pytest.approx(0.2e9)
    assert run.missing_records == 1


def test_the_time_left_is_what_the_round_before_took() -> None:
    quick, slow = PlannedRun("quick", 1), PlannedRun("slow", 1)
    progress = Progress([[quick, slow, quick, slow], [quick]])
    with progress.suite():
        progress.count("quick", 3)
        progress.count("slow", 101)
        assert progress.seconds_left == pytest.approx(3 + 101 + (1 + (2 + 100) / 2))
        progress.count("slow", 101)
        progress.count("quick", 3)
    with progress.suite():
        progress.count("quick", 3)
    assert progress.seconds_left == 0


# The disk and its files


def test_the_bare_loop_leaves_nothing_behind(tmp_path: Path) -> None:
    limit = device_limit(tmp_path, "fdatasync", 5000, 2, seconds=0.02)
    assert limit.overwriting_bytes_per_second > 0
    assert limit.appending_bytes_per_second > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("records_per_entry", "sealed"), [(1000, True), (1, False)])
def test_a_log_that_is_made_is_read_as_one(tmp_path: Path, records_per_entry: int, sealed: bool) -> None:
    directory = WALDirectory(tmp_path)
    records, segments = make_wal(directory, 500_000, records_per_entry, sealed)
    found = directory.segments(SEALED if sealed else ACTIVE)
    assert len(found) == segments == 1
    scan = SegmentScan(found[0].path)
    assert sum(1 for _ in scan) * records_per_entry == records
    assert not scan.report.damage


# Bodies that hold the interpreter


@pytest.mark.parametrize("case", CASES)
def test_each_body_that_may_keep_the_interpreter_is_encoded_or_refused(case: str) -> None:
    found = measure(case, 300_000)
    assert found["worst_ms"] >= 0
    assert found["seconds"] >= 0

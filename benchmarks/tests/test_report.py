"""Comparisons, charts and pages of benchmark results."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from benchmarks.report.compare import NothingInCommon, compare, show_comparison
from benchmarks.report.markdown import NoPlace, write_markdown
from benchmarks.results.model import (
    VERSION,
    CaseResult,
    DeviceLimit,
    Latency,
    ProcessResult,
    RecoveryCase,
    RecoveryRun,
    Report,
    Sample,
    SuiteResult,
    ToParquet,
    UnusableResults,
    WALUse,
    read,
)
from benchmarks.system.machine import Machine
from benchmarks.tests.made import LOAD, run

change = msgspec.structs.replace

MACHINE = Machine(
    cpu="A processor",
    cores=2,
    memory_bytes=2**30,
    kernel="Linux 6",
    file_system="ext4",
    mount_options="rw",
    device="/dev/vda",
    device_write_cache="write back",
    python="CPython 3.11",
    arcpipe="0.1.0",
    packages={"numpy": "2.0"},
    load_average=0.1,
)


def case(name: str, *rates: float, settings: dict[str, str] | None = None, **changes: Any) -> CaseResult:
    runs = [run(rate, number, case=name, **changes) for number, rate in enumerate(rates, 1)]
    return CaseResult(name, settings or {}, "", runs)


def suite(*cases: CaseResult, name: str = "sync-modes", baseline: str = "") -> SuiteResult:
    return SuiteResult(name, "By sync mode", LOAD, baseline, list(cases))


def report(*suites: SuiteResult, machine: Machine = MACHINE, recovery: list[RecoveryCase] | None = None) -> Report:
    command = ["benchmarks/__main__.py", "--data-dir=/mnt/x", "sync-modes", "--json", "a.json", "--runs", "2"]
    return Report("2026-11-22T00:00:00+00:00", command, machine, list(suites), recovery or [])


def compared(a: Report, b: Report) -> Any:
    return compare(Path("a.json"), a, Path("b.json"), b)


def figures(comparison: Any) -> dict[str, Any]:
    """Of the first case, by name."""
    return {figure.name: figure for figure in comparison.suites[0].cases[0].figures}


# Comparisons


@pytest.mark.parametrize(
    ("rates", "ratio", "verdict"),
    [
        ((2e6, 2.1e6, 2.2e6), 2.1, "better"),
        ((0.4e6, 0.5e6, 0.6e6), 0.5, "worse"),
        ((1.05e6, 1.2e6, 1.3e6), 1.2, "within the noise"),
        ((2e6,), 2.0, "noise not known"),
    ],
)
def test_a_change_is_told_from_noise_by_the_ranges_of_the_runs(
    rates: tuple[float, ...], ratio: float, verdict: str
) -> None:
    a, b = report(suite(case("fdatasync", 0.9e6, 1e6, 1.1e6))), report(suite(case("fdatasync", *rates)))
    figure = figures(compared(a, b))["records"]
    assert figure.ratio == pytest.approx(ratio)
    assert figure.verdict == verdict


def test_more_latency_and_more_cpu_are_worse() -> None:
    slow = Latency(0.1, 0.2, 0.3, 0.4, 0.5, run().latency.hdr_histogram)
    busy = [ProcessResult("ingest 1", 1, 2.0)]
    a = report(suite(case("fdatasync", 1e6, 1e6)))
    b = report(suite(case("fdatasync", 1e6, 1e6, latency=slow, processes=busy)))
    found = figures(compared(a, b))
    assert [found[name].verdict for name in ("p50", "p99", "p99.9", "CPU/request")] == ["worse"] * 4
    assert found["CPU/request"].ratio == pytest.approx(4)  # the uploader's share is not the workers'


def test_a_figure_that_one_side_does_not_know_is_left_out() -> None:
    a = report(suite(case("fdatasync", 1e6)))
    assert "CPU/request" not in figures(compared(a, report(suite(case("fdatasync", 1e6, processes=[])))))


def test_what_differs_besides_the_figures_is_listed_once() -> None:
    a = report(suite(case("async", 1e6), case("fdatasync", 1e6), case("fsync", 1e6)))
    b = report(
        suite(
            case("async", 1e6, load=change(LOAD, connections=64)),
            case("fdatasync", 1e6, load=change(LOAD, connections=64), settings={"wal.recycle": "false"}),
        ),
        machine=change(MACHINE, kernel="Linux 7", packages={"numpy": "2.1"}, load_average=3.0),
    )
    comparison = compared(a, b)
    assert [(item.what, item.a, item.b, item.cases) for item in comparison.differences] == [
        ("kernel", "Linux 6", "Linux 7", []),
        ("numpy", "2.0", "2.1", []),
        ("load: connections", "32", "64", []),
        ("wal.recycle", "", "false", ["sync-modes: fdatasync"]),
    ]
    assert comparison.only_in_a == ["sync-modes: fsync"]
    assert comparison.only_in_b == []


def test_two_single_targets_are_compared_whatever_their_names() -> None:
    def target(name: str) -> Report:
        return report(suite(case(name, 1e6, parquet_records=None), name="target-telegraf"))

    comparison = compared(target("arcpipe"), target("peer"))
    assert [(one.a, one.b) for one in comparison.suites[0].cases] == [("arcpipe", "peer")]


def test_files_without_a_common_case_are_told_apart_by_name() -> None:
    with pytest.raises(NothingInCommon, match=r"a.json .* sync-modes: async, the other sync-modes: fsync"):
        compared(report(suite(case("async", 1e6))), report(suite(case("fsync", 1e6))))


def test_a_piped_comparison_is_plain_text() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    a = report(suite(case("fdatasync", 0.9e6, 1e6)), recovery=[recovery()])
    show_comparison(console, compared(a, change(a, suites=[suite(case("fdatasync", 2e6, 3e6))])))
    text = console.export_text()
    assert "\x1b" not in text
    assert re.search(r"fdatasync +records, M/s +0.95 \(0.90–1.00\) +2.50 \(2.00–3.00\) +2.63 +better", text)
    assert re.search(r"1000 records per entry +verified, GB/s +1.00 +1.00 +1.00 +noise not known", text)


def recovery() -> RecoveryCase:
    one = RecoveryRun(
        round=1,
        started_at="",
        wal_bytes=10**9,
        segments=10,
        records=10**7,
        parquet_records=10**7,
        empty_start_seconds=1,
        start_seconds=2,
        scan_seconds=1,
        uploaded_seconds=12,
    )
    return RecoveryCase("1000 records per entry", 1000, [one])


# Files of results


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = report(suite(case("fdatasync", 1e6)), recovery=[recovery()])
    (tmp_path / "a.json").write_bytes(msgspec.json.encode(written))
    assert read(tmp_path / "a.json") == written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"# README", "is not a file that --json wrote"),
        (b"{}", "is not a file that --json wrote"),
        (b'{"version": 99}', f"version 99, and this is version {VERSION}: measure again"),
    ],
)
def test_a_file_that_is_no_results_is_refused_with_the_reason(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UnusableResults, match=message):
        read(tmp_path / "a.json")


# Charts and pages


def everything() -> Report:
    """Results with something for every kind of chart."""
    synced: dict[str, Any] = {"wal": WALUse(30e6, 100, 3e5), "device": DeviceLimit("fdatasync", 2, 300_000, 40e6, 20e6)}
    samples = [Sample(second, second * 10**6, max(0, second - 2) * 10**6, 0) for second in range(9)]
    to_parquet = ToParquet(1e6, 0.0, 2_000_000, 2.0, 1e6)
    return report(
        suite(case("WAL off", 2e6, 2.1e6), case("fdatasync", 1e6, 1.1e6, **synced), baseline="WAL off"),
        suite(
            *(case(f"{n:,}", 1e4 * n, 1.1e4 * n, load=change(LOAD, records_per_body=n)) for n in (1, 10, 1000)),
            name="batch-sizes",
        ),
        suite(case("fdatasync", 1e6, samples=samples, to_parquet=to_parquet), name="end-to-end"),
        recovery=[recovery()],
    )


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_each_suite_has_the_charts_that_suit_it(tmp_path: Path) -> None:
    from benchmarks.report.charts import write_charts  # matplotlib takes a second to import

    files = write_charts(everything(), tmp_path / "charts")
    assert {path.name for path in files} == {
        f"{name}.{suffix}"
        for name in (
            "sync-modes-throughput",
            "sync-modes-latency",
            "batch-sizes",
            "end-to-end-latency",
            "end-to-end-backlog",
        )
        for suffix in ("svg", "png")
    }
    for path in files:
        if path.suffix == ".png":
            assert png_size(path)[0] == 1680
        else:
            assert path.read_text().rstrip().endswith("</svg>")


def test_a_page_gets_what_its_places_ask_for_and_keeps_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(
        "# Top\n<!-- benchmarks sync-modes recovery -->\nold\n<!-- /benchmarks -->\nmiddle\n"
        "<!-- benchmarks small -->\nkept\n<!-- /benchmarks -->\nend\n"
    )
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "sync-modes-throughput.svg").touch()
    for _ in range(2):  # the second time replaces what the first one wrote
        write_markdown([everything()], page, tmp_path / "charts")
    text = page.read_text()
    assert text.startswith("# Top\n<!-- benchmarks sync-modes recovery -->\n")
    assert text.endswith("<!-- /benchmarks -->\nmiddle\n<!-- benchmarks small -->\nkept\n<!-- /benchmarks -->\nend\n")
    assert "old" not in text
    assert text.count("| WAL off | 2.05 M | 2% | 2,050 |") == 1
    assert "| fdatasync | 1.05 M | 5% | 1,050 | 1.00 ms | 3.00 ms | 4.00 ms | 477 µs | 51% | 75% |" in text
    assert "![By sync mode: throughput](charts/sync-modes-throughput.svg)" in text
    assert "| 1000 records per entry | 1.00 GB | 1.00 GB/s | 1.00 | 2.0 s | 1.0 s | 100 MB/s |" in text
    assert "Measured on 2026-11-22 with arcpipe 0.1.0 on CPython 3.11; A processor, 2 cores" in text
    assert "`python -m benchmarks sync-modes --runs 2`" in text
    assert "end-to-end" not in text


def test_a_new_page_gets_everything(tmp_path: Path) -> None:
    write_markdown([everything()], tmp_path / "all.md", None)
    text = (tmp_path / "all.md").read_text()
    assert text.count("**By sync mode.**") == 3
    assert "peak backlog" in text


def test_a_page_without_a_place_is_left_alone_with_advice(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Top\n")
    with pytest.raises(NoPlace, match=r"<!-- benchmarks SUITE… -->"):
        write_markdown([everything()], page, None)
    assert page.read_text() == "# Top\n"

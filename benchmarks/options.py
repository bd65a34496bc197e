"""The options of `python -m benchmarks`, grouped by subject."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.suites.catalogue import RECOVERY, SUITES
from benchmarks.suites.plan import DEFAULT_BACKLOG_GB, DEFAULT_WAL_GB
from benchmarks.suites.protocols import PROTOCOLS

SUITE_NAMES = (*SUITES, RECOVERY.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Which cases to run, and how often."""

    suites: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SUITE]...", help=f"{', '.join(SUITE_NAMES)}; all of them if none is named."),
    ] = None
    cases: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="Only this case of the suites; may be repeated.")
    ] = None
    runs: Annotated[int | None, typer.Option(min=1, help="Runs of each case; cases alternate.")] = None
    quick: Annotated[bool, typer.Option("--quick", help="Run everything once and briefly: a look, no figures.")] = False
    show_list: Annotated[bool, typer.Option("--list", help="Show suites and cases, and measure nothing.")] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadChoice:
    """The load, where it differs from that of the suite."""

    seconds: Annotated[float | None, typer.Option(min=0.5, help="Measured time of a run.")] = None
    warmup: Annotated[
        float | None, typer.Option(min=0, help="Seconds of load before the measured time. Default: 1")
    ] = None
    connections: Annotated[
        int | None, typer.Option(min=1, help="Keep-alive connections of cases that do not set them.")
    ] = None
    records: Annotated[int | None, typer.Option(min=1, help="Records per body of cases that do not set them.")] = None
    rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Records per second of an open loop; 0 is a closed loop. Default: a closed loop, except for "
            f"end-to-end ({SUITES['end-to-end'].records_per_second:.0f}), "
            f"end-to-end-arrow ({SUITES['end-to-end-arrow'].records_per_second:.0f}) and latency "
            "(half of a closed loop's).",
        ),
    ] = None
    load_processes: Annotated[int, typer.Option(min=1, help="Processes that make the load.")] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerChoice:
    """The server that the harness starts, and its files."""

    workers: Annotated[int, typer.Option(min=0, help="Ingest workers of the server; 0 is one per core.")] = 0
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting for every case, such as wal.max_size_mb=200."),
    ] = None
    backlog_gb: Annotated[
        float | None, typer.Option(min=0.01, help=f"Backlog of the suite flat. Default: {DEFAULT_BACKLOG_GB:g}")
    ] = None
    wal_gb: Annotated[
        float | None,
        typer.Option("--log-gb", min=0.01, help=f"Size of the WAL of the suite recovery. Default: {DEFAULT_WAL_GB:g}"),
    ] = None
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Directory for the server's files, on the disk to measure; removed again. Default: ./data"),
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputChoice:
    """Destinations of results, and earlier results to show instead of new ones."""

    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all results, or those of --compare, to FILE; - is stdout."),
    ] = None
    charts: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw the results: SVG and PNG files in DIR.")] = (
        None
    )
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the tables into the places of FILE, or all of them into a new FILE."),
    ] = None
    sources: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="FILE", help="Measure nothing: show, draw, write results that --json wrote."),
    ] = None
    compared: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A.json B.json", help="Measure nothing: compare two files of --json."),
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardChoice:
    """The regression guard, in place of suites."""

    guard: Annotated[
        bool,
        typer.Option(
            "--guard", help="Compare the cost of each part with the committed baseline; exit code 1 if one is slower."
        ),
    ] = False
    record: Annotated[
        bool, typer.Option("--record", help="With --guard: record a new baseline, on a machine without other work.")
    ] = False
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --guard: another baseline than the committed one.")
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetChoice:
    """Servers that already run, or that a command starts."""

    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="[NAME=]URL",
            help="Load this server, which already runs, instead of starting one; repeated, they take turns.",
        ),
    ] = None
    commands: Annotated[
        list[str] | None,
        typer.Option(
            "--command",
            metavar="COMMAND",
            help="Start --target by this command for each of its turns, and stop it after; once for each --target. "
            "{dir} is a new directory below --data-dir.",
        ),
    ] = None
    protocols: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            metavar="|".join(PROTOCOLS),
            help="How to write to --target; once for all of them, or once for each.",
        ),
    ] = None
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="NAME", help="Format of the bodies for --target; may be repeated, or all."),
    ] = None
    database: Annotated[str, typer.Option(help="Database or bucket of --target to write to.")] = "bench"
    org: Annotated[str, typer.Option(help="Organisation of --target (influx2).")] = "bench"
    token: Annotated[
        str, typer.Option(envvar="BENCH_TOKEN", help="Token that --target asks for; influx1: USER:PASSWORD.")
    ] = ""

"""The suites: cases with the server's settings, and one load for all cases of a suite."""

from __future__ import annotations

from typing import Final, NamedTuple

from benchmarks.results import model


class Case(NamedTuple):
    """Settings of the server and their promise, or a load of its own if the cases compare loads.

    In the load, "" and 0 stand for the value of the suite.
    """

    name: str
    settings: dict[str, str]
    power_cut: str = ""  # acknowledged records that a power cut may take
    format: str = ""
    records_per_body: int = 0
    connections: int = 0
    measurements: int = 1  # bodies take turns with them
    has_backlog: bool = False  # sealed segments wait for the uploader when the server starts
    half_of: str = ""  # a case: send an open loop at half of the rate that it reached just before


class Suite(NamedTuple):
    """Cases under one load. The numbers are defaults; the command line may change them."""

    name: str
    title: str
    cases: tuple[Case, ...]
    records_per_body: int = 1000
    connections: int = 32
    seconds: float = 3
    runs: int = 3
    format: str = "columnar"
    baseline: str = ""  # the case that the others are compared with
    records_per_second: float = 0.0  # of an open loop; 0: a closed one
    wait_for_parquet: bool = False  # until every acknowledged record is in Parquet, before the server is stopped


class CrashCase(NamedTuple):
    """A WAL that a crash left."""

    name: str
    records_per_entry: int
    part_of_wal: float = 1.0  # of the size that the command line sets
    is_cold: bool = False  # read from the disk, not from the page cache


class RecoverySuite(NamedTuple):
    """Starts on a WAL that a crash left."""

    name: str
    title: str
    cases: tuple[CrashCase, ...]
    runs: int


_OFF: Final = Case("WAL off", {"wal.enabled": "false"}, "flush.max_age_seconds (5 s); a crash of the process too")
_ASYNC: Final = Case("async", {"wal.sync_mode": "async"}, "wal.async_interval_ms (1 s)")
_FDATASYNC: Final = Case("fdatasync", {"wal.sync_mode": "fdatasync"}, "nothing")
# At this load batches are full; the rest must not wait for its turn when the load ends.
_SOON: Final = Case("fdatasync", {**_FDATASYNC.settings, "uploader.interval_seconds": "5"}, "nothing")
_FSYNC: Final = Case("fsync", {"wal.sync_mode": "fsync"}, "nothing")

_OPEN: Final = Case("open", {"wal.sync_mode": "fdatasync"}, "nothing")
_TOKENS: Final = Case("tokens", {**_OPEN.settings, "auth.enabled": "true"}, "nothing")
_TLS: Final = Case(
    "tokens and TLS", {**_TOKENS.settings, "server.tls_cert": "cert.pem", "server.tls_key": "key.pem"}, "nothing"
)

_PLAIN: Final = Case("plain", {})

SUITES: Final = {
    suite.name: suite
    for suite in (
        Suite(
            name="sync-modes",
            title="What durability costs: bodies of many records, by sync mode",
            cases=(_OFF, _ASYNC, _FDATASYNC, _FSYNC),
            baseline=_OFF.name,
        ),
        Suite(
            name="small",
            title="One record per request, many connections",
            cases=(_OFF, _FDATASYNC),
            records_per_body=1,
            connections=256,
            baseline=_OFF.name,
        ),
        Suite(
            name="formats",
            title="The same durability for every format",
            cases=(
                Case("columnar", {}, format="columnar"),
                Case("columnar, gzip", {}, format="columnar + gzip"),
                Case("columnar, zstd", {}, format="columnar + zstd"),
                Case("rows", {}, format="rows"),
                Case("line protocol", {}, format="line protocol"),
                Case("line protocol, gzip", {}, format="line protocol + gzip"),
                Case("telegraf", {}, format="telegraf"),
                Case("telegraf, gzip", {}, format="telegraf + gzip"),
                Case("telegraf, 5000 lines", {}, format="telegraf", records_per_body=5000),
                Case("ndjson", {}, format="ndjson"),
                Case("json", {}, format="json"),
                Case("csv", {}, format="csv"),
                Case("arrow", {}, format="arrow"),
                Case("arrow, 100,000 rows", {}, format="arrow", records_per_body=100_000),
                Case("remote write", {}, format="remote write", records_per_body=10_000),
                Case("otlp logs", {}, format="otlp logs", records_per_body=8192),
                Case("otlp traces", {}, format="otlp traces", records_per_body=8192),
                Case("otlp metrics", {}, format="otlp metrics", records_per_body=8192),
            ),
            runs=2,
            format="a format per case",
            baseline="columnar",
        ),
        Suite(
            name="batch-sizes",
            title="Records per body",
            cases=tuple(Case(f"{size:,}", {}, records_per_body=size) for size in (1, 10, 100, 1000, 10_000, 100_000)),
            runs=2,
            baseline="1,000",
        ),
        Suite(
            name="connections",
            title="One record per request, by connections",
            cases=tuple(Case(f"{count:,}", {}, connections=count) for count in (1, 8, 32, 128, 256, 1000)),
            records_per_body=1,
            runs=2,
            baseline="256",
        ),
        Suite(
            name="workers",
            title="Ingest workers",
            cases=tuple(Case(str(count), {"server.workers": str(count)}) for count in (1, 2, 4)),
            runs=2,
            baseline="1",
        ),
        Suite(
            name="access",
            title="What tokens and TLS cost: one record per request, many connections",
            cases=(_OPEN, _TOKENS, _TLS),
            records_per_body=1,
            connections=64,
            runs=2,
            baseline=_OPEN.name,
        ),
        Suite(
            name="latency",
            title="Latency at half of what the server can take",
            cases=(
                Case("1000 records, maximum", {}),
                Case("1000 records, half", {}, half_of="1000 records, maximum"),
                Case("1 record, maximum", {}, records_per_body=1, connections=256),
                Case("1 record, half", {}, records_per_body=1, connections=256, half_of="1 record, maximum"),
            ),
            seconds=5,
            runs=2,
        ),
        Suite(
            name="flat",
            title="What must not slow it down",
            cases=(
                _PLAIN,
                Case("backlog", {}, has_backlog=True),
                Case("10,000 measurements", {}, measurements=10_000),
                Case("1000 connections", {}, connections=1000),
            ),
            seconds=2,
            runs=2,
            baseline=_PLAIN.name,
        ),
        Suite(
            name="end-to-end",
            title="From HTTP to Parquet under sustained load",
            cases=(_SOON,),
            seconds=120,
            records_per_second=3_000_000,
            runs=1,
            wait_for_parquet=True,
        ),
        Suite(
            name="end-to-end-arrow",
            title="From HTTP to Parquet under sustained load: Arrow streams",
            # One thread writes the files of a table.
            cases=(_SOON._replace(name="one table"), _SOON._replace(name="four tables", measurements=4)),
            records_per_body=100_000,
            connections=16,
            seconds=60,
            format="arrow",
            records_per_second=6_000_000,
            runs=1,
            wait_for_parquet=True,
        ),
    )
}

RECOVERY: Final = RecoverySuite(
    name=model.RECOVERY,
    title=model.RECOVERY_TITLE,
    cases=(
        CrashCase("1000 records per entry", 1000),
        CrashCase("the same, not in the page cache", 1000, is_cold=True),
        CrashCase("1 record per entry", 1, part_of_wal=0.1),
    ),
    runs=2,
)

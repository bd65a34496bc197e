"""What is measured: suites of cases, each with the server's settings and one load for all its cases."""

from __future__ import annotations

from typing import Final, NamedTuple


class Case(NamedTuple):
    """Settings of the server and what they promise; or what is sent to it, where that is what is compared."""

    name: str
    settings: dict[str, str]
    power_cut: str = ""  # what a power cut may take of what was acknowledged
    format: str = ""  # "" is the suite's


class Suite(NamedTuple):
    """Cases under one load. The numbers are defaults; the command line may change them."""

    name: str
    title: str
    cases: tuple[Case, ...]
    records_per_body: int
    connections: int
    seconds: float
    runs: int
    format: str = "columnar"
    baseline: str = ""  # the case that the others are compared with
    wait_for_parquet: bool = False  # until everything acknowledged is in Parquet, before the server is stopped


_OFF: Final = Case("WAL off", {"wal.enabled": "false"}, "flush.max_age_seconds (5 s); a crash of the process too")
_ASYNC: Final = Case("async", {"wal.sync_mode": "async"}, "wal.async_interval_ms (1 s)")
_FDATASYNC: Final = Case("fdatasync", {"wal.sync_mode": "fdatasync"}, "nothing")
_FSYNC: Final = Case("fsync", {"wal.sync_mode": "fsync"}, "nothing")

_OPEN: Final = Case("open", {"wal.sync_mode": "fdatasync"}, "nothing")
_TOKENS: Final = Case("tokens", {**_OPEN.settings, "auth.enabled": "true"}, "nothing")
_TLS: Final = Case(
    "tokens and TLS", {**_TOKENS.settings, "server.tls_cert": "cert.pem", "server.tls_key": "key.pem"}, "nothing"
)

SUITES: Final = {
    suite.name: suite
    for suite in (
        Suite(
            name="sync-modes",
            title="What durability costs: bodies of many records, by sync mode",
            cases=(_OFF, _ASYNC, _FDATASYNC, _FSYNC),
            records_per_body=1000,
            connections=32,
            seconds=5,
            runs=3,
            baseline=_OFF.name,
        ),
        Suite(
            name="small",
            title="One record per request, many connections",
            cases=(_OFF, _FDATASYNC),
            records_per_body=1,
            connections=256,
            seconds=5,
            runs=3,
            baseline=_OFF.name,
        ),
        Suite(
            name="formats",
            title="The same durability for every format",
            cases=(
                Case("columnar", {}, format="columnar"),
                Case("line protocol", {}, format="line protocol"),
                Case("line protocol, v2", {}, format="line protocol, v2"),
                Case("telegraf", {}, format="telegraf"),
            ),
            records_per_body=1000,
            connections=32,
            seconds=5,
            runs=3,
            format="a format per case",
            baseline="columnar",
        ),
        Suite(
            name="access",
            title="What tokens and TLS cost: one record per request, many connections",
            cases=(_OPEN, _TOKENS, _TLS),
            records_per_body=1,
            connections=64,
            seconds=5,
            runs=3,
            baseline=_OPEN.name,
        ),
        Suite(
            name="end-to-end",
            title="From HTTP to Parquet under sustained load",
            cases=(_FDATASYNC,),
            records_per_body=1000,
            connections=32,
            seconds=30,
            runs=1,
            wait_for_parquet=True,
        ),
    )
}

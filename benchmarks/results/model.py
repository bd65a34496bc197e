"""What a run gives and what several runs say together: the shape of the JSON file.

Every name has its unit. Rates and latencies are those between the end of the warm-up and the end of the load; record
counts are of the whole run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from benchmarks.system.machine import Machine

# Version of the JSON file.
VERSION: Final = 2

# Name and title of the results of starts after a crash.
RECOVERY: Final = "recovery"
RECOVERY_TITLE: Final = "A start on the WAL that a crash left"


class Sample(msgspec.Struct, frozen=True):
    """How far the records had come at a moment."""

    seconds: float  # since the first request
    acknowledged_records: int
    parquet_records: int
    waiting_bytes: int  # completed segments that the uploader has not retired

    @property
    def backlog_records(self) -> int:
        return max(0, self.acknowledged_records - self.parquet_records)


class Latency(msgspec.Struct, frozen=True):
    """Seconds from sending a request (open loop: from when it was due) to its answer."""

    p50_seconds: float
    p90_seconds: float
    p99_seconds: float
    p999_seconds: float
    maximum_seconds: float
    hdr_histogram: str  # all of them: HdrHistogram V2, compressed, base64; values are µs


class ProcessResult(msgspec.Struct, frozen=True):
    """What a process of the server used."""

    name: str
    peak_rss_bytes: int  # of the whole run, drain included
    cores: float  # CPU seconds per second of load, mean


class ToParquet(msgspec.Struct, frozen=True):
    """The way from HTTP to Parquet."""

    parquet_records_per_second: float  # over the second half of the load
    backlog_growth_records_per_second: float  # over the second half of the load; about 0 is a flat backlog
    backlog_peak_records: int
    catch_up_seconds: float  # from the last answer until everything acknowledged was in Parquet
    records_per_second: float  # everything acknowledged, by the time from the first request until it was in Parquet


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was sent."""

    format: str
    records_per_body: int
    connections: int
    warmup_seconds: float
    seconds: float
    records_per_second: float  # 0: closed loop
    load_processes: int
    measurements: int = 1  # that the bodies take turns with


class WALUse(msgspec.Struct, frozen=True):
    """What the server wrote to its log between warm-up and end of the load, by its own counters."""

    bytes_per_second: float
    commits_per_second: float
    bytes_per_commit: float


class DeviceLimit(msgspec.Struct, frozen=True):
    """What the disk gave a bare loop of `pwritev` and sync with groups as large as those of the run's log, right after
    the run. As many loops at a time as there were workers."""

    sync: str  # "fdatasync" or "fsync"
    writers: int
    group_bytes: int
    overwriting_bytes_per_second: float  # blocks that are there already: what a recycled segment is
    appending_bytes_per_second: float  # new blocks: what a new segment is


class Run(msgspec.Struct, frozen=True, kw_only=True, rename={"wal": "log"}):
    """One server's life under load."""

    case: str
    round: int
    load: LoadOptions
    started_at: str  # UTC
    workers: int  # 0: not known
    seconds: float
    requests_per_second: float
    records_per_second: float
    body_bytes_per_second: float
    latency: Latency
    backlog_at_start_bytes: int = 0  # completed segments that were there before the server was started
    acknowledged_records: int  # with those in the backlog at the start
    parquet_records: int | None  # counted in the footers after the server had stopped; None: not ours to look at
    drain_seconds: float  # from SIGTERM to the end of the server; 0 for one that is left running
    to_parquet: ToParquet | None  # only where the suite waits for it
    processes: list[ProcessResult]
    load_cores: float
    other_cores: float  # kernel threads and other programs: noise, if it is much
    stolen_cores: float  # taken by the hypervisor
    complaints: list[str]  # what the server logged from WARNING on
    samples: list[Sample]
    wal: WALUse | None = None  # "log" in JSON; None if the server did not report it
    device: DeviceLimit | None = None  # only where every group is synced

    @property
    def cpu_seconds_per_request(self) -> float | None:
        """Says more than a rate where other programs take their share of the cores.

        Of the ingest workers; of all of its processes for a server that is not the harness's own, and None where they
        cannot be seen.
        """
        counted = [one for one in self.processes if self.parquet_records is None or one.name.startswith("ingest")]
        return sum(one.cores for one in counted) / self.requests_per_second if counted else None

    @property
    def share_of_device(self) -> float | None:
        """The log's bytes per second as a part of what a bare loop writes over in the same time."""
        if self.wal is None or self.device is None:
            return None
        return self.wal.bytes_per_second / self.device.overwriting_bytes_per_second

    @property
    def missing_records(self) -> int:
        """Acknowledged and not in Parquet; negative: more rows than were acknowledged; 0 if nobody could look."""
        return 0 if self.parquet_records is None else self.acknowledged_records - self.parquet_records


class CaseResult(msgspec.Struct, frozen=True):
    """All runs of a case."""

    name: str
    settings: dict[str, str]
    power_cut: str  # what a power cut may take of what was acknowledged
    runs: list[Run]

    def median(self, value: Callable[[Run], float]) -> float:
        return statistics.median(map(value, self.runs))

    def spread(self, value: Callable[[Run], float]) -> float:
        """Half of what lies between the best and the worst run, as a part of the median."""
        values = [value(run) for run in self.runs]
        middle = statistics.median(values)
        return (max(values) - min(values)) / 2 / middle if middle else 0.0


class SuiteResult(msgspec.Struct, frozen=True):
    """A suite: its load, its cases, and the case that the others are compared with ("" if there is none).

    Each run has its own load, which differs from the suite's where that is what the cases compare.
    """

    name: str
    title: str
    load: LoadOptions
    baseline: str
    cases: list[CaseResult]

    @property
    def runs(self) -> list[Run]:
        """Of all cases."""
        return [run for case in self.cases for run in case.runs]

    @property
    def is_of_targets(self) -> bool:
        """Whether its servers are not the harness's own, so that nobody looked for what they acknowledged."""
        return any(run.parquet_records is None for run in self.runs)

    def share_of_baseline(self, case: CaseResult) -> float | None:
        """The median over the rounds of this case's records/s divided by the baseline's in the same round.

        Within a round the machine is in one mood; between rounds it may change.
        """
        base = {run.round: run for other in self.cases if other.name == self.baseline for run in other.runs}
        ratios = [run.records_per_second / base[run.round].records_per_second for run in case.runs if run.round in base]
        return statistics.median(ratios) if ratios else None


class RecoveryRun(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"wal_bytes": "log_bytes", "uploaded_seconds": "shipped_seconds"},
):
    """A start of the server on a log that a crash left."""

    round: int
    started_at: str  # UTC
    wal_bytes: int
    segments: int
    records: int
    parquet_records: int  # counted in the footers after the server had stopped
    empty_start_seconds: float  # until it serves, of a start without a log
    start_seconds: float  # until it serves, of this start
    scan_seconds: float  # of it, what the server says it took to verify and complete the segments
    uploaded_seconds: float  # from the start until all records were in Parquet

    @property
    def scan_bytes_per_second(self) -> float:
        """How fast segments are verified: what stands between a crash and the next acknowledgement."""
        return self.wal_bytes / self.scan_seconds

    @property
    def ready_bytes_per_second(self) -> float:
        """The same from outside: by how much the log puts off the moment at which the server is ready."""
        return self.wal_bytes / max(self.start_seconds - self.empty_start_seconds, 1e-3)

    @property
    def upload_bytes_per_second(self) -> float:
        """How fast the log becomes Parquet, while the server already serves."""
        return self.wal_bytes / (self.uploaded_seconds - self.start_seconds)

    @property
    def missing_records(self) -> int:
        """In the log and not in Parquet; negative: more rows than the log had."""
        return self.records - self.parquet_records


class RecoveryCase(msgspec.Struct, frozen=True):
    """All runs with one kind of log."""

    name: str
    records_per_entry: int
    runs: list[RecoveryRun]

    def median(self, value: Callable[[RecoveryRun], float]) -> float:
        return statistics.median(map(value, self.runs))


class _Version(msgspec.Struct, frozen=True):
    version: int


class Report(msgspec.Struct, frozen=True):
    """The JSON file."""

    started_at: str  # UTC
    command: list[str]
    machine: Machine
    suites: list[SuiteResult]
    recovery: list[RecoveryCase]
    version: int = VERSION


class UnusableResults(Exception):
    """A file that is not one of results; the text says what to do."""


def read(path: Path) -> Report:
    """The results in a file.

    Raises:
        UnusableResults: there are none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnusableResults(f"{path}: {error.strerror}: name a file that --json wrote") from None
    try:
        version = msgspec.json.decode(content, type=_Version).version
        if version != VERSION:
            raise UnusableResults(
                f"{path} has results of version {version}, and this is version {VERSION}: "
                "measure again, or use the arcpipe that wrote it"
            )
        return msgspec.json.decode(content, type=Report)
    except msgspec.DecodeError as error:
        raise UnusableResults(f"{path} is not a file that --json wrote: {error}") from None


def slope(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """By how much a value grows per second: a line fitted by least squares."""
    if len(samples) < 2:
        return 0.0
    return float(np.polyfit([sample.seconds for sample in samples], [value(sample) for sample in samples], 1)[0])

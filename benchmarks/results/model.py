"""Results of a run, of several runs of a case, and of suites: the shape of the JSON file.

Every name has its unit. Rates and latencies are those between the end of the warm-up and the end of the load; record
counts are of the whole run. The JSON file has three other names: `log` for `wal`, `log_bytes` for `wal_bytes`, and
`shipped_seconds` for `uploaded_seconds`.
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
    """Progress of the records at a moment."""

    seconds: float  # since the first request
    acknowledged_records: int
    parquet_records: int
    waiting_bytes: int  # sealed segments that the uploader has not retired

    @property
    def backlog_records(self) -> int:
        """Acknowledged records that are not in Parquet yet."""
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
    """Use of CPU and memory by a process of the server."""

    name: str
    peak_rss_bytes: int  # of the whole run, drain included
    cores: float  # CPU seconds per second of load, mean


class ToParquet(msgspec.Struct, frozen=True):
    """The way from HTTP to Parquet."""

    parquet_records_per_second: float  # over the second half of the load
    backlog_growth_records_per_second: float  # over the second half of the load; about 0 is a flat backlog
    backlog_peak_records: int
    catch_up_seconds: float  # from the last answer until every acknowledged record was in Parquet
    records_per_second: float  # acknowledged, by the time from the first request to the last record in Parquet


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The load that was sent."""

    format: str
    records_per_body: int
    connections: int
    warmup_seconds: float
    seconds: float
    records_per_second: float  # 0: closed loop
    load_processes: int
    measurements: int = 1  # bodies take turns with them


class WALUse(msgspec.Struct, frozen=True):
    """Bytes and commits of the WAL between warm-up and end of the load, by the server's own counters."""

    bytes_per_second: float
    commits_per_second: float
    bytes_per_commit: float


class DeviceLimit(msgspec.Struct, frozen=True):
    """Speed of the disk alone, right after the run.

    Bare loops of `pwritev` and sync write groups as large as those of the run's WAL, one loop for each worker.
    """

    sync: str  # "fdatasync" or "fsync"
    writers: int
    group_bytes: int
    overwriting_bytes_per_second: float  # into blocks that are there already, as in a recycled segment
    appending_bytes_per_second: float  # into new blocks, as in a new segment


class Run(msgspec.Struct, frozen=True, kw_only=True, rename={"wal": "log"}):
    """One run: a server under a load."""

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
    backlog_at_start_bytes: int = 0  # sealed segments before the start
    acknowledged_records: int  # with those in the backlog at the start
    parquet_records: int | None  # counted in the footers after the server had stopped; None if nobody could look
    drain_seconds: float  # from SIGTERM to the end of the server; 0 for one that is left running
    to_parquet: ToParquet | None  # None if the suite does not wait for it
    processes: list[ProcessResult]
    load_cores: float
    other_cores: float  # kernel threads and other programs: noise
    stolen_cores: float  # taken by the hypervisor
    complaints: list[str]  # lines that the server logged from WARNING on
    samples: list[Sample]
    wal: WALUse | None = None  # "log" in JSON; None if the server did not report it
    device: DeviceLimit | None = None  # None if groups are not synced one by one

    @property
    def cpu_seconds_per_request(self) -> float | None:
        """CPU time of the ingest workers per request; None if it cannot be seen.

        It says more than a rate where other programs use the cores, too. Of a server that the harness did not start, it
        is that of all processes.
        """
        counted = [one for one in self.processes if self.parquet_records is None or one.name.startswith("ingest")]
        return sum(one.cores for one in counted) / self.requests_per_second if counted else None

    @property
    def share_of_device(self) -> float | None:
        """Bytes per second of the WAL divided by those of a bare loop that writes over."""
        if self.wal is None or self.device is None:
            return None
        return self.wal.bytes_per_second / self.device.overwriting_bytes_per_second

    @property
    def missing_records(self) -> int:
        """Acknowledged records that are not in Parquet; negative if rows are there twice; 0 if nobody could look."""
        return 0 if self.parquet_records is None else self.acknowledged_records - self.parquet_records


class CaseResult(msgspec.Struct, frozen=True):
    """All runs of a case."""

    name: str
    settings: dict[str, str]
    power_cut: str  # acknowledged records that a power cut may take
    runs: list[Run]

    def median(self, value: Callable[[Run], float]) -> float:
        """Return the median of a figure over the runs."""
        return statistics.median(map(value, self.runs))

    def spread(self, value: Callable[[Run], float]) -> float:
        """Return half of the range from the worst to the best run, as a part of the median."""
        values = [value(run) for run in self.runs]
        middle = statistics.median(values)
        return (max(values) - min(values)) / 2 / middle if middle else 0.0


class SuiteResult(msgspec.Struct, frozen=True):
    """A suite: its load, its cases, and the case that the others are compared with ("" for no case).

    Each run has its own load, which differs from the suite's if the cases compare loads.
    """

    name: str
    title: str
    load: LoadOptions
    baseline: str
    cases: list[CaseResult]

    @property
    def runs(self) -> list[Run]:
        """Runs of all cases."""
        return [run for case in self.cases for run in case.runs]

    @property
    def is_of_targets(self) -> bool:
        """Whether its servers ran already, so that nobody looked for the records that they acknowledged."""
        return any(run.parquet_records is None for run in self.runs)

    def share_of_baseline(self, case: CaseResult) -> float | None:
        """Return the median over the rounds of this case's records/s divided by the baseline's in the same round.

        The speed of the machine may change from round to round, but hardly within one.
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
    """A start of the server on a WAL that a crash left."""

    round: int
    started_at: str  # UTC
    wal_bytes: int
    segments: int
    records: int
    parquet_records: int  # counted in the footers after the server had stopped
    empty_start_seconds: float  # of a start without a WAL, until it serves
    start_seconds: float  # of this start, until it serves
    scan_seconds: float  # part of it: to verify and seal the segments, by the server's log
    uploaded_seconds: float  # from the start until all records were in Parquet

    @property
    def scan_bytes_per_second(self) -> float:
        """Speed at which segments are verified, which delays the first acknowledgement after a crash."""
        return self.wal_bytes / self.scan_seconds

    @property
    def ready_bytes_per_second(self) -> float:
        """The same from outside: bytes of the WAL by the time by which it delays the start."""
        return self.wal_bytes / max(self.start_seconds - self.empty_start_seconds, 1e-3)

    @property
    def upload_bytes_per_second(self) -> float:
        """Speed at which the WAL becomes Parquet, while the server already serves."""
        return self.wal_bytes / (self.uploaded_seconds - self.start_seconds)

    @property
    def missing_records(self) -> int:
        """Records of the WAL that are not in Parquet; negative if rows are there twice."""
        return self.records - self.parquet_records


class RecoveryCase(msgspec.Struct, frozen=True):
    """All runs with one kind of WAL."""

    name: str
    records_per_entry: int
    runs: list[RecoveryRun]

    def median(self, value: Callable[[RecoveryRun], float]) -> float:
        """Return the median of a figure over the runs."""
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
    """A file without results; the text says what to do."""


def read(path: Path) -> Report:
    """Read the results in a file.

    Raises:
        UnusableResults: It holds no results, or those of another version.
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
    """Return the growth of a value per second, from a line fitted by least squares."""
    if len(samples) < 2:
        return 0.0
    return float(np.polyfit([sample.seconds for sample in samples], [value(sample) for sample in samples], 1)[0])

"""Counters in shared memory: each slot has one writer, every process reads them all.

One anonymous mapping is made before the first fork. A counter is an aligned unsigned 64-bit integer, read and
written in one machine instruction. So no lock is needed, and the hot path pays one store. Gauges are stored the
same way. Nothing here survives the supervisor; state that must survive is on disk. Times are of the steady clock
(`arcpipe/clock.py`) unless a field says "time of day".
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from arcpipe.clock import steady_us
from arcpipe.meters import Meters
from arcpipe.names import MAX_DATABASE_BYTES

LATENCY_BOUNDS_US: Final = (
    *(250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000),
    *(1_000_000, 2_000_000, 5_000_000, 10_000_000),
)
"""Upper bounds of the latency histograms, in µs."""

GROUP_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the histogram of group sizes, in entries."""

UPLOAD_BOUNDS_US: Final = (
    *(10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000),
    *(10_000_000, 30_000_000, 60_000_000, 300_000_000),
)
"""Upper bounds of the histogram of single uploads, in µs."""


MAX_ROUTES: Final = 48
"""Routes that requests are counted for, at most; the last one stands for unknown paths."""

STATUSES: Final = (
    *(b"200", b"202", b"204", b"304", b"400", b"401", b"403", b"404", b"405", b"408", b"411", b"413", b"414", b"415"),
    *(b"417", b"429", b"431", b"500", b"503", b"507", b"other"),
)
"""Statuses that answers are counted by; `other` is last."""

MAX_DATABASES: Final = 64
"""Databases that writes are counted for, at most; the last one stands for all others, under the empty name."""

# More than any block has fields. A block numbers its fields by `range(_FIELDS)`, so no count is kept by hand.
_FIELDS: Final = 100

_NAME_WORDS: Final = 8  # of 8 bytes: the name of a segment, and most of what ends
_DATABASE_NAME_WORDS: Final = MAX_DATABASE_BYTES // 8
DATABASE_WORDS: Final = _DATABASE_NAME_WORDS + 3  # the name, then the counters of `Usage`


class Usage(NamedTuple):
    """Totals of the writes to one database."""

    requests: int
    records: int
    body_bytes: int


class Histogram:
    """Counts of values per bucket, and their sum. One thread observes; others may read."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last: above all bounds
        self.sum = 0

    def observe(self, value: int) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def values(self) -> list[int]:
        """Return the layout in shared memory: a count per bucket, the count above all bounds, the sum."""
        return [*self.counts, self.sum]


REFUSAL_CODES: Final = (
    "bad_request",
    "unauthorized",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "timeout",
    "length_required",
    "body_too_large",
    "url_too_long",
    "header_too_large",
    "unsupported_encoding",
    "unsupported_media_type",
    "expectation_failed",
    "too_many_requests",
    "bug",
    "backlog",
    "no_space",
    "log_failure",
    "too_many_connections",
    "inflight",
    "draining",
    "cross_site",
    "proxy_protocol",  # a connection that ended before it had a request
    "other",
)
"""Codes of the error answers, in the order of the counters from `Worker.REFUSED` on."""


LIMITED_BY: Final = ("token", "address")
LIMITS: Final = ("requests", "bytes", "connections")
"""Whose limit was reached, and which one: the order of the counters from `Worker.LIMITED` on."""


class Worker:
    """Fields of an ingest worker's block. The worker copies its state here four times a second."""

    (
        PID,
        STARTED_US,
        HEARTBEAT_US,
        CONNECTIONS,
        REQUESTS,
        WRITES_ACCEPTED,
        WRITES_REFUSED,
        RECORDS,
        BODY_BYTES,
        WAL_ENTRIES,
        WAL_RECORDS,
        WAL_BYTES,
        WAL_COMMITS,
        WAL_SYNCS,
        WAL_ROTATIONS,
        WAL_FAILURES,
        SEGMENT_SEQ,
        SEGMENT_BYTES,
        SEGMENT_CREATED_US,
        SEGMENT_ENTRIES,
        SEGMENT_FIRST_US,
        LAST_FAILURE_US,
        LOG_LEVEL,
        TOKENS_LOADED,
        TLS_LOADED,
        RELOADS_TAKEN,
        ACCESS_LINES,
        ACCESS_LINES_DROPPED,
        LIMITS_UNTRACKED,
        LOST_RECORDS,
        MAX_CONNECTIONS,  # gauge: connections that it accepts at most
        KEYED_WRITES,  # requests with an idempotency key that were written
        REPLAYED_WRITES,  # retries that were answered without being written again
        OTHER_BODIES,  # of these: their body was not that of the first request
        *_,
    ) = range(_FIELDS)
    # Histograms: the first word of each; the bounds are above.
    ACK_US: Final = OTHER_BODIES + 1
    SYNC_US: Final = ACK_US + len(LATENCY_BOUNDS_US) + 2
    LOOP_LAG_US: Final = SYNC_US + len(LATENCY_BOUNDS_US) + 2
    GROUP_ENTRIES: Final = LOOP_LAG_US + len(LATENCY_BOUNDS_US) + 2
    # Refused requests by reason: one for each of REFUSAL_CODES.
    REFUSED: Final = GROUP_ENTRIES + len(GROUP_BOUNDS) + 2
    # Requests above a limit: a row for each of LIMITED_BY, with a counter for each of LIMITS.
    LIMITED: Final = REFUSED + len(REFUSAL_CODES)
    # Requests by route and status: a row for each route, in the order of the router's table.
    ROUTES: Final = LIMITED + len(LIMITED_BY) * len(LIMITS)
    # Writes by database: DATABASE_WORDS each.
    DATABASES: Final = ROUTES + MAX_ROUTES * len(STATUSES)
    SIZE: Final = DATABASES + MAX_DATABASES * DATABASE_WORDS


RETRY_KINDS: Final = (
    "connection",
    "dns",
    "timeout",
    "throttled",
    "server_error",
    "credentials",
    "missing_bucket",
    "clock_skew",
    "no_space",
    "other",
    "disk",
    "bug",
)
"""Causes of a retry of the uploader: the kinds of `errors.StorageError`, then the WAL's disk, then a bug of this
program. This is the order of the counters from `Uploader.RETRIES` on."""


class Uploader:
    """Fields of the uploader's block.

    From RETRIES on there is a counter for each of RETRY_KINDS; the number of all retries is their sum.
    """

    (
        PID,
        STARTED_US,
        HEARTBEAT_US,
        STEPS,  # grows while the uploader makes progress: with each entry, and each try of a step, good or bad
        BATCHES,
        BATCH_SEQ,
        SEGMENTS,
        ENTRIES,
        ROWS,
        FILES,
        FILE_BYTES,
        RESCUED,
        DEAD_LETTERS,
        DAMAGED,
        LAST_UPLOAD_US,
        LOST_SEGMENTS,  # vanished, or lost entries, after a batch had included them
        UNREADABLE_SEGMENTS,  # gauge: set aside until they can be read
        DAMAGED_MANIFESTS,  # gauge: kept aside with their segments until an operator decides
        STOPPED,  # gauge: 1 while a file of an unknown version stops all uploads
        PLANNED_US,  # when the last batch was planned; 0 before the first
        COLLECT_US,  # workers seal what began until then, so that it joins the next batch
        BATCHED_SEGMENTS,  # gauge: in batches that are not finished
        BATCHED_BYTES,
        REPEATED,  # entries that were dropped, because an earlier one has their idempotency key
        OTHER_BODIES,  # of these: their body was not that of the first one
        KEYS,  # gauge: keys that are known
        KEYS_EXPIRED,
        KEYS_CUT,  # of these: forgotten before idempotency.window_seconds was over, because of idempotency.max_keys
        UNREADABLE_KEY_FILES,  # gauge
        HANDED_OVER,  # batches that became commit files, for tables
        HELD_BACK,  # gauge: 1 while `tables.max_uncommitted_mb` keeps a batch from being handed over
        DENIED_US,  # when the store last refused the credentials; 0 before
        RETRIES,
        *_,
    ) = range(_FIELDS)
    UPLOAD_US: Final = RETRIES + len(RETRY_KINDS)  # a histogram
    SIZE: Final = UPLOAD_US + len(UPLOAD_BOUNDS_US) + 2


class Compaction:
    """Fields of the block of the compaction process."""

    (
        PID,
        STARTED_US,
        HEARTBEAT_US,
        STEPS,  # grows while it makes progress, or waits for the next hour
        LOOKS,
        LAST_LOOK_US,
        MERGES,
        FILES_IN,
        FILES_OUT,
        BYTES_IN,
        BYTES_OUT,
        ROWS,
        SUPERSEDED,  # rows that a later one of the same point replaced
        FAILURES,
        MISMATCHES,  # merges that wrote other rows than they had read; nothing of them became visible
        WAITING_FOLDERS,  # gauge: of this look
        WAITING_FILES,  # gauge: of this look
        LEFT_ALONE,  # gauge: files that cannot be merged, and stay as they are
        STOPPED,  # gauge: 1 while a plan waits for an operator
        RESTARTS,
        FAILED_STARTS,  # gauge: consecutive starts that failed, or were followed by an early death
        EXPIRED_HOURS,  # hours of a measurement of which retention deleted files
        EXPIRED_FILES,
        EXPIRED_BYTES,
        RETENTION_FROM,  # gauge: seconds since the epoch before which retention deletes nothing; 0 if it does not wait
        FAILED_LOOKS,  # gauge: consecutive looks that failed, or in which something failed
        SIZE,
        *_,
    ) = range(_FIELDS)


class Committer:
    """Fields of the block of the committer."""

    (
        PID,
        STARTED_US,
        HEARTBEAT_US,
        STEPS,  # grows while it makes progress, or waits for the next round
        ROUNDS,
        LAST_ROUND_US,
        ROUND_US,  # gauge: how long the last round took that committed anything
        COMMITS,
        LAST_COMMIT_US,
        FILES,
        ROWS,
        CONFLICTS,  # attempts that others overtook
        FAILURES,
        RECREATED,  # tables that somebody had dropped
        MAINTAINED,
        WAITING_BATCHES,  # gauge: handed over, and not in all of their tables
        WAITING_BYTES,
        OLDEST_US,  # gauge: when the oldest of them was handed over; 0 if none waits
        FAILING,  # gauge: tables whose last commit failed
        REFUSED,  # gauge: tables that need a person's decision
        MISSING,  # gauge: tables that wait because objects are gone or cannot be read
        STOPPED,  # gauge: 1 while nothing at all may be committed
        UNREACHABLE,  # gauge: 1 while catalogue or warehouse do not work
        RESTARTS,
        FAILED_STARTS,  # gauge: consecutive starts that failed, or were followed by an early death
        UPKEEP_FAILURES,
        SIZE,
        *_,
    ) = range(_FIELDS)


ANNOUNCED: Final = 1
BEGUN: Final = 2
HANDED_OVER: Final = 3
"""Values of `Node.DRAINING`: /ready says no, so that load balancers stop sending; the workers end; the workers end and
have successors."""


FIGURES_SECONDS: Final = 5.0
"""Maximum age of the supervisor's figures. It measures four times a second; if they are older, it hangs, and nobody
trusts them."""

_HANDED_OVER_SECONDS: Final = 60.0
"""Maximum age during an upgrade: the new version loads in this time, then ends the former workers."""


class Node:
    """Fields of the supervisor's block, which concern the whole instance.

    - LOG_LEVEL is a number of `logging`.
    - TOKENS_LOADED and TLS_LOADED count successful reads of tokens and certificate. A worker with a lower number in its
      own block reads them again.
    - RELOADS counts requests to reload. At each the workers open their access log again.
    - RELOAD_REFUSED has a bit for each of RELOAD_PARTS that the last reload could not use.
    - OLDEST_UNSEALED_US is since when the oldest of the segments waits that a worker has left, and that are not sealed.
    - UNLISTED is 1 while the WAL directory cannot be listed.
    - UNRECOVERED_SEGMENTS and UNRECOVERED_BYTES are of dead workers' segments that could not be recovered yet. They are
      part of the backlog. The name of the first one begins at UNRECOVERED_NAME.
    - MEASURED_US is when the supervisor last measured backlog and disk, in µs of CLOCK_MONOTONIC, which all processes
      share. It is also its heartbeat.
    - REPLACED is 1 once `wal.dir` is another directory than at the start, UNLOCKED while its lock is not held.
    """

    (
        STARTED_US,
        BACKLOG_BYTES,
        BACKLOG_SEGMENTS,
        OLDEST_BACKLOG_US,
        DISK_FREE_BYTES,
        DISK_TOTAL_BYTES,
        WORKER_RESTARTS,
        UPLOADER_RESTARTS,
        DRAINING,
        LOG_LEVEL,
        TOKENS_LOADED,
        TLS_LOADED,
        UNLISTED,
        UNRECOVERED_SEGMENTS,
        UNRECOVERED_BYTES,
        RELOADS,
        MEASURED_US,
        REPLACED,
        UNLOCKED,
        RELOAD_REFUSED,
        OLDEST_UNSEALED_US,
        UNRECOVERED_NAME,
        *_,
    ) = range(_FIELDS)
    SIZE: Final = UNRECOVERED_NAME + _NAME_WORDS


RELOAD_PARTS: Final = ("the settings", "the tokens file", "the certificate")
"""What a reload reads, each by itself. A part that cannot be used is refused, and the former one stays in force."""


def figures_hold_seconds(node: memoryview) -> float:
    """Return the maximum age of the supervisor's figures.

    It is longer during an upgrade: the new supervisor measures for its own workers, and ends the former ones.
    """
    return _HANDED_OVER_SECONDS if node[Node.DRAINING] == HANDED_OVER else FIGURES_SECONDS


ENDINGS: Final = ("certificate", "client_ca", "token")
"""Kinds that may expire: the server's certificate, an authority that signs clients' certificates, a token."""


class Endings:
    """Fields of the block of expiry: a row for each of ENDINGS, then the number of tokens by state.

    Times are seconds since the epoch. A row is all zeros if nothing of its kind expires.
    """

    ENDS: Final = 0
    WARN_FROM: Final = 1
    NAME: Final = 2
    WORDS: Final = NAME + _NAME_WORDS
    TOKENS: Final = len(ENDINGS) * WORDS
    TOKEN_STATES: Final = ("active", "expired", "revoked")
    SIZE: Final = TOKENS + len(TOKEN_STATES)


class Counters:
    """The mapping and its blocks. Make it before forking.

    Blocks are memoryviews of unsigned 64-bit integers: `counters.worker(1)[Worker.RECORDS] += n`.
    """

    def __init__(self, workers: int, tracked_clients: int = 0) -> None:
        """Make the mapping.

        Args:
            workers: number of worker slots.
            tracked_clients: number of clients that have a meter; 0 makes no meters.
        """
        self.workers = workers
        self.meters = Meters(workers, tracked_clients) if tracked_clients else None
        notes = (workers + 5) * Notes.SIZE
        size = Node.SIZE + Uploader.SIZE + workers * Worker.SIZE + Compaction.SIZE + Committer.SIZE + Endings.SIZE
        size += (workers + 1) + notes
        self._memory = mmap.mmap(-1, size * 8)
        self._view = memoryview(self._memory).cast("Q")
        self._notes_at = size - notes
        self.node = self._view[: Node.SIZE]
        self.uploader = self._view[Node.SIZE : Node.SIZE + Uploader.SIZE]
        compaction_at = Node.SIZE + Uploader.SIZE + workers * Worker.SIZE
        committer_at = compaction_at + Compaction.SIZE
        self.compaction = self._view[compaction_at:committer_at]
        self.committer = self._view[committer_at : committer_at + Committer.SIZE]
        self.endings = self._view[self._notes_at - workers - 1 - Endings.SIZE : self._notes_at - workers - 1]
        # Of the uploader and of each slot: consecutive starts that failed, or were followed by an early death.
        self.failed_starts = self._view[self._notes_at - workers - 1 : self._notes_at]

    def worker(self, slot: int) -> memoryview:
        """Return the block of a worker slot; slots are numbered from 1."""
        if not 1 <= slot <= self.workers:
            raise IndexError(f"worker slot {slot} is not between 1 and {self.workers}")
        start = Node.SIZE + Uploader.SIZE + (slot - 1) * Worker.SIZE
        return self._view[start : start + Worker.SIZE]

    def notes(self, process: str) -> Notes:
        """Return the latest warnings of a process: "supervisor", "uploader", "recovery", "compaction", …."""
        number = self.processes().index(process)
        start = self._notes_at + number * Notes.SIZE
        return Notes(self._view[start : start + Notes.SIZE])

    def processes(self) -> list[str]:
        """Return the names that `notes` takes."""
        return [
            "supervisor",
            "uploader",
            "recovery",
            "compaction",
            "committer",
            *(f"ingest {slot}" for slot in range(1, self.workers + 1)),
        ]


def observe(block: memoryview, start: int, bounds: Sequence[int], value: int) -> None:
    """Count a value in a histogram in shared memory.

    For values that are too rare to be kept in a `Histogram` and copied.
    """
    block[start + bisect_left(bounds, value)] += 1
    block[start + len(bounds) + 1] += value


def count_statuses(answered: Mapping[bytes, int]) -> list[int]:
    """Return the numbers of answers in the order of STATUSES."""
    counts = [answered.get(status, 0) for status in STATUSES]
    counts[-1] += sum(answered.values()) - sum(counts)
    return counts


def pack_usage(databases: Mapping[str, Sequence[int]]) -> list[int]:
    """Pack requests, records and body bytes of at most MAX_DATABASES databases as words of a worker's block."""
    words: list[int] = []
    for name, values in databases.items():
        words += pack_name(name, _DATABASE_NAME_WORDS).tolist()
        words += values
    return words


def pack_name(name: str, words: int = _NAME_WORDS) -> memoryview:
    """Pack a name as words of a block, such as `Node.UNRECOVERED_NAME`; one that is too long is cut."""
    size = 8 * words
    return memoryview(name.encode("utf-8", "replace")[:size].ljust(size, b"\0")).cast("Q")


def unpack_name(block: memoryview, start: int, words: int = _NAME_WORDS) -> str:
    """Return the name that `pack_name` packed in this number of words."""
    return block[start : start + words].tobytes().rstrip(b"\0").decode("utf-8", "replace")


def unpack_usage(block: memoryview) -> Iterator[tuple[str, Usage]]:
    """Return the databases of a worker's block; the empty name stands for all that are not counted by name."""
    for start in range(Worker.DATABASES, Worker.SIZE, DATABASE_WORDS):
        usage = Usage(*block[start + _DATABASE_NAME_WORDS : start + DATABASE_WORDS])
        if usage.requests:
            yield unpack_name(block, start, _DATABASE_NAME_WORDS), usage


class Note(NamedTuple):
    """A line that a process logged as a warning or worse."""

    time_us: int  # the time of day
    level: int  # as in `logging`
    text: str
    steady_us: int  # orders the lines of all processes, even if the time of day was set


class Notes:
    """A ring of a process's latest warnings in shared memory; text over _TEXT_BYTES is cut."""

    LINES: Final = 16
    _WORDS: Final = 64  # of 8 bytes: time; level and length of the text; time of the steady clock; text
    SIZE: Final = 1 + LINES * _WORDS
    _TEXT_BYTES: Final = (_WORDS - 3) * 8

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def add(self, time_us: int, level: int, text: str) -> None:
        """Add a warning. Only the process itself may, one thread at a time."""
        count = self._words[0]
        start = 1 + count % self.LINES * self._WORDS
        data = text.encode("utf-8", "replace")[: self._TEXT_BYTES]
        words = self._words
        words[start] = 0  # readers skip the line until it is complete
        words[start + 1] = level << 32 | len(data)
        words[start + 2] = steady_us()
        words[start + 3 : start + self._WORDS] = memoryview(data.ljust(self._TEXT_BYTES, b"\0")).cast("Q")
        words[start] = time_us
        words[0] = count + 1

    def read(self) -> Iterator[Note]:
        """Return the lines, in no order."""
        words = self._words
        for start in range(1, self.SIZE, self._WORDS):
            time_us, sizes, steady = words[start : start + 3]
            text = words[start + 3 : start + self._WORDS].tobytes()[: sizes & 0xFFFFFFFF]
            if time_us and words[start] == time_us:
                yield Note(time_us, sizes >> 32, text.decode("utf-8", "ignore"), steady)

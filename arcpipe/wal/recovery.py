"""Recover the segments that a crash left: all of them at a start, or those of one worker that died.

Every active segment is read and judged, and its verdict says what is done (`arcpipe.wal.verdict`). A torn tail is cut
off, and the end entry written. A clean or damaged file is sealed as it is. An unreadable file is left exactly as it is,
for a later try. No file stops the start.

A crash during recovery does no harm: nothing is rewritten, only cut off, appended and renamed. So recovering again
gives the same result.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final, NamedTuple

from arcpipe import durable, logs
from arcpipe.disk import Disk
from arcpipe.errors import NotAWAL, UnknownVersion, is_full, lacks_room
from arcpipe.units import MB
from arcpipe.wal import findings
from arcpipe.wal.cut import cut_and_end, cut_replaced
from arcpipe.wal.directory import ACTIVE, RECOVERED, SEALED, SegmentFile, WALDirectory
from arcpipe.wal.findings import DAMAGED, Finding
from arcpipe.wal.pool import FreePool
from arcpipe.wal.reader import ScanReport, SegmentScan
from arcpipe.wal.report import damage_count, end_problem
from arcpipe.wal.verdict import Consequence, consequence

log = logging.getLogger(__name__)

_PARALLEL_FILES: Final = 4
_PROGRESS_SECONDS: Final = 1.0
_WRITTEN_AGAIN_BYTES: Final = MB  # bytes per write, after a failed sync
# Seconds between tries at unreadable files: a short fault of the disk delays the start a little, a long one no more.
_PAUSES_SECONDS: Final = (0.1, 0.4)


class RecoveredFile(NamedTuple):
    """The result of recovering one file.

    `outcome` is "sealed", "empty" (removed), "quarantined" or "gone" (somebody else moved it). Or the file stays active
    for another try: "unreadable" (unchanged), "waiting" (for space) or "failed".
    """

    filename: str
    slot: int
    outcome: str
    entries: int = 0
    bytes: int = 0
    corrupted: int = 0
    last_timestamp: int = 0  # µs
    left: SegmentFile | None = None  # the file, if it stays active
    reason: str = ""  # why it stays active
    damage: str = ""  # the first damaged place, if there is one


class RecoverySummary:
    """The result of a recovery, and the timestamp from which each slot goes on."""

    def __init__(self, files: list[RecoveredFile], seconds: float) -> None:
        self.files = files
        self.seconds = seconds
        self.entries = sum(file.entries for file in files)
        self.bytes = sum(file.bytes for file in files)
        self.corrupted = sum(file.corrupted for file in files)

    @property
    def unreadable(self) -> list[SegmentFile]:
        """List the files that stay active, for `recover_files`. Of several results of a file, the last one counts."""
        latest = {file.filename: file.left for file in self.files}
        return [file for file in latest.values() if file is not None]

    def last_timestamp(self, slot: int) -> int:
        """Return the highest entry timestamp (µs) that was read of a slot; 0 without one."""
        return max((file.last_timestamp for file in self.files if file.slot == slot), default=0)


def recover_at_start(
    directory: WALDirectory,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    sleep: Callable[[float], None] = time.sleep,
) -> RecoverySummary:
    """Recover the whole directory before the server listens, several files at a time.

    Args:
        on_progress: called at least once a second with the number of files done, and of all files.
    """
    FreePool(directory, 0).clear()
    _clear_folder(directory, directory.spool)
    try:
        findings.set_aside_damaged(directory)
    except OSError as error:  # health reports it while it lasts
        log.error("cannot look at what was found before: %s", error)
    return _recover(directory, directory.segments(ACTIVE), on_progress, sleep, _PAUSES_SECONDS)


def recover_slot(directory: WALDirectory, slot: int, files: Sequence[SegmentFile]) -> RecoverySummary:
    """Recover the segments that one dead worker left, once, without touching files of others.

    Args:
        files: the slot's active segments.
    """
    try:
        FreePool(directory, 0).clear(slot)
    except OSError as error:  # costs only space, which the next death or start frees
        log.warning("cannot remove what ingest %d left in %s: %s", slot, directory.free, error)
    return recover_files(directory, files)


def recover_files(directory: WALDirectory, files: Sequence[SegmentFile]) -> RecoverySummary:
    """Retry exactly these files, once: those that an earlier summary lists as `unreadable`.

    Workers may run meanwhile, because no other file is touched. The outcome of a file that was removed is "gone".
    """
    return _recover(directory, list(files), lambda done, total: None, time.sleep, ())


def remove_recovered(directory: WALDirectory, max_age_seconds: float) -> tuple[int, int]:
    """Remove `….wal.recovered` files that are older than this. Return their number and their bytes."""
    count = freed = 0
    oldest = time.time() - max_age_seconds
    for file in directory.segments(RECOVERED):
        if file.modified < oldest and not file.problem:
            directory.disk.unlink(file.path)
            count += 1
            freed += file.size
    return count, freed


def _clear_folder(directory: WALDirectory, folder: str) -> None:
    """Remove the files in a folder. Directories in it are not ours, such as `lost+found` at a mount point."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                directory.disk.unlink(entry.path)


def _recover(
    directory: WALDirectory,
    files: list[SegmentFile],
    on_progress: Callable[[int, int], None],
    sleep: Callable[[float], None],
    pauses: Sequence[float],
) -> RecoverySummary:
    started = time.monotonic()
    if not files:
        return RecoverySummary([], 0.0)
    log.info("WAL recovery started: %d files", len(files))
    held = cut_replaced(directory, files)
    results = {file.filename: _left(file, "waiting", held[file.filename]) for file in files if file.filename in held}
    todo = [file for file in files if file.filename not in held]
    for pause in (*pauses, None):
        results.update((file.filename, file) for file in _recover_all(directory, todo, len(files), on_progress))
        todo = [file for file in todo if results[file.filename].outcome == "unreadable"]
        if not todo or pause is None:
            break
        sleep(pause)
    for result in results.values():
        if result.left is not None:
            log.error("WAL file %s cannot be recovered: %s; it stays active", result.filename, result.reason)
    _note_damage(directory, results.values())
    sync_names(directory)
    summary = RecoverySummary(list(results.values()), time.monotonic() - started)
    log.info(
        "WAL recovery complete: %d files, %d entries, %.1f MB, %d corrupted, %.2f s",
        len(files),
        summary.entries,
        summary.bytes / 1e6,
        summary.corrupted,
        summary.seconds,
    )
    return summary


def _note_damage(directory: WALDirectory, files: Iterable[RecoveredFile]) -> None:
    """Note damage for the operator. If this fails, the uploader, which reads these segments too, notes it."""
    found = [Finding(DAMAGED, file.filename.partition(".")[0], file.corrupted, file.damage) for file in files]
    try:
        findings.note(directory, [finding for finding in found if finding.count])
    except (OSError, UnknownVersion) as error:
        log.error("cannot note the damage that recovery found: %s; it is noted when it is uploaded", error)


def sync_names(directory: WALDirectory) -> None:
    """Make renames and removals durable. Until then a power cut may undo any of them."""
    directory.sync()


def _recover_all(
    directory: WALDirectory, files: list[SegmentFile], total: int, on_progress: Callable[[int, int], None]
) -> list[RecoveredFile]:
    """Recover several files at a time; one after the other if no thread can be started.

    Args:
        total: the number of files for `on_progress`; the others are done already.
    """
    waiting = deque(files)
    done: list[RecoveredFile] = []

    def work() -> None:
        while True:
            try:
                file = waiting.popleft()
            except IndexError:
                return
            done.append(_recover_file(directory, file))

    threads = min(_PARALLEL_FILES, len(files))
    # The threads have ended when this returns, because the process forks next.
    with ThreadPoolExecutor(max(threads, 1), "recovery") as pool:
        running: set[Future[None]] = set()
        try:
            for _ in range(threads):
                running.add(pool.submit(work))
        except RuntimeError as error:
            log.warning("recovery goes on with %d threads: %s", len(running), error)
            if not running:
                work()
        while running:
            finished, running = wait(running, _PROGRESS_SECONDS, FIRST_COMPLETED)
            on_progress(total - len(files) + len(done), total)
            for future in finished:
                future.result()
    on_progress(total - len(files) + len(done), total)
    return done


def _recover_file(directory: WALDirectory, file: SegmentFile) -> RecoveredFile:
    try:
        return _recover_good_or_bad(directory, file)
    except Exception as error:
        if lacks_room(error):
            raise
        # One file must not keep all others from being uploaded, nor the server from its start.
        log.exception("a bug in the recovery of %s", file.filename)
        return _left(file, "failed", repr(error))


def _recover_good_or_bad(directory: WALDirectory, file: SegmentFile) -> RecoveredFile:
    try:
        scan = SegmentScan(file.path, disk=directory.disk, state=ACTIVE)
        for _ in scan:
            pass
    except NotAWAL as error:
        log.error("WAL file %s; moved to %s", error, directory.quarantine, extra=logs.EACH)
        return _quarantine(directory, file)
    except FileNotFoundError:
        log.error("WAL file %s was removed or moved by somebody else", file.filename, extra=logs.EACH)
        return RecoveredFile(file.filename, file.name.slot, "gone")
    except OSError as error:
        return _left(file, "unreadable", error)
    try:
        outcome = _complete(directory, file, scan.report)
    except OSError as error:
        no_space = is_full(error)
        left = _left(file, "waiting" if no_space else "failed", error)
        return left._replace(last_timestamp=scan.report.last_timestamp)
    return _tell(file, scan.report, outcome)


def _left(file: SegmentFile, outcome: str, reason: str | OSError) -> RecoveredFile:
    return RecoveredFile(file.filename, file.name.slot, outcome, bytes=file.size, left=file, reason=str(reason))


def _complete(directory: WALDirectory, file: SegmentFile, report: ScanReport) -> str:
    """Treat an active segment as its verdict demands, and return the outcome.

    Raises:
        OSError: it stays active; at most its torn tail is cut off.
    """
    disk = directory.disk
    what = consequence(report.verdict)
    assert what is not Consequence.LEAVE, f"BUG: {file.filename} was read to its end, and is {report.verdict}"
    if what is not Consequence.UPLOAD_AND_KEEP and not report.entries:
        disk.unlink(file.path)
        return "empty"
    fd = disk.open(file.path)
    try:
        if what is Consequence.CUT_AND_SEAL:
            cut_and_end(directory, fd, report)
        elif what is Consequence.UPLOAD:
            if report.size > report.end_offset:
                # Stale entries, or a tail whose removal a power cut has undone: they must not be archived.
                disk.truncate(fd, report.end_offset)
            # Write the end entry again: after a failed sync the kernel counts its page as clean.
            length = report.end_offset - report.end_entry_offset
            disk.write(fd, [disk.read(fd, length, report.end_entry_offset)], report.end_entry_offset)
        _sync(disk, fd)
    finally:
        disk.close(fd)
    disk.rename(file.path, os.path.join(directory.path, f"{file.name}{SEALED}"))
    return "sealed"


def _sync(disk: Disk, fd: int) -> None:
    """Sync a file that a dead process wrote: it may be whole, but only in the page cache.

    Raises:
        OSError: the sync failed. The kernel then counts the pages as clean, and the next sync would succeed without
            writing them. So the file's readable content was written again first.
    """
    try:
        disk.fsync(fd)
    except OSError:
        with contextlib.suppress(OSError):
            offset = 0
            while data := disk.read(fd, _WRITTEN_AGAIN_BYTES, offset):
                disk.write(fd, [data], offset)
                offset += len(data)
        raise


def _tell(file: SegmentFile, report: ScanReport, outcome: str) -> RecoveredFile:
    for damage in report.damage:
        log.error(
            "WAL file %s: %s at offset %d; skipped %d bytes",
            *(file.filename, damage.reason, damage.offset, damage.length),
            extra=logs.EACH,
        )
    problem = end_problem(report, was_active=True)
    if problem:
        log.error("WAL file %s: %s", file.filename, problem, extra=logs.EACH)
    corrupted = damage_count(report, problem)
    log.log(
        logging.DEBUG if outcome == "empty" else logging.INFO,  # every crash leaves a segment that was made ready
        "WAL file %s: %d entries, %d bytes, %d corrupted, %d torn",
        file.filename,
        report.entries,
        report.end_offset,
        corrupted,
        report.torn_bytes,
    )
    found = (report.entries, report.end_offset, corrupted, report.last_timestamp)
    first = f"{report.damage[0].reason} at offset {report.damage[0].offset}" if report.damage else problem
    return RecoveredFile(file.filename, file.name.slot, outcome, *found, damage=first)


def _quarantine(directory: WALDirectory, file: SegmentFile) -> RecoveredFile:
    try:
        durable.move(directory.disk, file.path, os.path.join(directory.quarantine, file.filename))
    except OSError as error:
        log.error("cannot move %s to quarantine: %s", file.filename, error)
        return _left(file, "failed", error)
    return RecoveredFile(file.filename, file.name.slot, "quarantined", bytes=file.size)


def archive(directory: WALDirectory, path: str) -> None:
    """Rename an uploaded segment, whose name may have further dots, to `….wal.recovered`, and date it now."""
    suffix = SEALED if path.endswith(SEALED) else ACTIVE
    stem = os.path.basename(path).removesuffix(suffix)
    os.utime(path)
    directory.disk.rename(path, os.path.join(directory.path, f"{stem}{RECOVERED}"))

"""What start-up does with what a crash left, and the same for one worker that died while the others go on.

Every active segment is read and verified, its torn tail cut off, and it is completed like any other, marked as
recovered. Recovering again after a crash in the middle of it gives the same result: nothing is ever rewritten, only
cut off, appended to and renamed. No file stops the start.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, Final, NamedTuple

from arcpipe.disk import Disk
from arcpipe.errors import BadPayload, NotAWAL
from arcpipe.wal.directory import ACTIVE, RECOVERED, SEALED, SegmentFile, WALDirectory
from arcpipe.wal.format import EndMeta, pack_end
from arcpipe.wal.pool import FreePool
from arcpipe.wal.reader import ScanReport, SegmentScan, records_of

log = logging.getLogger(__name__)

_PARALLEL_FILES: Final = 4
_PROGRESS_SECONDS: Final = 1.0


class RecoveredFile(NamedTuple):
    """What became of one file."""

    filename: str
    slot: int
    outcome: str  # "sealed", "empty", "quarantined" or "failed"
    entries: int
    bytes: int
    corrupted: int
    last_timestamp: int  # µs


class RecoverySummary:
    """What a recovery did, and where each slot goes on."""

    def __init__(self, files: list[RecoveredFile], seconds: float) -> None:
        self.files = files
        self.seconds = seconds
        self.entries = sum(file.entries for file in files)
        self.bytes = sum(file.bytes for file in files)
        self.corrupted = sum(file.corrupted for file in files)

    def last_timestamp(self, slot: int) -> int:
        """µs: the highest entry timestamp that was read of a slot; 0 if there was none."""
        return max((file.last_timestamp for file in self.files if file.slot == slot), default=0)


def recover_at_start(
    directory: WALDirectory, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> RecoverySummary:
    """Recovers the whole directory before anything listens. Several files at a time.

    Calls `on_progress` with the number of files that are done and of all files, at least once a second.
    """
    FreePool(directory, 0).clear()
    _clear_folder(directory, directory.spool)
    return _recover(directory, directory.segments(ACTIVE), on_progress)


def recover_slot(directory: WALDirectory, slot: int) -> RecoverySummary:
    """Recovers what one dead worker left, without touching the others' files."""
    FreePool(directory, 0).clear(slot)
    return _recover(directory, directory.segments(ACTIVE, slot), lambda done, total: None)


def remove_recovered(directory: WALDirectory, max_age_seconds: float) -> tuple[int, int]:
    """Removes archived segments that were recovered longer ago than that. Returns how many and their bytes."""
    count = freed = 0
    oldest = time.time() - max_age_seconds
    for file in directory.segments(RECOVERED):
        if file.modified < oldest:
            directory.disk.unlink(file.path)
            count += 1
            freed += file.size
    return count, freed


def _clear_folder(directory: WALDirectory, folder: str) -> None:
    """Remove the files in a folder. Directories in it are not ours: `lost+found`, where a disk is mounted on it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                directory.disk.unlink(entry.path)


def _recover(
    directory: WALDirectory, files: list[SegmentFile], on_progress: Callable[[int, int], None]
) -> RecoverySummary:
    started = time.monotonic()
    if not files:
        return RecoverySummary([], 0.0)
    log.info("WAL recovery started: %d files", len(files))
    # The threads are gone when this returns: what follows forks.
    with ThreadPoolExecutor(min(_PARALLEL_FILES, len(files)), "recovery") as pool:
        running = [pool.submit(_recover_file, directory, file) for file in files]
        waiting = set(running)
        while waiting:
            waiting = wait(waiting, _PROGRESS_SECONDS, FIRST_COMPLETED).not_done
            on_progress(len(files) - len(waiting), len(files))
        results = [future.result() for future in running]
    directory.sync()
    summary = RecoverySummary(results, time.monotonic() - started)
    log.info(
        "WAL recovery complete: %d files, %d entries, %.1f MB, %d corrupted, %.2f s",
        len(files),
        summary.entries,
        summary.bytes / 1e6,
        summary.corrupted,
        summary.seconds,
    )
    return summary


def _recover_file(directory: WALDirectory, file: SegmentFile) -> RecoveredFile:
    try:
        scan = SegmentScan(file.path)
        for _ in scan:
            pass
        report = scan.report
        outcome = _complete(directory, file, report)
    except NotAWAL as error:
        log.error("WAL file %s; moved to %s", error, directory.quarantine)
        return _quarantine(directory, file)
    except OSError as error:
        # Left as it is: the next start tries again, and its data is as safe as the disk is.
        log.error("WAL file %s cannot be recovered: %s; it stays where it is for the next start", file.filename, error)
        return RecoveredFile(file.filename, file.name.slot, "failed", 0, file.size, 0, 0)
    for damage in report.damage:
        log.error(
            "WAL file %s: %s at offset %d; skipped %d bytes", file.filename, damage.reason, damage.offset, damage.length
        )
    log.log(
        logging.DEBUG if outcome == "empty" else logging.INFO,  # every stop leaves segments that were made ready
        "WAL file %s: %d entries, %d bytes, %d corrupted, %d torn",
        file.filename,
        report.entries,
        report.end_offset,
        len(report.damage),
        report.torn_bytes,
    )
    return RecoveredFile(
        file.filename,
        file.name.slot,
        outcome,
        report.entries,
        report.end_offset,
        len(report.damage),
        report.last_timestamp,
    )


def _complete(directory: WALDirectory, file: SegmentFile, report: ScanReport) -> str:
    """Cuts off the torn tail, marks the end, and gives the file the name of a completed segment."""
    disk = directory.disk
    if not report.entries and not report.damage:
        disk.unlink(file.path)
        return "empty"
    fd = disk.open(file.path)
    try:
        if report.size > report.end_offset:
            disk.truncate(fd, report.end_offset)
        if report.end is None:
            end = EndMeta(report.entries, None, report.end_offset, recovered=True)
            try:
                disk.write(fd, [pack_end(end, report.last_timestamp + 1)], report.end_offset)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # A full disk must not keep data from being shipped; a reader needs no end entry.
                disk.truncate(fd, report.end_offset)
        # What a dead process wrote may be nowhere but in the page cache, even if it is all there.
        disk.fsync(fd)
    finally:
        disk.close(fd)
    disk.rename(file.path, os.path.join(directory.path, f"{file.name}{SEALED}"))
    return "sealed"


def _quarantine(directory: WALDirectory, file: SegmentFile) -> RecoveredFile:
    try:
        directory.disk.rename(file.path, os.path.join(directory.quarantine, file.filename))
        directory.disk.sync_directory(directory.quarantine)
    except OSError as error:
        log.error("cannot move %s to quarantine: %s", file.filename, error)
        return RecoveredFile(file.filename, file.name.slot, "failed", 0, file.size, 0, 0)
    return RecoveredFile(file.filename, file.name.slot, "quarantined", 0, file.size, 0, 0)


class WALRecovery:
    """Recovery by hand, without a server.

    recovery = WALRecovery("data/wal")
    recovery.recover(lambda batch: print(len(batch), "records"))
    recovery.cleanup_old_wals(max_age_seconds=86400)
    """

    def __init__(self, directory: str | os.PathLike[str], disk: Disk | None = None) -> None:
        self._directory = WALDirectory(directory, disk)

    def recover(self, callback: Callable[[list[dict[str, Any]]], None]) -> int:
        """Calls back with each batch (list of record dicts) of every active or completed segment, oldest first.

        A file that was read to its end is renamed to `….wal.recovered`. Returns how many batches there were. Takes
        the directory's lock meanwhile.

        Raises:
            InstanceLocked: a server is using the directory.
            Whatever the callback raises; the file at hand then stays as it was.
        """
        self._directory.lock(0.0)
        try:
            return sum(self._recover_file(file, callback) for file in self._files())
        finally:
            self._directory.unlock()

    def cleanup_old_wals(self, max_age_seconds: float = 86400) -> int:
        """Removes `….wal.recovered` files older than that; returns how many."""
        return remove_recovered(self._directory, max_age_seconds)[0]

    def _files(self) -> Iterable[SegmentFile]:
        return sorted(
            [*self._directory.segments(ACTIVE), *self._directory.segments(SEALED)], key=lambda file: file.name
        )

    def _recover_file(self, file: SegmentFile, callback: Callable[[list[dict[str, Any]]], None]) -> int:
        try:
            scan = SegmentScan(file.path)
        except NotAWAL as error:
            log.error("%s; left where it is", error)
            return 0
        batches = 0
        for entry in scan:
            try:
                batch = records_of(entry)
            except BadPayload as error:
                log.error("%s: entry at offset %d holds no records: %s", file.filename, entry.offset, error)
                continue
            callback(batch)
            batches += 1
        archive(self._directory, file.path)
        self._directory.disk.sync_directory(self._directory.path)
        return batches


def archive(directory: WALDirectory, path: str) -> None:
    """Gives a shipped segment the name of a recovered one, dated now."""
    stem = os.path.basename(path).split(".")[0]
    os.utime(path)
    directory.disk.rename(path, os.path.join(directory.path, f"{stem}{RECOVERED}"))

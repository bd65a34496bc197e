"""Findings: damage to acknowledged data, and losses, for the operator. Neither a restart nor time ends one.

    findings.note(directory, [Finding(DAMAGED, "worker-1-20261122_090000-000001", 2, "checksum …")])
    record = findings.load(directory)              # None: nothing was ever found

`findings.json` counts findings by code, and keeps the latest ones in full. An operator acknowledges counts
(`wal.acknowledged`); only later findings are reported again. Each new file has another `id`, so no count of a former
file is taken for an acknowledgement of this one.

Recovery and the uploader both read a damaged segment, and a batch may be converted again: so the same finding about the
same subject counts once. Several processes may note findings at the same time, so `findings.lock` is held meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from arcpipe import durable
from arcpipe.errors import DamagedFile, UnknownVersion
from arcpipe.wal.checksum import checksum_holds, with_checksum
from arcpipe.wal.directory import WALDirectory

log = logging.getLogger(__name__)

DAMAGED: Final = "damaged_entries"
DEAD_LETTERS: Final = "dead_letters"
LOST_SEGMENTS: Final = "lost_segments"
LOST_RECORDS: Final = "lost_records"
CODES: Final = (DAMAGED, DEAD_LETTERS, LOST_SEGMENTS, LOST_RECORDS)
"""The codes of findings, which are also the codes of their health issues."""

UNITS: Final = {
    DAMAGED: "damaged places",
    DEAD_LETTERS: "dead letters",
    LOST_SEGMENTS: "lost segments",
    LOST_RECORDS: "lost records",
}
"""By code: the things that a finding counts."""

_VERSION: Final = 1
# Findings that are kept in full, about 200 bytes each; older ones are only counted.
_KEPT: Final = 1000
_WHAT_CHARACTERS: Final = 300
# Seconds to wait for the lock. It is held for one small write, which takes long only on a sick disk.
LOCK_SECONDS: Final = 10.0
_LOCK_POLL_SECONDS: Final = 0.02


class Finding(msgspec.Struct, frozen=True, array_like=True):
    """Damage or a loss of one subject: a segment, a batch or a process."""

    code: str
    subject: str
    count: int
    what: str


class Noted(msgspec.Struct, frozen=True):
    """A finding as the record keeps it. `upto` is the count of its code, this finding included."""

    code: str
    subject: str
    count: int
    what: str
    at: float  # seconds since the epoch
    upto: int


class Record(msgspec.Struct, frozen=True):
    """All findings of a WAL directory."""

    version: int
    id: str
    counts: dict[str, int]  # by code
    latest: list[Noted]  # the oldest first


def path_of(directory: WALDirectory) -> str:
    """Name the file of findings."""
    return os.path.join(directory.path, "findings.json")


def give_to_owner(directory: WALDirectory, fd: int) -> None:
    """Give a file that root has opened to the owner of the directory, so that the server can read it.

    In a container root may lack the right to do so. A server that runs as that root reads the file anyway; any other
    one reports that it cannot.
    """
    if os.geteuid() == 0:
        owner = os.stat(directory.path)
        with contextlib.suppress(PermissionError):
            os.fchown(fd, owner.st_uid, owner.st_gid)


def load(directory: WALDirectory) -> Record | None:
    """Read the record; None if nothing was ever found.

    Raises:
        OSError: it exists, or may exist, and cannot be read.
        DamagedFile: it is damaged, so the findings are unknown.
        UnknownVersion: a newer arcpipe wrote it.
    """
    return durable.load(directory.disk, path_of(directory), _decode)


def note(directory: WALDirectory, findings: Iterable[Finding], lock_seconds: float = LOCK_SECONDS) -> None:
    """Note findings durably. Findings that are noted already count once, so a call may be repeated.

    Raises:
        OSError: they may be noted or not.
        UnknownVersion: a newer arcpipe wrote the record.
    """
    findings = list(findings)
    if not findings:
        return
    with held(directory, lock_seconds):
        record = _load_or_begin(directory)
        changed = _add(record, findings)
        if changed is not record:
            data = with_checksum(msgspec.json.encode(changed))
            durable.replace(directory.disk, path_of(directory), data, prepare=lambda fd: give_to_owner(directory, fd))


def set_aside_damaged(directory: WALDirectory) -> bool:
    """Move a damaged record to quarantine, where it is a health issue until an operator acknowledges it.

    Returns:
        True if the record was damaged.

    Raises:
        OSError: it cannot be read or moved.
    """
    with contextlib.suppress(UnknownVersion):
        try:
            load(directory)
        except DamagedFile:
            with held(directory):
                return _set_aside(directory)
    return False


def _load_or_begin(directory: WALDirectory) -> Record:
    try:
        record = load(directory)
    except DamagedFile:
        _set_aside(directory)
        record = None
    return record or Record(_VERSION, secrets.token_hex(8), {}, [])


def _set_aside(directory: WALDirectory) -> bool:
    try:
        load(directory)
    except DamagedFile as error:
        target = os.path.join(directory.quarantine, f"findings-{secrets.token_hex(4)}.json")
        log.error("%s; moved to %s. Earlier findings are in the log only", error, target)
        durable.move(directory.disk, path_of(directory), target)
        return True
    return False


def _add(record: Record, findings: Iterable[Finding]) -> Record:
    counts, latest = dict(record.counts), list(record.latest)
    known: dict[tuple[str, str], int] = {}
    for noted in latest:
        known[noted.code, noted.subject] = known.get((noted.code, noted.subject), 0) + noted.count
    for finding in findings:
        key = finding.code, finding.subject
        more = finding.count - known.get(key, 0)
        if more <= 0:
            continue
        known[key] = finding.count
        counts[finding.code] = counts.get(finding.code, 0) + more
        what = finding.what[:_WHAT_CHARACTERS]
        latest.append(Noted(*key, more, what, time.time(), counts[finding.code]))
    if counts == record.counts:
        return record
    return Record(record.version, record.id, counts, latest[-_KEPT:])


def _decode(data: bytes) -> Record:
    if checksum_holds(data) is not True:
        raise ValueError("its checksum does not match")
    content = msgspec.json.decode(data)
    version = content.get("version") if isinstance(content, dict) else None
    if version != _VERSION:
        raise UnknownVersion(f"findings.json has version {version!r}, and this arcpipe knows version {_VERSION}")
    return msgspec.convert(content, Record)


@contextlib.contextmanager
def held(directory: WALDirectory, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of the record and its acknowledgements. A process that dies or hangs does not keep it for ever.

    Raises:
        OSError: the lock cannot be opened, or another process holds it for longer than `seconds`.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(os.path.join(directory.path, "findings.lock"), flags, 0o640)
    try:
        give_to_owner(directory, fd)
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(
                        errno.EWOULDBLOCK, "another process holds findings.lock, and does not let it go"
                    ) from None
                time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(fd)

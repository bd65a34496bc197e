"""Findings: what became of acknowledged data that an operator has to know of. Neither a restart nor time ends one.

    findings.note(directory, [Finding(DAMAGED, "worker-1-20261122_090000-000001", 2, "checksum …")])
    record = findings.load(directory)              # None: nothing was ever found

`findings.json` counts what was found, by code, and holds the latest findings as they are. An operator acknowledges
counts (`wal.acknowledged`); only what was found after that is told again. `id` is another one in each new file, so that
no count of a former one is taken for an acknowledgement of this one.

Recovery and the uploader both read a damaged segment, and a batch may be converted again: the same finding about the
same subject counts once. Several processes may find something at the same time, so `findings.lock` is held meanwhile.
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
"""Of findings, and of the health issues that they are."""

UNITS: Final = {
    DAMAGED: "damaged places",
    DEAD_LETTERS: "dead letters",
    LOST_SEGMENTS: "lost segments",
    LOST_RECORDS: "lost records",
}
"""The things that a finding of each code counts."""

_VERSION: Final = 1
# Findings that are kept as they are; older ones are only counted. One has some 200 bytes.
_KEPT: Final = 1000
_WHAT_CHARACTERS: Final = 300
# Whoever holds the lock does so for one small write, which a sick disk may make long.
LOCK_SECONDS: Final = 10.0
_LOCK_POLL_SECONDS: Final = 0.02


class Finding(msgspec.Struct, frozen=True, array_like=True):
    """Something that was found about one subject: a segment, a batch, a process."""

    code: str
    subject: str
    count: int
    what: str


class Noted(msgspec.Struct, frozen=True):
    """A finding as it is kept. `upto` is the count of its code up to it and with it."""

    code: str
    subject: str
    count: int
    what: str
    at: float  # seconds since the epoch
    upto: int


class Record(msgspec.Struct, frozen=True):
    """What a WAL directory's instances have found."""

    version: int
    id: str
    counts: dict[str, int]  # by code
    latest: list[Noted]  # the oldest first


def path_of(directory: WALDirectory) -> str:
    return os.path.join(directory.path, "findings.json")


def give_to_owner(directory: WALDirectory, fd: int) -> None:
    """Give a file that root has opened to the owner of the directory: the server has to be able to read it.

    Not every root may do so. Its own server reads the file all the same; any other one says that it cannot.
    """
    if os.geteuid() == 0:
        owner = os.stat(directory.path)
        with contextlib.suppress(PermissionError):
            os.fchown(fd, owner.st_uid, owner.st_gid)


def load(directory: WALDirectory) -> Record | None:
    """Read the record; None if nothing was ever found.

    Raises:
        OSError: it is there, or may be, and cannot be read.
        DamagedFile: it is damaged, so nobody knows what was found.
        UnknownVersion: a newer arcpipe wrote it.
    """
    return durable.load(directory.disk, path_of(directory), _decode)


def note(directory: WALDirectory, findings: Iterable[Finding], lock_seconds: float = LOCK_SECONDS) -> None:
    """Note findings durably, but for what is noted of the same subject already. May be called again with the same.

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
    """Move a damaged record to quarantine, where it is seen until an operator acknowledges it. Whether it was.

    Raises:
        OSError: it cannot be read, or not be moved.
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
        log.error("%s; moved to %s. What was found before is in the log only", error, target)
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
    """Hold the right to change the record, or what of it is acknowledged. No one's death or trouble keeps it for ever.

    Raises:
        OSError: the lock cannot be opened, or somebody holds it for too long.
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

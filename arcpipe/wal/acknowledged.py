"""Acknowledgements: which findings, and which files in quarantine, an operator has seen. The others are open.

    seen = acknowledged.look(directory)                   # open findings and files
    acknowledged.acknowledge(directory, seen, codes, by)  # close those

Open findings are health issues. `acknowledged.json` holds, for each code of `wal.findings`, the count up to which
findings were seen. It holds name, size and time of change of each file in quarantine that was seen. Whatever comes
later is open. `history` tells who acknowledged which findings, and when. Only `arcpipe wal ack` writes the file. If it
is damaged or unreadable, nothing counts as acknowledged: all findings are open again, and the bad file is reported.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Final, TypeVar

import msgspec

from arcpipe import durable
from arcpipe.errors import DamagedFile, UnknownVersion, WALError
from arcpipe.wal import findings
from arcpipe.wal.checksum import checksum_holds, with_checksum
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.findings import CODES, Noted, Record, give_to_owner

T = TypeVar("T")

QUARANTINE: Final = "quarantine"
ALL_CODES: Final = (*CODES, QUARANTINE)
"""Everything that can be acknowledged."""

_VERSION: Final = 1
_HISTORY: Final = 100  # acknowledgements kept in the file
_HISTORY_LINES: Final = 20  # lines kept of each acknowledgement
# Files. Those in quarantine are acknowledged one by one, and each scrape of /metrics compares them.
_MAX_FILES: Final = 10_000

Count = Annotated[int, msgspec.Meta(ge=0)]


class QuarantinedFile(msgspec.Struct, frozen=True, array_like=True):
    """A file in quarantine. Another file of the same name differs in size or time."""

    name: str
    size: int
    modified_ns: int


class Acknowledgement(msgspec.Struct, frozen=True):
    """One acknowledgement, as `history` keeps it."""

    at: float  # seconds since the epoch
    by: str
    what: list[str]


class _SlotFile(msgspec.Struct, frozen=True):
    version: int
    findings_id: str
    counts: dict[str, Count]
    quarantine: list[QuarantinedFile]
    history: list[Acknowledgement]


_NOTHING: Final = _SlotFile(_VERSION, "", {}, [], [])


class Open(msgspec.Struct, frozen=True):
    """Findings of one code that nobody has acknowledged."""

    count: int
    total: int  # with the acknowledged ones
    latest: list[Noted]  # those of them that the record keeps, oldest first


class Seen(msgspec.Struct, frozen=True):
    """Open findings and files of a WAL directory, and the reasons why a part of them is unknown."""

    findings: dict[str, Open]  # by code; only codes with open findings
    files: list[QuarantinedFile]  # in quarantine and open
    record: Record | None = None
    all_files: list[QuarantinedFile] = []
    findings_problem: str = ""  # why the findings are unknown; empty if they are known
    quarantine_problem: str = ""  # why the files in quarantine are unknown
    acknowledged_problem: str = ""  # why nothing counts as acknowledged


def path_of(directory: WALDirectory) -> str:
    """Name the file of acknowledged findings."""
    return os.path.join(directory.path, "acknowledged.json")


def look(directory: WALDirectory) -> Seen:
    """Collect what is open. A part that cannot be read does not hide the others."""
    record, findings_problem = _try(lambda: findings.load(directory))
    known, acknowledged_problem = _try(lambda: _load(directory))
    files, quarantine_problem = _try(lambda: quarantined(directory))
    known = known or _NOTHING
    seen_files = set(known.quarantine)
    return Seen(
        _open_findings(record, known) if record is not None else {},
        [file for file in files or [] if file not in seen_files],
        record,
        files or [],
        findings_problem,
        quarantine_problem,
        acknowledged_problem,
    )


def quarantined(directory: WALDirectory) -> list[QuarantinedFile]:
    """List the files in quarantine, by name. A file that vanishes meanwhile is left out.

    Raises:
        OSError: the folder cannot be listed.
    """
    found = []
    with os.scandir(directory.quarantine) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat(follow_symlinks=False)
                found.append(QuarantinedFile(entry.name, stat.st_size, stat.st_mtime_ns))
    return sorted(found, key=lambda file: file.name)


def acknowledge(
    directory: WALDirectory,
    seen: Seen,
    codes: Collection[str],
    by: str,
    lock_seconds: float = findings.LOCK_SECONDS,
) -> None:
    """Note durably that an operator has seen what `seen` holds of these codes, and nothing that came later.

    Raises:
        WALError: the present acknowledgements cannot be read, so they would be lost; or there are too many files.
        OSError: it may be noted or not.
    """
    with findings.held(directory, lock_seconds):
        _acknowledge(directory, seen, codes, by)


def _acknowledge(directory: WALDirectory, seen: Seen, codes: Collection[str], by: str) -> None:
    if QUARANTINE in codes and len(seen.all_files) > _MAX_FILES:
        raise WALError(
            f"{directory.quarantine} has {len(seen.all_files)} files, and {_MAX_FILES} can be acknowledged; "
            "move some out of it"
        )
    try:
        known = _load(directory) or _NOTHING
    except (OSError, UnknownVersion) as error:
        raise WALError(f"{path_of(directory)} cannot be read, so nothing is acknowledged: {error}") from error
    except DamagedFile:  # so all findings were open again, and are seen now
        known = _NOTHING
        durable.move(directory.disk, path_of(directory), f"{path_of(directory)}.damaged")
    record_id, counts = _counts_after(known, seen, codes)
    files = _files_after(known, seen, codes)
    what = [line for code in codes for line in told(seen, code)[:_HISTORY_LINES]]
    history = [*known.history, Acknowledgement(time.time(), by, what)][-_HISTORY:]
    data = msgspec.json.encode(_SlotFile(_VERSION, record_id, counts, files, history))
    durable.replace(
        directory.disk, path_of(directory), with_checksum(data), prepare=lambda fd: give_to_owner(directory, fd)
    )


def _counts_after(known: _SlotFile, seen: Seen, codes: Collection[str]) -> tuple[str, dict[str, int]]:
    """Return the record's id and the acknowledged counts, with these codes acknowledged, too."""
    record = seen.record
    if record is None:
        return ("", {}) if not seen.findings_problem else (known.findings_id, known.counts)
    before = known.counts if known.findings_id == record.id else {}
    # Somebody else may have seen more since `seen` was looked at.
    now = {code: max(record.counts[code], before.get(code, 0)) for code in codes if code in record.counts}
    return record.id, {**before, **now}


def _files_after(known: _SlotFile, seen: Seen, codes: Collection[str]) -> list[QuarantinedFile]:
    """Return the acknowledged files in quarantine. Files that are gone are forgotten."""
    if seen.quarantine_problem:
        return known.quarantine
    there = set(seen.all_files)
    return seen.all_files if QUARANTINE in codes else [file for file in known.quarantine if file in there]


def told(seen: Seen, code: str) -> list[str]:
    """Describe what is open of a code in lines for people: first the count, then each known finding or file."""
    if code == QUARANTINE:
        if not seen.files:
            return []
        return [
            f"{code}: {len(seen.files)} files, {sum(file.size for file in seen.files)} bytes",
            *(f"{file.name}, {file.size} bytes" for file in seen.files),
        ]
    found = seen.findings.get(code)
    if found is None:
        return []
    return [
        f"{code}: {found.count} {findings.UNITS[code]}, {found.total} since the beginning",
        *(f"{noted.subject}: {noted.count}, {noted.what}" for noted in found.latest),
    ]


def _open_findings(record: Record, known: _SlotFile) -> dict[str, Open]:
    counts = known.counts if known.findings_id == record.id else {}
    found = {}
    for code, total in record.counts.items():
        seen = min(counts.get(code, 0), total)
        if code in CODES and total > seen:
            latest = [noted for noted in record.latest if noted.code == code and noted.upto > seen]
            found[code] = Open(total - seen, total, latest)
    return found


def _load(directory: WALDirectory) -> _SlotFile | None:
    return durable.load(directory.disk, path_of(directory), _decode)


def _decode(data: bytes) -> _SlotFile:
    if checksum_holds(data) is not True:
        raise ValueError("its checksum does not match")
    content = msgspec.json.decode(data)
    version = content.get("version") if isinstance(content, dict) else None
    if version != _VERSION:
        raise UnknownVersion(f"acknowledged.json has version {version!r}, and this arcpipe knows version {_VERSION}")
    return msgspec.convert(content, _SlotFile)


def _try(read: Callable[[], T | None]) -> tuple[T | None, str]:
    """Return the result of `read`, or None and the reason why it failed."""
    try:
        return read(), ""
    except (OSError, DamagedFile, UnknownVersion) as error:
        return None, str(error)


def latest_of(found: Sequence[Noted]) -> str:
    """Describe the latest finding; empty if it is not kept."""
    return f"{found[-1].subject}: {found[-1].what}" if found else ""

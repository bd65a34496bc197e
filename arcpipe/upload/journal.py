"""A batch's journal: the progress of its upload, durable before anything depends on it.

`batches/{batch_id}.journal` holds frames, one for each append and sync:

    89abcdef [0,[{"is":"manifest",…},{"is":"key",…}]]\\n

The CRC32 covers all that follows its space. The number is that of the frame; the first record is a copy of the
manifest. Zeros may follow, where the file was a spare. A crash may leave the last frame torn: nothing depends on it,
and the next one is written over it. If a later frame is intact, an earlier damaged one was synced once: that is
reported as damage. A journal gets its name with its first frame, so that a file of this name is never empty.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from arcpipe import durable
from arcpipe.disk import Disk
from arcpipe.errors import is_full
from arcpipe.units import KB, MB
from arcpipe.upload.manifest import Manifest, known_manifest, unknown_version
from arcpipe.upload.spares import Spares
from arcpipe.upload.table_schema import TableSchema
from arcpipe.wal.findings import Finding
from arcpipe.wal.format import crc32

# Bytes of a spare that only the last records of a batch may take: without these its segments could not be retired.
_RESERVE_BYTES: Final = 64 * KB


class KeyRecord(msgspec.Struct, frozen=True, tag_field="is", tag="key", omit_defaults=True):
    """An object of the batch. The record is durable before the first byte of the object is sent."""

    key: str
    rows: int
    bytes: int
    min_us: int | None = None  # µs since the epoch: its rows' least and greatest time; None for a dead letter
    max_us: int | None = None

    def has_rows_of(self, other: KeyRecord) -> bool:
        """Tell whether both may hold the same rows; another version of a library may need other bytes for them."""
        return (self.rows, self.min_us, self.max_us) == (other.rows, other.min_us, other.max_us)


class SegmentRecord(msgspec.Struct, frozen=True, tag_field="is", tag="segment"):
    """The progress in a segment: `entries` begin at or before `offset`. Durable before the keys of their rows."""

    name: str
    entries: int
    offset: int
    whole: bool


class Part(msgspec.Struct, frozen=True, array_like=True):
    """The entries of a segment from offset `start` on and before `stop`, which are converted on their own."""

    segment: str
    start: int
    stop: int


class MisfitEntry(msgspec.Struct, frozen=True, array_like=True):
    """An entry whose conversion is a bug of this program."""

    segment: str
    offset: int
    reason: str


class Isolated(msgspec.Struct, frozen=True, tag_field="is", tag="isolated"):
    """A batch that failed as a whole is converted in these parts, and these entries are dead letters."""

    parts: list[Part]
    misfits: list[MisfitEntry]


class Converted(msgspec.Struct, frozen=True, tag_field="is", tag="converted", omit_defaults=True):
    """The conversion is done, and all keys of this try are known. Void as soon as a key of another try follows."""

    archive: list[str] = []  # segments to keep as `.recovered`
    schema: list[TableSchema] = []  # what the batch changes in the schema registry
    used: list[tuple[str, str]] = []  # tables that the batch used, where the registry is nearly full
    strays: list[str] = []  # keys of earlier tries that this one did not make again
    findings: list[Finding] = []  # the operator gets them before the batch is forgotten


class Uploaded(msgspec.Struct, frozen=True, tag_field="is", tag="uploaded"):
    """Every object is durable: nothing is put again."""


class Unlisted(msgspec.Struct, frozen=True, tag_field="is", tag="unlisted"):
    """The disk is full: keys that follow are in the store only."""


class _First(msgspec.Struct, frozen=True, tag_field="is", tag="manifest"):
    manifest: Manifest


Record = KeyRecord | SegmentRecord | Isolated | Converted | Uploaded | Unlisted


class _Frames(NamedTuple):
    """The intact frames of a file, in their order."""

    contents: list[bytes]
    end: int  # the offset after the last one
    damage: str  # empty if there is none


class Journal:
    """The journal of one batch, and the content of its records. One thread appends at a time."""

    def __init__(self, disk: Disk, path: str, manifest: Manifest | None, spares: Spares | None = None) -> None:
        """Begin a journal. The first append makes its file."""
        self.path = path
        self.manifest = manifest  # None if its copy is damaged
        self.keys: dict[str, KeyRecord] = {}
        self.segments: dict[str, SegmentRecord] = {}
        self.isolated: Isolated | None = None
        self.converted: Converted | None = None
        self.uploaded = False
        self.is_complete = True  # every key that was ever put is among the keys
        self.damage = ""
        self.may_use_spares = True
        """False while an older batch is under way: on a full disk its end makes space, and needs them."""
        self._disk = disk
        self._spares = spares
        self._fd = -1
        self._exists = False
        self._frames = 0
        self._end = 0
        self._spare_bytes = 0  # size of the spare that the journal is written over; 0 if it is not

    @property
    def has_keys(self) -> bool:
        """Whether anything may have been put."""
        return bool(self.keys) or not self.is_complete

    @classmethod
    def load(cls, disk: Disk, path: str, spares: Spares | None = None) -> Journal | None:
        """Read a journal; None if there is none. `damage` and a missing `manifest` tell of damage.

        Raises:
            OSError: it cannot be read.
            UnknownVersion: it is intact, but holds records that this program does not know.
        """
        return durable.load(disk, path, lambda data: cls._of(disk, path, data, spares))

    @classmethod
    def _of(cls, disk: Disk, path: str, data: bytes, spares: Spares | None) -> Journal:
        journal = cls(disk, path, None, spares)
        frames = _read_frames(data)
        journal._exists = True
        journal._end = frames.end
        journal._spare_bytes = len(data) if data.endswith(b"\0") else 0
        journal._frames = len(frames.contents)
        for content in frames.contents:
            raw_number, records = msgspec.json.decode(content)
            if raw_number == 0:
                first = records.pop(0)
                journal.manifest = known_manifest(first.get("manifest") if isinstance(first, dict) else None, path)
            journal._frames = raw_number + 1
            for record in records:
                try:
                    journal._take(msgspec.convert(record, Record))
                except msgspec.ValidationError as error:
                    raise unknown_version(path, str(error)) from error
        journal.damage = frames.damage
        if journal.manifest is None and not journal.damage:
            journal.damage = "its first record is damaged"
        journal.is_complete = journal.is_complete and not journal.damage
        return journal

    def _take(self, record: Record) -> None:
        match record:
            case KeyRecord():
                self.keys[record.key] = record
                self.converted = None
            case SegmentRecord():
                known = self.segments.get(record.name)
                if known is None or known.offset <= record.offset:
                    self.segments[record.name] = record
            case Isolated():
                self.isolated = record
            case Converted():
                self.converted = record
            case Uploaded():
                self.uploaded = True
            case Unlisted():
                self.is_complete = False

    def settle(self) -> None:
        """Make durable what was read: who wrote it may have died before its sync, and all that follows relies on it.

        Raises:
            OSError: it is durable or not.
        """
        fd = self._disk.open(self.path)
        try:
            self._disk.fdatasync(fd)
        finally:
            self._disk.close(fd)

    def begin(self) -> None:
        """Make the file, with the copy of the manifest and nothing else, unless it exists. Raises OSError."""
        if not self._exists:
            self._write([])

    def append(self, records: Sequence[Record]) -> None:
        """Make records durable, all in one frame, and take them over. Without new records, do nothing.

        Raises:
            OSError: they may be there or not. The next call writes over them.
        """
        news = [record for record in records if not self._knows(record)]
        if not news:
            return
        try:
            self._write(news)
        except OSError as error:
            if not is_full(error) or not self._exists or not self.may_use_spares:
                raise
            self._write_in_no_space(news)
        for record in news:
            self._take(record)

    def _knows(self, record: Record) -> bool:
        match record:
            case KeyRecord():
                known = self.keys.get(record.key)
                return known is not None and known.has_rows_of(record)
            case SegmentRecord():
                return self.segments.get(record.name) == record
            case Converted():
                return self.converted == record
        return isinstance(record, Uploaded) and self.uploaded

    def _write(self, records: Sequence[Record]) -> None:
        frame = self._frame(records)
        if not self._exists:
            self._create(frame)
        elif self._spare_bytes and self._end + len(frame) > self._room(records):
            durable.replace(self._disk, self.path, self._content() + frame)  # there may be space again
            self.close()
            self._spare_bytes = 0
        else:
            if self._fd < 0:
                self._fd = self._disk.open(self.path)
            self._disk.write(self._fd, [frame], self._end)
            self._disk.fdatasync(self._fd)
        self._end += len(frame)
        self._frames += 1

    def _frame(self, records: Sequence[Record]) -> bytes:
        contents: list[Any] = list(records)
        if not self._frames:
            assert self.manifest is not None
            contents.insert(0, _First(self.manifest))
        content = msgspec.json.encode([self._frames, contents])
        return b"%08x %b\n" % (crc32(content), content)

    def _create(self, frame: bytes) -> None:
        try:
            durable.replace(self._disk, self.path, frame)
        except OSError as error:
            if not is_full(error) or self._spares is None or not self.may_use_spares:
                raise
            self._move_to_spare(frame, error)
        self._exists = True

    def _room(self, records: Sequence[Record]) -> int:
        """Return the size that the file may grow to with these records."""
        is_last = not any(isinstance(record, KeyRecord) for record in records)
        return self._spare_bytes if is_last else self._spare_bytes - _RESERVE_BYTES

    def _move_to_spare(self, data: bytes, error: OSError) -> None:
        assert self._spares is not None
        self.close()
        self._spare_bytes = self._spares.use("journal", self.path, data, error)

    def _write_in_no_space(self, records: Sequence[Record]) -> None:
        """Write records where the file cannot grow: in a spare, or without keys if that is too small, too."""
        full = OSError(errno.ENOSPC, "no space is left for a batch's journal, nor in the spare file", self.path)
        if self._spares is not None and not self._spare_bytes:
            content = self._content()
            frame = self._frame(records)
            if len(content) + len(frame) <= MB - _RESERVE_BYTES:
                self._move_to_spare(content + frame, full)
                self._end += len(frame)
                self._frames += 1
                return
        kept = [record for record in records if not isinstance(record, KeyRecord)]
        lacks_keys = len(kept) < len(records)
        if lacks_keys and self.is_complete:
            kept.append(Unlisted())
        if kept:
            self._write(kept)
        if lacks_keys:  # not before it is durable: a redo would take the keys that it knows for all
            self.is_complete = False

    def _content(self) -> bytes:
        fd = self._disk.open_for_reading(self.path)
        try:
            return self._disk.read(fd, self._end, 0)
        finally:
            self._disk.close(fd)

    def close(self) -> None:
        """Close the file; the next append opens it again."""
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Remove the file. The caller syncs its directory."""
        self.close()
        self._disk.unlink(self.path)
        self._exists = False


def _read_frames(data: bytes) -> _Frames:
    contents: list[bytes] = []
    end = position = expected = 0
    suspect = damage = ""
    for line in data.split(b"\n")[:-1]:  # a line without its end is torn
        text = line.lstrip(b"\0")
        content = text[9:]
        intact = text[8:9] == b" " and text[:8] == b"%08x" % crc32(content)
        if intact:
            number = _number_of(content)
            if suspect or number != expected:
                damage = damage or suspect or f"frame {expected} is missing before offset {position}"
            suspect = ""
            expected = number + 1
            contents.append(content)
            end = position + len(line) + 1
        elif text:
            suspect = suspect or f"the frame at offset {position} is damaged"
        position += len(line) + 1
    return _Frames(contents, end, damage)


def _number_of(content: bytes) -> int:
    with contextlib.suppress(msgspec.MsgspecError):
        return int(msgspec.json.decode(content)[0])
    return -1

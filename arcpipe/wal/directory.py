"""The WAL directory as a whole: its lock, its node's identity, and the states of the files in it."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from arcpipe import durable
from arcpipe.disk import Disk
from arcpipe.errors import DamagedFile, UnknownVersion, WALError, is_full
from arcpipe.wal.lock import InstanceLock

log = logging.getLogger(__name__)

ACTIVE: Final = ".wal"
SEALED: Final = ".wal.sealed"
RECOVERED: Final = ".wal.recovered"

_NAME = re.compile(r"worker-(\d+)-(\d{8}_\d{6})(?:-(\d+))?(\.wal(?:\.sealed|\.recovered)?)\Z")
_TIME_FORMAT: Final = "%Y%m%d_%H%M%S"
# No slot makes as many. A person may have given a file a higher number, which an identity has no room for.
_MOST_SEGMENTS: Final = 1 << 40
SPARE: Final = "spare-1"
"""The uploader's spare file for a manifest, in `batches/`. A start on a full disk uses it, too."""
# Version of `node.json`. A file that names no version has this one.
_NODE_VERSION: Final = 1


class SegmentName(NamedTuple):
    """`worker-{slot}-{created}-{seq}` without its suffix; `seq` is 0 in names that other programs made."""

    slot: int
    created: str
    seq: int

    @classmethod
    def at(cls, slot: int, created_us: int, seq: int) -> SegmentName:
        created = datetime.fromtimestamp(created_us // 1_000_000, UTC).strftime(_TIME_FORMAT)
        return cls(slot, created, seq)

    @property
    def created_us(self) -> int:
        """The second that the name tells, in µs since the epoch; 0 if it is no date."""
        try:
            parsed = datetime.strptime(self.created, _TIME_FORMAT).replace(tzinfo=UTC)
        except ValueError:
            return 0
        return int(parsed.timestamp()) * 1_000_000

    def __str__(self) -> str:
        return f"worker-{self.slot}-{self.created}" + (f"-{self.seq:06d}" if self.seq else "")


class SegmentFile(NamedTuple):
    """A segment's file as a listing shows it.

    If `stat` fails for one file, `problem` says why, and the others are still listed. The file exists, and its size is
    unknown.
    """

    path: str
    name: SegmentName
    state: str  # ACTIVE, SEALED or RECOVERED
    size: int  # 0 with a problem
    modified: float  # now with a problem
    problem: str = ""

    @property
    def filename(self) -> str:
        return os.path.basename(self.path)


def parse_filename(filename: str) -> tuple[SegmentName, str] | None:
    """Parse a segment's file name into name and state; None for other files."""
    match = _NAME.match(filename)
    if match is None:
        return None
    slot, created, seq, state = match.groups()
    return SegmentName(int(slot), created, int(seq or 0)), state


class NodeIdentity(msgspec.Struct, frozen=True):
    """The node that this directory belongs to: its permanent id, and the number of its starts."""

    node: Annotated[str, msgspec.Meta(min_length=1)]
    boot: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


def _decode_node(data: bytes) -> tuple[NodeIdentity, dict[str, Any]]:
    """Decode the node, and all fields of the file: those of other programs are kept."""
    fields = msgspec.json.decode(data, type=dict[str, Any])
    version = msgspec.convert(fields.get("version", _NODE_VERSION), int)
    if version > _NODE_VERSION:
        raise UnknownVersion(f"has version {version}, and this arcpipe knows version {_NODE_VERSION}")
    return msgspec.convert(fields, NodeIdentity), fields


def nearest_directory(path: str) -> str:
    """Return the path, or the nearest directory above it that exists.

    Raises:
        NotADirectoryError: something else exists there, so no directory can be made.
    """
    above = os.path.abspath(path)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), above)
    return above


class WALDirectory:
    """Paths and listings of one WAL directory; makes missing folders."""

    def __init__(self, path: str | os.PathLike[str], disk: Disk | None = None) -> None:
        self.path = os.fspath(path)
        self.disk = disk or Disk()
        self.free = os.path.join(self.path, "free")
        self.batches = os.path.join(self.path, "batches")
        self.quarantine = os.path.join(self.path, "quarantine")
        self.spool = os.path.join(self.path, "spool")
        self._spare = os.path.join(self.batches, SPARE)
        self._lock = InstanceLock(self.path, self.disk)

    def make(self) -> None:
        """Create the directory, its folders and the directories above it where they are missing, durably."""
        for folder in self.folders:
            nearest_directory(folder)
            parents = []
            missing = os.path.abspath(folder)
            while not os.path.isdir(missing):
                missing = os.path.dirname(missing)
                parents.append(missing)
            if parents:
                self.disk.make_directory(folder)
            for parent in parents:
                self.disk.sync_directory(parent)

    @property
    def folders(self) -> tuple[str, ...]:
        """List the directory and its folders."""
        return self.path, self.free, self.batches, self.quarantine, self.spool

    @property
    def lock_fds(self) -> tuple[int, ...]:
        """List the lock's descriptors, for `lock` of the next program in this process; empty if it is not taken."""
        return self._lock.fds

    def lock_holder(self, inherited_fds: Sequence[int] = ()) -> str:
        """Name the process that holds the lock, as far as known; see `InstanceLock.holder`."""
        return self._lock.holder(inherited_fds)

    def refuse_another(self, inherited_fds: Sequence[int]) -> None:
        """Refuse to go on if this process, as an earlier program, locked another directory.

        Raises:
            WALError: none of the inherited locks is on this directory.
        """
        if not self._lock.is_among(inherited_fds):
            former = os.readlink(f"/proc/self/fd/{inherited_fds[0]}").removesuffix("/LOCK")
            raise WALError(
                f"wal.dir = {self.path} is another directory than {former}, which is in use: what waits there would "
                "never be uploaded. Set it back; to move the WAL, stop the server first."
            )

    def lock(self, wait_seconds: float = 2.0, inherited_fds: Sequence[int] = ()) -> None:
        """Take the directory for this process and the children that it forks; see `InstanceLock.take`.

        Raises:
            InstanceLocked: another instance has it.
        """
        self._lock.take(wait_seconds, inherited_fds)

    def keep_lock(self) -> None:
        """Take the lock again if the locked file or directory was removed; see `InstanceLock.renew`."""
        self._lock.renew()

    def unlock(self) -> None:
        """Give the directory back; only needed by a process that goes on without it."""
        self._lock.release()

    def node(self) -> NodeIdentity | None:
        """Return the node that this directory belongs to; None if no server has ever used it.

        Raises:
            WALError, UnknownVersion: as `next_boot`.
        """
        found = self._read_node()
        return None if found is None else found[0]

    def next_boot(self) -> NodeIdentity:
        """Raise the node's start counter by one, durably, and return id and counter.

        Batch ids are made of both, so that no two batches ever share one, whatever the clock does.

        Raises:
            WALError: `node.json` exists, or may exist, and is damaged or cannot be read. Only an operator may give a
                new identity.
            UnknownVersion: a newer arcpipe wrote it.
            OSError: it cannot be written.
        """
        path = self._node_path
        found = self._read_node()
        if found is None:
            found = NodeIdentity(secrets.token_hex(6), 0), {}
            self._warn_of_a_lost_identity(found[0])
            self._sync_above()
        before, fields = found
        node = NodeIdentity(before.node, before.boot + 1)
        data = msgspec.json.encode({**fields, "node": node.node, "boot": node.boot})
        try:
            durable.replace(self.disk, path, data)
        except OSError as error:
            if not is_full(error) or not self.has_spare:
                raise
            self._replace_by_spare(path, data)
        return node

    @property
    def has_spare(self) -> bool:
        """Whether the uploader has left its spare file for a full disk, which is enough for a start, too."""
        return bool(self.disk.size(self._spare))

    def _replace_by_spare(self, path: str, data: bytes) -> None:
        """Replace a small file durably and atomically on a full disk, and make the spare file again.

        Without a start nothing is uploaded, and so nothing would ever free space.
        """
        disk, spare = self.disk, self._spare
        size = disk.size(spare) or 0
        disk.unlink(f"{path}.tmp")
        durable.write_over(disk, spare, path, data)
        log.warning("the disk of %s is full: %s is written over a spare file", self.path, path)
        try:  # before the workers take the space that this has freed: the uploader needs the file for its manifest
            durable.replace(disk, spare, bytes(size))
        except OSError as error:
            disk.unlink(f"{spare}.tmp")
            log.warning("cannot make %s again: %s; the uploader tries it", spare, error)

    def check_node(self) -> None:
        """Read `node.json` and change nothing.

        Raises:
            WALError: as `next_boot` does.
            UnknownVersion: as `next_boot` does.
        """
        self._read_node()

    def _read_node(self) -> tuple[NodeIdentity, dict[str, Any]] | None:
        path = self._node_path
        try:
            return durable.load(self.disk, path, _decode_node)
        except DamagedFile as error:
            raise WALError(f"{error}. Restore it, or move it away to give this node a new identity.") from error
        except UnknownVersion as error:
            raise UnknownVersion(f"{path} {error}. Start the newer one, or move the file away.") from error
        except OSError as error:
            raise WALError(
                f"{path} cannot be read: {error.strerror or error}. It says who this node is, so nothing starts "
                "without it. Mend the disk, or give the user that arcpipe runs as permission to read it."
            ) from error

    @property
    def _node_path(self) -> str:
        return os.path.join(self.path, "node.json")

    def _sync_above(self) -> None:
        """Make the directory's own entry durable, and those above it.

        `make` syncs the directories that it makes, but an earlier start may have been killed before that.
        """
        above = os.path.abspath(self.path)
        while above != os.path.dirname(above):
            durable.sync_name(self.disk, above)
            above = os.path.dirname(above)

    def _warn_of_a_lost_identity(self, node: NodeIdentity) -> None:
        """Warn of files of a former identity. A new one does no harm to them: waiting batches keep their own ids."""
        segments = sum(parse_filename(name) is not None for name in os.listdir(self.path))
        batches = sum(name.endswith(".json") for name in os.listdir(self.batches))
        if segments or batches:
            log.warning(
                "%s is missing, but there are %d segments and %d batches; this node is %s from now on",
                self._node_path,
                segments,
                batches,
                node.node,
            )

    def segments(self, state: str | Collection[str], slot: int | None = None) -> list[SegmentFile]:
        """List the segment files in a state, or in one of several, oldest first; only those of `slot` if given."""
        states = (state,) if isinstance(state, str) else state
        found = []
        with self.disk.scan(self.path) as entries:
            for entry in entries:
                parsed = parse_filename(entry.name)
                if parsed is None or parsed[1] not in states or (slot is not None and parsed[0].slot != slot):
                    continue
                try:
                    stat = entry.stat()
                except FileNotFoundError:  # renamed or removed since
                    continue
                except OSError as error:
                    found.append(SegmentFile(entry.path, *parsed, 0, time.time(), str(error)))
                    continue
                found.append(SegmentFile(entry.path, *parsed, stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda file: (file.name.created, file.name.slot, file.name.seq))

    def has_segments(self, state: str, slot: int) -> bool:
        """Tell if a slot has a segment in a state. Cheap, however many segments there are of others.

        Raises:
            OSError: the directory cannot be listed.
        """
        begin = f"worker-{slot}-"
        with self.disk.scan(self.path) as entries:
            return any(entry.name.startswith(begin) and entry.name.endswith(state) for entry in entries)

    def highest_seq(self, slot: int) -> int:
        """Find the highest segment number of a slot that any file or manifest names; 0 without one.

        Manifests count, because a name must not be used again while a manifest may still ask for its removal.
        """
        names = self.disk.names(self.path)
        for manifest in self.disk.names(self.batches):
            try:
                with open(os.path.join(self.batches, manifest), encoding="utf-8", errors="replace") as file:
                    names += file.read().split('"')
            except IsADirectoryError:  # lost+found, or somebody else's
                continue
            except FileNotFoundError:
                # The uploader has finished that batch since, or renamed its temporary file. In the second case the
                # segments existed when the directory was listed.
                continue
        parsed = [found[0] for found in map(parse_filename, names) if found is not None]
        return max((name.seq for name in parsed if name.slot == slot and name.seq < _MOST_SEGMENTS), default=0)

    def sync(self) -> None:
        """Make renames in the directory and its pool durable."""
        self.disk.sync_directory(self.free)
        self.disk.sync_directory(self.path)

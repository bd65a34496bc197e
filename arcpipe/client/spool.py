"""The spool: a directory that keeps accepted records until a server has them, over any crash of the sender.

    <key>.batch    one batch each, as `spool_file` has it; the name is the key
    refused/       batches that a server refused, and a text with its reason
    damaged/       files that cannot be sent, as they were found

The directory itself is locked, so two processes never send the same files. All system calls go through `Disk`.

What is synced when is `Options.spool_sync`:

- `always`: each call, before it returns. A power cut takes no accepted record.
- `batch`: each batch, before it is sent first. A power cut takes records that were not sent yet, and no more.
- `never`: nothing. A crash of the process takes nothing. A power cut may take any record of the last half minute, and
  may cut a batch that was sent already: under its key the server then has more than the file, and keeps that.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final

from arcpipe import durable
from arcpipe.client import spool_file
from arcpipe.client.batches import Batch, Keys
from arcpipe.client.delivery import Message
from arcpipe.client.encoding import Part, Stream, body_of
from arcpipe.client.errors import Refusal, SpoolBusy, SpoolError
from arcpipe.client.options import SpoolSync
from arcpipe.disk import Disk
from arcpipe.errors import DamagedFile, UnknownVersion
from arcpipe.units import GB, KB

log = logging.getLogger(__name__)

SUFFIX: Final = ".batch"
REFUSED: Final = "refused"
DAMAGED: Final = "damaged"

_UNKNOWN: Final = Stream("msgpack", "", "auto")  # of a file that is not read yet
_OVERHEAD: Final = 1 * KB  # of the beginning of a file, whose database has up to 128 bytes, and of a part
_MAX_FILE_BYTES: Final = 4 * GB  # a larger file is none of ours
_KEY: Final = re.compile(r"[\x21-\x7e]{1,128}")  # what a server takes as one
_PASSING: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR}  # errors that end by themselves


_of_this_process: weakref.WeakSet[Spool] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """Close the locks of a forked parent: a child that outlives it would keep the next client out."""
    for spool in list(_of_this_process):
        spool.close()


os.register_at_fork(after_in_child=_let_go_in_child)


class Spool:
    """The spool directory of one client."""

    def __init__(self, directory: str | Path, limit: int, sync: SpoolSync, disk: Disk | None = None) -> None:
        """Make the directory if it is not there, and lock it.

        Raises:
            SpoolError: it cannot be made, or another process has it.
        """
        self.limit = limit
        self.overhead = _OVERHEAD
        self.path = os.path.abspath(directory)  # the program may change its directory meanwhile
        self.damaged = 0
        self._sync = sync
        self._disk = disk or Disk()
        self._keys = Keys()
        try:
            durable.make_folder(self._disk, self.path)
            self._lock = self._disk.open_directory(self.path)
        except OSError as error:
            raise SpoolError(f"spool: {self.path} cannot be used: {error.strerror or error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._disk.close(self._lock)
            raise SpoolError(
                f"spool: {self.path} is in use by another client; each process needs a directory of its own"
            ) from None
        except OSError as error:
            self._disk.close(self._lock)
            raise SpoolError(
                f"spool: {self.path} is on a file system that cannot lock directories ({error.strerror}); "
                "use a local disk"
            ) from None
        _of_this_process.add(self)

    def new(self, stream: Stream) -> Batch:
        """Begin a batch in a file of its own.

        Raises:
            SpoolError: the disk does not take it.
        """
        key = self._keys.new()
        path = os.path.join(self.path, key + SUFFIX)
        try:
            fd = self._disk.create(path)
        except OSError as error:
            raise SpoolError(f"spool: {path} cannot be made: {error.strerror or error}") from None
        batch = SpoolBatch(self, self._disk, path, key, stream, self._sync)
        try:
            batch.begin(fd)
        except OSError as error:
            self._disk.close(fd)
            with suppress(OSError):
                self._disk.unlink(path)
            raise SpoolError(f"spool: {path} cannot be written: {error.strerror or error}") from None
        return batch

    def leftover(self) -> list[Batch]:
        """Return what a former process left, oldest first. Nothing is read before its turn to be sent.

        Raises:
            SpoolError: the directory cannot be read.
        """
        found: list[Batch] = []
        try:
            for name in sorted(name for name in self._disk.names(self.path) if name.endswith(SUFFIX)):
                path = os.path.join(self.path, name)
                if not _KEY.fullmatch(name.removesuffix(SUFFIX)):
                    self.damaged += 1
                    log.error(
                        "spool: %r stays as it is, and is not sent: its name was changed, and is no key; the name that "
                        "the spool gave it would do",
                        path,
                    )
                    continue
                found.append(LeftoverBatch(self, self._disk, path, self._sync, self._disk.size(path) or 0))
        except OSError as error:
            raise SpoolError(f"spool: {self.path} cannot be read: {error.strerror or error}") from None
        return found

    def close(self) -> None:
        """Let go of the directory. A second call does nothing."""
        lock, self._lock = self._lock, -1
        if lock >= 0:  # else another file may have its number
            self._disk.close(lock)


class SpoolBatch:
    """A batch in a file of the spool."""

    def __init__(self, spool: Spool, disk: Disk, path: str, key: str, stream: Stream, sync: SpoolSync) -> None:
        self.stream = stream
        self.records = 0
        self.size = 0
        self.may_be_sent = False
        self._spool = spool
        self._disk = disk
        self._path = path
        self.key = key
        self._sync = sync
        self._fd = -1
        self._end = 0  # bytes of whole frames
        self._parts = 0
        self._is_sealed = False

    def begin(self, fd: int) -> None:
        """Write the beginning of the new file. Raises OSError."""
        start = spool_file.start_of_file(self.stream)
        self._disk.write(fd, [start], 0)
        if self._sync == "always":
            self._disk.sync_directory(os.path.dirname(self._path))
        self._fd, self._end, self.size = fd, len(start), len(start)

    def add(self, part: Part) -> None:
        """Append a part.

        Raises:
            SpoolError: the disk does not take it; it is not accepted, and the batch must be sealed.
        """
        data = spool_file.frame(b"P", part.data, part.records)
        try:
            self._disk.write(self._fd, [data], self._end)
            if self._sync == "always":
                self._disk.fdatasync(self._fd)
        except OSError as error:
            with suppress(OSError):  # else the reader finds a torn frame, or a record whose caller was told otherwise
                self._disk.truncate(self._fd, self._end)
            raise SpoolError(f"spool: {self._path} cannot be written: {error.strerror or error}") from None
        self._end += len(data)
        self._parts += 1
        self.records += part.records
        self.size = self._end

    def rest(self) -> None:
        self._close()

    def seal(self) -> Message | None:
        """Mark the file as whole, sync it, and read it. Raises SpoolBusy."""
        if not self._is_sealed:
            self._write_seal()
            self._is_sealed = True
        content = self._read()
        if content is None:
            return None
        if len(content.parts) < self._parts:
            self._put_aside(DamagedFile(f"it has {len(content.parts)} parts, and {self._parts} were written"))
            return None
        return self._message(content)

    def _read(self) -> spool_file.Content | None:
        """Read the file; None if that cannot be, which is told. Only a damaged file is moved. Raises SpoolBusy."""
        try:
            data = _read_file(self._disk, self._path)
            if not spool_file.is_unbegun(data):
                return spool_file.read(data)
            log.warning("spool: %s holds nothing, as a crash came before its first record; it is removed", self._path)
            self._disk.unlink(self._path)
        except UnknownVersion as error:
            self._spool.damaged += 1
            log.error("spool: %s stays as it is, and is not sent: %s", self._path, error)
        except OSError as error:
            if error.errno in _PASSING:
                raise SpoolBusy(f"spool: {self._path} cannot be read yet: {error.strerror}") from None
            self._spool.damaged += 1
            log.error("spool: %s cannot be read, and stays: %s", self._path, error.strerror or error)
        except DamagedFile as error:
            self._put_aside(error)
        return None

    def _message(self, content: spool_file.Content) -> Message:
        # A part that the disk refused, and did not let us cut off, was not accepted.
        parts = [part.data for part in content.parts[: self._parts]]
        return Message(self.key, self.stream, self.records, body_of(self.stream.format, parts))

    def _put_aside(self, reason: DamagedFile) -> None:
        self._spool.damaged += 1
        log.error("spool: %s cannot be read, and is not sent: %s. It is in %s/ now", self._path, reason, DAMAGED)
        put_aside(self._disk, self._path, DAMAGED)

    def _write_seal(self) -> None:
        """Write and sync the end of the file. A disk that refuses is told: what was accepted is sent all the same."""
        try:
            if self._fd < 0:
                self._fd = self._disk.open(self._path)
            self._disk.truncate(self._fd, self._end)  # what a crash or a full disk left after the last frame
            self._disk.write(self._fd, [spool_file.seal(self._parts, self._end)], self._end)
            if self._sync != "never":
                self._disk.fdatasync(self._fd)
                self._disk.sync_directory(os.path.dirname(self._path))
        except OSError as error:
            log.warning(
                "spool: the end of %s cannot be written or synced (%s); it is sent now, but a power cut before the "
                "answer may store its records twice",
                *(self._path, error.strerror or error),
            )
        self._close()

    def accepted(self) -> None:
        self._close()  # of a batch whose first part the disk refused
        try:
            self._disk.unlink(self._path)
        except OSError as error:
            log.warning(
                "spool: %s was sent and cannot be removed (%s); the next start sends it again under the same key",
                *(self._path, error.strerror or error),
            )

    def refused(self, refusal: Refusal) -> None:
        put_aside(self._disk, self._path, REFUSED)
        reason = os.path.join(os.path.dirname(self._path), REFUSED, f"{self.key}.txt")
        said = f"{refusal.status} {refusal.reason}\npartly written: {'yes' if refusal.is_partly_written else 'no'}\n"
        with suppress(OSError):
            self._disk.unlink(reason)  # of an earlier refusal
            fd = self._disk.create(reason)
            try:
                self._disk.write(fd, [said.encode("utf-8", "replace")], 0)
            finally:
                self._disk.close(fd)

    def _close(self) -> None:
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1


class LeftoverBatch(SpoolBatch):
    """A batch that a former process left. Its stream and records are known once it is sealed."""

    def __init__(self, spool: Spool, disk: Disk, path: str, sync: SpoolSync, size: int) -> None:
        key = os.path.basename(path).removesuffix(SUFFIX)
        super().__init__(spool, disk, path, key, _UNKNOWN, sync)
        self.size = size

    def seal(self) -> Message | None:
        """Read the file, put it aside if it is damaged, and cut off what a crash left at its end. Raises SpoolBusy."""
        content = self._read()
        if content is None:
            return None
        self.may_be_sent = self.may_be_sent or content.is_sealed
        self.stream = content.stream
        self.records = sum(part.records for part in content.parts)
        self._parts, self._end = len(content.parts), content.size
        if content.torn:
            log.warning(
                "spool: the last %s bytes of %s are no whole record; a crash cut off what was being written, "
                "and %s records are before it",
                *(content.torn, self._path, self.records),
            )
        if not content.parts:
            self.accepted()
            return None
        if not content.is_sealed:
            self._write_seal()
        return self._message(content)


def put_aside(disk: Disk, path: str, folder: str) -> None:
    """Move a file into a folder of the spool. One that cannot be moved stays, and is tried again at the next start."""
    target = os.path.join(os.path.dirname(path), folder)
    try:
        disk.make_directory(target)
        disk.rename(path, os.path.join(target, os.path.basename(path)))
    except OSError as error:
        log.error("spool: %s cannot be moved to %s/: %s", path, folder, error.strerror or error)


def _read_file(disk: Disk, path: str) -> bytes:
    fd = disk.open_for_reading(path)
    try:
        size = disk.status(fd).st_size
        if size > _MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, "it is larger than any file of a spool")
        return disk.read(fd, size, 0)
    finally:
        disk.close(fd)

"""The local store: a directory whose files are the objects; the embedded default.

Durability is spelled out here, step by step: write a temporary file, sync it, rename it over the key, sync the
directory, and sync the parent of every directory that was made on the way. Objects of one call go through the first
steps one after the other and share the syncs of directories. This room must not know what it stores.

Temporary files live in one hidden directory, `.arcpipe-staging` under the root, as mail is delivered through
Maildir's `tmp`: readers that glob the tree never meet one, and what a crash left is found without walking a lake of
a million directories. Each is held under flock by its writer, so whoever tidies up knows the dead from the living.
The price: the tree is one file system; a mount inside it is refused with a clear error.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import logging
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

from arcpipe.errors import StorageError
from arcpipe.storage.base import Blob, read_exactly, require_key

T = TypeVar("T")

log = logging.getLogger(__name__)

STAGING_DIRECTORY = ".arcpipe-staging"
_TEMP_NAME = re.compile(r"put-[0-9a-f]{32}\.tmp")

# One write(2), and how much of a blob a thread holds; between two a cancelled put is given up. Each goes to the disk
# before the next: a sync of the WAL that is asked for meanwhile would have to wait for all that was handed to the disk.
_WRITE_BYTES = 256 << 10

_SYNC_FILE_RANGE = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
_START_AND_WAIT = 2 | 4  # SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
# The answers of a file system or kernel that does not have the call. Nothing was written then, and nothing failed.
_NO_WRITE_BACK = (errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP)

# ext4 makes it, for root only, in the directory where it is mounted.
_LOST_AND_FOUND = "lost+found/"

# A call of a thread costs as much as what it does for a small object. More of them would wait for one another.
_OBJECTS_AT_ONCE = 32

# Forgetting which directories are durable costs one sync each; remembering them, 200 bytes.
_MAX_DURABLE = 65_536

_NEXT_STEP = {
    errno.ENOSPC: "Free space on this file system, or move storage.url to a larger one",
    errno.EDQUOT: "Raise the disk quota of this user, or free space",
    errno.EACCES: "Give the user that arcpipe runs as permission to write there",
    errno.EPERM: "Give the user that arcpipe runs as permission to write there",
    errno.EROFS: "Mount the file system read-write, or point storage.url elsewhere",
    errno.ENOTDIR: "Something that is no directory is in the way: move it",
    errno.EISDIR: "A directory has the name of the object: move it",
    errno.ENOTEMPTY: "A directory has the name of the object: move it",
    errno.ENAMETOOLONG: "A file system takes 255 bytes per name and 4096 per path: shorten the key",
    errno.EXDEV: "The store must be one file system: no mounts and no links to other disks inside it",
    errno.EIO: "The disk reports an error: see the kernel log",
    errno.ENOENT: "Something keeps removing the directory: find out what",
}


class LocalStore:
    """An ObjectStore in a directory."""

    def __init__(self, root: str | os.PathLike[str], threads: int = 8) -> None:
        """`root` is made when first needed. `threads` bounds the file operations under way at once."""
        # Absolute from here on: a later chdir must not move the store.
        self._root = os.path.abspath(root)
        self._staging = os.path.join(self._root, STAGING_DIRECTORY)
        # Directories whose own entry, and all those above it, are known to be on the disk.
        self._durable: set[str] = set()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="local-store")

    @property
    def url(self) -> str:
        return f"file://{self._root}"

    async def put(self, key: str, blob: Blob) -> None:
        await self.put_all([(key, blob)])

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        targets = [(self._path(key), blob) for key, blob in objects]
        await self._in_thread(f"write {targets[0][0]}", lambda cancelled: self._put_all(targets, cancelled))

    @property
    def objects_at_once(self) -> int:
        return _OBJECTS_AT_ONCE

    async def exists(self, key: str) -> bool:
        target = self._path(key)
        return await self._in_thread(f"look for {target}", lambda _: self._exists(target))

    async def abort_uploads(self, key: str) -> int:
        self._path(key)
        return 0  # what a put left here has a name of its own, which `check` removes

    async def delete(self, key: str) -> None:
        target = self._path(key)
        await self._in_thread(f"delete {target}", lambda _: _delete(target))

    async def list_keys(self, prefix: str) -> list[str]:
        require_key(prefix + "x")
        return await self._in_thread(f"list {self._root}/{prefix}", lambda cancelled: self._list(prefix, cancelled))

    async def check(self) -> None:
        await self._in_thread(f"write to {self._root}", lambda _: self._again_if_removed(self._check))

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown)
        with suppress(OSError):  # in use by somebody else, or never made
            os.rmdir(self._staging)

    async def _in_thread(self, action: str, work: Callable[[threading.Event], T]) -> T:
        """Runs blocking `work`, its OSErrors as StorageErrors.

        Returns or raises only when the thread is done, also when cancelled (the event tells `work` to give up):
        a put or delete that took effect later would undo what came after it.
        """
        cancelled = threading.Event()
        future = asyncio.get_running_loop().run_in_executor(self._executor, work, cancelled)
        try:
            return await asyncio.shield(future)
        except OSError as error:
            raise _storage_error(action, error) from error
        except asyncio.CancelledError:
            cancelled.set()
            # Looked at, so that asyncio does not report it as never retrieved.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait([future])
            raise

    def _path(self, key: str) -> str:
        require_key(key)
        if key.split("/", 1)[0] == STAGING_DIRECTORY:
            raise ValueError(f"object key {key!r} is where temporary files are")
        return os.path.join(self._root, key)

    def _put_all(self, targets: Sequence[tuple[str, Blob]], cancelled: threading.Event) -> None:
        self._again_if_removed(lambda: self._put_all_once(targets, cancelled))

    def _again_if_removed(self, work: Callable[[], None]) -> None:
        """Does the work a second time if somebody removed a directory meanwhile."""
        try:
            work()
        except FileNotFoundError:
            self._durable.clear()
            work()

    def _put_all_once(self, targets: Sequence[tuple[str, Blob]], cancelled: threading.Event) -> None:
        unsynced: list[str] = []
        for target, blob in targets:
            try:
                unsynced += self._make_directories(os.path.dirname(target))
                self._put(target, blob, cancelled)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise _storage_error(f"write {target}", error) from error
        self._sync_entries([*(target for target, _ in targets), *unsynced])
        if len(self._durable) + len(unsynced) > _MAX_DURABLE:
            self._durable.clear()
        self._durable.update(unsynced)

    def _put(self, target: str, blob: Blob, cancelled: threading.Event) -> None:
        """Writes a file, whose directory is there, and gives it its name; its entry is yet to be made durable."""
        with self._temp_file() as (fd, temp):
            offset, size = 0, blob.size
            while offset < size and not cancelled.is_set():
                length = min(_WRITE_BYTES, size - offset)
                _write_all(fd, read_exactly(blob, offset, length))
                offset += length
                if offset < size:  # the rest is for the fsync
                    _write_back(fd, offset - length, length)
            if cancelled.is_set():
                raise _Cancelled
            os.fsync(fd)
            os.rename(temp, target)

    def _exists(self, target: str) -> bool:
        """Looks for a file, and makes its name durable: the process that gave it may have died before it did."""
        try:
            if not stat.S_ISREG(os.stat(target).st_mode):
                return False
            self._sync_entries([target, *self._make_directories(os.path.dirname(target))])
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _check(self) -> None:
        self._durable.clear()
        self._sync_entries(self._make_directories(self._root))
        self._durable.add(self._root)
        self._remove_abandoned()
        with self._temp_file() as (fd, _temp):
            _write_all(fd, b"arcpipe")
            os.fsync(fd)

    def _remove_abandoned(self) -> None:
        """Removes what a crash left. Best effort: it costs space, and no more than that."""
        try:
            with os.scandir(self._staging) as entries:
                for entry in entries:
                    if _TEMP_NAME.fullmatch(entry.name):
                        _remove_if_abandoned(entry.path)
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning("temporary files that a crash left stay in %s: %s", self._staging, error.strerror or error)

    @contextmanager
    def _temp_file(self) -> Iterator[tuple[int, str]]:
        """A new file in the staging directory, locked; removed at the end unless it was renamed away."""
        temp = os.path.join(self._staging, f"put-{secrets.token_hex(16)}.tmp")
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # a file system without locks: nobody can take it for abandoned there either
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd, temp
        finally:
            with suppress(OSError):  # renamed away, or cannot be removed now: `check` will
                os.unlink(temp)
            os.close(fd)

    def _make_directories(self, directory: str) -> list[str]:
        """Makes `directory` and what is missing above it. Returns those, topmost first, that `_sync_entries` has
        yet to make durable: also ones that were there, as a process may have crashed before it synced them."""
        unsynced: list[str] = []
        if directory in self._durable:
            return unsynced
        if self._root not in self._durable:
            unsynced = _make_missing(self._root)
            with suppress(FileExistsError):
                os.mkdir(self._staging)
        path = self._root
        for part in filter(None, directory.removeprefix(self._root).split("/")):
            path = f"{path}/{part}"
            if path not in self._durable:
                with suppress(FileExistsError):
                    os.mkdir(path)
                unsynced.append(path)
        return unsynced

    def _sync_entries(self, paths: Iterable[str]) -> None:
        """Makes the entries of these files and directories in their parents durable, syncing each parent once."""
        above = os.path.dirname(self._root)
        for parent in dict.fromkeys(map(os.path.dirname, paths)):
            try:
                _sync_directory(parent)
            except PermissionError:
                # Above the root there may be a directory that may be passed but not opened.
                if parent != above:
                    raise

    def _list(self, prefix: str, cancelled: threading.Event) -> list[str]:
        keys: list[str] = []
        # Directories still to be read, as what the keys in them begin with: "" or "a/b/".
        pending = [prefix[: prefix.rfind("/") + 1]]
        while pending and not cancelled.is_set():
            start = pending.pop()
            try:
                with os.scandir(os.path.join(self._root, start)) as entries:
                    for entry in entries:
                        key = start + entry.name
                        if not key.startswith(prefix) or key == STAGING_DIRECTORY:
                            continue
                        if entry.is_dir():
                            pending.append(f"{key}/")
                        else:
                            keys.append(key)
            except (FileNotFoundError, NotADirectoryError):
                continue  # nothing there, or no longer
            except PermissionError:
                if start != _LOST_AND_FOUND:
                    raise
        return sorted(keys)


class _Cancelled(Exception):
    """Ends the thread of a put that nobody waits for any more."""


def _storage_error(action: str, error: OSError) -> StorageError:
    number = error.errno or 0
    kind = "no_space" if number in (errno.ENOSPC, errno.EDQUOT) else "other"
    reason = error.strerror or str(error)
    return StorageError(f"cannot {action}: {reason}. {_NEXT_STEP.get(number, 'See the reason given')}", kind)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    """write(2) may take less than it was given (a nearly full disk, 2 GiB at most): goes on until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _write_back(fd: int, offset: int, length: int) -> None:
    """Has these bytes written to the disk, where it can be asked for: no promise, an fsync follows.

    Raises:
        OSError: the disk did not take them. The kernel tells a descriptor of an error once: the fsync that follows
            would say that all is well.
    """
    if _SYNC_FILE_RANGE is None:
        return
    if _SYNC_FILE_RANGE(fd, ctypes.c_int64(offset), ctypes.c_int64(length), _START_AND_WAIT):
        number = ctypes.get_errno()
        if number not in _NO_WRITE_BACK:
            raise OSError(number, os.strerror(number))


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # What network and FUSE file systems that have nothing to sync in a directory answer.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def _make_missing(directory: str) -> list[str]:
    """Makes `directory` and what is missing above it. Returns these, topmost first; `directory` in any case."""
    missing = [directory]
    while True:
        try:
            os.mkdir(missing[-1])
            break
        except FileExistsError:
            break
        except FileNotFoundError:
            missing.append(os.path.dirname(missing[-1]))
    missing.reverse()
    for path in missing[1:]:
        with suppress(FileExistsError):
            os.mkdir(path)
    return missing


def _delete(target: str) -> None:
    """Removes a file. Where it is gone already, its removal may still be volatile: the sync after it failed, or the
    process died before it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        with suppress(FileNotFoundError):
            os.unlink(target)
        _sync_directory(os.path.dirname(target))


def _remove_if_abandoned(path: str) -> None:
    """Removes a temporary file whose writer is gone. A writer caught between making and locking it starts over."""
    with suppress(OSError):  # finished meanwhile, still locked, or on a file system without locks
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(fd)

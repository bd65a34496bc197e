"""The local store: a directory whose files are the objects. It is the default.

A put is durable by these steps:

1. Write a temporary file, and sync it.
2. Rename it to the key.
3. Sync the directory, and the parent of every directory that was made on the way.

The objects of one `put_all` take steps 1 and 2 one after the other, and share the syncs of step 3. This module must not
know the content of objects.

Temporary files live in one hidden directory, `.arcpipe-staging` under the root, like mail in Maildir's `tmp`. So
readers that glob the tree never see one, and what a crash left is found without walking a million directories. A writer
holds its file under flock, so `check` can tell abandoned files from those in use. The price: the whole tree must be one
file system. A mount inside it is refused with a clear error.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import logging
import os
import re
import secrets
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

from arcpipe.errors import MissingObject, NotOffered
from arcpipe.storage import local_files
from arcpipe.storage.base import Blob, Listed, read_exactly, require_key
from arcpipe.units import KB

T = TypeVar("T")

log = logging.getLogger(__name__)

STAGING_DIRECTORY = ".arcpipe-staging"
_TEMP_NAME = re.compile(r"put-[0-9a-f]{32}\.tmp")

# Bytes per write(2). Cancellation is checked between writes. Each write is flushed before the next, so that a sync of
# the WAL on the same disk never waits for a whole object.
_WRITE_BYTES = 256 * KB

# ext4 makes it, readable by root only, at its mount point.
_LOST_AND_FOUND = "lost+found/"

# Objects per `put_all`. Starting a thread's work costs as much as storing a small object, so several share it. With
# many more, the first would wait long for the last.
_OBJECTS_AT_ONCE = 32

# Directories that are remembered as durable, 200 bytes each. A forgotten one costs a sync.
_MAX_DURABLE = 65_536


class LocalStore:
    """An ObjectStore in a directory."""

    def __init__(self, root: str | os.PathLike[str], threads: int = 8) -> None:
        """Open a store.

        Args:
            root: the directory; it is made at the first put.
            threads: the number of file operations that run at the same time.
        """
        # Absolute, because a later chdir must not move the store.
        self._root = os.path.abspath(root)
        self._staging = os.path.join(self._root, STAGING_DIRECTORY)
        # Directories whose own entry, and the entries of all directories above, are known to be on disk.
        self._durable: set[str] = set()
        self._has_warned = False  # of a file system that does not tell upper from lower case
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="local-store")

    @property
    def url(self) -> str:
        return f"file://{self._root}"

    async def put(self, key: str, blob: Blob) -> None:
        await self.put_all([(key, blob)])

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        targets = [(self._path(key), blob) for key, blob in objects]
        await self._in_thread(f"write {targets[0][0]}", lambda cancelled: self._put_all(targets, cancelled))

    async def put_new(self, key: str, blob: Blob) -> bool:
        target = self._path(key)
        return await self._in_thread(f"write {target}", lambda cancelled: self._put_new(target, blob, cancelled))

    @property
    def objects_at_once(self) -> int:
        return _OBJECTS_AT_ONCE

    async def exists(self, key: str) -> bool:
        target = self._path(key)
        return await self._in_thread(f"look for {target}", lambda _: self._exists(target))

    async def abort_uploads(self, key: str) -> int:
        self._path(key)
        return 0  # an unfinished put leaves only a temporary file, which `check` removes

    async def delete(self, key: str) -> None:
        target = self._path(key)
        await self._in_thread(f"delete {target}", lambda _: local_files.delete(target))

    async def list_keys(self, prefix: str) -> list[str]:
        require_key(prefix + "x")
        return await self._in_thread(f"list {self._root}/{prefix}", lambda cancelled: self._list(prefix, cancelled))

    async def list_objects(self, prefix: str, after: str = "") -> AsyncIterator[list[Listed]]:
        require_key(prefix + "x")
        pending = [prefix[: prefix.rfind("/") + 1]]
        while pending:
            start = pending.pop()
            page = functools.partial(self._page, start, prefix)
            found, folders = await self._in_thread(f"list {self._root}/{start}", page)
            pending += sorted(folders, reverse=True)
            if after:
                found = [one for one in found if one.key > after]
            if found:
                yield found

    async def list_folders(self, folder: str) -> list[str]:
        require_key(folder + "x")
        _, folders = await self._in_thread(f"list {self._root}/{folder}", functools.partial(self._page, folder, folder))
        return sorted(path[len(folder) : -1] for path in folders)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        target = self._path(key)
        return await self._in_thread(f"read {target}", lambda _: local_files.read(target, offset, length))

    async def move(self, source: str, target: str) -> None:
        paths = self._path(source), self._path(target)
        await self._in_thread(f"rename {paths[0]} to {paths[1]}", lambda _: self._move(*paths))

    async def delete_all(self, keys: Sequence[str]) -> None:
        targets = [self._path(key) for key in keys]
        if targets:
            await self._in_thread(f"delete {targets[0]}", lambda _: local_files.delete_all(targets))

    async def remove_empty(self, folder: str, modified_before: float) -> None:
        path = self._path(folder)
        remove = functools.partial(local_files.remove_empty, self._root, path, modified_before)
        self._durable.difference_update(await self._in_thread(f"remove {path}", lambda _: remove()))

    async def check(self) -> None:
        await self._in_thread(f"write to {self._root}", lambda _: self._again_if_removed(self._check))

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown)
        with suppress(OSError):  # not empty because another process uses it, or never made
            os.rmdir(self._staging)

    async def _in_thread(self, action: str, work: Callable[[threading.Event], T]) -> T:
        """Run blocking `work` in a thread, and turn its OSError into a StorageError.

        Returns or raises only when the thread is done, even if cancelled: a put or delete that took effect later would
        undo what came after it. `work` gets an event that is set on cancellation.
        """
        cancelled = threading.Event()
        future = asyncio.get_running_loop().run_in_executor(self._executor, work, cancelled)
        try:
            return await asyncio.shield(future)
        except OSError as error:
            raise local_files.storage_error(action, error) from error
        except asyncio.CancelledError:
            cancelled.set()
            # Read the exception, so that asyncio does not report it as never retrieved.
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
        """Do the work, and once more if somebody removed a directory meanwhile."""
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
                raise local_files.storage_error(f"write {target}", error) from error
        self._sync_entries([*(target for target, _ in targets), *unsynced])
        if len(self._durable) + len(unsynced) > _MAX_DURABLE:
            self._durable.clear()
        self._durable.update(unsynced)

    def _put_new(self, target: str, blob: Blob, cancelled: threading.Event) -> bool:
        """Write a file and link it to `target`, which fails if there is one. Its name is made durable in either case.

        Whoever reads the other's file relies on it, so that must not vanish in a power cut.
        """
        done = False

        def put() -> None:
            nonlocal done
            unsynced = self._make_directories(os.path.dirname(target))
            done = self._put(target, blob, cancelled, only_new=True)
            self._sync_entries([target, *unsynced])
            self._durable.update(unsynced)

        self._again_if_removed(put)
        return done

    def _put(self, target: str, blob: Blob, cancelled: threading.Event, *, only_new: bool = False) -> bool:
        """Write a file into an existing directory and rename it to `target`. The caller syncs the directory.

        Returns:
            False if it was to be a new one, and there is one already.
        """
        with self._temp_file() as (fd, temp):
            offset, size = 0, blob.size
            while offset < size and not cancelled.is_set():
                length = min(_WRITE_BYTES, size - offset)
                local_files.write_all(fd, read_exactly(blob, offset, length))
                offset += length
                if offset < size:  # the fsync below writes the last piece
                    local_files.write_back(fd, offset - length, length)
            if cancelled.is_set():
                raise _Cancelled
            os.fsync(fd)
            if not only_new:
                os.rename(temp, target)
                return True
            try:
                os.link(temp, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in local_files.NO_LINKS:
                    raise
                raise NotOffered(f"cannot write {target}: this file system has no hard links") from error
            return True

    def _exists(self, target: str) -> bool:
        """Look for a file and make its name durable: the process that renamed it may have died before its sync."""
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
        with self._temp_file() as (fd, temp):
            local_files.write_all(fd, b"arcpipe")
            os.fsync(fd)
            if not self._has_warned and local_files.is_there_in_capitals(temp):
                self._has_warned = True
                log.warning(
                    "the file system of %s takes names that differ only in upper and lower case for one: measurements "
                    "or databases with such names write over each other's files",
                    self._root,
                )

    def _remove_abandoned(self) -> None:
        """Remove the temporary files that a crash left. Best effort: they cost space and no more."""
        try:
            with os.scandir(self._staging) as entries:
                for entry in entries:
                    if _TEMP_NAME.fullmatch(entry.name):
                        local_files.remove_if_abandoned(entry.path)
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning("temporary files that a crash left stay in %s: %s", self._staging, error.strerror or error)

    @contextmanager
    def _temp_file(self) -> Iterator[tuple[int, str]]:
        """Make and lock a new file in the staging directory. Remove it at the end unless it was renamed."""
        temp = os.path.join(self._staging, f"put-{secrets.token_hex(16)}.tmp")
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # on a file system without locks `check` cannot lock it either, and leaves it
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd, temp
        finally:
            with suppress(OSError):  # renamed, or it cannot be removed now, and the next `check` removes it
                os.unlink(temp)
            os.close(fd)

    def _make_directories(self, directory: str) -> list[str]:
        """Make `directory` and the missing directories above it.

        Returns:
            The directories that `_sync_entries` must make durable, topmost first. They include existing ones that are
            not known to be durable: a process may have crashed before it synced them.
        """
        unsynced: list[str] = []
        if directory in self._durable:
            return unsynced
        if self._root not in self._durable:
            unsynced = local_files.make_missing(self._root)
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
        """Make the names of these files and directories durable. Each parent is synced once."""
        above = os.path.dirname(self._root)
        for parent in dict.fromkeys(map(os.path.dirname, paths)):
            try:
                local_files.sync_directory(parent)
            except PermissionError:
                # The directory above the root may be one that this user can pass through but not open.
                if parent != above:
                    raise

    def _move(self, source: str, target: str) -> None:
        unsynced = self._make_directories(os.path.dirname(target))
        try:
            os.rename(source, target)
        except FileNotFoundError as error:
            if not os.path.lexists(source):
                raise MissingObject(f"cannot rename {source} to {target}: there is no such file") from error
            raise
        self._sync_entries([target, *unsynced])
        local_files.sync_directory(os.path.dirname(source))

    def _page(self, start: str, prefix: str, _: threading.Event) -> tuple[list[Listed], list[str]]:
        """List one directory: its files whose keys begin with `prefix`, and the keys of such directories with a slash.

        Raises:
            OSError: a directory that may be there cannot be listed, so its files are unknown.
        """
        found: list[Listed] = []
        folders: list[str] = []
        try:
            with os.scandir(os.path.join(self._root, start)) as entries:
                for entry in entries:
                    key = start + entry.name
                    if key == STAGING_DIRECTORY or key + "/" == _LOST_AND_FOUND:
                        continue
                    if entry.is_dir():
                        if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                            folders.append(f"{key}/")
                    elif key.startswith(prefix):
                        with suppress(FileNotFoundError):  # gone since
                            status = entry.stat()
                            found.append(Listed(key, status.st_size, status.st_mtime))
        except (FileNotFoundError, NotADirectoryError):
            return [], []  # nothing there, or no longer
        return sorted(found), folders

    def _list(self, prefix: str, cancelled: threading.Event) -> list[str]:
        keys: list[str] = []
        # Directories still to be read, each as the prefix of its keys: "" or "a/b/".
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
    """Ends the thread of a cancelled put."""

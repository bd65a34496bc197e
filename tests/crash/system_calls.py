"""System calls for files in memory: while a `RecordingDisk` is mounted, `os` and `open` lead there below its base.

All other paths and descriptors go to the real calls. So the tests see what the program really asks of the system,
wherever in the program it does so.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.crash.recording import File, RecordingDisk

_FIRST_FD = 1 << 24
_STAMP = 1_760_000_000  # seconds since the epoch: every file's times
_descriptors = itertools.count(_FIRST_FD)


class _Open:
    """An open file or directory; `path` follows renames as long as the file has a name."""

    __slots__ = ("at", "disk", "file", "path")

    def __init__(self, disk: RecordingDisk, path: str, file: File | None) -> None:
        self.disk = disk
        self.path = path
        self.file = file
        self.at = 0

    @property
    def name(self) -> str:
        """Where the file is now; where it was last, if it is gone."""
        entries = self.disk.entries
        if self.file is not None and entries.get(self.path) is not self.file:
            self.path = next((path for path, file in entries.items() if file is self.file), self.path)
        return self.path


class Stat(NamedTuple):
    """The part of `os.stat_result` that is asked for."""

    st_mode: int
    st_ino: int
    st_nlink: int
    st_size: int
    st_dev: int = 99
    st_uid: int = 0
    st_gid: int = 0
    st_mtime: float = float(_STAMP)
    st_mtime_ns: int = _STAMP * 1_000_000_000
    st_blocks: int = 0


class Entry:
    """As `os.DirEntry`."""

    def __init__(self, folder: str, name: str, path: str) -> None:
        self.name = name
        self.path = os.path.join(folder, name)
        self._asked = path

    def stat(self, *, follow_symlinks: bool = True) -> Stat:
        return os.stat(self.path)  # type: ignore[return-value]

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return os.path.isfile(self.path)

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return os.path.isdir(self.path)

    def is_symlink(self) -> bool:
        return False


class _Listing:
    """The result of `os.scandir`."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = iter(entries)

    def __enter__(self) -> _Listing:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Entry]:
        return self._entries

    def __next__(self) -> Entry:
        return next(self._entries)

    def close(self) -> None:
        self._entries = iter(())


class _Raw(io.RawIOBase):
    """The unbuffered result of `open`."""

    def __init__(self, fd: int, mode: str, path: str) -> None:
        self._fd = fd
        self.name = path
        self.mode = mode

    def fileno(self) -> int:
        return self._fd

    def readable(self) -> bool:
        return "r" in self.mode or "+" in self.mode

    def writable(self) -> bool:
        return self.mode.strip("bt") != "r"

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        opened = _open_files[self._fd]
        assert opened.file is not None
        opened.at = offset + (0, opened.at, len(opened.file.content))[whence]
        return opened.at

    def readinto(self, buffer: Any) -> int:
        opened = _open_files[self._fd]
        count = _preadv(self._fd, [buffer], opened.at)
        opened.at += count
        return count

    def write(self, data: Any) -> int:
        opened = _open_files[self._fd]
        count = _pwritev(self._fd, [bytes(data)], opened.at)
        opened.at += count
        return count

    def truncate(self, size: int | None = None) -> int:
        assert size is not None
        _ftruncate(self._fd, size)
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            _close(self._fd)


_mounted: dict[str, RecordingDisk] = {}
_open_files: dict[int, _Open] = {}


@contextmanager
def mounted(*disks: RecordingDisk) -> Iterator[None]:
    """While it lasts, paths below these disks' bases lead to them. One thread mounts."""
    if not _mounted:
        _replace_calls(_OURS)
    _mounted.update((disk.base, disk) for disk in disks)
    try:
        yield
    finally:
        for disk in disks:
            del _mounted[disk.base]
        for fd in [fd for fd, opened in list(_open_files.items()) if opened.disk in disks]:
            del _open_files[fd]
        if not _mounted:
            _replace_calls(_THEIRS)


def _replace_calls(calls: Mapping[tuple[Any, str], Any]) -> None:
    """Set functions of modules. It is done for each of 10,000 disks, and mock.patch takes 1 ms for all of them."""
    for (module, name), call in calls.items():
        setattr(module, name, call)


def _find(path: Any) -> tuple[RecordingDisk, str] | None:
    """The disk of a path, and the path there; None for one of the real system."""
    if isinstance(path, int):
        opened = _open_files.get(path)
        return None if opened is None else (opened.disk, opened.name)
    text = os.fspath(path)
    if not isinstance(text, str) or not text.startswith("/disk-"):
        return None
    base, _, rest = text[1:].partition("/")
    disk = _mounted.get("/" + base)
    if disk is None:
        return None
    is_plain = rest and "//" not in rest and "/." not in f"/{rest}" and rest[-1] != "/"
    return disk, rest if is_plain else os.path.normpath(rest)


def _require_parent(disk: RecordingDisk, path: str) -> None:
    parent = os.path.dirname(path)
    if parent and disk.entries.get(parent, 0) is not None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _require(disk: RecordingDisk, path: str) -> File | None:
    if path != "." and path not in disk.entries:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return disk.entries.get(path)


def _open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    found = _find(path)
    if found is None:
        return int(_real["open"](path, flags, mode, dir_fd=dir_fd))
    disk, name = found
    if flags & os.O_CREAT and name not in disk.entries:
        _require_parent(disk, name)
        with disk.doing("create", name):
            disk.create(name)
    else:
        with disk.doing("open", name):
            if flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            file = _require(disk, name)
            if file is None and flags & (os.O_RDWR | os.O_WRONLY):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    file = disk.entries.get(name)
    fd = next(_descriptors)
    _open_files[fd] = _Open(disk, name, file)
    if flags & os.O_TRUNC and file is not None and file.content:
        _ftruncate(fd, 0)
    return fd


def _opener(path: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
    found = _find(path)
    if found is None:
        return _real_open(path, mode, buffering, *arguments, **options)
    plain = mode.replace("b", "").replace("t", "")
    flags = {
        "r": os.O_RDONLY,
        "r+": os.O_RDWR,
        "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
        "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    }[plain]
    raw = _Raw(_open(path, flags), mode, os.fspath(path))
    if buffering == 0:
        return raw
    buffered = io.BufferedReader(raw) if plain == "r" else io.BufferedWriter(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, *arguments, **options)


def _close(fd: int) -> None:
    if fd < _FIRST_FD:
        _real["close"](fd)
    elif _open_files.pop(fd, None) is None and fd < _FIRST_FD:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _preadv(fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
    if fd < _FIRST_FD:
        return int(_real["preadv"](fd, buffers, offset, flags))
    opened = _open_files[fd]
    assert opened.file is not None
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    with opened.disk.doing("read", opened.name, offset, sum(map(len, views))):
        done = 0
        for view in views:
            part = bytes(opened.file.content[offset + done : offset + done + len(view)])
            view[: len(part)] = part
            done += len(part)
        return done


def _pread(fd: int, length: int, offset: int) -> bytes:
    if fd < _FIRST_FD:
        return bytes(_real["pread"](fd, length, offset))
    opened = _open_files[fd]
    assert opened.file is not None
    with opened.disk.doing("read", opened.name, offset, length):
        return bytes(opened.file.content[offset : offset + length])


def _read(fd: int, length: int) -> bytes:
    if fd < _FIRST_FD:
        return bytes(_real["read"](fd, length))
    data = _pread(fd, length, _open_files[fd].at)
    _open_files[fd].at += len(data)
    return data


def _pwritev(fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
    if fd < _FIRST_FD:
        return int(_real["pwritev"](fd, buffers, offset, flags))
    opened = _open_files[fd]
    assert opened.file is not None
    data = b"".join(buffers)
    with opened.disk.doing("write", opened.name, offset, len(data)) as short:
        if short is not None:
            data = data[: len(data) // 2]
        opened.disk.write(opened.file, offset, data)
    return len(data)


def _pwrite(fd: int, data: Any, offset: int) -> int:
    return _real["pwrite"](fd, data, offset) if fd < _FIRST_FD else _pwritev(fd, [data], offset)


def _write(fd: int, data: Any) -> int:
    if fd < _FIRST_FD:
        return int(_real["write"](fd, data))
    count = _pwritev(fd, [data], _open_files[fd].at)
    _open_files[fd].at += count
    return count


def _sync(kind: str) -> Callable[[Any], None]:
    def sync(fd: Any) -> None:
        fd = fd if isinstance(fd, int) else fd.fileno()
        if fd < _FIRST_FD:
            _real[kind](fd)
            return
        opened = _open_files[fd]
        with opened.disk.doing("sync_directory" if opened.file is None else kind, opened.name):
            if opened.file is None:
                opened.disk.sync_directory(opened.path)
            else:
                opened.disk.sync(opened.file)

    return sync


def _ftruncate(fd: int, size: int) -> None:
    if fd < _FIRST_FD:
        _real["ftruncate"](fd, size)
        return
    opened = _open_files[fd]
    assert opened.file is not None
    with opened.disk.doing("truncate", opened.name):
        opened.disk.truncate(opened.file, size)


def _rename(source: Any, target: Any, **options: Any) -> None:
    found = _find(source)
    if found is None:
        _real["rename"](source, target, **options)
        return
    disk, name = found
    other = _find(target)
    assert other is not None
    with disk.doing("rename", name):
        file = _require(disk, name)
        _require_parent(disk, other[1])
        assert file is not None, "the program renames no directories"
        disk.rename(name, other[1])


def _unlink(path: Any, **options: Any) -> None:
    found = _find(path)
    if found is None:
        _real["unlink"](path, **options)
        return
    disk, name = found
    if name not in disk.entries:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    with disk.doing("unlink", name):
        if _require(disk, name) is None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        disk.unlink(name)


def _mkdir(path: Any, mode: int = 0o777, **options: Any) -> None:
    found = _find(path)
    if found is None:
        _real["mkdir"](path, mode, **options)
        return
    disk, name = found
    if name == "." or name in disk.entries:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    _require_parent(disk, name)
    with disk.doing("make_directory", name):
        disk.make_directory(name)


def _names_in(path: Any) -> tuple[RecordingDisk, str, list[str]] | None:
    found = _find(path)
    if found is None:
        return None
    disk, name = found
    with disk.doing("list", name):
        if _require(disk, name) is not None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
        front = "" if name == "." else name + "/"
        inside = [other[len(front) :] for other in list(disk.entries) if other.startswith(front)]
        return disk, front, [other for other in inside if "/" not in other]


def _listdir(path: Any = ".") -> Any:
    found = _names_in(path)
    return _real["listdir"](path) if found is None else found[2]


def _scandir(path: Any = ".") -> Any:
    found = _names_in(path)
    if found is None:
        return _real["scandir"](path)
    return _Listing([Entry(os.fspath(path), name, found[1] + name) for name in found[2]])


def _status(path: Any, **options: Any) -> Any:
    found = _find(path)
    if found is None:
        return _real["stat"](path, **options)
    disk, name = found
    opened = _open_files.get(path) if isinstance(path, int) else None
    with disk.doing("stat", name):
        file = opened.file if opened is not None else _require(disk, name)
        if file is None:
            return Stat(stat.S_IFDIR | 0o750, 1 + hash(name) % (1 << 40), 2, 4096)
        return Stat(stat.S_IFREG | 0o640, file.number, file.links, len(file.content))


def _fstat(fd: int) -> Any:
    return _real["fstat"](fd) if fd < _FIRST_FD else _status(fd)


def _fchown(fd: int, uid: int, gid: int) -> None:
    """Files here have no owner."""
    if fd < _FIRST_FD:
        _real["fchown"](fd, uid, gid)


def _flock(fd: int, operation: int) -> None:
    """One process uses a disk, and one of its threads at a time asks for this."""
    if fd < _FIRST_FD:
        _real_flock(fd, operation)


def _access(path: Any, mode: int, **options: Any) -> bool:
    if _find(path) is None:
        return bool(_real["access"](path, mode, **options))
    try:
        _status(path)
    except OSError:
        return False
    return True


def _utime(path: Any, *arguments: Any, **options: Any) -> None:
    if _find(path) is None:
        _real["utime"](path, *arguments, **options)
    else:
        _status(path)


def _posix_fadvise(fd: int, offset: int, length: int, advice: int) -> None:
    if fd < _FIRST_FD:
        _real["posix_fadvise"](fd, offset, length, advice)


def _calls_of_os() -> dict[str, Any]:
    return {
        "open": _open,
        "close": _close,
        "read": _read,
        "write": _write,
        "pread": _pread,
        "preadv": _preadv,
        "pwrite": _pwrite,
        "pwritev": _pwritev,
        "fdatasync": _sync("fdatasync"),
        "fsync": _sync("fsync"),
        "ftruncate": _ftruncate,
        "rename": _rename,
        "replace": _rename,
        "unlink": _unlink,
        "remove": _unlink,
        "mkdir": _mkdir,
        "listdir": _listdir,
        "scandir": _scandir,
        "stat": _status,
        "lstat": _status,
        "fstat": _fstat,
        "fchown": _fchown,
        "access": _access,
        "utime": _utime,
        "posix_fadvise": _posix_fadvise,
    }


_real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in _calls_of_os()}
_real_open = builtins.open
_real_flock = fcntl.flock
_OURS: dict[tuple[Any, str], Any] = {
    **{(os, name): call for name, call in _calls_of_os().items()},
    (io, "open"): _opener,
    (builtins, "open"): _opener,
    (fcntl, "flock"): _flock,
}
_THEIRS = {(module, name): getattr(module, name) for module, name in _OURS}

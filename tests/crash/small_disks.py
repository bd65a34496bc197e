"""Small real file systems that a test may fill, make read-only and take away: a tmpfs, and ext4 on a loop device."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

MEGABYTE = 1 << 20
_LIBC = ctypes.CDLL(None)
# ext4's ioctl that stops a file system at once, as a power cut does, and its flag to leave the journal unwritten.
_EXT4_SHUTDOWN = 0x8004587D
_WITHOUT_JOURNAL = 2
# The first part of a thin device that is backed in any case: what ext4 needs for itself, and little more.
_BACKED_MB = 6
# Whoever was killed may hold the file system for a moment.
_UNMOUNT_SECONDS = 30.0


class SmallDisk:
    """A file system of its own at `path`. Needs root and the right to mount; skips the test where it has neither."""

    def __init__(self, path: Path, kind: str, size_mb: int, image: Path | None = None) -> None:
        self.path = path
        self._kind = kind
        self._size_mb = size_mb
        self._filler = path / "filler"
        self._image = image or path.with_suffix(".img")
        self._is_thin = image is not None
        self._loops: list[str] = []

    def make(self) -> None:
        self.path.mkdir()
        if self._kind == "ext4":
            with self._image.open("wb") as file:
                file.truncate(self._size_mb * MEGABYTE)
            if self._is_thin:
                self._make_thin()
            else:
                _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        self._mount()

    def _make_thin(self) -> None:
        # Journal and tables are at the front, where there is space in any case: it is data that cannot be written.
        options = "packed_meta_blocks=1,lazy_itable_init=0,lazy_journal_init=0"
        sizes = ["-b", "4096", "-J", "size=4", "-N", "1024"]
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", options, *sizes, str(self._image))
        with self._image.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, _BACKED_MB * MEGABYTE)

    def _mount(self) -> None:
        path = str(self.path)
        if self._kind == "tmpfs":
            _run("mount", "-t", "tmpfs", "-o", f"size={self._size_mb}m", "tmpfs", path)
        else:
            self._loops.append(_run("losetup", "--find", "--show", str(self._image)))
            if self._is_thin:
                # The loop driver takes a write that was cut short for a whole one: one page each cannot be cut.
                name = Path(self._loops[-1]).name
                Path("/sys/block", name, "queue", "max_sectors_kb").write_text("4")
            _run("mount", "-t", "ext4", self._loops[-1], path)

    def fill(self) -> None:
        """Takes all the space there is."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (MEGABYTE, 4096):
                try:
                    while True:
                        file.write(bytes(size))
                        os.fsync(file.fileno())
                except OSError:
                    pass

    def give_back(self, size_bytes: int) -> None:
        """Leave `size_bytes` of a full disk free."""
        os.truncate(self._filler, self._filler.stat().st_size - size_bytes)

    def free(self) -> None:
        """Gives it back."""
        self._filler.unlink(missing_ok=True)

    def make_read_only(self) -> None:
        """No file can be made, renamed or removed; those that are open for writing still are.

        (The kernel refuses to make a mount read-only while there are such files. So a second one, which has none, is
        put on top of the first.)
        """
        for _ in range(50):
            _run("mount", "--bind", str(self.path), str(self.path))
            remount = ["mount", "-o", "remount,bind,ro", str(self.path)]
            if subprocess.run(remount, check=False, capture_output=True).returncode == 0:
                return
            _run("umount", "--lazy", str(self.path))  # somebody has just opened a file in the second one
        _run(*remount)

    def make_writable(self) -> None:
        _run("umount", "--lazy", str(self.path))

    def abort(self) -> None:
        """Refuse every change from now on, as ext4 does after an error of its device."""
        _run("mount", "-o", "remount,abort", str(self.path))

    def sync(self) -> None:
        """Writes back all there is: ext4 gives up if it cannot write its own blocks later."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert _LIBC.syncfs(fd) == 0
        finally:
            os.close(fd)

    def cut_power(self) -> None:
        """Stops ext4 as a power cut does: what was not synced is gone. Whoever uses it gets errors from now on."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _EXT4_SHUTDOWN, struct.pack("I", _WITHOUT_JOURNAL))
        except OSError as error:
            pytest.skip(f"this kernel has no shutdown ioctl for ext4: {error}")
        finally:
            os.close(fd)

    def power_on(self) -> None:
        """Mounts it again from what its device holds. Nobody may use it meanwhile."""
        command = ["umount", str(self.path)]
        wait_until(
            lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0,
            f"{self.path} to be unused",
            _UNMOUNT_SECONDS,
        )
        _run("losetup", "--detach", self._loops.pop())
        self._mount()

    def mount_again(self) -> None:
        """The same files in a mount that works; who has files of the former one open keeps those."""
        _run("umount", "--lazy", str(self.path))
        self._mount()

    def remove(self) -> None:
        while subprocess.run(["umount", "--lazy", str(self.path)], check=False, capture_output=True).returncode == 0:
            pass
        for loop in self._loops:
            subprocess.run(["losetup", "--detach", loop], check=False, capture_output=True)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"there is no {command[0]} here")
    if done.returncode:
        pytest.skip(f"not permitted here: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def small_disk(path: Path, kind: str, size_mb: int, image: Path | None = None) -> Iterator[SmallDisk]:
    """A file system of `kind` ("tmpfs" or "ext4") at `path`, gone with everything on it when this ends.

    Args:
        image: the file that is ext4's device; by default in the folder of `path`.
    """
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    disk = SmallDisk(path, kind, size_mb, image)
    try:
        disk.make()
        yield disk
    finally:
        disk.remove()


@contextmanager
def thin_disk(path: Path, size_mb: int, backed_mb: int) -> Iterator[tuple[SmallDisk, SmallDisk]]:
    """ext4 on a device that claims `size_mb` and has `backed_mb`, as thin provisioning does, and what backs it.

    When the latter is full, the device fails writes of blocks that were never written before.
    """
    with (
        small_disk(path.with_name(path.name + "-pool"), "tmpfs", backed_mb) as pool,
        small_disk(path, "ext4", size_mb, image=pool.path / "image") as disk,
    ):
        yield disk, pool

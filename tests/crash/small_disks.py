"""Small real file systems that a test may fill, make read-only and take away: a tmpfs, and ext4 on a loop device."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MEGABYTE = 1 << 20


class SmallDisk:
    """A file system of its own at `path`. Needs root and the right to mount; skips the test where it has neither."""

    def __init__(self, path: Path, kind: str, size_mb: int) -> None:
        self.path = path
        self._kind = kind
        self._size_mb = size_mb
        self._filler = path / "filler"
        self._image = path.with_suffix(".img")
        self._loops: list[str] = []

    def make(self) -> None:
        self.path.mkdir()
        if self._kind == "ext4":
            with self._image.open("wb") as file:
                file.truncate(self._size_mb * MEGABYTE)
            _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        self._mount()

    def _mount(self) -> None:
        path = str(self.path)
        if self._kind == "tmpfs":
            _run("mount", "-t", "tmpfs", "-o", f"size={self._size_mb}m", "tmpfs", path)
        else:
            self._loops.append(_run("losetup", "--find", "--show", str(self._image)))
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
        """Leaves so much of a full disk free."""
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
        """What ext4 does by itself after an error of its device: from now on every change is refused."""
        _run("mount", "-o", "remount,abort", str(self.path))

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
def small_disk(path: Path, kind: str, size_mb: int) -> Iterator[SmallDisk]:
    """A file system of `kind` ("tmpfs" or "ext4") at `path`, gone with everything on it when this ends."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    disk = SmallDisk(path, kind, size_mb)
    try:
        disk.make()
        yield disk
    finally:
        disk.remove()

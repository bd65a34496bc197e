"""The local store: what is on the disk after each operation, and what a full disk, a crash or a rival does to it."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pytest
import uvloop

from arcpipe.config.settings import StorageS3
from arcpipe.errors import ConfigError, StorageError
from arcpipe.storage import Blob, MemoryBlob, ObjectStore, local_files, open_store
from arcpipe.storage.local import STAGING_DIRECTORY, LocalStore
from tests.support.blobs import FileBlob

T = TypeVar("T")


class GatedBlob:
    """A blob whose reading waits for the test at the second chunk."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def read_at(self, offset: int, length: int) -> bytes:
        if offset:
            self.reached.set()
            assert self.go_on.wait(30)
        return b"x" * length


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Any:
    return uvloop.run if request.param == "uvloop" else asyncio.run


def files(root: Path) -> dict[str, bytes]:
    """Everything in the tree but empty directories, hidden files too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def using(root: Path, work: Any) -> Any:
    """Runs `work(store)` on a store that is closed afterwards."""

    async def main() -> Any:
        store = LocalStore(root)
        try:
            return await work(store)
        finally:
            await store.close()

    return uvloop.run(main())


async def raised(operation: Coroutine[Any, Any, Any]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        await operation
    return caught.value


@contextmanager
def thin_device(directory: Path) -> Iterator[tuple[Path, Path]]:
    """An ext4 of 64 MB on a loop device, and the file system of 24 MB that backs it."""
    backing, mount = directory / "backing", directory / "mount"
    backing.mkdir()
    mount.mkdir()
    image = backing / "image"
    steps: list[list[str]] = [
        ["mount", "-t", "tmpfs", "-o", "size=24m", "arcpipe-test", str(backing)],
        ["truncate", "-s", "64M", str(image)],
        ["mkfs.ext4", "-q", "-O", "^has_journal", str(image)],
        ["mount", "-o", "loop", str(image), str(mount)],
    ]
    try:
        for step in steps:
            try:
                subprocess.run(step, check=True, capture_output=True, text=True)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                pytest.skip(f"loop devices need root and mkfs.ext4: {error}")
        yield mount, backing
    finally:
        for path in (mount, backing):
            if path.is_mount():
                subprocess.run(["umount", str(path)], check=True)


class TestPut:
    @pytest.mark.parametrize("size", [0, 1, 10_000, 9_000_000])
    def test_stores_every_byte_of_a_buffer(self, root: Path, run: Any, size: int) -> None:
        data = os.urandom(size)

        async def main() -> None:
            store = LocalStore(root)
            await store.put("bytes", MemoryBlob(data))
            await store.put("view", MemoryBlob(memoryview(data)))
            await store.put("arrow", MemoryBlob(pa.py_buffer(data)))
            await store.close()

        run(main())
        assert files(root) == {"bytes": data, "view": data, "arrow": data}

    def test_stores_a_blob_that_lives_in_a_file(self, root: Path, tmp_path: Path) -> None:
        source = tmp_path / "spool"
        source.write_bytes(os.urandom(9_000_001))
        using(root, lambda store: store.put("a/b", FileBlob(source)))
        assert files(root) == {"a/b": source.read_bytes()}

    def test_makes_directories_and_leaves_nothing_but_the_object(self, root: Path) -> None:
        using(root, lambda store: store.put("db/cpu/2025/06/01/10/cpu_1.parquet", MemoryBlob(b"rows")))
        assert [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()] == [
            "db/cpu/2025/06/01/10/cpu_1.parquet"
        ]
        assert not (root / STAGING_DIRECTORY).exists()

    def test_makes_a_root_several_levels_deep(self, tmp_path: Path) -> None:
        using(tmp_path / "not" / "there" / "yet", lambda store: store.put("a", MemoryBlob(b"1")))
        assert (tmp_path / "not/there/yet/a").read_bytes() == b"1"

    def test_replaces_the_former_object_with_a_longer_or_a_shorter_one(self, root: Path) -> None:
        async def work(store: ObjectStore) -> None:
            for data in (b"first", b"the second is longer", b"3"):
                await store.put("a/b", MemoryBlob(data))
                assert files(root) == {"a/b": data}

        using(root, work)

    def test_gives_objects_the_permissions_of_the_umask(self, root: Path) -> None:
        before = os.umask(0o027)
        try:
            using(root, lambda store: store.put("a", MemoryBlob(b"1")))
        finally:
            os.umask(before)
        assert (root / "a").stat().st_mode & 0o777 == 0o640

    def test_of_many_objects_at_once_stores_each(self, root: Path) -> None:
        wanted = {f"m{i % 7}/h{i % 3}/{i}": os.urandom(i * 10) for i in range(200)}

        async def work(store: ObjectStore) -> None:
            await asyncio.gather(*(store.put(key, MemoryBlob(data)) for key, data in wanted.items()))

        using(root, work)
        assert files(root) == wanted

    def test_of_one_key_at_once_leaves_one_of_them_whole(self, root: Path) -> None:
        rivals = [bytes([i]) * 3_000_000 for i in range(16)]

        async def work(store: ObjectStore) -> None:
            await asyncio.gather(*(store.put("a/b", MemoryBlob(data)) for data in rivals))

        using(root, work)
        assert set(files(root)) == {"a/b"}
        assert (root / "a/b").read_bytes() in rivals

    @pytest.mark.parametrize("removed", ["db/cpu/10", "db", ".", STAGING_DIRECTORY])
    def test_goes_on_after_somebody_removed_a_directory(self, root: Path, removed: str) -> None:
        async def work(store: ObjectStore) -> None:
            await store.put("db/cpu/10/a", MemoryBlob(b"1"))
            await asyncio.to_thread(shutil.rmtree, root / removed)
            await store.put("db/cpu/10/b", MemoryBlob(b"2"))

        using(root, work)
        assert (root / "db/cpu/10/b").read_bytes() == b"2"

    def test_does_not_follow_the_process_to_another_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        store = open_store("file://./lake", StorageS3())
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        uvloop.run(store.put("a", MemoryBlob(b"1")))
        assert files(tmp_path / "lake") == {"a": b"1"}

    def test_does_not_stop_the_loop(self, root: Path) -> None:
        blob = GatedBlob(5 << 20)

        async def work(store: ObjectStore) -> None:
            put = asyncio.create_task(store.put("slow", blob))
            # Only a loop that runs gets to know of this while the put is stuck.
            assert await asyncio.to_thread(blob.reached.wait, 30)
            blob.go_on.set()
            await put

        using(root, work)
        assert (root / "slow").stat().st_size == 5 << 20

    def test_that_is_cancelled_leaves_the_former_object(self, root: Path) -> None:
        """That is cancelled is over when it says so and leaves the former object."""
        blob = GatedBlob(20 << 20)

        async def work(store: ObjectStore) -> None:
            await store.put("a", MemoryBlob(b"former"))
            put = asyncio.create_task(store.put("a", blob))
            await asyncio.to_thread(blob.reached.wait, 30)
            put.cancel()
            await asyncio.sleep(0)
            assert not put.done()  # its thread still runs
            blob.go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await put
            assert files(root) == {"a": b"former"}

        using(root, work)

    def test_of_several_objects_in_one_call_stores_each(self, root: Path) -> None:
        wanted = {f"m{i % 7}/h{i % 3}/{i}": os.urandom(i * 10) for i in range(50)}
        using(root, lambda store: store.put_all([(key, MemoryBlob(data)) for key, data in wanted.items()]))
        assert files(root) == wanted

    def test_of_several_objects_in_one_call_names_the_one_that_fails(self, root: Path) -> None:
        (root / "db/b").mkdir(parents=True)
        objects = [(f"db/{name}", MemoryBlob(b"1")) for name in "abc"]
        error = using(root, lambda store: raised(store.put_all(objects)))
        assert f"cannot write {root}/db/b:" in str(error)

    def test_of_several_objects_goes_on_without_a_directory(self, root: Path) -> None:
        """A put of several objects goes on after somebody removed a directory."""

        async def work(store: ObjectStore) -> None:
            await store.put_all([("db/a/1", MemoryBlob(b"1")), ("db/b/1", MemoryBlob(b"1"))])
            await asyncio.to_thread(shutil.rmtree, root / "db/b")
            await store.put_all([("db/a/2", MemoryBlob(b"2")), ("db/b/2", MemoryBlob(b"2"))])

        using(root, work)
        assert files(root) == {"db/a/1": b"1", "db/a/2": b"2", "db/b/2": b"2"}

    def test_syncs_the_file_before_the_rename_and_every_new_entry_after_it(self, root: Path, tmp_path: Path) -> None:
        # From the system calls themselves, because nothing short of pulling the plug shows a missing sync.
        strace = shutil.which("strace")
        if strace is None or subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True).returncode:
            pytest.skip("strace is not installed, or may not trace here")
        trace = tmp_path / "trace"
        script = (
            "import asyncio, sys\n"
            "from arcpipe.storage.base import MemoryBlob\n"
            "from arcpipe.storage.local import LocalStore\n"
            "objects = [('db/10/a', MemoryBlob(b'1')), ('db/11/a', MemoryBlob(b'1')), ('db/10/b', MemoryBlob(b'1'))]\n"
            "asyncio.run(LocalStore(sys.argv[1]).put_all(objects))\n"
        )
        calls = "trace=fsync,rename,renameat,renameat2"
        subprocess.run(
            [strace, "-f", "-y", "-e", calls, "-o", trace, sys.executable, "-c", script, str(root)],
            check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        steps = [line.split(None, 1)[1] for line in trace.read_text().splitlines() if str(root.parent) in line]
        renamed = [i for i, step in enumerate(steps) if step.startswith("rename")]
        assert len(renamed) == 3
        assert all(f"<{root}/{STAGING_DIRECTORY}/put-" in steps[i - 1] for i in renamed)
        synced = [step.split("<")[1].split(">")[0] for step in steps[renamed[-1] + 1 :]]
        expected = [f"{root}/db/10", f"{root}/db/11", f"{root}/db", f"{root}", f"{root.parent}"]
        assert sorted(synced) == sorted(expected), "each of them once"


class TestFailure:
    def test_of_a_write_back_is_not_lost_before_the_fsync(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernel tells a descriptor of a failed write once; an fsync after that says that all is well."""
        asked = []

        def sync_file_range(fd: int, offset: object, length: object, flags: int) -> int:
            asked.append(fd)
            ctypes.set_errno(errno.EIO if len(asked) == 2 else 0)
            return -1 if len(asked) == 2 else 0

        monkeypatch.setattr(local_files, "_SYNC_FILE_RANGE", sync_file_range)
        error = using(root, lambda store: raised(store.put("a", MemoryBlob(bytes(1 << 20)))))
        assert "The disk reports an error" in str(error)
        assert files(root) == {}

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
    def test_of_a_file_system_that_knows_no_write_back_is_none(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def sync_file_range(*_: object) -> int:
            ctypes.set_errno(number)
            return -1

        monkeypatch.setattr(local_files, "_SYNC_FILE_RANGE", sync_file_range)
        using(root, lambda store: store.put("a", MemoryBlob(bytes(1 << 20))))
        assert files(root) == {"a": bytes(1 << 20)}

    def test_of_a_disk_that_recovers_during_the_put_does_not_leave_a_hole(self, tmp_path: Path) -> None:
        """A thin device fills up while a file is written, and has space again before its fsync."""
        with thin_device(tmp_path) as (mount, backing):
            filler = backing / "filler"

            class Recovering:
                size = 8 << 20

                def read_at(self, offset: int, length: int) -> bytes:
                    if offset == 4 << 20:
                        filler.unlink(missing_ok=True)
                    return os.urandom(length)

            room = os.statvfs(backing)
            with suppress(OSError):
                filler.write_bytes(bytes(room.f_bavail * room.f_frsize))

            async def work(store: ObjectStore) -> None:
                error = await raised(store.put("a", Recovering()))
                assert error.kind == "no_space" or "The disk reports an error" in str(error)
                filler.unlink(missing_ok=True)
                await store.put("a", Recovering())

            using(mount / "lake", work)
            assert set(files(mount / "lake")) == {"a"}

    def test_of_the_sync_after_a_removal_is_made_good_by_the_next_delete(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []

        def sync(path: str) -> None:
            synced.append(path)
            if len(synced) == 1:
                raise OSError(errno.EIO, "Input/output error")

        async def work(store: ObjectStore) -> None:
            await store.put("db/a", MemoryBlob(b"1"))
            monkeypatch.setattr(local_files, "sync_directory", sync)
            await raised(store.delete("db/a"))
            assert files(root) == {}
            await store.delete("db/a")

        using(root, work)
        assert synced == [str(root / "db")] * 2

    @pytest.mark.parametrize("step", ["fsync", "rename", "write"])
    def test_of_any_step_leaves_the_former_object_and_no_descriptor(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def fails(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        async def work(store: ObjectStore) -> None:
            await store.put("a", MemoryBlob(b"former"))
            with monkeypatch.context() as patch:
                patch.setattr(os, step, fails)
                patch.setattr(os, "unlink", fails)
                before = len(os.listdir("/proc/self/fd"))
                assert "The disk reports an error" in str(await raised(store.put("a", MemoryBlob(b"latter"))))
                assert len(os.listdir("/proc/self/fd")) == before
            assert (root / "a").read_bytes() == b"former"
            await store.check()
            await store.put("a", MemoryBlob(b"latter"))

        using(root, work)
        assert files(root) == {"a": b"latter"}

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of 1 MB."""
        mount = tmp_path / "small"
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "arcpipe-test", str(mount)]
        try:
            made = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if made.returncode:
            pytest.skip(f"mounting needs root: {made.stderr.strip()}")
        yield mount
        subprocess.run(["umount", str(mount)], check=True)

    def test_of_a_full_disk_is_no_space_and_frees_what_was_written(self, small_disk: Path) -> None:
        async def work(store: ObjectStore) -> None:
            await store.put("a/former", MemoryBlob(b"former"))
            error = await raised(store.put("a/former", MemoryBlob(bytes(2_000_000))))
            assert error.kind == "no_space"
            assert str(small_disk / "lake/a/former") in str(error)
            assert "Free space" in str(error)
            assert files(small_disk / "lake") == {"a/former": b"former"}
            await store.put("a/small", MemoryBlob(bytes(500_000)))

        using(small_disk / "lake", work)

    def test_of_the_last_byte_on_a_full_disk_stores_nothing(self, small_disk: Path) -> None:
        filler = small_disk / "filler"
        filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
        assert os.statvfs(small_disk).f_bavail == 0

        async def work(store: ObjectStore) -> None:
            assert (await raised(store.put("a", MemoryBlob(b"1")))).kind == "no_space"
            assert (await raised(store.check())).kind == "no_space"
            filler.unlink()
            await store.check()
            await store.put("a", MemoryBlob(b"1"))

        using(small_disk / "lake", work)
        assert files(small_disk / "lake") == {"a": b"1"}

    def test_of_a_second_file_system_inside_the_store_says_so(self, tmp_path: Path, small_disk: Path) -> None:
        (tmp_path / "lake").mkdir()
        (tmp_path / "lake" / "db").symlink_to(small_disk)
        error = using(tmp_path / "lake", lambda store: raised(store.put("db/a", MemoryBlob(b"1"))))
        assert "one file system" in str(error)

    def test_of_a_file_in_the_way_of_a_directory_names_the_path(self, root: Path) -> None:
        root.mkdir()
        (root / "db").write_bytes(b"a file")
        error = using(root, lambda store: raised(store.put("db/cpu/a", MemoryBlob(b"1"))))
        assert error.kind == "other"
        assert str(root / "db/cpu/a") in str(error)

    def test_of_a_directory_in_the_way_of_an_object_leaves_no_temporary_file(self, root: Path) -> None:
        (root / "db/a").mkdir(parents=True)
        error = using(root, lambda store: raised(store.put("db/a", MemoryBlob(b"1"))))
        assert "A directory has the name" in str(error)
        assert files(root) == {}

    def test_of_a_name_too_long_for_the_file_system_says_the_limit(self, root: Path) -> None:
        error = using(root, lambda store: raised(store.put("x" * 256, MemoryBlob(b"1"))))
        assert "255" in str(error)

    def test_of_a_file_system_that_is_read_only_says_so(self, small_disk: Path) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        error = using(small_disk / "lake", lambda store: raised(store.check()))
        assert "Mount the file system read-write" in str(error)

    def test_of_missing_permission_says_so(self, root: Path) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        root.mkdir(mode=0o500)
        error = using(root, lambda store: raised(store.check()))
        assert "permission" in str(error)

    def test_of_a_root_that_is_a_file_fails_the_check(self, root: Path) -> None:
        root.write_bytes(b"a file")
        error = using(root, lambda store: raised(store.check()))
        assert str(root) in str(error)

    @pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), ValueError("closed file"), None])
    def test_of_the_source_is_not_taken_for_one_of_the_store(self, root: Path, fault: Exception | None) -> None:
        class Broken:
            size = 10

            def read_at(self, offset: int, length: int) -> bytes:
                if fault:
                    raise fault
                return b"short"

        error = using(root, lambda store: raised(store.put("a", Broken())))
        assert "data to be stored" in str(error)
        assert files(root) == {}


class TestKeys:
    @pytest.mark.parametrize("key", ["", "/a", "a//b", "a/", "../a", "a/../b", "a/..", ".", "a/./b", "a\0b", "a\ud800"])
    def test_that_are_no_plain_relative_path_are_refused_first(self, root: Path, key: str) -> None:
        """Keys that are no plain relative path are refused before anything is done."""
        with pytest.raises(ValueError, match=r"key|surrogates"):
            using(root, lambda store: store.put(key, MemoryBlob(b"1")))
        with pytest.raises(ValueError, match=r"key|surrogates"):
            using(root, lambda store: store.delete(key))
        assert not root.exists()

    def test_in_the_staging_directory_are_refused(self, root: Path) -> None:
        with pytest.raises(ValueError, match="temporary"):
            using(root, lambda store: store.put(f"{STAGING_DIRECTORY}/a", MemoryBlob(b"1")))

    def test_with_spaces_percent_signs_dots_and_utf8_come_back_as_given(self, root: Path) -> None:
        keys = sorted(["a b/c%20d", "größe/温度/x", "..a/b..", "%2F/%", "a=1/b=2", "-rf", "'\"\\"])

        async def work(store: ObjectStore) -> None:
            for key in keys:
                await store.put(key, MemoryBlob(key.encode()))
            assert await store.list_keys("") == keys

        using(root, work)
        assert files(root) == {key: key.encode() for key in keys}


class TestListing:
    def test_takes_a_prefix_that_ends_anywhere(self, root: Path) -> None:
        async def work(store: ObjectStore) -> None:
            for key in ("a/bc/1", "a/bd/2", "a/b", "ab/3", "c"):
                await store.put(key, MemoryBlob(b""))
            assert await store.list_keys("") == ["a/b", "a/bc/1", "a/bd/2", "ab/3", "c"]
            assert await store.list_keys("a") == ["a/b", "a/bc/1", "a/bd/2", "ab/3"]
            assert await store.list_keys("a/") == ["a/b", "a/bc/1", "a/bd/2"]
            assert await store.list_keys("a/b") == ["a/b", "a/bc/1", "a/bd/2"]
            assert await store.list_keys("a/bc/") == ["a/bc/1"]
            assert await store.list_keys("a/b/") == []
            assert await store.list_keys("nothing/here") == []

        using(root, work)

    def test_passes_by_lost_and_found_which_only_root_may_read(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("lost+found", "db/lost+found"):
            (root / name).mkdir(parents=True)
        scandir = os.scandir

        def guarded(path: str) -> Any:
            if path.rstrip("/").endswith("lost+found"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", guarded)
        assert using(root, lambda store: store.list_keys("l")) == []
        assert "permission" in str(using(root, lambda store: raised(store.list_keys("db/"))))

    def test_of_a_store_that_was_never_written_to_is_empty(self, root: Path) -> None:
        assert using(root, lambda store: store.list_keys("")) == []

    def test_cannot_leave_the_root(self, root: Path) -> None:
        with pytest.raises(ValueError, match="key"):
            using(root, lambda store: store.list_keys("../"))


class TestDelete:
    def test_removes_the_object_and_no_other(self, root: Path) -> None:
        async def work(store: ObjectStore) -> None:
            await store.put("a/1", MemoryBlob(b"1"))
            await store.put("a/2", MemoryBlob(b"2"))
            await store.delete("a/1")

        using(root, work)
        assert files(root) == {"a/2": b"2"}

    @pytest.mark.parametrize("key", ["a", "a/b", "file/b"])
    def test_of_something_that_is_not_there_is_fine(self, root: Path, key: str) -> None:
        root.mkdir()
        (root / "file").write_bytes(b"")
        using(root, lambda store: store.delete(key))


class TestExists:
    def test_tells_an_object_from_all_else(self, root: Path) -> None:
        async def work(store: ObjectStore) -> None:
            await store.put("db/a", MemoryBlob(b"1"))
            assert await store.exists("db/a")
            for key in ("db", "db/b", "db/a/b", "other/a"):
                assert not await store.exists(key)
            await store.delete("db/a")
            assert not await store.exists("db/a")

        using(root, work)

    def test_of_a_store_that_was_never_written_to_makes_nothing(self, root: Path) -> None:
        assert using(root, lambda store: store.exists("db/a")) is False
        assert not root.exists()

    def test_that_cannot_tell_raises(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stat(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "stat", stat)
        assert "The disk reports an error" in str(using(root, lambda store: raised(store.exists("db/a"))))

    def test_makes_the_name_durable_that_a_killed_process_gave(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (root / "db").mkdir(parents=True)
        (root / "db/a").write_bytes(b"1")
        synced: list[str] = []
        monkeypatch.setattr(local_files, "sync_directory", synced.append)
        assert using(root, lambda store: store.exists("db/a"))
        assert synced == [str(root / "db"), str(root.parent), str(root)]

    def test_aborts_no_uploads_as_there_are_none(self, root: Path) -> None:
        assert using(root, lambda store: store.abort_uploads("db/a")) == 0


class TestCheck:
    def test_passes_by_what_others_have_in_the_staging_directory(self, root: Path) -> None:
        staging = root / STAGING_DIRECTORY
        for name in ("lost+found", f"put-{'0' * 32}.tmp"):
            (staging / name).mkdir(parents=True)
        (staging / f"put-{'1' * 32}.tmp").symlink_to("nowhere")
        using(root, lambda store: store.check())
        assert len(list(staging.iterdir())) == 3

    def test_passes_by_a_staging_directory_that_cannot_be_listed(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def scandir(path: str) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "scandir", scandir)
        using(root, lambda store: store.check())
        assert f"temporary files that a crash left stay in {root}/{STAGING_DIRECTORY}" in caplog.text

    def test_is_made_again_if_another_process_removes_the_staging_directory(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As one does that ends: see `close`."""
        scandir = os.scandir
        removed: list[str] = []

        def removes(path: str) -> Any:
            if not removed:
                removed.append(path)
                os.rmdir(path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", removes)
        using(root, lambda store: store.check())
        assert removed

    def test_warns_once_of_a_file_system_that_does_not_tell_upper_from_lower_case(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """There `default/CPU` and `default/cpu` are one folder, and files of one batch may have one name."""
        lexists = os.path.lexists

        def folded(path: str) -> bool:
            folder, name = os.path.split(path)
            return lexists(folder) and name.lower() in {other.lower() for other in os.listdir(folder)}

        async def check_twice(store: LocalStore) -> None:
            await store.check()
            await store.check()

        using(root, check_twice)
        assert not caplog.text
        monkeypatch.setattr(os.path, "lexists", folded)
        using(root, check_twice)
        assert caplog.text.count("differ only in upper and lower case") == 1

    def test_of_a_good_store_leaves_no_trace(self, root: Path) -> None:
        using(root, lambda store: store.check())
        assert list(root.iterdir()) == []

    def test_removes_what_a_killed_writer_left_and_nothing_else(self, root: Path) -> None:
        with self._start_writer(root) as writer:
            self._wait_until_it_writes(writer)
            (left,) = (root / STAGING_DIRECTORY).iterdir()
            note = root / STAGING_DIRECTORY / "note.txt"
            note.write_text("somebody else's")
            using(root, lambda store: store.check())
            assert left.exists(), "its writer is alive"
            writer.send_signal(signal.SIGKILL)
        using(root, lambda store: store.check())
        assert files(root) == {f"{STAGING_DIRECTORY}/note.txt": b"somebody else's"}

    @staticmethod
    def _start_writer(root: Path) -> subprocess.Popen[str]:
        """A process in the middle of a put, at its second chunk."""
        script = (
            "import asyncio, os, sys\n"
            "from arcpipe.storage.local import LocalStore\n"
            "class Endless:\n"
            "    size = 1 << 30\n"
            "    def read_at(self, offset, length):\n"
            "        if offset:\n"
            "            print('writing', flush=True)\n"
            "            sys.stdin.read()\n"
            "            os._exit(1)  # the test is over\n"
            "        return bytes(length)\n"
            "asyncio.run(LocalStore(sys.argv[1]).put('a', Endless()))\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", script, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )

    @staticmethod
    def _wait_until_it_writes(writer: subprocess.Popen[str]) -> None:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"


class TestOpening:
    def test_takes_absolute_and_relative_file_urls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert open_store(f"file://{tmp_path}/a", StorageS3()).url == f"file://{tmp_path}/a"
        assert open_store("file://./a/b", StorageS3()).url == f"file://{tmp_path}/a/b"

    @pytest.mark.parametrize("url", ["", "/data", "file://lake", "ftp://host/x", "s3://", "s3://UP:DOWN@bucket/x"])
    def test_refuses_other_urls_and_names_the_setting(self, url: str) -> None:
        with pytest.raises(ConfigError, match=r"^storage\.url: ") as caught:
            open_store(url, StorageS3())
        assert "DOWN" not in str(caught.value)

    def test_does_not_touch_the_disk(self, root: Path) -> None:
        open_store(f"file://{root}", StorageS3())
        assert not root.exists()


def test_blobs_fit_the_protocol(tmp_path: Path) -> None:
    blobs: list[Blob] = [MemoryBlob(b"12345"), FileBlob(tmp_path / "x"), GatedBlob(1)]
    assert bytes(blobs[0].read_at(1, 3)) == b"234"
    assert bytes(blobs[0].read_at(4, 3)) == b"5"
    assert blobs[0].size == 5

"""Metadata files on a local disk are there whole and durably, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from arcpipe.disk import Disk
from arcpipe.tables.iceberg.file_io import LocalFileIO, path_of
from tests.support.iceberg import assert_becomes_whole_or_nothing


@pytest.mark.parametrize(
    ("location", "path"),
    [("file:///a/b%20c", "/a/b%20c"), ("file:/a", "/a"), ("/a/b", "/a/b")],
)
def test_paths_are_taken_as_they_are(location: str, path: str) -> None:
    assert path_of(location) == path


def test_other_places_are_an_error() -> None:
    with pytest.raises(ValueError, match="is no local file"):
        path_of("s3://bucket/key")


def test_a_file_is_there_when_its_stream_is_closed(tmp_path: Path) -> None:
    files = LocalFileIO()
    output = files.new_output(f"file://{tmp_path}/a/b/c")
    with output.create() as stream:
        stream.write(b"abc")
        assert not output.exists()
    assert (tmp_path / "a/b/c").read_bytes() == b"abc"
    assert len(output) == len(output.to_input_file()) == 3
    with pytest.raises(FileExistsError):
        output.create()
    files.delete(output)
    assert not output.exists()


def test_a_stream_that_failed_leaves_nothing(tmp_path: Path) -> None:
    assert_becomes_whole_or_nothing(LocalFileIO().new_output(f"{tmp_path}/c"))


def test_file_and_folders_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(Disk, "sync_directory", lambda self, path: synced.append(path))
    monkeypatch.setattr(Disk, "fsync", lambda self, fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    with LocalFileIO().new_output(f"{tmp_path}/a/b/c").create() as stream:
        stream.write(b"abc")
    above, folder, file = [str(tmp_path.parent), str(tmp_path)], f"{tmp_path}/a", f"{tmp_path}/a/b/c.tmp"
    assert synced == [*above, folder, file, f"{tmp_path}/a/b"]
    synced.clear()
    with LocalFileIO().new_output(f"{tmp_path}/a/b/c").create(overwrite=True) as stream:
        stream.write(b"abc")
    # A process that died may have made the folder, and not synced its name.
    assert synced == [folder, file, f"{tmp_path}/a/b"]


def test_a_folder_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    files = LocalFileIO()
    for _ in range(2):
        with files.new_output(f"{tmp_path}/a/b").create(overwrite=True) as stream:
            stream.write(b"abc")
        assert (tmp_path / "a/b").read_bytes() == b"abc"
        shutil.rmtree(tmp_path / "a")


def test_a_full_disk_is_an_error_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Disk, "write", full)
    output = LocalFileIO().new_output(f"{tmp_path}/c")
    stream = output.create()
    stream.write(b"abc")
    with pytest.raises(OSError, match="no space"):
        stream.close()
    assert not output.exists()

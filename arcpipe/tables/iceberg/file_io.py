"""The files of a table's metadata on a local disk: written durably, because the catalogue refers to them at once.

pyiceberg's own writer does not sync: after a power cut the catalogue would name a file that is empty. Locations are
URIs whose paths are taken as they are: a percent sign in one is a percent sign.

What an object is to pyiceberg is here, too: it is the same for all object stores.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from pyiceberg.io import FileIO, InputFile, OutputFile
from pyiceberg.typedef import EMPTY_DICT, Properties

from arcpipe import durable
from arcpipe.disk import Disk

_SCHEME = "file://"


@runtime_checkable
class ListsFolders(Protocol):
    """A FileIO of arcpipe's own that lists folders, which pyiceberg's does not promise."""

    def listed(self, folder: str) -> list[tuple[str, float]]:
        """List the files of a folder, without those of its folders: names, and seconds since the epoch."""


def path_of(location: str) -> str:
    """Return the path of a location of a local file.

    Raises:
        ValueError: it is of another kind.
    """
    if location.startswith(_SCHEME):
        return location[len(_SCHEME) :]
    if location.startswith("file:/"):  # as Java's libraries write it
        return location[len("file:") :]
    if location.startswith("/"):
        return location
    raise ValueError(f"{location} is no local file, and the catalogue's warehouse is a local directory")


class LocalFileIO(FileIO):
    """Files of a local disk."""

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        self._disk = Disk()
        self._folders: set[str] = set()  # those that are there, durably

    def new_input(self, location: str) -> LocalInput:
        return LocalInput(location)

    def new_output(self, location: str) -> LocalOutput:
        return LocalOutput(location, self)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        os.unlink(path_of(location if isinstance(location, str) else location.location))

    def write(self, path: str, data: bytes) -> None:
        """Write a file durably; make its folder."""
        folder = os.path.dirname(path)
        if folder not in self._folders:
            self._make(folder)
        # Manifests and their list are in the folder of the metadata that refers to them, and which is written last: its
        # sync makes their names durable, too.
        last = not path.endswith(".avro")
        try:
            durable.replace(self._disk, path, data, sync_directory=last)
        except FileNotFoundError:  # somebody removed the folder
            self._folders.clear()
            self._make(folder)
            durable.replace(self._disk, path, data, sync_directory=last)

    def _make(self, folder: str) -> None:
        durable.make_folder(self._disk, folder, 0o777)  # less the umask, as folders of data files
        self._folders.add(folder)


class LocalInput(InputFile):
    """A file that is read."""

    def __len__(self) -> int:
        return os.stat(path_of(self.location)).st_size

    def exists(self) -> bool:
        return os.path.exists(path_of(self.location))

    def open(self, seekable: bool = True) -> Any:
        return open(path_of(self.location), "rb")


class LocalOutput(OutputFile):
    """A file that is written: it is there, durable and whole, when the stream is closed without an error."""

    def __init__(self, location: str, files: LocalFileIO) -> None:
        super().__init__(location)
        self._files = files
        self._size = -1

    def __len__(self) -> int:
        return self._size if self._size >= 0 else os.stat(path_of(self.location)).st_size

    def exists(self) -> bool:
        return os.path.exists(path_of(self.location))

    def to_input_file(self) -> LocalInput:
        return LocalInput(self.location)

    def create(self, overwrite: bool = False) -> Any:
        if not overwrite and self.exists():
            raise FileExistsError(f"{self.location} exists")
        return OutputStream(self.finish)

    def finish(self, data: bytes) -> None:
        self._files.write(path_of(self.location), data)
        self._size = len(data)


class ObjectFiles(Protocol):
    """The files of an object store. They are small: each is one request, and is in memory meanwhile."""

    def size(self, location: str) -> int:
        """Return the bytes of an object. Raises FileNotFoundError."""

    def read(self, location: str) -> bytes:
        """Read an object. Raises FileNotFoundError."""

    def write(self, location: str, data: bytes) -> None:
        """Put an object."""


class ObjectInput(InputFile):
    """An object that is read."""

    def __init__(self, location: str, files: ObjectFiles) -> None:
        super().__init__(location)
        self._files = files

    def __len__(self) -> int:
        return self._files.size(self.location)

    def exists(self) -> bool:
        try:
            return self._files.size(self.location) >= 0
        except FileNotFoundError:
            return False

    def open(self, seekable: bool = True) -> Any:
        return io.BytesIO(self._files.read(self.location))


class ObjectOutput(OutputFile):
    """An object that is written: it is there, whole, when the stream is closed without an error."""

    def __init__(self, location: str, files: ObjectFiles) -> None:
        super().__init__(location)
        self._files = files
        self._size = -1

    def __len__(self) -> int:
        return self._size if self._size >= 0 else self._files.size(self.location)

    def exists(self) -> bool:
        return self.to_input_file().exists()

    def to_input_file(self) -> ObjectInput:
        return ObjectInput(self.location, self._files)

    def create(self, overwrite: bool = False) -> Any:
        if not overwrite and self.exists():
            raise FileExistsError(f"{self.location} exists")
        return OutputStream(self.finish)

    def finish(self, data: bytes) -> None:
        self._files.write(self.location, data)
        self._size = len(data)


class OutputStream(io.BytesIO):
    """What is written to a file of a table. It is handed over whole at the close, unless there was an error before."""

    def __init__(self, finish: Callable[[bytes], None]) -> None:
        super().__init__()
        self._finish: Callable[[bytes], None] | None = finish

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._finish = None
        self.close()

    def close(self) -> None:
        finish, self._finish = self._finish, None
        if finish is not None:
            finish(self.getvalue())
        super().close()

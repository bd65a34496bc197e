"""Files to load: opened, decompressed, hashed, and watched for changes."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from arcpipe.load.chunks import BadInput
from arcpipe.units import MB

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_PIECE: Final = 1 * MB
_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_COMPRESSED: Final = (".gz", ".zst", ".zstd")


def plain_name(path: Path) -> str:
    """Return a file's name in lower case without the suffix of a compression."""
    name = path.name.lower()
    suffix = os.path.splitext(name)[1]
    return name.removesuffix(suffix) if suffix in _COMPRESSED else name


class Source:
    """One file, as it was when it was hashed."""

    def __init__(self, path: Path) -> None:
        """Look at the file.

        Raises:
            BadInput: it cannot be read, or is no regular file.
        """
        self.path = path
        try:
            found = os.stat(path)
            if not path.is_file():
                raise BadInput(f"{path}: it is no regular file; its content has to stay for a second reading")
            with open(path, "rb") as file:
                start = file.read(4)
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
        self.size = found.st_size
        self.compression = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "")
        self._identity = _identity(found)
        self.digest = ""
        self._raw: IO[bytes] | None = None

    @property
    def plain_name(self) -> str:
        """Return the file's name in lower case without the suffix of a compression."""
        return plain_name(self.path)

    @property
    def read_bytes(self) -> int:
        """Return how much of the file the present reader has read, before decompression."""
        return 0 if self._raw is None or self._raw.closed else self._raw.tell()

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the content, decompressed.

        Raises:
            BadInput: it cannot be read, or is damaged; also while it is read within the block.
        """
        try:
            with open(self.path, "rb") as self._raw, self._decompressed(self._raw) as file:
                yield file
        except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
            raise BadInput(f"{self.path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None

    @contextmanager
    def _decompressed(self, raw: IO[bytes]) -> Iterator[IO[bytes]]:
        if self.compression == "gzip":
            with gzip.GzipFile(fileobj=raw, mode="rb") as unzipped:
                yield io.BufferedReader(unzipped, _PIECE)
        elif self.compression == "zstd":
            with zstd.open(raw, "rb") as file:
                yield io.BufferedReader(file, _PIECE)
        else:
            yield raw

    def hash(self) -> str:
        """Read the whole content, and return its digest. Raises BadInput."""
        if not self.digest:
            digest = hashlib.sha256()
            with self.open() as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
            self.check_unchanged()
            self.digest = digest.hexdigest()[:32]
        return self.digest

    def check_unchanged(self) -> None:
        """Raise BadInput if the file is another one than before, by inode, size or time."""
        try:
            is_same = _identity(os.stat(self.path)) == self._identity
        except OSError:
            is_same = False
        if not is_same:
            raise BadInput(f"{self.path}: it changed while it was loaded; load a file that nobody writes to any more")


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

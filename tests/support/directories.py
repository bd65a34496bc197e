"""Looking at directories that a running server changes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path


def copy_at_one_moment(source: str | Path, where: Path) -> None:
    """Copy a directory in which other threads make, rename and remove files."""
    while True:
        before = sorted(str(path) for path in Path(source).rglob("*"))
        with contextlib.suppress(shutil.Error):  # one of the files has gone
            shutil.copytree(source, where)
            if before == sorted(str(path) for path in Path(source).rglob("*")):
                return
        shutil.rmtree(where)


def batch_files(wal: Path) -> list[str]:
    """List the files in `batches/`, except the spare ones, which stay."""
    return sorted(name for name in os.listdir(wal / "batches") if not re.fullmatch(r"spare-[1-4]", name))

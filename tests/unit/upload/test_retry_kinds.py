"""What a failed step is counted as: a machine that refuses something for now is no bug."""

from __future__ import annotations

import errno

import pytest

from arcpipe.errors import ArcpipeError, StorageError
from arcpipe.upload.retry import kind_of


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("can't start new thread"), "other"),
        (RuntimeError("dictionary changed size during iteration"), "bug"),
        (MemoryError(), "other"),
        (ArcpipeError("it cannot be done now"), "other"),
        (OSError(errno.EIO, "Input/output error"), "disk"),
        (StorageError("the store cannot be reached", "connection"), "connection"),
        (KeyError("name"), "bug"),
    ],
    ids=str,
)
def test_each_failure_is_of_a_kind(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind

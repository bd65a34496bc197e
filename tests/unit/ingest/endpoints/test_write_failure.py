"""The answer to a client whose group could not be written."""

from __future__ import annotations

import errno

import pytest

from arcpipe.errors import CommitFailed
from arcpipe.ingest.endpoints.write import write_failure


@pytest.mark.parametrize(
    ("number", "status", "code", "seconds"),
    [
        (errno.ENOSPC, b"507", b'"no_space"', b"10"),
        (errno.EDQUOT, b"507", b'"no_space"', b"10"),
        (errno.EIO, b"503", b'"log_failure"', b"5"),
        (errno.EROFS, b"503", b'"log_failure"', b"5"),
    ],
)
@pytest.mark.parametrize("maybe", [False, True])
def test_nothing_was_written_is_only_said_where_it_is_certain(
    number: int, status: bytes, code: bytes, seconds: bytes, maybe: bool
) -> None:
    answer = write_failure(CommitFailed(OSError(number, "text"), may_have_been_written=maybe))
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert code in answer
    assert b"Retry-After: " + seconds + b"\r\n" in answer
    assert (b"nothing was written" in answer) is not maybe
    assert (b"the records may have been written; a retry may store them twice" in answer) is maybe


def test_an_error_without_a_number_is_told_by_its_text() -> None:
    failed = CommitFailed(OSError("the disk is gone"), may_have_been_written=False)
    assert b"the disk is gone" in write_failure(failed)

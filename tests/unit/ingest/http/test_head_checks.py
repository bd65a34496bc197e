"""Checks of heads: what is remembered of them."""

from __future__ import annotations

from arcpipe.ingest.http.head_checks import check_host


def test_hosts_of_many_bytes_are_valid_and_not_remembered() -> None:
    """A worker kept 1,024 of them, of 32 kB each with the default settings."""
    known: set[bytes] = set()
    for number in range(2000):
        check_host({b"host": b"%d.example:8000" % number}, False, known)
        check_host({b"host": b"%d." % number + b"a" * 30_000}, False, known)
    assert len(known) == 1024
    assert sum(map(len, known)) < 1024 * 300

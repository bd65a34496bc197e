"""The ledger: numbers only grow, none is issued twice, and a copy of the directory issues others."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcpipe import durable
from arcpipe.disk import Disk
from arcpipe.errors import DamagedFile, UnknownVersion
from arcpipe.tables import ledger as module
from arcpipe.tables.ledger import MOST_RANGES, Ledger
from arcpipe.wal.checksum import with_checksum
from arcpipe.wal.directory import NodeIdentity

DISK = Disk()


def write(path: str, data: bytes) -> None:
    durable.replace(DISK, path, data)


def issue(ledger: Ledger, boot: int = 1, node: str = "n") -> int:
    return ledger.issue(NodeIdentity(node, boot), write)


def test_numbers_grow_over_starts_and_processes(tmp_path: Path) -> None:
    seqs = []
    for boot in (1, 1, 2, 5, 5):
        ledger = Ledger.load(tmp_path, DISK)
        seqs += [issue(ledger, boot) for _ in range(3)]
    assert seqs == sorted(set(seqs))
    assert [seq >> 32 for seq in seqs] == [1] * 6 + [2] * 3 + [5] * 6
    loaded = Ledger.load(tmp_path, DISK)
    assert all(map(loaded.has_issued, seqs))
    assert not any(loaded.has_issued(seq) for seq in (0, 1, seqs[0] - 1, seqs[5] + 1, seqs[-1] + 1, 3 << 32, 6 << 32))


def test_numbers_grow_when_the_node_gets_another_identity(tmp_path: Path) -> None:
    """The starts of a new identity are counted from 1 again."""
    ledger = Ledger.load(tmp_path, DISK)
    first = issue(ledger, 7)
    second = issue(ledger, 1, "other")
    third = issue(Ledger.load(tmp_path, DISK), 2, "other")
    assert first < second < third


def test_a_copy_of_the_directory_issues_other_numbers(tmp_path: Path) -> None:
    """Both count the same start, and each sees in a marker of the other that it never issued it."""
    original = Ledger.load(tmp_path, DISK)
    issue(original, 1)
    content = Path(original.path).read_bytes()
    later = [issue(original, 1), *(issue(Ledger.load(tmp_path, DISK), 2) for _ in range(5))]
    Path(original.path).write_bytes(content)  # restored from a copy
    restored = Ledger.load(tmp_path, DISK)
    own = [issue(restored, 2) for _ in range(5)]
    assert not any(map(restored.has_issued, later))
    assert set(own).isdisjoint(later)


def test_a_number_counts_only_once_it_is_durable(tmp_path: Path) -> None:
    ledger = Ledger.load(tmp_path, DISK)
    issue(ledger)

    def fail(path: str, data: bytes) -> None:
        raise OSError(28, "no space")

    before = ledger.last
    with pytest.raises(OSError, match="no space"):
        ledger.issue(NodeIdentity("n", 1), fail)
    assert ledger.last == before
    assert issue(ledger) == before + 1


def test_the_file_stays_small_and_old_eras_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RANGES", 5)
    ledger = Ledger.load(tmp_path, DISK)
    seqs = [issue(ledger, boot) for boot in range(1, 20)]
    loaded = Ledger.load(tmp_path, DISK)
    assert all(map(loaded.has_issued, seqs))
    assert not loaded.has_issued(20 << 32 | 1)
    assert not loaded.has_issued(5)
    assert MOST_RANGES * 45 < 64 * 1024  # the spare file for a full disk


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"", DamagedFile), (b"{}", DamagedFile), (with_checksum(b'{"version":9}'), UnknownVersion)],
)
def test_a_ledger_that_cannot_be_used_is_never_begun_anew(tmp_path: Path, data: bytes, error: type[Exception]) -> None:
    (tmp_path / "ledger.json").write_bytes(data)
    with pytest.raises(error):
        Ledger.load(tmp_path, DISK)

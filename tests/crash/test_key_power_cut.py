"""A power cut at any moment of uploads with idempotency keys: each key's record is in the store once.

The uploader runs under the recorder of `test_power_cut`, on segments that repeat the keys of those before. On each disk
that a power cut may leave, it starts again, and then gets a retry of every request.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from arcpipe import durable
from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.disk import Disk
from arcpipe.upload.key_window import KeyWindow
from arcpipe.wal.directory import SEALED, SegmentName, WALDirectory
from arcpipe.wal.format import (
    FILE_HEADER,
    EndMeta,
    KeyedPrefix,
    Prefix,
    StartMeta,
    make_identity,
    pack_end,
    pack_entry,
    pack_start,
)
from tests.crash.entries import make_body, shipped_in
from tests.crash.judge import _ship, _start
from tests.crash.power_cut import State, states_after_kills, states_after_power_cuts
from tests.crash.recording import Note, RecordingDisk
from tests.crash.scenario import FOLDER, hurried
from tests.crash.shipping import MemoryStore, Shipping
from tests.crash.system_calls import mounted

ROUNDS = 5
NEW = 4  # requests of a round
NOW = 1_795_000_000_000_000  # µs


def seal(directory: WALDirectory, seq: int, numbers: Iterable[int]) -> None:
    """Write a sealed segment, durably, with an entry for each number, whose key is the number."""
    identity = make_identity(1, seq)
    stamp = NOW + seq * 1_000_000
    content = FILE_HEADER + pack_start(StartMeta("node", 1, seq, stamp, "test", identity))
    plain, entries = Prefix(KIND_COLUMNAR, "db", {}), 0
    plain.bind(identity)
    for entries, number in enumerate(numbers, 1):
        key = b"key-%d" % number
        content += pack_entry(KeyedPrefix(plain, None, len(key)), make_body(number, 300), stamp + entries, key)
    content += pack_end(EndMeta(entries, entries, len(content), identity=identity), stamp + entries + 1)
    durable.replace(directory.disk, os.path.join(directory.path, f"{SegmentName.at(1, stamp, seq)}{SEALED}"), content)


def record() -> RecordingDisk:
    """Upload some segments, one after the other."""
    disk = RecordingDisk(seed="keys")
    store = MemoryStore()
    store.on_put = lambda key, content: disk.note("put", (key, content))
    store.on_delete = lambda key: disk.note("deleted", key)
    with mounted(disk), hurried():
        directory = WALDirectory(os.path.join(disk.base, FOLDER))
        directory.make()
        shipping = Shipping(directory, store, recycle=False)
        shipping.node = directory.next_boot()
        for seq in range(1, ROUNDS + 1):
            first = seq * NEW
            new = range(first, first + NEW)
            seal(directory, seq, [*(number for number in range(first - NEW, first) if seq > 1), *new, first])
            disk.note("durable", list(new))
            while shipping.work():
                pass
        assert counted(store) == Counter(range(NEW, NEW * (ROUNDS + 1)))
    return disk


def counted(store: MemoryStore) -> Counter[int]:
    found: Counter[int] = Counter()
    for name, content in store.objects.items():
        found.update(shipped_in(name, content).numbers)
    return found


def judge(recorded: RecordingDisk, state: State) -> None:
    objects: dict[str, bytes] = {}
    sent: list[int] = []
    for note in recorded.log[: state.after]:
        if isinstance(note, Note) and note.kind == "put":
            objects[note.value[0]] = note.value[1]
        elif isinstance(note, Note) and note.kind == "deleted":
            objects.pop(note.value, None)
        elif isinstance(note, Note) and note.kind == "durable":
            sent += note.value
    disk = RecordingDisk(state.image)
    store = MemoryStore(objects)
    with mounted(disk), hurried():
        directory = WALDirectory(os.path.join(disk.base, FOLDER))
        reported: list[str] = []
        node, _ = _start(directory, reported, disk)
        reported += _ship(directory, store, node)
        seal(directory, 1000, sent)
        reported += _ship(directory, store, node)
    where = f"{state.kind} after operation {state.after}: {recorded.log[max(0, state.after - 6) : state.after]!r:.900}"
    found = counted(store)
    doubled = sorted(number for number, count in found.items() if count > 1)
    assert not doubled, f"{doubled} are there twice; {where}"
    assert not set(sent) - set(found), f"{sorted(set(sent) - set(found))} are lost; {where}"
    assert not reported, f"{reported}; {where}"


def try_states(limit: int, on_state: Callable[[RecordingDisk, State], None]) -> int:
    recorded = record()
    states = [*states_after_power_cuts(recorded, random.Random(21), limit)]
    kills = [*states_after_kills(recorded)]
    states += random.Random(22).sample(kills, min(len(kills), limit // 2))
    for state in states:
        on_state(recorded, state)
    return len(states)


@pytest.mark.slow
def test_after_a_power_cut_no_retry_is_a_second_record(
    quiet: None, crash_states: int, record_property: Callable[[str, object], None]
) -> None:
    record_property("states", try_states(max(60, crash_states // 100), judge))


# Planted bugs


class LazyDisk(Disk):
    """A disk that forgets to sync the folder of keys."""

    def sync_directory(self, path: str) -> None:
        if not path.endswith("idempotency"):
            super().sync_directory(path)


def without_sync(keep: Callable[..., None]) -> Callable[..., None]:
    def keep_lazily(self: KeyWindow, *arguments: object) -> None:
        disk, self._directory.disk = self._directory.disk, LazyDisk()
        keep(self, *arguments)
        self._directory.disk = disk

    return keep_lazily


def forgetting(finish: Callable[..., None]) -> Callable[..., None]:
    def finish_later(self: KeyWindow, batch_id: str) -> None:
        """Keep the keys at the next start only."""

    return finish_later


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bug"), [("_keep", without_sync), ("finish", forgetting)], ids=["no sync of the folder", "never kept"]
)
def test_it_is_caught_if_keys_are_not_kept(
    quiet: None, monkeypatch: pytest.MonkeyPatch, name: str, bug: Callable[..., Callable[..., None]]
) -> None:
    monkeypatch.setattr(KeyWindow, name, bug(getattr(KeyWindow, name)))
    with pytest.raises(AssertionError, match="are there twice"):
        try_states(400, judge)

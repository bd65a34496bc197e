"""A program is killed at any operation, the next one goes on, and then the power fails.

What the killed one had not synced is in the page cache: the next one sees it, and relies on it. So it has to be made
durable by then, or the power cut takes what it was built on.
"""

from __future__ import annotations

import os
import random
from typing import Any, Final

import pytest

from arcpipe.counters import Uploader as UploaderBlock
from arcpipe.upload.journal import Journal
from arcpipe.upload.key_window import KeyWindow
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.recovery import recover_at_start
from tests.crash import judge as judge_module
from tests.crash.judge import expectation, judge
from tests.crash.power_cut import Model, NameOperation, states_after_power_cuts
from tests.crash.recording import Note, RecordingDisk, Rename
from tests.crash.scenario import FOLDER, Plan, Run, hurried
from tests.crash.shipping import MemoryStore, Shipping
from tests.crash.system_calls import mounted
from tests.crash.trying import explain
from tests.support.sets import long

KEYED = Plan(76, "fsync", sizes="any", keyed=True)
PLANS = [
    KEYED,
    Plan(75, "fdatasync", sizes="any", slots=2, ahead=1),
    Plan(71, "fdatasync", sizes="any", slots=2),
    Plan(72, "fdatasync", sizes="same"),
    Plan(73, "fsync", sizes="sectors", recycle=False),
    Plan(74, "async", sizes="any", slots=2),
    Plan(77, "async", sizes="any", slots=2, keyed=True),
    Plan(78, "fdatasync", sizes="any", keyed=True, ahead=1),
]
_BATCHES: Final = 20  # more than are left
_ENDINGS: Final = {"wal", "sealed", "recovered", "json", "uploaded", "copy", "journal", "claims", "keys", "tmp"}
_LATER: Final = 1000  # a number of a batch that none had before


@pytest.fixture(autouse=True)
def fresh(quiet: None) -> None:
    judge_module.forget()


def moments_of_a_kill(disk: RecordingDisk) -> dict[str, list[int]]:
    """Return the positions after which something is in the page cache only, by what that is."""
    model = Model(disk)
    found: dict[str, list[int]] = {}
    for position, operation in enumerate(disk.log):
        if isinstance(operation, Note):
            continue
        model.apply(operation)
        unsynced = {f"name {kind_of(target_of(one.operation))}" for one in model.unsynced}
        for path, file in model.as_running().items():
            if file is not None and model.files[file].is_open():
                unsynced.add(f"content {kind_of(path)}")
        for kind in unsynced:
            found.setdefault(kind, []).append(position + 1)
    return found


def target_of(operation: NameOperation) -> str:
    return operation.target if isinstance(operation, Rename) else operation.path


def kind_of(path: str) -> str:
    """Return the folder of a file, and what the endings of its name say."""
    folder, _, name = path.rpartition("/")
    return f"{os.path.basename(folder)} {'.'.join(ending for ending in name.split('.') if ending in _ENDINGS)}"


def go_on(disk: RecordingDisk, objects: dict[str, bytes], plan: Plan, *, is_whole: bool) -> None:
    """Start the server on what a kill left, or only its uploader, and ship what there is."""
    store = MemoryStore(objects)
    store.on_put = lambda key, content: disk.note("put", (key, content))
    store.on_delete = lambda key: disk.note("deleted", key)
    with mounted(disk), hurried():
        directory = WALDirectory(os.path.join(disk.base, FOLDER))
        node = None if is_whole else directory.node()
        if node is None:
            directory.make()
            node = directory.next_boot()
            recover_at_start(directory)
        shipping = Shipping(directory, store, plan.recycle, plan.ahead)
        shipping.node = node
        shipping.counters.uploader[UploaderBlock.BATCH_SEQ] = _LATER
        for _ in range(_BATCHES):
            shipping.work()
            if shipping.has_nothing_to_do:
                break
        shipping.die()


def name_of(plan: Plan) -> str:
    return f"{plan.sync_mode}-{plan.sizes}-{plan.slots}-{plan.seed}"


@pytest.mark.parametrize("plan", [*PLANS[:2], *(pytest.param(plan, marks=long) for plan in PLANS[2:])], ids=name_of)
def test_what_a_killed_program_left_unsynced_is_durable_before_it_is_relied_on(plan: Plan, crash_states: int) -> None:
    assert violation(plan, "", max(1, crash_states // 10_000)) == ""


def violation(plan: Plan, kind: str, count: int) -> str:
    """Return the first violation after kills of this kind, `count` of each; the empty string without one."""
    first = Run(plan).record()
    rng = random.Random(plan.seed)
    places = {name: places for name, places in moments_of_a_kill(first).items() if kind in name}
    assert places
    kills = {after for some in places.values() for after in rng.sample(some, min(count, len(some)))}
    for after in sorted(kills):
        disk = RecordingDisk.killed(first, after)
        go_on(disk, expectation(disk, after, plan, "kill").objects, plan, is_whole=rng.random() < 0.3)
        for state in states_after_power_cuts(disk, rng, 10, since=after):
            try:
                judge(state.image, expectation(disk, state.after, plan, "second power cut"))
            except AssertionError as error:
                return f"killed after {after}: {explain(error, disk, plan, state)}"
    return ""


# Each of these plants a bug and demands that it is found.


@pytest.mark.slow
def test_it_is_noticed_if_a_journal_that_was_read_is_not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says "uploaded", and the keys of its batch are others' keys then: all its records would be repeats."""
    monkeypatch.setattr(Journal, "settle", lambda self: None)
    assert "acknowledged and lost" in violation(KEYED, "content batches journal", 100)


@pytest.mark.slow
def test_it_is_noticed_if_the_names_of_files_of_keys_are_not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    load = KeyWindow.load

    def load_without_sync(self: KeyWindow, *arguments: Any) -> None:
        disk = self._directory.disk
        with monkeypatch.context() as patched:
            patched.setattr(disk, "sync_directory", lambda path: None)
            load(self, *arguments)

    monkeypatch.setattr(KeyWindow, "load", load_without_sync)
    assert "are there twice" in violation(KEYED, "name idempotency claims", 100)

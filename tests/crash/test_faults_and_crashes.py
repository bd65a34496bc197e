"""A fault at one operation, then a crash at any later moment: what was said to clients stays true.

The program runs on a disk that fails at the n-th change (before or after it took effect, or halfway, once, some times
or for good), and at every moment behind it is killed, loses its power, or goes on to its end. Then it starts on what is
there. `--crash-states N` (or ARCPIPE_CRASH_STATES) sets how many disks are tried, together with `test_power_cut`.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator

import pytest

from tests.crash import judge as judge_module
from tests.crash.judge import expectation, judge
from tests.crash.power_cut import State, states_after_kills, states_after_power_cuts
from tests.crash.recording import CHANGES, Fault, Note, RecordingDisk
from tests.crash.scenario import Plan, Run
from tests.crash.test_power_cut import explain

PLANS = [
    Plan(101, "fdatasync", sizes="any", steps=70),
    Plan(102, "fdatasync", sizes="sectors", slots=2, steps=70),
    Plan(103, "fsync", sizes="same", steps=70),
    Plan(104, "fdatasync", sizes="any", recycle=False, slots=2, steps=70),
    Plan(105, "async", sizes="any", steps=90),
    Plan(106, "async", sizes="sectors", slots=2, recycle=False, steps=90),
]
LASTING = (1, 2, 5, 40)
_PLACES = 12  # of faults, per plan
_name = "{0.sync_mode}-{0.sizes}-{0.slots}-{0.seed}".format


@pytest.fixture(autouse=True)
def fresh(quiet: None) -> None:
    judge_module.forget()


def faults_of(plan: Plan, count: int) -> Iterator[Fault]:
    """Faults all over a plan's run, of all kinds; the same ones each time."""
    rng = random.Random(plan.seed)
    calls = Run(plan).record().calls
    changes = sum(calls[kind] for kind in CHANGES)
    syncs = calls["fdatasync"] + calls["fsync"]
    for number in range(count):
        times = rng.choice(LASTING)
        error = rng.choice((errno.EIO, errno.ENOSPC))
        if number % 3 == 0:  # what a failed sync leaves is the hardest
            yield Fault(frozenset({"fdatasync", "fsync"}), rng.randrange(syncs), times, error=error)
        elif number % 3 == 1:
            yield Fault(frozenset({"write"}), rng.randrange(calls["write"]), times, "short", error)
        else:
            yield Fault(CHANGES, rng.randrange(changes), times, rng.choice(("before", "after")), error)


def states_behind(disk: RecordingDisk, rng: random.Random, limit: int, behind: int) -> Iterator[State]:
    """Kills and power cuts behind an operation, about `limit`, and the end of the run, if it came to one."""
    kills = list(states_after_kills(disk, behind))
    yield from rng.sample(kills, min(limit // 2, len(kills)))
    yield from states_after_power_cuts(disk, rng, limit // 2, behind, stale=True)
    if isinstance(disk.log[-1], Note) and disk.log[-1].kind == "ended":
        yield State(disk.image(), len(disk.log), "end")


def first_fault(disk: RecordingDisk) -> int:
    """Where something failed first; the recording's end if nothing did."""
    struck = (at for at, operation in enumerate(disk.log) if isinstance(operation, Note) and operation.kind == "fault")
    return next(struck, len(disk.log))


def check(disk: RecordingDisk, plan: Plan, fault: object, states: Iterator[State]) -> int:
    """Judges states; AssertionError says which fault and which state. How many there were."""
    count = 0
    for state in states:
        count += 1
        try:
            judge(state.image, expectation(disk, state.after, plan, state.kind))
        except AssertionError as error:
            raise AssertionError(f"{explain(error, disk, plan, state)}\nfault: {fault!r}") from error
    return count


@pytest.mark.parametrize("plan", PLANS, ids=_name)
def test_a_fault_and_then_a_crash_make_nobody_a_liar(
    plan: Plan, crash_states: int, record_property: Callable[[str, object], None]
) -> None:
    each = max(8, crash_states * 3 // 10 // len(PLANS) // _PLACES)
    tried = 0
    for fault in faults_of(plan, _PLACES):
        disk = Run(plan, fault).record()
        behind = max(0, min(first_fault(disk), len(disk.log) - each))
        tried += check(disk, plan, fault, states_behind(disk, random.Random(plan.seed), each, behind))
    record_property("states", tried)

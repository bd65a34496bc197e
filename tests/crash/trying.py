"""Trying many states of a disk, each of which is judged."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.crash.judge import expectation, judge
from tests.crash.power_cut import State, states_after_power_cuts
from tests.crash.recording import RecordingDisk
from tests.crash.scenario import Plan


def try_states(disk: RecordingDisk, plan: Plan, limit: int, on_state: Callable[[State], None]) -> int:
    """Calls back with states that a power cut may leave; how many there were."""
    count = 0
    for state in states_after_power_cuts(disk, random.Random(plan.seed), limit):
        on_state(state)
        count += 1
    return count


def judging(disk: RecordingDisk, plan: Plan) -> Callable[[State], None]:
    def on_state(state: State) -> None:
        try:
            judge(state.image, expectation(disk, state.after, plan, state.kind))
        except AssertionError as error:
            raise AssertionError(explain(error, disk, plan, state)) from error

    return on_state


def explain(error: AssertionError, disk: RecordingDisk, plan: Plan, state: State) -> str:
    operations = "\n  ".join(repr(operation)[:160] for operation in disk.log[max(0, state.after - 25) : state.after])
    return f"{error}\n{plan}, {state.kind} after operation {state.after}:\n  {operations}"

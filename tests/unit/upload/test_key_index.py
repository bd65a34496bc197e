"""Keys that come by and by are found as those of a dictionary would be, however their runs were merged."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.upload.key_files import RECORD, Records
from arcpipe.upload.key_index import KeyIndex, find_in, is_found
from tests.support.sets import IS_LONG

WINDOW = 5


def records(keys: list[tuple[int, int]], second: int) -> Records:
    """Records of keys, each given by the two halves of its hash."""
    made = np.zeros(len(keys), RECORD)
    made["high"], made["low"] = [high for high, _ in keys], [low for _, low in keys]
    made["second"] = second
    return made


keys = st.tuples(st.integers(0, 5), st.integers(0, 3))


@settings(max_examples=1_000 if IS_LONG else 30, deadline=None)
@given(st.lists(st.lists(keys, min_size=1, max_size=6, unique=True), min_size=1, max_size=40))
def test_a_key_is_found_for_as_long_as_its_last_claim_is_young(additions: list[list[tuple[int, int]]]) -> None:
    index = KeyIndex()
    last: dict[tuple[int, int], int] = {}
    for second, added in enumerate(additions):
        index.add(records(added, second))
        last |= dict.fromkeys(added, second)
    everything = [(high, low) for high in range(6) for low in range(4)]
    found = find_in(index.runs, records(everything, len(additions)), WINDOW)
    wanted = [key in last and len(additions) - last[key] <= WINDOW for key in everything]
    assert (found is not None and is_found(found).tolist()) == (any(wanted) and wanted)
    assert index.count == sum(map(len, additions))


def test_many_additions_are_few_runs() -> None:
    index = KeyIndex()
    rng = np.random.default_rng(1)
    for size in rng.integers(1, 50, 600).tolist():
        index.add(records([(int(high), 0) for high in rng.integers(0, 1 << 62, size)], 0))
    assert len(index.runs) < 32
    assert sum(len(run.high) for run in index.runs) == index.count
    assert all((run.high[1:] > run.high[:-1]).all() for run in index.runs)

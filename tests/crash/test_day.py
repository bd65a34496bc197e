"""A day of operations in some minutes: a seeded sequence of them under load, and after each what has to be true.

Each sequence goes through all operations, in a new order each time. In the whole suite it is a short one; `make day`
has a long one, ten minutes for each store. `ARCPIPE_TEST_DAY_SECONDS` says how long, `ARCPIPE_TEST_SEED` chooses
another sequence, and `ARCPIPE_TEST_DAYS` how many seeds are tried from that on. A failure prints the seed and the
operations so far; `ARCPIPE_TEST_DAY_OPERATIONS="kill_worker upgrade"` has only these, for a smaller case of the same.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.day.instance import Instance, Lake
from tests.crash.day.load import Load
from tests.crash.day.model import Effects, Model
from tests.crash.day.operations import Operations
from tests.crash.io_faults import FaultyIO
from tests.support.s3server import S3Bucket
from tests.support.set_clock import needs_libfaketime
from tests.support.sets import long

SEED = int(os.environ.get("ARCPIPE_TEST_SEED", "1"))
DAYS = int(os.environ.get("ARCPIPE_TEST_DAYS", "1"))
SECONDS = float(os.environ.get("ARCPIPE_TEST_DAY_SECONDS", "6"))
ONLY = os.environ.get("ARCPIPE_TEST_DAY_OPERATIONS", "").split()
LONG_SECONDS = 120

pytestmark = [needs_libfaketime, pytest.mark.timeout(600 + SECONDS * 4)]


def chosen(operations: list[Callable[[], Effects]]) -> list[Callable[[], Effects]]:
    found = [operation for operation in operations if operation.__name__ in ONLY or not ONLY]
    return found or pytest.skip(f"there is none of {ONLY} with this store")


def endless(operations: list[Callable[[], Effects]], chance: random.Random) -> Iterator[Callable[[], Effects]]:
    """All of them, again and again in another order."""
    while True:
        yield from chance.sample(operations, len(operations))


@pytest.mark.parametrize("store", ["local", pytest.param("s3", marks=long)])
@pytest.mark.parametrize("seed", range(SEED, SEED + DAYS))
def test_a_day_of_random_operations(
    seed: int, store: str, tmp_path: Path, faults: FaultyIO, request: pytest.FixtureRequest
) -> None:
    bucket: S3Bucket | None = request.getfixturevalue("s3") if store == "s3" else None
    chance = random.Random(f"{seed} {store}")
    instance = Instance(tmp_path, faults, bucket)
    done: list[str] = []
    began = time.monotonic()
    try:
        instance.start()
        load = Load(instance)
        model = Model(instance, load)
        model.note_start(began)
        load.start()
        model.check(Effects())
        operations = Operations(instance, load, model, chance, is_long=bool(ONLY) or SECONDS >= LONG_SECONDS)
        for operation in endless(chosen(operations.all), chance):
            done.append(f"{time.monotonic() - began:.1f} {operation.__name__}")
            model.check(operation())
            if time.monotonic() - began > SECONDS:
                break
        load.end()
        instance.stop()
        model.judge_stop(0)
        model.judge_lake(Lake(instance, "at the end"))
        everything = (tmp_path / "log").read_text(errors="replace")
        assert "Traceback" not in everything
        assert "[CRITICAL]" not in everything
    finally:
        print(f"seed {seed}, {store}: {len(done)} operations, each with its second: {', '.join(done)}")
        instance.close()

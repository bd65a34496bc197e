"""A compactor is killed, or meets an error, at each step; the next one leaves every row once, and nothing else."""

from __future__ import annotations

import functools
import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.crash.compaction_process import FAILED, Compactors
from tests.crash.steps import Step
from tests.support.compaction import HOUR_US, NODE, OTHER_NODE, file_bytes, key_of, make_wal, table_of
from tests.support.lake import lake_files, lake_rows, numbers
from tests.support.s3proxy import FAULTS, FaultyProxy
from tests.support.s3server import S3Bucket
from tests.support.sets import long
from tests.support.stores import Store, local_store, s3_store

PLANS = "arcpipe.compaction.plan:Plans."
MERGE = "arcpipe.compaction.merge:Merge."
DISK = "arcpipe.disk:Disk."
# Pattern of the state in a plan that is written.
PLANNED, COMMITTED = (f"state='{word}'" for word in ("planned", "committed"))


class Point(NamedTuple):
    """A step of a merge, by its name."""

    name: str
    step: Step


def points(store: str) -> Iterator[Point]:
    """List every step, in their order. The merge has two outputs."""
    for word, pattern in (("planned", PLANNED), ("committed", COMMITTED)):
        for when in ("before", "after"):
            yield Point(f"{when} the plan is {word}", Step(f"{PLANS}write", when, 1, pattern))
    for number, word in enumerate(("planned", "committed"), 1):
        yield Point(
            f"before the rename of the plan that is {word}", Step(f"{DISK}rename", "before", number, "plan.json")
        )
        yield Point(f"after the rename of the plan that is {word}", Step(f"{DISK}rename", "after", number, "plan.json"))
    for nth in (1, 2):
        yield Point(f"before output {nth} is hidden", Step(f"{store}.put", "before", nth, r"\.new"))
        yield Point(f"after output {nth} is hidden", Step(f"{store}.put", "after", nth, r"\.new"))
        yield Point(f"before output {nth} is renamed", Step(f"{store}.move", "before", nth))
        yield Point(f"after output {nth} is renamed", Step(f"{store}.move", "after", nth))
    yield Point("before the outputs are verified", Step(f"{MERGE}_verify", "before"))
    yield Point("after the outputs are verified", Step(f"{MERGE}_verify", "after"))
    yield Point("after all outputs are visible", Step(f"{MERGE}_publish", "after"))
    yield Point("before the inputs are deleted", Step(f"{MERGE}_delete_inputs", "before"))
    yield Point("after the inputs are deleted", Step(f"{MERGE}_delete_inputs", "after"))
    yield Point("before the plan is removed", Step(f"{PLANS}remove", "before"))
    yield Point("after the plan is removed", Step(f"{PLANS}remove", "after"))


LOCAL = [
    *points("arcpipe.storage.local:LocalStore"),
    Point("between two deletes", Step("arcpipe.storage.local_files:unlink", "before", 3)),
    Point(
        "after a rename, before its sync", Step("arcpipe.storage.local:LocalStore._sync_entries", "before", 1, "merged")
    ),
]
S3 = [
    *points("arcpipe.storage.s3:S3Store"),
    Point("before the request that deletes", Step("arcpipe.storage.s3:S3Store._delete_some", "before", 1, "parquet")),
    Point("after a copy", Step("arcpipe.storage.s3_client:S3Client.require_taken", "before", 1, "CopyObject|merged")),
]


@pytest.fixture(scope="module")
def compactors() -> Iterator[Compactors]:
    with Compactors() as running:
        yield running


class Lake(NamedTuple):
    """A lake with one closed hour, of two nodes, and what a reader has to see."""

    store: Store
    wal: Path
    rows: list[dict[str, Any]]
    settings: dict[str, object]

    def seen(self) -> list[dict[str, Any]]:
        return sorted(lake_rows(self.store.read()), key=lambda row: row["n"])

    def numbers(self) -> set[int]:
        return set(numbers(self.store.read()))


@functools.cache
def files() -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Make the files of the hour, by key, and their rows: small files that become two, and two of another node."""
    made: dict[str, bytes] = {}
    rows: list[dict[str, Any]] = []
    pick = random.Random(7)
    for number in range(1, 8):
        node = NODE if number < 6 else OTHER_NODE
        new: list[dict[str, Any]] = [
            {
                "time": pick.randrange(3_600_000_000),
                "host": f"h{pick.randrange(20)}",
                "n": number * 100_000 + n,
                "v": pick.random(),
                "w": pick.random(),
            }
            for n in range(1_600 if number < 6 else 10)
        ]
        rows += [row | {"time": row["time"] + HOUR_US} for row in new]
        with tempfile.TemporaryDirectory() as directory:
            made[key_of(number, node=node)] = file_bytes(table_of(new), Path(directory))
    return made, sorted(rows, key=lambda row: row["n"])


def fill(store: Store, directory: Path, put: Any) -> Lake:
    made, rows = files()
    for key, data in made.items():
        put(key, data)
    settings = store.settings | {
        "wal_dir": str(directory / "wal"),
        "wal_min_free_mb": 0,
        "parquet_row_group_rows": 2_000,
    }
    return Lake(store, make_wal(directory), rows, settings)


@pytest.fixture
def local(tmp_path: Path) -> Lake:
    from tests.support.compaction import put

    return fill(local_store(tmp_path), tmp_path, lambda key, data: put(tmp_path / "lake", key, data))


@pytest.fixture
def remote(s3: S3Bucket, tmp_path: Path) -> Lake:
    def put(key: str, data: bytes) -> None:
        s3.client().put_object(Bucket=s3.bucket, Key=f"some/prefix/{key}", Body=data)

    return fill(s3_store(s3, tmp_path), tmp_path, put)


def check(lake: Lake, outputs: int = 2) -> None:
    """Every row once, the files of the other node as they were, and no leftover."""
    assert lake.seen() == lake.rows
    files = lake_files(lake.store.read())
    assert len([path for path in files if OTHER_NODE in path.name]) == 2
    assert len(files) - 2 == outputs
    assert {path.name for path in (lake.wal / "compaction").iterdir()} == {"LOCK"}


def hidden_left(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and ".arcpipe" in str(path.relative_to(root))]


@pytest.mark.parametrize("point", LOCAL, ids=lambda point: point.name)
def test_killed_at_each_step_on_a_local_store(local: Lake, compactors: Compactors, point: Point) -> None:
    assert compactors.run(local.wal, local.settings, die=point.step) == -9
    assert local.numbers() == {row["n"] for row in local.rows}  # at no time is a row missing
    assert compactors.run(local.wal, local.settings) == 0
    check(local)
    assert hidden_left(local.store.read()) == []


@pytest.mark.parametrize(
    "point",
    # Right before and after each step of the plan's own file is a step of the store, with the same state between.
    [pytest.param(point, marks=long if point.step.function.startswith((PLANS, DISK)) else ()) for point in S3],
    ids=lambda point: point.name,
)
def test_killed_at_each_step_on_s3(remote: Lake, s3: S3Bucket, compactors: Compactors, point: Point) -> None:
    assert compactors.run(remote.wal, remote.settings, die=point.step, ahead_seconds=600) == -9
    assert compactors.run(remote.wal, remote.settings, ahead_seconds=600) == 0
    check(remote)
    assert not [key for key in s3.list_keys() if ".arcpipe" in key]
    assert s3.uploads() == []


@pytest.mark.parametrize("point", LOCAL, ids=lambda point: point.name)
def test_an_error_at_each_step_on_a_local_store(local: Lake, compactors: Compactors, point: Point) -> None:
    assert compactors.run(local.wal, local.settings, fail=point.step) in (0, FAILED)
    assert local.numbers() == {row["n"] for row in local.rows}
    assert compactors.run(local.wal, local.settings) == 0
    check(local)


@long
@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_at_any_step(local: Lake, compactors: Compactors, seed: int) -> None:
    pick = random.Random(seed)
    for _ in range(6):
        compactors.run(local.wal, local.settings, die=pick.choice(LOCAL).step)
        assert local.numbers() == {row["n"] for row in local.rows}
    assert compactors.run(local.wal, local.settings) == 0
    check(local)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=long) for seed in range(2, 6))])
def test_through_faults_of_the_store(remote: Lake, s3: S3Bucket, compactors: Compactors, seed: int) -> None:
    """Errors, hanging requests, cut and lost answers: each run does what it can, and the next one goes on."""
    with FaultyProxy(s3.endpoint_url) as proxy:
        settings = remote.settings | {"storage_s3_endpoint_url": proxy.url}

        def succeeds() -> bool:
            return compactors.run(remote.wal, settings, ahead_seconds=600) == 0

        # Every third request fails, until each fault was met. Then fewer do, so that runs get further.
        proxy.fail_randomly(0.3, seed)
        for _ in range(60):
            succeeds()
            if proxy.injected.keys() == set(FAULTS):
                break
        assert proxy.injected.keys() == set(FAULTS)
        proxy.fail_randomly(0.1, seed)
        for _ in range(60):
            if succeeds():
                break
        proxy.fail_randomly(0.0, seed)
        for _ in range(3):  # a delete of an earlier run may arrive only now, and take a hidden object away
            if succeeds():
                break
    check(remote)
    assert not [key for key in s3.list_keys() if ".arcpipe" in key]


@pytest.mark.parametrize("denied", ["GET .*parquet", "PUT .*new", "PUT .*parquet", "POST .*delete"])
def test_a_permission_that_is_missing_changes_nothing(
    remote: Lake, s3: S3Bucket, compactors: Compactors, denied: str
) -> None:
    with FaultyProxy(s3.endpoint_url) as proxy:
        settings = remote.settings | {"storage_s3_endpoint_url": proxy.url}
        proxy.deny(denied)
        assert compactors.run(remote.wal, settings, ahead_seconds=600) == FAILED
        assert remote.numbers() == {row["n"] for row in remote.rows}
        proxy.deny()
        assert compactors.run(remote.wal, settings, ahead_seconds=600) == 0
    assert not [key for key in s3.list_keys() if ".arcpipe" in key]


def test_two_nodes_compact_their_own_files_of_one_hour_at_once(remote: Lake, compactors: Compactors) -> None:
    other = make_wal(remote.wal.parent / "other", OTHER_NODE)
    settings = remote.settings | {"wal_dir": str(other)}
    with Compactors() as of_other:
        done: list[int] = []
        thread = threading.Thread(
            target=lambda: done.append(of_other.run(other, settings, node=OTHER_NODE, ahead_seconds=600))
        )
        thread.start()
        assert compactors.run(remote.wal, remote.settings, ahead_seconds=600) == 0
        thread.join()
    assert done == [0]
    assert remote.seen() == remote.rows
    assert len(lake_files(remote.store.read())) == 3

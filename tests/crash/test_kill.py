"""SIGKILL under load, at moments of a seeded choice: what was acknowledged is there afterwards, once.

Every record has an id of its own. After the kills, a restart and a drain: the acknowledged ids are among those found,
those found among those sent, and none is found twice. Sets are compared, never counts.

`ARCPIPE_TEST_SEED` chooses other moments, `ARCPIPE_TEST_LONG=10` has ten times as many of them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Load, Server, download, processes_of_session, wait_until
from tests.s3server import S3Bucket

SEED = int(os.environ.get("ARCPIPE_TEST_SEED", "1"))
LONG = int(os.environ.get("ARCPIPE_TEST_LONG", "1"))

pytestmark = pytest.mark.timeout(120 * LONG)


class Victim:
    """A server with small segments and short ages, so that a second has many rotations, recycles and batches."""

    def __init__(self, server: Server, lake: Callable[[], Path]) -> None:
        self.server = server
        self.lake = lake


@pytest.fixture(params=["local", "s3"])
def victim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Victim]:
    settings: dict[str, object] = {"wal_max_size_mb": 1, "flush_max_age_seconds": 0.1, "wal_max_backlog_mb": 200}
    read: Callable[[], Path] = lambda: tmp_path / "lake"  # noqa: E731
    if request.param == "s3":
        s3: S3Bucket = request.getfixturevalue("s3")
        settings |= {
            "storage_url": f"s3://{s3.bucket}/lake",
            "storage_s3_endpoint_url": s3.endpoint_url,
            "storage_s3_region": s3.region,
            "storage_s3_access_key_id": s3.access_key_id,
            "storage_s3_secret_access_key": s3.secret_access_key,
            "storage_s3_addressing_style": "path",
        }
        read = lambda: download(s3, tmp_path / "downloaded") / "lake"  # noqa: E731
    with Server(tmp_path, **settings) as server:
        yield Victim(server, read)


def wait_for_a_moment(server: Server, chance: random.Random) -> str:
    """Waits for a moment worth dying in: just any, or one in which files change hands. Tells which."""
    time.sleep(chance.uniform(0.0, 0.3))
    moment = chance.choice(["any", "batch", "sealed", "claimed"])
    look = {
        "any": lambda: True,
        "batch": lambda: os.listdir(server.wal / "batches"),
        "sealed": lambda: server.segments(".wal.sealed"),
        "claimed": lambda: [name for name in os.listdir(server.wal / "free") if not name[0].isdigit()],
    }[moment]
    deadline = time.monotonic() + 1.0  # the rarer moments may not come
    while not look() and time.monotonic() < deadline:
        pass
    time.sleep(chance.choice([0.0, 0.0, chance.uniform(0.0, 0.05)]))
    return moment


def check(victim: Victim, load: Load) -> None:
    load.stop()
    victim.server.stop()
    victim.server.assert_log_is_shipped()
    assert load.acknowledged_requests > 50
    load.assert_exactly_once(victim.lake())


@pytest.mark.parametrize("role", ["ingest", "uploader"])
def test_a_child_that_is_killed_again_and_again_loses_nothing(victim: Victim, role: str) -> None:
    server = victim.server
    chance = random.Random(f"{SEED} {role}")
    with Load(server) as load:
        for _ in range(5 * LONG):
            name = f"ingest {chance.randint(1, 2)}" if role == "ingest" else role
            load.wait_for_requests(10)
            wait_for_a_moment(server, chance)
            dead = server.kill(name)
            server.wait_for_successor(name, dead)
            load.wait_for_requests(10)
        check(victim, load)


def test_a_supervisor_that_is_killed_takes_its_children_along_and_loses_nothing(victim: Victim) -> None:
    server = victim.server
    chance = random.Random(f"{SEED} supervisor")
    with Load(server) as load:
        for _ in range(4 * LONG):
            load.wait_for_requests(20)
            wait_for_a_moment(server, chance)
            session = server.pid
            server.kill("supervisor")
            if chance.random() < 0.5:
                wait_until(lambda session=session: not processes_of_session(session), "the children to be gone")
            server.restart()  # at once: the children of the former one may still be going away
        load.wait_for_requests(20)
        check(victim, load)


def test_killing_every_process_at_once_again_and_again_loses_nothing(victim: Victim) -> None:
    server = victim.server
    chance = random.Random(f"{SEED} everything")
    with Load(server) as load:
        for _ in range(6 * LONG):
            load.wait_for_requests(10)
            wait_for_a_moment(server, chance)
            server.kill_all()
            if chance.random() < 0.3:  # and again while it recovers or starts
                server.launch()
                time.sleep(chance.uniform(0.2, 0.8))
                server.kill_all()
            server.restart()
        load.wait_for_requests(10)
        check(victim, load)


def test_any_process_may_be_killed_while_the_server_drains(victim: Victim) -> None:
    server = victim.server
    chance = random.Random(f"{SEED} drain")
    with Load(server) as load:
        for _ in range(3 * LONG):
            load.wait_for_requests(30)
            server.send_signal(signal.SIGTERM)
            time.sleep(chance.uniform(0.0, 0.1))
            pids = server.pids()
            if pids:
                role = chance.choice(sorted(pids))
                try:
                    os.kill(pids[role], signal.SIGKILL)
                except ProcessLookupError:
                    pass
            assert server.exit_code() in (0, -signal.SIGKILL)
            server.assert_nobody_left()
            server.restart()
        check(victim, load)

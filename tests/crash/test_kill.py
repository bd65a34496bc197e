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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.crash.moments import wait_for_a_moment
from tests.support.load import Load
from tests.support.record_load import RecordLoad
from tests.support.server import Server
from tests.support.sets import long
from tests.support.stores import Store, local_store, s3_store
from tests.support.telemetry_load import TelemetryLoad

SEED = int(os.environ.get("ARCPIPE_TEST_SEED", "1"))
LONG = int(os.environ.get("ARCPIPE_TEST_LONG", "1"))

pytestmark = pytest.mark.timeout(600 * LONG)


class Victim(NamedTuple):
    server: Server
    store: Store


@pytest.fixture(params=["local", "s3"])
def victim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Victim]:
    """A server with small segments and short ages, so that a second has many rotations, recycles and batches."""
    store = local_store(tmp_path) if request.param == "local" else s3_store(request.getfixturevalue("s3"), tmp_path)
    with Server(
        tmp_path, wal_max_size_mb=1, flush_max_age_seconds=0.1, wal_max_backlog_mb=200, **store.settings
    ) as server:
        yield Victim(server, store)


def check(victim: Victim, load: Load) -> None:
    load.stop()
    victim.server.stop()
    victim.server.assert_log_is_shipped()
    assert load.acknowledged_requests >= 40  # each test waits for as many, and more only by chance
    load.assert_exactly_once(victim.store.read())


@pytest.mark.parametrize("role", ["ingest", "uploader"])
def test_a_child_that_is_killed_again_and_again_loses_nothing(victim: Victim, role: str) -> None:
    server = victim.server
    chance = random.Random(f"{SEED} {role}")
    with Load(server) as load:
        for life in range(LONG):
            if life:  # a server gives up children that die too often without ever having been well
                server.stop()
                server.restart()
            for _ in range(4):
                name = f"ingest {chance.randint(1, 2)}" if role == "ingest" else role
                load.wait_for_requests(10)
                wait_for_a_moment(server, chance)
                dead = server.kill(name)
                server.wait_for_successor(name, dead)
                load.wait_for_requests(10)
        check(victim, load)


@pytest.mark.parametrize("victim", ["local", pytest.param("s3", marks=long)], indirect=True)
def test_a_killed_supervisor_takes_its_children_along(victim: Victim) -> None:
    """A supervisor that is killed takes its children along and loses nothing."""
    server = victim.server
    chance = random.Random(f"{SEED} supervisor")
    with Load(server) as load:
        for _ in range(3 * LONG):
            load.wait_for_requests(20)
            wait_for_a_moment(server, chance)
            server.kill("supervisor")
            if chance.random() < 0.5:
                server.assert_nobody_left()
            server.restart()  # at once: the children of the former one may still be going away
        load.wait_for_requests(20)
        check(victim, load)


def test_killing_every_process_at_once_again_and_again_loses_nothing(victim: Victim) -> None:
    server = victim.server
    chance = random.Random(f"{SEED} everything")
    with Load(server) as load:
        for _ in range(3 * LONG):
            load.wait_for_requests(10)
            wait_for_a_moment(server, chance)
            server.kill_all()
            if chance.random() < 0.3:  # and again while it recovers or starts
                server.by_command = True  # else it would be past both
                server.launch()
                time.sleep(chance.uniform(0.2, 0.8))
                server.kill_all()
                server.by_command = False
            server.restart()
        load.wait_for_requests(10)
        check(victim, load)


@pytest.mark.parametrize("victim", ["local", pytest.param("s3", marks=long)], indirect=True)
@pytest.mark.parametrize("kind", [RecordLoad, TelemetryLoad], ids=["records", "telemetry"])
def test_killing_every_process_loses_no_record_of_other_formats(victim: Victim, kind: type[Load]) -> None:
    server = victim.server
    chance = random.Random(f"{SEED} records")
    with kind(server) as load:
        for _ in range(2 * LONG):
            load.wait_for_requests(12)
            wait_for_a_moment(server, chance)
            server.kill_all()
            server.restart()
        load.wait_for_requests(20)
        check(victim, load)


def test_any_process_may_be_killed_while_the_server_drains(victim: Victim) -> None:
    server = victim.server
    chance = random.Random(f"{SEED} drain")
    with Load(server) as load:
        for _ in range(2 * LONG):
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

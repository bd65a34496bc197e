"""Upgrades and signals of every kind under load: nothing that was acknowledged is lost or there twice.

`ARCPIPE_TEST_SEED` chooses other signals, processes and moments, `ARCPIPE_TEST_LONG=10` has ten times as many of them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.careful_load import CarefulLoad
from tests.support.lake import numbers
from tests.support.load import Load
from tests.support.server import Server
from tests.support.waiting import wait_until

SEED = int(os.environ.get("ARCPIPE_TEST_SEED", "1"))
LONG = int(os.environ.get("ARCPIPE_TEST_LONG", "1"))

pytestmark = pytest.mark.timeout(600 * LONG)


def upgrade(server: Server) -> None:
    """SIGUSR2, and waits until the new program serves."""
    served = server.log.count("serving on")
    os.kill(server.pid, signal.SIGUSR2)
    wait_until(lambda: server.log.count("serving on") > served, "the new program to serve")


# Upgrades


def test_upgrades_under_load_refuse_no_connection_and_fail_no_write(tmp_path: Path) -> None:
    with Server(tmp_path, wal_max_size_mb=1) as server:
        before = server.pids()
        with CarefulLoad(server.url) as load:
            for _ in range(2 * LONG):
                load.wait_for(100)
                upgrade(server)
            load.wait_for(100)
        after = server.pids()
        server.stop()
        server.assert_log_is_shipped()
        print(f"{len(load.acknowledged)} requests, longest {load.longest_seconds:.2f} s")
        assert load.failures == []
        assert before["supervisor"] == after["supervisor"]
        assert not set(before.values()) - {server.pid} & set(after.values())
        assert numbers(server.lake) == sorted(load.acknowledged)


def test_an_upgrade_takes_new_settings_and_another_number_of_workers(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[server]\nworkers = 3\n")
    server = Server(tmp_path)
    del server.settings["server_workers"]
    with server:
        assert len(server.pids()) == 5
        config.write_text("[server]\nworkers = 1\n")
        with CarefulLoad(server.url) as load:
            load.wait_for(50)
            upgrade(server)
            load.wait_for(50)
        assert sorted(server.pids()) == ["ingest 1", "supervisor", "uploader"]
        server.stop()
        assert load.failures == []
        assert numbers(server.lake) == sorted(load.acknowledged)


def test_an_upgrade_to_what_would_not_start_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("")
    with Server(tmp_path) as server:
        pids = server.pids()
        for pid in pids.values():
            os.kill(pid, signal.SIGUSR1)  # as a rotation of logs may, or `systemctl kill`: it is nothing here
        config.write_text("[wal]\nsync_mode = 'sometimes'\n")
        os.kill(server.pid, signal.SIGUSR2)
        wait_until(lambda: "the installed version would not start, so this one stays" in server.log, "the refusal")
        assert 'wal.sync_mode = "sometimes"' in server.log
        assert server.log.count("SIGUSR1 has no effect") == 1
        assert server.pids() == pids
        server.write({"m": "counted", "columns": {"n": [1]}})
        config.write_text("")
        upgrade(server)
        server.stop()
        assert numbers(server.lake) == [1]


def test_nobody_else_can_take_the_wal_during_an_upgrade(tmp_path: Path) -> None:
    """Nobody else can take the WAL during an upgrade and a stop waits for its end."""
    with Server(tmp_path, server_workers=1) as server:
        os.kill(server.pid, signal.SIGUSR2)
        wait_until(lambda: "making way for the installed version" in server.log, "the upgrade to begin")
        server.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0
        server.assert_nobody_left()
        assert server.log.count(" starting, WAL in ") == 2
        assert "in use by another" not in server.log


# Stops


def test_a_stop_under_load_fails_no_kept_connection(tmp_path: Path) -> None:
    """A stop under load answers what is in flight and fails no kept connection."""
    with Server(tmp_path) as server, CarefulLoad(server.url) as load:
        load.wait_for(200)
        server.stop()
        load.stop()
        # Who connects from now on is refused; nobody who was connected lost an answer.
        assert {failure for failure in load.failures if "Refused" not in failure and "reset" not in failure} == set()
        assert numbers(server.lake) == sorted(load.acknowledged)


# Any signal to anybody


def test_twenty_random_signals_to_random_processes_lose_nothing(tmp_path: Path) -> None:
    """This test is the service manager meanwhile: who ends is started again, as `Restart=always` does."""
    chance = random.Random(f"{SEED} signals")
    given = []
    with Server(tmp_path, wal_max_size_mb=1, flush_max_age_seconds=0.1, shutdown_drain_seconds=5) as server:
        with Load(server) as load:
            for _ in range(20 * LONG):
                load.wait_for_requests(5)
                time.sleep(chance.uniform(0.0, 0.2))
                pids = wait_until(lambda: len(server.pids()) == 4 and server.pids(), "all processes")
                assert isinstance(pids, dict)
                role = chance.choice(sorted(pids))
                what = chance.choice(["TERM", "KILL", "STOP", "HUP", "USR2"])
                given.append(f"{what} to {role}")
                try:
                    os.kill(pids[role], signal.Signals[f"SIG{what}"])
                    if what == "STOP":
                        time.sleep(chance.uniform(0.0, 0.3))
                        os.kill(pids[role], signal.SIGCONT)
                except ProcessLookupError:
                    pass
                if role == "supervisor" and what in ("TERM", "KILL"):
                    server.url = ""
                    assert server.exit_code() in (0, -signal.SIGKILL)
                    server.restart()
            print(given)
            load.wait_for_requests(20)
        everybody = ["ingest 1", "ingest 2", "supervisor", "uploader"]
        wait_until(lambda: sorted(server.pids()) == everybody, "all to be well")
        server.stop()
        server.assert_log_is_shipped()
        load.assert_exactly_once(server.lake)

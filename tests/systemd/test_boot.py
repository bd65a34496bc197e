"""A real boot: arcpipe installed by the README's commands on a minimal Debian, under its systemd.

`make test-systemd` runs it: it takes minutes and needs root, so an ordinary run skips it. The tests share one machine,
in the order in which they stand here.
"""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.careful_load import CarefulLoad
from tests.support.http import Client, pack
from tests.support.lake import numbers
from tests.support.s3server import S3Bucket
from tests.support.waiting import wait_until
from tests.systemd.booted import V2, booted, on_demand, post, wait_for_numbers, write
from tests.systemd.machine import Machine, readme_commands

pytestmark = [on_demand, pytest.mark.timeout(1200)]

WATCHDOG_SECONDS = 15


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    *before_boot, start = readme_commands()

    def install(machine: Machine) -> None:
        for command in before_boot:
            machine.install(command)
        machine.install("/opt/arcpipe/bin/pip wheel --no-deps --wheel-dir /root/wheels .")  # to upgrade to

        write(machine, "/etc/credstore/arcpipe.server.workers", "2\n")

    with booted(install, f"WatchdogSec={WATCHDOG_SECONDS}") as machine:
        machine.run(start)
        yield machine


def empty(machine: Machine) -> None:
    """Stops the service, removes what it wrote, starts it."""
    machine.run("systemctl stop arcpipe && rm -rf /var/lib/arcpipe/data && systemctl start arcpipe")


def test_five_commands_install_it_and_it_is_active_once_it_serves(machine: Machine) -> None:
    assert len(readme_commands()) == 5
    state = machine.show("ActiveState", "SubState", "Type", "StatusText", "User", "NRestarts", "NFileDescriptorStore")
    assert state["ActiveState"] == "active"
    assert state["Type"] == "notify-reload"
    assert state["StatusText"].startswith(f"serving on {machine.url} with 2 workers")
    assert state["NRestarts"] == "0"
    assert state["NFileDescriptorStore"] == "2"
    assert machine.run("systemctl is-enabled arcpipe") == "enabled"
    processes = machine.processes()
    # The number of workers is a credential.
    assert sorted(processes) == ["ingest 1", "ingest 2", "supervisor", "uploader"]
    owner = machine.run("id -u arcpipe")
    assert owner != "0"
    for process in processes.values():
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    assert post(machine, 0) == 202
    wait_for_numbers(machine, [0])
    for path in ("/", "/metrics", "/ready", "/api/wal/status"):
        with Client(machine.url) as client:
            assert client.request("GET", path).status == 200


def test_the_unit_has_no_fault_and_little_exposure(machine: Machine) -> None:
    assert machine.run("systemd-analyze verify arcpipe.service") == ""
    rating = machine.run("systemd-analyze security --no-pager arcpipe.service")
    found = re.search(r"Overall exposure level for arcpipe.service: ([0-9.]+)", rating)
    assert found is not None
    print(found[0])
    assert float(found[1]) <= 1.5


def test_the_journal_has_its_lines(machine: Machine) -> None:
    journal = machine.journal()
    assert f"serving on {machine.url} with 2 workers" in journal
    assert "ingest 1: listening" in journal
    assert "Traceback" not in journal


def test_a_reload_is_done_when_systemctl_returns(machine: Machine) -> None:
    before = machine.show("MainPID")
    machine.run("systemctl reload arcpipe")
    assert machine.show("ActiveState")["ActiveState"] == "active"
    assert machine.show("MainPID") == before
    assert post(machine, 1) == 202


def test_workers_that_are_stopped_are_replaced(machine: Machine) -> None:
    before = machine.processes()
    machine.signal(signal.SIGSTOP, "ingest 1", "ingest 2")
    wait_until(
        lambda: all(
            machine.processes().get(role, before[role]).pid != before[role].pid for role in ("ingest 1", "ingest 2")
        ),
        "new workers",
        60,
    )
    wait_until(lambda: post(machine, 2) == 202, "a write")
    assert machine.processes()["supervisor"].pid == before["supervisor"].pid
    assert "has no heartbeat; killing it" in machine.journal()
    errors = machine.run("journalctl --unit arcpipe --priority err --output cat --no-pager")
    assert "has no heartbeat; killing it" in errors
    assert "[INFO]" not in errors
    assert not re.search(r"^<\d>", errors, re.MULTILINE)  # journald has taken it
    assert machine.show("NRestarts")["NRestarts"] == "0"


def test_the_watchdog_kills_and_restarts_a_set_that_is_stopped(machine: Machine) -> None:
    before = machine.processes()
    machine.signal(signal.SIGSTOP, *before)
    wait_until(
        lambda: machine.processes().get("supervisor", before["supervisor"]).pid != before["supervisor"].pid,
        "a new supervisor",
        WATCHDOG_SECONDS + 60,
    )
    machine.wait_until_active()
    assert "Watchdog timeout" in machine.journal()
    assert machine.show("NRestarts")["NRestarts"] == "1"
    assert post(machine, 3) == 202


def test_a_kill_of_every_process_loses_and_refuses_nothing(machine: Machine) -> None:
    """After a kill of every process nothing is lost and no connection was refused."""
    empty(machine)
    with CarefulLoad(machine.url) as load:
        load.wait_for(100)
        machine.run("systemctl kill --signal=KILL arcpipe")
        load.wait_for_acknowledged(100)
    machine.wait_until_active()
    print(f"longest {load.longest_seconds:.2f} s, failed: {load.failures}")
    assert not [failure for failure in load.failures if "Refused" in failure]
    assert "WAL recovery complete" in machine.journal()
    machine.run("systemctl stop arcpipe")
    found = numbers(machine.lake)
    assert len(found) == len(set(found))
    assert set(load.acknowledged) <= set(found)
    assert len(found) <= len(load.acknowledged) + len(load.failures)
    machine.run("systemctl start arcpipe")


def test_an_upgrade_under_load_fails_no_write(machine: Machine) -> None:
    empty(machine)
    before = machine.processes()
    with CarefulLoad(machine.url) as load:
        load.wait_for(100)
        machine.run("/opt/arcpipe/bin/pip install --force-reinstall --no-deps --no-index /root/wheels/arcpipe-*.whl")
        machine.run("systemctl kill --kill-whom=main --signal=USR2 arcpipe")
        wait_until(
            lambda: machine.processes().get("ingest 1", before["ingest 1"]).pid != before["ingest 1"].pid,
            "new workers",
            60,
        )
        machine.wait_until_active()
        load.wait_for(100)
    print(f"longest {load.longest_seconds:.2f} s")
    assert load.failures == []
    after = machine.processes()
    assert after["supervisor"].pid == before["supervisor"].pid
    assert "making way for the installed version" in machine.journal()
    machine.run("systemctl stop arcpipe")
    assert numbers(machine.lake) == sorted(load.acknowledged)
    machine.run("systemctl start arcpipe")


def upgrade(machine: Machine, expected: str) -> None:
    """Has it become what is installed, with the settings as they are; waits until the journal says what is expected."""
    before = machine.journal().count(expected)
    machine.run("systemctl kill --kill-whom=main --signal=USR2 arcpipe")
    wait_until(lambda: machine.journal().count(expected) > before, expected, 60)


def wait_for_stored(machine: Machine, count: int) -> None:
    """Wait until `count` sockets are in the descriptor store."""
    wait_until(lambda: machine.show("NFileDescriptorStore")["NFileDescriptorStore"] == str(count), f"{count} sockets")


def wait_for_successor(machine: Machine, role: str, dead: int) -> None:
    def is_another() -> bool:
        found = machine.processes().get(role)
        return found is not None and found.pid != dead

    wait_until(is_another, f"a new {role}", 60)


@pytest.fixture
def settings(machine: Machine) -> Iterator[Path]:
    """The settings file of the service; it is as before in the end, and so is the service."""
    path = machine.tree / "etc/arcpipe/config.toml"
    good = path.read_text()
    yield path
    path.write_text(good)
    machine.run("systemctl reset-failed arcpipe; systemctl restart arcpipe")


def test_an_upgrade_that_cannot_start_is_refused_and_the_service_goes_on(machine: Machine, settings: Path) -> None:
    good = settings.read_text()
    before = machine.processes()
    state = machine.show("MainPID", "NRestarts", "ActiveEnterTimestamp")
    refusal = "the installed version would not start, so this one stays: "
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # the machine shares this network
        taken.listen()
        port = taken.getsockname()[1]
        settings.write_text(good.replace("listeners = []", f'listeners = [{{ address = "127.0.0.1:{port}" }}]'))
        upgrade(machine, f"{refusal}cannot listen on 127.0.0.1 port {port}: Address already in use")
    settings.write_text(good.replace('dir = "./data/wal"', 'dir = "./data/elsewhere"'))
    upgrade(machine, f"{refusal}wal.dir = ./data/elsewhere is another directory than /var/lib/arcpipe/data/wal")
    settings.write_text(good.replace('host = "127.0.0.1"', 'host = "no-such-host.invalid"'))
    upgrade(machine, refusal)
    assert machine.processes() == before
    assert machine.show("MainPID", "NRestarts", "ActiveEnterTimestamp") == state
    assert machine.show("ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    assert post(machine, 8) == 202


def test_from_loopback_to_every_address_and_over_a_crash(machine: Machine, settings: Path) -> None:
    """The descriptor store has sockets of the former address then, which once made every start fail."""
    good = settings.read_text()
    settings.write_text(
        good.replace('host = "127.0.0.1"', 'host = "0.0.0.0"').replace(
            "allow_anonymous = false", "allow_anonymous = true"
        )
    )
    with CarefulLoad(machine.url) as load:
        load.wait_for(50)
        upgrade(machine, f"serving on http://0.0.0.0:{machine.port} with 2 workers")
        load.wait_for(50)
    assert load.failures == []
    wait_for_stored(machine, 4)
    restarts = int(machine.show("NRestarts")["NRestarts"])
    machine.run("systemctl kill --signal=KILL arcpipe")
    wait_until(lambda: int(machine.show("NRestarts")["NRestarts"]) > restarts, "a restart", 60)
    machine.wait_until_active()
    assert post(machine, 9) == 202
    socket.create_connection(("127.0.0.2", machine.port)).close()
    settings.write_text(good)
    upgrade(machine, f"serving on {machine.url} with 2 workers")
    wait_for_stored(machine, 2)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", machine.port))
    assert post(machine, 10) == 202


def test_the_descriptor_store_takes_more_sockets_than_one_message(machine: Machine, settings: Path) -> None:
    listeners = ", ".join(f'{{ address = "127.0.1.{number}:{machine.port}" }}' for number in range(1, 17))
    settings.write_text(settings.read_text().replace("listeners = []", f"listeners = [{listeners}]"))
    write(machine, "/etc/credstore/arcpipe.server.workers", "16\n")
    try:
        machine.run("systemctl restart arcpipe")
        sockets = 16 * 17
        wait_for_stored(machine, sockets)
        machine.run("systemctl kill --signal=KILL arcpipe")
        for number in range(17):  # each waits in its queue until the service is back
            with Client(f"http://127.0.1.{number}:{machine.port}" if number else machine.url) as client:
                body = pack({"m": "counted", "columns": {"n": [100 + number]}})
                assert client.request("POST", V2, body).status == 202
    finally:
        write(machine, "/etc/credstore/arcpipe.server.workers", "2\n")


def test_a_journal_that_is_stuck_holds_up_nobody(machine: Machine, settings: Path) -> None:
    settings.write_text(settings.read_text().replace('format = "off"', 'format = "json"'))
    empty(machine)
    restarts = machine.show("NRestarts")
    machine.run("systemctl kill --signal=STOP systemd-journald")
    try:
        with Client(machine.url) as client:
            for number in range(3000):  # about 300 bytes of access log each
                body = pack({"m": "counted", "columns": {"n": [number]}})
                assert client.request("POST", V2, body).status == 202
        for number in range(5):
            dead = machine.processes()["ingest 1"].pid
            machine.run("systemctl kill --kill-whom=main --signal=HUP arcpipe")
            machine.signal(signal.SIGKILL, "ingest 1")
            wait_for_successor(machine, "ingest 1", dead)
            assert post(machine, 3000 + number) == 202
        assert machine.show("NRestarts") == restarts
        started = time.monotonic()
        machine.run("systemctl stop arcpipe")
        assert time.monotonic() - started < 60
        state = machine.show("ActiveState", "Result", "ExecMainStatus")
        assert (state["ActiveState"], state["Result"], state["ExecMainStatus"]) == ("inactive", "success", "0")
    finally:
        machine.run("systemctl kill --signal=CONT systemd-journald")
    assert numbers(machine.lake) == list(range(3005))


def test_the_supervisor_is_better_protected_than_its_children(machine: Machine) -> None:
    found = machine.processes()
    scores = {role: int(Path(f"/proc/{one.pid}/oom_score_adj").read_text()) for role, one in found.items()}
    if scores["supervisor"] == 0:
        pytest.skip("systemd may not lower the score in this machine")
    assert scores == {"supervisor": -100, "ingest 1": 0, "ingest 2": 0, "uploader": 0}


def test_a_stop_under_load_is_clean_and_in_time(machine: Machine) -> None:
    empty(machine)
    with CarefulLoad(machine.url) as load:
        load.wait_for(100)
        started = time.monotonic()
        machine.run("systemctl stop arcpipe")
        seconds = time.monotonic() - started
    print(f"stopped in {seconds:.1f} s")
    assert seconds < 60
    state = machine.show("ActiveState", "Result", "ExecMainStatus", "NFileDescriptorStore")
    assert (state["ActiveState"], state["Result"], state["ExecMainStatus"]) == ("inactive", "success", "0")
    assert machine.processes() == {}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", machine.port))
    assert numbers(machine.lake) == sorted(load.acknowledged)
    machine.run("systemctl start arcpipe")


def test_it_ships_to_s3_with_keys_from_credentials(machine: Machine, s3: S3Bucket) -> None:
    secrets = {
        "/etc/credstore/arcpipe.storage.s3.access_key_id": s3.access_key_id,
        "/etc/credstore/arcpipe.storage.s3.secret_access_key": s3.secret_access_key,
    }
    drop_in = "/etc/systemd/system/arcpipe.service.d/s3.conf"
    # A name and not an address: the sandbox must let it be looked up.
    endpoint = s3.endpoint_url.replace("127.0.0.1", "localhost")
    for path, secret in secrets.items():
        write(machine, path, f"{secret}\n")
        (machine.tree / path.removeprefix("/")).chmod(0o600)
    write(
        machine,
        drop_in,
        "[Service]\n"
        f"Environment=ARCPIPE_STORAGE_URL=s3://{s3.bucket}/lake ARCPIPE_STORAGE_S3_ENDPOINT_URL={endpoint}\n"
        f"Environment=ARCPIPE_STORAGE_S3_ADDRESSING_STYLE=path ARCPIPE_STORAGE_S3_REGION={s3.region}\n",
    )
    machine.run("systemctl daemon-reload && systemctl restart arcpipe")
    assert post(machine, 7) == 202
    wait_until(s3.list_keys, "an object", 60)
    for path in (*secrets, drop_in):
        (machine.tree / path.removeprefix("/")).unlink()
    machine.run("systemctl daemon-reload && systemctl restart arcpipe")


def test_settings_that_cannot_be_used_are_not_tried_again(machine: Machine) -> None:
    path = machine.tree / "etc/arcpipe/config.toml"
    good = path.read_text()
    path.write_text(good.replace('sync_mode = "fdatasync"', 'sync_mode = "sometimes"'))
    machine.run("systemctl restart arcpipe", check=False)
    state = machine.show("ActiveState", "Result", "ExecMainStatus")
    assert (state["ActiveState"], state["Result"], state["ExecMainStatus"]) == ("failed", "exit-code", "2")
    assert 'wal.sync_mode = "sometimes"' in machine.journal()
    path.write_text(good)
    machine.run("systemctl reset-failed arcpipe && systemctl start arcpipe")
    assert post(machine, 4) == 202


def test_it_comes_back_with_the_machine(machine: Machine) -> None:
    assert post(machine, 5) == 202
    machine.reboot()
    machine.wait_until_active()
    assert post(machine, 6) == 202
    machine.run("systemctl stop arcpipe")
    assert {5, 6} <= set(numbers(machine.lake))

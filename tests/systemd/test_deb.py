"""The Debian package in a booted Debian: installed, upgraded under load, refused, removed, purged.

`make test-systemd` runs it. The tests share one machine, in the order in which they stand here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import arcpipe
from tests.support.careful_load import CarefulLoad
from tests.support.lake import numbers
from tests.support.program import ROOT
from tests.support.waiting import wait_until
from tests.systemd.booted import booted, on_demand, post, wait_for_numbers
from tests.systemd.machine import Machine

pytestmark = [on_demand, pytest.mark.timeout(3600)]

OLDER = "0.0.9"
# dpkg compiles some thousands of modules of the libraries.
DPKG_SECONDS = 600


def package_of(version: str) -> str:
    """Return a pattern of a version's package in the machine."""
    return f"/root/deb/arcpipe_{version.replace('.dev', '~dev')}-1_*.deb"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine that has two packages, and none of them installed."""

    def install(machine: Machine) -> None:
        named = ("arcpipe/__init__.py", "native/pyproject.toml")
        for version in (OLDER, arcpipe.__version__):
            for name in named:
                own = (ROOT / name).read_text()
                changed = own.replace(f'"{arcpipe.__version__}"', f'"{version}"')
                (machine.tree / "root/arcpipe" / name).write_text(changed)
            # Without the extras, which are only more wheels: half of the time for each step.
            machine.install("packaging/deb/build_deb.py --fast --extras '' /root/deb")

    with booted(install, "Environment=ARCPIPE_SERVER_WORKERS=2") as machine:
        yield machine


def dpkg(machine: Machine, *words: str) -> str:
    return machine.run(f"DEBIAN_FRONTEND=noninteractive dpkg {' '.join(words)}", timeout_seconds=DPKG_SECONDS)


def running_version(machine: Machine) -> str:
    """Return the version that the log named last."""
    found: list[str] = re.findall(r"arcpipe (\S+) starting, WAL in", machine.journal())
    return found[-1]


def test_an_install_starts_the_service_and_is_complete(machine: Machine) -> None:
    dpkg(machine, "--install", package_of(OLDER))
    machine.wait_until_active()
    assert machine.run("systemctl is-enabled arcpipe") == "enabled"
    assert machine.run("arcpipe --version") == f"arcpipe {OLDER}, with its native kernel"
    assert "the native kernel is used" in machine.journal()
    assert machine.run("stat --format='%a %U:%G' /etc/arcpipe/config.toml") == "640 root:arcpipe"
    assert machine.run("id -u arcpipe") != "0"
    for path in ("man/man1/arcpipe.1.gz", "man/man5/arcpipe.toml.5.gz", "bash-completion/completions/arcpipe"):
        assert (machine.tree / "usr/share" / path).stat().st_size > 100
    assert machine.run("dpkg --verify arcpipe") == ""
    assert machine.run("systemd-analyze verify arcpipe.service") == ""
    machine.run("systemctl reload arcpipe")
    machine.wait_until_active()  # before systemd 254 the command does not wait
    wait_until(lambda: "SIGHUP: reloading" in machine.journal(), "the reload")
    assert post(machine, 0) == 202
    wait_for_numbers(machine, [0])


def test_an_upgrade_under_load_fails_no_write_and_keeps_the_settings(machine: Machine) -> None:
    settings = machine.tree / "etc/arcpipe/config.toml"
    settings.write_text(settings.read_text() + "\n# mine\n")
    before = machine.show("MainPID", "NRestarts")
    workers = machine.processes()
    with CarefulLoad(machine.url) as load:
        load.wait_for(100)
        dpkg(machine, "--install", package_of(arcpipe.__version__))
        wait_until(lambda: running_version(machine) == arcpipe.__version__, "the new version", 60)
        machine.wait_until_active()
        load.wait_for(100)
    print(f"{len(load.acknowledged)} acknowledged, longest {load.longest_seconds:.2f} s")
    assert load.failures == []
    assert machine.show("MainPID", "NRestarts") == before
    assert machine.processes()["ingest 1"].pid != workers["ingest 1"].pid
    assert settings.read_text().endswith("\n# mine\n")
    machine.run("systemctl stop arcpipe")
    assert numbers(machine.lake) == sorted([0, *load.acknowledged])


def test_an_upgrade_of_a_stopped_service_leaves_it_stopped(machine: Machine) -> None:
    dpkg(machine, "--install", package_of(arcpipe.__version__))
    assert machine.show("ActiveState")["ActiveState"] == "inactive"
    machine.run("systemctl start arcpipe")


def test_a_version_that_would_not_start_leaves_the_old_one_running(machine: Machine) -> None:
    settings = machine.tree / "etc/arcpipe/config.toml"
    good = settings.read_text()
    before = machine.processes()
    settings.write_text(good.replace('sync_mode = "fdatasync"', 'sync_mode = "sometimes"'))
    try:
        dpkg(machine, "--install", package_of(arcpipe.__version__))
        wait_until(lambda: "the installed version would not start, so this one stays" in machine.journal(), "a refusal")
        assert machine.processes() == before
    finally:
        settings.write_text(good)


def leftovers(machine: Machine) -> list[str]:
    """Return what the package or the service left, but for the state and what the tests put there."""
    found = machine.run(
        "find / -xdev -name '*arcpipe*' -not -path '/root/*' -not -path '/proc/*' -not -path '/sys/*' "
        "-not -path '/var/lib/arcpipe*' -not -path '*/arcpipe.service.d' -not -path '/var/log/*'"
    )
    return found.split()


def test_a_removal_uploads_and_a_purge_keeps_what_may_be_a_record(machine: Machine) -> None:
    assert post(machine, 1_000_000) == 202
    dpkg(machine, "--remove", "arcpipe")
    assert machine.processes() == {}
    assert 1_000_000 in numbers(machine.lake)
    assert (machine.tree / "etc/arcpipe/config.toml").read_text().endswith("\n# mine\n")
    dpkg(machine, "--install", package_of(arcpipe.__version__))  # dpkg knows the version of before
    machine.wait_until_active()
    dpkg(machine, "--remove", "arcpipe")
    said = dpkg(machine, "--purge", "arcpipe")
    assert "/var/lib/arcpipe stays: records that are in no store yet may be in it." in said
    assert (machine.tree / "var/lib/arcpipe/data/wal").is_dir()
    assert 1_000_000 in numbers(machine.lake)
    assert leftovers(machine) == []
    assert not (machine.tree / "etc/arcpipe").exists()


def test_it_is_installed_again_on_what_was_kept(machine: Machine) -> None:
    dpkg(machine, "--install", package_of(arcpipe.__version__))
    machine.wait_until_active()
    assert machine.run("arcpipe --version") == f"arcpipe {arcpipe.__version__}, with its native kernel"
    assert post(machine, 1_000_001) == 202
    machine.run("systemctl stop arcpipe")
    assert {1_000_000, 1_000_001} <= set(numbers(machine.lake))
    assert Path(machine.tree / "etc/arcpipe/config.toml").exists()


@pytest.mark.skipif(shutil.which("lintian") is None, reason="there is no lintian here (apt-get install lintian)")
def test_lintian_finds_nothing(machine: Machine) -> None:
    [path] = machine.tree.glob(package_of(arcpipe.__version__).removeprefix("/"))
    command = ["make", "--silent", "lint-deb", f"DEBS={path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""

"""From each released version to this one, under load: no write is refused, nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from arcpipe import __version__
from tests.support.careful_load import CarefulLoad
from tests.support.lake import lake_files, numbers
from tests.support.program import ROOT
from tests.support.server import Server
from tests.support.sets import long
from tests.support.waiting import wait_until

# 0.1.0 is older than the tags: it is this commit.
FIRST = "d82b3c0c053a2b660eb8f0aa5f8234d9f5fe5424"


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout


def releases() -> list[str]:
    """Return what to upgrade from: the first version, and each tag of a release."""
    tags = subprocess.run(["git", "tag", "--list", "v*"], cwd=ROOT, capture_output=True, text=True, check=False)
    return [FIRST, *tags.stdout.split()]


class Installed(Server):
    """A server whose program is a folder that an upgrade replaces."""

    def __init__(self, directory: Path, release: str) -> None:
        super().__init__(directory)
        self.settings = {}  # those of the environment: a former version does not know them all
        (directory / "config.toml").write_text(
            '[server]\nport = 0\nworkers = 2\n[wal]\ndir = "wal"\nmax_size_mb = 1\nmin_free_mb = 16\n'
            '[flush]\nmax_age_seconds = 0.2\n[storage]\nurl = "file://./lake"\n'
        )
        former = directory / "former"
        former.mkdir()
        archive = git("archive", release, "arcpipe")
        subprocess.run(["tar", "--extract", "--directory", former], input=archive, check=True)
        self.installed = directory / "installed"
        self.installed.symlink_to(former)
        self.variables["PYTHONPATH"] = str(self.installed)

    def install_this_version(self) -> None:
        """Put this version in the place of the former one, at once."""
        new = self.directory / "new"
        new.symlink_to(ROOT)
        os.replace(new, self.installed)


@pytest.fixture(params=releases())
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Installed:
    if subprocess.run(["git", "cat-file", "-e", request.param], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip(f"the clone is shallow and has no {request.param}")
    return Installed(tmp_path, request.param)


@long
def test_an_upgrade_from_a_release_under_load_fails_no_write(server: Installed) -> None:
    with server, CarefulLoad(server.url) as load:
        load.wait_for(300)
        wait_until(lambda: lake_files(server.lake), "a file of the former version")
        pid = server.pid
        server.install_this_version()
        os.kill(pid, signal.SIGUSR2)
        wait_until(lambda: f"arcpipe {__version__} starting" in server.log, "the new version")
        wait_until(lambda: server.log.count("supervisor: serving on") == 2, "the new version to serve")
        load.wait_for(300)
        load.stop()
        assert load.failures == []
        assert server.pid == pid
        server.stop()
        assert numbers(server.lake) == sorted(load.acknowledged)


@long
def test_this_version_recovers_what_a_killed_release_left(server: Installed) -> None:
    """Every process is killed under load; the new version starts on the directories that this left."""
    with server:
        with CarefulLoad(server.url) as load:
            load.wait_for(300)
            server.kill_all()
        server.install_this_version()
        server.restart()
        server.stop()
        found = numbers(server.lake)
        assert len(found) == len(set(found))
        assert set(load.acknowledged) <= set(found)
        assert len(found) <= len(load.acknowledged) + len(load.failures)

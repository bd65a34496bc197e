"""The files in `systemd/`, as systemd's own tools see them. `make test-systemd` boots a machine with them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from arcpipe.config.settings import Settings
from tests.support.program import ROOT

UNITS = ROOT / "systemd"
ANALYZE = shutil.which("systemd-analyze")
VERSION = (
    int(subprocess.run([ANALYZE, "--version"], capture_output=True, text=True, check=True).stdout.split()[1])
    if ANALYZE
    else 0
)
needs_systemd = pytest.mark.skipif(VERSION == 0, reason="there is no systemd-analyze here (apt-get install systemd)")

# What a systemd before 254 does not know; the drop-in `systemd-252.conf` is for it.
NEW = {
    "Failed to parse service type, ignoring: notify-reload",
    "Unknown key 'RestartSteps' in section [Service], ignoring.",
    "Unknown key 'RestartMaxDelaySec' in section [Service], ignoring.",
    "Unknown key 'ImportCredential' in section [Service], ignoring.",
}


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The service with a program that is there, because the real one is not installed here."""
    path = tmp_path / "arcpipe.service"
    text = (UNITS / "arcpipe.service").read_text()
    path.write_text(text.replace("/opt/arcpipe/bin/arcpipe", shutil.which("true") or "/bin/true"))
    return path


def verify(unit: Path) -> set[str]:
    """Return the complaints of `systemd-analyze verify`."""
    assert ANALYZE is not None
    done = subprocess.run(
        [ANALYZE, "verify", "--man=no", unit],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{unit.parent}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if "arcpipe.service" in line]
    assert done.returncode == 0 or lines
    return {re.sub(r"^.*arcpipe\.service(\.d/\S+)?(:\d+)?: ", "", line) for line in lines}


@needs_systemd
@pytest.mark.parametrize("drop_in", [None, "second-disk.conf", "systemd-252.conf"])
def test_the_unit_and_its_drop_ins_have_no_fault(unit: Path, drop_in: str | None) -> None:
    if drop_in is not None:
        folder = unit.parent / "arcpipe.service.d"
        folder.mkdir()
        shutil.copy(UNITS / drop_in, folder)
    assert verify(unit) == (NEW if VERSION < 254 else set())


@needs_systemd
def test_a_fault_would_be_seen(unit: Path) -> None:
    unit.write_text(unit.read_text() + "\n[Service]\nProtectHomes=yes\n")
    assert "Unknown key 'ProtectHomes' in section [Service], ignoring." in {
        problem.replace("Unknown key name", "Unknown key") for problem in verify(unit)
    }


@needs_systemd
def test_the_exposure_level_is_low(unit: Path) -> None:
    assert ANALYZE is not None
    done = subprocess.run(
        # In tenths, as the exit code has it.
        [ANALYZE, "security", "--offline=true", "--threshold=15", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    level = re.search(r"Overall exposure level for arcpipe.service: ([0-9.]+)", done.stdout)
    assert level is not None
    assert float(level[1]) <= 1.5


def test_the_stop_timeout_fits_the_drain() -> None:
    text = (UNITS / "arcpipe.service").read_text()
    timeout = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert timeout is not None
    assert int(timeout[1]) >= 15 + Settings().shutdown.drain_seconds + 10  # workers, uploads, and some


@needs_systemd
def test_sysusers_and_tmpfiles_make_the_user_and_the_directories(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for folder, kind in (("sysusers.d", "sysusers"), ("tmpfiles.d", "tmpfiles")):
        if shutil.which(f"systemd-{kind}") is None:
            pytest.skip(f"there is no systemd-{kind} here")
        (root / "etc" / folder).mkdir(parents=True)
        shutil.copy(UNITS / f"arcpipe.{kind}", root / "etc" / folder / "arcpipe.conf")
    if os.geteuid() != 0:
        pytest.skip("making users and directories needs root")
    subprocess.run(["systemd-sysusers", f"--root={root}"], check=True, capture_output=True)
    (line,) = (line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("arcpipe:"))
    assert line.split(":")[5:] == ["/var/lib/arcpipe", "/usr/sbin/nologin"]
    subprocess.run(["systemd-tmpfiles", f"--root={root}", "--create", "arcpipe.conf"], check=True, capture_output=True)
    uid = int(line.split(":")[2])
    for path, owner, mode in (("etc/arcpipe", 0, 0o750), ("var/lib/arcpipe", uid, 0o750), ("etc/credstore", 0, 0o700)):
        status = (root / path).stat()
        assert (status.st_uid, status.st_mode & 0o777) == (owner, mode), path


def test_every_credential_for_an_older_systemd_is_a_setting() -> None:
    keys = {key for key, _, _ in Settings().effective()}
    loaded = re.findall(r"^LoadCredential=arcpipe\.(\S+)$", (UNITS / "systemd-252.conf").read_text(), re.MULTILINE)
    assert len(loaded) == 5
    assert set(loaded) <= keys, json.dumps(sorted(set(loaded) - keys))

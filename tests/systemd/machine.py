"""A minimal Debian with arcpipe on it, booted by systemd-nspawn.

The tree is made once by debootstrap, from the mirror that this machine's apt uses, and kept below `build/`; every boot
has a copy. It shares the network with this machine, so its arcpipe has a port of its own.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
import zlib
from pathlib import Path

import pytest

from tests.support.http import free_port
from tests.support.processes import Process
from tests.support.program import ROOT
from tests.support.waiting import wait_until

# The first Debian whose systemd knows Type=notify-reload and RestartSteps=.
SUITE = os.environ.get("ARCPIPE_TEST_SUITE", "trixie")
BUILD = ROOT / "build" / "systemd"
# A compiler and Python's headers for the kernel that the Debian package has.
PACKAGES = "systemd-sysv,dbus,python3-venv,python3-dev,gcc,ca-certificates"
COMMANDS = ("debootstrap", "systemd-nspawn", "nsenter")

_LIBC = ctypes.CDLL(None)
_BOOT_SECONDS = 90.0


def what_is_missing() -> str:
    """Why no machine can be booted here; empty if one can."""
    if os.geteuid() != 0:
        return "booting a machine needs root"
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install debootstrap systemd-container util-linux)"
    return ""


def readme_commands() -> list[str]:
    """The five commands that install arcpipe."""
    text = (ROOT / "systemd" / "README.md").read_text()
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return block[1].strip().split("\n")


class Machine:
    """One copy of the tree, installed into and booted; `url` is its arcpipe's."""

    def __init__(self) -> None:
        self.tree = Path(tempfile.mkdtemp(prefix="arcpipe-machine-", dir=BUILD))
        self.console = BUILD / "console.log"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lake = self.tree / "var/lib/arcpipe/data/lake"

    def prepare(self) -> None:
        """The tree with a checkout in it, and with this machine's ways to its package registry."""
        base = make_base()
        subprocess.run(["cp", "-a", "--reflink=auto", f"{base}/.", self.tree], check=True)
        checkout = self.tree / "root" / "arcpipe"
        checkout.mkdir()
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for name in filter(None, files.decode().split("\0")):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
        for config in ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf"):
            source = Path(config).expanduser()
            if source.is_file():
                shutil.copy(source, self.tree / "etc/pip.conf")
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", self.tree / "etc/ssl/certs/ca-certificates.crt")

    def install(self, command: str) -> None:
        """Runs one command in the checkout inside the tree, before it is booted."""
        cache = BUILD / "pip-cache"
        cache.mkdir(exist_ok=True)
        variables = {name: value for name, value in os.environ.items() if re.match(r"PIP_|https?_proxy", name, re.I)}
        variables.pop("PIP_FIND_LINKS", None)  # a directory of this machine
        subprocess.run(
            [
                *("systemd-nspawn", "--quiet", "--pipe", "--register=no", *_unit_options(), f"--directory={self.tree}"),
                *("--resolv-conf=copy-host", f"--bind={cache}:/root/.cache/pip", "--chdir=/root/arcpipe"),
                *(f"--setenv={name}={value}" for name, value in variables.items()),
                *("/bin/sh", "-ec", command),
            ],
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=600,
        )

    def boot(self) -> None:
        with self.console.open("wb") as console:
            self._nspawn = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--boot", "--register=no", *_unit_options()),
                    *(f"--directory={self.tree}", f"--machine=arcpipe-{os.getpid()}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                preexec_fn=lambda: _LIBC.prctl(1, signal.SIGTERM, 0, 0, 0),  # PR_SET_PDEATHSIG
            )
        self._leader = wait_until(self._find_leader, "the machine's init", _BOOT_SECONDS)
        wait_until(
            lambda: self.run("systemctl is-system-running", check=False) in ("running", "degraded"),
            "the boot",
            _BOOT_SECONDS,
        )

    def _find_leader(self) -> int:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, self.console.read_text(errors="replace")
        pid = self._nspawn.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if re.search(r"^NSpid:.*\t1$", Path(f"/proc/{child}/status").read_text(), re.MULTILINE):
                return int(child)
        return 0

    def run(self, command: str, check: bool = True, timeout_seconds: float = 120) -> str:
        """Runs a command in the booted machine; its output."""
        done = subprocess.run(
            [
                *("nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root"),
                *("--wdns=/", "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "/bin/sh", "-c", command),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}: exit code {done.returncode}: {done.stdout}"
        return done.stdout.strip()

    def show(self, *properties: str) -> dict[str, str]:
        """Properties of the service."""
        lines = self.run(f"systemctl show arcpipe --property={','.join(properties)}").split("\n")
        return dict(line.split("=", 1) for line in lines)

    def journal(self) -> str:
        return self.run("journalctl --unit=arcpipe --output=cat --no-pager --boot")

    def processes(self) -> dict[str, Process]:
        """arcpipe's processes in the machine by their role; ids are this machine's."""
        namespace = os.readlink(f"/proc/{self._leader}/ns/pid")
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if title.startswith("arcpipe: ") and os.readlink(entry / "ns/pid") == namespace:
                    found[title.removeprefix("arcpipe: ")] = Process(int(entry.name), title)
            except OSError:  # gone since
                continue
        return found

    def signal(self, signal_number: signal.Signals, *roles: str) -> None:
        processes = self.processes()
        for role in roles:
            os.kill(processes[role].pid, signal_number)

    def wait_until_active(self, what: str = "the service to be active") -> None:
        wait_until(lambda: self.show("ActiveState", "SubState")["SubState"] == "running", what, 60)

    def reboot(self) -> None:
        self._power_off()
        self.boot()

    def _power_off(self) -> None:
        assert self._nspawn is not None
        self._nspawn.terminate()  # which asks its init to power off
        try:
            self._nspawn.wait(_BOOT_SECONDS)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()

    def end(self) -> None:
        if self._nspawn is not None:
            self._power_off()
        shutil.rmtree(self.tree, ignore_errors=True)


def make_base() -> Path:
    """The tree without arcpipe, made where it is not there yet."""
    base = BUILD / f"{SUITE}-{platform.machine()}-{zlib.crc32(PACKAGES.encode()):08x}"
    if not base.exists():
        unfinished = BUILD / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(unfinished), _mirror()]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"debootstrap {SUITE} failed: {done.stdout[-500:]}{done.stderr[-500:]}")
        unfinished.rename(base)
    return base


def _mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    sites = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    debian = [site for site in sites if site.rstrip("/").endswith("/debian")]
    if not debian:
        pytest.skip("apt on this machine has no Debian mirror")
    return debian[0]


def _unit_options() -> list[str]:
    """Where systemd is not this machine's own init, nobody can make a unit for the container."""
    return [] if Path("/run/systemd/system").exists() else ["--keep-unit"]

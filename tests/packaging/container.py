"""The image, built by `make image`, and a container of it: read-only, as the image's user, its command as pid 1.

buildah builds in a chroot, and bubblewrap runs: both work where there is neither a daemon nor an init. It needs root.
The base is ARCPIPE_TEST_IMAGE_BASE, the Dockerfile's own where it can be pulled, or else a Debian by debootstrap.
"""

from __future__ import annotations

import ast
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import arcpipe
from tests.support.http import Client, free_port
from tests.support.program import ROOT
from tests.support.waiting import START_SECONDS, STOP_SECONDS, wait_until
from tests.systemd.machine import make_base

COMMANDS: Final = ("buildah", "bwrap", "make")
IMAGE: Final = f"localhost/arcpipe:{arcpipe.__version__}"
_BASE: Final = "localhost/arcpipe-base"
_DEFAULT_BASE: Final = "docker.io/library/python:3.13-slim-bookworm"
# Images of its own: those of this machine stay as they are.
_STORE: Final = ("--storage-driver", "vfs", "--root", str(ROOT / "build/image/root"), "--runroot", "/run/arcpipe-image")
# What debootstrap leaves, and images of Debian that are called slim do not have: 165 MB.
_NOT_IN_SLIM: Final = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man")
_BUILD_SECONDS: Final = 1800
_LIBC = ctypes.CDLL(None)


def what_is_missing() -> str:
    """Why no image can be built and run here; empty if one can."""
    if os.geteuid() != 0:
        return "it needs root"
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    return f"not installed: {', '.join(missing)} (apt-get install buildah bubblewrap make)" if missing else ""


def buildah(*words: str, check: bool = True) -> str:
    command = ["buildah", *_STORE, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr[-4000:]}"
    return done.stdout.strip()


def find_base() -> str:
    """Return the name of a base image that is there."""
    given = os.environ.get("ARCPIPE_TEST_IMAGE_BASE", "")
    if given and not Path(given).is_dir():
        return given
    if not given and _succeeds("pull", "--quiet", "--retry", "0", _DEFAULT_BASE):
        return _DEFAULT_BASE
    if given or not _succeeds("inspect", "--type", "image", _BASE):
        made = buildah("from", "scratch")
        buildah("add", "--quiet", made, given or str(make_base()), "/")
        if not given:
            root = Path(buildah("mount", made))
            for name in _NOT_IN_SLIM:
                shutil.rmtree(root / name, ignore_errors=True)
            buildah("umount", made)
        buildah("commit", "--quiet", "--rm", made, _BASE)
    return _BASE


def _succeeds(*words: str) -> bool:
    return subprocess.run(["buildah", *_STORE, *words], capture_output=True, check=False).returncode == 0


def build_image(directory: Path) -> dict[str, Any]:
    """Build the image as a user does, and return what it says of itself.

    Args:
        directory: for files of this build.
    """
    # pip reaches its registry inside as it does here.
    settings = directory / "pip.conf"
    settings.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in _pip_settings().items()))
    options = (
        "--format docker --isolation chroot --network host "
        f"--volume {settings}:/etc/pip.conf:ro --volume /etc/ssl/certs:/etc/ssl/certs:ro"
    )
    command = [
        # The environment is there: this test runs in it.
        *("make", "--old-file=test-env", "image", f"VENV={sys.prefix}", f"ENGINE=buildah {' '.join(_STORE)}"),
        *(f"BASE={find_base()}", f"IMAGE_OPTIONS={options}"),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    found: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]
    return found


def _pip_settings() -> dict[str, str]:
    """Return pip's settings on this machine but for its folders of wheels, which the image's build cannot see."""
    lines = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True).splitlines()
    found = {}
    for key, _, value in (line.partition("=") for line in lines):
        name = key.rpartition(".")[2]
        if name not in ("find-links", "no-index"):
            found[name] = str(ast.literal_eval(value))
    return found


class Container:
    """The image's command in a container whose only writable place is the volume; for a `with` block."""

    def __init__(self, config: dict[str, Any], volume: Path, log: Path, **variables: str) -> None:
        """Make ready.

        Args:
            config: what the image says of itself.
            volume: a folder or mount for the image's volume.
            log: the file for its output.
            variables: of the environment, over those of the image.
        """
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.lake = volume / "lake"
        self._config = config
        self._volume = volume
        self._log = log
        own = dict(line.split("=", 1) for line in config["Env"])
        self._variables = own | {"ARCPIPE_SERVER_PORT": str(port), "ARCPIPE_SERVER_HOST": "127.0.0.1"} | variables
        self._made = ""
        self._root = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Container:
        self._made = buildah("from", "--pull-never", IMAGE)
        self._root = buildah("mount", self._made)
        (uid, gid) = self._config["User"].split(":")
        os.chown(self._volume, int(uid), int(gid))  # as an engine does it with a new volume
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        buildah("rm", self._made)

    def start(self) -> None:
        """Start it, and wait until it is healthy, as its HEALTHCHECK tells."""
        place = next(iter(self._config["Volumes"]))
        (uid, gid) = self._config["User"].split(":")
        command = [
            *("bwrap", "--unshare-pid", "--unshare-ipc", "--as-pid-1", "--die-with-parent", "--clearenv"),
            *("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"),  # which setpriv gives up
            *("--ro-bind", self._root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
            *("--bind", str(self._volume), place, "--chdir", self._config["WorkingDir"]),
            *(word for name, value in self._variables.items() for word in ("--setenv", name, value)),
            *("setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs", "--"),
            *(self._config["Entrypoint"] + self._config["Cmd"]),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: _LIBC.prctl(1, signal.SIGKILL, 0, 0, 0),  # PR_SET_PDEATHSIG
            )
        wait_until(self._is_healthy, "the container to be healthy", START_SECONDS)

    def _is_healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text(errors="replace")[-4000:]
        return bool(self.init) and self.run(*self._config["Healthcheck"]["Test"][1:]).returncode == 0

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command beside it, as `docker exec` does."""
        (uid, gid) = self._config["User"].split(":")
        command = ["nsenter", f"--target={self.init}", "--mount", "--pid", "--ipc", "--root", "--wd"]
        user = [f"--setuid={uid}", f"--setgid={gid}"]
        return subprocess.run(
            [*command, *user, *words], env=self._variables, capture_output=True, text=True, timeout=60, check=False
        )

    @property
    def init(self) -> int:
        """The process that is pid 1 in it, by its number here; 0 if it is not there yet."""
        assert self._process is not None
        pid = self._process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return 0
        return int(children[0]) if children else 0

    def children(self) -> list[str]:
        """Return the names of pid 1's children, also of those that have ended and were not reaped."""
        init = self.init
        pids = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids if Path(f"/proc/{pid}").exists()]

    def get(self, path: str) -> int:
        with Client(self.url) as client:
            return client.request("GET", path).status

    def kill(self) -> None:
        """Kill all of it, as the kernel does when pid 1 of a container is killed."""
        assert self._process is not None
        os.kill(self.init, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """Stop it as an engine does, and return its exit code."""
        assert self._process is not None
        os.kill(self.init, getattr(signal, self._config.get("StopSignal", "SIGTERM")))
        return self._process.wait(STOP_SECONDS)


def scratch() -> Path:
    """Return a new folder that the image's user may reach, which pytest's are not."""
    made = Path(tempfile.mkdtemp(prefix="arcpipe-container-"))
    made.chmod(0o755)
    return made

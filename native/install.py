#!/usr/bin/env python3
"""Build the native kernel from this folder, and install it into the environment whose Python runs this.

    install.py                 # make native: a failure is an error, with all that pip says
    install.py --if-possible   # make serve: where it fails, one line says why, and the exit code is 0
    install.py --remove        # make serve NATIVE=no
    install.py --check         # only tell what is missing to build it: exit code 1

What `--if-possible` could not build is not tried again until the source, Python, the compiler, Python's headers or a
variable for the compiler has changed. Files of the environment remember it.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = Path(sys.prefix)
INSTALLED = ENVIRONMENT / ".installed-native"  # the Makefile asks when it was written
FAILED = ENVIRONMENT / ".failed-native"
LOCK = ENVIRONMENT / ".lock-native"
LOG = ENVIRONMENT / "native-build.log"
SOURCES = ("src/*.[ch]", "arcpipe_native/*.py*", "*.py", "pyproject.toml")
NOT_SOURCE = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
# What the compiler and setuptools look at.
VARIABLES = ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED", "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
INSTALL = (*PIP, "install", "--force-reinstall", "--no-deps")
HEADERS = b"#include <Python.h>\n"
PACKAGES = f"gcc python3.{sys.version_info.minor}-dev"
ASK = "from arcpipe.native import KERNEL, REFUSAL; print(REFUSAL if KERNEL is None else 'used')"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--if-possible", action="store_true", help="go on without it where it cannot be built")
    how.add_argument("--remove", action="store_true", help="uninstall it")
    how.add_argument("--check", action="store_true", help="tell what is missing to build it")
    options = parser.parse_args()
    if not options.check and sys.prefix == sys.base_prefix:
        sys.exit("install.py: run it by the Python of an environment, which gets the kernel: .venv/bin/python")
    try:
        if options.remove:
            remove()
        elif options.if_possible:
            install_if_possible()
        else:
            install(only_check=options.check)
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell says of SIGINT


def install(*, only_check: bool) -> None:
    """Install the kernel, or end with an error: what is missing, or all that pip says."""
    reason = missing()
    if reason:
        sys.exit(f"the native kernel cannot be built: {reason}. To build it: apt install {PACKAGES}")
    if only_check:
        return
    with locked(), copied() as folder:
        built_from = source()
        done = subprocess.run([*INSTALL, "--quiet", folder], env=variables(), check=False)
        if done.returncode != 0:
            sys.exit(done.returncode)
        refusal = asked()
        if refusal:
            sys.exit(refusal)
        INSTALLED.write_text(built_from)
        FAILED.unlink(missing_ok=True)
    print("the native kernel is installed")


def install_if_possible() -> None:
    """Install the kernel, or say in one line why not."""
    try:
        with locked():
            failure = attempt()
    except OSError as error:
        failure = f"{error}. To try again: make native"
    if failure and asked():
        print(f"arcpipe runs without its native kernel: {failure}", flush=True)


def attempt() -> str:
    """Install the kernel unless it is there or has failed before; return what is against it, and what to do."""
    built_from = source()
    if read(INSTALLED) == built_from:
        INSTALLED.touch()  # a source is newer, and as it was
        return ""
    now = circumstances()
    before, _, failure = read(FAILED).partition("\n")
    if before == now and failure:
        return failure
    reason = missing()
    if reason:
        failure = f"{reason}. To have it: apt install {PACKAGES}, then make native"
    else:
        reason = build()
        failure = f"{reason}. To try again: make native"
    if not reason:
        INSTALLED.write_text(built_from)
        FAILED.unlink(missing_ok=True)
        return ""
    if INSTALLED.exists():  # that of another source, which may do what this Python does not
        remove()
    FAILED.write_text(f"{now}\n{failure}")
    return failure


def build() -> str:
    """Build and install the kernel; return why that failed, or an empty text."""
    print("building the native kernel, which takes some seconds", flush=True)
    with copied() as folder, LOG.open("wb") as log:
        env = {"PIP_RETRIES": "1"} | variables()  # pip has just had the libraries, or there is no network
        done = subprocess.run(
            [*INSTALL, folder], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode != 0:
        return f"its build failed, and {os.path.relpath(LOG)} says why"
    return asked()


def remove() -> None:
    """Uninstall the kernel, if there is one."""
    if any(Path(sysconfig.get_path("platlib")).glob("arcpipe_native-*.dist-info")):
        subprocess.run([*PIP, "uninstall", "--quiet", "--yes", "arcpipe-native"], check=False)
    for path in (INSTALLED, FAILED):
        path.unlink(missing_ok=True)


def missing() -> str:
    """Tell what is missing to build the kernel, or return an empty text."""
    command = compiler()
    if command is None:
        return f"there is no C compiler ({os.environ.get('CC') or 'cc, gcc or clang'})"
    include = sysconfig.get_path("include")
    if (Path(include) / "Python.h").exists():
        return ""
    # Where else the compiler looks.
    probe = subprocess.run([*command, "-E", "-x", "c", "-"], input=HEADERS, capture_output=True, check=False)
    return "" if probe.returncode == 0 else f"there are no headers of Python in {include}"


def compiler() -> list[str] | None:
    """Return the command of the C compiler: the one of CC, or that of Python, or another one."""
    chosen = os.environ.get("CC")
    for name in [chosen] if chosen else [sysconfig.get_config_var("CC") or "cc", "cc", "gcc", "clang"]:
        words = shlex.split(name)
        if words and shutil.which(words[0]):
            return words
    return None


def variables() -> dict[str, str]:
    """Return the environment of a build, with the compiler that was found."""
    command = compiler()
    return dict(os.environ) if command is None else os.environ | {"CC": shlex.join(command)}


def source() -> str:
    """Return a digest of what a kernel is built from, and of Python's interface."""
    digest = hashlib.sha256(str(sysconfig.get_config_var("SOABI")).encode())
    for path in sorted(path for pattern in SOURCES for path in HERE.glob(pattern)):
        digest.update(f"\n{path.relative_to(HERE)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def circumstances() -> str:
    """Return a digest of all that decides whether a build succeeds, as far as this machine knows."""
    command = compiler()
    files = [Path(sysconfig.get_path("include"), "Python.h"), Path(shutil.which(command[0]) or "" if command else "")]
    told = [source(), sys.version, *(f"{name}={os.environ.get(name)}" for name in VARIABLES)]
    told += [f"{path} {stamp(path)}" for path in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def stamp(path: Path) -> tuple[int, int] | None:
    """Return time and size of a file, or None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def asked() -> str:
    """Ask arcpipe why it does not use the kernel; return an empty text if it does."""
    done = subprocess.run([sys.executable, "-c", ASK], cwd=HERE.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"it ends Python with exit code {done.returncode}"
    said = " ".join(done.stdout.split())
    return "" if said == "used" else said or "it is not installed"


@contextmanager
def copied() -> Iterator[str]:
    """Copy the source, so that no build finds objects of another one, and the checkout may be read-only."""
    with tempfile.TemporaryDirectory(prefix="arcpipe-native-") as name:
        yield str(shutil.copytree(HERE, Path(name) / "native", ignore=NOT_SOURCE))


@contextmanager
def locked() -> Iterator[None]:
    """Let other calls for this environment wait."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read(path: Path) -> str:
    """Return the text of a file; empty if there is no such file."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    main()

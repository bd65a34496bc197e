"""The native kernel, built from `native/src` for the tests: once for each state of its source, in `build/`."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from arcpipe import __version__
from arcpipe.codec.effort import Check, go_on
from arcpipe.codec.line_protocol.body import Lines, encode_by_kernel
from arcpipe.codec.line_protocol.by_kernel import STEP_BYTES
from arcpipe.codec.line_protocol.grammar import Escapes, Unit
from tests.support.modules import load_module
from tests.support.program import ROOT

if TYPE_CHECKING:
    from arcpipe_native import LineReader

SOURCE = ROOT / "native/src"
BUILDS = ROOT / "build/native"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")


class NoCompiler(Exception):
    """There is no C compiler, or no header of Python."""


def compiler() -> list[str]:
    """Return the command that compiles C with Python's headers. Raises NoCompiler."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    include = sysconfig.get_path("include")
    if shutil.which(command[0]) is None:
        raise NoCompiler(f"there is no C compiler {command[0]!r}")
    if not (Path(include) / "Python.h").exists():
        raise NoCompiler(f"there is no Python.h in {include}")
    return [*command, f"-I{include}"]


def build(folder: Path, *flags: str, version: str = __version__) -> Path:
    """Compile the kernel into a folder; return the path of the module. Raises NoCompiler."""
    command = compiler()
    folder.mkdir(parents=True, exist_ok=True)
    module = folder / "_kernel.abi3.so"
    command += ["-shared", "-fPIC", f'-DARCPIPE_VERSION="{version}"', *FLAGS, *flags]
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        command.append("-DPy_LIMITED_API=0x030B0000")
    command += [*map(str, sorted(SOURCE.glob("*.c"))), "-o", f"{module}.new"]
    subprocess.run(command, check=True)
    os.replace(f"{module}.new", module)
    return module


def load(module: Path) -> ModuleType:
    """Load a kernel, beside one that is installed."""
    return load_module(module, "arcpipe_native._kernel")


@functools.cache
def built_kernel(*flags: str) -> ModuleType:
    """Return the kernel of this checkout, compiled with further flags. Raises NoCompiler."""
    state = hashlib.sha256(" ".join((__version__, *flags)).encode())
    for path in sorted(SOURCE.iterdir()):
        state.update(path.read_bytes())
    folder = BUILDS / state.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the tests wait instead of building it, too
        module = folder / "_kernel.abi3.so"
        if not module.exists():
            build(folder, *flags)
    return load(module)


def kernel_of_checkout(*flags: str) -> ModuleType:
    """Return the kernel of this checkout; skip the test where it cannot be built."""
    try:
        return built_kernel(*flags)
    except NoCompiler as error:
        pytest.skip(f"the native kernel cannot be built: {error}")


def line_reader(*flags: str) -> type[LineReader]:
    """Return the kernel's reader of lines; skip the test where it cannot be built."""
    kind: type[LineReader] = kernel_of_checkout(*flags).LineReader
    return kind


def by_kernel(
    body: bytes,
    check: Check = go_on,
    *,
    escapes: Escapes = "v1",
    unit: Unit | None = None,
    step_bytes: int = STEP_BYTES,
) -> Lines:
    """Read a body by the kernel of this checkout."""
    return encode_by_kernel(body, check, escapes=escapes, unit=unit, kind=line_reader(), step_bytes=step_bytes)


def can_be_built() -> bool:
    """Tell whether there is what the kernel is built with."""
    try:
        compiler()
    except NoCompiler:
        return False
    return True

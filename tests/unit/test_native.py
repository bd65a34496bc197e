"""The native kernel is used if it is installed, loads, and is of arcpipe's version; else it is said why not."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path
from random import Random

import pytest

from arcpipe import __version__
from tests.support.kernel import SOURCE, NoCompiler, built_kernel, compiler
from tests.support.program import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the kernel into a folder."""
    try:
        module = built_kernel().__file__
    except NoCompiler as error:
        pytest.skip(f"the native kernel cannot be built: {error}")
    assert module is not None
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "native/arcpipe_native", folder / "arcpipe_native")
    shutil.copy(module, folder / "arcpipe_native")
    return folder


def run(folder: Path, program: str) -> str:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_package_has_the_version_of_arcpipe() -> None:
    assert tomllib.loads((ROOT / "native/pyproject.toml").read_text())["project"]["version"] == __version__


def test_a_kernel_of_this_version_reads_lines(installed: Path) -> None:
    program = (
        "from arcpipe.codec.line_protocol import body\n"
        "lines = body.encode(b'm f=1\\nm f=2')\n"
        "print(body.LINE_KERNEL, lines.encoded.records)"
    )
    assert run(installed, program) == "<class 'arcpipe_native._kernel.LineReader'> 2"


def test_a_kernel_of_another_version_is_not_used_and_named(installed: Path) -> None:
    assert run(installed, "from arcpipe import native; print(*native.find('0.0.1'))") == (
        f"None arcpipe-native {__version__} is not used, because arcpipe is 0.0.1: install the same version of both"
    )


def test_a_kernel_of_an_earlier_commit_is_not_used_and_named(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed, tmp_path, dirs_exist_ok=True)
    init = tmp_path / "arcpipe_native/__init__.py"
    init.write_text(init.read_text() + "\ndel read_column\n")
    assert run(tmp_path, "from arcpipe import native; print(native.KERNEL, native.REFUSAL)") == (
        f"None arcpipe-native {__version__} is not used, because parts of it are missing: install it again"
    )


def test_a_kernel_that_does_not_load_is_not_used_and_named(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed, tmp_path, dirs_exist_ok=True)
    [module] = (tmp_path / "arcpipe_native").glob("*.so")
    module.write_bytes(b"no module" * 1000)
    found = run(tmp_path, "from arcpipe import native; print(native.KERNEL, native.REFUSAL)")
    assert found.startswith("None arcpipe-native is not used, because it cannot be loaded: ")
    assert str(module) in found


def test_without_a_kernel_nothing_is_said(tmp_path: Path) -> None:
    program = "import sys; sys.modules['arcpipe_native'] = None; from arcpipe import native; print(native.find())"
    assert run(tmp_path, program) == "(None, '')"


@pytest.mark.parametrize("flag", ["-DARCPIPE_USUAL", "-DARCPIPE_WITHOUT_CLMUL"])
def test_both_ways_to_make_a_checksum_give_that_of_zlib(tmp_path: Path, flag: str) -> None:
    """A processor that multiplies polynomials goes one way, all others the other."""
    try:
        command = compiler()
    except NoCompiler as error:
        pytest.skip(f"the native kernel cannot be built: {error}")
    library = tmp_path / "checksum.so"
    subprocess.run([*command, "-shared", "-fPIC", flag, str(SOURCE / "checksum.c"), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.add_to_crc32.restype = ctypes.c_uint32
    loaded.prepare_crc32()
    random = Random(1)
    for size in [*range(200), 511, 512, 4099]:
        data, before = random.randbytes(size), random.getrandbits(32)
        made = loaded.add_to_crc32(ctypes.c_uint32(before), data, ctypes.c_size_t(size))
        assert made == zlib.crc32(data, before), size

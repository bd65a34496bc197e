"""The Debian package before it is installed: what is in it, and what its build needs; `tests/systemd` installs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from arcpipe import __version__
from tests.support.modules import load_module
from tests.support.program import ROOT
from tests.support.sets import long

SCRIPT = ROOT / "packaging/deb/build_deb.py"
PYTHON = Path("/usr/bin/python3")
NEEDED = ("dpkg", "dpkg-deb", "dpkg-query")
on_debian = pytest.mark.skipif(
    not PYTHON.exists() or any(shutil.which(name) is None for name in NEEDED), reason="this is no Debian with Python"
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_module(SCRIPT, "build_deb")


def test_what_names_paths_of_the_building_machine_is_removed(tmp_path: Path, script: ModuleType) -> None:
    info = tmp_path / "one-1.dist-info"
    (tmp_path / "bin").mkdir()
    info.mkdir()
    for path in ("bin/one", "one.py", 'o",ne.py', "one-1.dist-info/direct_url.json"):
        (tmp_path / path).write_text(str(tmp_path))
    kept = 'one.py,sha256=a,1\n"o"",ne.py",sha256=b,1\none-1.dist-info/RECORD,,\n'
    (info / "RECORD").write_text(f"../../bin/one,sha256=c,1\none-1.dist-info/direct_url.json,sha256=d,1\n{kept}")
    script.clean(tmp_path)
    assert (info / "RECORD").read_text() == kept
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"one.py", 'o",ne.py', "RECORD"}


@pytest.mark.parametrize(
    ("content", "version"),
    [(b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.4\0", "2.34"), (b"\0GLIBC_2.17\0", "2.28"), (None, "2.28")],
)
def test_the_glibc_is_that_of_the_kernel_or_of_the_wheels(
    tmp_path: Path, script: ModuleType, content: bytes | None, version: str
) -> None:
    if content is not None:
        (tmp_path / "arcpipe_native").mkdir()
        (tmp_path / "arcpipe_native/_kernel.abi3.so").write_bytes(content)
    assert script.libc_version(tmp_path) == version


@on_debian
def test_without_a_compiler_the_build_says_what_it_needs(tmp_path: Path) -> None:
    env = os.environ | {"CC": "/no/cc"}
    done = subprocess.run([SCRIPT, tmp_path / "dist"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the native kernel cannot be built: there is no C compiler (/no/cc). To build it: apt install" in done.stderr
    assert "A package without the native kernel: build_deb.py --no-kernel" in done.stderr
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(
    ("version", "unit", "done"),
    [
        ("", "disabled", "deb-systemd-invoke start arcpipe.service"),
        ("0.1", "masked", "deb-systemd-invoke start arcpipe.service"),  # removed, not purged, and installed again
        ("0.1", "enabled", "systemctl kill --kill-whom=main --signal=USR2 arcpipe.service"),
    ],
)
def test_an_installation_starts_the_service_and_an_upgrade_signals_it(
    tmp_path: Path, version: str, unit: str, done: str
) -> None:
    """After a removal dpkg names the last version, as it does for an upgrade."""
    log = tmp_path / "log"
    for name in ("systemd-sysusers", "systemd-tmpfiles", "py3compile", "deb-systemd-helper", "deb-systemd-invoke"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n')
    (tmp_path / "systemctl").write_text(
        f'#!/bin/sh\necho "systemctl $*" >> {log}\ncase "$1" in is-enabled) echo {unit};; esac\n'
    )
    for tool in tmp_path.iterdir():
        tool.chmod(0o755)
    script = (ROOT / "packaging/deb/postinst").read_text().replace("/run/systemd/system", str(tmp_path))
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", script, "postinst", "configure", version], env=env, check=True)
    ran = log.read_text().splitlines()
    assert done in ran
    assert sum(line.startswith(("deb-systemd-invoke", "systemctl kill")) for line in ran) == 1


@long
@on_debian
def test_two_builds_are_the_same_bytes_with_the_kernel_in_them(tmp_path: Path) -> None:
    packages = []
    for name in ("first", "second"):
        command = [str(SCRIPT), "--fast", "--extras", "", str(tmp_path / name)]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        packages.append(Path(said.strip()))
    assert packages[0].read_bytes() == packages[1].read_bytes()
    tree = tmp_path / "tree"
    subprocess.run(["dpkg-deb", "--extract", packages[0], tree], check=True)
    program = (tree / "usr/bin/arcpipe").read_text().replace("/usr/lib", f"{tree}/usr/lib")
    command = [str(PYTHON), "-I", "-c", program, "--version"]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said == f"arcpipe {__version__}, with its native kernel\n"

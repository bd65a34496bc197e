"""The wheel, built from the sdist and installed into an empty environment: it runs without the clone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import arcpipe
from arcpipe.native import KERNEL
from tests.support.http import Client
from tests.support.lake import lake_rows
from tests.support.program import ROOT, environment
from tests.support.waiting import START_SECONDS, STOP_SECONDS, wait_until

# A release is built at the time of its commit; any other one is as good here.
EPOCH = {"SOURCE_DATE_EPOCH": "1800000000"}


def run(*command: object, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def tracked_files() -> list[str]:
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    return [name for name in listed if name and (ROOT / name).exists()]


def build(target: str, source: Path, into: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", into, cwd=source, PYTHONPATH="", **EPOCH)
    [made] = into.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of what the sdist has, and of nothing else."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / f"arcpipe-{arcpipe.__version__}", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`arcpipe` in an environment of its own, with this environment's libraries and without its arcpipe."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=ROOT)
    python = folder / "bin/python"
    options = ("--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=ROOT, PYTHONPATH="")
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin/arcpipe"


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_has_the_program_with_its_files_and_no_more(wheel: Path) -> None:
    parts = {name for name in names_in(wheel) if not re.match(r"arcpipe-[^/]+\.dist-info/", name)}
    assert parts == {name for name in tracked_files() if name.startswith("arcpipe/")}
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("arcpipe/share/config.toml") == (ROOT / "config.toml").read_bytes()
        [metadata] = (name for name in archive.namelist() if name.endswith("/METADATA"))
        assert f"\nVersion: {arcpipe.__version__}\n" in archive.read(metadata).decode()


@pytest.mark.slow
def test_a_build_of_the_same_files_is_the_same_to_the_byte(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    again = build("sdist", ROOT, tmp_path / "sdist")
    assert again.read_bytes() == sdist.read_bytes()
    # And the clone makes the wheel that the sdist makes.
    assert build("wheel", ROOT, tmp_path / "wheel").read_bytes() == wheel.read_bytes()


class Serving:
    """`arcpipe serve` of the installed program in a directory."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [program, "serve"], cwd=folder, env=clean(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        found = wait_until(self._serving, "the server to serve", START_SECONDS)
        assert found is not None
        self.url = found[1]

    def _serving(self) -> re.Match[str] | None:
        said = self.log.read_text()
        assert self.process.poll() is None, said
        return re.search(r"serving on (http://\S+) with", said)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOP_SECONDS) == 0, self.log.read_text()


def clean() -> dict[str, str]:
    """An environment in which nothing leads to the clone."""
    variables = environment(server_port=0, server_workers=1, wal_min_free_mb=16)
    del variables["PYTHONPATH"]
    return variables


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert str(ROOT) not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_init_serve_write_and_read_back_without_the_clone(program: Path, folder: Path) -> None:
    made = run(program, "init", cwd=folder, PYTHONPATH="")
    assert "written   config.toml" in made
    assert (folder / "config.toml").read_bytes() == (ROOT / "config.toml").read_bytes()
    server = Serving(program, folder)
    try:
        with Client(server.url) as client:
            assert client.request("POST", "/write", b"cpu,host=web-1 usage=42i").status == 204
            assert client.request("GET", "/").status == 200  # the status page's files are in the wheel
        server.stop()
    finally:
        server.process.kill()
        server.process.wait()
    [row] = lake_rows(folder / "data/lake")
    assert (row["host"], row["usage"]) == ("web-1", 42)
    head = subprocess.run(
        [program, "lake", "head", "default", "cpu"], cwd=folder, env=clean(), capture_output=True, text=True, check=True
    )
    assert re.search(r"web-1 +42$", head.stdout, re.MULTILINE)
    said = subprocess.run([program, "--version"], cwd=folder, env=clean(), capture_output=True, text=True, check=True)
    kernel = ", with its native kernel" if KERNEL else ""  # it is among the libraries, or not
    assert said.stdout == f"arcpipe {arcpipe.__version__}{kernel}\n"
    assert os.access(program, os.X_OK)

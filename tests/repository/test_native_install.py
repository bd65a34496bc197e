"""`make serve` has the native kernel where it can be built; elsewhere it serves all the same, and a line says why."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.kernel import NoCompiler, built_kernel
from tests.support.modules import load_module
from tests.support.program import ROOT
from tests.support.sets import long

SCRIPT = ROOT / "native/install.py"
BUILDING = "building the native kernel, which takes some seconds\n"
WITHOUT = "arcpipe runs without its native kernel: "
PACKAGES = f"gcc python3.{sys.version_info.minor}-dev"
IS_USED = "from arcpipe.native import KERNEL; print(KERNEL is not None)"
# In the place of pip: a registry is not asked, and the kernel is the one that the tests have built already.
PIP = """
import shutil, sys
from pathlib import Path

here = Path(__file__).parent
print("pip was called")
if "uninstall" in sys.argv:
    for path in here.glob("arcpipe_native*"):
        shutil.rmtree(path)
else:
    if Path(sys.argv[-1], "fails").exists():
        sys.exit("no such setuptools")
    shutil.copytree({source!r}, here / "arcpipe_native", dirs_exist_ok=True)
    shutil.copy({module!r}, here / "arcpipe_native")
    (here / "arcpipe_native-0.dist-info").mkdir(exist_ok=True)
"""


class Environment:
    """A virtual environment, at first without pip, and a compiler of which only the name matters."""

    def __init__(self, root: Path) -> None:
        self.root = root / "venv"
        venv.create(self.root, symlinks=True)
        [self.packages] = self.root.glob("lib/python3*/site-packages")
        self.compiler = root / "cc"
        self.compiler.write_text("#!/bin/sh\n")
        self.compiler.chmod(0o755)

    def add_pip(self) -> None:
        """Add what stands for pip. Skips the test where no kernel can be built."""
        try:
            module = built_kernel().__file__
        except NoCompiler as error:
            pytest.skip(f"the native kernel cannot be built: {error}")
        text = PIP.format(source=str(ROOT / "native/arcpipe_native"), module=module)
        (self.packages / "pip.py").write_text(text)

    def install(self, *options: str, **variables: str) -> tuple[int, str]:
        """Run the script by this environment's Python; return its exit code and all that it says."""
        env = {"PATH": os.environ["PATH"], "CC": str(self.compiler), **variables}
        command = [str(self.root / "bin/python"), str(SCRIPT), *options]
        done = subprocess.run(
            command, env=env, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return done.returncode, done.stdout

    def has_kernel(self) -> bool:
        """Tell whether arcpipe uses a kernel here."""
        command = [str(self.root / "bin/python"), "-c", IS_USED]
        env = {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def test_without_a_compiler_one_line_says_so_each_time(environment: Environment) -> None:
    line = f"{WITHOUT}there is no C compiler (/no/cc). To have it: apt install {PACKAGES}, then make native\n"
    for _ in range(2):
        assert environment.install("--if-possible", CC="/no/cc") == (0, line)
    assert not (environment.root / ".installed-native").exists()
    loud = f"the native kernel cannot be built: there is no C compiler (/no/cc). To build it: apt install {PACKAGES}\n"
    assert environment.install(CC="/no/cc") == environment.install("--check", CC="/no/cc") == (1, loud)


def test_without_headers_of_python_it_is_said_where_they_were_sought(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_module(SCRIPT, "install")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    monkeypatch.setenv("CC", str(environment.compiler))
    assert script.missing() == ""  # the compiler knows another place
    environment.compiler.write_text("#!/bin/sh\nexit 1\n")
    assert script.missing() == f"there are no headers of Python in {tmp_path}/include"


@pytest.mark.slow
def test_a_build_that_failed_is_not_tried_again_before_something_changes(environment: Environment) -> None:
    line = f"{WITHOUT}its build failed, and native-build.log says why. To try again: make native\n"
    assert environment.install("--if-possible") == (0, BUILDING + line)
    assert "No module named pip" in (environment.root / "native-build.log").read_text()
    assert environment.install("--if-possible") == (0, line)
    assert environment.install("--if-possible", CFLAGS="-g") == (0, BUILDING + line)
    environment.compiler.write_text("#!/bin/sh\n# another one\n")
    assert environment.install("--if-possible", CFLAGS="-g") == (0, BUILDING + line)
    code, said = environment.install()
    assert (code, BUILDING in said, "No module named pip" in said) == (1, False, True)
    (environment.root / ".failed-native").write_bytes(b"\xff\n")  # torn by a full disk, say
    assert environment.install("--if-possible") == (0, BUILDING + line)


@pytest.mark.slow
def test_a_kernel_is_built_once_and_removed_on_request(environment: Environment) -> None:
    environment.add_pip()
    assert environment.install("--if-possible") == (0, BUILDING)
    assert environment.has_kernel()
    assert environment.install("--if-possible", CC="/no/cc") == (0, "")  # of the same source: nothing is to be built
    assert environment.install() == (0, "pip was called\nthe native kernel is installed\n")
    assert environment.install("--remove") == (0, "pip was called\n")
    assert not environment.has_kernel()
    assert environment.install("--remove") == (0, "")
    assert environment.install("--if-possible") == (0, BUILDING)


def test_a_kernel_of_an_older_source_goes_if_the_new_one_cannot_be_built(environment: Environment) -> None:
    """It has the same version between two releases, and may do what the Python of now does not."""
    environment.add_pip()
    environment.install()
    (environment.root / ".installed-native").write_text("of another source")
    code, said = environment.install("--if-possible", CC="/no/cc")
    assert (code, said.startswith(f"pip was called\n{WITHOUT}there is no C compiler")) == (0, True)
    assert not environment.has_kernel()


def test_a_kernel_that_somebody_installed_otherwise_stays_without_a_word(environment: Environment) -> None:
    environment.add_pip()
    environment.install()
    (environment.root / ".installed-native").unlink()
    assert environment.install("--if-possible", CC="/no/cc") == (0, "")
    assert environment.has_kernel()


def test_an_environment_that_cannot_be_written_is_no_obstacle(environment: Environment) -> None:
    (environment.root / ".lock-native").mkdir()
    code, said = environment.install("--if-possible")
    assert code == 0
    assert said.startswith(f"{WITHOUT}[Errno 21] Is a directory: ")
    assert said.endswith(". To try again: make native\n")
    assert said.count("\n") == 1


@long
def test_pip_builds_it_in_an_environment_as_users_have_it(tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True, with_pip=True)
    command = [str(tmp_path / "bin/python"), str(SCRIPT), "--if-possible"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (BUILDING, "")
    assert (tmp_path / ".installed-native").exists()


# The Makefile

INSTALL, REMOVE = "native/install.py --if-possible", "native/install.py --remove"
SERVE = "arcpipe serve --config config.toml"
LATER = 8_000_000_000  # seconds: the time of a stamp that is newer than all files


@pytest.mark.parametrize(
    ("words", "stamp_seconds", "steps"),
    [
        ((), None, [INSTALL, SERVE]),
        ((), 0, [INSTALL, SERVE]),
        ((), LATER, [SERVE]),
        (("NATIVE=no",), LATER, [REMOVE, SERVE]),
    ],
    ids=["first", "older than a source", "up to date", "not wanted"],
)
def test_make_serve_builds_the_kernel_when_it_has_to(
    tmp_path: Path, words: tuple[str, ...], stamp_seconds: int | None, steps: list[str]
) -> None:
    stamps = {"bin/python": LATER, ".installed-runtime": LATER, ".installed-native": stamp_seconds}
    for name, seconds in stamps.items():
        if seconds is not None:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
            os.utime(path, (seconds, seconds))
    done = dry_run("serve", f"VENV={tmp_path}", *words)
    assert done.returncode == 0, done.stderr
    assert [line.partition("/bin/")[2].removeprefix("python ") for line in done.stdout.splitlines()] == steps


def dry_run(*words: str) -> subprocess.CompletedProcess[str]:
    """Have make print the commands that it would run; NATIVE of the environment means nothing to it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--dry-run", *words]
    return subprocess.run(command, cwd=ROOT, env=env | {"NATIVE": "no"}, capture_output=True, text=True, check=False)


def test_a_word_that_make_does_not_know_is_refused() -> None:
    done = dry_run("serve", "NATIVE=maybe")
    assert done.returncode == 2
    assert 'NATIVE is yes or no, and not "maybe"' in done.stderr

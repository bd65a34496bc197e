#!/usr/bin/env python3
"""Build a Debian package: `make deb`. It runs on the Debian that the package is for, with that Debian's own Python.

    build_deb.py [--wheel FILE] [--extras iceberg,delta] [--no-kernel] [--fast] DIR

The package holds arcpipe, its native kernel and its libraries as wheels, in `/usr/lib/arcpipe`, for one minor version
of Python: that of `/usr/bin/python3`. It needs python3-venv and dpkg-deb; for the kernel also gcc and python3-dev. It
is the same to the byte for the same commit, if the registry has the same libraries.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = "/usr/bin/python3"
MAINTAINER = "arcpipe developers <maintainers@arcpipe.invalid>"
# Of wheels: nothing of it runs, and it is a third of their size.
NOT_NEEDED = (
    "numpy/**/tests",
    "pyarrow/tests",
    "pyarrow/include",
    "pyarrow/src",
    "pyarrow/**/*.pyx",
    "**/*.pxd",
    "bin",
)
# Wheels are for glibc 2.28 or newer (manylinux_2_28); the kernel is for that of this Debian.
OF_WHEELS = 28
GLIBC = re.compile(rb"GLIBC_2\.(\d+)")
WITHOUT_KERNEL = "A package without the native kernel: build_deb.py --no-kernel"
# The unit needs systemd 254; on an older one the package has the drop-in for it, which needs 252.
NEW_SYSTEMD, OLD_SYSTEMD = 254, 252
# What an older one would warn of at each start; the drop-in has its words for the same.
OF_NEW_SYSTEMD = r"^(Type=notify-reload|RestartSteps=.*|RestartMaxDelaySec=.*|ImportCredential=.*)\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the package is written")
    parser.add_argument("--wheel", type=Path, help="a wheel of arcpipe; without it one is built from the checkout")
    parser.add_argument("--extras", default="iceberg,delta", help="extras of arcpipe that are inside")
    parser.add_argument("--no-kernel", action="store_true", help="without the native kernel, so without a compiler")
    parser.add_argument("--fast", action="store_true", help="compress little: for tests")
    options = parser.parse_args()
    if not options.no_kernel:
        run(PYTHON, "-B", ROOT / "native/install.py", "--check", hint=WITHOUT_KERNEL)
    with tempfile.TemporaryDirectory(prefix="arcpipe-deb-") as name:
        work = Path(name)
        tree = work / "tree"
        libraries = tree / "usr/lib/arcpipe"
        install(work, libraries, options.wheel, options.extras)
        if not options.no_kernel:
            add_kernel(work, libraries)
        clean(libraries)
        version = debian_version(libraries)
        add_files(tree, work, version)
        add_control(tree, version)
        package = options.directory / f"arcpipe_{version}_{architecture()}.deb"
        options.directory.mkdir(parents=True, exist_ok=True)
        set_times(tree)
        compression = ["-Zgzip", "-z1"] if options.fast else ["-Zxz"]
        run("dpkg-deb", "--root-owner-group", *compression, "--build", tree, package)
        print(package)


def install(work: Path, libraries: Path, wheel: Path | None, extras: str) -> None:
    """Install arcpipe and its libraries, from wheels alone, into a folder of the tree."""
    run(PYTHON, "-m", "venv", work / "venv")
    pip = (work / "venv/bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet")
    if wheel is None:
        run(*pip, "wheel", "--no-deps", "--wheel-dir", work / "wheels", ROOT)
        [wheel] = (work / "wheels").iterdir()
    wanted = f"arcpipe[{extras}] @ {wheel.resolve().as_uri()}"
    constraints = ("--constraint", ROOT / "constraints.txt")
    run(*pip, "install", "--no-compile", "--only-binary", ":all:", "--target", libraries, *constraints, wanted)


def add_kernel(work: Path, libraries: Path) -> None:
    """Build the native kernel for this Debian's Python, and add it to the libraries. End if arcpipe does not use it."""
    source = shutil.copytree(ROOT / "native", work / "native", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    pip = (work / "venv/bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet")
    wheels = work / "kernel"
    # Without what names paths of this machine, and is of no use in a package.
    run(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, source, CFLAGS="-g0", LDFLAGS="-s", hint=WITHOUT_KERNEL)
    offline = ("--no-index", "--find-links", wheels, "--no-deps")
    run(*pip, "install", "--no-compile", *offline, "--target", libraries, "arcpipe-native")
    ask = "import sys; from arcpipe.native import KERNEL, REFUSAL; sys.exit(REFUSAL if KERNEL is None else 0)"
    run(PYTHON, "-B", "-c", ask, PYTHONPATH=str(libraries), PYTHONSAFEPATH="1", hint=WITHOUT_KERNEL)


def clean(libraries: Path) -> None:
    """Remove what is not needed, and what names paths of this machine."""
    for pattern in NOT_NEEDED:
        for path in sorted(libraries.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in libraries.rglob("direct_url.json"):
        path.unlink()
    for record in libraries.glob("*.dist-info/RECORD"):  # else it has the digests of what is not there any more
        with record.open(newline="") as file:
            rows = [row for row in csv.reader(file) if ".." not in row[0] and (libraries / row[0]).exists()]
        with record.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def libc_version(libraries: Path) -> str:
    """Return the oldest version of glibc that has what the kernel calls, or what wheels are made for."""
    names = [name for path in libraries.glob("arcpipe_native/*.so") for name in GLIBC.findall(path.read_bytes())]
    return "2." + str(max([OF_WHEELS, *map(int, names)]))


def debian_version(libraries: Path) -> str:
    """Return the version in Debian's order: what is before a release sorts before it."""
    [metadata] = libraries.glob("arcpipe-*.dist-info")
    version = metadata.name.removeprefix("arcpipe-").removesuffix(".dist-info")
    return version.replace(".dev", "~dev").replace("rc", "~rc") + "-1"


def add_files(tree: Path, work: Path, version: str) -> None:
    """Add the program, the unit, the settings, pages, completions and documents to the tree."""
    copy(HERE / "arcpipe", tree / "usr/bin/arcpipe", 0o755)
    unit = (ROOT / "systemd/arcpipe.service").read_text().replace("/opt/arcpipe/bin/arcpipe", "/usr/bin/arcpipe")
    if systemd_version() < NEW_SYSTEMD:
        unit = re.sub(OF_NEW_SYSTEMD, "", unit, flags=re.MULTILINE)
        drop_in = "usr/lib/systemd/system/arcpipe.service.d/systemd-252.conf"
        copy(ROOT / "systemd/systemd-252.conf", tree / drop_in)
    write(tree / "usr/lib/systemd/system/arcpipe.service", unit)
    copy(ROOT / "systemd/arcpipe.sysusers", tree / "usr/lib/sysusers.d/arcpipe.conf")
    copy(ROOT / "systemd/arcpipe.tmpfiles", tree / "usr/lib/tmpfiles.d/arcpipe.conf")
    copy(ROOT / "config.toml", tree / "etc/arcpipe/config.toml", 0o640)

    pages = work / "pages"
    libraries = tree / "usr/lib/arcpipe"
    run(PYTHON, "-B", ROOT / "packaging/manual.py", pages, PYTHONPATH=str(libraries), SOURCE_DATE_EPOCH=str(epoch()))
    share = tree / "usr/share"
    for section, page in ((1, "arcpipe.1"), (5, "arcpipe.toml.5")):
        compress(pages / page, share / f"man/man{section}/{page}.gz")
    copy(pages / "arcpipe.bash", share / "bash-completion/completions/arcpipe")
    copy(pages / "_arcpipe", share / "zsh/vendor-completions/_arcpipe")
    copy(pages / "arcpipe.fish", share / "fish/vendor_completions.d/arcpipe.fish")

    documents = share / "doc/arcpipe"
    compress(ROOT / "CHANGELOG.md", documents / "changelog.gz")
    write(work / "changelog", debian_changelog(version))
    compress(work / "changelog", documents / "changelog.Debian.gz")
    copy(HERE / "copyright", documents / "copyright")
    for path in sorted((ROOT / "ops").iterdir()):
        copy(path, documents / "examples" / path.name)
    copy(ROOT / "systemd/second-disk.conf", documents / "examples/second-disk.conf")
    copy(HERE / "lintian-overrides", share / "lintian/overrides/arcpipe")


def add_control(tree: Path, version: str) -> None:
    """Add what dpkg reads."""
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    minor = python_minor()
    values = {
        "VERSION": version,
        "ARCHITECTURE": architecture(),
        "MAINTAINER": MAINTAINER,
        "LIBC": libc_version(tree / "usr/lib/arcpipe"),
        "INSTALLED_SIZE": str(sum(-(-path.stat().st_size // 1024) for path in files)),
        "PYTHON": f"3.{minor}",
        "NEXT_PYTHON": f"3.{minor + 1}",
        "SYSTEMD": f"{NEW_SYSTEMD if systemd_version() >= NEW_SYSTEMD else OLD_SYSTEMD}~",
    }
    control = (HERE / "control").read_text()
    for name, value in values.items():
        control = control.replace(f"@{name}@", value)
    write(tree / "DEBIAN/control", control)
    write(tree / "DEBIAN/conffiles", "/etc/arcpipe/config.toml\n")
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(tree)}\n"
        for path in files
        if not path.is_relative_to(tree / "etc")
    ]
    write(tree / "DEBIAN/md5sums", "".join(sums))
    for script in ("postinst", "prerm", "postrm"):
        copy(HERE / script, tree / "DEBIAN" / script, 0o755)


def debian_changelog(version: str) -> str:
    """Return the changelog of the package, which has one entry: that of arcpipe is beside it."""
    date = format_datetime(datetime.fromtimestamp(epoch(), UTC))
    change = f"  * arcpipe {version.rpartition('-')[0]}: changelog.gz has its changes."
    return f"arcpipe ({version}) unstable; urgency=medium\n\n{change}\n\n -- {MAINTAINER}  {date}\n"


def epoch() -> int:
    """Return the time of the build: SOURCE_DATE_EPOCH, or that of the commit, or now where there is no commit."""
    if "SOURCE_DATE_EPOCH" not in os.environ:
        told = output("git", "log", "-1", "--format=%ct") if (ROOT / ".git").exists() else ""
        os.environ["SOURCE_DATE_EPOCH"] = told or str(int(time.time()))
    return int(os.environ["SOURCE_DATE_EPOCH"])


def systemd_version() -> int:
    """Return the version of this Debian's systemd."""
    found = re.match(r"\d+", output("dpkg-query", "--show", "--showformat=${Version}", "systemd"))
    assert found is not None, "BUG: a version of systemd begins with a number"
    return int(found[0])


def python_minor() -> int:
    """Return the minor version of this Debian's Python."""
    return int(output(PYTHON, "-c", "import sys; print(sys.version_info.minor)"))


def architecture() -> str:
    """Return Debian's name of this machine's architecture."""
    return output("dpkg", "--print-architecture")


def set_times(tree: Path) -> None:
    """Give every file and folder a mode that no umask decided, and a time not after that of the build."""
    for path in sorted(tree.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        elif not path.is_relative_to(tree / "etc"):
            may_run = path.parent in (tree / "usr/bin", tree / "DEBIAN") and path.stat().st_mode & 0o100
            path.chmod(0o755 if may_run else 0o644)
        os.utime(path, (epoch(), epoch()))


def copy(source: Path, target: Path, mode: int = 0o644) -> None:
    """Copy a file's content."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def write(target: Path, text: str) -> None:
    """Write a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def compress(source: Path, target: Path) -> None:
    """Write a file as gzip without its name and time, as Debian's policy wants it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(source.read_bytes(), 9, mtime=0))


def output(*words: str) -> str:
    """Run a command in the checkout and return what it prints."""
    return subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def run(*command: object, hint: str = "", **variables: str) -> None:
    """Run a command, and end with its output and a hint if it fails."""
    words = [str(word) for word in command]
    env = os.environ | variables
    done = subprocess.run(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{hint}")


if __name__ == "__main__":
    main()

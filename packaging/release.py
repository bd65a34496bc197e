#!/usr/bin/env python3
"""Build what a release consists of, and make its tag. `make release` and `make dist` call this.

    release.py check       says everything that stands against a release of this commit
    release.py build DIR   makes sdist, wheel and their checksums, the same bytes for the same commit
    release.py version     prints the version
    release.py notes       prints its section of the changelog
    release.py tag DIR     checks, builds, and then makes the tag; so a build that fails leaves none

The version is in `arcpipe/__init__.py` and nowhere else. Nothing is uploaded and nothing is pushed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NoReturn

# Of a release: no suffix such as .dev0.
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("check", "version", "notes"):
        commands.add_parser(name)
    for name in ("build", "tag"):
        commands.add_parser(name).add_argument("directory", type=Path)
    options = parser.parse_args()
    root = options.root.resolve()
    if options.command == "version":
        print(version_of(root))
    if options.command == "notes":
        print(first_section(root)[1].strip())
    if options.command in ("check", "tag") and (problems := list_problems(root)):
        fail([f"no release of {root}:", *(f"  {problem}" for problem in problems)])
    if options.command in ("build", "tag"):
        build(root, options.directory)
    if options.command == "tag":
        tag = f"v{version_of(root)}"
        git(root, "tag", "--annotate", tag, "--message", f"arcpipe {tag.removeprefix('v')}")
        print(f"tagged {git(root, 'rev-parse', '--short', 'HEAD')} as {tag}. Next: git push origin {tag}")


def list_problems(root: Path) -> list[str]:
    """Return what stands against a release of this commit."""
    problems = []
    if changes := git(root, "status", "--porcelain").splitlines():
        problems.append(
            f"{len(changes)} files are not as committed, such as {changes[0].split(maxsplit=1)[1]}: commit them"
        )
    version = version_of(root)
    found = _VERSION.fullmatch(version)
    if found is None:
        problems.append(f"the version {version} in arcpipe/__init__.py is not that of a release, such as 1.2.3")
    tags = [tag for tag in git(root, "tag", "--list", "v*").splitlines() if _VERSION.fullmatch(tag[1:])]
    if f"v{version}" in tags:
        problems.append(f"the tag v{version} is there already: raise the version in arcpipe/__init__.py")
    elif found is not None and tags:
        last = max(tags, key=numbers)
        if numbers(version) < numbers(last):
            problems.append(f"the version {version} is before {last}, the last one: raise it in arcpipe/__init__.py")
    return problems + changelog_problems(root, version)


def changelog_problems(root: Path, version: str) -> list[str]:
    """Return what is wrong with the changelog: its first section has to be this version's, and to say something."""
    title, content = first_section(root)
    if not re.fullmatch(rf"{re.escape(version)} \d{{4}}-\d\d-\d\d", title):
        return [f'the first section of CHANGELOG.md is "{title}": it has to be "{version}" and a date, as 2026-11-30']
    if not re.search(r"^- ", content, re.MULTILINE):
        return [f"the section {version} of CHANGELOG.md lists no change"]
    return []


def first_section(root: Path) -> tuple[str, str]:
    """Return title and content of the changelog's first section."""
    found = re.search(r"^## (.*)\n((?:(?!## ).*\n?)*)", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    if found is None:
        fail(["CHANGELOG.md has no section"])
    return found[1], found[2]


def version_of(root: Path) -> str:
    """Return the version, without running the program."""
    found = re.search(r'^__version__ = "(.*)"$', (root / "arcpipe" / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        fail(["arcpipe/__init__.py has no line __version__ = …"])
    return found[1]


def numbers(version: str) -> tuple[int, ...]:
    """Return the parts of a version, for comparing."""
    return tuple(map(int, version.removeprefix("v").split(".")))


def build(root: Path, directory: Path) -> None:
    """Build sdist and wheel of the commit twice, compare, check, and write them with their checksums."""
    directory.mkdir(parents=True, exist_ok=True)
    if others := sorted(path.name for path in directory.iterdir()):
        fail([f"{directory} is not empty: {', '.join(others)}"])
    first, second = (build_once(root) for _ in range(2))
    for name, content in first.items():
        if second[name] != content:
            fail([f"BUG: two builds of {name} differ"])
        (directory / name).write_bytes(content)
    run(sys.executable, "-m", "twine", "check", "--strict", *(directory / name for name in first), cwd=root)
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(first.items()))
    (directory / "SHA256SUMS").write_text(sums)
    print(sums, end="")


def build_once(root: Path) -> dict[str, bytes]:
    """Return the files by name: the sdist of what is committed, and the wheel of what the sdist has."""
    variables = {"SOURCE_DATE_EPOCH": git(root, "log", "-1", "--format=%ct")}
    hatchling = (sys.executable, "-m", "hatchling", "build", "--directory")
    with tempfile.TemporaryDirectory(prefix="arcpipe-release-") as name:
        folder = Path(name)
        (folder / "source").mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "--extract", "--directory", folder / "source"], input=archive, check=True)
        run(*hatchling, folder / "made", "--target", "sdist", cwd=folder / "source", **variables)
        [sdist] = (folder / "made").iterdir()
        with tarfile.open(sdist) as opened:
            opened.extractall(folder, filter="data")
        unpacked = folder / sdist.name.removesuffix(".tar.gz")
        run(*hatchling, folder / "made", "--target", "wheel", cwd=unpacked, **variables)
        return {path.name: path.read_bytes() for path in sorted((folder / "made").iterdir())}


def git(root: Path, *words: str) -> str:
    """Run git and return what it prints."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        fail([f"git {' '.join(words)}: {done.stderr.strip()}"])
    return done.stdout.rstrip()


def run(*command: object, cwd: Path, **variables: str) -> None:
    """Run a command; its output is shown only if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        fail([f"{' '.join(words)}: exit code {done.returncode}", done.stdout])


def fail(lines: list[str]) -> NoReturn:
    """Say why, and end."""
    sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()

"""`make release`: what it refuses, and what it makes of a commit that is good."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from arcpipe import __version__
from tests.support.program import ROOT
from tests.support.sets import long

SCRIPT = ROOT / "packaging" / "release.py"
CHANGELOG = "# Changelog\n\n## {title}\n\n- A change.\n\n## 0.1.0\n\n- The first version.\n"


class Repository:
    """A small repository with what a release looks at."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "arcpipe").mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        self.write("1.2.3", "1.2.3 2026-11-30")

    def git(self, *words: str) -> str:
        names = ("-c", "user.name=test", "-c", "user.email=test@example.invalid")
        return subprocess.run(
            ["git", *names, *words], cwd=self.root, capture_output=True, text=True, check=True
        ).stdout.strip()

    def write(self, version: str, title: str, changelog: str = CHANGELOG) -> None:
        (self.root / "arcpipe/__init__.py").write_text(f'"""A program."""\n\n__version__ = "{version}"\n')
        (self.root / "CHANGELOG.md").write_text(changelog.format(title=title))
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=change")

    def release(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, SCRIPT, "--root", self.root, *words], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def test_a_good_commit_has_nothing_against_a_release(repository: Repository) -> None:
    assert repository.release("check") == (0, "")


def test_a_release_is_refused_with_every_reason(repository: Repository, tmp_path: Path) -> None:
    def reasons() -> list[str]:
        code, said = repository.release("tag", str(tmp_path / "dist"))
        assert code == 1
        assert not (tmp_path / "dist").exists()
        return said.splitlines()[1:]

    (repository.root / "notes.txt").write_text("not committed")
    assert reasons() == ["  1 files are not as committed, such as notes.txt: commit them"]
    (repository.root / "notes.txt").unlink()
    repository.git("tag", "v1.2.3")
    assert reasons() == ["  the tag v1.2.3 is there already: raise the version in arcpipe/__init__.py"]
    repository.write("1.2.4", "Unreleased")
    assert reasons() == [
        '  the first section of CHANGELOG.md is "Unreleased": it has to be "1.2.4" and a date, as 2026-11-30'
    ]
    repository.write("1.2.2", "1.2.2 2026-11-30")
    assert reasons() == ["  the version 1.2.2 is before v1.2.3, the last one: raise it in arcpipe/__init__.py"]
    repository.write("1.2.4", "1.2.4 2026-11-30", "## {title}\n\nNothing.\n")
    assert reasons() == ["  the section 1.2.4 of CHANGELOG.md lists no change"]
    repository.write("1.10.0.dev0", "1.10.0 2026-11-30")
    assert len(reasons()) == 2
    assert reasons()[0] == "  the version 1.10.0.dev0 in arcpipe/__init__.py is not that of a release, such as 1.2.3"
    repository.write("1.10.0", "1.10.0 2026-11-30")  # which is after 1.2.3
    assert repository.release("check") == (0, "")
    assert repository.git("tag") == "v1.2.3"


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((ROOT / "packaging/helm/arcpipe/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__.removesuffix(".dev0")


def test_the_chart_has_the_alerts_of_ops() -> None:
    alerts = (ROOT / "packaging/helm/arcpipe/files/alerts.yml").read_text()
    assert alerts == (ROOT / "ops/alerts.yml").read_text()


@long
def test_a_release_of_this_commit_is_built_checked_and_tagged(tmp_path: Path) -> None:
    """In a clone, of what is committed, with the version and the section of a release."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, clone], check=True)
    repository = Repository.__new__(Repository)
    repository.root = clone
    version = clone / "arcpipe/__init__.py"
    version.write_text(re.sub(r'__version__ = ".*"', '__version__ = "99.0.0"', version.read_text()))
    changelog = clone / "CHANGELOG.md"
    changelog.write_text(re.sub(r"^## .*$", "## 99.0.0 2026-11-30", changelog.read_text(), count=1, flags=re.MULTILINE))
    repository.git("commit", "--quiet", "--all", "--message=release")
    code, said = repository.release("tag", str(tmp_path / "dist"))
    assert code == 0, said
    names = ["SHA256SUMS", "arcpipe-99.0.0-py3-none-any.whl", "arcpipe-99.0.0.tar.gz"]
    assert sorted(path.name for path in (tmp_path / "dist").iterdir()) == names
    for line in (tmp_path / "dist/SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((tmp_path / "dist" / name).read_bytes()).hexdigest() == digest
    assert repository.git("describe", "--exact-match") == "v99.0.0"
    code, said = repository.release("tag", str(tmp_path / "again"))
    assert "the tag v99.0.0 is there already" in said

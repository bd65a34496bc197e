"""The structure of the benchmarks: imports in one direction, and every command that a text quotes exists."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.system.children import ROOT

# From top to bottom; a package imports only those below it.
# Modules besides the packages that all may import.
GROUND = {"grouping"}
PACKAGES = ("guard", "worst", "micro", "suites", "report", "load", "results", "system")
TEXTS = [
    *ROOT.glob("*.md"),
    *(file for folder in ("docs", "benchmarks", "arcpipe", "tests") for file in (ROOT / folder).rglob("*.md")),
    *(file for folder in ("benchmarks", "arcpipe", "tests") for file in (ROOT / folder).rglob("*.py")),
]


def imported_packages(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("benchmarks."):
            yield from {node.module.split(".")[1]} - GROUND


def test_packages_import_in_one_direction() -> None:
    for place, package in enumerate(PACKAGES):
        for file in (ROOT / "benchmarks" / package).rglob("*.py"):
            for other in imported_packages(file):
                assert other == package or other in PACKAGES[place + 1 :], f"{file.name} of {package} imports {other}"


def test_every_quoted_module_exists() -> None:
    for file in TEXTS:
        for name in re.findall(r"python -m (benchmarks(?:\.\w+)*)|`(benchmarks\.[\w.]*\w)`", file.read_text()):
            module = name[0] or name[1]
            assert importlib.util.find_spec(module) is not None, f"{file.relative_to(ROOT)}: {module}"

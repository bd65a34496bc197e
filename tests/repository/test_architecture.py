"""The import rule of ARCHITECTURE.md, held against the code: an arrow never points up, and there are no cycles."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = (
    {"__main__"},
    {"cli"},
    {"supervisor"},
    {"ingest", "upload", "compaction"},
    {"monitoring", "access", "tables", "load"},
    {"lake"},
    {"wal", "storage", "codec", "client"},
)
GROUND = len(LAYERS)
# Packages of one layer that one of them may import all the same.
BESIDE = {("monitoring", "access"), ("monitoring", "tables"), ("wal", "codec")}
# Of the ground, what pure functions over bytes may use; `native` finds those of them that are in C.
OF_CODEC = {"codec", "errors", "units", "native", "iso_8601"}
# What programs that send records load along with the client.
OF_CLIENT = {"client", "errors", "units", "names", "disk", "durable", "iso_8601"}
FOREIGN = {
    "client": {"uvloop", "httptools", "aiobotocore", "aiohttp", "pyarrow", "numpy", "typer", "rich"},
    "load": {"uvloop", "httptools", "aiobotocore", "typer", "rich"},
    "wal": {"uvloop", "httptools", "aiobotocore", "pyarrow", "http"},
    "codec": {"uvloop", "httptools", "aiobotocore", "asyncio", "socket", "logging"},
    "upload": {"httptools"},
    "ingest": {"aiobotocore"},
}
# Large libraries, which only these packages import: the process that commits needs them, and no other.
OWNED = {
    "pyiceberg": "arcpipe.tables.iceberg",
    "sqlalchemy": "arcpipe.tables.iceberg",
    "deltalake": "arcpipe.tables.delta",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted((ROOT / "arcpipe").rglob("*.py"))}


@functools.cache
def imported(name: str) -> frozenset[str]:
    """Every module that a module imports, anywhere in it, for type checking only, too."""
    return frozenset(_imported(name))


def _imported(name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else node.module


def room_of(name: str) -> str:
    """The package below arcpipe, or the module there."""
    return name.split(".")[1] if "." in name else ""


def layer_of(name: str) -> int:
    return next((number for number, rooms in enumerate(LAYERS) if room_of(name) in rooms), GROUND)


@functools.cache
def arrows() -> dict[str, set[str]]:
    """For each module, those of arcpipe that it imports. To parse them all takes a second."""
    return {
        name: {other for other in imported(name) if other in FILES and other not in (name, "arcpipe")} for name in FILES
    }


def test_no_arrow_points_up() -> None:
    for name, others in arrows().items():
        for other in others:
            assert layer_of(other) >= layer_of(name), f"{name} imports {other}"


def test_packages_of_one_layer_do_not_know_each_other() -> None:
    for name, others in arrows().items():
        for other in others:
            rooms = room_of(name), room_of(other)
            is_beside = layer_of(name) == layer_of(other) != GROUND and rooms[0] != rooms[1]
            assert not is_beside or rooms in BESIDE, f"{name} imports {other}"


def test_there_are_no_cycles() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_the_client_knows_nothing_but_the_ground() -> None:
    for name, others in arrows().items():
        if room_of(name) == "client":
            assert {room_of(other) for other in others} <= OF_CLIENT, name


def test_codec_knows_nothing_but_errors_units_and_the_kernel() -> None:
    for name, others in arrows().items():
        if room_of(name) == "codec":
            assert {room_of(other) for other in others} <= OF_CODEC, name


@pytest.mark.parametrize("room", FOREIGN)
def test_no_package_uses_what_belongs_to_another(room: str) -> None:
    for name in FILES:
        if room_of(name) == room:
            used = {other.partition(".")[0] for other in imported(name)}
            assert not used & FOREIGN[room], f"{name}: {used & FOREIGN[room]}"


@pytest.mark.parametrize("library", OWNED)
def test_a_large_library_stays_in_its_package(library: str) -> None:
    for name in FILES:
        used = {other.partition(".")[0] for other in imported(name)}
        assert library not in used or name == OWNED[library] or name.startswith(OWNED[library] + "."), name


def test_every_package_is_on_the_map() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for path in (ROOT / "arcpipe").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert f"`{path.name}`" in page, path.name
        elif path.is_dir() and (path / "__init__.py").exists():
            assert f"`{path.name}/`" in page, path.name

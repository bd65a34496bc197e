"""`arcpipe schema` shows and changes what is recorded of columns, but never under a running server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arcpipe.cli.main import app
from arcpipe.errors import ArcpipeError
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.table_schema import ColumnSchema, TableSchema
from arcpipe.wal.directory import WALDirectory

Run = Callable[..., Result]


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    wal = tmp_path / "wal"
    (wal / "batches").mkdir(parents=True)
    columns = {"host": ColumnSchema("str", True), "V": ColumnSchema("i64", column="v_2", siblings={"f64": "v_2_f64"})}
    registry = SchemaRegistry(wal / "schema.json", [TableSchema("db", "cpu", columns)])
    registry.save()
    return wal


@pytest.fixture
def run(wal: Path, tmp_path: Path) -> Run:
    config = tmp_path / "config.toml"
    config.write_text(f'[wal]\ndir = "{wal}"\n[storage]\nlayout = "hive"\n')

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(app, ["schema", *arguments, "--config", str(config)])
        if isinstance(result.exception, ArcpipeError):
            raise result.exception
        return result

    return run


def recorded(wal: Path) -> dict[str, ColumnSchema]:
    return SchemaRegistry.load(wal / "schema.json").draft("db", "cpu").columns


def test_tables_and_columns_are_shown(run: Run) -> None:
    assert json.loads(run("ls", "--json").stdout) == {
        "database": "db",
        "measurement": "cpu",
        "columns": 2,
        "siblings": 1,
    }
    assert [line.split() for line in run("ls").stdout.splitlines()][1] == ["db", "cpu", "2", "1"]
    shown = [tuple(json.loads(line).values()) for line in run("show", "db", "cpu", "--json").stdout.splitlines()]
    assert shown == [
        ("host", "host", "str", "tag"),
        ("V", "v_2", "i64", "field"),
        ("V", "v_2_f64", "f64", "sibling of a field"),
    ]
    assert "v_2_f64" in run("show", "db", "cpu").stdout
    with pytest.raises(ArcpipeError, match="no columns of 'mem' in database 'db' are recorded"):
        run("show", "db", "mem")


def test_nothing_is_recorded_yet(run: Run, wal: Path) -> None:
    for name in ("schema.json", "schema.json.copy"):
        (wal / name).unlink()
    assert "No columns are recorded in" in run("ls").stdout


def test_a_new_column_gets_its_type_and_a_known_one_keeps_it(run: Run, wal: Path) -> None:
    assert run("set", "db", "cpu", "usage", "f64").exit_code == 0
    assert run("set", "db", "cpu", "Year", "str").exit_code == 0
    assert recorded(wal)["usage"] == ColumnSchema("f64")
    assert recorded(wal)["Year"] == ColumnSchema("str", column="year_field")
    assert list(recorded(wal)) == ["host", "V", "usage", "Year"]
    with pytest.raises(ArcpipeError, match="column 'usage' has the type f64"):
        run("set", "db", "cpu", "usage", "i64")


def test_columns_are_forgotten(run: Run, wal: Path) -> None:
    assert run("reset", "db", "cpu", "V").stdout == "1 columns of 'cpu' in database 'db' are forgotten.\n"
    assert list(recorded(wal)) == ["host"]
    with pytest.raises(ArcpipeError, match="no such columns of 'cpu'"):
        run("reset", "db", "cpu", "V")
    run("reset", "db", "cpu")
    assert len(SchemaRegistry.load(wal / "schema.json")) == 0
    with pytest.raises(ArcpipeError, match="no such columns of 'cpu'"):
        run("reset", "db", "cpu")


def test_nothing_is_changed_while_a_server_runs_or_a_batch_waits(run: Run, wal: Path) -> None:
    before = (wal / "schema.json").read_bytes()
    manifest = wal / "batches" / "n-20260101T000000-1.1.json"
    manifest.write_text("{}")
    with pytest.raises(ArcpipeError, match="a batch is not finished"):
        run("reset", "db", "cpu")
    manifest.unlink()
    directory = WALDirectory(wal)
    directory.lock()
    try:
        with pytest.raises(ArcpipeError, match="another arcpipe"):
            run("set", "db", "cpu", "x", "str")
        assert run("ls").exit_code == 0
    finally:
        directory.unlock()
    assert (wal / "schema.json").read_bytes() == before

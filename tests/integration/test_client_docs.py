"""The examples of docs/client.md and docs/load.md run as they are, against a server at another address."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import preloaded
from tests.support.program import ROOT
from tests.support.server import Server

URL = "http://127.0.0.1:8000"


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_client_page_s_python_runs(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with Server(tmp_path, server_workers=1) as server:
        for source in blocks("client.md", "python"):
            source = source.replace(URL, server.url).replace("/var/spool", str(tmp_path / "spool"))
            with contextlib.redirect_stdout(printed):
                exec(compile(source, "docs/client.md", "exec"), names)
        server.stop()
    assert printed.getvalue().startswith("1\n400 unable to parse 'this is no line protocol': ")
    # The records of each example: production 1, default 2 + 2 + 1, flush 1, spool 1, async 1.
    assert len(server.wait_for_rows(9)) == 9
    assert not list((tmp_path / "spool").glob("*/*.batch"))


@pytest.mark.slow
def test_the_load_page_s_commands_run(tmp_path: Path) -> None:
    (tmp_path / "export.lp.gz").write_bytes(gzip.compress(b"cpu n=1i 1790000000000000000\n"))
    (tmp_path / "readings.csv").write_text("at,meter,site,kwh\n2026-11-29,m,s,1.5\n")
    (tmp_path / "events.ndjson").write_text('{"measurement": "event", "time": 1790000000, "host": "a", "n": 1}\n')
    table = pa.table({"time": pa.array([0], pa.timestamp("us", "UTC")), "host": ["a"], "n": [1]})
    folder = tmp_path / "arc-data" / "prod" / "mem" / "2026" / "01" / "01" / "00"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "x.parquet")
    pq.write_table(table, tmp_path / "old.parquet")
    lines = [line for block in blocks("load.md", "sh") for line in block.splitlines()]
    assert len(lines) == 5
    with Server(tmp_path, server_workers=1) as server:
        for line in lines:
            words = [word for word in shlex.split(line.replace(URL, server.url))[1:] if word]
            done = preloaded.run(*words, *([] if "--url" in words else ["--url", server.url]), directory=tmp_path)
            assert done.returncode == 0, line + done.stdout + done.stderr
            assert "1 records written" in done.stdout
        server.stop()
        assert len(server.wait_for_rows(5)) == 5


def test_the_options_page_has_every_option_and_its_default() -> None:
    from arcpipe.client import Options
    from arcpipe.units import GB, MB

    page = (ROOT / "docs" / "client.md").read_text().partition("## All options")[2]
    rows = dict(re.findall(r"^\| (`[^|]*`) \| ([^|]+) \|", page, re.MULTILINE))
    found = {
        name: default.strip(" `")
        for names, defaults in rows.items()
        for name, default in zip(re.findall(r"`(\w+)`", names), defaults.split(", "), strict=True)
    }
    shown = {None: "none", "": "none", MB: "1 MB", 64 * MB: "64 MB", GB: "1 GB"}
    wanted = {name: shown.get(value, str(value)) for name, value in _defaults(Options()).items()}
    wanted["ca_file"] = "the system's"
    assert found == wanted


def _defaults(options: Any) -> dict[str, Any]:
    return {name: getattr(options, name) for name in type(options).__dataclass_fields__}

"""Names that try to leave the store, or to hide in it: each gives its records back, and no object is anywhere else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.support.http import pack
from tests.support.lake import lake_files, lake_rows
from tests.support.s3server import S3Bucket
from tests.support.server import Server
from tests.support.stores import Store, local_store, s3_store
from tests.support.waiting import wait_until

DATABASES: Final = (
    *("Home Assistant", "_internal", "_dead_letter", "_delta_log", ".arcpipe-staging", ".hidden", "...", "..%2f..%2fx"),
    *(
        "%2e%2e",
        "%2F",
        "%00",
        "..\\..",
        "C:\\x",
        "a=b",
        "year=2026",
        "*",
        "a?b#c&d",
        " ",
        "~",
        "a~b",
        "$(id)",
        '"',
        "'",
    ),
    *("日本語", "e\u0301", "é", "💧" * 32, "ü" * 64, "x" * 128, "_" * 128, "lost+found", "\u202ea", "<b>", "{{7*7}}"),
)
MEASUREMENTS: Final = ("..", ".", "../../x", "/etc/passwd", "_m", ".m", "a b", "日本語" * 20)
V2: Final = "/write/v2/msgpack"


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return local_store(tmp_path / "inside" / "store")
    return s3_store(request.getfixturevalue("s3"), tmp_path)


def write_all(server: Server) -> None:
    with server.client() as client:
        for number, name in enumerate(DATABASES):
            body = pack({"m": "m", "columns": {"time": [1_790_000_000], "n": [number]}})
            assert client.request("POST", f"{V2}?db={quote(name, safe='')}", body).status == 202
            line = f"m n={number}i 1790000000000000000".encode()
            assert client.request("POST", f"/api/v2/write?bucket={quote(name, safe='')}", line).status == 204
            if name.strip():  # a value ends before its blanks
                assert client.request("POST", V2, body, {"x-arc-database": name}).status == 202
        for number, name in enumerate(MEASUREMENTS):
            body = pack({"m": name, "columns": {"time": [1_790_000_000], "n": [number]}})
            assert client.request("POST", f"{V2}?db=measurements", body).status == 202


def is_counted(server: Server, name: str) -> bool:
    return f'arcpipe_records_total{{database="{name}"}} 3.0' in server.get("/metrics").body.decode()


def test_hostile_names_stay_in_the_store(tmp_path: Path, store: Store, request: pytest.FixtureRequest) -> None:
    tmp_path.joinpath("server").mkdir()
    with Server(tmp_path / "server", server_workers=1, **store.settings) as server:
        write_all(server)
        for name in ("Home Assistant", "日本語", "x" * 128):
            wait_until(partial(is_counted, server, name), f"three records of {name}")
        server.stop()
        server.assert_log_is_shipped()
    lake = store.read()
    files = lake_files(lake)
    if "s3" in request.fixturenames:
        bucket: S3Bucket = request.getfixturevalue("s3")
        assert all(key.startswith("some/prefix/") for key in bucket.list_keys())
    assert sorted(tmp_path.rglob("*.parquet")) == files  # none is anywhere else
    found: dict[str, set[int]] = {}
    for file in files:
        table = pq.read_table(file)
        name = table.schema.metadata[b"arcpipe.database"].decode()
        found.setdefault(name, set()).update(table["n"].to_pylist())
        folder = file.relative_to(lake).parts[0]
        assert unquote(folder) == name or (len(folder) > 120 and "~" in folder)
    assert found.pop("measurements") == set(range(len(MEASUREMENTS)))
    assert found == {name: {number} for number, name in enumerate(DATABASES)}
    assert len({file.relative_to(lake).parts[0] for file in files}) == len(DATABASES) + 1
    expected = sum(2 + bool(name.strip()) for name in DATABASES) + len(MEASUREMENTS)
    assert len(lake_rows(lake)) == expected
    assert ds.dataset(lake, format="parquet").count_rows() == expected  # pyarrow leaves out hidden paths

"""Clients of other languages, run as programs: `make test-clients` puts what they need into `.clients`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.clients.model import Record, as_json
from tests.clients.python_clients import Target
from tests.support.program import ROOT
from tests.support.waiting import WAIT_SECONDS

_HERE: Final = Path(__file__).parent
INSTALLED: Final = ROOT / ".clients"
_NODE: Final = INSTALLED / "node"
_GO: Final = INSTALLED / "go"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (_NODE / "node_modules").is_dir(),
    reason="there is no Node.js with the clients here: `make test-clients` installs them",
)


def _run(command: Sequence[str | Path], target: Target, records: list[Record], batches: bool) -> None:
    job = {
        "url": target.url,
        "database": target.database,
        "gzip": target.gzip,
        "batches": batches,
        "records": as_json(records),
    }
    done = subprocess.run(
        command,
        cwd=_NODE if command[0] == "node" else INSTALLED,
        env=dict(os.environ),
        input=json.dumps(job).encode(),
        capture_output=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def run_node(program: str, target: Target, records: list[Record], *arguments: str) -> None:
    """Run a program of `node/`, which is copied to where its packages are."""
    for source in (_HERE / "node").iterdir():
        copied = _NODE / source.name
        if not copied.exists() or copied.read_bytes() != source.read_bytes():
            temporary = copied.with_name(f"{copied.name}.{os.getpid()}")
            shutil.copyfile(source, temporary)
            temporary.replace(copied)
    _run(["node", f"{program}.mjs", *arguments], target, records, batches=True)


def run_go(program: str, target: Target, records: list[Record], batches: bool = False) -> None:
    """Run a program of `go/`; skip the test where it is not built."""
    name, *arguments = program.split()
    if not (_GO / name).exists():
        pytest.skip(f"{name} for Go is not built: `make test-clients` does it where there is Go")
    _run([_GO / name, *arguments], target, records, batches)

"""What connections hold of a worker's memory, by kind, and whether others are served beside them.

    python -m benchmarks.worst.connections --hold all
    python -m benchmarks.worst.connections --hold head --hold unread --count 1000 --json

For each kind a server starts with one worker and with limits of time that do not end what is measured. A process opens
the connections (`holding.py`). Shown are the worker's resident memory before them, with them and after them,
its peak, and the waits of a client that pings and writes single records meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.system.server import Server, make_certificate
from benchmarks.worst import holding, stall
from benchmarks.worst.holding import KINDS

_SETTLE_SECONDS: Final = 1.0
# In which the worker is done with connections that have ended.
_GONE_SECONDS: Final = 3.0
_WARM_SECONDS: Final = 1.0

_SETTINGS: Final = {
    "server.port": "0",
    "server.workers": "1",
    "server.keep_alive_seconds": "3600",
    "server.header_timeout_seconds": "3600",
    "server.body_timeout_seconds": "3600",
    "server.max_body_seconds": "36000",
    "wal.min_free_mb": "16",
}


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in use now, with pages that it shares with its parent; 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^Rss:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def measure(name: str, count: int, seconds: float, directory: Path, changed: dict[str, str]) -> dict[str, Any]:
    """One kind on a server of its own.

    Args:
        seconds: of the client that is served meanwhile.
        changed: settings of the server that are others than usual.
    """
    kind = KINDS[name]
    settings = {
        **_SETTINGS,
        "server.max_connections": str(count + 50),
        "wal.dir": str(directory / "wal"),
        "storage.url": f"file://{directory / 'lake'}",
        **kind.settings,
        **changed,
    }
    port = 0
    if kind.listener is not None:
        port = _free_port()
        listener = {"address": f"127.0.0.1:{port}", **kind.listener}
        # With a certificate the main listener speaks TLS, and the victim comes to another one.
        settings |= {"server.listeners": json.dumps([listener]), "server.trusted_proxies": "127.0.0.0/8"}
        if kind.tls or kind.hello:
            await make_certificate(directory, "cert.pem", "key.pem")
            plain = _free_port()
            listeners = [{"address": f"127.0.0.1:{plain}"}]
            settings |= {"server.listeners": json.dumps(listeners)}
            settings |= {"server.tls_cert": "cert.pem", "server.tls_key": "key.pem"}
    async with Server(directory, settings) as server:
        host, main_port = server.host, server.port
        victims_port = main_port
        if kind.tls or kind.hello:
            port, victims_port = main_port, plain
        pid = next(pid for pid, use in server.usage().items() if use.name == "ingest 1")
        await _victim(host, victims_port, _WARM_SECONDS)
        before = resident_bytes(pid)
        client = await asyncio.create_subprocess_exec(
            *holding.COMMAND,
            *(name, str(count), host, str(port or main_port)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        try:
            json.loads(await client.stdout.readline())
            await asyncio.sleep(_SETTLE_SECONDS)
            during = resident_bytes(pid)
            seen = await _victim(host, victims_port, seconds)
            during = max(during, resident_bytes(pid))
            client.stdin.write(b"\n")
            held = json.loads(await client.stdout.readline())
        finally:
            client.kill()
            await client.wait()
        await asyncio.sleep(_GONE_SECONDS)
        use = server.usage().get(pid)
        same_worker = use is not None and use.name == "ingest 1"
        return {
            "kind": name,
            **held,
            "before_bytes": before,
            "with_bytes": during,
            "peak_bytes": use.peak_rss_bytes if use is not None else 0,
            "after_bytes": resident_bytes(pid) if same_worker else 0,
            "each_bytes": round((during - before) / count),
            "peak_each_bytes": round(((use.peak_rss_bytes if use is not None else 0) - before) / count),
            "victim": seen,
            "same_worker": same_worker,
            "complaints": server.complaints[:5],
        }


async def _victim(host: str, port: int, seconds: float) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *stall.COMMAND, "--victim", str(seconds), host, str(port), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        return {"failed": "it was cut off", "worst_ms": None, "p99_ms": None, "median_ms": None}
    found: dict[str, Any] = json.loads(output)
    return found


def shown(found: dict[str, Any]) -> str:
    """A line of the table."""
    victim = found["victim"]
    state = "" if found["same_worker"] else "  WORKER WAS REPLACED"
    if victim["failed"]:
        state += f"  VICTIM FAILED: {victim['failed']!r}"
    mb = [found[name] / (1 << 20) for name in ("before_bytes", "with_bytes", "peak_bytes", "after_bytes")]
    return (
        f"{found['kind']:<17} open {found['open']:>6}  sent {found['sent_bytes'] / 1e6:8.1f} MB  "
        f"RSS {mb[0]:5.0f} → {mb[1]:6.0f}, peak {mb[2]:6.0f}, after {mb[3]:6.0f} MB  "
        f"each {found['each_bytes'] / 1000:7.1f} kB  "
        f"victim worst {victim['worst_ms'] or -1:7.1f} median {victim['median_ms'] or -1:5.1f} ms{state}"
    )


async def measure_all(names: list[str], count: int, seconds: float, changed: dict[str, str], as_json: bool) -> None:
    """Each kind, and a line of it as soon as it is measured."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="held-") as directory:
            found = await measure(name, count, seconds, Path(directory), changed)
        print(json.dumps(found) if as_json else shown(found), flush=True)
        if not as_json:
            for complaint in found["complaints"]:
                print(f"  {complaint}")

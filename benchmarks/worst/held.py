"""Memory of a worker that connections hold, by kind, and the service that others get meanwhile.

    python -m benchmarks.worst.connections --hold all
    python -m benchmarks.worst.connections --hold head --hold unread --count 1000 --json

For each kind a server starts with one worker, and with time limits that do not end these connections. A process opens
them (`holding.py`). The output has the worker's resident memory before, with and after them, its peak, and the waits of
a client that pings and writes single records meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.system.server import Server, make_certificate
from benchmarks.worst import holding, stall
from benchmarks.worst.holding import KINDS, Kind

_SETTLE_SECONDS: Final = 1.0
# Seconds after which the worker has released connections that have ended.
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
    """Return the resident memory of a process, with pages that it shares with its parent; 0 if it has ended."""
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


class _Place(NamedTuple):
    """Listeners of a server for the two clients; 0 stands for the main listener's port."""

    settings: dict[str, str]
    held_port: int = 0
    victims_port: int = 0


async def measure(name: str, count: int, seconds: float, directory: Path, changed: dict[str, str]) -> dict[str, Any]:
    """Measure one kind on a server of its own.

    Args:
        name: The kind.
        count: Its connections.
        seconds: Time for which the other client is served.
        directory: For the server's files.
        changed: Settings of the server that replace the usual ones.
    """
    place = await _place(KINDS[name], directory)
    settings = {
        **_SETTINGS,
        "server.max_connections": str(count + 50),
        "wal.dir": str(directory / "wal"),
        "storage.url": f"file://{directory / 'lake'}",
        **KINDS[name].settings,
        **place.settings,
        **changed,
    }
    async with Server(directory, settings) as server:
        victim = server.host, place.victims_port or server.port
        pid = next(pid for pid, use in server.usage().items() if use.name == "ingest 1")
        await _victim(*victim, _WARM_SECONDS)
        before = resident_bytes(pid)
        arguments = [name, str(count), server.host, str(place.held_port or server.port)]
        async with _holder(arguments) as ask:
            await asyncio.sleep(_SETTLE_SECONDS)
            during = resident_bytes(pid)
            seen = await _victim(*victim, seconds)
            during = max(during, resident_bytes(pid))
            held = await ask()
        await asyncio.sleep(_GONE_SECONDS)
        use = server.usage().get(pid)
        same_worker = use is not None and use.name == "ingest 1"
        peak = use.peak_rss_bytes if use is not None else 0
        return {
            "kind": name,
            **held,
            "before_bytes": before,
            "with_bytes": during,
            "peak_bytes": peak,
            "after_bytes": resident_bytes(pid) if same_worker else 0,
            "each_bytes": round((during - before) / count),
            "peak_each_bytes": round((peak - before) / count),
            "victim": seen,
            "same_worker": same_worker,
            "complaints": server.complaints[:5],
        }


async def _place(kind: Kind, directory: Path) -> _Place:
    """Choose listeners for the kind, and make the certificate that they need."""
    if kind.listener is None:
        return _Place({})
    trusted = {"server.trusted_proxies": "127.0.0.0/8"}
    if not (kind.tls or kind.hello):
        port = _free_port()
        listener = {"address": f"127.0.0.1:{port}", **kind.listener}
        return _Place({**trusted, "server.listeners": json.dumps([listener])}, held_port=port)
    # With a certificate the main listener speaks TLS, so the victim needs a plain one.
    await make_certificate(directory, "cert.pem", "key.pem")
    plain = _free_port()
    tls = {"server.tls_cert": "cert.pem", "server.tls_key": "key.pem"}
    listeners = json.dumps([{"address": f"127.0.0.1:{plain}"}])
    return _Place({**trusted, **tls, "server.listeners": listeners}, victims_port=plain)


@asynccontextmanager
async def _holder(arguments: list[str]) -> AsyncIterator[Callable[[], Awaitable[dict[str, Any]]]]:
    """Run the process that holds the connections; yield a function that asks it for their state."""
    client = await asyncio.create_subprocess_exec(
        *holding.COMMAND, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert client.stdin is not None
    assert client.stdout is not None
    stdin, stdout = client.stdin, client.stdout

    async def ask() -> dict[str, Any]:
        stdin.write(b"\n")
        state: dict[str, Any] = json.loads(await stdout.readline())
        return state

    try:
        json.loads(await stdout.readline())  # all are open
        yield ask
    finally:
        client.kill()
        await client.wait()


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
    """Format a result as a line of the table."""
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
    """Measure each kind, and print it as soon as it is measured."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="held-") as directory:
            found = await measure(name, count, seconds, Path(directory), changed)
        print(json.dumps(found) if as_json else shown(found), flush=True)
        if not as_json:
            for complaint in found["complaints"]:
                print(f"  {complaint}")

"""Waits of a client while others send legal, small and costly requests: `python -m benchmarks.worst.stall`.

A new server with one worker runs for each attack. A process sends the attack over some connections as fast as the
server takes it. A victim in another process asks every few milliseconds for /ping, for one record, and at times for
/health, /ready and /metrics. The output has the waits of the victim, those of /ping and of the record apart, because
the disk delays records, too. It also has cores and memory of the worker, and whether it was the same one at the end.

`--search SECONDS` changes the numbers of the attacks at random, and keeps those with longer waits. The worst of each
kind go to `stall_corpus.json`, which later runs include.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.system.server import ProcessUse, Server
from benchmarks.worst.attacks import ATTACKS, CORPUS, MORE_ATTACKS, Recipe, build, changed, load_corpus, request

COMMAND: Final = (sys.executable, "-m", "benchmarks.worst.stall")
_PAUSE_SECONDS: Final = 0.004
# Seconds at the start that do not count: the worker is cold.
_WARM_SECONDS: Final = 0.5
_RARE: Final = 25
# Least number of waits of a victim, however slow the machine is.
_FEWEST_WAITS: Final = 10
_TIMEOUT_SECONDS: Final = 60.0

_RECORD: Final = msgspec.msgpack.encode({"m": "victim", "columns": {"time": [1_700_000_000], "usage": [0.5]}})
_ASKED: Final = (request("/ping", method="GET"), request("/write/v2/msgpack", _RECORD))
_ASKED_RARELY: Final = tuple(request(path, method="GET") for path in ("/health", "/ready", "/metrics"))


class _Attacker(asyncio.Protocol):
    """Sends the same stream as fast as the server takes it, and reads the answers."""

    def __init__(self, data: bytes, ended: asyncio.Event) -> None:
        self._data = data
        self._ended = ended
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(len(self._data))
        self._send()

    def _send(self) -> None:
        if not self._transport.is_closing() and self._transport.get_write_buffer_size() < len(self._data):
            self._transport.write(self._data)
            asyncio.get_running_loop().call_later(0.001, self._send)

    def resume_writing(self) -> None:
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()


async def _attack(host: str, port: int, recipe: Recipe) -> None:
    data = build(recipe)

    async def one() -> None:
        while True:
            ended = asyncio.Event()
            try:
                await asyncio.get_running_loop().create_connection(partial(_Attacker, data, ended), host, port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            await ended.wait()

    print("ready", flush=True)
    await asyncio.gather(*(one() for _ in range(recipe["clients"])))


def be_victim(host: str, port: int, seconds: float) -> dict[str, Any]:
    """Send requests, and measure the waits for their answers."""
    client = socket.create_connection((host, port), _TIMEOUT_SECONDS)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    waits: list[tuple[float, str]] = []
    failed = ""
    began = time.monotonic()
    number = 0
    while time.monotonic() < began + seconds or len(waits) < _FEWEST_WAITS:
        number += 1
        asked = _ASKED_RARELY[number // _RARE % 3] if number % _RARE == 0 else _ASKED[number % 2]
        sent = time.monotonic()
        client.sendall(asked)
        answer = b""
        while True:
            data = client.recv(1 << 20)
            answer += data
            head, end, rest = answer.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            if not data or (end and len(rest) >= int(length or 0)):
                break
        if not answer.startswith(b"HTTP/1.1 2"):
            failed = answer[:200].decode("latin-1")
            break
        if sent > began + _WARM_SECONDS:
            waits.append((time.monotonic() - sent, asked.split(maxsplit=2)[1].decode()))
        time.sleep(_PAUSE_SECONDS)
    waits.sort()
    return {
        "worst_ms": round(waits[-1][0] * 1000, 1) if waits else None,
        "worst_of": {path: round(wait * 1000, 1) for wait, path in waits},  # ascending, so the last one stays
        "p99_ms": round(waits[len(waits) * 99 // 100][0] * 1000, 1) if waits else None,
        "median_ms": round(waits[len(waits) // 2][0] * 1000, 1) if waits else None,
        "asked": number,
        "failed": failed,
    }


def _worker(server: Server) -> tuple[int, ProcessUse | None]:
    return next(((pid, use) for pid, use in server.usage().items() if use.name == "ingest 1"), (0, None))


async def measure(server: Server, recipe: Recipe, seconds: float) -> dict[str, Any]:
    """Run one attack; return the figures of its victim."""
    before, _ = _worker(server)
    where = (server.host, str(server.port))
    attack = await asyncio.create_subprocess_exec(
        *COMMAND, "--attack", json.dumps(recipe), *where, stdout=subprocess.PIPE
    )
    assert attack.stdout is not None
    try:
        await attack.stdout.readline()
        _, use_before = _worker(server)
        began = time.monotonic()
        victim = await asyncio.create_subprocess_exec(
            *COMMAND, "--victim", str(seconds), *where, stdout=subprocess.PIPE
        )
        output, _ = await victim.communicate()
        after, use = _worker(server)
        seconds_taken = time.monotonic() - began
    finally:
        attack.kill()
        await attack.wait()
    found: dict[str, Any] = json.loads(output)
    cores = 0.0
    if use is not None and use_before is not None and before == after:
        cores = (use.cpu_seconds - use_before.cpu_seconds) / seconds_taken
    await asyncio.sleep(0.5)
    peak = use.peak_rss_bytes if use is not None else 0
    return {**found, "cores": round(cores, 2), "peak_mb": peak >> 20, "same_worker": before == after}


def _of(found: dict[str, Any], path: str) -> float:
    return float(found["worst_of"].get(path, -1.0))


def _shown(name: str, found: dict[str, Any]) -> str:
    state = "" if found["same_worker"] else "  WORKER WAS REPLACED"
    if found["failed"]:
        state += f"  VICTIM FAILED: {found['failed']!r}"
    return (
        f"{name:<32} worst {found['worst_ms'] or -1:8.1f} ms  ping {_of(found, '/ping'):7.1f}  "
        f"write {_of(found, '/write/v2/msgpack'):7.1f}  "
        f"p99 {found['p99_ms'] or -1:8.1f}  "
        f"median {found['median_ms'] or -1:6.1f}  asked {found['asked']:>5}  "
        f"cores {found['cores']:.2f}  peak {found['peak_mb']:>5} MB{state}"
    )


async def _measure_alone(
    recipe: Recipe, seconds: float, settings: dict[str, str], data_dir: str | None
) -> dict[str, Any]:
    """Run an attack on a new server, without work or memory that an earlier attack left."""
    with tempfile.TemporaryDirectory(dir=data_dir) as directory:
        paths = {"wal.dir": f"{directory}/wal", "storage.url": f"file://{directory}/lake"}
        alone = {"server.port": "0", "server.workers": "1", "wal.min_free_mb": "16", **paths, **settings}
        async with Server(Path(directory), alone) as server:
            found = await measure(server, recipe, seconds)
            return {**found, "complaints": server.complaints}


async def _search(arguments: argparse.Namespace, settings: dict[str, str]) -> None:
    """Change the worst recipe of one kind after the other at random, and keep worse ones."""
    source = random.Random(arguments.seed)
    corpus = load_corpus()
    kinds = sorted({recipe["kind"] for recipe in ATTACKS.values()})
    worst: dict[str, tuple[float, Recipe]] = {}
    end = time.monotonic() + arguments.search
    while time.monotonic() < end:
        kind = source.choice(kinds)
        if kind in worst:
            recipe = changed(worst[kind][1], source)
        else:
            known = [recipe for recipe in [*ATTACKS.values(), *corpus.values()] if recipe["kind"] == kind]
            recipe = source.choice(known)
        score = float("inf")
        for _ in range(2):  # other programs may have caused one long wait
            found = await _measure_alone(recipe, arguments.seconds, settings, arguments.data_dir)
            bad = found["failed"] or not found["same_worker"]
            score = min(score, float("inf") if bad else found["worst_ms"] or 0.0)
            if kind in worst and score <= worst[kind][0]:
                break
        else:
            worst[kind] = (score, recipe)
            print(_shown(kind, found), json.dumps(recipe), flush=True)
    corpus |= {f"found: {kind}": recipe for kind, (_, recipe) in worst.items()}
    CORPUS.write_text(json.dumps(corpus, indent=1, sort_keys=True) + "\n")


async def _main(arguments: argparse.Namespace) -> int:
    cases = {**ATTACKS, **MORE_ATTACKS, **load_corpus()}
    chosen = {name: cases[name] for name in arguments.case or cases}
    settings = dict(text.split("=", 1) for text in arguments.set or ())
    if arguments.search:
        await _search(arguments, settings)
        return 0
    bad = 0
    for name, recipe in chosen.items():
        found = await _measure_alone(recipe, arguments.seconds, settings, arguments.data_dir)
        print(json.dumps({"attack": name, **found}) if arguments.json else _shown(name, found), flush=True)
        over = arguments.limit and (found["worst_ms"] or 0) > arguments.limit
        bad += bool(found["failed"] or not found["same_worker"] or over)
        for complaint in found["complaints"]:
            print(complaint)
    return bad


def main() -> None:
    """Run the attacks of the command line, or search for worse ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", help="an attack; all by default")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each attack")
    parser.add_argument("--limit", type=float, default=0.0, metavar="MS", help="fail if the victim waits longer")
    parser.add_argument("--search", type=float, default=0.0, metavar="SECONDS", help="look for worse attacks")
    parser.add_argument("--seed", type=int, default=1, help="of --search")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a setting of the server")
    parser.add_argument("--data-dir", type=os.path.abspath, help="where the server's files go; removed again")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each attack")
    parser.add_argument("--attack", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--victim", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attack:
        recipe, host, port = arguments.attack
        asyncio.run(_attack(host, int(port), json.loads(recipe)))
    elif arguments.victim:
        seconds, host, port = arguments.victim
        print(json.dumps(be_victim(host, int(port), float(seconds))))
    else:
        sys.exit(1 if asyncio.run(_main(arguments)) else 0)


if __name__ == "__main__":
    main()

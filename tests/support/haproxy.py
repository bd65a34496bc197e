"""HAProxy with the configuration of `ops/`, in front of as many nodes as a test has."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.http import Client
from tests.support.program import ROOT
from tests.support.server import Server
from tests.support.waiting import wait_until

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


@contextmanager
def haproxy(directory: Path, nodes: Sequence[Server]) -> Iterator[str]:
    """Run it in front of nodes that serve. Yields its URL, which answers by then.

    Args:
        directory: for its configuration and its log.
    """
    config = directory / "haproxy.cfg"
    config.write_text(_for_nodes((ROOT / "ops" / "haproxy.cfg").read_text(), len(nodes)))
    with socket.socket() as listener, (directory / "haproxy.log").open("w+") as log:
        listener.bind(("127.0.0.1", 0))
        addresses = {f"ARCPIPE_NODE_{number}": f"127.0.0.1:{node.port}" for number, node in enumerate(nodes, 1)}
        process = subprocess.Popen(
            [str(HAPROXY), "-db", "-f", config],
            env=os.environ | {"ARCPIPE_PROXY": f"fd@{listener.fileno()}"} | addresses,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            wait_until(lambda: _is_ready(url), "the proxy")
            yield url
        finally:
            process.kill()
            process.wait()
            log.seek(0)
            print(log.read())


def _for_nodes(config: str, count: int) -> str:
    """Have the configuration name more nodes than its two: further lines like that of the second one."""

    def lines(match: re.Match[str]) -> str:
        return "".join(
            match[0].replace("node2", f"node{one}").replace("NODE_2", f"NODE_{one}") for one in range(2, count + 1)
        )

    made, found = re.subn(r" *server node2 .*\n", lines, config)
    assert found == 2, "the configuration has other lines than this function knows"
    return made


def _is_ready(url: str) -> bool:
    try:
        with Client(url) as client:
            return client.request("GET", "/ready").status == 200
    except OSError:
        return False

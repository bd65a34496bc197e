"""Moments in which it matters most whether a process dies."""

from __future__ import annotations

import os
import random
import time

from tests.support.directories import batch_files
from tests.support.server import Server


def wait_for_a_moment(server: Server, chance: random.Random) -> None:
    """Waits for a moment worth dying in: just any, or one in which files change hands."""
    time.sleep(chance.uniform(0.0, 0.3))
    moment = chance.choice(["any", "batch", "sealed", "claimed"])

    def has_come() -> bool:
        match moment:
            case "batch":
                return bool(batch_files(server.wal))
            case "sealed":
                return bool(server.segments(".wal.sealed"))
            case "claimed":  # a segment is being made, from the pool or from nothing
                return any(not name[0].isdigit() for name in os.listdir(server.wal / "free"))
        return True

    deadline = time.monotonic() + 1.0  # the rarer moments may not come
    while not has_come() and time.monotonic() < deadline:
        time.sleep(0.0002)
    time.sleep(chance.choice([0.0, 0.0, chance.uniform(0.0, 0.05)]))

"""A crash of the sender at each call on its disk: every accepted record is sent once, and nothing is damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from arcpipe.client.buffer import Buffer
from arcpipe.client.encoding import Part, Stream
from arcpipe.client.options import Options, SpoolSync
from arcpipe.client.spool import Spool
from arcpipe.disk import Disk
from arcpipe.units import MB

STREAM = Stream("lines", "default", "ns")
RECORDS = 7
CALLS = (
    *("create", "open", "open_for_reading", "open_directory", "make_directory", "write", "truncate", "fdatasync"),
    *("sync_directory", "unlink", "rename", "read", "status", "size", "names", "close"),
)


class Crash(BaseException):
    """The process ends here: nothing in it may handle this."""


class CrashingDisk(Disk):
    """A disk whose process ends before or after its n-th call; what it has done stays."""

    def __init__(self, crash_at: int, is_before: bool) -> None:
        self.calls = 0
        self._crash_at = crash_at
        self._is_before = is_before
        for name in CALLS:
            setattr(self, name, self._crashing(getattr(Disk, name)))

    def _crashing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def crashing(*arguments: object) -> Any:
            self.calls += 1
            is_now = self.calls == self._crash_at
            if is_now and self._is_before:
                raise Crash
            result = call(self, *arguments)
            if is_now:
                raise Crash
            return result

        return crashing


class World:
    """A server that keeps keys, and the records that senders tried to give and were told to be accepted."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.tried: list[bytes] = []
        self.accepted: list[bytes] = []

    def live(self, spool: Spool, records: int) -> None:
        """Be a client: send what is left, then write records and send them."""
        buffer = Buffer(Options(batch_records=3), spool)
        for _ in range(records):
            data = b"record-%d" % len(self.tried)
            self.tried.append(data)
            assert buffer.try_put(STREAM, Part(data, 1))
            self.accepted.append(data)
        buffer.end()
        while (taken := buffer.take()) is not None:
            message = taken.batch.seal()
            if message is not None:
                assert self.kept.setdefault(message.key, message.body) == message.body, "one key, two bodies"
                taken.batch.accepted()
            buffer.finish(taken)


def end_process(directory: Path) -> None:
    """Close what is open there, as the end of a process does, which lets go of its lock, too."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            if os.readlink(f"/proc/self/fd/{name}").startswith(str(directory)):
                os.close(int(name))


def crash(world: World, directory: Path, sync: SpoolSync, disk: CrashingDisk) -> bool:
    """Be a client that ends by a crash; whether it came."""
    try:
        spool = Spool(directory, MB, sync, disk)
        world.live(spool, RECORDS)
        spool.close()
    except Crash:
        end_process(directory)
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("sync", ["always", "batch", "never"])
def test_a_crash_at_any_call_loses_doubles_and_damages_nothing(
    tmp_path: Path, sync: SpoolSync, is_before: bool
) -> None:
    number = 0
    is_crashed = True
    while is_crashed:
        number += 1
        directory = tmp_path / str(number)
        world = World()
        is_crashed = crash(world, directory, sync, CrashingDisk(number, is_before))
        crash(world, directory, sync, CrashingDisk(number // 2 + 1, is_before))  # and the next one, too
        spool = Spool(directory, MB, sync)
        world.live(spool, 1)
        spool.close()
        sent = [record for body in world.kept.values() for record in body.split(b"\n")]
        assert len(sent) == len(set(sent))
        assert set(world.accepted) <= set(sent) <= set(world.tried)
        assert os.listdir(directory) == []
        assert spool.damaged == 0
    assert number > 20

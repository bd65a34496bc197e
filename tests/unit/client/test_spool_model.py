"""Any sequence of writes, sends, lost answers and crashes, against a server that keeps keys: every record once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.client.batches import Batch
from arcpipe.client.encoding import Part, Stream
from arcpipe.client.spool import SUFFIX, Spool
from arcpipe.units import MB

STREAM = Stream("lines", "default", "ns")

steps = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 3)),
    st.tuples(st.just("send"), st.booleans()),  # whether the answer arrives
    st.tuples(st.just("crash"), st.binary(max_size=20)),  # what of a record was written when it came
)


class Sender:
    """A client without threads, and the server of its dreams."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.kept: dict[str, bytes] = {}
        self.accepted: list[bytes] = []
        self._start()

    def _start(self) -> None:
        self.spool = Spool(self.directory, MB, "never")
        self.sealed: list[Batch] = list(self.spool.leftover())
        self.open: Batch | None = None

    def write(self, count: int) -> None:
        if self.open is None:
            self.open = self.spool.new(STREAM)
        for _ in range(count):
            data = b"record %d" % len(self.accepted)
            self.open.add(Part(data, 1))
            self.accepted.append(data)

    def send(self, is_answered: bool) -> None:
        if self.open is not None:
            self.sealed.append(self.open)
            self.open = None
        if not self.sealed:
            return
        batch = self.sealed[0]
        message = batch.seal()
        if message is not None:
            assert self.kept.setdefault(message.key, message.body) == message.body, "one key, two bodies"
        if message is None or is_answered:
            self.sealed.pop(0)
        if message is not None and is_answered:
            batch.accepted()

    def crash(self, torn: bytes) -> None:
        """Lose all memory; the file that is written at this moment may end in a part of a record."""
        self.spool.close()
        if self.open is not None:
            newest = max(Path(self.directory).glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
            with newest.open("ab") as file:
                file.write(b"P\x01\x00\x00\x00\xff\xff\x00\x00" + torn if torn else b"")
        self._start()


@pytest.mark.slow
@given(st.lists(steps, max_size=40))
def test_every_accepted_record_is_at_the_server_once(sequence: Sequence[tuple[str, object]]) -> None:
    with TemporaryDirectory() as directory:
        sender = Sender(directory)
        for name, argument in sequence:
            getattr(sender, name)(argument)
        while sender.sealed or sender.open:
            sender.send(True)
        records = [record for body in sender.kept.values() for record in body.split(b"\n")]
        assert sorted(records) == sorted(sender.accepted)
        assert [name for name in os.listdir(directory) if name.endswith(SUFFIX)] == []
        assert not (Path(directory) / "damaged").exists()
        sender.spool.close()

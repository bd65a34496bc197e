"""What waits is bounded, in order, and told apart by format and database."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.client import BadRecord, Closed, Options, SpoolError
from arcpipe.client.batches import Batch, MemoryStore
from arcpipe.client.buffer import Buffer
from arcpipe.client.encoding import Part, Stream
from tests.support.waiting import WAIT_SECONDS

STREAM = Stream("lines", "a", "ns")
OTHER = Stream("lines", "b", "ns")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def body_of(batch: Batch) -> bytes:
    message = batch.seal()
    assert message is not None
    return message.body


@given(
    st.lists(st.tuples(st.sampled_from([STREAM, OTHER]), st.integers(1, 12)), max_size=60),
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(12, 60),
)
def test_every_part_is_taken_once_in_order_and_within_the_bounds(
    puts: list[tuple[Stream, int]], records: int, size: int, limit: int
) -> None:
    options = Options(batch_records=records, batch_bytes=size, memory_bytes=limit, batch_age_seconds=1000)
    buffer = Buffer(options, MemoryStore(limit), Clock())
    sent: dict[Stream, list[bytes]] = {STREAM: [], OTHER: []}
    wanted: dict[Stream, list[bytes]] = {STREAM: [], OTHER: []}

    def send_one() -> None:
        taken = buffer.take()
        assert taken is not None
        assert 1 <= taken.batch.records <= records
        assert taken.batch.size <= max(size, 12)
        sent[taken.batch.stream] += body_of(taken.batch).split(b"\n")
        buffer.finish(taken)

    for number, (stream, length) in enumerate(puts):
        data = (b"%d" % number).ljust(length, b".")
        while not buffer.try_put(stream, Part(data, 1)):
            send_one()
        wanted[stream].append(data)
        assert buffer.waiting()[1] <= limit or len(data) > limit
    last = buffer.end()
    while not buffer.is_done(last):
        send_one()
    assert sent == wanted
    assert buffer.take() is None
    assert buffer.waiting() == (0, 0)


def test_a_batch_is_sealed_when_it_is_old_enough() -> None:
    clock = Clock()
    buffer = Buffer(Options(batch_age_seconds=1), MemoryStore(100), clock)
    buffer.try_put(STREAM, Part(b"a", 1))
    clock.now = 0.5
    buffer.try_put(STREAM, Part(b"b", 1))
    clock.now = 1.0
    taken = buffer.take()
    assert taken is not None
    assert body_of(taken.batch) == b"a\nb"


def test_a_part_that_never_fits_is_refused_at_once() -> None:
    buffer = Buffer(Options(), MemoryStore(10))
    with pytest.raises(BadRecord, match="11 bytes at once are more than the 10 bytes that may wait"):
        buffer.put(STREAM, Part(b"x" * 11, 1), None)


def test_a_caller_waits_for_room_and_no_longer() -> None:
    buffer = Buffer(Options(), MemoryStore(10))
    assert buffer.put(STREAM, Part(b"x" * 10, 1), 0)
    assert not buffer.put(STREAM, Part(b"y", 1), 0.01)
    done: list[bool] = []
    waiting = threading.Thread(target=lambda: done.append(buffer.put(STREAM, Part(b"y", 1), WAIT_SECONDS)))
    waiting.start()
    taken = buffer.take()
    assert taken is not None
    buffer.finish(taken)
    waiting.join(WAIT_SECONDS)
    assert done == [True]


def test_a_sender_that_died_wakes_everybody() -> None:
    buffer = Buffer(Options(), MemoryStore(10))
    buffer.put(STREAM, Part(b"x" * 10, 1), 0)
    number = buffer.seal_all()
    errors: list[str] = []

    def expect(call: object) -> None:
        try:
            call()  # type: ignore[operator]
        except Closed as error:
            errors.append(str(error))

    calls = [lambda: buffer.put(STREAM, Part(b"y", 1), None), lambda: buffer.wait_done(number, None)]
    threads = [threading.Thread(target=expect, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    buffer.fail("dead")
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert errors == ["dead", "dead"]


def test_nothing_is_taken_after_the_end() -> None:
    buffer = Buffer(Options(), MemoryStore(10))
    buffer.end()
    with pytest.raises(Closed, match="the client is closed"):
        buffer.try_put(STREAM, Part(b"x", 1))
    assert buffer.take() is None


class _Refusing(MemoryStore):
    """A store whose batches refuse the part `bad`."""

    def new(self, stream: Stream) -> Batch:
        batch = super().new(stream)
        add = batch.add

        def refuse(part: Part) -> None:
            if part.data == b"bad":
                raise SpoolError("no")
            add(part)

        batch.add = refuse  # type: ignore[method-assign]
        return batch


def test_a_batch_whose_disk_refused_a_part_is_sent_without_it(tmp_path: Path) -> None:
    buffer = Buffer(Options(), _Refusing(100))
    with pytest.raises(SpoolError):
        buffer.try_put(STREAM, Part(b"bad", 1))
    assert buffer.waiting() == (0, 0)
    buffer.try_put(STREAM, Part(b"good", 1))
    with pytest.raises(SpoolError):
        buffer.try_put(STREAM, Part(b"bad", 1))
    taken = buffer.take()
    assert taken is not None
    assert body_of(taken.batch) == b"good"
    buffer.try_put(STREAM, Part(b"next", 1))
    buffer.seal_all()
    taken = buffer.take()
    assert taken is not None
    assert body_of(taken.batch) == b"next"

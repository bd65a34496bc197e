"""The threads for large bodies: who is next, and who is interrupted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from arcpipe.codec.effort import Check
from arcpipe.ingest.http.background import _MOST_INTERRUPTING_BYTES, Background, ClientGone, Patience
from tests.support.waiting import WAIT_SECONDS

SECONDS = WAIT_SECONDS


@dataclass(unsafe_hash=True)
class Sender:
    name: str
    address: str = "192.0.2.1"
    gone: threading.Event | None = None

    @property
    def is_gone(self) -> bool:
        return self.gone is not None and self.gone.is_set()


class Thread:
    """A background whose first piece waits until all others are there, and the order in which they were done."""

    def __init__(self, *, interrupts: bool = False, patience: float = 0.0) -> None:
        self.may_begin = threading.Event()
        self.background = Background(
            "test", lambda: True, lambda: None, interrupts=interrupts, patience=Patience(patience, 0.0, patience)
        )
        self.begun: list[str] = []
        self.done: list[str] = []
        self.errors: list[Exception] = []

    def add(self, sender: Sender, size: int, work: Callable[[Check], None] | None = None, name: str = "") -> None:
        name = name or sender.name

        def run(check: Check) -> None:
            assert self.may_begin.wait(SECONDS)
            self.begun.append(name)
            if work is not None:
                work(check)

        def finished(error: Exception | None) -> None:
            self.done.append(name)
            if error is not None:
                self.errors.append(error)

        self.background.add(sender, size, run, finished)

    async def settle(self) -> None:
        self.may_begin.set()
        deadline = time.monotonic() + SECONDS
        while self.background.held_bytes:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)


def test_one_client_with_many_pieces_does_not_hold_up_another_with_one() -> None:
    async def run() -> list[str]:
        thread = Thread()
        for number in range(10):
            thread.add(Sender("many"), 1 << 20, name=f"many {number}")
        thread.add(Sender("one"), 1 << 20)
        await thread.settle()
        return thread.begun

    assert asyncio.run(run()).index("one") <= 2


def test_pieces_of_one_client_are_done_in_their_order() -> None:
    async def run() -> list[str]:
        thread = Thread()
        for number in range(10):
            thread.add(Sender("a"), 1000 * (10 - number), name=str(number))
        await thread.settle()
        return thread.begun

    assert asyncio.run(run()) == [str(number) for number in range(10)]


def test_many_connections_of_one_address_do_not_hold_up_another_address() -> None:
    async def run() -> list[str]:
        thread = Thread()
        for number in range(40):
            thread.add(Sender(f"many {number}"), 1 << 20)
        thread.add(Sender("one", "192.0.2.2"), 1 << 20)
        await thread.settle()
        return thread.begun

    assert asyncio.run(run()).index("one") <= 3


def until(event: threading.Event) -> Callable[[Check], None]:
    """Return work that asks to be interrupted until something has happened."""

    def work(check: Check) -> None:
        deadline = time.monotonic() + SECONDS
        while not event.is_set():
            assert time.monotonic() < deadline, "it was not interrupted"
            check()

    return work


def test_a_long_piece_is_interrupted_for_one_whose_turn_has_come() -> None:
    async def run() -> tuple[list[str], list[str]]:
        thread = Thread(interrupts=True)
        short_is_done = threading.Event()

        thread.add(Sender("long"), 1 << 20, until(short_is_done))
        thread.add(Sender("short"), 1000, lambda _: short_is_done.set())
        await thread.settle()
        assert thread.errors == []
        return thread.begun, thread.done

    begun, done = asyncio.run(run())
    assert begun == ["long", "short"]
    assert done == ["short", "long"]


@pytest.mark.parametrize("size", [1000, 100_000])
def test_a_long_piece_waits_for_another_and_a_far_smaller_one_does_not(size: int) -> None:
    """Both long ones together would take twice the memory."""

    async def run() -> Thread:
        thread = Thread(interrupts=True, patience=SECONDS)
        short_is_done = threading.Event()

        thread.add(Sender("long"), 1 << 20, until(short_is_done))
        thread.add(Sender("other"), 1 << 20)
        thread.may_begin.set()
        await asyncio.sleep(0.1)  # by then the turn of the other has come
        thread.add(Sender("short"), size, lambda _: short_is_done.set())
        await thread.settle()
        return thread

    thread = asyncio.run(run())
    assert thread.errors == []
    assert thread.done == ["short", "long", "other"]


def test_a_client_whose_piece_took_longer_than_expected_has_to_wait_longer() -> None:
    async def run() -> list[str]:
        thread = Thread()
        all_are_there = threading.Event()

        def wait(_: Check) -> None:
            all_are_there.wait(SECONDS)

        thread.add(Sender("slow"), 100, lambda _: time.sleep(2), name="slow 1")
        thread.add(Sender("other"), 1 << 20, wait, name="other 1")
        thread.may_begin.set()
        while not thread.done:  # noqa: ASYNC110 - a test
            await asyncio.sleep(0.001)
        thread.add(Sender("slow"), 100, name="slow 2")
        for number in range(2, 5):
            thread.add(Sender("other"), 1 << 20, name=f"other {number}")
        all_are_there.set()
        await thread.settle()
        return thread.begun

    assert asyncio.run(run())[-1] == "slow 2"


def test_unexpectedly_long_pieces_do_not_hold_up_a_later_client() -> None:
    """Each client has many of them waiting: what the first ones took counts for the next."""

    async def run() -> list[str]:
        thread = Thread()
        late_is_there = threading.Event()

        def piece(_: Check) -> None:
            time.sleep(0.02)
            assert len(thread.begun) < 8 or late_is_there.wait(SECONDS)

        for number in range(10):
            for name in ("a", "b"):
                thread.add(Sender(name), 100, piece, name=f"{name} {number}")
        thread.may_begin.set()
        while len(thread.done) < 6:  # noqa: ASYNC110 - a test
            await asyncio.sleep(0.001)
        thread.add(Sender("late"), 1 << 20)
        late_is_there.set()
        await thread.settle()
        assert thread.errors == []
        return thread.begun

    begun = asyncio.run(run())
    assert begun.index("late") <= 10


@pytest.mark.slow
def test_long_pieces_of_many_clients_leave_a_place_for_a_short_one() -> None:
    """Each is interrupted for the next until they are too many bytes; a short one comes in all the same."""
    most = 1 + _MOST_INTERRUPTING_BYTES // 100_000

    async def run() -> list[str]:
        thread = Thread(interrupts=True)
        short_is_done = threading.Event()

        for number in range(100):
            thread.add(Sender(f"long {number}"), 100_000, until(short_is_done))
        thread.may_begin.set()
        while len(thread.begun) < most:  # noqa: ASYNC110 - a test
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.2)  # for one more to begin, if it may
        thread.add(Sender("short"), 1000, lambda _: short_is_done.set())
        await thread.settle()
        assert thread.errors == []
        return thread.begun

    assert asyncio.run(run()).index("short") == most


@pytest.mark.parametrize("size", [1000, 100_000])
def test_a_piece_that_takes_much_memory_interrupts_no_other(size: int) -> None:
    """It waits, and those after it do not."""

    async def run() -> Thread:
        thread = Thread(interrupts=True)
        short_is_done = threading.Event()
        holders: list[str] = []

        def much(name: str) -> Callable[[Check], None]:
            def work(check: Check) -> None:
                check(0.0, 100 << 20)
                holders.append(name)
                assert len(holders) == 1
                until(short_is_done)(check)
                holders.remove(name)

            return work

        for number in range(4):
            thread.add(Sender(f"much {number}"), size, much(f"much {number}"))
        thread.may_begin.set()
        await asyncio.sleep(0.1)  # by then all have tried
        thread.add(Sender("short"), 1000, lambda _: short_is_done.set())
        await thread.settle()
        return thread

    thread = asyncio.run(run())
    assert thread.errors == []
    assert thread.done[0] == "short"
    assert sorted(thread.done[1:]) == [f"much {number}" for number in range(4)]


def test_a_piece_is_not_interrupted_while_there_is_no_memory_for_more() -> None:
    """What those that interrupt it make is memory, too."""

    async def run() -> Thread:
        thread = Thread(interrupts=True)
        thread.background._may_start = lambda: not thread.begun or "a" in thread.done

        def work(check: Check) -> None:
            for _ in range(1000):
                check()

        thread.add(Sender("a"), 1 << 20, work)
        thread.add(Sender("b"), 1000)
        await thread.settle()
        return thread

    thread = asyncio.run(run())
    assert (thread.errors, thread.begun) == ([], ["a", "b"])
    assert thread.done == ["a", "b"]


def test_pieces_of_a_client_that_is_gone_are_given_up() -> None:
    """Pieces of a client that is gone are not done nor done to their end."""

    async def run() -> Thread:
        thread = Thread(interrupts=True)
        gone = threading.Event()
        sender = Sender("gone", gone=gone)

        def work(check: Check) -> None:
            gone.set()
            while True:
                check()

        for number in range(10):
            thread.add(sender, 1 << 20, work, name=f"gone {number}")
        thread.add(Sender("here"), 1 << 20)
        await thread.settle()
        return thread

    thread = asyncio.run(run())
    assert sorted(thread.begun) == ["gone 0", "here"]
    assert len(thread.done) == 11
    assert [type(error) for error in thread.errors] == [ClientGone] * 10


def test_an_error_is_told_and_the_next_piece_is_done() -> None:
    async def run() -> Thread:
        thread = Thread(interrupts=True)

        def fail(_: Check) -> None:
            raise ValueError("broken")

        thread.add(Sender("a"), 100, fail)
        thread.add(Sender("b"), 100)
        await thread.settle()
        return thread

    thread = asyncio.run(run())
    assert sorted(thread.done) == ["a", "b"]
    assert [str(error) for error in thread.errors] == ["broken"]
    assert thread.background._ends == {}


@pytest.mark.slow
def test_a_piece_does_not_look_through_thousands_of_clients() -> None:
    """Thousands of clients that wait are not looked through with each piece."""
    looks = 0

    async def run() -> None:
        thread = Thread()
        ends = thread.background._ends

        def look(_: Check) -> None:
            nonlocal ends, looks
            looks += thread.background._ends is not ends
            ends = thread.background._ends

        for number in range(5000):
            for piece in range(2):  # with one that waits each client is remembered
                thread.add(Sender(str(number)), 100 << 10, look, f"{number} {piece}")
        await thread.settle()

    asyncio.run(run())
    assert 1 <= looks <= 10

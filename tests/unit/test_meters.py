"""Meters in shared memory: places, their loss and gain, rates and connections, between processes that do not lock."""

from __future__ import annotations

import os
import signal
import time

from hypothesis import given
from hypothesis import strategies as st

from arcpipe.meters import BYTES, NS, REQUESTS, WAYS, Meters


def place(meters: Meters, key: bytes, now: int = 0) -> int:
    slot = meters.place(meters.hash_of(key), now)
    assert slot is not None
    return slot


def test_a_key_keeps_its_place_and_no_two_keys_share_one() -> None:
    meters = Meters(2, 4096)
    slots = {}
    for number in range(200):
        slots[number] = place(meters, b"%d" % number)
        meters.paid_until[REQUESTS][slots[number]] = 10
    assert len(set(slots.values())) == 200
    assert all(place(meters, b"%d" % number) == slot for number, slot in slots.items())
    assert meters.used() == 200


def test_whom_nobody_knows_any_more_gives_his_place_away_and_others_do_not() -> None:
    meters = Meters(2, WAYS)  # all keys have the same places
    busy = [meters.hash_of(b"%d" % number) for number in range(WAYS)]
    for number, hashed in enumerate(busy):
        slot = meters.place(hashed, 0)
        assert slot is not None
        if number % 3 == 0:
            meters.paid_until[REQUESTS][slot] = 100
        elif number % 3 == 1:
            meters.paid_until[BYTES][slot] = 100
        else:
            meters.count_connection(2, slot, 1)
    other = meters.hash_of(b"other")
    assert meters.place(other, 99) is None
    slot = meters.place(other, 100)
    assert slot is not None
    assert meters.is_at(slot, other)
    assert [meters.paid_until[rate][slot] for rate in (REQUESTS, BYTES)] == [0, 0]
    with_connections = [hashed for number, hashed in enumerate(busy) if number % 3 == 2]
    for number in range(100):
        meters.place(meters.hash_of(b"later %d" % number), 200)
    found = [slot for hashed in with_connections if (slot := meters.place(hashed, 200)) is not None]
    assert [meters.connections(slot) for slot in found] == [1] * len(with_connections)


def test_connections_are_the_sum_of_all_workers_alive() -> None:
    """Connections are the sum of all workers and those of a dead one are forgotten."""
    meters = Meters(3, 1024)
    slots = []
    for number in range(50):
        slots.append(place(meters, b"%d" % number))
        for worker in (1, 2, 3):
            meters.count_connection(worker, slots[-1], worker + number)
    meters.forget(2)
    assert [meters.connections(slot) for slot in slots] == [4 + 2 * number for number in range(50)]
    meters.forget(1)
    meters.forget(3)
    assert [meters.connections(slot) for slot in slots] == [0] * 50


def test_a_killed_process_leaves_nothing_behind() -> None:
    meters = Meters(2, 1024)
    slot = place(meters, b"client")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        meters.count_connection(1, slot, 7)
        os.write(writer, b"x")
        time.sleep(600)
    assert os.read(reader, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    meters.count_connection(2, slot, 1)
    assert meters.connections(slot) == 8
    meters.forget(1)
    assert meters.connections(slot) == 1
    os.close(reader)
    os.close(writer)


def test_hashes_have_a_key_of_their_own() -> None:
    assert Meters(1, 256).hash_of(b"client") != Meters(1, 256).hash_of(b"client")


@given(
    st.integers(1, 5),
    st.lists(
        st.tuples(st.sampled_from(["take", "open", "close"]), st.integers(0, 40), st.integers(1, 5)), max_size=300
    ),
)
def test_no_connection_is_ever_lost_with_its_place(workers: int, steps: list[tuple[str, int, int]]) -> None:
    """A model: places are few, time passes, and whoever has a place with connections keeps it."""
    meters = Meters(workers, WAYS)
    opened: dict[tuple[int, int], int] = {}  # (client, worker) to connections
    now = 0
    for what, client, number in steps:
        now += NS
        worker = 1 + number % workers
        slot = meters.place(meters.hash_of(b"%d" % client), now)
        has = sum(count for (other, _), count in opened.items() if other == client)
        assert slot is not None or not has
        if slot is None:
            continue
        assert meters.connections(slot) == has
        if what == "take":
            meters.paid_until[REQUESTS][slot] = now + number * NS
        elif what == "open":
            meters.count_connection(worker, slot, 1)
            opened[client, worker] = opened.get((client, worker), 0) + 1
        elif opened.get((client, worker)):
            meters.count_connection(worker, slot, -1)
            opened[client, worker] -= 1

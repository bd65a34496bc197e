"""Who hangs: signs of life as the supervisor reads them, with times that nobody has to wait for."""

from __future__ import annotations

from arcpipe.children import Child, Pulse
from arcpipe.counters import Counters, Uploader, Worker

READY = 4711  # a pid: the child has started


def worker(counters: Counters) -> Child:
    block = counters.worker(1)
    child = Child("ingest 1", lambda: READY, lambda: bool(block[Worker.PID]), [Pulse(block, Worker.HEARTBEAT_US, 10)])
    child.started_at = 100.0
    return child


def test_a_child_that_signs_is_well_however_its_clock_runs() -> None:
    counters = Counters(1)
    child, block = worker(counters), counters.worker(1)
    block[Worker.PID] = READY
    child.forgive(100.0)
    for second, sign in enumerate((5_000, 1_000, 2**63, 1)):
        block[Worker.HEARTBEAT_US] = sign
        assert not child.hangs(100.0 + 9 * second)


def test_a_child_without_a_sign_for_longer_than_its_patience_hangs() -> None:
    counters = Counters(1)
    child, block = worker(counters), counters.worker(1)
    block[Worker.PID] = READY
    block[Worker.HEARTBEAT_US] = 1
    assert not child.hangs(101.0)
    assert not child.hangs(111.0)
    assert child.hangs(111.1)


def test_a_start_may_take_a_minute_and_the_first_sign_is_expected_after_it() -> None:
    counters = Counters(1)
    child, block = worker(counters), counters.worker(1)
    block[Worker.HEARTBEAT_US] = 7  # of its predecessor
    assert not child.hangs(159.0)
    block[Worker.PID] = READY
    assert not child.hangs(165.0)
    assert child.hangs(175.1)
    block[Worker.PID] = 0
    assert child.hangs(160.1)


def test_all_are_forgiven_after_a_pause_of_everybody() -> None:
    counters = Counters(1)
    child, block = worker(counters), counters.worker(1)
    block[Worker.PID] = READY
    block[Worker.HEARTBEAT_US] = 1
    assert not child.hangs(101.0)
    child.forgive(500.0)
    assert not child.hangs(509.0)
    assert child.hangs(511.0)


def test_an_uploader_whose_loop_turns_but_that_gets_nowhere_hangs_in_the_end() -> None:
    block = Counters(1).uploader
    pulses = [Pulse(block, Uploader.HEARTBEAT_US, 30), Pulse(block, Uploader.STEPS, 900)]
    child = Child("uploader", lambda: READY, lambda: bool(block[Uploader.PID]), pulses)
    block[Uploader.PID] = READY
    child.forgive(0.0)
    for second in range(10, 2000, 10):
        block[Uploader.HEARTBEAT_US] = second
        if second <= 1000 and second % 500 == 0:
            block[Uploader.STEPS] += 1  # a try that failed, or an entry of a long batch
        assert child.hangs(float(second)) == (second > 1900)

"""Whether writes are taken: by figures of the last seconds, and by no others."""

from __future__ import annotations

import pytest

from arcpipe.config.settings import Settings
from arcpipe.counters import BEGUN, FIGURES_SECONDS, HANDED_OVER, Counters, Node
from arcpipe.ingest.endpoints import admission
from arcpipe.ingest.endpoints.admission import Admission
from tests.support.wal_doubles import Clock


class MeasuringClock(Clock):
    def monotonic_ns(self) -> int:
        return self.monotonic_us * 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MeasuringClock:
    clock = MeasuringClock()
    monkeypatch.setattr(admission, "time", clock)
    return clock


@pytest.fixture
def node(clock: MeasuringClock) -> memoryview:
    """Of an instance with room, measured now."""
    node = Counters(1).node
    node[Node.DISK_FREE_BYTES] = 1 << 40
    node[Node.MEASURED_US] = clock.monotonic_us
    return node


def is_taken(admission: Admission) -> bool:
    admission.tick()
    admission.tick()
    return admission.refusal() is None


def test_old_figures_are_not_trusted_and_new_ones_are_again(clock: MeasuringClock, node: memoryview) -> None:
    admission = Admission(Settings(), node)
    assert is_taken(admission)
    clock.pass_seconds(FIGURES_SECONDS)
    assert is_taken(admission)
    clock.pass_seconds(0.1)
    assert not is_taken(admission)
    assert b"503" in (admission.refusal() or b"")
    assert b"the supervisor hangs" in (admission.refusal() or b"")
    node[Node.MEASURED_US] = clock.monotonic_us
    assert is_taken(admission)


def test_one_look_after_a_pause_of_the_whole_machine_refuses_nothing(clock: MeasuringClock, node: memoryview) -> None:
    admission = Admission(Settings(), node)
    admission.tick()
    clock.pass_seconds(1000)
    admission.tick()
    assert admission.refusal() is None
    node[Node.MEASURED_US] = clock.monotonic_us
    assert is_taken(admission)


def test_an_upgrade_has_a_minute_to_load(clock: MeasuringClock, node: memoryview) -> None:
    admission = Admission(Settings(), node)
    node[Node.DRAINING] = HANDED_OVER
    clock.pass_seconds(59)
    assert is_taken(admission)
    clock.pass_seconds(2)
    assert not is_taken(admission)
    node[Node.DRAINING] = BEGUN
    assert not is_taken(admission)


def test_nothing_is_taken_while_the_directory_cannot_be_listed(node: memoryview) -> None:
    admission = Admission(Settings(), node)
    node[Node.UNLISTED] = 1
    assert not is_taken(admission)
    node[Node.UNLISTED] = 0
    assert is_taken(admission)

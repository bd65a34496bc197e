"""Whether writes are taken: by figures of the last seconds, and by no others."""

from __future__ import annotations

import pytest

from arcpipe.config.settings import Settings
from arcpipe.counters import BEGUN, FIGURES_SECONDS, HANDED_OVER, Counters, Node
from arcpipe.ingest.endpoints.admission import Admission
from tests.support.wal_doubles import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(clock: Clock) -> memoryview:
    """Of an instance with room, measured now."""
    node = Counters(1).node
    node[Node.DISK_FREE_BYTES] = 1 << 40
    node[Node.MEASURED_US] = clock.monotonic_us
    return node


def admission_by(clock: Clock, node: memoryview) -> Admission:
    return Admission(Settings(), node, lambda: clock.monotonic_us)


def is_taken(admission: Admission) -> bool:
    admission.tick()
    admission.tick()
    return admission.refusal() is None


def test_old_figures_are_not_trusted_and_new_ones_are_again(clock: Clock, node: memoryview) -> None:
    admission = admission_by(clock, node)
    assert is_taken(admission)
    clock.pass_seconds(FIGURES_SECONDS)
    assert is_taken(admission)
    clock.pass_seconds(0.1)
    assert not is_taken(admission)
    assert b"503" in (admission.refusal() or b"")
    assert b"the supervisor hangs" in (admission.refusal() or b"")
    node[Node.MEASURED_US] = clock.monotonic_us
    assert is_taken(admission)


def test_one_look_after_a_pause_of_the_whole_machine_refuses_nothing(clock: Clock, node: memoryview) -> None:
    admission = admission_by(clock, node)
    admission.tick()
    clock.pass_seconds(1000)
    admission.tick()
    assert admission.refusal() is None
    node[Node.MEASURED_US] = clock.monotonic_us
    assert is_taken(admission)


def test_an_upgrade_has_a_minute_to_load(clock: Clock, node: memoryview) -> None:
    admission = admission_by(clock, node)
    node[Node.DRAINING] = HANDED_OVER
    clock.pass_seconds(59)
    assert is_taken(admission)
    clock.pass_seconds(2)
    assert not is_taken(admission)
    node[Node.DRAINING] = BEGUN
    assert not is_taken(admission)


def test_nothing_is_taken_while_the_directory_cannot_be_listed(clock: Clock, node: memoryview) -> None:
    admission = admission_by(clock, node)
    node[Node.UNLISTED] = 1
    assert not is_taken(admission)
    node[Node.UNLISTED] = 0
    assert is_taken(admission)

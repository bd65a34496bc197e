"""What a delivery says of a batch that it gives up, by what its tries have met."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from arcpipe.client.connections import NoAnswer
from arcpipe.client.delivery import Delivery, Message
from arcpipe.client.encoding import Stream
from arcpipe.client.errors import Refusal
from arcpipe.client.options import Node, Options, read_urls
from arcpipe.client.retry import Answer

MESSAGE = Message("k-1", Stream("lines", "default", "ns"), 1, b"cpu v=1")
LOST = NoAnswer("no answer in time", may_be_written=True)
UNREACHED = NoAnswer("cannot connect", may_be_written=False)


class Tries:
    """Connections whose tries end as they are told, and each takes a second of the clock."""

    def __init__(self, *ends: Answer | NoAnswer) -> None:
        self.now = 0.0
        self._ends = iter(ends)

    def clock(self) -> float:
        return self.now

    def post(self, node: Node, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.now += 1
        end = next(self._ends)
        if isinstance(end, NoAnswer):
            raise end
        return end


def refused(*ends: Answer | NoAnswer, may_be_sent: bool = False) -> Refusal:
    tries = Tries(*ends)
    options = Options(give_up_seconds=len(ends), first_pause_seconds=0.001, longest_pause_seconds=0.001)
    delivery = Delivery(read_urls("http://a"), options, clock=tries.clock)
    delivery._connections = tries  # type: ignore[assignment]
    outcome = delivery.deliver(MESSAGE, may_be_sent)
    assert isinstance(outcome, Refusal)
    return outcome


@pytest.mark.parametrize("last", [UNREACHED, Answer(401, {}, b""), Answer(404, {}, b""), Answer(503, {}, b"")], ids=str)
def test_a_batch_that_some_try_may_have_written_is_never_called_unwritten(last: Answer | NoAnswer) -> None:
    """To send its body again, with another key or none, would double it."""
    assert refused(LOST, last).is_partly_written
    assert refused(last, may_be_sent=True).is_partly_written


def test_a_batch_that_no_try_can_have_written_is_called_so() -> None:
    nothing = Answer(503, {}, b'{"error": "nothing was written"}')
    assert not refused(UNREACHED, nothing, UNREACHED).is_partly_written
    assert not refused(UNREACHED, Answer(401, {}, b"")).is_partly_written


def test_400_is_for_the_bytes_so_no_earlier_try_was_written() -> None:
    assert not refused(LOST, Answer(400, {}, b'{"error": "no line"}')).is_partly_written
    assert refused(UNREACHED, Answer(400, {}, b'{"error": "partial write: no line"}')).is_partly_written

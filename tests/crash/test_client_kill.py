"""kill -9 of the sender at random moments, with a network that loses answers: every accepted record arrives once."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from tests.support.faulty_proxy import Faults, FaultyProxy
from tests.support.keepers import KEEPERS, keeper
from tests.support.sending import Sender
from tests.support.sets import IS_LONG
from tests.support.waiting import wait_until

LIVES = 60 if IS_LONG else 6
# Most tries fail before the server has the batch: so a kill meets batches that are nowhere but in the spool.
FAULTS = Faults(lost_answers=0.2, cut_answers=0.05, cut_requests=0.15, refused=0.3, slow=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800 if IS_LONG else 600)  # sixty lives, and all that they left
@pytest.mark.parametrize("name", KEEPERS)
def test_a_sender_that_is_killed_again_and_again_sends_each_record_once(name: str, tmp_path: Path) -> None:
    chance = random.Random(21)
    with keeper(name, tmp_path / "server") as kept, FaultyProxy(kept.url, FAULTS, seed=21) as proxy:
        lives = []
        for life in range(LIVES):
            sender = Sender(proxy.url, tmp_path, life * 1_000_000, 100_000)
            lives.append(sender)
            enough = chance.randrange(1, 150)
            wait_until(partial(sender.has_accepted, enough), f"{enough} records")
            sender.kill()
        last = Sender(proxy.url, tmp_path, LIVES * 1_000_000, 20)
        lives.append(last)
        assert last.ended(lambda: len(list((tmp_path / "spool").glob("*.batch"))))
        told = {number for sender in lives for number in sender.accepted()}
        found = kept.numbers(len(told))
        assert len(found) == len(set(found)), "a record arrived twice"
        assert told <= set(found), "an accepted record did not arrive"
        # A record may have been accepted right before the kill, and not told any more.
        untold = set(found) - told
        assert len({number // 1_000_000 for number in untold}) == len(untold)
        assert proxy.met["lost_answers"]
        assert not list((tmp_path / "spool").glob("*.batch"))

"""How long earlier states of a table stay, by its own property."""

from __future__ import annotations

import pytest

from arcpipe.tables.delta.maintain import retention_seconds
from arcpipe.tables.delta.state import State


def retention(text: str | None) -> float | None:
    configuration = {} if text is None else {"delta.logRetentionDuration": text}
    return retention_seconds(State(0, b"", {}, {"configuration": configuration}))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 30 * 86_400),
        ("interval 24 hours", 86_400),
        ("interval 1 week", 604_800),
        ("2 days 3 hours", 183_600),
        ("INTERVAL 90 minutes", 5_400),
        ("interval 0 seconds", 0),
        ("interval 1 month", None),
        ("forever", None),
        ("", None),
        ("interval -1 days", None),
    ],
)
def test_a_retention_is_read_or_nothing_is_deleted(text: str | None, seconds: float | None) -> None:
    assert retention(text) == seconds

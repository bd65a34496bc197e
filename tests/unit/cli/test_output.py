"""How commands write times and texts."""

from __future__ import annotations

import pytest

from arcpipe.cli.lake import _shown
from arcpipe.cli.output import hour_of, moment_of


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (-62_135_596_800_000_000, "0001-01-01T00:00:00.000000Z"),
        (-30_641_760_000_000_000, "0999-01-01T00:00:00.000000Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_a_year_has_four_digits_in_every_century(us: int, text: str) -> None:
    assert (moment_of(us), hour_of(us)) == (text, text[:13])


def test_a_text_is_one_line_for_people_and_unchanged_for_programs() -> None:
    text = "é\n\x1b[31mred"
    assert (_shown(text, as_json=False), _shown(text, as_json=True)) == ("é\\n\\x1b[31mred", text)

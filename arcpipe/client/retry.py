"""What an answer means for a batch, and how long to wait before it is tried again. Pure functions.

| answer | consequence |
|---|---|
| 202, 204 | accepted |
| 408, 425, 429, 502, 503, 504, 507, no answer at all | tried again, under the same key and with the same bytes |
| 500 | tried again five times: a bug of the server may be one of this body |
| the rest | refused for good: also 200, which some page of a web server may answer, and 3xx |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

MAX_SERVER_ERRORS: Final = 5
LONGEST_RETRY_AFTER: Final = 3600.0  # seconds; a server that asks for more is asked after an hour all the same

_ACCEPTED: Final = {202, 204}
_TRIED_AGAIN: Final = {408, 425, 429, 500, 502, 503, 504, 507}
# Nothing of the request was written, whatever else the answer says: it was refused as a whole, or never arrived.
_SURELY_NOT_WRITTEN: Final = {408, 425, 429}
_MAY_BE_WRITTEN: Final = "may have been written"  # in the answer of an arcpipe whose disk fails
_NOTHING_WRITTEN: Final = "nothing was written"
_SECONDS: Final = re.compile(r"\d{1,9}(\.\d+)?\Z")
_MAX_REASON: Final = 500  # characters of an answer that is no JSON


class Answer(NamedTuple):
    """The answer to a request. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Failure(NamedTuple):
    """Why a batch was not accepted this time."""

    reason: str
    may_be_written: bool
    retry_after_seconds: float | None = None


def is_accepted(answer: Answer) -> bool:
    """Tell whether the batch is on the server's disk."""
    return answer.status in _ACCEPTED


def was_replayed(answer: Answer) -> bool:
    """Tell whether the server knew the key already."""
    return answer.headers.get("idempotency-replayed", "").lower() == "true"


def is_final(answer: Answer, server_errors: int) -> bool:
    """Tell whether another try makes no sense.

    Args:
        server_errors: how often this batch was answered 500, this answer among them.
    """
    if answer.status == 500:
        return server_errors > MAX_SERVER_ERRORS
    return answer.status not in _TRIED_AGAIN


def failure_of(answer: Answer, now: datetime) -> Failure:
    """Read an answer after which the batch is tried again."""
    reason = reason_of(answer)
    may_be_written = answer.status not in _SURELY_NOT_WRITTEN and (
        _MAY_BE_WRITTEN in reason or _NOTHING_WRITTEN not in reason
    )
    after = retry_after_seconds(answer.headers.get("retry-after", ""), answer.headers.get("date", ""), now)
    return Failure(f"answered {answer.status}: {reason}", may_be_written, after)


def reason_of(answer: Answer) -> str:
    """Return what the body of an answer says, as text on one line."""
    try:
        said = json.loads(answer.body)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        errors = said.get("data")
        if isinstance(errors, list) and errors and isinstance(errors[0], dict):  # InfluxDB 3
            return f"{said.get('error')}: line {errors[0].get('line_number')}: {errors[0].get('error_message')}"
        for name in ("error", "message"):
            if isinstance(said.get(name), str):
                return str(said[name])
    text = answer.body[: 4 * _MAX_REASON].decode("utf-8", "replace")
    return " ".join(text.split())[:_MAX_REASON] or "no reason"


def refusal_reason(answer: Answer) -> str:
    """Return why a batch is refused for good, with what to do if the URL is to blame."""
    if 200 <= answer.status < 300:
        return f"that is no answer of arcpipe: is the URL right? It says: {reason_of(answer)}"
    if 300 <= answer.status < 400:
        return (
            f"redirects are not followed: use the URL it names, {answer.headers.get('location', 'which it does not')}"
        )
    return reason_of(answer)


def is_partly_written(answer: Answer) -> bool:
    """Tell whether good lines of a refused body are written."""
    return answer.status == 400 and reason_of(answer).startswith("partial write")


def retry_after_seconds(value: str, date: str, now: datetime) -> float | None:
    """Read the header Retry-After: seconds, or an HTTP date.

    Args:
        date: the header Date of the same answer. A date is counted from it, so that two clocks need not agree.
        now: the time of day, for an answer without Date.

    Returns:
        Seconds from 0 to an hour; None if there is no such header, or it makes no sense.
    """
    value = value.strip()
    if _SECONDS.match(value):
        return min(float(value), LONGEST_RETRY_AFTER)
    moment = _http_date(value)
    if moment is None:
        return None
    seconds = (moment - (_http_date(date) or now)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def _http_date(text: str) -> datetime | None:
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def pause_seconds(failures: int, retry_after: float | None, first: float, longest: float, chance: float) -> float:
    """Return how long to wait before the next try.

    Without Retry-After the step doubles with each failure, up to `longest`, and the pause is half of it to all of it.
    With one the pause is no shorter, and at most `first` longer than it unless the step is.

    Args:
        failures: of this batch until now, at least 1.
        chance: a random number from 0 to 1: many clients must not come back at the same moment.
    """
    step = min(longest, first * 2.0 ** min(failures - 1, 60))
    pause = step * (0.5 + chance / 2)
    return pause if retry_after is None else max(pause, retry_after + first * chance)

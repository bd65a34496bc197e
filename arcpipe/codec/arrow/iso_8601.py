"""Read a column of times that are ISO 8601 text, by the grammar of `arcpipe.iso_8601`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.arrow.values import Ints, Mask
from arcpipe.iso_8601 import MAX_SECONDS, MIN_SECONDS, in_extended_form, parse_time

# Texts from the first of these up to the second are years of which Arrow's nanoseconds have 64 bits.
_FIRST_NS, _LAST_NS = "1678", "2262"


class TextTimes(NamedTuple):
    """Texts as times. Those that are not valid have no meaning."""

    seconds: Ints  # since the epoch
    ns: Ints  # after them, 0 to 999,999,999
    valid: Mask


def parse_times(texts: pa.Array) -> TextTimes:
    """Read an array of strings, of which null is no time.

    Arrow reads texts that are all of the form of the first one. A failed attempt costs as much as 20 good ones.
    """
    type_ = None if texts.null_count else _arrow_type(texts)
    if type_ is not None:
        try:
            return _of_units(pc.cast(texts, type_), 1_000_000_000 if type_.unit == "ns" else 1_000_000)
        except pa.ArrowInvalid:
            pass
    parsed = [None if text is None else parse_time(text) for text in texts.to_pylist()]
    seconds, ns = np.array([(0, 0) if time is None else time for time in parsed], np.int64).reshape(-1, 2).T
    return TextTimes(seconds, ns, np.array([time is not None for time in parsed], np.bool_))


def _arrow_type(texts: pa.Array) -> pa.TimestampType | None:
    """Return the type to which Arrow can cast these texts if all are like the first one; None if there is none."""
    first = texts[0].as_py()
    found = in_extended_form(first)
    if found is None:
        return None
    digits = len(found[7] or "")
    zone = "UTC" if found[8] or first[-1] in "Zz" else None
    if digits <= 6:
        return pa.timestamp("us", zone)
    bounds = pc.min_max(texts)
    if digits > 9 or bounds["min"].as_py() < _FIRST_NS or bounds["max"].as_py() >= _LAST_NS:
        return None
    return pa.timestamp("ns", zone)


def _of_units(times: pa.Array, units: int) -> TextTimes:
    """Split times into seconds and nanoseconds; `units` are in a second."""
    numbers = times.cast(pa.int64()).to_numpy()
    seconds = numbers // units
    valid: Mask = (seconds >= MIN_SECONDS) & (seconds <= MAX_SECONDS)
    return TextTimes(seconds, (numbers - seconds * units) * (1_000_000_000 // units), valid)

"""The type that the values of a column have by themselves."""

from __future__ import annotations

import numpy as np

from arcpipe.codec.arrow.times import timestamps
from arcpipe.codec.arrow.values import (
    BIN8,
    BIN32,
    BOOL,
    CLASSES,
    EXTENSIONS,
    F64,
    FIXINT,
    FLOATS,
    I8,
    I64,
    MAX_INT64,
    STR,
    STR32,
    U64,
    Natural,
    Values,
    class_counts,
)


def natural_type(values: Values) -> Natural | None:
    """Return the word of the type that most values have, or None if none has one.

    Numbers are one kind: f64 if one of them is a float; else u64 if some are above 2^63-1 and none is negative; else
    i64. NaN has no type, but among integers it is a float. Of kinds with the same number of values the first counts:
    numbers, text, booleans, binary, times.
    """
    counts = [0] * CLASSES
    if len(values.present) == 1:
        counts[values.present[0]] = values.count
    else:
        counts = class_counts(values.classes)
    numbers = sum(counts[FIXINT : F64 + 1])
    for class_ in values.present:
        if class_ in FLOATS:
            numbers -= int(np.isnan(values.numbers(class_, values.rows_of(class_))).sum())
    kinds: dict[Natural, int] = {
        "f64": numbers,
        "str": sum(counts[STR : STR32 + 1]),
        "bool": counts[BOOL],
        "bytes": sum(counts[BIN8 : BIN32 + 1]),
        "time": int(timestamps(values)[1].sum()) if any(class_ in EXTENSIONS for class_ in values.present) else 0,
    }
    kind = max(kinds, key=lambda name: kinds[name])
    if not kinds[kind]:
        return None
    if kind != "f64" or any(class_ in FLOATS for class_ in values.present):
        return kind
    big = negative = False
    for class_ in values.present:
        if class_ == U64:
            big = bool((values.numbers(class_, values.rows_of(class_)) > MAX_INT64).any())
        elif class_ == FIXINT or I8 <= class_ <= I64:
            negative = negative or bool((values.numbers(class_, values.rows_of(class_)) < 0).any())
    return "u64" if big and not negative else "i64"

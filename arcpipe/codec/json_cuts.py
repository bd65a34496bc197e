"""Large JSON, decoded in bounded steps: one call that decodes it all would keep other threads from running.

    value = decode(body, check)   # a value, or a `LargeObject` or `LargeArray`, whose parts are decoded one by one

numpy finds the brackets and commas outside of strings. A container of more than `piece_bytes` is cut at its own commas;
its members are decoded some at a time, and those that are large are cut in turn. A body is taken if and only if all of
its pieces are valid, which is if it is valid as a whole. What nobody asks for is decoded, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from arcpipe.codec.effort import Check
from arcpipe.errors import BadPayload
from arcpipe.units import KB

PIECE_BYTES: Final = 128 * KB
"""Bytes that are decoded in one call, which takes a few milliseconds: the largest is a value without brackets."""

_WINDOW_BYTES: Final = 64 * KB  # in which brackets are looked for at a time: less than a millisecond
_MAX_DEPTH: Final = 128  # large containers within each other
_BLANKS: Final = b" \t\r\n"
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_ENDS: Final = {b"[": b"]", b"{": b"}"}

_STEPS: Final = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
_IS_CUT: Final = np.zeros(256, np.bool_)
_IS_CUT[list(b"[]{},")] = True

Ints = npt.NDArray[np.int32]


class _Cuts(NamedTuple):
    """All brackets and commas outside of strings: their places, and the depth after each."""

    body: bytes
    at: Ints
    depth: Ints
    piece_bytes: int
    check: Check


def decode(body: bytes, check: Check, piece_bytes: int = PIECE_BYTES) -> Any:
    """Decode a body.

    Args:
        check: as in `arcpipe.codec.effort`.
        piece_bytes: of the parts that are decoded in one call.

    Raises:
        BadPayload: it is no JSON. The parts of a large container raise it when they are read.
    """
    if len(body) <= piece_bytes:
        return _loads(body, 0, len(body), b"", b"")
    cuts = _Cuts(body, *_find(body, check), piece_bytes, check)
    if not len(cuts.at):
        return _loads(body, 0, len(body), b"", b"")
    if cuts.depth[-1] or int(cuts.depth.min()) < 0 or np.count_nonzero(cuts.depth == 0) != 1:
        raise BadPayload("the body is no JSON: its brackets do not match")
    _require_blanks(body, 0, int(cuts.at[0]))
    _require_blanks(body, int(cuts.at[-1]) + 1, len(body))
    return _container(cuts, 0, len(cuts.at) - 1, 0)


class _Large:
    """A container that is cut. `first` and `last` are the indices of its brackets."""

    def __init__(self, cuts: _Cuts, first: int, last: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise BadPayload("the body is nested too deep")
        self._cuts = cuts
        self._first = first
        self._last = last
        self._depth = depth
        self._open = cuts.body[cuts.at[first] : cuts.at[first] + 1]

    def _parts(self) -> Iterator[tuple[int, int, int]]:
        """Yield start and end of some members at a time, and how many they are; a large one comes alone."""
        at, depth, check = self._cuts.at, self._cuts.depth, self._cuts.check
        inner = slice(self._first + 1, self._last)
        commas = at[inner][depth[inner] == depth[self._first]]
        own = np.frombuffer(self._cuts.body, np.uint8)[commas] == _COMMA
        ends = np.append(commas[own], at[self._last])
        starts = np.concatenate((at[self._first : self._first + 1], ends[:-1])) + 1
        if len(ends) == 1 and not self._cuts.body[starts[0] : ends[0]].strip(_BLANKS):
            return
        member = 0
        while member < len(ends):
            check()
            start = int(starts[member])
            after = max(int(np.searchsorted(ends, start + self._cuts.piece_bytes, side="right")), member + 1)
            yield start, int(ends[after - 1]), after - member
            member = after

    def _decoded(self) -> Iterator[tuple[Any, int]]:
        """Yield some members at a time as an array or object, or a large one; and how many they are."""
        for start, end, count in self._parts():
            found: Any
            if count == 1 and end - start > self._cuts.piece_bytes:
                found = self._alone(start, end)
            else:
                found = _loads(self._cuts.body, start, end, self._open, _ENDS[self._open])
            if not found:
                raise BadPayload(f"the body is no JSON: a value is missing before byte {end}")
            yield found, count

    def _alone(self, start: int, end: int) -> Any:
        """Read a large member: a container that is cut, or a value without brackets."""
        cuts = self._cuts
        first, after = (int(place) for place in np.searchsorted(cuts.at, (start, end)))
        if first == after:
            return _loads(cuts.body, start, end, self._open, _ENDS[self._open])
        place, last = int(cuts.at[first]), after - 1
        if np.count_nonzero(cuts.depth[first:after] == cuts.depth[self._first]) != 1:
            raise BadPayload(f"the body is no JSON: a comma is missing after byte {place}")
        _require_blanks(cuts.body, int(cuts.at[last]) + 1, end)
        container = _container(cuts, first, last, self._depth + 1)
        if self._open == b"[":
            _require_blanks(cuts.body, start, place)
            return [container]
        (name,) = _loads(cuts.body, start, place, b"{", b"0}")
        return {name: container}


class LargeArray(_Large):
    """An array whose items are decoded when they are read."""

    def __iter__(self) -> Iterator[Any]:
        for found, count in self._decoded():
            if len(found) != count:
                raise BadPayload("the body is no JSON: a value is missing in an array")
            yield from found


class LargeObject(_Large):
    """An object whose members are decoded when they are read. A name may come twice."""

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield names and values."""
        for found, _ in self._decoded():
            yield from found.items()


def drain(value: Any) -> None:
    """Decode all of a value that nobody needs, so that it is known to be valid."""
    if isinstance(value, LargeArray):
        for item in value:
            drain(item)
    elif isinstance(value, LargeObject):
        for _, item in value.items():  # noqa: PERF102 - it is no dict
            drain(item)


def _container(cuts: _Cuts, first: int, last: int, depth: int) -> Any:
    start, end = int(cuts.at[first]), int(cuts.at[last])
    bracket = cuts.body[start : start + 1]
    if cuts.body[end : end + 1] != _ENDS.get(bracket):
        raise BadPayload(f"the body is no JSON: the bracket at byte {start} does not match that at byte {end}")
    return LargeArray(cuts, first, last, depth) if bracket == b"[" else LargeObject(cuts, first, last, depth)


def _loads(body: bytes, start: int, end: int, front: bytes, back: bytes) -> Any:
    try:
        return orjson.loads(b"".join((front, body[start:end], back)))
    except orjson.JSONDecodeError as error:
        place = max(start, start + error.pos - len(front))
        raise BadPayload(f"the body is no JSON: {error.msg} (near byte {place})") from None


def _require_blanks(body: bytes, start: int, end: int) -> None:
    if body[start:end].strip(_BLANKS):
        raise BadPayload(f"the body is no JSON: byte {start} begins something that has no place there")


def _find(body: bytes, check: Check) -> tuple[Ints, Ints]:
    """Find all brackets and commas outside of strings: their places, and the depth after each."""
    places: list[Ints] = []
    depths: list[Ints] = []
    depth = backslashes = 0
    in_string = False
    for pos in range(0, len(body), _WINDOW_BYTES):
        check()
        window = np.frombuffer(body, np.uint8, min(_WINDOW_BYTES, len(body) - pos), pos)
        quotes = window == _QUOTE
        backslashes = drop_escaped(window, quotes, backslashes)
        at = np.flatnonzero(_IS_CUT[window])
        if in_string or quotes.any():
            parity = np.cumsum(quotes, dtype=np.int32)
            parity += in_string
            in_string = bool(parity[-1] & 1)
            at = at[(parity[at] & 1) == 0]
        if len(at):
            after = np.cumsum(_STEPS[window[at]], dtype=np.int32)
            after += depth
            depth = int(after[-1])
            places.append((at + pos).astype(np.int32))
            depths.append(after)
    if in_string:
        raise BadPayload("the body is no JSON: a string does not end")
    if not places:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    return np.concatenate(places), np.concatenate(depths)


def drop_escaped(window: npt.NDArray[np.uint8], quotes: npt.NDArray[np.bool_], before: int) -> int:
    """Unmark quotes after an odd number of backslashes.

    Args:
        before: backslashes right before the window; the return value is that of the next one.
    """
    backslash = window == _BACKSLASH
    if not before and not backslash.any():
        return 0
    places = np.arange(len(window))
    run = places - np.maximum.accumulate(np.where(backslash, -1 - before, places))
    quotes[1:] &= (run[:-1] & 1) == 0
    if before & 1:
        quotes[0] = False
    return int(run[-1])

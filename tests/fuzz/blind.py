"""Fuzzing without guidance: mutations of the examples and of what guided runs have found, many times as many.

Most inputs differ from a good body in a few bytes, so they reach what a guided run reaches. None of them is chosen by
what the former ones have reached.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

# Seconds of one input, above which it counts as a failure: of CPU time, and of a clock, if it waits for something.
INPUT_SECONDS: Final = 20
_WAIT_SECONDS: Final = 600
MAX_BYTES: Final = 20_000

# Bytes that mean something: ends of ranges, headers of formats, delimiters.
_ODD_BYTES: Final = b"\x00\x01\x7f\x80\xfe\xff\x90\x9f\xc0\xc1\xca\xd9\xdd\xdf\n\r\t ,=\"'\\{}[]:;.-+0919eEiu#"
_ODD_WORDS: Final = [
    number.to_bytes(size, order)
    for size in (2, 4, 8)
    for number in (0, 1, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1)
    for order in ("little", "big")
]


def mutate(pool: Sequence[bytes], chance: random.Random) -> bytes:
    """Return one of the pool with one to eight changes."""
    data = bytearray(chance.choice(pool))
    for _ in range(1 << chance.randrange(4)):
        _CHANGES[int(chance.random() * len(_CHANGES))](data, pool, chance)
    return bytes(data[:MAX_BYTES])


def _place(data: bytearray, chance: random.Random) -> int:
    return int(chance.random() * (len(data) + 1))


def _flip(data: bytearray, _pool: Sequence[bytes], chance: random.Random) -> None:
    if data:
        data[int(chance.random() * len(data))] ^= 1 << chance.randrange(8)


def _set_byte(data: bytearray, _pool: Sequence[bytes], chance: random.Random) -> None:
    if data:
        data[int(chance.random() * len(data))] = chance.choice(_ODD_BYTES)


def _set_word(data: bytearray, _pool: Sequence[bytes], chance: random.Random) -> None:
    word = chance.choice(_ODD_WORDS)
    at = _place(data, chance)
    data[at : at + len(word)] = word


def _insert(data: bytearray, _pool: Sequence[bytes], chance: random.Random) -> None:
    at = _place(data, chance)
    data[at:at] = bytes(chance.choice(_ODD_BYTES) for _ in range(chance.randint(1, 8)))


def _cut(data: bytearray, _pool: Sequence[bytes], chance: random.Random) -> None:
    at = _place(data, chance)
    del data[at : at + chance.choice((1, 2, 4, 16, 256))]


def _end(data: bytearray, _pool: Sequence[bytes], chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _repeat(data: bytearray, _pool: Sequence[bytes], chance: random.Random) -> None:
    at = _place(data, chance)
    data[at:at] = data[at : at + chance.choice((1, 4, 16, 256))] * chance.choice((1, 2, 16))


def _splice(data: bytearray, pool: Sequence[bytes], chance: random.Random) -> None:
    other = chance.choice(pool)
    start = int(chance.random() * (len(other) + 1))
    at = _place(data, chance)
    data[at : at + chance.choice((0, 8, 1 << 20))] = other[start : start + chance.choice((4, 32, 1 << 20))]


_CHANGES: Final[Sequence[Callable[[bytearray, Sequence[bytes], random.Random], None]]] = (
    *(_flip, _set_byte, _set_byte, _set_word, _insert, _cut, _end, _repeat, _splice),
)


def run(target: Callable[[bytes], None], pool: Sequence[bytes], seconds: float, inputs: int, kept: Path) -> int:
    """Try inputs until one of the limits; return how many.

    Args:
        inputs: at most; -1: no limit.
        kept: where the input goes that breaks something.
    """
    seed = random.SystemRandom().getrandbits(32)
    chance = random.Random(seed)
    data = b""

    def give_up(*_arguments: Any) -> None:
        raise TimeoutError(f"one input took more than {INPUT_SECONDS} s of CPU time, or {_WAIT_SECONDS} s")

    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, give_up)
    end = time.monotonic() + seconds
    done = 0
    try:
        while done != inputs and time.monotonic() < end:
            data = mutate(pool, chance)
            signal.setitimer(signal.ITIMER_PROF, INPUT_SECONDS)
            signal.alarm(_WAIT_SECONDS)
            target(data)
            done += 1
    except BaseException as error:
        kept.write_bytes(data)
        error.add_note(f"input {done} of the seed {seed}, kept in {kept}")
        raise
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return done

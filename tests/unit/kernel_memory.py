"""A process that looks at the native kernel's memory: `python -m tests.unit.kernel_memory CHECK`.

Allocations fail, and are counted, in all threads, and in whatever traces the lines of a test. So this is no process of
pytest.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgpack

from arcpipe.ingest.endpoints.idempotency import recent_keys
from arcpipe.ingest.http import keys
from arcpipe.ingest.http.outlines import LENGTH, Head, outline
from arcpipe.wal.format import crc32, join_by_python
from tests.support.kernel import built_kernel

testcapi: Any = importlib.import_module("_testcapi")
# Allocations of a call, at most.
_MOST = 24
ROWS = msgpack.packb([{"m": "cpu", "fields": {"f": 1.5}}, {"m": "mem", "tags": {"a": "b"}, "fields": {"g": 1}}])
PIECES = b"POST / HTTP/1.1\r\nIdempotency-Key: ", b"\r\nContent-Length: ", b"\r\n\r\n"


@contextmanager
def failing_at(number: int) -> Iterator[None]:
    """Let one allocation fail, counted from 0 from now on."""
    testcapi.set_nomemory(number, number + 1)
    try:
        yield
    finally:
        testcapi.remove_mem_hooks()


def failures(call: Callable[[], object], after: Callable[[bool], None]) -> int:
    """Call while each of the allocations fails, and count the errors; `after` is told whether there was one."""
    count = 0
    for number in range(_MOST):
        is_done = False
        try:
            with failing_at(number):
                call()
                is_done = True
        except MemoryError:
            count += 1
        after(is_done)
    return count


def check_claims(fill: int) -> None:
    """What had no memory is not claimed. The claim makes the table, makes it larger, or has a place."""
    body = b"b" * 300
    errors = 0
    for number in range(_MOST):
        recent = recent_keys(1e6, 1 << 16, built_kernel().RecentKeys)
        for filled in range(fill):
            assert recent.claim(b"owner", b"%0300d" % filled, b"body", 0.0) == filled + 1
        try:
            with failing_at(number):
                recent.claim(b"owner", b"one", body, 0.0)
            assert recent.claimed == fill + 1
        except MemoryError:
            errors += 1
            assert recent.claimed == fill
            assert recent.claim(b"owner", b"one", body, 0.0) == fill + 1
        recent.settle(fill + 1)
        assert recent.claim(b"owner", b"one", b"", 0.0) is None
        assert recent.earlier(b"owner", b"one") == (fill + 1, 300, crc32(body))
        if fill:
            assert recent.earlier(b"owner", b"%0300d" % (fill - 1)) == (fill, 4, crc32(b"body"))
    assert errors >= (3 if fill == 0 else 1)


def check_entry() -> None:
    """An entry that had no memory is joined by the next call."""
    parts: tuple[Any, ...] = b"prefix", 7, b"front", memoryview(b"body"), 1 << 60

    def join() -> None:
        built_kernel().join_entry(*parts)

    def check(_is_done: bool) -> None:
        assert built_kernel().join_entry(*parts) == join_by_python(*parts)

    assert failures(join, check) >= 1


def check_head() -> None:
    """A head that had no memory is cut by the next call."""
    head = Head(b"POST", b"/", b"", {}, None, "", None, defaultdict(int))
    cuts = outline(head, PIECES, (keys.HEADER, LENGTH), built_kernel().Outline)
    data = b"a key of this request".replace(b" ", b"-").join(PIECES[:2]) + b"100000" + PIECES[2]
    expected = len(data), 100_000, b"a-key-of-this-request", b""

    def cut() -> None:
        assert cuts.cut(data, 0) == expected

    def check(_is_done: bool) -> None:
        assert cuts.cut(data, 0) == expected

    assert failures(cut, check) >= 2


def check_rows() -> None:
    """Rows that had no memory are gathered by the next call."""
    rows = [{"m": f"m{number % 2}", "t": 1, "h": "x", "tags": {"a": "b"}, "fields": {"f": 1.5}} for number in range(4)]
    body = msgpack.packb(rows)
    expected = built_kernel().gather_rows(body, 1, 4)

    def gather() -> None:
        built_kernel().gather_rows(body, 1, 4)

    def check(_is_done: bool) -> None:
        assert built_kernel().gather_rows(body, 1, 4) == expected

    assert failures(gather, check) >= 2


def check_losses() -> None:
    """The parts of the kernel give all back, also from calls that fail, and what Python can free."""
    module = built_kernel()

    def use() -> None:
        head = Head(b"POST", b"/", b"", {}, None, "", None, defaultdict(int))
        cuts = outline(head, PIECES, (keys.HEADER, LENGTH), module.Outline)
        head.headers[b"itself"] = cuts  # type: ignore[assignment]
        recent = recent_keys(100.0, 10, module.RecentKeys)
        for number in range(12):
            key = b"key%d" % (number // 2)
            for odd in (key, b'"' + key, b"k" * 200):
                cuts.cut(odd.join(PIECES[:2]) + b"1" + PIECES[2], 0)
            claim = recent.claim(b"owner", key, b"body" * number, float(number))
            if claim is None:
                recent.earlier(b"owner", key)
            elif number % 3:
                recent.forget([claim])
            else:
                recent.settle(claim)
            for body in (key, memoryview(key)):
                module.join_entry(key, number, b"", body, number)
            module.gather_rows(ROWS, 1, 2)
            module.gather_rows(ROWS, 0, 2)  # no row is there
            bad: tuple[Any, ...] = key, number, b"", b"", None
            for call, arguments in (
                (recent.claim, bad),
                (recent.earlier, bad),
                (module.join_entry, bad),
                (module.gather_rows, bad),
                (cuts.cut, ()),
            ):
                with suppress(TypeError):
                    call(*arguments)

    for _ in range(50):
        use()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(400):
        use()
    gc.collect()
    assert sys.getallocatedblocks() - before < 200


CHECKS = {
    "claim into an empty table": lambda: check_claims(0),
    "claim into a table that grows": lambda: check_claims(32),
    "claim into a large table": lambda: check_claims(300),
    "entry": check_entry,
    "head": check_head,
    "rows": check_rows,
    "losses": check_losses,
}

if __name__ == "__main__":
    CHECKS[sys.argv[1]]()

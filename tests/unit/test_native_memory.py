"""The native kernel when memory runs out: each allocation fails once, and nothing is half done. And it loses none."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress

import pytest

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.ingest.endpoints.idempotency import recent_keys
from arcpipe.ingest.http import keys
from arcpipe.ingest.http.outlines import LENGTH, Head, outline
from arcpipe.wal.format import Prefix, kind_of_keyed_prefix
from tests.support.kernel import kernel_of_checkout
from tests.support.program import ROOT

PIECES = b"POST / HTTP/1.1\r\nIdempotency-Key: ", b"\r\nContent-Length: ", b"\r\n\r\n"


@pytest.mark.parametrize(
    "check",
    [
        *("claim into an empty table", "claim into a table that grows", "claim into a large table"),
        *("prefix", "head"),
    ],
)
def test_what_has_no_memory_leaves_nothing_half_done(check: str) -> None:
    pytest.importorskip("_testcapi", reason="this Python has no module that lets allocations fail")
    kernel_of_checkout()
    command = [sys.executable, "-m", "tests.unit.failing_memory", check]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not ended.returncode, ended.stderr


def test_no_memory_is_lost() -> None:
    """The parts of the kernel give all back, also from calls that fail, and what Python can free."""
    module = kernel_of_checkout()

    def use() -> None:
        head = Head(b"POST", b"/", b"", {}, None, "", None, defaultdict(int))
        cuts = outline(head, PIECES, (keys.HEADER, LENGTH), module.Outline)
        head.headers[b"itself"] = cuts  # type: ignore[assignment]
        recent = recent_keys(100.0, 10, module.RecentKeys)
        prefix = kind(Prefix(KIND_COLUMNAR, "db", {}))
        for number in range(12):
            key = b"key%d" % (number // 2)
            for odd in (key, b'"' + key, b"k" * 200):
                cuts.cut(odd.join(PIECES[:2]) + b"1" + PIECES[2], 0)
            recent.claim(prefix.make(key).claimed, b"body" * number, float(number))
            if number % 3 == 0:
                recent.settle(recent.claimed)
            else:
                recent.forget(prefix.claimed)
            for call in (recent.claim, prefix.make, cuts.cut):
                with suppress(TypeError):
                    call(number)  # type: ignore[arg-type, call-arg]

    kind = kind_of_keyed_prefix(module.KeyedPrefix)
    for _ in range(50):
        use()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(400):
        use()
    gc.collect()
    assert sys.getallocatedblocks() - before < 200

"""Bodies that are decoded: what waits for the thread, and what it takes meanwhile.

The connections, the routes and the WAL are the real ones, in this process (tests/support/edge.py).
"""

from __future__ import annotations

import gc
import gzip
import random
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from arcpipe.codec.content_encoding import Coding, Decoder
from arcpipe.ingest.http import bodies
from arcpipe.ingest.http.background import HELD_BYTES
from tests.support.compression import zstd
from tests.support.edge import ALL_THE_TIME, Edge
from tests.support.http import pack, request_bytes

V2 = "/write/v2/msgpack"
COUNT = 40
# A body that becomes more than is decoded in the loop, and one that does not.
LARGE = pack({"m": "cpu", "columns": {"usage": [0.5] * 50_000}})
SMALL = pack({"m": "cpu", "columns": {"usage": [0.5] * 100}})


def _zstd_without_its_size(data: bytes) -> bytes:
    return zstd.compress(data, options={zstd.CompressionParameter.content_size_flag: 0})


def _gzip_of_a_false_size(data: bytes) -> bytes:
    return gzip.compress(data) + gzip.compress(b"")


def _wait(event: threading.Event) -> None:
    assert event.wait(30)


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip of two members": ("gzip", _gzip_of_a_false_size),
    "deflate": ("deflate", zlib.compress),
    "zstd": ("zstd", zstd.compress),
    "zstd without its size": ("zstd", _zstd_without_its_size),
}


@pytest.mark.parametrize("form", CODINGS)
def test_bodies_that_wait_to_be_decoded_hold_what_they_sent(tmp_path: Path, form: str) -> None:
    """Each held up to 256 kB that was decoded in the loop already, which nobody counted."""
    coding, encode = CODINGS[form]
    request = request_bytes("POST", V2, encode(LARGE), {"Content-Encoding": coding})
    with Edge(tmp_path) as edge:
        may_decode = threading.Event()
        edge.context.decoding.rest(partial(_wait, may_decode))
        peers = [edge.connect() for _ in range(COUNT)]
        tracemalloc.start()
        for peer in peers:
            assert peer.feed(request)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        waiting_bytes = edge.context.decoding.held_bytes
        may_decode.set()
        edge.settle()
        assert waiting_bytes == COUNT * (len(request) - request.index(b"\r\n\r\n") - 4 + HELD_BYTES)
        assert held < COUNT * (len(request) + 16_000)
        assert [peer.statuses for peer in peers] == [[202]] * COUNT
        assert edge.exceptions == []


@pytest.mark.parametrize("form", CODINGS)
def test_others_are_decoded_while_a_body_takes_long(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred MB of tiny deflate blocks take a minute, which every other large body waited for."""
    coding, encode = CODINGS[form]
    long = encode(random.Random(1).randbytes(1_000_000))
    advance = Decoder.advance
    order: list[str] = []
    steps = 0

    def slowly(self: Decoder, budget_bytes: int, deadline: float | None = None) -> bool:
        nonlocal steps
        name = "long" if len(self._data) == len(long) else "other"
        steps += 1
        if name == "long" and not order and steps < 5_000:
            time.sleep(0.001)
            return False
        is_whole = advance(self, budget_bytes, deadline)
        if is_whole:
            order.append(name)
        return is_whole

    monkeypatch.setattr(Decoder, "advance", slowly)
    with Edge(tmp_path) as edge:
        first, other = edge.connect(), edge.connect()
        first.feed(request_bytes("POST", V2, long, {"Content-Encoding": coding}))
        other.feed(request_bytes("POST", V2, encode(LARGE), {"Content-Encoding": coding}))
        edge.settle()
        assert order == ["other", "long"]
        assert (first.statuses, other.statuses) == ([400], [202])


@pytest.mark.parametrize("form", CODINGS)
def test_small_bodies_are_decoded_without_a_thread(tmp_path: Path, form: str) -> None:
    coding, encode = CODINGS[form]
    with Edge(tmp_path) as edge:
        peer = edge.connect()
        peer.feed(request_bytes("POST", V2, encode(SMALL), {"Content-Encoding": coding}))
        edge.settle()
        assert peer.statuses == [202]
        assert edge.context.decoding.finished == 0


@pytest.mark.parametrize("form", CODINGS)
@pytest.mark.parametrize("content", [SMALL, LARGE])
def test_a_damaged_body_is_refused_in_the_loop_or_on_the_thread(tmp_path: Path, form: str, content: bytes) -> None:
    coding, encode = CODINGS[form]
    with Edge(tmp_path) as edge:
        peer = edge.connect()
        peer.feed(request_bytes("POST", V2, encode(content)[:-5], {"Content-Encoding": coding}))
        edge.settle()
        assert peer.statuses == [400]
        assert edge.exceptions == []


@pytest.mark.parametrize("path", [V2, "/write", "/v1/metrics", "/api/v1/ingest/m"])
@pytest.mark.parametrize("coding", ["", "deflate"])
def test_a_body_that_was_refused_is_not_kept(tmp_path: Path, path: str, coding: str) -> None:
    """Its error's traceback had the frames that hold it, one of which had the error: a cycle, which stays for long."""
    count, bad = 5, b"\0" * 4_000_000
    content = zlib.compress(bad) if coding else bad
    headers = {"Content-Type": "application/x-protobuf" if path == "/v1/metrics" else "application/json"}
    request = request_bytes("POST", path, content, headers | ({"Content-Encoding": coding} if coding else {}))
    with Edge(tmp_path) as edge:
        peer = edge.connect()
        peer.feed(request)
        edge.settle()
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(count):
                peer.feed(request)
                edge.settle()
            kept, _most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
        assert peer.statuses == [400] * (1 + count)
    assert kept < 3 * len(bad)  # two threads may each be at the end of their last one


def test_a_body_of_tiny_blocks_is_decoded_on_the_thread(tmp_path: Path) -> None:
    """Blocks of 10 bits that hold nothing: 500 kB of them in one turn kept the loop for 0.17 s, without output."""
    empty_blocks = b"\x02\x08\x20\x80\x00" * 100_000
    with Edge(tmp_path, budget=ALL_THE_TIME._replace(inline_seconds=0.0)) as edge:
        peer = edge.connect()
        peer.feed(request_bytes("POST", V2, empty_blocks, {"Content-Encoding": "deflate"}))
        edge.settle()
        assert peer.statuses == [400]  # it does not end
        assert edge.context.decoding.finished == 1


@pytest.mark.parametrize("coding", ["deflate", "zstd"])
def test_a_large_body_that_does_not_tell_its_size_is_decoded_once(
    tmp_path: Path, coding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    class Counted(Decoder):
        def __init__(self, coding: Coding, data: bytes | memoryview, max_bytes: int) -> None:
            begun.append(len(data))
            super().__init__(coding, data, max_bytes)

    monkeypatch.setattr(bodies, "Decoder", Counted)
    content = pack({"m": "cpu", "columns": {"usage": list(map(random.Random(1).gauss, [0.0] * 40_000))}})
    sent = zlib.compress(content) if coding == "deflate" else _zstd_without_its_size(content)
    with Edge(tmp_path) as edge:
        peer = edge.connect()
        peer.feed(request_bytes("POST", V2, sent, {"Content-Encoding": coding}))
        edge.settle()
        assert peer.statuses == [202]
    assert len(begun) == 1

"""Outlines of known heads: the native kernel cuts plain heads, and gives what Python gives for all others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.ingest.http import keys
from arcpipe.ingest.http.outlines import LENGTH, Cut, Head, outline
from tests.support.kernel import kernel_of_checkout

HEAD = Head(b"POST", b"/write", b"", {}, None, "", None, defaultdict(int))
FRONT, MIDDLE, BACK = b"POST /write HTTP/1.1\r\nIdempotency-Key: ", b"\r\nContent-Length: ", b"\r\nAccept: */*\r\n\r\n"
SWAPPED = b"POST /write HTTP/1.1\r\nContent-Length: ", b"\r\nIdempotency-Key: ", BACK
PLAIN = b"POST /write HTTP/1.1\r\nContent-Length: ", BACK
KINDS: dict[str, tuple[Sequence[bytes], Sequence[bytes]]] = {
    "key first": ((FRONT, MIDDLE, BACK), (keys.HEADER, LENGTH)),
    "length first": (SWAPPED, (LENGTH, keys.HEADER)),
    "no key": (PLAIN, (LENGTH,)),
}

_visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=131).map(str.encode)
_keys = (
    _visible
    | _visible.map(lambda text: b'"%b"' % text)
    | st.binary(max_size=8)
    | st.integers(126, 131).map(lambda size: b"k" * size)
    | st.sampled_from(
        [b"", b'"', b'""', b'"a\\""', b"a,b", b"a;b", b"a\\b", b"a b", b"a\r\nb", b"\xe9", b"a\x7f", b"\r"]
    )
)
_lengths = (
    st.integers(0, 10**14).map(lambda number: b"%d" % number)
    | st.sampled_from([b"", b"+1", b"-1", b" 1", b"1 ", b"1_0", b"007", b"0" * 12, b"0" * 13, b"9" * 128, b"9" * 129])
    | st.binary(max_size=4)
)


def fresh(kind: str, by: Any = None) -> Any:
    pieces, names = KINDS[kind]
    return outline(HEAD, pieces, names, by)


def joined(kind: str, key: bytes, length: bytes) -> bytes:
    """A head with these values."""
    pieces, names = KINDS[kind]
    values = [length if name is LENGTH else key for name in names]
    return b"".join(part for pair in zip(pieces, values, strict=False) for part in pair) + pieces[-1]


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.sampled_from(list(KINDS)), st.lists(st.tuples(_keys, _lengths), min_size=1, max_size=6), st.data())
def test_the_kernel_cuts_heads_as_python_does(
    kind: str, values: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    by_kernel = fresh(kind, kernel_of_checkout().Outline)
    assert by_kernel.head.path == HEAD.path
    for key, length in values:
        before = data.draw(st.binary(max_size=3))
        whole = before + joined(kind, key, length) + data.draw(st.sampled_from([b"", b"body", BACK, MIDDLE]))
        whole = whole[: data.draw(st.just(len(whole)) | st.integers(0, len(whole)))]
        at = data.draw(st.integers(0, len(whole)))
        changed = whole[:at] + data.draw(st.sampled_from([whole[at : at + 1], b"", b"\r", b"x"])) + whole[at + 1 :]
        for start in {len(before), data.draw(st.integers(-3, len(changed) + 3))}:
            assert by_kernel.cut(changed, start) == fresh(kind).cut(changed, start)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "key", [b"k", b"8e03978e-40d5-43e8-bc93-6894a57f9324", b"!#$%&'()*+-./:<=>?@[]^_`{|}~", b"k" * 128]
)
def test_the_kernel_cuts_plain_heads_by_itself(kind: str, key: bytes) -> None:
    class Broken:
        """Fails if it is asked."""

        head = HEAD

    pieces, names = KINDS[kind]
    middle = pieces[1] if len(pieces) == 3 else None
    cuts = kernel_of_checkout().Outline(Broken(), pieces[0], middle, pieces[-1], names[0] is keys.HEADER)
    for length in (b"0", b"256", b"9" * 12):
        whole = joined(kind, key, length)
        for data, start in ((whole, 0), (b"before" + whole + b"behind", 6)):
            assert cuts.cut(data, start) == (start + len(whole), int(length), key if middle else b"", b"")
    assert cuts.cut(b"another head", 0) is None
    for odd in (b"a,b", b"k" * 129, b'"quoted"') if middle else ():
        with pytest.raises(AttributeError, match="cut"):
            cuts.cut(joined(kind, odd, b"1"), 0)


@pytest.mark.parametrize("by_kernel", [False, True])
@pytest.mark.parametrize("kind", list(KINDS)[:2])
def test_keys_in_quotes_and_of_any_length_are_cut(kind: str, by_kernel: bool) -> None:
    cuts = fresh(kind, kernel_of_checkout().Outline if by_kernel else None)

    def cut(key: bytes) -> Cut | None:
        found: Cut | None = cuts.cut(joined(kind, key, b"7"), 0)
        return found

    for key, expected in (
        (b'"a,b"', b"a,b"),
        (b"a", b"a"),
        (b"k" * 128, b"k" * 128),
        (b'"%b"' % (b"k" * 126), b"k" * 126),
    ):
        assert cut(key) == (len(joined(kind, key, b"7")), 7, expected, b"")
    assert [cut(key) for key in (b"", b"k" * 129, b"a b", b'"a\\""', b"\xe9")] == [None] * 5


def test_the_kernel_leaves_other_kinds_of_bytes_to_python() -> None:
    whole = joined("key first", b"one", b"7")
    cuts = fresh("key first", kernel_of_checkout().Outline)
    for data in (bytearray(whole), type("Bytes", (bytes,), {})(whole)):
        assert cuts.cut(data, 0) == (len(whole), 7, b"one", b"")
    for arguments in ((), (whole,), (whole, 0, 0)):
        with pytest.raises(TypeError):
            cuts.cut(*arguments)

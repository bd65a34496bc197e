"""Lines that are too long to be read in the usual way are read as all others are, but for tokens that nobody means."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from arcpipe.codec.line_protocol import by_line, grammar
from arcpipe.codec.line_protocol.body import Lines, encode, encode_by_line
from arcpipe.codec.line_protocol.by_line import LineReader
from arcpipe.codec.line_protocol.grammar import (
    ESCAPINGS,
    WINDOW,
    Escaping,
    count_characters,
    find_bad_utf8,
    skip_line,
)
from arcpipe.codec.line_protocol.long_lines import FIELDS_BETWEEN_CHECKS
from tests.unit.codec.line_protocol.test_body import (
    INVALID,
    INVALID_UTF8,
    UNCLOSED,
    VALID,
    bodies,
    both,
    rows_of,
    typed,
)

MB = 1 << 20
LINES = [
    *(line.encode() for line, _ in [*VALID, *INVALID, *UNCLOSED]),
    *(line for line, _ in INVALID_UTF8),
    *(b"", b"  ", b"\t\r", b"# x", b" # x", b"\\", b"m\\", b"m,t=\\", b'm f="a\nb",g=2 5', b'm f="a\nb', b'm ="a\n"'),
]


def _read_long_only(reader: LineReader, pos: int, stop: int) -> int:
    while pos < stop:
        pos = reader._read_long(pos)
    return min(pos, len(reader._body))


def _same(body: bytes, other: Callable[[bytes], Lines]) -> None:
    expected, found = encode_by_line(body), other(body)
    assert found.errors == expected.errors
    assert found.more_errors == expected.more_errors
    assert typed(rows_of(found.encoded)) == typed(rows_of(expected.encoded))


def _as_long(body: bytes) -> Lines:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LineReader, "read", _read_long_only)
        patch.setattr(grammar, "_SLICE", 16)
        return encode_by_line(body)


def _in_small_windows(size: int) -> Callable[[bytes], Lines]:
    def read(body: bytes) -> Lines:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(by_line, "WINDOW", size)
            patch.setattr(grammar, "_SLICE", 16)
            return encode_by_line(body)

    return read


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line!r:.40}")
def test_a_line_that_is_read_as_a_long_one_is_what_it_is_otherwise(line: bytes) -> None:
    for body in (line, line + b"\n", line + b"\nm g=2\n", b"m g=1\n  " + line + b"\r\n\n" + line):
        _same(body, _as_long)


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(bodies())
def test_bodies_of_long_lines_are_what_they_are_otherwise(body: bytes) -> None:
    _same(body, _as_long)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 100])
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(body=bodies())
def test_the_windows_in_which_a_body_is_read_do_not_show(size: int, body: bytes) -> None:
    _same(body, _in_small_windows(size))


@pytest.mark.parametrize(
    ("front", "filling", "back", "reason"),
    [
        (b"", b"x", b" f=1", "the measurement has 131072 bytes or more, too many: it begins at column 1"),
        (b"", b"\\,", b" f=1", "the measurement has 131072 bytes or more, too many: it begins at column 1"),
        (b"m,t=", b"x", b" f=1", "a tag has 131072 bytes or more, too many: it begins at column 2"),
        (b"m,t=", b"\\ ", b" f=1", "a tag has 131072 bytes or more, too many: it begins at column 2"),
        (b"m,a=b,", b"x", b"=t f=1", "a tag has 131072 bytes or more, too many: it begins at column 6"),
        (b"m ", b"x", b"=1", "a field key has 131072 bytes or more, too many: it begins at column 3"),
        (b"m f=", b"1", b"", "field 'f' has 131072 bytes or more, too many: it begins at column 3"),
        (b"m f=", b"1", b"i", "field 'f' has 131072 bytes or more, too many: it begins at column 3"),
        (b"m a=1,f=", b"z", b"", "field 'f' has 131072 bytes or more, too many: it begins at column 7"),
        (b"m f=1 ", b"1", b"", "the timestamp has 131072 bytes or more, too many: it begins at column 7"),
    ],
)
def test_only_strings_and_whitespace_may_be_long(front: bytes, filling: bytes, back: bytes, reason: str) -> None:
    line = front + filling * (WINDOW // len(filling)) + back
    lines = both(b"m f=1i\n" + line + b"\nm f=2i\n")
    assert [(error.line, error.reason) for error in lines.errors] == [(2, reason)]
    assert [row.fields["f"] for row in rows_of(lines.encoded)] == [1, 2]
    # A little less of it is refused for other reasons, or not at all.
    line = front + filling * ((WINDOW - len(front) - len(back) - 2) // len(filling)) + back
    assert all("too many" not in error.reason for error in both(b"m f=1i\n" + line + b"\nm f=2i\n").errors)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["x", "ü", "😀", "\n", '"', "\\", "a,b=c d\n", '="\\'], ids=ascii)
@pytest.mark.parametrize("size", [WINDOW // 2, WINDOW + 1, 2 * MB])
def test_a_string_may_have_any_length(text: str, size: int) -> None:
    value = text * (size // len(text.encode()))
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    lines = both(f'm,t=a f=1,s="{escaped}",g=2i 7\nm,t=a f=3,s="",g=4i 8\n'.encode())
    assert lines.errors == []
    rows = sorted(rows_of(lines.encoded), key=lambda row: row.time or 0)
    assert [row.fields for row in rows] == [{"f": 1.0, "s": value, "g": 2}, {"f": 3.0, "s": "", "g": 4}]
    assert [(row.tags, row.time) for row in rows] == [({"t": "a"}, 7), ({"t": "a"}, 8)]


@pytest.mark.slow
def test_a_line_may_have_many_fields_beside_a_long_string() -> None:
    fields = ",".join(f"field_{number}={number}i" for number in range(30_000))
    lines = both(f'm {fields},s="{"x" * MB}"\nm {fields}\n'.encode())
    assert lines.errors == []
    assert sorted(len(row.fields) for row in rows_of(lines.encoded)) == [30_000, 30_001]


@pytest.mark.parametrize("spaces", [b" ", b"\t", b" \t"])
def test_whitespace_may_be_long(spaces: bytes) -> None:
    many = b" " + spaces * MB
    lines = both(many + b"m f=1i" + many + b"7" + many + b"\r\n" + many + b"\nm" + many + b"f=2i" + many)
    assert lines.errors == []
    assert [(row.fields["f"], row.time) for row in rows_of(lines.encoded)] == [(1, 7), (2, None)]
    assert [(error.line, error.reason) for error in both(many + b"x").errors] == [
        (1, f"fields are missing at column {len(many) + 2}")
    ]


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        (b'm f="' + b"x" * MB, [(1, "the string of field 'f' is not closed: it begins at column 5")]),
        (b'm f="' + b"x" * MB + b'"y', [(1, "the string of field 'f' is followed by neither comma, space nor line end"
                                             f" at column {MB + 7}")]),
        (b'm f="' + "ü".encode() * MB + b"\xff" + b'"', [(1, f"invalid UTF-8 at column {MB + 6}")]),
        (b'm f="' + b"\n" * MB + b"a\xff" + b'"', [(1, f"invalid UTF-8 at column 2 of line {MB + 1}")]),
        (b"\n" * MB + b"x", [(MB + 1, "fields are missing at column 2")]),
        (b"\xff" * MB + b" ", [(1, "the measurement has 131072 bytes or more, too many: it begins at column 1")]),
    ],
    ids=["open", "no end", "bad UTF-8", "bad UTF-8 after lines", "blank lines", "bad bytes"],
)  # fmt: skip
def test_long_bad_lines_are_told_as_others_are(body: bytes, errors: list[tuple[int, str]]) -> None:
    lines = both(body)
    assert [(error.line, error.reason) for error in lines.errors] == errors


def test_the_lines_behind_a_long_bad_one_are_read() -> None:
    text, lines_of_text = b'a="' + b"x" * MB + b'"', b'a="' + b"x\n" * MB + b'"'
    for bad in (
        *(b"m " + text + b"z", b"m, " + text, b"m " + b'"' * MB, b"m " + b"a=," * MB),
        *(b"m x=1," + lines_of_text + b" y", b"m x=1,=," + lines_of_text),
    ):
        lines = both(b"m f=1i\n" + bad + b"\nm f=2i\n")
        assert [error.line for error in lines.errors][:1] == [2]
        assert [row.fields["f"] for row in rows_of(lines.encoded) if "f" in row.fields] == [1, 2]


@pytest.mark.slow
def test_no_step_passes_more_than_some_windows() -> None:
    """Between two checks the bytes of no body are passed whole: while they are, nobody else runs."""
    size = 2 * MB
    for line in (b'm f="%b"', b'm f="%b', b"m,t=%b f=1", b"%b", b"m %b=1", b"m f=1 %b", b"#%b", b"m f=%b"):
        for filling in (b"x", b'\\"', b"\\\\", b"\n", "ü".encode(), b'"', b"1", b"\xff", b"a=", b'="'):
            checks = [0]

            def check(*_: float, count: list[int] = checks) -> None:
                count[0] += 1

            body = line % (filling * (size // len(filling)))
            encode(body, check)
            if b"\n" not in filling and not line.startswith(b"#"):
                assert checks[0] >= size // (2 * WINDOW), (line, filling)


@pytest.mark.parametrize("bytes_", [30_000, 250_000])
@pytest.mark.parametrize("part", ["fields", "tags"])
def test_a_line_of_many_names_is_read_in_steps_and_planned_at_once(bytes_: int, part: str) -> None:
    """The loop gives such a line up, and a thread goes on: it is told how long the steps are that cannot be cut."""
    count = bytes_ // 7
    names = b",".join(b"%05x=1" % number for number in range(count))
    told: list[float] = []
    lines = encode(
        b"m %b" % names if part == "fields" else b"m,%b f=1" % names, lambda seconds=0.0, *_: told.append(seconds)
    )
    assert lines.encoded is not None
    read_at_once = part == "tags" and bytes_ < WINDOW
    assert len(told) >= (2 if read_at_once else count // FIELDS_BETWEEN_CHECKS)
    assert len([seconds for seconds in told if seconds > 0.002]) >= (3 if read_at_once else 2)


def test_many_lines_of_some_hundred_fields_are_read_in_steps() -> None:
    names = b",".join(b"%05x=1" % number for number in range(200))
    told: list[float] = []
    encode_by_line(b"m %b\n" % names * 64, lambda seconds=0.0, *_: told.append(seconds))
    assert len(told) >= 64 * 200 // (2 * FIELDS_BETWEEN_CHECKS)


def test_characters_are_counted_as_python_decodes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "_SLICE", 3)
    for text in (b"abc\xff\xfe", "aüß😀x".encode() * 5, b"\xf0\x9f\x98", b"a\xed\xa0\x80b", b"", b"\xc3\xc3\xa4" * 7):
        for start in range(len(text) + 1):
            for end in range(start, len(text) + 1):
                assert count_characters(text, start, end) == len(text[start:end].decode("utf-8", "replace"))
                bad = -1
                try:
                    text[start:end].decode()
                except UnicodeDecodeError as error:
                    bad = start + error.start
                assert find_bad_utf8(text, start, end, _go_on) == bad


@pytest.mark.parametrize("escaping", ESCAPINGS.values(), ids=ESCAPINGS)
def test_a_bad_line_ends_where_it_ends_in_one_piece(escaping: Escaping, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        b'm a="x\ny",b=z\nc', b'm a="x\ny"z\nc', b'm a="\\"\n', b'm "a="\nb"\n', b'm a="b="\n"\n', b"m\\\n a\n", b"m\\",
        b'm a="x\\', b'm a=""\n', b'm a="","\n', b'="\n"\n', b'"="\n" \n', b"\n", b"", b'm,t="\n', b'm\\ a="\nb"\n',
    ]  # fmt: skip
    expected = [skip_line(text, 0, 0, escaping, _go_on) for text in texts]
    for size in (4, 5, 6, 7, 8):
        monkeypatch.setattr(grammar, "_SLICE", size)
        assert [skip_line(text, 0, 0, escaping, _go_on) for text in texts] == expected


def _go_on() -> None:
    pass

r"""Lines of our own, and what each generation of InfluxDB makes of them.

`v1` is the rule of InfluxDB 1 and 2: a comma, space or equals sign is no delimiter if the character before it is a
backslash, whatever is before that. `v3` is the rule of InfluxDB 3: backslashes are read from the left, each with the
character after it, so `\\` is one backslash and escapes nothing.

Where arcpipe does something else than InfluxDB, `departs` of the family says what InfluxDB does, and why arcpipe does
not. Of a line that both take, every value is the same, but for a field that has the name of a tag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Final, Literal, NamedTuple, TypeAlias

Generation: TypeAlias = Literal["v1", "v3"]
GENERATIONS: Final[tuple[Generation, ...]] = ("v1", "v3")

MAX: Final = (1 << 63) - 1
MIN: Final = -(1 << 63)
BS: Final = "\\"


class U(NamedTuple):
    """An unsigned integer."""

    value: int


Value: TypeAlias = float | str | U  # also int and bool


class Point(NamedTuple):
    """A point; `fields` under the names of their columns."""

    measurement: str
    tags: dict[str, str]
    fields: dict[str, Value]
    time: int | None = None


Kind: TypeAlias = Literal[
    "no measurement",
    "no fields",
    "no tag key",
    "tag without a value",
    "tag value is empty",
    "equals sign in a tag value",
    "no field key",
    "field without a value",
    "field value is empty",
    "no value of any type",
    "too large",
    "string is open",
    "text after a string",
    "no timestamp",
    "text after the timestamp",
    "no UTF-8",
    "control character",
    "long name",
    "tag twice",
    "tag is called time",
]


class Bad(NamedTuple):
    """A line that is refused."""

    kind: Kind
    line: int = 1


Outcome: TypeAlias = tuple[Point | Bad, ...]


class Case(NamedTuple):
    """A body, and what its lines become."""

    body: bytes
    v1: Outcome
    v3: Outcome

    def outcome(self, generation: Generation) -> Outcome:
        return self.v1 if generation == "v1" else self.v3


class Family(NamedTuple):
    """Cases of one kind. `departs` says what InfluxDB does instead, if it does."""

    name: str
    cases: list[Case]
    departs: str = ""


def _case(text: str | bytes, v1: Point | Bad | Outcome, v3: Point | Bad | Outcome | None = None) -> Case:
    """A case of one outcome, or of several; `v3` is as `v1` if it is not given."""

    def outcome(of: Point | Bad | Outcome) -> Outcome:
        return (of,) if isinstance(of, Point | Bad) else of

    first = outcome(v1)
    return Case(text if isinstance(text, bytes) else text.encode(), first, first if v3 is None else outcome(v3))


def _m(fields: dict[str, Value], time: int | None = None, **tags: str) -> Point:
    return Point("m", tags, fields, time)


# Names in every place that has one. Each line is good if its name is.


class Place(NamedTuple):
    """Where a name or tag value stands: the text around it, its point, and the characters that end it."""

    name: str
    line: str
    point: Callable[[str], Point]
    ends: str
    dropped_before: str  # characters before which `v1` drops a backslash, though they do not end it
    unescaped: dict[str, Kind]  # what is wrong if one of `ends` is in the middle of it
    swallowed: Kind  # what is wrong if a backslash takes away the character that should end it
    # `v3` takes equals signs in tag values: what it makes of a name that has one, by the texts before and after it; and
    # of a name whose end is taken away.
    with_equals: Callable[[str, str], Point] | None = None
    without_end: Callable[[str], Point | Bad] | None = None


PLACES: Final = [
    Place(
        "measurement",
        "{} f=1i",
        lambda name: Point(name, {}, {"f": 1}),
        ", ",
        '="',
        {",": "tag without a value", " ": "field without a value"},
        "no fields",
    ),
    Place(
        "tag key",
        "m,{}=v f=1i",
        lambda name: Point("m", {name: "v"}, {"f": 1}),
        ", =",
        "",
        {",": "tag without a value", " ": "tag without a value", "=": "equals sign in a tag value"},
        "tag without a value",
        with_equals=lambda before, after: Point("m", {before: f"{after}=v"}, {"f": 1}),
    ),
    Place(
        "last tag value",
        "m,t={} f=1i",
        lambda name: Point("m", {"t": name}, {"f": 1}),
        ", =",
        "",
        {",": "tag without a value", " ": "field without a value", "=": "equals sign in a tag value"},
        "equals sign in a tag value",
        with_equals=lambda before, after: Point("m", {"t": f"{before}={after}"}, {"f": 1}),
        without_end=lambda _: Bad("no fields"),
    ),
    Place(
        "tag value before another tag",
        "m,t={},u=w f=1i",
        lambda name: Point("m", {"t": name, "u": "w"}, {"f": 1}),
        ", =",
        "",
        {",": "tag without a value", " ": "field without a value", "=": "equals sign in a tag value"},
        "equals sign in a tag value",
        with_equals=lambda before, after: Point("m", {"t": f"{before}={after}", "u": "w"}, {"f": 1}),
        without_end=lambda name: Point("m", {"t": f"{name},u=w"}, {"f": 1}),
    ),
    Place(
        "field key",
        "m {}=1i",
        lambda name: Point("m", {}, {name: 1}),
        ", =",
        '"',
        {",": "field without a value", " ": "field without a value", "=": "no value of any type"},
        "field without a value",
    ),
    Place(
        "second field key",
        "m g=2i,{}=1i",
        lambda name: Point("m", {}, {"g": 2, name: 1}),
        ", =",
        '"',
        {",": "field without a value", " ": "field without a value", "=": "no value of any type"},
        "field without a value",
    ),
]


def _in_all_places(raw: str, v1: str, v3: str | None = None) -> list[Case]:
    """A name that means the same in all places."""
    return [_case(place.line.format(raw), place.point(v1), place.point(v1 if v3 is None else v3)) for place in PLACES]


# Up to five backslashes before a character in the middle of a name.


def _runs(places: list[Place]) -> Iterator[Case]:
    for place, start, count, char in product(places, ("", "a"), range(1, 6), ', ="nxé'):
        ends = char in place.ends
        v1 = place.point(start + BS * (count - (ends or char in place.dropped_before)) + char + "b")
        v3: Point | Bad
        if not ends:
            v3 = place.point(start + BS * (count // 2 + count % 2) + char + "b")
        elif count % 2:
            v3 = place.point(start + BS * (count // 2) + char + "b")
        else:
            v3 = _of_v3_unescaped(place, start + BS * (count // 2), char)
        yield _case(place.line.format(start + BS * count + char + "b"), v1, v3)


def _of_v3_unescaped(place: Place, before: str, char: str) -> Point | Bad:
    """What `v3` makes of a name that has a character without a backslash, and then a `b`."""
    if char == "=" and place.with_equals is not None:
        return place.with_equals(before, "b")
    return Bad(place.unescaped[char])


_FIELD_PLACES: Final = [place for place in PLACES if "field" in place.name]
_SERIES_PLACES: Final = [place for place in PLACES if "field" not in place.name]


# Backslashes at the end of a name: of `v1` they always take away the character that ends it.


def _trailing() -> Iterator[Case]:
    for place, start, count in product(PLACES, ("", "a"), range(1, 6)):
        swallowed = Bad(place.swallowed)
        name = start + BS * (count // 2)
        v3: Point | Bad = swallowed if place.without_end is None else place.without_end(name)
        yield _case(place.line.format(start + BS * count), swallowed, v3 if count % 2 else place.point(name))


def _escaped_ends() -> Iterator[Case]:
    for place in PLACES:
        for char in place.ends:
            yield _case(place.line.format(f"a\\{char}"), place.point(f"a{char}"))
            yield _case(place.line.format(f"\\{char}"), place.point(char))
            yield _case(place.line.format(f"\\{char}\\{char}b"), place.point(f"{char}{char}b"))


def _unescaped() -> Iterator[Case]:
    for place in PLACES:
        for char, kind in place.unescaped.items():
            yield _case(place.line.format(f"a{char}b"), Bad(kind), _of_v3_unescaped(place, "a", char))


# (as it is sent, of `v1`, of `v3`): tag values that real senders have.
_SENT: Final = [
    (r"C:\x", r"C:\x", r"C:\x"),
    (r"C:\Program\ Files\x", r"C:\Program Files\x", r"C:\Program Files\x"),
    (r"\\nas\share", r"\\nas\share", r"\nas\share"),
    (r"\\\\nas\\share", r"\\\\nas\\share", r"\\nas\share"),
    (r"\\nas\my\ share", r"\\nas\my share", r"\nas\my share"),
    (r"DOMAIN\user", r"DOMAIN\user", r"DOMAIN\user"),
    (r"DOMAIN\\user", r"DOMAIN\\user", r"DOMAIN\user"),
    (r"^\d+\.\d+$", r"^\d+\.\d+$", r"^\d+\.\d+$"),
    (r"line\nfeed\ttab", r"line\nfeed\ttab", r"line\nfeed\ttab"),
    (r"line\\nfeed", r"line\\nfeed", r"line\nfeed"),
    (r"a\,b\=c\ d", "a,b=c d", "a,b=c d"),
    (r"\,\=\ ", ",= ", ",= "),
    (r"a\\\,b", r"a\\,b", r"a\,b"),
    (r"a\\\ b", r"a\\ b", r"a\ b"),
    (r"a\\\=b", r"a\\=b", r"a\=b"),
    (r"a\ \ \ b", "a   b", "a   b"),
    (r"\x\y\z", r"\x\y\z", r"\x\y\z"),
    (r"über\ straße\,ß", "über straße,ß", "über straße,ß"),
    (r"\ü\\ü", r"\ü\\ü", r"\ü\ü"),
    (r"\'a\'", r"\'a\'", r"\'a\'"),
    (r"{\"a\":1}", r"{\"a\":1}", r"{\"a\":1}"),
    (r"0\\1\\2\\3", r"0\\1\\2\\3", r"0\1\2\3"),
]


def _sent() -> Iterator[Case]:
    for raw, v1, v3 in _SENT:
        yield _case(f"m,t={raw} f=1i", _m({"f": 1}, t=v1), _m({"f": 1}, t=v3))
        yield _case(
            f"m,s=x,t={raw},u=y f=1i 5", _m({"f": 1}, 5, s="x", t=v1, u="y"), _m({"f": 1}, 5, s="x", t=v3, u="y")
        )
    yield _case(r"m,t=C:\\ Program\ Files\x f=1i", _m({"f": 1}, t=r"C:\ Program Files\x"), Bad("field without a value"))
    yield _case(r"m,t=a\\,b f=1i", _m({"f": 1}, t=r"a\,b"), Bad("tag without a value"))
    yield _case(r"m,t=a\\=b f=1i", _m({"f": 1}, t=r"a\=b"), _m({"f": 1}, t=r"a\=b"))
    yield _case(r"m,t=\\,u=\\ f=1i", Bad("equals sign in a tag value"), _m({"f": 1}, t=BS, u=BS))
    # Clients add a space to a value that ends with a backslash.
    yield _case(r"m,t=C:\\  f=1i", _m({"f": 1}, t="C:\\ "), _m({"f": 1}, t="C:\\"))
    yield _case(r"m,t=C:\\ ,u=w f=1i", _m({"f": 1}, t="C:\\ ", u="w"), Bad("no field key"))
    yield _case(r"m,t=C:\\\  f=1i", _m({"f": 1}, t="C:\\\\ "), _m({"f": 1}, t="C:\\ "))


# (between the quotes, the text): the same in all generations.
_STRINGS: Final = [
    ("", ""),
    (" ", " "),
    ("a b", "a b"),
    ("a,b=c d", "a,b=c d"),
    ("it's", "it's"),
    ("a\nb", "a\nb"),
    ("a\r\nb", "a\r\nb"),
    ("\n\n", "\n\n"),
    ("# no comment", "# no comment"),
    ("a\n# no comment\nb", "a\n# no comment\nb"),
    ("a\nm f=2i\nb", "a\nm f=2i\nb"),
    ("a\tb", "a\tb"),
    ("a\x00b\x1f\x7f", "a\x00b\x1f\x7f"),
    ("ü 🚀 \u2028", "ü 🚀 \u2028"),
    (r"\"", '"'),
    (r"\"a\"", '"a"'),
    (r"a\"b,c=\"d e\"", 'a"b,c="d e"'),
    (r"\\", BS),
    (r"\\\\", BS * 2),
    (r"\\\"", '\\"'),
    (r"\\\\\"", '\\\\"'),
    (r"C:\x", r"C:\x"),
    (r"C:\\x", r"C:\x"),
    (r"C:\\", "C:\\"),
    (r"\\nas\share", r"\nas\share"),
    (r"\\\\nas\\share", r"\\nas\share"),
    (r"a\ b", r"a\ b"),
    (r"a\,b", r"a\,b"),
    (r"a\=b", r"a\=b"),
    (r"a\\ b", r"a\ b"),
    (r"a\\,b", r"a\,b"),
    (r"\n\r\t\0\u0041\x41", r"\n\r\t\0\u0041\x41"),
    (r"\\n", r"\n"),
    (r"\\\n", r"\\n"),
    ("a\\\nb", "a\\\nb"),
    (r"{\"a\":\"b\\\"c\"}", r'{"a":"b\"c"}'),
    ("1", "1"),
    ("true", "true"),
]


def _strings() -> Iterator[Case]:
    for raw, text in _STRINGS:
        yield _case(f'm f="{raw}"', _m({"f": text}))
        yield _case(f'm,t=v e="x y",f="{raw}",g=2i 5', _m({"e": "x y", "f": text, "g": 2}, 5, t="v"))


_FLOATS: Final = (
    *("0", "-0", "0.0", "-0.0", "1", "-1", "007", "-007", "1.5", "-1.5", "123456789", "9007199254740993", "0.1"),
    *("1e5", "1E5", "1e+5", "1e-5", "-1e5", "1.5e3", "1.5E-3", "1e05", "1e-400", "-1e-400", "1.7976931348623157e308"),
    *("5e-324", "2.2250738585072014e-308", "0.30000000000000004", "1" * 300, "0." + "0" * 330 + "1", "0" * 300 + "1.5"),
)
_POINTED_FLOATS: Final = ("1.", "-1.", ".5", "-.5", "1.e3", ".5e3", "-.5E-3", "0.", ".0")
_INFINITE: Final = ("1e309", "-1e309", "1e400", "-1e400", "1.7976931348623159e308", "1e" + "9" * 30, "1" * 310)
_INTEGERS: Final = ("0", "-0", "1", "-1", "007", "-007", str(MAX), str(MIN), "0" * 30 + "7", "-" + "0" * 30 + "7")
_UNSIGNED: Final = ("0", "1", "007", str(MAX), str(MAX + 1), str((1 << 64) - 1), "0" * 30 + "7")
_BOOLEANS: Final = ("t", "T", "true", "True", "TRUE", "f", "F", "false", "False", "FALSE")
_NO_VALUES: Final = (
    *(
        "+1",
        "+1i",
        "--1",
        "-+1",
        "-",
        "-i",
        "-u",
        "i",
        "u",
        ".",
        "-.",
        "-.e1",
        "e5",
        "1e",
        "1e+",
        "1e-",
        "1ee5",
        "1e5.5",
    ),
    *(
        "1.2.3",
        "1..2",
        "1.0i",
        "1.5u",
        "1e3i",
        "1e3u",
        ".i",
        "1ii",
        "1iu",
        "1ui",
        "1I",
        "1U",
        "i1",
        "-1u",
        "-0u",
        "+0u",
    ),
    *(
        "+0u",
        "0x1i",
        "0x1u",
        "0b1",
        "0o7",
        "1f",
        "1d",
        "1L",
        "1n",
        "1;",
        "(1)",
        "1-1",
        "1+1",
        "inf",
        "-inf",
        "+inf",
        "Inf",
    ),
    *(
        "Infinity",
        "nan",
        "NaN",
        "NAN",
        "-nan",
        "+NaN",
        "tr",
        "tru",
        "truE",
        "tRUE",
        "TRUe",
        "fa",
        "fals",
        "fALSE",
        "tt",
    ),
    *(
        "tt",
        "yes",
        "no",
        "on",
        "null",
        "None",
        "nil",
        "a",
        "'a'",
        "`a`",
        "1b",
        "true1",
        "t1",
        "1t",
        "1=2",
        "=1",
        "١",
        "１",
    ),
    *("0x1", "0X1", "0x1p3", "1_0", "1,000.0"),
)
_TOO_LARGE: Final = (f"{MAX + 1}i", f"{MIN - 1}i", f"{1 << 64}u", "9" * 30 + "i", "-" + "9" * 30 + "i", "9" * 30 + "u")


def _value(text: str, value: Value | Bad) -> list[Case]:
    """A value alone, before another field, and before a timestamp."""
    if isinstance(value, Bad):
        return [_case(line, value) for line in (f"m f={text}", f"m f={text},g=2i", f"m f={text} 5")]
    return [
        _case(f"m f={text}", _m({"f": value})),
        _case(f"m f={text},g=2i", _m({"f": value, "g": 2})),
        _case(f"m f={text} 5", _m({"f": value}, 5)),
    ]


def _values() -> Iterator[Case]:
    for text in _FLOATS:
        yield from _value(text, float(text))
    for text in _INTEGERS:
        yield from _value(f"{text}i", int(text))
    for text in _UNSIGNED:
        yield from _value(f"{text}u", U(int(text)))
    for text in _BOOLEANS:
        yield from _value(text, text[0] in "tT")


def _no_values() -> Iterator[Case]:
    for text in _NO_VALUES:
        if "," not in text:
            yield from _value(text, Bad("no value of any type"))
    for text in _TOO_LARGE:
        yield from _value(text, Bad("too large"))
    yield _case("m f=", Bad("field value is empty"))
    yield _case("m f= ", Bad("field value is empty"))
    yield _case("m f=,g=2i", Bad("field value is empty"))
    yield _case("m f= 5", Bad("field value is empty"))
    yield _case("m f=1,000.0", Bad("field without a value"))


_ONE: Final[dict[str, Value]] = {"f": 1}


def _times() -> Iterator[Case]:
    for text in ("1", "-1", "0", "-0", "007", "-007", "0" * 30 + "7", str(MAX - 1), str(MIN + 2)):
        yield _case(f"m f=1i {text}", _m(_ONE, int(text)))
    for text in ("+1", "-", "--1", "1.0", "1e3", "1i", "1u", "0x1", "1_0", "a", "1-", "1-2", "1;2", "t", '"5"', "١"):
        yield _case(f"m f=1i {text}", Bad("no timestamp"))
    for text in (str(MAX + 1), str(MIN - 1), "9" * 30, "-" + "9" * 30):
        yield _case(f"m f=1i {text}", Bad("too large"))
    for text in ("1 2", "1 a", "1 g=2i", "1,g=2i", "1 #c"):
        yield _case(f"m f=1i {text}", Bad("text after the timestamp"))
    yield _case("m f=1i g=2i", Bad("no timestamp"))
    yield _case("m f=1i #c", Bad("no timestamp"))
    yield _case("m f=1i 5 ", _m(_ONE, 5))
    yield _case("m f=1i 5   ", _m(_ONE, 5))
    yield _case("m f=1i   5", _m(_ONE, 5))


# Names: no character but a comma, a space and an equals sign means anything in one.
_NAMES: Final = (
    *('"a"', "'a'", 'a"b', '"', "'", "a'b", "_a", ".a", "..", "a/b", "a.b", "a:b", "a%b", "a#b", "a;b", "a{b}", "a*b"),
    *("a?b", "a$b", "@a", "-a", "-1", "1", "1i", "t", "true", "ü", "日本", "🚀", "a\u00a0b", "a\u2028b", "\ufffd", "ﬁ"),
    *("a" * 256, "ü" * 128, "NULL", "nan", "select", "_field", "_measurement", "_time", "year", "__index_level_0__"),
)

_SIX: Final[dict[str, Value]] = {"a": 1, "b": 1.5, "c": U(2), "d": True, "e": "x y", "g": "\\"}


def _lines() -> Iterator[Case]:
    yield _case("m f=1i", _m(_ONE))
    yield _case("m f=1i\n", _m(_ONE))
    yield _case("m f=1i\nm f=2i", (_m(_ONE), _m({"f": 2})))
    yield _case("m f=1i\n\n\nm f=2i\n\n", (_m(_ONE), _m({"f": 2})))
    yield _case("  m f=1i", _m(_ONE))
    yield _case("\tm f=1i\n \t m f=2i", (_m(_ONE), _m({"f": 2})))
    yield _case("m  f=1i", _m(_ONE))
    yield _case("m,t=v   f=1i   5", _m(_ONE, 5, t="v"))
    yield _case(r'm,t=v a=1i,b=1.5,c=2u,d=t,e="x y",g="\\" 5', _m(_SIX, 5, t="v"))
    yield _case("m,b=1,a=2,c=3 f=1i", _m(_ONE, a="2", b="1", c="3"))
    yield _case("m=1 f=1i", Point("m=1", {}, _ONE))
    yield _case("=,t=v f=1i", Point("=", {"t": "v"}, _ONE))
    yield _case("time f=1i", Point("time", {}, _ONE))
    yield _case('m,t="v f=1i', _m(_ONE, t='"v'))
    yield _case('m,t="v,u=w" f=1i', _m(_ONE, t='"v', u='w"'))
    yield _case('m,t="v f="a b",g=2i', _m({"f": "a b", "g": 2}, t='"v'))
    yield _case('m "f=1i', _m({'"f': 1}))
    yield _case('m a"="b c"', _m({'a"': "b c"}))
    yield _case('m f=1i,"g"="a b",h=2i', _m({"f": 1, '"g"': "a b", "h": 2}))
    yield _case('m f="a\nb"\nm f="c"', (_m({"f": "a\nb"}), _m({"f": "c"})))
    yield _case(b"", ())
    yield _case("\n \n\t\n", ())
    yield _case("# a\n  # b\n\t#c\n#", ())
    yield _case("# a\nm f=1i\n#b\n\nm f=2i 5\n# c", (_m(_ONE), _m({"f": 2}, 5)))
    yield _case("#m f=1i\nm#n f=1i", Point("m#n", {}, _ONE))
    yield _case(r"\#m f=1i", Point(r"\#m", {}, _ONE))
    yield _case("m,t=#v,#u=w f=1i", Point("m", {"t": "#v", "#u": "w"}, _ONE))
    yield _case("# it's \"\nm f=1i", _m(_ONE))


def _bad_lines() -> Iterator[Case]:
    kinds: list[tuple[str, Kind]] = [
        ("m", "no fields"),
        ("m ", "no fields"),
        ("m\n", "no fields"),
        ("m,t=v", "no fields"),
        ("m,t=v ", "no fields"),
        (",t=v f=1i", "no measurement"),
        (", f=1i", "no measurement"),
        ("m, f=1i", "no tag key"),
        ("m,=v f=1i", "no tag key"),
        ("m,t=v, f=1i", "no tag key"),
        ("m, t=v f=1i", "no tag key"),
        ("m,t f=1i", "tag without a value"),
        ("m,t=v,u f=1i", "tag without a value"),
        ("m,t", "tag without a value"),
        ("m,t= f=1i", "tag value is empty"),
        ("m,t=,u=w f=1i", "tag value is empty"),
        ("m,t=", "tag value is empty"),
        ("m =1i", "no field key"),
        ("m f=1i,=2i", "no field key"),
        ("m f=1i, g=2i", "no field key"),
        ("m f", "field without a value"),
        ("m f ", "field without a value"),
        ("m f 5", "field without a value"),
        ("m f=1i,g", "field without a value"),
        ("m f:1i", "field without a value"),
        ("m f =1i", "field without a value"),
        ("m f=1i,g=", "field value is empty"),
        ("m f= 1i", "field value is empty"),
        ("m f=t=2i", "no value of any type"),
        ("m f=1ig=2i", "no value of any type"),
        ('m f=a"b"', "no value of any type"),
        ('m f=x"a b"', "no value of any type"),
        ("m f='a b'", "no value of any type"),
        ('m f="', "string is open"),
        ('m f="a', "string is open"),
        ('m f="a\\"', "string is open"),
        ('m f="a\\', "string is open"),
        ('m f="a\\\\\\"', "string is open"),
        ('m f="a" "b"', "no timestamp"),
        ('m f="a" g="b"', "no timestamp"),
    ]
    for text, kind in kinds:
        yield _case(text, Bad(kind))
    yield _case("m f=1i\nbad\nm f=2i", (_m(_ONE), Bad("no fields", 2), _m({"f": 2})))
    yield _case("bad\n\n# c\nm f=1i\nm f=x\n", (Bad("no fields"), _m(_ONE), Bad("no value of any type", 5)))
    yield _case('m f="a\nb",g=\nm f=1i', (Bad("field value is empty"), _m(_ONE)))
    yield _case('m f="a\nm f=2i\n" x\nm f=1i', (Bad("no timestamp"), _m(_ONE)))


def _twice() -> Iterator[Case]:
    yield _case("m,t=v,t=w f=1i", Bad("tag twice"))
    yield _case("m,t=v,t=v f=1i", Bad("tag twice"))
    yield _case("m,t=v,u=x,t=w f=1i", Bad("tag twice"))
    yield _case(r"m,t\,=v,t\,=w f=1i", Bad("tag twice"))
    yield _case(r"m,a\\b=v,a\b=w f=1i", Point("m", {r"a\\b": "v", r"a\b": "w"}, _ONE), Bad("tag twice"))
    yield _case(r"m,t\x=v,t\x=w f=1i", Bad("tag twice"))
    yield _case("m,time=v f=1i", Bad("tag is called time"))
    yield _case("m,t=v,T=w f=1i", _m(_ONE, t="v", T="w"))


def _field_twice() -> Iterator[Case]:
    yield _case("m f=1i,f=2i", _m({"f": 2}))
    yield _case("m f=1i,g=3i,f=2i", _m({"f": 2, "g": 3}))
    yield _case('m f=1i,f="a"', _m({"f": "a"}))
    yield _case(r"m a\\b=1i,a\b=2i", _m({r"a\\b": 1, r"a\b": 2}), _m({r"a\b": 2}))


def _tag_and_field() -> Iterator[Case]:
    yield _case("m,a=v a=1i", Point("m", {"a": "v"}, {"a_field": 1}))
    yield _case(r"m,a\ b=v a\ b=1i", Point("m", {"a b": "v"}, {"a b_field": 1}))


def _line_ends() -> Iterator[Case]:
    yield _case("m f=1i\r\n", _m(_ONE))
    yield _case("m f=1i 5\r\nm f=2i 6\r\n", (_m(_ONE, 5), _m({"f": 2}, 6)))
    yield _case('m f="a"\r\nm f=t\r\n', (_m({"f": "a"}), _m({"f": True})))
    yield _case("\r\n\r\nm f=1i\r\n\r\n", _m(_ONE))
    yield _case("# a\r\nm f=1i", _m(_ONE))
    yield _case("m f=1i\t\nm f=2i 5 \t\r\n", (_m(_ONE), _m({"f": 2}, 5)))
    yield _case("m f=1i ", _m(_ONE))
    yield _case("m f=1i  \nm f=2i", (_m(_ONE), _m({"f": 2})))
    yield _case("m \tf=1i", _m(_ONE))
    yield _case("m f=1i \t5", _m(_ONE, 5))


def _newlines() -> Iterator[Case]:
    """No backslash, comment or open string keeps a newline from ending a line."""
    one = _m(_ONE)
    yield _case("# a \\\nm f=1i", one)
    yield _case('# a="b\nm f=1i', one)
    yield _case('# a="b\nm f="c"', _m({"f": "c"}))
    yield _case("m,t=a\\\nm f=1i", (Bad("no fields"), one))
    yield _case("a\\\nm f=1i", (Bad("no fields"), one))
    yield _case("m a\\\nm f=1i", (Bad("field without a value"), one))
    yield _case('m f="a\nm f=1i', (Bad("string is open"), one))
    yield _case('m f="a\\\nm f=1i\nm f=1i', (Bad("string is open"), one, one))
    yield _case('m f="a\nm f="b"', (Bad("text after a string"), _m({"f": "b"})))


def _after_strings() -> Iterator[Case]:
    for text in ('"a"b', '"a"1', '"a"i', '"a"x,g=2i', '"a""b"', '"a"=1', '""a""', r'"a\\"b"'):
        yield _case(f"m f={text}", Bad("text after a string"))


def _controls() -> Iterator[Case]:
    for char in "\t\r\x01\x0b\x0c\x1f\x7f\x85\x9f":
        yield _case(f"a{char}b f=1i", Bad("control character"))
        yield _case(f"m,a{char}b=v f=1i", Bad("control character"))
        yield _case(f"m a{char}b=1i", Bad("control character"))
    yield _case("a\x00b f=1i", Bad("control character"))
    yield _case("m,a\x00b=v f=1i", Bad("control character"))
    yield _case("m a\x00b=1i", Bad("control character"))
    yield _case("m\t f=1i", Bad("control character"))
    yield _case("\x00m f=1i", Bad("control character"))
    for place in PLACES[:2] + PLACES[4:]:
        yield _case(place.line.format("a" * 257), Bad("long name"))


def _tag_values_with_controls() -> Iterator[Case]:
    for char in "\x00\x01\x0b\x1f\x7f\x85":
        yield _case(f"m,t=a{char}b f=1i", _m(_ONE, t=f"a{char}b"))


_NO_UTF8: Final = (
    b"\xff",
    b"\xc3",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe2\x82",
    b"\xf8\x88\x80\x80\x80",
)


def _no_utf8() -> Iterator[Case]:
    for raw in _NO_UTF8:
        for line in (b"a%s f=1i", b"m,a%s=v f=1i", b"m,t=a%s f=1i", b"m a%s=1i", b'm f="a%s"', b"m,t=a\\ %s f=1i"):
            yield _case(line % raw, Bad("no UTF-8"))
        yield _case(b"m f=1i\nm,t=%s f=2i\nm f=3i" % raw, (_m(_ONE), Bad("no UTF-8", 2), _m({"f": 3})))
    yield _case(b"#\xff\nm f=1i", _m(_ONE))


def _equals_signs() -> Iterator[Case]:
    yield _case("m,t=a=b f=1i", Bad("equals sign in a tag value"), _m(_ONE, t="a=b"))
    yield _case("m,t=YWJj== f=1i", Bad("equals sign in a tag value"), _m(_ONE, t="YWJj=="))
    yield _case("m,t=YQ==,u=w f=1i 5", Bad("equals sign in a tag value"), _m(_ONE, 5, t="YQ==", u="w"))
    yield _case("m,t== f=1i", Bad("tag value is empty"), _m(_ONE, t="="))
    yield _case("m,t==a f=1i", Bad("tag value is empty"), _m(_ONE, t="=a"))
    yield _case("m,t=?a=1&b=2 f=1i", Bad("equals sign in a tag value"), _m(_ONE, t="?a=1&b=2"))


def _stricter_than_v3() -> Iterator[Case]:
    yield _case("m,,t=v f=1i", Bad("no tag key"))
    yield _case("m,t=v,,u=w f=1i", Bad("no tag key"))
    yield _case("m f=1i,", Bad("no field key"))
    yield _case("m f=1i,,g=2i", Bad("no field key"))
    yield _case("m ,f=1i", Bad("no field key"))
    yield _case("m f,g=1i", Bad("field without a value"))
    yield _case('m "f,g"=1i', Bad("field without a value"))


FAMILIES: Final = [
    Family(
        "runs of backslashes in measurements and tags",
        list(_runs(_SERIES_PLACES)),
        "InfluxDB 3 takes a comma in a tag key without a backslash.",
    ),
    Family(
        "runs of backslashes in field keys",
        list(_runs(_FIELD_PLACES)),
        """InfluxDB 1 and 2 read field keys twice: in pairs, as InfluxDB 3 does, and then by the character before. They
        refuse an even number of backslashes before a delimiter, or make one field of two. InfluxDB 3 takes a comma in a
        field key without a backslash.""",
    ),
    Family(
        "backslashes at the end of a name",
        list(_trailing()),
        """InfluxDB 3 refuses names and tag values that end with a backslash. They mean only one thing, so arcpipe takes
        them.""",
    ),
    Family("escaped characters at the start and end of a name", list(_escaped_ends())),
    Family(
        "delimiters in a name without a backslash",
        list(_unescaped()),
        "InfluxDB 3 takes commas in tag keys and field keys: see the last family.",
    ),
    Family(
        "tag values as they are sent",
        list(_sent()),
        "InfluxDB 3 refuses what ends with a backslash.",
    ),
    Family(
        "equals signs in tag values",
        list(_equals_signs()),
        "InfluxDB 1 and 2 take an equals sign that is the first character of a tag value.",
    ),
    Family("strings", list(_strings())),
    Family("values", list(_values())),
    Family(
        "floats that begin or end with their point",
        [case for text in _POINTED_FLOATS for case in _value(text, float(text))],
        "InfluxDB 3 refuses them. They mean only one thing, so arcpipe takes them.",
    ),
    Family(
        "floats that are too large",
        [case for text in _INFINITE for case in _value(text, Bad("too large"))],
        "InfluxDB 3 makes them infinite, which is another value than the one that was sent.",
    ),
    Family("what is no value", list(_no_values())),
    Family("timestamps", list(_times())),
    Family(
        "names",
        [case for name in _NAMES for case in _in_all_places(name, name)],
        "InfluxDB 2 keeps `_field` and `_measurement` for itself.",
    ),
    Family("good lines", list(_lines())),
    Family("bad lines", list(_bad_lines())),
    Family(
        "tags that are there twice",
        list(_twice()),
        """InfluxDB 3 takes two tags of the same name. InfluxDB 1 refuses a tag `time` behind its parser, and so does
        InfluxDB 3.""",
    ),
    Family(
        "fields that are there twice",
        list(_field_twice()),
        "InfluxDB 3 refuses them behind its parser. Of InfluxDB 1 and 2 the last one counts, and so it does here.",
    ),
    Family(
        "a tag and a field of one name",
        list(_tag_and_field()),
        "InfluxDB 1 and 2 keep both, and answer queries with `a` and `a_1`. InfluxDB 3 refuses them behind its parser.",
    ),
    Family(
        "spaces, tabs and carriage returns around a line",
        list(_line_ends()),
        """InfluxDB takes no carriage return and no tab there: 1 and 2 refuse the line, or put the closing quote of a
        string into it; 3 refuses it, and also a space behind the fields.""",
    ),
    Family(
        "newlines that end a line, whatever is before them",
        list(_newlines()),
        """In InfluxDB a backslash keeps a newline in a line, and in 1 and 2 a quote in a comment does. So a comment can
        take the next line with it, without an error, and a bad line all lines to the next quote.""",
    ),
    Family(
        "text after a string",
        list(_after_strings()),
        "InfluxDB 1 and 2 put it into the string, and drop its last character.",
    ),
    Family(
        "names with control characters, and long ones",
        list(_controls()),
        "InfluxDB takes most of them. They are no names of columns that readers of Parquet agree on.",
    ),
    Family("tag values with control characters", list(_tag_values_with_controls())),
    Family(
        "what is no UTF-8",
        list(_no_utf8()),
        "InfluxDB 1 and 2 store it, InfluxDB 3 refuses the whole body.",
    ),
    Family(
        "delimiters without a backslash that InfluxDB 3 takes",
        list(_stricter_than_v3()),
        """InfluxDB 3 takes them, InfluxDB 1 and 2 only an equals sign at the start of a tag value. Their reference asks
        for a backslash, and without it a name whose value is missing would become part of the next name.""",
    ),
]

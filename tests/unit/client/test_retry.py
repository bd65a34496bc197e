"""What answers mean, how long pauses are, and which node is asked."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.client import ClientError, retry
from arcpipe.client.options import Options, read_urls
from arcpipe.client.retry import Answer
from arcpipe.client.routes import Routes

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def answer(status: int, reason: str = "", **headers: str) -> Answer:
    return Answer(status, headers, json.dumps({"error": reason, "code": "x"}).encode())


@pytest.mark.parametrize("status", [408, 425, 429, 502, 503, 504, 507])
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert not retry.is_final(answer(status), 0)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 411, 413, 415, 431, 501])
def test_what_stays_is_refused(status: int) -> None:
    assert retry.is_final(answer(status), 0)


def test_only_an_answer_of_arcpipe_is_an_acknowledgement() -> None:
    assert [status for status in range(200, 300) if retry.is_accepted(answer(status))] == [202, 204]
    assert retry.is_final(answer(200), 0)
    page = Answer(200, {}, b"<h1>It works!</h1>")
    assert "is the URL right? It says: <h1>It works!</h1>" in retry.refusal_reason(page)
    assert "use the URL it names, https://a" in retry.refusal_reason(Answer(301, {"location": "https://a"}, b""))


def test_a_bug_of_the_server_is_tried_five_times() -> None:
    assert [retry.is_final(answer(500), count) for count in range(1, 8)] == [False] * 5 + [True] * 2


@pytest.mark.parametrize(
    ("status", "reason", "may_be"),
    [
        (429, "too many", False),
        (408, "too slow", False),
        (503, "backlog; nothing was written", False),
        (507, "the records may have been written; a retry may store them twice", True),
        (502, "bad gateway", True),
        (504, "gateway timeout", True),
    ],
)
def test_the_answer_tells_if_the_records_may_be_written(status: int, reason: str, may_be: bool) -> None:
    assert retry.failure_of(answer(status, reason), NOW).may_be_written is may_be


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error": "a"}', "a"),
        (b'{"code": "invalid", "message": "b"}', "b"),
        (b'{"error": "p", "data": [{"error_message": "m", "line_number": 3}]}', "p: line 3: m"),
        (b"<html>\n no  such\x00 page", "<html> no such\x00 page"),
        (b"", "no reason"),
        (b"[" * 100_000, "[" * 500),
        (b"\xff", "�"),
    ],
)
def test_the_reason_of_any_answer_is_one_line(body: bytes, reason: str) -> None:
    assert retry.reason_of(Answer(400, {}, body)) == reason


def test_a_partial_write_is_told_apart() -> None:
    assert retry.is_partly_written(answer(400, "partial write: unable to parse 'x'"))
    assert not retry.is_partly_written(answer(400, "unable to parse 'x'"))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), (" 7 ", 7), ("1.5", 1.5), ("99999", 3600), ("-1", None), ("", None), ("soon", None), ("1e9", None)],
)
def test_retry_after_in_seconds(value: str, seconds: float | None) -> None:
    assert retry.retry_after_seconds(value, "", NOW) == seconds


@given(st.integers(-10_000, 10_000), st.integers(-1_000_000, 1_000_000))
def test_a_date_of_retry_after_is_counted_from_the_servers_clock(seconds: int, skew: int) -> None:
    servers_now = NOW + timedelta(seconds=skew)
    value = format_datetime(servers_now + timedelta(seconds=seconds), usegmt=True)
    found = retry.retry_after_seconds(value, format_datetime(servers_now, usegmt=True), NOW)
    assert found == min(max(seconds, 0), 3600)
    assert retry.retry_after_seconds(value, "", NOW) == min(max(seconds + skew, 0), 3600)


@given(
    st.integers(1, 10_000),
    st.none() | st.floats(0, 3600),
    st.floats(0.01, 10),
    st.floats(10, 1000),
    st.floats(0, 1),
)
def test_pauses_grow_within_bounds(
    failures: int, after: float | None, first: float, longest: float, chance: float
) -> None:
    step = min(longest, first * 2 ** min(failures - 1, 60))
    pause = retry.pause_seconds(failures, after, first, longest, chance)
    assert step / 2 <= pause <= max(longest, (after or 0) + first)
    if after is not None:
        assert pause >= after
    else:
        assert pause <= step


# Nodes

URLS = ["http://a", "http://b", "http://c"]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_key_has_the_same_first_node_in_every_process() -> None:
    firsts = set()
    for number in range(100):
        routes = [Routes(read_urls(urls), 60, Clock()).route(f"k{number}").node.url for urls in (URLS, URLS[::-1])]
        assert routes[0] == routes[1]
        firsts.add(routes[0])
    assert firsts == set(URLS)


def test_a_node_that_cannot_have_it_is_left_at_once() -> None:
    route = Routes(read_urls(URLS), 60, Clock()).route("k")
    seen = [route.node.url]
    assert route.failed(may_be_written=False)
    seen.append(route.node.url)
    assert route.failed(may_be_written=False)
    seen.append(route.node.url)
    assert not route.failed(may_be_written=False)  # a whole round: time for a pause
    assert sorted(seen) == URLS
    assert (route.node.url, route.may_be_doubled) == (seen[0], False)


def test_a_node_that_may_have_it_is_kept_until_the_failover() -> None:
    clock = Clock()
    route = Routes(read_urls(URLS), 60, clock).route("k")
    first = route.node
    assert not route.failed(may_be_written=True)
    clock.now += 59
    assert not route.failed(may_be_written=False)  # refused now, but it may have been written before
    assert (route.node, route.may_be_doubled) == (first, False)
    clock.now += 1
    assert route.failed(may_be_written=True)
    assert route.node != first
    assert route.may_be_doubled


def test_one_node_alone_is_asked_for_ever() -> None:
    clock = Clock()
    route = Routes(read_urls("http://a"), 0, clock).route("k")
    for _ in range(10):
        clock.now += 100
        assert not route.failed(may_be_written=True)
    assert not route.may_be_doubled


def test_a_node_that_was_not_reached_is_the_last_choice_for_a_while() -> None:
    clock = Clock()
    routes = Routes(read_urls(URLS), 60, clock)
    first = routes.route("k").node
    routes.avoid(first)
    assert routes.route("k").node != first
    clock.now += 11
    assert routes.route("k").node == first


def test_a_batch_that_may_have_been_sent_is_held_at_its_first_node() -> None:
    """A former process may have sent it there, and the node may have been avoided only since."""
    clock = Clock()
    routes = Routes(read_urls(URLS), 60, clock)
    first = routes.route("k").node
    routes.avoid(first)
    route = routes.route("k", may_be_sent=True)
    assert route.node == first
    clock.now += 59
    assert not route.failed(may_be_written=False)
    assert (route.node, route.may_be_doubled) == (first, False)
    clock.now += 1
    assert route.failed(may_be_written=False)
    assert (route.node != first, route.may_be_doubled) == (True, True)


# Options


@pytest.mark.parametrize(
    ("urls", "text"),
    [
        ([], "there are 0"),
        ("ftp://a", "is not a URL"),
        ("http://", "is not a URL"),
        ("http://a:99999", "is not a URL"),
        ("http://a?x=1", "is not a URL"),
        ("http://a b/", "is not a URL"),
        ("http://a/\n", "is not a URL"),
        ("http://u:p@a", "has a user or a password"),
        ("http://u:p@a?x", "^url: it has a user or a password; give the token as the option token$"),  # not shown
        (["http://a", "http://a"], "twice"),
    ],
)
def test_bad_urls_are_refused(urls: str | list[str], text: str) -> None:
    with pytest.raises(ClientError, match=text):
        read_urls(urls)


def test_urls_have_ports_and_paths_of_their_own() -> None:
    assert [node[1:] for node in read_urls(["http://a", "https://b/x/", "http://[::1]:81", "unix:/run/a.sock"])] == [
        ("a", 80, "http", ""),
        ("b", 443, "https", "/x"),
        ("::1", 81, "http", ""),
        ("/run/a.sock", 0, "unix", ""),
    ]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"database": "a/b"}, "database: 'a/b' is no database name"),
        ({"token": "a b"}, "token"),
        ({"token": None}, "token: it is no text but NoneType"),
        ({"database": None}, "database: it is no text but NoneType"),
        ({"give_up_seconds": -1}, "give_up_seconds: -1 is no time"),
        ({"block_seconds": float("inf")}, "block_seconds: inf is no time"),
        ({"batch_records": 0}, "batch_records: 0 is not 1 or more"),
        ({"answer_seconds": 0}, "answer_seconds: 0 is no time"),
        ({"first_pause_seconds": float("nan")}, "first_pause_seconds"),
        ({"precision": "m"}, "precision: 'm' is not one of auto"),
        ({"key_file": "x"}, "it needs certificate_file"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ClientError, match=text):
        Options(**options)  # type: ignore[arg-type]


def test_options_never_show_their_token() -> None:
    assert "arc_secret" not in repr(Options(token="arc_secret", database="production"))
    with pytest.raises(ClientError) as raised:
        Options(token=b"arc_secret")  # type: ignore[arg-type]
    assert "arc_secret" not in str(raised.value)

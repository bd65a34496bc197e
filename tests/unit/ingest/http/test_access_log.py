"""Lines of the access log: what they hold, what they never hold, and what becomes of them when nobody takes them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.config.settings import AccessLog as Settings
from arcpipe.ingest.http.access_log import AccessLog, CombinedLine, Line, _combined, printable
from arcpipe.ingest.http.request_ids import RequestIds, is_harmless
from arcpipe.logs.line_writer import LineWriter
from arcpipe.names import is_database_name
from tests.support.waiting import wait_until

LINE: dict[str, Any] = {
    "time": "T",
    "worker": 1,
    "client": "192.0.2.7",
    "token": "7h2kq9xw",
    "request_id": "id-1",
    "method": "POST",
    "path": "/write",
    "database": "db",
    "records": 2,
    "bytes": 19,
    "status": 204,
    "queue_ms": 0.5,
    "commit_ms": 1.5,
    "total_ms": 2.5,
}
# The combined format as log readers take it apart, with what is ours after it.
COMBINED = re.compile(
    rb"(\S+) - (\S+) \[([^\]]+)\] "
    rb'"(\S+) ((?:[^"\\]|\\.)*) HTTP/1\.1" (\d{3}) (\d+) "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)" '
    rb"id=(\S*) db=(\S+) records=(\d+) bytes=(\d+) queue_ms=(\S+) commit_ms=(\S+) total_ms=(\S+) worker=(\d+)\n"
)


def a_line(**changes: Any) -> Line:
    return Line(**{**LINE, **changes})


@pytest.fixture
def written(tmp_path: Path) -> Iterator[LineWriter]:
    writer = LineWriter(str(tmp_path / "access.log"))
    yield writer
    writer.close(10)


# What clients choose


@settings(max_examples=300)
@given(
    path=st.binary(max_size=1500),
    referer=st.binary(max_size=50),
    agent=st.binary(max_size=50),
    database=st.text(max_size=128).filter(is_database_name) | st.sampled_from(["Home Assistant", "a records=9"]),
)
def test_no_value_of_a_client_ends_a_line_or_forges_a_field(
    path: bytes, referer: bytes, agent: bytes, database: str
) -> None:
    line = CombinedLine(
        **{**LINE, "path": printable(path) or "-", "database": database},
        answer_bytes=7,
        referer=printable(referer),
        agent=printable(agent),
    )
    text = _combined(line)
    found = COMBINED.fullmatch(text)
    assert found is not None
    assert (found[1], found[2], found[6], found[7], found[10]) == (b"192.0.2.7", b"7h2kq9xw", b"204", b"7", b"id-1")
    assert unquote(found[11].decode()) == database
    assert all(0x20 <= byte < 0x7F for byte in text[:-1])
    assert len(text) < 6000


def test_what_is_printable_stays_as_it_is_and_all_else_is_escaped() -> None:
    assert printable(b"/write/v2/msgpack") == "/write/v2/msgpack"
    assert printable(b"/a%20b~\x1b[31m\r\n\xff\x9b\x7f\0") == "/a%20b~\\x1b[31m\\r\\n\\\\xff\\\\x9b\\x7f\\x00"
    assert printable("ü".encode()) == "\\xc3\\xbc"
    assert printable(b"x" * 2000) == "x" * 1024


@pytest.mark.parametrize("text", [b"a", b"A-z0.9_~:/+=@", b"x" * 128, b"Root=1-67891233-abcdef012345678912345678"])
def test_harmless_ids(text: bytes) -> None:
    assert is_harmless(text)


@pytest.mark.parametrize(
    "text", [b"", b"x" * 129, b"a b", b"a\n", b"a\r\nb", b"a\0", b'"', b"\\", b"\xff", b"a,b", b"<"]
)
def test_ids_that_are_not_taken(text: bytes) -> None:
    assert not is_harmless(text)


def test_made_ids_are_harmless_short_and_of_one_worker() -> None:
    one, other = RequestIds(), RequestIds()
    made = [ids.new() for _ in range(1000) for ids in (one, other)]
    assert len(set(made)) == 2000
    assert all(is_harmless(text) and len(text) < 32 for text in made)


# Which requests


@pytest.mark.parametrize("sample", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("always_errors", [True, False])
def test_a_share_of_all_and_all_errors(written: LineWriter, sample: float, always_errors: bool) -> None:
    log = AccessLog(Settings(format="json", sample=sample, always_errors=always_errors), 1, written)
    for status, share in ((b"202", sample), (b"204", sample), (b"400", 1.0), (b"429", 1.0), (b"507", 1.0)):
        if status >= b"4" and not always_errors:
            share = sample
        many = sum(log.takes(status) for _ in range(5000))
        assert abs(many - share * 5000) <= 5 * (5000 * share * (1 - share)) ** 0.5, status


# How they are written


def test_lines_are_collected_and_written_as_json(tmp_path: Path, written: LineWriter) -> None:
    log = AccessLog(Settings(format="json"), 1, written)

    async def fill() -> None:
        for number in range(1000):
            log.add(a_line(records=number, path=printable(b'/"\n\x00\xff')))

    asyncio.run(fill())
    log.close()
    lines = (tmp_path / "access.log").read_bytes().splitlines()
    assert [json.loads(line)["records"] for line in lines] == list(range(1000))
    assert list(json.loads(lines[0])) == list(LINE)
    assert (written.lines, written.dropped) == (1000, 0)


def test_few_lines_do_not_wait_for_more(tmp_path: Path, written: LineWriter) -> None:
    log = AccessLog(Settings(format="json"), 1, written)

    loop = asyncio.new_event_loop()
    loop.call_soon(log.add, a_line())

    def is_written() -> bool:
        loop.run_until_complete(asyncio.sleep(0))
        return written.lines == 1

    wait_until(is_written, "the line")
    loop.close()
    assert (tmp_path / "access.log").read_bytes().count(b"\n") == 1


def test_the_time_is_of_this_second_in_both_formats(written: LineWriter) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", AccessLog(Settings(format="json"), 1, written).now())
    assert re.fullmatch(
        r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000", AccessLog(Settings(format="combined"), 1, written).now()
    )


# When nobody takes them


def test_what_a_slow_reader_leaves_waiting_is_bounded_and_nobody_waits(tmp_path: Path) -> None:
    """A pipe that is full: its writer's thread stands still, and its user does not."""
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = LineWriter(path, max_waiting_bytes=500_000)
    log = AccessLog(Settings(format="json", path=path), 1, writer)
    batch = b'{"line":1}\n' * 1000
    for _ in range(200):
        writer.write(batch, 1000)
    assert 100_000 < writer.dropped < 200_000
    log.tick(0.0)
    assert writer.take_problem() == ""  # it was told
    os.set_blocking(reader, True)
    read = b""
    while read.count(b"\n") + writer.dropped < 200_000:
        read += os.read(reader, 1 << 20)
    assert set(read.split(b"\n")) == {b'{"line":1}', b""}
    writer.close(10)
    assert writer.lines + writer.dropped == 200_000
    os.close(reader)


def test_a_pipe_gets_whole_lines_of_several_processes(tmp_path: Path) -> None:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            os.close(reader)
            writer = LineWriter(path, max_waiting_bytes=1 << 30)
            for _ in range(50):
                writer.write((b"%d" % number * 300 + b"\n") * 100, 100)
            writer.close(60)
            os._exit(0)
        children.append(child)
    kept = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    read = b""
    while read.count(b"\n") < 15_000:
        read += os.read(reader, 1 << 20)
    for child in children:
        os.waitpid(child, 0)
    os.close(kept)
    os.close(reader)
    assert {len(set(line)) for line in read.splitlines()} == {1}
    assert {len(line) for line in read.splitlines()} == {300}


def test_a_disk_that_is_full_costs_lines_and_nothing_else() -> None:
    writer = LineWriter("/dev/full")
    writer.write(b"line\n", 1)
    wait_until(lambda: writer.dropped == 1, "the failure")
    assert "No space left" in writer.take_problem()
    writer.close(10)


def test_a_file_that_cannot_be_opened_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "later" / "access.log"
    writer = LineWriter(str(path))
    writer.write(b"lost\n", 1)
    wait_until(lambda: writer.dropped == 1, "the failure")
    assert "No such file" in writer.take_problem()
    path.parent.mkdir()
    writer.write(b"kept\n", 1)
    writer.close(10)
    assert path.read_bytes() == b"kept\n"


def test_a_moved_file_gets_earlier_lines_and_a_new_one_the_rest(tmp_path: Path) -> None:
    """A file that was moved gets what was given before, and a new one the rest."""
    path = tmp_path / "access.log"
    writer = LineWriter(str(path), opened=4)
    assert writer.reopened == 4
    writer.write(b"before\n", 1)
    wait_until(lambda: writer.lines == 1, "the line")
    path.rename(tmp_path / "access.log.1")
    writer.write(b"between\n", 1)
    writer.reopen(5)
    writer.write(b"after\n", 1)
    wait_until(lambda: writer.reopened == 5, "the new file")
    writer.close(10)
    assert (tmp_path / "access.log.1").read_bytes() == b"before\nbetween\n"
    assert path.read_bytes() == b"after\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_cannot_be_opened_anew_keeps_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.log"
    path.parent.mkdir()
    writer = LineWriter(str(path))
    writer.write(b"before\n", 1)
    wait_until(lambda: writer.lines == 1, "the line")
    path.parent.rename(tmp_path / "moved")
    writer.reopen(1)
    writer.write(b"after\n", 1)
    writer.close(10)
    assert writer.reopened == 1
    assert "the former file is used" in writer.take_problem()
    assert (tmp_path / "moved" / "access.log").read_bytes() == b"before\nafter\n"


def test_the_combined_format_is_what_shells_and_readers_split() -> None:
    line = CombinedLine(**LINE, answer_bytes=7, referer="-", agent='say "hi"')
    assert shlex.split(_combined(line).decode())[:6] == [
        "192.0.2.7",
        "-",
        "7h2kq9xw",
        "[T]",
        "POST /write HTTP/1.1",
        "204",
    ]

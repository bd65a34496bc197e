"""Lines for somebody who does not read them: nobody waits, what fits is kept, what does not is counted."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest

from arcpipe.logs.stderr import LineOutput

LINE = b"x" * 99 + b"\n"


class Ends(NamedTuple):
    reader: int
    writer: int


def pipe() -> Ends:
    return Ends(*os.pipe())


def sockets() -> Ends:
    """As journald takes the lines of a service."""
    one, other = socket.socketpair()
    return Ends(one.detach(), other.detach())


@pytest.fixture(params=["pipe", "pipe that cannot be opened again", "socket"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    made = sockets() if request.param == "socket" else pipe()
    if "cannot" in request.param:
        monkeypatch.setattr("arcpipe.logs.stderr._FLAGS", os.O_WRONLY | os.O_DIRECTORY)
    yield made
    for fd in made:
        os.close(fd)


def fill(output: LineOutput) -> int:
    """Writes lines until some wait; how many were written."""
    count = 0
    while not output._waiting:
        output.write(LINE)
        count += 1
    return count


def read_all(reader: int, output: LineOutput, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(reader, 65536)
        output.flush()
    return data


def test_nobody_waits_for_a_reader_and_what_waits_goes_out_in_order(ends: Ends) -> None:
    output = LineOutput(ends.writer)
    count = fill(output)
    for number in range(100):
        output.write(b"%d\n" % number)
    assert output.flush() == 0
    late = b"".join(b"%d\n" % number for number in range(100))
    assert read_all(ends.reader, output, count * len(LINE) + len(late)) == count * LINE + late
    output.write(b"again\n")
    assert os.read(ends.reader, 100) == b"again\n"


def test_lines_above_the_bound_are_dropped_whole_and_told(ends: Ends) -> None:
    """Lines above the bound are dropped whole, and told once the others are out."""
    output = LineOutput(ends.writer, max_waiting_bytes=1000)
    count = fill(output)
    for _ in range(30):
        output.write(LINE)
    assert output.flush() == 0  # it could not be said
    data, dropped = b"", 0
    while not dropped:
        data += os.read(ends.reader, 1 << 20)
        dropped = output.flush()
    kept = count + 30 - dropped
    assert count < kept <= count + 10
    assert read_all(ends.reader, output, kept * len(LINE) - len(data)) + data == kept * LINE
    assert output.flush() == 0  # once


@pytest.mark.parametrize("is_full", [False, True])
def test_a_line_from_within_a_line_follows_it(ends: Ends, is_full: bool) -> None:
    """The collector of garbage runs anywhere, and finalizers log: of a task that is pending, of an error in them."""
    output = LineOutput(ends.writer)
    before = fill(output) * LINE if is_full else b""

    def log_once(frame: FrameType, _event: str, _: object) -> None:
        if frame.f_code.co_name == "_look":
            sys.settrace(None)
            output.write(b"nested\n")

    def write() -> None:
        sys.settrace(log_once)
        output.write(b"outer\n")

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    lines = read_all(ends.reader, output, len(before) + len(b"outer\nnested\n")).removeprefix(before)
    assert lines == (b"nested\nouter\n" if is_full else b"outer\nnested\n")


def test_the_mode_of_the_shared_descriptor_stays(ends: Ends) -> None:
    output = LineOutput(ends.writer)
    fill(output)
    assert os.get_blocking(ends.writer)


def test_some_patience_is_over_when_it_is_over(ends: Ends) -> None:
    output = LineOutput(ends.writer)
    fill(output)
    started = time.monotonic()
    output.flush(0.2)
    assert 0.2 <= time.monotonic() - started < 10


def test_a_reader_that_is_gone_costs_nobody_anything() -> None:
    """A reader that is gone and a descriptor that is closed cost nobody anything."""
    reader, writer = os.pipe()
    output = LineOutput(writer)
    fill(output)
    os.close(reader)
    output.write(LINE)
    assert output.flush(10.0) == 0
    os.close(writer)
    output.write(LINE)
    assert not output._waiting


def test_another_file_in_its_place_gets_the_lines_from_then_on(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    output = LineOutput(writer)
    output.write(b"one\n")
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, writer)
    output.write(b"two\n")
    assert os.read(reader, 100) == b"one\n"
    assert (tmp_path / "file").read_bytes() == b"two\n"
    for fd in (reader, writer, file):
        os.close(fd)

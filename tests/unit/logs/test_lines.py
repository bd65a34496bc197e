"""Log lines: what they look like, what cannot get into them, which are held back, and what becomes of those."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
from typing import Any

import pytest

from arcpipe.logs import lines as formatting
from tests.support.program import environment
from tests.support.waiting import WAIT_SECONDS

FORGED = "2026-11-28 00:00:00.000 [INFO] supervisor: stopped; everything is uploaded"
# Ends of lines to some reader, a terminal's escape, a change of direction, half of a character.
EVIL = "\n\r\t\x0b\x1c\x1b[2J\x7f\x85\x9b\u2028\u2029\u202e\udcff\U000e0041"


def logged(program: str, format: str = "text", level: str = "INFO", **variables: str) -> list[str]:
    """Return the lines that `program` logs as process "ingest 1" through `log`, the logger arcpipe.test."""
    head = (
        "import logging, os, time; from arcpipe import logs; "
        f"logs.setup({level!r}, {format!r}, 'ingest 1'); log = logging.getLogger('arcpipe.test')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + program], env=environment() | variables, capture_output=True, timeout=WAIT_SECONDS
    )
    assert done.stdout == b""
    return done.stderr.decode().split("\n")[:-1]


def test_a_text_line_has_time_level_process_message_and_fields() -> None:
    (line,) = logged("log.info('sealed %s', 'a.wal', extra={'fields': {'entries': 3, 'why': 'too old', 'x': ''}})")
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) (.*)", line)
    assert match is not None
    assert match[2] == '[INFO] ingest 1: sealed a.wal entries=3 why="too old" x=""'


def test_log_times_are_utc() -> None:
    program = """
import time
os.environ['TZ'] = 'Asia/Tokyo'
time.tzset()
record = logging.makeLogRecord({'levelname': 'INFO', 'levelno': 20, 'msg': 'm', 'created': 1795444200.9996})
record.msecs = 999.6
log.handle(record)
"""
    assert logged(program) == ["2026-11-23 14:30:00.999 [INFO] ingest 1: m"]


def test_a_json_line_is_one_object_with_the_fields_beside_the_rest() -> None:
    program = "log.warning('two\\nlines', extra={'fields': {'entries': 3, 'level': 'forged', 'path': os}})"
    (line,) = logged(program, format="json")
    entry = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert entry.pop("path").startswith("<module 'os'")
    assert entry == {
        "level": "WARNING",
        "process": "ingest 1",
        "logger": "arcpipe.test",
        "message": "two\nlines",
        "entries": 3,
    }


@pytest.mark.parametrize("format", ["text", "json"])
def test_an_exception_is_logged_with_its_traceback(format: str) -> None:
    program = "try: 1 / 0\nexcept ZeroDivisionError: log.exception('no')"
    lines = logged(program, format=format)
    if format == "text":
        assert all(line.startswith("  | ") for line in lines[1:])
        trace = [line.removeprefix("  | ") for line in lines[1:]]
    else:
        trace = json.loads(lines[0])["exception"].splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[-1] == "ZeroDivisionError: division by zero"


def test_a_message_that_quotes_a_client_cannot_forge_a_line() -> None:
    program = "log.info('name %s', 'a\\n2026 [INFO] b\\x1b[2J', extra={'fields': {'key': 'c\\nd'}})"
    (line,) = logged(program)
    assert line.endswith(r'name a\n2026 [INFO] b\x1b[2J key="c\nd"')


@pytest.mark.parametrize("format", ["text", "json"])
def test_nothing_in_a_line_ends_it_or_does_not_print(format: str) -> None:
    """Neither to a reader that splits at every line end that Unicode has, nor to a terminal."""
    program = f"""
evil = {EVIL!r}
log.info('m %s', evil, extra={{'fields': {{evil: evil, 'nested': {{evil: [evil]}}}}}})
try: raise ValueError(evil + {FORGED!r})
except ValueError: log.exception('%s', evil)
"""
    lines = logged(program, format)
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if not line.startswith("  | ")] == [lines[0], lines[1]]
    assert not any(line.startswith(FORGED[:10]) and "supervisor" in line for line in lines)
    if format == "json":
        first, second = map(json.loads, lines)
        shown = EVIL.replace("\udcff", "\\udcff")
        assert (first["message"], first[shown], first["nested"]) == (f"m {shown}", shown, {shown: [shown]})
        assert FORGED in second["exception"]


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_lines_of_a_traceback_cannot_pass_for_lines_of_the_log(format: str) -> None:
    lines = logged(f"try: raise ValueError('boo\\n{FORGED}')\nexcept ValueError: log.exception('no')", format)
    if format == "text":
        assert lines[-1] == f"  | {FORGED}"
        assert all(line.startswith("  | ") for line in lines[1:])
    else:
        assert len(lines) == 1
        assert json.loads(lines[0])["exception"].endswith(f"ValueError: boo\n{FORGED}")


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_nobody_catches_is_a_line_of_the_log_too(format: str) -> None:
    """The end of a thread, an error in a finalizer, a warning of Python's, and the end of the process."""
    program = f"""
import threading, warnings
class Unclean:
    def __del__(self): raise ValueError('boo\\n{FORGED}')
def boo(): raise KeyError('in a thread')
thread = threading.Thread(target=boo, name='the thread')
thread.start()
thread.join()
Unclean()
warnings.warn('old\\n{FORGED}')
raise RuntimeError('boo\\n{FORGED}')
"""
    lines = logged(program, format)
    if format == "text":
        told = [line for line in lines if not line.startswith("  | ")]
        messages = [line.partition("ingest 1: ")[2] for line in told]
    else:
        entries = list(map(json.loads, lines))
        messages = [entry["message"] for entry in entries]
        assert [("exception" in entry) for entry in entries] == [True, True, False, True]
    assert len(messages) == 4
    assert messages[0] == "thread the thread ends with an error that nobody caught: 'in a thread'"
    assert messages[1].startswith("an error that nobody can catch in <function Unclean.__del__")
    assert "UserWarning: old" in messages[2]
    assert messages[3].startswith("the process ends with an error that nobody caught: boo")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["text", "json"])
def test_a_line_is_bounded_whatever_it_quotes(format: str) -> None:
    """journald splits a line of 48 kB, and takes the rest for another one, with a priority if it begins like one."""
    program = """
log.info('%s', 'ä' * 200_000)
log.info('m', extra={'fields': {str(n): '\\u2028' * 20_000 for n in range(50)}})
try: raise ValueError('x' * 200_000 + '\\n' * 5_000 + 'the end')
except ValueError: log.exception('no')
"""
    lines = logged(program, format)
    assert max(len(line.encode()) for line in lines) < 48 * 1024
    assert len(lines) <= 3 + 201
    assert "the end" in lines[-1]
    if format == "json":
        assert [json.loads(line)["message"][:1] for line in lines] == ["ä", "m", "n"]


def test_a_huge_value_is_cut_before_it_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million characters that do not print took seconds of everybody's time."""
    seen: list[int] = []
    encode = formatting._encode

    def watched(entry: dict[str, Any]) -> str:
        seen.append(sum(len(str(value)) for value in entry.values()))
        return encode(entry)

    monkeypatch.setattr(formatting, "_encode", watched)
    record = logging.makeLogRecord({"msg": "m", "fields": {str(n): "\u2028" * 1_000_000 for n in range(5)}})
    line = formatting.Lines("json", "ingest 1", for_journal=False).of(record)
    assert json.loads(line)["4"].endswith(" characters more)")
    assert max(seen) < 50_000


def test_json_has_nothing_that_is_no_json() -> None:
    """Neither NaN nor infinity, with or without a number that is too large for the fast encoder."""
    program = """
nested = [[[[[[[[[[float('inf')]]]]]]]]]]
for extra in ({}, {'huge': 2**70}):
    fields = {'nan': float('nan'), 'in': [float('inf'), {'n': float('nan')}], 'deep': nested, 1: (2,), **extra}
    log.info('m', extra={'fields': fields})
class Shy:
    def __str__(self): raise ValueError
log.info('m', extra={'fields': {'shy': Shy()}})
log.info('%d', 'no number')
log.error(Shy())
log.info('ok')
"""

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    entries = [json.loads(line, parse_constant=refuse) for line in logged(program, "json")]
    assert [entry.get("nan", "none") for entry in entries] == [None, None, *["none"] * 4]
    assert entries[0]["in"] == entries[1]["in"] == [None, {"n": None}]
    assert (entries[0]["1"], entries[1]["huge"]) == ([2], 2**70)
    assert entries[2]["shy"] == "Shy that cannot be shown: ValueError"
    assert entries[3]["message"].startswith("BUG: a log line cannot be made of '%d': TypeError")
    assert entries[4]["message"].startswith("BUG: a log line cannot be made of ")
    assert entries[5]["message"] == "ok"


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_is_not_unicode_or_huge_is_logged_all_the_same(format: str) -> None:
    lines = logged(
        f"log.info('file %s', {os.fsdecode(b'x')!r} + '\\udcff', extra={{'fields': {{'n': 2**70}}}})", format
    )
    assert len(lines) == 1
    assert str(2**70) in lines[0]


def test_lines_below_the_level_and_the_chatter_of_libraries_are_left_out() -> None:
    program = "log.info('no'); log.warning('yes'); logging.getLogger('botocore.auth').debug('secret')"
    assert [line.rpartition(": ")[2] for line in logged(program, level="WARNING")] == ["yes"]
    assert not any("secret" in line for line in logged(program, level="DEBUG"))


def test_a_forked_child_logs_once_under_its_own_name_and_lines_never_mix() -> None:
    program = """
children = []
for number in range(4):
    child = os.fork()
    if not child:
        logs.setup('INFO', 'text', f'child {number}')
        for _ in range(300):
            log.info(str(number) * 2000)
            logs.flush(60)  # or what waits for the reader would be too much, and dropped
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
"""
    lines = logged(program)
    assert len(lines) == 4 * 300
    assert all(re.search(r"\] child (\d): \1{2000}$", line) for line in lines)


def test_a_process_survives_that_nobody_reads_its_log() -> None:
    program = "os.close(2); log.info('into the void'); os.write(1, b'')"
    assert logged(program) == []


def test_a_warning_that_repeats_itself_is_held_back_and_counted() -> None:
    program = """
for number in range(50):
    log.warning('no answer %d', number)
log.warning('another one')
logs._REPEAT_SECONDS = 0.01
time.sleep(0.1)
log.info('something else')
"""
    told = [line.rpartition("ingest 1: ")[2] for line in logged(program)]
    assert told == [*(f"no answer {number}" for number in range(20)), "another one", *told[-2:]]
    assert told[-2:] == ["no answer 49 held_back=30", "something else"]


def test_of_a_warning_that_goes_on_only_the_last_of_each_time_is_written() -> None:
    """A full disk was two lines a second of each process, for as long as it was full."""
    program = """
import types
now = 0.0
logs.time = types.SimpleNamespace(monotonic=lambda: now)
for second in range(60):
    now += 1
    for number in range(10 if second < 40 else second == 58):
        log.warning('no answer %d', second)
    logs.flush()
"""
    told = [line.rpartition("ingest 1: ")[2] for line in logged(program)]
    assert told == [
        *["no answer 0"] * 10,
        *["no answer 1"] * 10,
        "no answer 10 held_back=90",
        "no answer 21 held_back=110",
        "no answer 32 held_back=110",
        "no answer 39 held_back=70",
        "no answer 58",  # the fault had ended meanwhile
    ]


def test_a_line_logged_while_others_are_told_costs_none() -> None:
    """As by a finalizer, which may run at any place."""
    program = """
class Logs:
    def __str__(self):
        log.warning('from within')
        return 'x'
for number in range(30): log.warning('one', extra={'fields': {'by': Logs()}})
for number in range(30): log.warning('two')
logs._REPEAT_SECONDS = 0.01
time.sleep(0.1)
log.warning('the end')
"""
    told = [line.rpartition("ingest 1: ")[2] for line in logged(program)]
    assert {"one by=x held_back=10", "two held_back=10"} < set(told)
    assert told[-1] == "the end"


def test_addresses_and_counters_make_no_new_warning() -> None:
    """As those of asyncio, which puts both into the text itself."""
    program = """
for number in range(5000):
    log.error(f'Fatal error: call {number} failed.\\nprotocol: <Connection object at {hex(1 << 40 | number)}>')
log.error('Fatal error: another one')
"""
    told = logged(program)
    assert len(told) == 22
    assert "another one" in told[-2]
    assert "call 4999 failed" in told[-1]
    assert told[-1].endswith(" held_back=4980")


def test_warnings_beyond_those_that_are_remembered_are_held_back_together() -> None:
    words = "import itertools\nwords = map(''.join, itertools.product('abcdefgh', repeat=4))\n"
    told = logged(f"{words}for word in words: log.warning(word)")
    assert len(told) == 256 + 20 + 1
    assert told[-1].endswith(f"hhhh held_back={8**4 - 256 - 20}")


def test_lines_that_are_no_warnings_are_never_held_back() -> None:
    assert len(logged("for number in range(50): log.info('shipped %d', number)")) == 50


def test_lines_that_are_held_back_are_told_by_a_timer() -> None:
    """Nothing else needs to be logged for it; and no traceback keeps what it has seen alive until then."""
    program = """
for number in range(50):
    try: raise ValueError(number)
    except ValueError: log.exception('no answer %d', number)
logs._REPEAT_SECONDS = 0.05
handler, = logging.getLogger().handlers
assert [repeats.latest.exc_info for repeats in handler._repeats.values()] == [None]
logs.flush()
deadline = time.monotonic() + 30
while handler._repeats and time.monotonic() < deadline:
    logs.flush()
    time.sleep(0.01)
os._exit(0)  # no other way to tell
"""
    told = [line.rpartition("ingest 1: ")[2] for line in logged(program) if not line.startswith("  | ")]
    assert told == [*(f"no answer {number}" for number in range(20)), "no answer 49 held_back=30"]


@pytest.mark.parametrize("end", ["logs.flush(1)", "raise SystemExit", "from arcpipe.supervisor.child import fork"])
def test_lines_that_are_held_back_are_told_at_the_end(end: str) -> None:
    program = "for number in range(50): log.warning('no answer %d', number)\n"
    if "fork" in end:  # of a child, which has its own
        program = f"""
{end}
def work():
    for number in range(50): log.warning('no answer %d', number)
    return 0
os.waitpid(fork('x', lambda: None, work), 0)
logging.getLogger().handlers.clear()
"""
    else:
        program += end
    told = [line.rpartition("ingest 1: ")[2] for line in logged(program)]
    assert told[-1] == "no answer 49 held_back=30"
    assert len(told) == 21


def test_lines_of_data_that_nothing_else_tells_of_are_never_held_back() -> None:
    program = "for number in range(500): log.error('dead letter %d', number, extra=logs.EACH)"
    told = [line.rpartition("ingest 1: ")[2] for line in logged(program)]
    assert told == [f"dead letter {number}" for number in range(500)]


# journald


class Journal:
    """A stream as systemd gives it to a service as its stderr."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        status = os.fstat(self._theirs.fileno())
        self.stream = f"{status.st_dev}:{status.st_ino}"

    def run(self, program: str, stream: str) -> list[str]:
        code = f"import logging, os\nfrom arcpipe import logs\nlog = logging.getLogger('x')\n{program}"
        variables = environment() | {"JOURNAL_STREAM": stream}
        subprocess.run([sys.executable, "-c", code], env=variables, stderr=self._theirs.fileno(), timeout=WAIT_SECONDS)
        self._theirs.close()
        received = b""
        while data := self._ours.recv(65536):
            received += data
        self._ours.close()
        return received.decode().split("\n")[:-1]


ALL_LEVELS = """
logs.setup('DEBUG', FORMAT, 'ingest 1')
for level in (10, 20, 30, 40, 50): log.log(level, 'm%d', level)
try: raise ValueError('boo\\n<0>forged')
except ValueError: log.exception('no')
logs.say(['last', 'wor\\nds'])
"""


@pytest.mark.parametrize("format", ["text", "json"])
def test_each_line_in_the_journal_has_its_priority(format: str) -> None:
    journal = Journal()
    lines = journal.run(ALL_LEVELS.replace("FORMAT", repr(format)), journal.stream)
    priorities = [line[:3] for line in lines]
    traced = len(lines) - 5 - 2 if format == "text" else 1
    assert priorities == ["<7>", "<6>", "<4>", "<3>", "<2>", *["<3>"] * traced, "<2>", "<2>"]
    assert lines[-2:] == ["<2>last", "<2>wor\\nds"]
    if format == "text":
        assert lines[-3] == "<3>  | <0>forged"
    else:
        assert json.loads(lines[4][3:])["message"] == "m50"


@pytest.mark.parametrize("stream", ["", "8:1", "nonsense"])
def test_lines_that_go_elsewhere_have_no_priority(stream: str) -> None:
    """A shell that was started by a service hands its JOURNAL_STREAM on to what it redirects."""
    lines = Journal().run(ALL_LEVELS.replace("FORMAT", "'text'"), stream)
    assert not any(line.startswith("<") for line in lines)

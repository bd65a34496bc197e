"""The pages below docs/, held against the program: texts, settings, commands, metrics and examples."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
import typer
import yaml
from prometheus_client import Metric
from typer.main import get_command

from arcpipe.cli.main import app
from arcpipe.config.settings import Compaction, Settings
from arcpipe.config.settings_tables import Tables
from arcpipe.counters import REFUSAL_CODES, RETRY_KINDS, Committer, Counters, Uploader
from arcpipe.monitoring import issues, metrics, snapshot
from arcpipe.wal import WALReader, WALWriter
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.reader import SegmentScan
from tests.support import preloaded
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "arcpipe"
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
GOLDEN = ROOT / "tests" / "golden"
TROUBLESHOOTING = DOCS / "troubleshooting.md"


def blocks(page: Path, language: str) -> list[str]:
    """The contents of a page's fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def plain(text: str) -> str:
    """A page's text without marks and line ends, as a person searches it."""
    return " ".join(re.sub(r"[`\\]", "", text).split())


# Tables


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "systemd" / "README.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_each_row_is_in_a_table_with_a_head_and_as_many_cells(page: Path) -> None:
    """A blank line ends a table: what follows it shows as text with bars in it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        head, *rows = table.splitlines()
        assert rows, f"one row alone: {head}"
        assert re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", rows[0]), f"no head above: {rows[0]}"
        counts = {len(re.findall(r"(?<!\\)\|", row)) for row in (head, *rows)}  # in code, too, a bar ends a cell
        assert len(counts) == 1, f"rows of {counts} bars below: {head}"


# Texts


class Text(NamedTuple):
    """Something that the program may say: where, and its constant text with … for what is filled in."""

    place: str
    template: str

    @property
    def key(self) -> str:
        """Return the longest piece of a text that is always the same: a page has to hold it."""
        pieces = (piece.strip(" .,:;'()[]{}\n") for piece in re.split(r"…|%[-.\d]*[a-z]", self.template))
        return max(map(plain, pieces), key=len)


@functools.cache
def exceptions() -> frozenset[str]:
    """The names of everything that arcpipe raises on purpose: `ArcpipeError` and what stems from it."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    found = {"ArcpipeError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return frozenset(found)


LOGS = {"warning", "error", "critical", "exception"}
# What is told to somebody: calls of these make a text out of their first argument, …
# (besides the names of `exceptions`)
FIRST = {"BadLine", "BadParameter", "ValueError", "FileNotFoundError", "_unauthorized", "_refusal", "_malformed"}
# … of these out of another one, …
OTHERS = {"error": 2, "Problem": 1, "_failure": 2, "OSError": 1}
# … and the values of these tables, these variables, and what these functions return are texts.
TABLES = {"_NEXT_STEP"}
VARIABLES = {"reason", "next_step", "needed", "_NOT_S3"}
FUNCTIONS = {"file_header_error"}
# Of bugs of a caller, or of one part to another: nobody gets to read them.
INTERNAL = {"unusual names", "is not a plain relative path", "holds a NUL", "is where temporary files are"}


def template(node: ast.expr | None) -> str:
    """The constant text of an expression, with … for what is filled in; empty if it has none."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (template(left) or "…") + (template(right) or "…")
    return ""


def said_in(tree: ast.Module) -> Iterator[ast.expr]:
    """The expressions in a module that a person gets to read when something is wrong."""
    first_of = FIRST | exceptions()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "_logger"), attr=name), args=[first, *_]):
                if name in LOGS:
                    yield first
            case ast.Call(func=ast.Attribute(value=ast.Name(id="responses"), attr="error"), args=[_, _, reason, *_]):
                yield reason
            case ast.Call(func=ast.Attribute(value=ast.Name(id="problems"), attr="append"), args=[text]):
                yield text
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[first, *_]) if name in first_of:
                yield first
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=arguments) if (
                name in OTHERS and len(arguments) > OTHERS[name]
            ):
                yield arguments[OTHERS[name]]
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(values=values)) if name in TABLES:
                yield from values
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in VARIABLES:
                yield value
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                yield from (
                    value
                    for target, value in zip(targets, values, strict=True)
                    if isinstance(target, ast.Name) and target.id in VARIABLES
                )
            case ast.FunctionDef(name=name) if name in FUNCTIONS:
                yield from (found.value for found in ast.walk(node) if isinstance(found, ast.Return) and found.value)


def texts() -> Iterator[Text]:
    for path in sorted(SOURCE.rglob("*.py")):
        place = str(path.relative_to(ROOT))
        for node in said_in(ast.parse(path.read_text())):
            for part in (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,):
                found = Text(f"{place}:{node.lineno}", template(part))
                # Less than that is a place, a colon and what somebody else says.
                if len(found.key) > 3 and found.key not in INTERNAL:
                    yield found


@pytest.mark.slow
def test_troubleshooting_has_every_text_that_the_program_may_say() -> None:
    page = plain(TROUBLESHOOTING.read_text())
    missing = [f"{text.place}: {text.template}" for text in texts() if text.key not in page]
    assert not missing, "docs/troubleshooting.md does not explain:\n" + "\n".join(missing)


@pytest.mark.slow
def test_the_collection_of_texts_finds_all_kinds_of_them() -> None:
    found = "\n".join(text.template for text in texts())
    for piece in (
        "died: %s; restarting",  # a log line
        "wait to be uploaded; nothing was written",  # an answer
        "the installed version would not start",
        "is in use by another arcpipe",  # an exception
        "is not a setting",  # of the settings
        "set both or neither",
        "has no value",  # of line protocol
        "Create the bucket",  # a next step
    ):
        assert piece in found


def slugs() -> set[str]:
    """Codes of error answers."""
    found = set(REFUSAL_CODES) - {"other"}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="responses"), attr="error" | "refusal") | ast.Name(id="error"),
                    args=[_, ast.Constant(value=str(slug)), *_],
                ):
                    found.add(slug)
    return found


def health_codes() -> set[str]:
    return {rule.code for rule in issues.RULES}


def alert_codes() -> set[str]:
    rules = yaml.safe_load((ROOT / "ops" / "alerts.yml").read_text())
    return {rule["labels"]["code"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [slugs, health_codes, alert_codes, lambda: set(RETRY_KINDS)])
def test_troubleshooting_has_a_row_for_every_code(kind: Any) -> None:
    codes = kind()
    assert codes
    rows = set(re.findall(r"^\| `(\w+)`", TROUBLESHOOTING.read_text(), re.MULTILINE))
    assert not codes - rows


# Names


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "README.md", ROOT / "benchmarks" / "README.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith(("https://", "http://")):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor and file.suffix == ".md":
                assert anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    without_code = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_are_named_exist(page: Path) -> None:
    known = {value.key for value in Settings().effective()}
    sections = {key.rpartition(".")[0] for key in known}
    words = "|".join(sorted(map(re.escape, sections)))
    for name in re.findall(rf"(?<![\w./-])((?:{words})\.[a-z]\w*(?:\.\w+)?)", page.read_text()):
        assert name in known | sections | {"schema.json", "schema.json.copy", "tables.md"}, name  # which are files
    for name in re.findall(r"\bARCPIPE_[A-Z0-9_]+\b", page.read_text()):
        keys = {"ARCPIPE_" + key.upper().replace(".", "_") for key in known} | {"ARCPIPE_CONFIG", "ARCPIPE_TOKEN"}
        keys |= {"ARCPIPE_SERVICE_HOST", "ARCPIPE_PORT"}  # which Kubernetes makes
        assert name in keys, name


def metric_families() -> list[Metric]:
    settings = Settings(compaction=Compaction(enabled=True), tables=Tables(format="iceberg"))
    counters = Counters(1)
    counters.uploader[Uploader.LAST_UPLOAD_US] = 1  # or the metric of it would be left out
    counters.committer[Committer.LAST_COMMIT_US] = 1
    return list(metrics.families(snapshot.take(settings, counters, [])))


def test_metrics_that_are_named_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    WALDirectory(Settings().wal.dir).make()
    names = {sample.name for family in metric_families() for sample in family.samples}
    names |= {family.name for family in metric_families()}
    names |= {f"{family.name}_{end}" for family in metric_families() for end in ("total", "bucket", "sum", "count")}
    for page in PAGES:
        for name in re.findall(r"\barcpipe_[a-z_]+\b", page.read_text()):
            assert name in names, f"{page.name}: {name}"


# Commands


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of each command line in a page that begins with a program of ours."""
    for page in [*PAGES, ROOT / "README.md", ROOT / "systemd" / "README.md", ROOT / "benchmarks" / "README.md"]:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r" && | \| |; ", line):
                    words = shlex.split(part, comments=True)
                    while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", words[0]):
                        words = words[1:]
                    if words[:2] == ["sudo", "-u"]:
                        words = words[3:]
                    if words and (
                        words[0].rpartition("/")[2] == "arcpipe" or words[:3] == ["python", "-m", "benchmarks"]
                    ):
                        yield page.name, words


def test_commands_that_are_shown_exist_with_their_options() -> None:
    from benchmarks.__main__ import bench

    arcpipe = get_command(app)
    benchmarks = typer.Typer()
    benchmarks.command()(bench)
    shown = list(commands())
    assert len(shown) > 20
    for page, words in shown:
        if words[0] == "python":
            command, words = get_command(benchmarks), words[3:]
        else:
            command, words = arcpipe, words[1:]
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            assert words[0] in command.commands, f"{page}: {words}"
            command, words = command.commands[words[0]], words[1:]
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            if word.startswith("-"):
                assert word.partition("=")[0] in {*options, "--help"}, f"{page}: {word} of {command.name}"


def each_command(command: Any, name: str = "arcpipe") -> Iterator[tuple[str, Any]]:
    """Every command below one, with the words that lead to it."""
    if hasattr(command, "commands"):
        for child, found in command.commands.items():
            yield from each_command(found, f"{name} {child}")
    else:
        yield name, command


def test_the_help_of_every_command_has_an_example() -> None:
    for name, command in each_command(get_command(app)):
        found = re.findall(rf"^ +(?:[A-Z_]+=\S+ )?({re.escape(name)}\b.*)$", command.help or "", re.MULTILINE)
        assert found, f"{name} --help"


# Examples


def test_the_hex_dump_is_the_golden_file() -> None:
    content = b""
    [dump] = blocks(DOCS / "wal-format.md", "hex")
    for line in filter(None, dump.splitlines()):
        found = re.match(r" *(\d+)  ((?:[0-9a-f]{2} )*[0-9a-f]{2})  ", line)
        assert found is not None, line
        assert int(found[1]) == len(content), line
        content += bytes.fromhex(found[2])
    assert content == (GOLDEN / "plain.wal").read_bytes()


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.wal")))
def test_the_reader_of_the_format_page_reads_every_golden_file(name: str, tmp_path: Path) -> None:
    program = tmp_path / "reader.py"
    [source] = blocks(DOCS / "wal-format.md", "python")
    program.write_text(source)
    read = runpy.run_path(str(program), run_name="reader")["entries"]
    found = list(read((GOLDEN / name).read_bytes()))
    assert found == [(entry.offset, entry.timestamp, bytes(entry.payload)) for entry in SegmentScan(GOLDEN / name)]


def test_the_recovery_page_s_python_runs_on_a_log_that_a_crash_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *dead_letter, read, batchwise, recover, write = blocks(DOCS / "recovery.md", "python")
    monkeypatch.chdir(tmp_path)
    writer = WALWriter("data/wal", slot=1)
    writer.append([{"measurement": "cpu", "time": 1_700_000_000, "usage": 0.5}, {"measurement": "mem", "used": 1}])
    # A log that is copied must hold still: its writer is making the next segment.
    wait_until(lambda: len(list(Path("data/wal").glob("*.wal"))) == 2, "the next segment")
    printed = io.StringIO()
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(printed):
        for source in (read, batchwise, recover, write):
            exec(compile(source, "docs/recovery.md", "exec"), names)
    writer.close()
    assert re.search(
        r"^worker-1-\d{8}_\d{6}-000001\.wal: 1 batches, 2 records, 0 damaged places$", printed.getvalue(), re.M
    )
    assert "default mem" in printed.getvalue()
    assert "1 batches are in records.jsonl" in printed.getvalue()
    assert Path("records.jsonl").read_text().count("\n") == 2
    assert list(Path("copy-of-wal").glob("*.wal.recovered"))
    [made] = Path("handmade-wal").glob("*.wal.sealed")
    assert WALReader(made).read_all() == [
        [{"measurement": "cpu", "_database": "production", "time": 1_700_000_000, "host": "web-1", "usage": 0.5}]
    ]

    letter = [1, "lab", {}, {"m": "cpu", "columns": {"v": ["\udcff"]}}]
    Path("letter.msgpack").write_bytes(msgpack.packb(letter, unicode_errors="surrogateescape"))
    monkeypatch.setattr(sys, "argv", ["read.py", "letter.msgpack"])
    with contextlib.redirect_stdout(printed):
        exec(compile(dead_letter[0], "docs/recovery.md", "exec"), {})
    assert "database: lab" in printed.getvalue()
    assert "measurement: cpu columns: ['v']" in printed.getvalue()


@pytest.mark.slow
def test_the_recovery_page_s_commands_run_on_a_log_with_a_damaged_file(tmp_path: Path) -> None:
    looking, saving = blocks(DOCS / "recovery.md", "sh")[:2]
    assert "arcpipe wal ls" in looking
    assert "arcpipe wal salvage" in saving
    writer = WALWriter(str(tmp_path / "made"), slot=1)
    writer.append([{"measurement": "cpu", "usage": 0.5}])
    writer.close()
    [made] = (tmp_path / "made").glob("*.sealed")
    wal = WALDirectory(str(tmp_path / "data" / "wal"))
    wal.make()
    content = made.read_bytes()
    (tmp_path / "data/wal/worker-1-20261122_090000-000001.wal.sealed").write_bytes(content)
    (tmp_path / "data/wal/quarantine/worker-1-20261122_090000-000001.wal").write_bytes(b"XXXX" + content[4:])
    (tmp_path / "config.toml").write_text("")
    for line in (looking + saving).splitlines():
        program, *arguments = shlex.split(line)
        if program == "arcpipe":
            done = preloaded.run(*arguments, directory=tmp_path)
        else:
            done = subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        damage_is_found = "verify" in line and "quarantine" in done.stdout
        assert done.returncode == int(damage_is_found), line + done.stdout + done.stderr
    [replayed] = (tmp_path / "data/wal").glob("worker-0-*.sealed")
    assert [record["usage"] for batch in WALReader(replayed).read_all() for record in batch] == [0.5]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_code_and_data_are_well_formed(page: Path) -> None:
    for source in blocks(page, "python"):
        ast.parse(source)
    for source in blocks(page, "toml"):
        tomllib.loads(source)
    for source in blocks(page, "json"):
        json.loads(source)
    for source in blocks(page, "yaml"):
        yaml.safe_load(source)


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    for name in os.listdir(DOCS):
        assert name == "README.md" or f"]({name})" in index, name

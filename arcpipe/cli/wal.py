"""`arcpipe wal …`: inspecting WAL files, salvaging readable entries, and replaying the WAL of another node."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcpipe.cli.options import config_option
from arcpipe.cli.output import print_json, print_table
from arcpipe.errors import ArcpipeError, BadPayload

if TYPE_CHECKING:
    from arcpipe.wal.directory import SegmentFile, WALDirectory
    from arcpipe.wal.inspect import Summary

app = typer.Typer(help="Inspect, check, salvage and replay WAL files.", no_args_is_help=True, rich_markup_mode=None)

DirArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The WAL directory (wal.dir).")]
JSONOption = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


@app.command("ls")
def ls(directory: DirArgument = Path("data/wal"), as_json: JSONOption = False) -> None:
    """List segments: state, verdict, entries, records, bytes, age and problems.

    \b
    Example:
      arcpipe wal ls ./data/wal
    """
    from arcpipe.wal.directory import WALDirectory
    from arcpipe.wal.inspect import all_segments, summarize

    files = all_segments(WALDirectory(_directory(directory)))
    found = ((file, summarize(file.path)) for file in files)
    rows = (_segment_row(file, *looked) for file, looked in found if looked is not None)
    if as_json:
        print_json(rows)
        return
    columns = ("segment", "state", "verdict", "entries", "records", "bytes", "age_seconds", "damaged", "torn_bytes")
    if print_table((*columns, "problem"), rows, left=("segment", "state", "verdict", "problem")) == 0:
        print(f"There are no segments in {directory}.")


@app.command("cat")
def cat(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A WAL file in any state.")],
    as_json: JSONOption = False,
    database: Annotated[str | None, typer.Option(help="Only records of this database.")] = None,
    measurement: Annotated[str | None, typer.Option(help="Only records of this measurement.")] = None,
    since: Annotated[str | None, typer.Option(help="Only entries written at or after this ISO 8601 time.")] = None,
    until: Annotated[str | None, typer.Option(help="Only entries written before this ISO 8601 time.")] = None,
) -> None:
    """Print the records of a file: with --json an object per record, otherwise a line per entry and measurement.

    \b
    Example:
      arcpipe wal cat --json --measurement cpu data/wal/worker-1-20261122_090000-000001.wal.sealed
    """
    import msgspec

    from arcpipe.wal.inspect import entries_of
    from arcpipe.wal.reader import records_of, time_of

    low, high = _timestamp(since, "--since"), _timestamp(until, "--until")
    encode = msgspec.json.Encoder(enc_hook=str).encode
    for entry in entries_of(str(_file(file))):
        taken_us = time_of(entry)
        if (low is not None and taken_us < low) or (high is not None and taken_us >= high):
            continue
        try:
            records = records_of(entry)
        except BadPayload as error:
            print(f"arcpipe: {file}: entry at offset {entry.offset} holds no records: {error}", file=sys.stderr)
            continue
        counts: dict[tuple[str, str], int] = {}
        for record in records:
            key = (str(record.get("_database")), str(record.get("measurement")))
            if (database is None or key[0] == database) and (measurement is None or key[1] == measurement):
                counts[key] = counts.get(key, 0) + 1
                if as_json:
                    print(_json_line(encode, record))
        if not as_json:
            written = datetime.fromtimestamp(taken_us / 1e6, UTC).isoformat(sep=" ", timespec="microseconds")
            for (in_database, of_measurement), count in counts.items():
                print(f"{entry.offset:>12}  {written}  {in_database}  {of_measurement!r}  {count} records")


@app.command("verify")
def verify(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="WAL files, or directories of them.")],
    as_json: JSONOption = False,
) -> None:
    """Check every checksum, and print each problem and a verdict: clean end, torn tail, damaged or unreadable.

    Exit code 1 if a file is damaged or unreadable. A file that is being written has a torn tail.

    \b
    Example:
      arcpipe wal verify ./data/wal
    """
    from arcpipe.wal.directory import WALDirectory
    from arcpipe.wal.inspect import all_segments, summarize
    from arcpipe.wal.verdict import ScanVerdict

    files = [
        file
        for path in map(_existing, paths)
        for file in ([found.path for found in all_segments(WALDirectory(path))] if path.is_dir() else [str(path)])
    ]
    if not files and not as_json:
        print(f"There are no segments in {', '.join(map(str, paths))}.")
    bad = {ScanVerdict.DAMAGED: 0, ScanVerdict.UNREADABLE: 0}
    for listed in files:
        found = summarize(listed, count=False)
        if found is None:
            if not as_json:
                print(f"{listed}: gone since, as after its upload")
            continue
        name, summary = found
        verdict = summary.report.verdict
        if verdict in bad:
            bad[verdict] += 1
        problems = _problems(summary)
        if as_json:
            entries = summary.report.entries
            print_json([{"file": name, "verdict": verdict.value, "entries": entries, "problems": problems}])
            continue
        told = "no problems" if not problems else f"{len(problems)} problems"
        print(f"{name}: {verdict}, {summary.report.entries} entries, {told}")
        for problem in problems:
            print(f"  offset {problem['offset']}: {problem['reason']} ({problem['bytes']} bytes)")
    if any(bad.values()):
        counts = ", ".join(f"{count} {verdict}" for verdict, count in bad.items() if count)
        print(
            f"arcpipe: of {len(files)} files: {counts}; `arcpipe wal salvage FILE NEW` saves what is readable",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _problems(summary: Summary) -> list[dict[str, Any]]:
    report = summary.report
    problems = [
        {"offset": at, "bytes": length, "reason": reason, "damage": True} for at, length, reason in report.damage
    ]
    if report.torn_bytes:
        # Normal in a file that is being written, or that a crash left.
        problems.append(
            {
                "offset": report.end_offset,
                "bytes": report.torn_bytes,
                "reason": f"torn tail: {report.torn_reason}",
                "damage": report.verdict.value == "damaged",
            }
        )
    if summary.problem:
        rest = report.size - report.end_offset - report.torn_bytes
        problems.append({"offset": report.end_offset, "bytes": max(0, rest), "reason": summary.problem, "damage": True})
    return problems


@app.command("salvage")
def salvage(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A damaged WAL file.")],
    target: Annotated[Path, typer.Argument(metavar="NEW", help="The file to write; it must not exist.")],
) -> None:
    """Write the readable entries of a damaged or unreadable file to a new one, and print what was left out.

    \b
    Example:
      arcpipe wal salvage data/wal/quarantine/worker-1-20261122_090000-000001.wal saved.wal
    """
    from arcpipe.wal.inspect import salvage as write_readable

    report = write_readable(str(_file(source)), str(target))
    print(f"{target}: {report.entries} entries saved, {len(report.damage)} damaged places left out ({report.verdict})")
    for damage in report.damage:
        print(f"  offset {damage.offset}: {damage.reason} ({damage.length} bytes)")
    if report.torn_bytes:
        print(f"  offset {report.end_offset}: torn tail ({report.torn_bytes} bytes)")


@app.command("ack")
def ack(
    directory: DirArgument = Path("data/wal"),
    codes: Annotated[
        list[str] | None, typer.Argument(metavar="[CODE…]", help="Only these, such as quarantine; default: all.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Only show them, and acknowledge nothing.")] = False,
) -> None:
    """Show damage, losses, dead letters and files in quarantine, and acknowledge them, which ends their health issues.

    New ones are reported again. Works while the server runs; run it as the user of the server, or as root.

    \b
    Example:
      arcpipe wal ack data/wal
    """
    from arcpipe.logs.lines import escaped
    from arcpipe.wal import acknowledged, findings
    from arcpipe.wal.directory import WALDirectory

    if str(directory) in acknowledged.ALL_CODES and not directory.exists():
        raise ArcpipeError(
            f"{directory} is a code: name the WAL directory before it, as in `arcpipe wal ack data/wal {directory}`"
        )
    wal = WALDirectory(_directory(directory))
    wanted = codes or list(acknowledged.ALL_CODES)
    for code in wanted:
        if code not in acknowledged.ALL_CODES:
            raise ArcpipeError(f"{code!r} cannot be acknowledged; use {', '.join(acknowledged.ALL_CODES)}")
    try:
        with contextlib.suppress(OSError):  # reported below
            if not show and findings.set_aside_damaged(wal):
                print(f"What was found before is not known: findings.json was damaged, and is in {wal.quarantine} now.")
        seen = acknowledged.look(wal)
        for problem in filter(None, (seen.findings_problem, seen.quarantine_problem, seen.acknowledged_problem)):
            print(f"arcpipe: {problem}", file=sys.stderr)
        found = [code for code in wanted if acknowledged.told(seen, code)]
        for code in found:
            print("\n  ".join(map(escaped, acknowledged.told(seen, code))))
        if not show and (found or seen.acknowledged_problem):
            acknowledged.acknowledge(wal, seen, found, _who())
    except OSError as error:
        raise ArcpipeError(f"cannot acknowledge: {error}") from error
    if seen.findings_problem or seen.quarantine_problem:
        raise typer.Exit(1)
    if not found:
        others = [code for code in acknowledged.ALL_CODES if code not in wanted and acknowledged.told(seen, code)]
        of = f" of {', '.join(wanted)}" if codes else ""
        rest = f" Open are: {', '.join(others)}." if others else ""
        print(f"There is nothing to acknowledge{of} in {directory}.{rest}")
    elif not show:
        print("Acknowledged. What comes after this is told again.")


def _who() -> str:
    """Return the name of the user, for the history."""
    import getpass

    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


@app.command("replay")
def replay(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A directory of WAL files of Arc or arcpipe.")],
    config: Annotated[
        Path | None,
        config_option("Settings of the receiving node."),
    ] = None,
) -> None:
    """Replay a directory of WAL files: this node uploads them like its own, each exactly once.

    The node may be running. Replayed files are renamed to ….wal.recovered in their directory. If a replay is
    interrupted, start it again.

    \b
    Example:
      arcpipe wal replay /var/lib/arc/wal --config /etc/arcpipe/config.toml
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from arcpipe.cli.serving import load_settings
    from arcpipe.wal.directory import WALDirectory
    from arcpipe.wal.replay import finish_interrupted, replay_sources
    from arcpipe.wal.replay import replay as take_in

    folder = str(_directory(source))
    target = WALDirectory(load_settings(config).wal.dir)
    _refuse_own(folder, target)
    lock = WALDirectory(folder)
    try:
        lock.lock(0.0)
    except OSError as error:  # such as that of a dead machine's disk, which is mounted read-only
        raise ArcpipeError(
            f"{folder} cannot be written to ({error.strerror}), and a replay locks it and renames its files: "
            "copy it, and replay the copy"
        ) from None
    try:
        finished = finish_interrupted(target, folder)
        if finished:
            print(f"Finished {finished} files of an interrupted replay.")
        sources = replay_sources(folder)
        if not sources:
            print(f"There are no WAL files to replay in {folder}.")
            return
        total = sum(os.path.getsize(name) for name in sources)
        entries = damaged = 0
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            disable=not sys.stderr.isatty(),
        )
        with bar:
            task = bar.add_task("replaying", total=total)
            for done in take_in(target, sources, lambda _, count: bar.advance(task, count)):
                entries += done.entries
                damaged += done.damaged
                bar.console.print(f"{done.source}: {done.entries} entries, {done.damaged} damaged", highlight=False)
        print(
            f"Replayed {len(sources)} files, {entries} entries, {total / 1e6:.1f} MB; "
            f"{damaged} damaged places were left out."
        )
    finally:
        lock.unlock()


def _refuse_own(folder: str, target: WALDirectory) -> None:
    """Raise ArcpipeError if a directory to replay is the node's own, or one that the node keeps within it."""
    own, *kept = map(os.path.realpath, target.folders)
    given = os.path.realpath(folder)
    if given == own:
        raise ArcpipeError(f"{folder} is this node's own WAL: the next `arcpipe serve` replays it by itself")
    if given in kept:
        raise ArcpipeError(
            f"{folder} is a part of this node's own WAL, and what is there may be uploaded already: save single files "
            "by `arcpipe wal salvage FILE NEW`, look at them, and replay the directory of NEW"
        )


def _segment_row(file: SegmentFile, path: str, summary: Summary) -> dict[str, Any]:
    report = summary.report
    states = {".wal": "active", ".sealed": "sealed", ".recovered": "recovered"}
    return {
        "segment": str(file.name),
        "state": states[os.path.splitext(path)[1]],
        "verdict": report.verdict.value,
        "entries": report.entries,
        "records": summary.records,
        "bytes": report.end_offset,
        "file_bytes": report.size,
        "age_seconds": round(max(0.0, time.time() - file.modified), 1),
        "first_timestamp_us": summary.first_timestamp,
        "last_timestamp_us": report.last_timestamp,
        "damaged": len(report.damage),
        "torn_bytes": report.torn_bytes,
        "problem": summary.problem,
    }


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ArcpipeError(f"there is no {path}")
    return path


def _directory(path: Path) -> Path:
    if not _existing(path).is_dir():
        raise ArcpipeError(f"{path} is a file; name the directory that holds it")
    return path


def _file(path: Path) -> Path:
    if _existing(path).is_dir():
        raise ArcpipeError(f"{path} is a directory; name one of its files")
    return path


def _timestamp(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ArcpipeError(f"{option}: {text!r} is not an ISO 8601 time, such as 2026-11-22T09:00:00Z") from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1e6)


def _json_line(encode: Any, value: Any) -> str:
    line: bytes = encode(value)
    return line.decode("utf-8")

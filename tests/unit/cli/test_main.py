"""The command line, run as a user runs it: `python -m arcpipe …` in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arcpipe import __version__, libraries
from arcpipe.__main__ import main
from arcpipe.config.settings import Settings
from arcpipe.native import KERNEL
from arcpipe.wal import WALWriter
from tests.support.preloaded import run
from tests.support.terminal import drawn_in_terminal

ROOT = Path(__file__).parents[3]
SECRET = "wJalrXUtnFEMI/K7MDENG"


def environment(**variables: str) -> dict[str, str]:
    ours = ("ARCPIPE_", "WAL_", "WRITE_BUFFER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    kept.pop("WORKERS", None)
    return kept | {"PYTHONPATH": str(ROOT)} | variables


def arcpipe(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "arcpipe", *arguments],
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    assert done.returncode == 0, done.stderr
    entries: dict[str, dict[str, object]] = json.loads(done.stdout)
    return entries


def test_version_prints_the_version_of_the_package(tmp_path: Path) -> None:
    done = arcpipe("--version", cwd=tmp_path)
    kernel = ", with its native kernel" if KERNEL else ""
    assert (done.returncode, done.stdout, done.stderr) == (0, f"arcpipe {__version__}{kernel}\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["serve"], ["status"], ["config", "show"], ["config", "check"]])
def test_the_help_of_every_command_has_an_example(tmp_path: Path, command: list[str]) -> None:
    done = arcpipe(*command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    example = re.split("Examples?:", done.stdout)[1].splitlines()[1]
    assert "arcpipe " + " ".join(command) in example


def test_help_needs_no_library_that_is_slow_to_import(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "arcpipe", "--help"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert imported.isdisjoint({"numpy", "pyarrow", "aiobotocore", "botocore", "uvloop", "rich", "msgspec"})


def test_an_unknown_command_is_wrong_usage(tmp_path: Path) -> None:
    assert arcpipe("sevre", cwd=tmp_path).returncode == 2


# --- config show


def test_show_lists_every_key_with_value_and_source_in_columns(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[storage.s3]\nregion = "eu"\n')
    done = arcpipe("config", "show", cwd=tmp_path, WAL_SYNC_MODE="fsync")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()}
    assert list(rows) == [key for key, _, _ in Settings().effective()]
    assert rows["wal.sync_mode"] == ['"fsync"', "environment WAL_SYNC_MODE"]
    assert rows["storage.s3.region"] == ['"eu"', "config.toml"]
    assert rows["flush.max_age_seconds"] == ["5", "default"]
    assert len({line.index(rows[line.split()[0]][1]) for line in done.stdout.splitlines()}) == 1


def test_show_as_json_has_typed_values(tmp_path: Path) -> None:
    entries = shown(arcpipe("config", "show", "--json", cwd=tmp_path, WORKERS="3"))
    assert entries["server.workers"] == {"value": 3, "source": "environment WORKERS"}
    assert entries["wal.enabled"] == {"value": True, "source": "default"}
    assert entries["wal.max_age_seconds"] == {"value": 3600.0, "source": "default"}
    assert len(entries) == len(list(Settings().effective()))


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_show_masks_credentials(tmp_path: Path, options: list[str]) -> None:
    credentials = {
        "ARCPIPE_STORAGE_S3_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "ARCPIPE_STORAGE_S3_SECRET_ACCESS_KEY": SECRET,
    }
    done = arcpipe("config", "show", *options, cwd=tmp_path, **credentials)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("********") == 2
    assert SECRET not in done.stdout
    assert "AKIAEXAMPLE" not in done.stdout


@pytest.mark.slow
def test_show_draws_a_table_in_a_terminal(tmp_path: Path) -> None:
    text = drawn_in_terminal("config", "show", cwd=tmp_path, env=environment(WAL_DIR="[bold]wal"), columns=120)
    assert "─" in text
    assert '"[bold]wal"' in text
    assert "environment WAL_DIR" in text


# --- which file


@pytest.mark.slow
def test_where_the_settings_file_is_looked_for(tmp_path: Path) -> None:
    """The file is that of the option, else of the variable, else ./config.toml, else there is none."""
    for name, workers in (("option.toml", 1), ("variable.toml", 2), ("config.toml", 3)):
        (tmp_path / name).write_text(f"[server]\nworkers = {workers}\n")

    def workers_shown(*options: str, **variables: str) -> dict[str, object]:
        done = arcpipe("config", "show", "--json", *options, cwd=tmp_path, **variables)
        return shown(done)["server.workers"]

    variable = {"ARCPIPE_CONFIG": "variable.toml"}
    assert workers_shown("--config", "option.toml", **variable) == {"value": 1, "source": "option.toml"}
    assert workers_shown(**variable) == {"value": 2, "source": "variable.toml"}
    assert workers_shown() == {"value": 3, "source": "config.toml"}
    (tmp_path / "config.toml").unlink()
    assert workers_shown() == {"value": 0, "source": "default"}


# --- errors


@pytest.mark.slow
@pytest.mark.parametrize("command", [["serve"], ["config", "show"], ["config", "check"]])
def test_settings_that_cannot_be_used_exit_with_2_and_a_line_per_problem(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "bad.toml").write_text('[server]\nport = "x"\n[wal]\nsync_mod = "fsync"\n')
    done = arcpipe(*command, "--config", "bad.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "arcpipe: the settings cannot be used:",
        "  bad.toml: wal.sync_mod is not a setting; did you mean wal.sync_mode?",
        '  bad.toml: server.port = "x": allowed: a whole number from 0 to 65535',
    ]
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["config", "show"], ["serve", "--check"]])
def test_variables_that_are_no_settings_are_warned_of_and_stop_nothing(tmp_path: Path, command: list[str]) -> None:
    made = {"ARCPIPE_SERVICE_HOST": "10.96.0.11", "ARCPIPE_PORT": "tcp://10.96.0.11:8000", "ARCPIPE_WAL_DIRR": "x"}
    done = arcpipe(*command, cwd=tmp_path, ARCPIPE_SERVER_PORT="0", **made)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "arcpipe: warning: environment ARCPIPE_PORT, ARCPIPE_SERVICE_HOST: not used. Kubernetes makes them for a "
        "Service of such a name; set enableServiceLinks: false in the pod to avoid them",
        "arcpipe: warning: environment ARCPIPE_WAL_DIRR: not used, as it is not a setting; did you mean "
        "ARCPIPE_WAL_DIR?",
    ]


@pytest.mark.slow
def test_a_token_is_where_the_server_of_these_settings_reads_it(tmp_path: Path) -> None:
    """From whatever directory the command is run: /etc/arcpipe/config.toml names /etc/arcpipe/tokens.toml."""
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "config.toml").write_text((ROOT / "config.toml").read_text().replace("enabled = false", "enabled = true", 1))
    made = arcpipe("token", "create", "--scope", "write", "--config", "etc/config.toml", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in etc.iterdir()) == ["config.toml", "tokens.toml"]
    assert [path.name for path in tmp_path.iterdir()] == ["etc"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = arcpipe("serve", "--check", "--config", str(etc / "config.toml"), cwd=elsewhere, ARCPIPE_SERVER_PORT="0")
    assert done.returncode == 0, done.stderr
    # One where it counted from before is told of.
    (etc / "tokens.toml").rename(elsewhere / "tokens.toml")
    done = arcpipe("serve", "--check", "--config", str(etc / "config.toml"), cwd=elsewhere, ARCPIPE_SERVER_PORT="0")
    assert done.returncode == 1
    assert f"there is no tokens file {etc}/tokens.toml" in done.stderr
    assert f"Is it {elsewhere}/tokens.toml? Move it" in done.stderr


@pytest.mark.parametrize("command", [["serve"], ["config", "check"]])
def test_a_missing_file_exits_with_2(tmp_path: Path, command: list[str]) -> None:
    done = arcpipe(*command, "--config", "nowhere.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["  nowhere.toml: cannot be read: No such file or directory"]


@pytest.mark.slow
def test_check_accepts_the_documented_defaults(tmp_path: Path) -> None:
    # Not at port 8000, which somebody may have here.
    done = arcpipe("config", "check", "--config", str(ROOT / "config.toml"), cwd=tmp_path, ARCPIPE_SERVER_PORT="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("The settings are good. arcpipe ")
    assert os.listdir(tmp_path) == []


# A start that fails, in the format of the log

BAD = '[log]\nformat = "json"\n[wal]\nsync_mod = 1\n[server]\nport = "x"\n'


@pytest.mark.slow
def test_a_start_that_fails_says_so_in_the_format_of_the_log(tmp_path: Path) -> None:
    """Who collects JSON has asked for nothing else; a person who checks the settings by hand has not."""
    (tmp_path / "bad.toml").write_text(BAD)
    done = arcpipe("serve", "--config", "bad.toml", cwd=tmp_path)
    assert done.returncode == 2
    entries = list(map(json.loads, done.stderr.splitlines()))
    assert [(entry["level"], entry["process"], entry["message"]) for entry in entries] == [
        (
            "CRITICAL",
            "supervisor",
            "the settings cannot be used: bad.toml: wal.sync_mod is not a setting; did you mean wal.sync_mode?",
        ),
        (
            "CRITICAL",
            "supervisor",
            'the settings cannot be used: bad.toml: server.port = "x": allowed: a whole number from 0 to 65535',
        ),
    ]
    for command in (["serve", "--check"], ["config", "check"]):
        assert arcpipe(*command, "--config", "bad.toml", cwd=tmp_path).stderr.startswith("arcpipe: the settings")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "code", "message"),
    [
        # The file cannot be read, and the format is known from elsewhere.
        ({"ARCPIPE_CONFIG": "nowhere.toml"}, 2, "the settings cannot be used: nowhere.toml: cannot be read"),
        ({"ARCPIPE_AUTH_ENABLED": "1"}, 1, "there is no tokens file"),
        ({"ARCPIPE_SERVER_HOST": "192.0.2.1", "ARCPIPE_AUTH_ALLOW_ANONYMOUS": "1"}, 1, "cannot listen on 192.0.2.1"),
        ({"ARCPIPE_WAL_DIR": "/proc/nowhere"}, 1, "cannot start: "),
    ],
)
def test_every_failure_of_a_start_is_json_for_a_log_that_is(
    tmp_path: Path, variables: dict[str, str], code: int, message: str
) -> None:
    done = arcpipe("serve", cwd=tmp_path, ARCPIPE_LOG_FORMAT="json", **variables)
    assert done.returncode == code
    last = [json.loads(line) for line in done.stderr.splitlines()][-1]
    assert (last["level"], last["process"]) == ("CRITICAL", "supervisor")
    assert last["message"].startswith(message)


# What the system refuses, and names that are no text


@pytest.mark.parametrize("command", [["wal", "ls"], ["load"]])
def test_a_path_that_the_system_refuses_is_told_in_one_line(tmp_path: Path, command: list[str]) -> None:
    path = "x" * 300
    done = run(*command, path, directory=tmp_path, environ=environment(), seconds=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"arcpipe: {path}: File name too long\n"


@pytest.mark.slow
def test_an_output_that_is_full_or_gone_is_no_traceback(tmp_path: Path) -> None:
    def told(stdout: int, *command: str) -> tuple[int, str]:
        line = [sys.executable, "-m", "arcpipe", *command]
        env = environment(ARCPIPE_SERVER_PORT="0", ARCPIPE_WAL_DIR=str(tmp_path), ARCPIPE_WAL_MIN_FREE_MB="1")
        done = subprocess.run(line, cwd=tmp_path, env=env, stdout=stdout, stderr=subprocess.PIPE, check=False)
        os.close(stdout)
        return done.returncode, done.stderr.decode()

    assert told(os.open("/dev/full", os.O_WRONLY), "serve", "--check") == (1, "arcpipe: No space left on device\n")
    reading, writing = os.pipe()
    os.close(reading)
    assert told(writing, "serve", "--check") == (1, "")


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_without_a_standard_file(tmp_path: Path, closed: str) -> None:
    """Shells and process managers close them. What is for stderr never goes to stdout."""
    (tmp_path / "a.lp").write_text("cpu n=1i 1\nbad\n")
    for command, code in (("load --dry-run a.lp", 3), ("wal ls .", 0), ("config show", 0), ("status --url x:", 2)):
        line = f"exec {sys.executable} -m arcpipe {command} {closed}"
        done = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert "unable to parse" not in done.stdout


@pytest.mark.slow
def test_a_narrow_terminal_cuts_no_name(tmp_path: Path) -> None:
    writer = WALWriter(str(tmp_path), slot=1)
    writer.append([{"measurement": "cpu", "usage": 1}])
    writer.close()
    [sealed] = tmp_path.glob("*.sealed")
    segment = sealed.name.partition(".")[0]
    for command, name in ((["config", "show"], "compaction.after_seconds"), (["wal", "ls", "."], segment)):
        drawn = drawn_in_terminal(*command, cwd=tmp_path, env=environment(), columns=50)
        text = re.sub(r"\x1b\[[0-9;]*m", "", drawn)
        first = "".join(line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│"))
        assert name in first


@pytest.mark.slow
def test_a_name_that_is_no_text_is_printed_as_an_escape(tmp_path: Path) -> None:
    """As it is in the locales of a terminal; in C and POSIX such bytes are printed as they are."""
    name = os.fsdecode(b"\xff.lp")
    (tmp_path / name).write_text("cpu n=1i 1\n")
    plain = arcpipe("load", "--dry-run", name, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert plain.stdout.startswith("\\udcff.lp: 1 records are good")
    as_json = arcpipe("load", "--dry-run", "--json", name, cwd=tmp_path, PYTHONIOENCODING="utf-8:strict")
    assert (as_json.returncode, json.loads(as_json.stdout)["file"]) == (0, name)


def test_ctrl_c_while_libraries_are_loaded_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def strike() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)  # until the interpreter takes it

    monkeypatch.setattr(libraries, "leave_out_unused", strike)
    monkeypatch.setattr(sys, "argv", ["arcpipe", "lake", "ls"])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_a_directory_without_segments_is_told_as_such(tmp_path: Path, command: str) -> None:
    done = run("wal", command, ".", directory=tmp_path, environ=environment(), seconds=60)
    assert (done.returncode, done.stdout) == (0, "There are no segments in ..\n")

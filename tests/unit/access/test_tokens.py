"""The tokens file, and `arcpipe token` as a new user types it."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import re
import stat
import string
import subprocess
import threading
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import typer
from hypothesis import given as given_by
from hypothesis import strategies as st

from arcpipe.access import tokens
from arcpipe.access.tokens import MAX_TOKENS, Token, TokensError
from arcpipe.cli.token import _checked_databases, parse_expiry
from arcpipe.disk import Disk
from arcpipe.names import is_database_name
from tests.support.program import COMMAND, environment
from tests.support.terminal import drawn_in_terminal
from tests.support.tokens import new_token

NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)


def arcpipe(*arguments: str, cwd: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def create(cwd: Path, *options: str) -> str:
    done = arcpipe("token", "create", *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def a_token(**changes: object) -> Token:
    return new_token(**{"created": NOW, **changes})[1]


# Tokens


def test_a_token_has_256_random_bits_and_names_its_id() -> None:
    made = [tokens.generate() for _ in range(200)]
    assert len({text for _, text in made}) == len(made)
    for token_id, text in made:
        match = re.fullmatch(r"arc_([2-9a-z]{8})_([A-Za-z0-9]{43})", text)
        assert match is not None
        assert match[1] == token_id == tokens.id_of(text)
    assert 62**43 > 2**256
    drawn = {letter for _, text in made for letter in text[-43:]}
    assert drawn == set(string.ascii_letters + string.digits)


@pytest.mark.parametrize("text", ["", "arc_", "arc_23456789_", "arc_23456789_" + "a" * 42, "arc_23456789_" + "a" * 44])
def test_what_is_no_whole_token_has_no_id(text: str) -> None:
    assert tokens.id_of(text) is None


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "active"),
        ({"expires": NOW + timedelta(seconds=1)}, "active"),
        ({"expires": NOW}, "expired"),
        ({"revoked": NOW}, "revoked"),
        ({"revoked": NOW, "expires": NOW}, "revoked"),
    ],
)
def test_a_token_is_active_until_it_expires_or_is_revoked(changes: dict[str, object], state: str) -> None:
    assert a_token(**changes).state(NOW) == state


# The file


def test_every_field_of_a_token_survives_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / "tokens.toml")
    full = a_token(
        name="Größe \"\\ ' [[token]] # 1",
        scopes=("write", "read", "admin"),
        databases=("a-b", "C_3"),
        expires=NOW + timedelta(days=1),
        revoked=NOW,
    )
    plain = a_token()
    tokens.add(path, full)
    tokens.add(path, plain)
    assert tokens.read(path) == (full, plain)


def test_the_file_holds_hashes_and_is_its_owners_alone(tmp_path: Path) -> None:
    text = create(tmp_path, "--scope", "write")
    path = tmp_path / "tokens.toml"
    content = path.read_text()
    assert text not in content
    assert text[-43:] not in content
    assert hashlib.sha256(text.encode()).hexdigest() in content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["tokens.toml"]


def test_a_change_keeps_owner_and_mode_and_follows_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "tokens.toml"
    tokens.add(str(real), a_token())
    link.symlink_to(real)
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 12, 34)
    before = real.stat()
    tokens.add(str(link), a_token())
    after = real.stat()
    assert link.is_symlink()
    assert len(tokens.read(str(real))) == 2
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_ino != before.st_ino  # replaced, not written over: a reader sees one or the other


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
@pytest.mark.parametrize(("owner", "group", "mode"), [(12, 34, 0o600), (0, 34, 0o640), (0, 0, 0o600)])
def test_a_file_that_root_makes_is_for_whom_its_directory_is_for(
    tmp_path: Path, owner: int, group: int, mode: int
) -> None:
    os.chown(tmp_path, owner, group)
    tokens.add(str(tmp_path / "tokens.toml"), a_token())
    made = (tmp_path / "tokens.toml").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (owner, group, mode)


def test_nothing_is_left_of_a_change_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    tokens.add(str(path), a_token())
    before = path.read_bytes()
    with pytest.raises(TokensError, match="no token 'abcdefgh'"):
        tokens.revoke(str(path), "abcdefgh", NOW)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["tokens.toml"]


def test_changes_at_the_same_time_lose_none(tmp_path: Path) -> None:
    path = str(tmp_path / "tokens.toml")
    made = [a_token() for _ in range(40)]

    def add(share: list[Token]) -> None:
        for token in share:
            tokens.add(path, token)

    threads = [threading.Thread(target=add, args=(made[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {token.id for token in tokens.read(path)} == {token.id for token in made}


@pytest.mark.slow
def test_commands_at_the_same_time_lose_none(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [*COMMAND, "token", "create", "--scope", "write"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(4)
    ]
    made = [process.communicate(timeout=60)[0].strip() for process in running]
    assert {token.id for token in tokens.read(str(tmp_path / "tokens.toml"))} == {tokens.id_of(text) for text in made}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[[token]\n", "not valid TOML"),
        (b"\xff\n", "not UTF-8"),
        (b"token = " + b"1" * 5000, "not valid TOML"),
        (b'[[token]]\nid = "23456789"\n', "missing required field"),
        (b"[tokens]\n", "unknown field"),
        (b"token = 5\n", "Expected `array`"),
        (b'[[token]]\nid = "1"\nsha256 = "x"\nscopes = []\ncreated = 2026-01-01T00:00:00Z\n', "not a tokens file"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(TokensError, match=f"tokens.toml: .*{re.escape(reason)}"):
        tokens.read(str(path))


@pytest.mark.parametrize(
    "change",
    [
        ("sha256", "A" * 64),
        ("sha256", "a" * 63),
        ("scopes", ["root"]),
        ("scopes", []),
        ("databases", ["../x"]),
        ("databases", [""]),
        ("id", "23456789 "),
        ("name", "a\nb"),
        ("created", "yesterday"),
        ("expires", "2027-01-01"),
        ("owner", "x"),
    ],
)
def test_a_field_that_makes_no_sense_refuses_the_whole_file(tmp_path: Path, change: tuple[str, object]) -> None:
    """Half of a tokens file is refused: the rest could be a revocation."""
    path = tmp_path / "tokens.toml"
    fields: dict[str, object] = {"id": "23456789", "sha256": "a" * 64, "scopes": ["write"]}
    created = "" if change[0] == "created" else "created = 2026-01-01T00:00:00Z\n"
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in {**fields, change[0]: change[1]}.items())
    path.write_text(f"[[token]]\n{created}{lines}")
    path.chmod(0o600)
    with pytest.raises(TokensError, match="not a tokens file"):
        tokens.read(str(path))


def test_two_tokens_of_one_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    tokens.add(str(path), a_token(id="23456789"))
    tokens.add(str(path), a_token(id="23456789"))
    with pytest.raises(TokensError, match="the same id 23456789"):
        tokens.read(str(path))


def test_an_empty_file_is_not_one_without_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.touch(0o600)
    for use in (lambda: tokens.read(str(path)), lambda: tokens.add(str(path), a_token())):
        with pytest.raises(TokensError, match=r"tokens\.toml: empty; restore it"):
            use()
    assert path.read_bytes() == b""


def test_a_file_of_brackets_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text("token = " + "[" * 100_000)
    path.chmod(0o600)
    with pytest.raises(TokensError, match=r"tokens\.toml: not valid TOML"):
        tokens.read(str(path))


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", ["stat", "open"])
def test_a_file_that_cannot_be_read_is_never_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    """A new file in its place would end every token, and forget what was revoked."""
    path = tmp_path / "tokens.toml"
    tokens.add(str(path), a_token())
    before = path.read_bytes()
    whole = os.stat if call == "stat" else open

    def fails(name: Any, *arguments: Any, **named: Any) -> Any:
        if name == str(path):
            raise OSError(number, os.strerror(number))
        return whole(name, *arguments, **named)

    monkeypatch.setattr(os if call == "stat" else builtins, call, fails)
    with pytest.raises(TokensError, match=f"cannot be (read|written): {os.strerror(number)}"):
        tokens.add(str(path), a_token())
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["tokens.toml"]


def test_a_file_that_was_cut_off_gives_no_token_more_than_it_had(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    made = [
        a_token(revoked=NOW),
        a_token(databases=("one",), expires=NOW + timedelta(days=1), name="hall 3"),
        a_token(),
    ]
    for token in made:
        tokens.add(str(path), token)
    whole = path.read_bytes()
    refused = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            found = tokens.read(str(path))
        except TokensError:
            refused += 1
        else:
            assert list(found) == made[: len(found)], length
    assert refused > len(whole) // 2


@pytest.mark.parametrize("step", ["write", "fsync", "rename", "sync_directory"])
def test_a_change_that_the_disk_refuses_says_so_and_leaves_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "tokens.toml"
    first, second = a_token(), a_token()
    tokens.add(str(path), first)

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Disk, step, fails)
    with pytest.raises(TokensError, match=r"tokens\.toml: cannot be written: No space left"):
        tokens.add(str(path), second)
    monkeypatch.undo()
    assert tokens.read(str(path)) in ((first,), (first, second))
    assert os.listdir(tmp_path) == ["tokens.toml"]


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(TokensError, match=r"no tokens file .*arcpipe token create"):
        tokens.read(str(tmp_path / "tokens.toml"))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "tokens.toml"
    tokens.add(str(path), a_token())
    path.chmod(mode)
    with pytest.raises(TokensError, match="may write to it: run `chmod 600"):
        tokens.read(str(path))


@pytest.mark.slow
def test_a_file_has_a_limit_of_tokens_and_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    table = '[[token]]\nid = "{}"\nsha256 = "{}"\nscopes = ["write"]\ncreated = 2026-01-01T00:00:00Z\n'
    letters = "23456789abcdefgh"
    ids = ["2222" + "".join(letters[number >> shift & 15] for shift in (12, 8, 4, 0)) for number in range(MAX_TOKENS)]
    path.write_text("".join(table.format(one, "a" * 64) for one in ids))
    path.chmod(0o600)
    assert len(tokens.read(str(path))) == MAX_TOKENS
    with pytest.raises(TokensError, match=f"holds {MAX_TOKENS} tokens already"):
        tokens.add(str(path), a_token())
    with path.open("a") as file:
        file.write(table.format("zzzzzzzz", "a" * 64))
    with pytest.raises(TokensError, match="not a tokens file"):
        tokens.read(str(path))
    path.write_bytes(b"#" * (16 << 20) + b"\n")
    with pytest.raises(TokensError, match="larger than 16 MB"):
        tokens.read(str(path))


# When a token ends


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("90d", NOW + timedelta(days=90)),
        ("12h", NOW + timedelta(hours=12)),
        ("30m", NOW + timedelta(minutes=30)),
        ("4w", NOW + timedelta(weeks=4)),
        ("2027-01-01", datetime(2027, 1, 1, tzinfo=UTC)),
        ("2027-01-01T12:30:00Z", datetime(2027, 1, 1, 12, 30, tzinfo=UTC)),
        ("2027-01-01T12:30:00+02:00", datetime(2027, 1, 1, 10, 30, tzinfo=UTC)),
        ("never", None),
        ("Never", None),
    ],
)
def test_an_expiry_is_a_span_a_date_or_never(text: str, when: datetime | None) -> None:
    assert parse_expiry(text, NOW) == when


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "0d", "1.5h", "90 d", "2026-13-01", "tomorrow", "999999w"])
def test_what_is_no_expiry_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"90d, 12h|is in the past"):
        parse_expiry(text, NOW)


def test_an_expiry_that_is_over_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="'2026-11-22' is in the past"):
        parse_expiry("2026-11-22", NOW)


# Their databases


@given_by(st.lists(st.text(min_size=1, max_size=30).filter(is_database_name), max_size=5))
def test_a_token_is_for_any_databases(names: list[str]) -> None:
    with TemporaryDirectory() as directory:
        path = f"{directory}/tokens.toml"
        tokens.add(path, a_token(databases=tuple(names)))
        assert tokens.read(path)[0].databases == tuple(names)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x" * 129, "a\u0085b"])
def test_a_file_with_what_is_no_database_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokens.toml"
    tokens.add(str(path), a_token(databases=("production",)))
    path.write_text(path.read_text().replace('"production"', json.dumps(name)))
    with pytest.raises(TokensError, match=r"is for .*, which is no database name; use 1 to 128 bytes"):
        tokens.read(str(path))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["a,b", " c "], ["a", "b", "c"]),
        (["Home Assistant, production"], ["Home Assistant", "production"]),
        ([r"a\,b,c"], ["a,b", "c"]),
        (["a", "a"], ["a"]),
    ],
)
def test_the_command_takes_names_in_a_list(given: list[str], names: list[str]) -> None:
    assert _checked_databases(given) == names


# The commands


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_a_token_that_cannot_be_shown_is_told_to_be_revoked(tmp_path: Path, options: tuple[str, ...]) -> None:
    """It is in force, and nobody has it: the output went to a full disk."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "token", "create", "--scope", "write", *options],
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    [token] = tokens.read(str(tmp_path / "tokens.toml"))
    assert done.returncode == 1
    assert f"could not be shown: end it with `arcpipe token revoke {token.id}`" in done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.slow
def test_a_new_user_makes_lists_and_revokes_a_token(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    done = arcpipe(
        *("token", "create", "--scope", "write", "--database", "production", "--expires", "90d", "--name", "hall 3"),
        cwd=tmp_path,
    )
    assert done.returncode == 0
    text = done.stdout.strip()
    token_id = tokens.id_of(text)
    assert token_id is not None
    assert done.stdout == f"{text}\n"  # nothing else, so that a script can take it
    assert text not in done.stderr
    assert "the only time that it is shown" in done.stderr
    assert "auth.enabled = true" in done.stderr

    assert "by read or admin it sees" not in done.stderr
    reading = arcpipe("token", "create", "--scope", "read", "--database", "production", cwd=tmp_path / "other")
    assert "by read or admin it sees names and figures of all databases" in reading.stderr

    listed = arcpipe("token", "list", cwd=tmp_path)
    head, row = listed.stdout.splitlines()
    assert head.split() == [
        *("id", "state", "scopes", "databases", "limits", "expires", "created", "revoked", "certificate", "name"),
    ]
    assert row.split()[:5] == [token_id, "active", "write", "production", "default"]
    assert row.endswith("hall 3")
    assert text not in listed.stdout

    revoked = arcpipe("token", "revoke", token_id, cwd=tmp_path)
    assert (revoked.returncode, revoked.stdout) == (0, f"Token {token_id} is revoked.\n")
    assert arcpipe("token", "list", cwd=tmp_path).stdout.splitlines()[1].split()[1] == "revoked"
    again = arcpipe("token", "revoke", token_id, cwd=tmp_path)
    assert again.returncode == 0
    assert "already" in again.stdout


@pytest.mark.slow
def test_a_token_for_a_certificate_keeps_no_secret_and_shows_none(tmp_path: Path) -> None:
    done = arcpipe("token", "create", "--scope", "write", "--certificate", "CN:hall-3", cwd=tmp_path)
    token_id = done.stdout.strip()
    assert re.fullmatch("[2-9a-z]{8}", token_id)
    assert f"token {token_id} is kept in {tmp_path}/tokens.toml for certificates with the name CN:hall-3" in done.stderr
    (kept,) = tokens.read(str(tmp_path / "tokens.toml"))
    assert (kept.id, kept.certificate, kept.sha256) == (token_id, "CN:hall-3", "")
    (listed,) = map(json.loads, arcpipe("token", "list", "--json", cwd=tmp_path).stdout.splitlines())
    assert listed["certificate"] == "CN:hall-3"
    for name in ("hall-3", "CN:", "OU:hall", "CN:a\nb", "CN:" + "x" * 300):
        refused = arcpipe("token", "create", "--scope", "write", "--certificate", name, cwd=tmp_path)
        assert refused.returncode == 2
        assert "is no name in a certificate" in " ".join(refused.stderr.replace("│", " ").split())


@pytest.mark.parametrize("changes", [{"sha256": ""}, {"certificate": "CN:x"}])
def test_a_token_with_both_or_none_of_hash_and_certificate_is_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    path = tmp_path / "tokens.toml"
    tokens.add(str(path), a_token(name="whole"))
    text = path.read_text()
    path.write_text(
        re.sub('sha256 = ".*"\n', "", text)
        if "sha256" in changes
        else text.replace("sha256", 'certificate = "CN:x"\nsha256')
    )
    path.chmod(0o600)
    with pytest.raises(TokensError, match="needs one of sha256 and certificate, and not both"):
        tokens.read(str(path))


@pytest.mark.slow
def test_json_is_for_programs(tmp_path: Path) -> None:
    done = arcpipe("token", "create", "--scope", "read,admin", "--expires", "2099-01-01", "--json", cwd=tmp_path)
    made = json.loads(done.stdout)
    assert tokens.id_of(made.pop("token")) == made["id"]
    assert (made["scopes"], made["databases"], made["expires"]) == (["read", "admin"], [], "2099-01-01T00:00:00Z")
    listed = arcpipe("token", "list", "--json", cwd=tmp_path)
    assert [json.loads(line) for line in listed.stdout.splitlines()] == [made]


@pytest.mark.slow
def test_a_whole_token_can_be_revoked_and_is_not_echoed(tmp_path: Path) -> None:
    text = create(tmp_path, "--scope", "write")
    cut = arcpipe("token", "revoke", text[:-1], cwd=tmp_path)
    assert cut.returncode == 1
    assert text[-20:-1] not in cut.stderr
    done = arcpipe("token", "revoke", text, cwd=tmp_path)
    assert done.returncode == 0
    assert text[-20:] not in done.stdout + done.stderr
    (token,) = tokens.read(str(tmp_path / "tokens.toml"))
    assert token.revoked is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["create"], 2, "Missing option '--scope'"),
        (["create", "--scope", "wirte"], 2, "'wirte' is not a scope; use write, read, admin"),
        (["create", "--scope", "write", "--expires", "soon"], 2, "'soon' is not a time to expire at; use 90d"),
        (["create", "--scope", "write", "--database", "a/b"], 2, "'a/b' is no database name"),
        (["create", "--scope", "write", "--name", "a\nb"], 2, "printable"),
        (["list"], 1, "there is no tokens file tokens.toml: `arcpipe token create` makes it"),
        (["revoke", "23456789"], 1, "there is no tokens file"),
        (["create", "--scope", "write", "--config", "nowhere.toml"], 2, "nowhere.toml: cannot be read"),
    ],
)
def test_a_mistake_is_answered_with_what_would_be_right(
    tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    done = arcpipe("token", *options, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["create", "list", "revoke"])
def test_the_help_has_an_example(tmp_path: Path, command: str) -> None:
    done = arcpipe("token", command, "--help", cwd=tmp_path)
    assert re.search(rf"Examples?:\n +arcpipe token {command}", done.stdout)


def test_the_settings_say_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "c.toml").write_text('[auth]\nenabled = true\ntokens_file = "etc/t.toml"\n')
    done = arcpipe("token", "create", "--scope", "write", "--config", "c.toml", cwd=tmp_path)
    assert done.returncode == 0
    assert str(tmp_path / "etc" / "t.toml") in done.stderr
    assert "SIGHUP" in done.stderr
    assert tomllib.loads((tmp_path / "etc" / "t.toml").read_text())["token"][0]["scopes"] == ["write"]


@pytest.mark.slow
def test_a_list_is_drawn_as_a_table_in_a_terminal(tmp_path: Path) -> None:
    create(tmp_path, "--scope", "write", "--name", "[bold]x")
    drawn = drawn_in_terminal("token", "list", cwd=tmp_path, env=environment(), columns=160)
    assert "─" in drawn
    assert "[bold]x" in drawn

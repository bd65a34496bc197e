"""Tokens and the file that keeps them: what `arcpipe token` writes and a server with `auth.enabled` reads.

A token is `arc_<id>_<secret>`: the id says which one it is and may be seen by anybody, the secret is 43 letters and
digits drawn by the operating system, 256 bits. The file holds only its SHA-256. A slow hash such as scrypt makes
passwords dearer to guess; 256 random bits cannot be guessed at any price, and a slow hash would only make it cheap to
keep the server busy.

This room knows files and hashes. It must not know HTTP or processes, nor of the settings more than the types of their
values.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import string
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from arcpipe import durable
from arcpipe.config.settings import ClientLimits, PerSecond
from arcpipe.disk import Disk
from arcpipe.errors import ArcpipeError

Scope = Literal["write", "read", "admin"]

PREFIX: Final = "arc_"
_ID_ALPHABET: Final = "23456789abcdefghjkmnpqrstuvwxyz"  # nothing that is mistaken for something else on paper
_ID_LENGTH: Final = 8
_SECRET_ALPHABET: Final = string.ascii_letters + string.digits
_SECRET_LENGTH: Final = 43  # the least with 62 ** n >= 2 ** 256
TOKEN_LENGTH: Final = len(PREFIX) + _ID_LENGTH + 1 + _SECRET_LENGTH
_TOKEN: Final = re.compile(f"{PREFIX}([{_ID_ALPHABET}]{{{_ID_LENGTH}}})_[A-Za-z0-9]{{{_SECRET_LENGTH}}}")

CERTIFICATE_PATTERN: Final = r"^((CN|DNS|URI|email):[^\x00-\x1f\x7f]+)?\Z"
"""A name in a client certificate, as a token has it."""
MAX_CERTIFICATE_LENGTH: Final = 256  # characters: URIs of workloads are the longest

# What a file may hold: enough for a token for each of very many senders, little enough to be read while serving.
MAX_TOKENS: Final = 10_000
_MAX_FILE_BYTES: Final = 16 << 20

_HEAD: Final = """\
# arcpipe's tokens, or rather their hashes: `arcpipe token create`, `list` and `revoke` read and write this file.
# A running server takes a change when it gets SIGHUP.
"""


class TokensError(ArcpipeError):
    """The tokens file cannot be used, or has no such token; the text says which file and why."""


class Token(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One token as the file keeps it. Times are UTC; no `databases` means all of them, no `expires` means never.

    It is known by the hash of its text, or it stands for the owner of a client certificate, by a name in that: "CN:…"
    is the common name of its subject, "DNS:…", "URI:…" and "email:…" are alternative names.
    """

    id: Annotated[str, Meta(pattern=rf"^[{_ID_ALPHABET}]{{{_ID_LENGTH}}}\Z")]
    sha256: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    certificate: Annotated[str, Meta(max_length=MAX_CERTIFICATE_LENGTH, pattern=CERTIFICATE_PATTERN)] = ""
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    created: Annotated[datetime, Meta(tz=True)]
    name: Annotated[str, Meta(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*\Z")] = ""
    databases: tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")], ...] = ()
    expires: Annotated[datetime, Meta(tz=True)] | None = None
    revoked: Annotated[datetime, Meta(tz=True)] | None = None
    # The most that its holders may ask of a node, all together: None is as [limits.per_token] says, 0 is no limit.
    requests_per_second: PerSecond | None = None
    mb_per_second: PerSecond | None = None
    connections: Annotated[int, Meta(ge=0, le=1_000_000_000)] | None = None

    def limits(self, default: ClientLimits) -> ClientLimits:
        """The limits that hold for it, where the settings have these for all tokens."""
        names = ("requests_per_second", "mb_per_second", "connections")
        own = {name: given for name in names if (given := getattr(self, name)) is not None}
        return msgspec.structs.replace(default, **own) if own else default

    def __post_init__(self) -> None:
        if bool(self.sha256) == bool(self.certificate):
            raise ValueError(f"token {self.id} needs one of sha256 and certificate, and not both")

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """Whether it opens anything at a time."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class _Document(Struct, frozen=True, forbid_unknown_fields=True):
    token: Annotated[tuple[Token, ...], Meta(max_length=MAX_TOKENS)] = ()


def generate() -> tuple[str, str]:
    """A new token: its id, and the whole of it, which is nowhere else."""
    token_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    secret = "".join(secrets.choice(_SECRET_ALPHABET) for _ in range(_SECRET_LENGTH))
    return token_id, f"{PREFIX}{token_id}_{secret}"


def digest(token: bytes) -> bytes:
    """What the file keeps of a token (there in hexadecimal)."""
    return hashlib.sha256(token).digest()


def id_of(text: str) -> str | None:
    """The id of a whole token; None for anything that is none."""
    match = _TOKEN.fullmatch(text)
    return match[1] if match else None


def read(path: str) -> tuple[Token, ...]:
    """The tokens of a file.

    Raises:
        TokensError: it is missing, cannot be read, is none, or others than its owner may write to it.
    """
    found = _read_if_there(path)
    if found is None:
        aside = os.path.basename(path)
        # Until a relative path counted from the settings file, it counted from there.
        hint = f". Is it {os.path.abspath(aside)}? Move it" if os.path.exists(aside) else ""
        raise TokensError(
            f"there is no tokens file {path}: `arcpipe token create` makes it; auth.tokens_file says where{hint}"
        )
    return found


def _read_if_there(path: str) -> tuple[Token, ...] | None:
    """The tokens of a file, None if there is none."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TokensError(f"{path}: cannot be read: {error.strerror or error}") from None
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # Who can write to it can let himself in.
        raise TokensError(f"{path}: its group or others may write to it; `chmod 600 {path}` ends that")
    if len(content) > _MAX_FILE_BYTES:
        raise TokensError(f"{path}: larger than {_MAX_FILE_BYTES >> 20} MB")
    if not content:
        # arcpipe never writes such a file, but a crash of whatever copied it leaves one.
        raise TokensError(f"{path}: empty; restore it, or remove it and make new tokens")
    try:
        found = msgspec.convert(tomllib.loads(content.decode()), _Document).token
    except UnicodeDecodeError:
        raise TokensError(f"{path}: not UTF-8 text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise TokensError(f"{path}: not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise TokensError(f"{path}: not a tokens file: {error}") from None
    ids = [token.id for token in found]
    if len(set(ids)) < len(ids):
        raise TokensError(f"{path}: two tokens have the same id {next(one for one in ids if ids.count(one) > 1)}")
    return found


def add(path: str, token: Token) -> None:
    """Adds a token to the file, which is made if there is none.

    Raises:
        TokensError: the file cannot be read or written, or is full.
    """
    with _changing(path) as found:
        if len(found) >= MAX_TOKENS:
            raise TokensError(f"{path}: holds {len(found)} tokens already; remove the entries of old ones by hand")
        found.append(token)


def revoke(path: str, token_id: str, now: datetime) -> Token:
    """Marks a token as revoked; it as it was before.

    Raises:
        TokensError: there is no such token, or the file cannot be read or written.
    """
    with _changing(path, must_exist=True) as found:
        for index, token in enumerate(found):
            if token.id == token_id:
                if token.revoked is None:
                    found[index] = msgspec.structs.replace(token, revoked=now)
                return token
        raise TokensError(f"{path} has no token {token_id!r}; `arcpipe token list` shows all")


@contextlib.contextmanager
def _changing(path: str, must_exist: bool = False) -> Iterator[list[Token]]:
    """The tokens of a file as a list that may be changed, while nobody else changes it; writes it if it was."""
    path = os.path.realpath(path)  # a link stays one
    directory = os.path.dirname(path)
    try:
        # The directory is what is locked, because the file itself is replaced.
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TokensError(f"{directory}: cannot be opened: {error.strerror or error}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # One that cannot be read is not taken for a missing one: a new file in its place would end all tokens.
        before = list((read(path) if must_exist else _read_if_there(path)) or ())
        after = before.copy()
        yield after
        if after != before:
            try:
                _replace(path, _to_toml(after).encode(), lock)
            except OSError as error:
                raise TokensError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        os.close(lock)


def _replace(path: str, content: bytes, directory: int) -> None:
    """Writes a file so that a reader or a power cut finds it whole, old or new. Owner and mode stay as they were."""
    try:
        model = os.stat(path)
        mode = stat.S_IMODE(model.st_mode)
    except FileNotFoundError:
        # Made by root for a server that runs as somebody else: it is his if the directory is, or his group's to read.
        model = os.fstat(directory)
        mode = 0o640 if os.geteuid() == model.st_uid == 0 and model.st_gid != 0 else 0o600

    def prepare(fd: int) -> None:
        if os.geteuid() == 0:
            os.fchown(fd, model.st_uid, model.st_gid)
        os.fchmod(fd, mode)

    try:
        durable.replace(Disk(), path, content, prepare=prepare)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(f"{path}.tmp")
        raise


def _to_toml(found: list[Token]) -> str:
    """The whole file. The last field of a token is one that must be there: a file that was cut off anywhere is refused
    or lacks whole tokens. It never lacks a token's end alone, its revocation or its databases."""

    def value(given: str | float | datetime | tuple[str, ...]) -> str:
        if isinstance(given, datetime):
            return given.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        # JSON's strings and arrays of strings are TOML's, control characters apart, and there are none.
        return json.dumps(given, ensure_ascii=False)

    def fields(token: Token) -> dict[str, Any]:
        found = msgspec.structs.asdict(token)
        return {**{key: given for key, given in found.items() if key != "created"}, "created": found["created"]}

    absent: tuple[object, ...] = (None, "", ())
    tables = [
        "".join(f"{key} = {value(given)}\n" for key, given in fields(token).items() if given not in absent)
        for token in found
    ]
    return _HEAD + "".join(f"\n[[token]]\n{table}" for table in tables)

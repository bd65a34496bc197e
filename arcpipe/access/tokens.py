"""Tokens and their file, which `arcpipe token` writes and a server with `auth.enabled` reads.

A token is `arc_<id>_<secret>`. The id identifies it and is public. The secret is 43 random letters and digits from the
operating system, 256 bits. The file holds only the token's SHA-256. A slow hash such as scrypt protects passwords that
can be guessed; 256 random bits cannot be guessed, and a slow hash would only make it cheap to keep the server busy.

This module knows files and hashes. It must not know HTTP or processes, and of the settings only the types of values.
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
from arcpipe.names import DATABASE_RULE, is_database_name

Scope = Literal["write", "read", "admin"]

PREFIX: Final = "arc_"
_ID_ALPHABET: Final = "23456789abcdefghjkmnpqrstuvwxyz"  # without characters that look alike, such as 0 and o
_ID_LENGTH: Final = 8
_SECRET_ALPHABET: Final = string.ascii_letters + string.digits
_SECRET_LENGTH: Final = 43  # the smallest n with 62 ** n >= 2 ** 256
_TOKEN: Final = re.compile(f"{PREFIX}([{_ID_ALPHABET}]{{{_ID_LENGTH}}})_[A-Za-z0-9]{{{_SECRET_LENGTH}}}")

CERTIFICATE_PATTERN: Final = r"^((CN|DNS|URI|email):[^\x00-\x1f\x7f]+)?\Z"
"""A name in a client certificate, as it stands in a token."""
MAX_CERTIFICATE_LENGTH: Final = 256  # characters: URIs of workloads are the longest

# Limits of the file: enough for very many senders, and small enough to be read while serving.
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
    databases: tuple[str, ...] = ()
    expires: Annotated[datetime, Meta(tz=True)] | None = None
    revoked: Annotated[datetime, Meta(tz=True)] | None = None
    # Limits for all holders together on a node: None is the limit in [limits.per_token], 0 is no limit.
    requests_per_second: PerSecond | None = None
    mb_per_second: PerSecond | None = None
    connections: Annotated[int, Meta(ge=0, le=1_000_000_000)] | None = None

    def limits(self, default: ClientLimits) -> ClientLimits:
        """Return the limits of this token: its own, or else the default of the settings."""
        names = ("requests_per_second", "mb_per_second", "connections")
        own = {name: given for name in names if (given := getattr(self, name)) is not None}
        return msgspec.structs.replace(default, **own) if own else default

    def __post_init__(self) -> None:
        if bool(self.sha256) == bool(self.certificate):
            raise ValueError(f"token {self.id} needs one of sha256 and certificate, and not both")
        for name in self.databases:
            if not is_database_name(name):
                raise ValueError(f"token {self.id} is for {name!r}, which is no database name; {DATABASE_RULE}")

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """Return the state of the token at a time."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class _Document(Struct, frozen=True, forbid_unknown_fields=True):
    token: Annotated[tuple[Token, ...], Meta(max_length=MAX_TOKENS)] = ()


def generate() -> tuple[str, str]:
    """Make a token and return its id and its text. The text is stored nowhere."""
    token_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    secret = "".join(secrets.choice(_SECRET_ALPHABET) for _ in range(_SECRET_LENGTH))
    return token_id, f"{PREFIX}{token_id}_{secret}"


def digest(token: bytes) -> bytes:
    """Return the hash of a token, which the file has in hexadecimal."""
    return hashlib.sha256(token).digest()


def id_of(text: str) -> str | None:
    """Return the id of a token's text; None if the text is not a token."""
    match = _TOKEN.fullmatch(text)
    return match[1] if match else None


def read(path: str) -> tuple[Token, ...]:
    """Read a tokens file.

    Raises:
        TokensError: it is missing, unreadable or not a tokens file, or others than its owner may write to it.
    """
    found = _read_if_there(path)
    if found is None:
        aside = os.path.basename(path)
        # In older versions a relative path counted from the working directory, not from the settings file.
        hint = f". Is it {os.path.abspath(aside)}? Move it" if os.path.exists(aside) else ""
        raise TokensError(
            f"there is no tokens file {path}: `arcpipe token create` makes it; auth.tokens_file says where{hint}"
        )
    return found


def _read_if_there(path: str) -> tuple[Token, ...] | None:
    """Read a tokens file; return None if there is no file."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TokensError(f"{path}: cannot be read: {error.strerror or error}") from None
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # Whoever can write to it can make a token.
        raise TokensError(f"{path}: its group or others may write to it: run `chmod 600 {path}`")
    if len(content) > _MAX_FILE_BYTES:
        raise TokensError(f"{path}: larger than {_MAX_FILE_BYTES >> 20} MB")
    if not content:
        # arcpipe never writes such a file, but a program that crashes while copying it does.
        raise TokensError(f"{path}: empty; restore it, or remove it and make new tokens")
    try:
        found = msgspec.convert(tomllib.loads(content.decode()), _Document).token
    except UnicodeDecodeError:
        raise TokensError(f"{path}: not UTF-8 text") from None
    except msgspec.ValidationError as error:
        raise TokensError(f"{path}: not a tokens file: {error}") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is no TOMLDecodeError
        raise TokensError(f"{path}: not valid TOML: {error}") from None
    ids = [token.id for token in found]
    if len(set(ids)) < len(ids):
        raise TokensError(f"{path}: two tokens have the same id {next(one for one in ids if ids.count(one) > 1)}")
    return found


def add(path: str, token: Token) -> None:
    """Add a token to the file, and make the file if there is none.

    Raises:
        TokensError: the file cannot be read or written, or is full.
    """
    with _changing(path) as found:
        if len(found) >= MAX_TOKENS:
            raise TokensError(f"{path}: holds {len(found)} tokens already; remove the entries of old ones by hand")
        found.append(token)


def revoke(path: str, token_id: str, now: datetime) -> Token:
    """Mark a token as revoked.

    Returns:
        The token as it was before.

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
    """Lock the file, give its tokens as a list that the caller may change, and write the file if it did."""
    path = os.path.realpath(path)  # so that a link stays a link
    directory = os.path.dirname(path)
    try:
        # The lock is on the directory, because the file itself is replaced.
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TokensError(f"{directory}: cannot be opened: {error.strerror or error}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A file that cannot be read is not treated as missing: a new file in its place would end all tokens.
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
    """Write a file durably and atomically, with the owner and mode of the former one."""
    try:
        model = os.stat(path)
        mode = stat.S_IMODE(model.st_mode)
    except FileNotFoundError:
        # Root makes it for a server of another user: it gets the directory's owner, or at least its group may read it.
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
    """Return the content of the file.

    The last field of each token is a required one. So a file that is cut off is refused, or lacks whole tokens. It
    never lacks only a token's expiry, revocation or databases.
    """

    def value(given: str | float | datetime | tuple[str, ...]) -> str:
        if isinstance(given, datetime):
            return given.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        # JSON's strings and arrays are valid TOML except for control characters, and there are none.
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

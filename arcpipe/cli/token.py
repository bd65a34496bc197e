"""`arcpipe token …`: makes, lists and revokes the tokens in `auth.tokens_file`."""

from __future__ import annotations

import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from arcpipe.cli.options import config_option
from arcpipe.cli.output import print_json, print_table
from arcpipe.errors import ArcpipeError
from arcpipe.names import DATABASE_RULE, is_database_name

if TYPE_CHECKING:
    from arcpipe.access.tokens import Token
    from arcpipe.config.settings import Settings

app = typer.Typer(help="Make, list and revoke tokens.", no_args_is_help=True, rich_markup_mode=None)

ConfigOption = Annotated[Path | None, config_option("Settings that name the tokens file.")]

_SCOPES: Final = ("write", "read", "admin")
_UNITS: Final = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_DEFAULT_LIMIT: Final = "0: no limit; default: limits.per_token"
_COMMA: Final = re.compile(r"(?<!\\),")  # between two names; with a backslash before it, it is a part of one
_EXPIRIES: Final = "90d, 12h, 30m, 4w, 2027-01-01, 2027-01-01T12:00:00Z or never"


_ScopeOption = Annotated[
    list[str],
    typer.Option(
        "--scope",
        metavar="SCOPE",
        help="What it allows: write (records), read (metrics, status), admin (read, and change). May be repeated.",
    ),
]
_DatabaseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--database",
        metavar="NAME",
        help=r"The only database that it may write; may be repeated. \, is a comma in a name. Default: all.",
    ),
]
_CertificateOption = Annotated[
    str,
    typer.Option(
        metavar="KIND:NAME",
        help="For the owner of a client certificate with this name: CN:NAME, DNS:NAME, URI:NAME or email:NAME.",
    ),
]


@app.command("create")
def create(
    scopes: _ScopeOption,
    databases: _DatabaseOption = None,
    expires: Annotated[str, typer.Option(metavar="WHEN", help=f"Expiry: {_EXPIRIES}.")] = "never",
    name: Annotated[str, typer.Option(metavar="TEXT", help="Its user or purpose; shown by list.")] = "",
    certificate: _CertificateOption = "",
    requests_per_second: Annotated[
        float | None, typer.Option(min=0, max=1e9, help=f"Requests per second on the whole node; {_DEFAULT_LIMIT}.")
    ] = None,
    mb_per_second: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="MB of bodies per second; in the same way.")
    ] = None,
    connections: Annotated[
        int | None, typer.Option(min=0, max=1_000_000_000, help="Open connections; in the same way.")
    ] = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the token and its fields as one JSON object.")] = False,
) -> None:
    """Make a token and print it. It is shown only now: the file keeps only its hash.

    With --certificate there is no secret: the client's certificate is the token.

    \b
    Examples:
      arcpipe token create --scope write --database production --expires 90d --name "telegraf, hall 3"
      arcpipe token create --scope read --expires never
      arcpipe token create --scope write --certificate CN:hall-3 --database production
      arcpipe token create --scope write --requests-per-second 100 --mb-per-second 2.5 --connections 10
    """
    import msgspec

    from arcpipe.access import tokens

    now = datetime.now(UTC).replace(microsecond=0)
    settings = _settings(config)
    token_id, text = tokens.generate()
    given = {
        "id": token_id,
        **_key(text, certificate),
        "scopes": _checked_scopes(scopes),
        "databases": _checked_databases(databases or []),
        "created": now,
        "expires": parse_expiry(expires, now),
        "name": _checked_name(name),
        "requests_per_second": requests_per_second,
        "mb_per_second": mb_per_second,
        "connections": connections,
    }
    token = msgspec.convert(given, tokens.Token)
    tokens.add(settings.auth.tokens_file, token)
    _show_new(token, text, settings, as_json, now)


@app.command("list")
def list_tokens(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List the tokens: what each may do, until when, and whether it is active, expired or revoked.

    \b
    Example:
      arcpipe token list
    """
    from arcpipe.access import tokens

    path = _settings(config).auth.tokens_file
    now = datetime.now(UTC)
    rows = [_row(token, now) for token in tokens.read(path)]
    if as_json:
        print_json(rows)
        return
    shown = [
        {
            **row,
            "scopes": ",".join(row["scopes"]),
            "databases": ",".join(name.replace(",", "\\,") for name in row["databases"]) or "all",
            "expires": row["expires"] or "never",
            "limits": _shown_limits(row),
            "certificate": row["certificate"] or "",
        }
        for row in rows
    ]
    columns = (
        *("id", "state", "scopes", "databases", "limits", "expires", "created", "revoked", "certificate", "name"),
    )
    if print_table(columns, shown, left=columns) == 0:
        print(f"There are no tokens in {path}.")


@app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The id, as list shows it, or the whole token.")],
    config: ConfigOption = None,
) -> None:
    """Revoke a token for good. A running server applies this when it gets SIGHUP.

    \b
    Example:
      arcpipe token revoke 7h2kq9xw
    """
    from arcpipe.access import tokens

    settings = _settings(config)
    wanted = tokens.id_of(token_id) or token_id
    if wanted.startswith(tokens.PREFIX):
        # It may be most of a token, which must not be printed.
        raise ArcpipeError("that is neither the id of a token nor a whole one; `arcpipe token list` shows the ids")
    before = tokens.revoke(settings.auth.tokens_file, wanted, datetime.now(UTC).replace(microsecond=0))
    if before.revoked is not None:
        print(f"Token {wanted} was revoked at {_time(before.revoked)} already.")
        return
    print(f"Token {wanted} is revoked.")
    _note_reload(settings)


def parse_expiry(text: str, now: datetime) -> datetime | None:
    """Parse the expiry of a token; None means never.

    Raises:
        BadParameter: the text is invalid, or a time in the past.
    """
    if text.lower() == "never":
        return None
    try:
        if span := re.fullmatch(r"([0-9]{1,6})([mhdw])", text):
            when = now + int(span[1]) * _UNITS[span[2]]
        else:
            when = datetime.fromisoformat(text)
            when = (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a time to expire at; use {_EXPIRIES}", param_hint="--expires"
        ) from None
    if when <= now:
        raise typer.BadParameter(f"{text!r} is in the past", param_hint="--expires")
    return when.replace(microsecond=0)


def _settings(config: Path | None) -> Settings:
    from arcpipe.cli.serving import load_settings

    return load_settings(config)


def _checked_scopes(given: list[str]) -> list[str]:
    scopes = [scope.strip() for one in given for scope in one.split(",")]
    for scope in scopes:
        if scope not in _SCOPES:
            raise typer.BadParameter(f"{scope!r} is not a scope; use {', '.join(_SCOPES)}", param_hint="--scope")
    return [scope for scope in _SCOPES if scope in scopes]


def _checked_databases(given: list[str]) -> list[str]:
    names = [name.replace("\\,", ",").strip() for one in given for name in _COMMA.split(one)]
    for name in names:
        if not is_database_name(name):
            raise typer.BadParameter(f"{name!r} is no database name; {DATABASE_RULE}", param_hint="--database")
    return list(dict.fromkeys(names))


def _key(text: str, certificate: str) -> dict[str, str]:
    """Return the field by which the file identifies a token: its hash, or a name in certificates."""
    from arcpipe.access import tokens

    if not certificate:
        return {"sha256": tokens.digest(text.encode("ascii")).hex()}
    if not re.fullmatch(tokens.CERTIFICATE_PATTERN, certificate) or len(certificate) > tokens.MAX_CERTIFICATE_LENGTH:
        raise typer.BadParameter(
            f"{certificate!r} is no name in a certificate; use CN:NAME, DNS:NAME, URI:NAME or email:NAME",
            param_hint="--certificate",
        )
    return {"certificate": certificate}


def _checked_name(name: str) -> str:
    if len(name) > 100 or not name.isprintable():
        raise typer.BadParameter("use up to 100 printable characters", param_hint="--name")
    return name


def _show_new(token: Token, text: str, settings: Settings, as_json: bool, now: datetime) -> None:
    """Print a token that has just been made, or the id of one that a certificate stands for."""
    try:
        if as_json:
            print_json([{**({} if token.certificate else {"token": text}), **_row(token, now)}])
        else:
            print(token.id if token.certificate else text, flush=True)
    except OSError:  # such as a full disk, or a reader that left
        _note(f"token {token.id} is made and could not be shown: end it with `arcpipe token revoke {token.id}`")
        raise
    kept = "as a hash: this was the only time that it is shown"
    if token.certificate:
        kept = f"for certificates with the name {token.certificate}"
    _note(f"token {token.id} is kept in {os.path.abspath(settings.auth.tokens_file)} {kept}")
    if token.databases and token.scopes != ("write",):
        _note("its databases bound what it may write; by read or admin it sees names and figures of all databases")
    _note_reload(settings)


def _row(token: Token, now: datetime) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "state": token.state(now),
        "scopes": list(token.scopes),
        "databases": list(token.databases),
        "created": _time(token.created),
        "expires": _time(token.expires),
        "revoked": _time(token.revoked),
        "certificate": token.certificate or None,
        "requests_per_second": token.requests_per_second,
        "mb_per_second": token.mb_per_second,
        "connections": token.connections,
    }


def _shown_limits(row: dict[str, Any]) -> str:
    """Format the limits that a token has of its own."""
    units = {"requests_per_second": "requests/s", "mb_per_second": "MB/s", "connections": "connections"}
    return ",".join(f"{row[name]:g} {unit}" for name, unit in units.items() if row[name] is not None) or "default"


def _time(when: datetime | None) -> str | None:
    return None if when is None else when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _note(text: str) -> None:
    """Print a note to stderr, so that stdout has only the token, for scripts."""
    print(f"arcpipe: {text}", file=sys.stderr)


def _note_reload(settings: Settings) -> None:
    if settings.auth.enabled:
        _note("a running server applies this when it gets SIGHUP (systemctl reload arcpipe, or kill -HUP)")
    else:
        _note("a server with these settings asks for no tokens: set auth.enabled = true")

"""Endpoints that clients of InfluxDB 2 ask before their first write: whether their bucket and organization exist.

A bucket is a database, and the first write makes it; organizations mean nothing here. So whatever a client asks for by
its name or id is there. A list of everything has the databases that the sender's token names, as only the store knows
the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import quote

from arcpipe.errors import BadPayload, NotAllowed
from arcpipe.ingest.endpoints.targets import check_database
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.exchange import Exchange

_BUCKETS: Final = "/api/v2/buckets"
_ORGANIZATIONS: Final = "/api/v2/orgs"
_ORGANIZATION: Final = "arcpipe"  # the name of the organization of clients that name none
_ID: Final = re.compile(r"[0-9a-f]{16}\Z")
_DIGITS: Final = 9  # of a number of buckets: nobody has a billion
_ID_BYTES: Final = 8  # ids of InfluxDB have 64 bits, in hexadecimal


def find_buckets(exchange: Exchange) -> None:
    """Answer as if the bucket that is asked for existed."""
    _answer(exchange, _buckets)


def find_organizations(exchange: Exchange) -> None:
    """Answer as if the organization that is asked for existed."""
    _answer(exchange, _organizations)


def _answer(exchange: Exchange, find: Callable[[dict[str, str], frozenset[str] | None], dict[str, Any]]) -> None:
    try:
        found = find(exchange.parameters(), exchange.databases)
    except BadPayload as error:
        exchange.answer(responses.error(400, "bad_request", str(error)))
    except NotAllowed as error:
        exchange.answer(responses.error(403, "forbidden", str(error)))
    else:
        exchange.answer(responses.json(200, found, responses.INFLUXDB_LINES))


def _buckets(parameters: dict[str, str], allowed: frozenset[str] | None) -> dict[str, Any]:
    names = _databases(parameters, allowed)
    organization = parameters.get("orgID") or _id_of(parameters.get("org") or _ORGANIZATION)
    return {
        "links": {"self": _BUCKETS},
        "buckets": [_bucket(name, organization) for name in _page(names, parameters)],
    }


def _organizations(parameters: dict[str, str], allowed: frozenset[str] | None) -> dict[str, Any]:
    found = parameters.get("orgID")
    name = parameters.get("org") or found or _ORGANIZATION
    return {
        "links": {"self": _ORGANIZATIONS},
        "orgs": [_organization(each, found or _id_of(each)) for each in _page([name], parameters)],
    }


def _databases(parameters: dict[str, str], allowed: frozenset[str] | None) -> list[str]:
    """Return the databases to list.

    Raises:
        BadPayload: no database may have the name that is asked for.
        NotAllowed: the sender's token is not for it.
    """
    for parameter in ("name", "id"):
        if given := parameters.get(parameter):
            # A write takes an id for a name, and of `db/rp` it takes `db`.
            name = check_database(given.partition("/")[0], f"query parameter '{parameter}'")
            if allowed is not None and name not in allowed:
                raise NotAllowed(f"this token is not for the database '{name}'")
            return [name]
    return sorted(allowed or ())


def _page(names: list[str], parameters: dict[str, str]) -> list[str]:
    """Return the part of a list that is asked for: clients go on until a page is not full.

    Raises:
        BadPayload: `offset` or `limit` is no number.
    """
    if after := parameters.get("after"):
        ids = [_id_of(name) for name in names]
        names = names[ids.index(after) + 1 :] if after in ids else []
    start = _number(parameters, "offset") or 0
    limit = _number(parameters, "limit")
    return names[start:] if limit is None else names[start : start + limit]


def _number(parameters: dict[str, str], name: str) -> int | None:
    given = parameters.get(name)
    if not given:
        return None
    if len(given) > _DIGITS or not (given.isascii() and given.isdecimal()):
        raise BadPayload(f"query parameter '{name}': {given[:80]!a} is no number of up to {_DIGITS} digits")
    return int(given)


def _bucket(name: str, organization: str) -> dict[str, Any]:
    found = _id_of(name)
    return {
        "id": found,
        "orgID": organization,
        "type": "user",
        "name": name,
        "retentionRules": [],
        "labels": [],
        # By its name, because a write takes what it is given for a name.
        "links": {"self": f"{_BUCKETS}/{found}", "write": f"/api/v2/write?bucket={quote(name, safe='')}"},
    }


def _organization(name: str, found: str) -> dict[str, Any]:
    return {"id": found, "name": name, "links": {"self": f"{_ORGANIZATIONS}/{found}", "buckets": _BUCKETS}}


def _id_of(name: str) -> str:
    """Return the id for a name; what looks like an id is one."""
    return name if _ID.match(name) else blake2b(name.encode(), digest_size=_ID_BYTES).hexdigest()

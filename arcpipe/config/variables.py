"""Environment variables that begin like settings and are not: mistyped ones, and those of Kubernetes.

Kubernetes gives each container variables for the Services of its namespace. Those of a Service called arcpipe, or
arcpipe-server, begin like our settings, and one even has the same name. The operator has not written them, so none of
these variables stops a start.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from arcpipe.config.spelling import nearest

PREFIX: Final = "ARCPIPE_"
# Variables for options of commands; they are not settings.
_OF_COMMANDS: Final = frozenset({"ARCPIPE_CONFIG", "ARCPIPE_TOKEN"})
_OF_TESTS: Final = "ARCPIPE_TEST_"

# Each Service has a variable of this kind; the part before it is the Service's name.
_SERVICE: Final = re.compile(r"(ARCPIPE(?:_[A-Z0-9_]+)?)_SERVICE_HOST")
_LINK: Final = re.compile(r"_SERVICE_HOST|_SERVICE_PORT(?:_.+)?|_PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?")
_URL: Final = re.compile(r"(?:tcp|udp|sctp)://.*")


def of_kubernetes(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that Kubernetes has made for Services with names like ours."""
    services = {match[1] for name in environ if (match := _SERVICE.fullmatch(name))}

    def is_link(name: str) -> bool:
        for service in services:
            rest = name.removeprefix(service)
            # ARCPIPE_SERVER_PORT is also a setting: it is the setting if its value is a port.
            if rest != name and (_LINK.fullmatch(rest) or (rest == "_PORT" and _URL.fullmatch(environ[name]))):
                return True
        return False

    return [name for name in environ if name.startswith(PREFIX) and is_link(name)]


def warnings_of(environ: Mapping[str, str], settings: Collection[str]) -> Iterator[str]:
    """Return a warning for each unused variable that looks like a setting. It never contains the value.

    Args:
        settings: the names of variables that are settings.
    """
    links = of_kubernetes(environ)
    if links:
        yield (
            f"environment {', '.join(sorted(links))}: not used. Kubernetes makes them for a Service of such a name; "
            "set enableServiceLinks: false in the pod to avoid them"
        )
    ours = [name.removeprefix(PREFIX) for name in settings if name.startswith(PREFIX)]
    for name in environ:
        if (
            name.startswith(PREFIX)
            and name not in settings
            and name not in _OF_COMMANDS
            and name not in links
            and not name.startswith(_OF_TESTS)
        ):
            # Without the value: under a misspelled name it may be a credential.
            meant = nearest(name.removeprefix(PREFIX), ours)
            yield f"environment {name}: not used, as it is not a setting" + (
                meant and f"; did you mean {PREFIX}{meant}?"
            )

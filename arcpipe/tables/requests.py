"""A request to commit now, from the command line to the server's committer: the file `tables/commit-now`."""

from __future__ import annotations

import contextlib
import os
from typing import Final

import msgspec

FILENAME: Final = "commit-now"


class Request(msgspec.Struct, frozen=True):
    """What is asked for."""

    skip_missing: bool = False


def ask(folder: str, request: Request) -> None:
    """Ask the committer to commit now. Raises OSError."""
    path = os.path.join(folder, FILENAME)
    with open(f"{path}.new", "wb") as file:
        file.write(msgspec.json.encode(request))
    os.replace(f"{path}.new", path)


def take(folder: str) -> Request | None:
    """Return the request that waits, and remove it; None if there is none."""
    path = os.path.join(folder, FILENAME)
    try:
        with open(path, "rb") as file:
            content = file.read()
        os.unlink(path)
        return msgspec.json.decode(content, type=Request)
    except msgspec.MsgspecError:
        return Request()
    except OSError:
        return None


def is_waiting(folder: str) -> bool:
    """Tell whether a request waits."""
    return os.path.exists(os.path.join(folder, FILENAME))


def withdraw(folder: str) -> None:
    """Take a request back, if it still waits."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(folder, FILENAME))

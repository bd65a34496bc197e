"""The states of a connection: each names the event that it waits for, and determines the timeout."""

from __future__ import annotations

from typing import Final

IDLE: Final = 0  # the next request
HEADER: Final = 1  # the rest of a head
BODY: Final = 2  # the rest of a body
ANSWER: Final = 3  # the answer to a complete request
LINGER: Final = 4  # the client, with its last answer or a refusal, closes
FRESH: Final = 5  # the first byte of a new client

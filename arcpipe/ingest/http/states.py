"""The states of a connection: each tells who or what it waits for, and so which timeout holds."""

from __future__ import annotations

from typing import Final

IDLE: Final = 0  # the next request
HEADER: Final = 1  # the rest of a head
BODY: Final = 2  # the rest of a body
ANSWER: Final = 3  # the answer to a request that is whole
LINGER: Final = 4  # a client that has its last answer, or a refusal, to close
FRESH: Final = 5  # the first byte of a client that has sent nothing yet

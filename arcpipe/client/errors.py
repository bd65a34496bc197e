"""What the client raises, and what it tells about a batch that nobody took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from arcpipe.errors import ArcpipeError


class ClientError(ArcpipeError):
    """Base of what the client raises."""

    accepted: int = 0
    """How many records of the call were accepted, from the first one on. The others were not."""

    def note_accepted(self, records: int) -> None:
        """Have it tell that the first records of the call were accepted: given again, they would be there twice."""
        if records:
            self.accepted = records
            self.add_note(f"The first {records} records of this call were accepted: give only the others again.")


class Call:
    """A call with many records, as a context: an error of the client that ends it tells how many were accepted."""

    def __init__(self) -> None:
        self.accepted = 0  # records

    def __enter__(self) -> Call:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ClientError):
            error.note_accepted(self.accepted)


class BadRecord(ClientError):
    """A record cannot be sent; it was not accepted. Records before it in the same call may have been: `accepted`."""


class Full(ClientError):
    """The memory or the spool is full. Of a call with many records, the first ones may be accepted: `accepted`."""


class Closed(ClientError):
    """The client takes no more records: it was closed, or belongs to another process, or its sender died."""


class SpoolError(ClientError):
    """The spool directory cannot be used, or could not take the record; the record was not accepted."""


class SpoolBusy(SpoolError):
    """The system lacks memory or descriptors at this moment, so a file of the spool has to be read later."""


class NotSent(ClientError):
    """The time was over before everything was sent. In a spool the records stay; without one, `close` loses them."""

    def __init__(self, message: str, records: int) -> None:
        super().__init__(message)
        self.records = records


@dataclass(frozen=True, slots=True)
class Refusal:
    """A batch that was refused for good, given up, or can be read no more. Nothing tries it again."""

    key: str
    database: str
    format: str
    """`msgpack` or `lines`."""
    records: int
    status: int
    """The status of the answer; 0 if there is no final one, because the client gave up or could not read its file."""
    reason: str
    is_partly_written: bool
    """Whether the good lines of the body are written, or may be: never send it again as a whole."""
    body: bytes = field(repr=False)
    """The bytes of the batch, not compressed; empty if its file cannot be read."""


class Refused(ClientError):
    """Batches were refused since the last call; `refusals` has them, up to 100 and 16 MB."""

    def __init__(self, message: str, refusals: Sequence[Refusal]) -> None:
        super().__init__(message)
        self.refusals = list(refusals)

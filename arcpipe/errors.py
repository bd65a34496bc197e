"""The few exception types that cross a module border: one per consequence, not one per cause."""

from __future__ import annotations


class ArcpipeError(Exception):
    """Base of everything that arcpipe raises on purpose; its text is meant for a person."""


class ConfigError(ArcpipeError):
    """The settings cannot be used; the process does not start."""


class NotAllowed(ArcpipeError):
    """A request that its sender's token does not allow; the text says what is lacking."""


class BadPayload(ArcpipeError):
    """A request body that is refused whole: nothing of it is written. The text says what and where."""


class PayloadTooLarge(ArcpipeError):
    """A request body that would be larger than allowed once it is decoded."""


class UnsupportedEncoding(ArcpipeError):
    """A Content-Encoding that cannot be decoded here; the text names those that can."""


class StorageError(ArcpipeError):
    """The object store did not take, give or list something; trying again later may work.

    `kind` is one word for counters (`counters.RETRY_KINDS`) and log lines: connection, dns, timeout, throttled,
    server_error, credentials, missing_bucket, clock_skew, no_space, or other.
    """

    def __init__(self, message: str, kind: str = "other") -> None:
        super().__init__(message)
        self.kind = kind


class DamagedFile(ArcpipeError):
    """A small file was read whole, but its content is not what was written. The text says which file and why."""


class UnknownVersion(ArcpipeError):
    """A file of a version, or with a word, that this program does not know. It is to be left as it is."""


class WALError(ArcpipeError):
    """The write-ahead log could not do what was asked; nothing was acknowledged."""


class NotAWAL(WALError):
    """A file that cannot be read as a write-ahead log at all (wrong magic, version or checksum type)."""


class InstanceLocked(ArcpipeError):
    """Another process already uses this WAL directory."""


class CommitFailed(OSError):
    """A group that is not acknowledged: its write or its sync failed. `errno` and `strerror` are those of the cause.

    `may_have_been_written` is True where the device refused to take the group back, too: a crash can bring it back.
    """

    def __init__(self, cause: OSError, may_have_been_written: bool) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause), cause.filename)
        self.may_have_been_written = may_have_been_written

"""The few exception types that cross a module border: one per consequence, not one per cause. And what they tell."""

from __future__ import annotations

import errno


class ArcpipeError(Exception):
    """Base of everything that arcpipe raises on purpose; its text is meant for a person."""


class ConfigError(ArcpipeError):
    """The settings cannot be used; the process does not start."""


class NotAllowed(ArcpipeError):
    """The sender's token does not allow the request; the text says what is missing."""


class BadPayload(ArcpipeError):
    """A request body is refused as a whole: nothing of it is written. The text says what is wrong and where."""


class UnknownFormat(BadPayload):
    """The format of a body is not known; the text names those that are."""


class PayloadTooLarge(ArcpipeError):
    """A request body is larger than allowed when decoded."""


class UnsupportedEncoding(ArcpipeError):
    """A Content-Encoding is not supported; the text names the supported ones."""


class StorageError(ArcpipeError):
    """The object store failed to write, read or list something; a retry may work.

    `kind` is one word for counters (`counters.RETRY_KINDS`) and log lines: connection, dns, timeout, throttled,
    server_error, credentials, missing_bucket, clock_skew, no_space, or other.
    """

    def __init__(self, message: str, kind: str = "other") -> None:
        super().__init__(message)
        self.kind = kind


class UnreadableBlob(StorageError):
    """The data to be stored cannot be read, so the store is not at fault."""


class MissingObject(StorageError):
    """The object store has no object of this key."""


class NotOffered(StorageError):
    """The object store does not know what was asked for, so trying again does not help."""


class DamagedFile(ArcpipeError):
    """A small file was read whole, but its content is damaged. The text says which file and why."""


class UnknownVersion(ArcpipeError):
    """A file has a version, or a word, that this program does not know. Callers leave the file as it is."""


class WALError(ArcpipeError):
    """The write-ahead log (WAL) could not do what was asked; nothing was acknowledged."""


class NotAWAL(WALError):
    """A file cannot be read as a WAL at all (wrong magic, version or checksum type)."""


class InstanceLocked(ArcpipeError):
    """Another process already uses this WAL directory."""


class CommitFailed(OSError):
    """A group's write or sync failed, so it is not acknowledged. `errno` and `strerror` are those of the cause.

    `may_have_been_written` is True if the group could not be cut off either: after a crash, recovery may find it.
    """

    def __init__(self, cause: OSError, may_have_been_written: bool) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause), cause.filename)
        self.may_have_been_written = may_have_been_written


def is_full(error: BaseException) -> bool:
    """Tell whether an error says that a disk has no space, or a quota none."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def lacks_room(error: BaseException) -> bool:
    """Tell whether memory, or another process or thread, was refused."""
    if isinstance(error, OSError):
        return error.errno in (errno.EAGAIN, errno.ENOMEM)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    )

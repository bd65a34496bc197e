"""The reload: tokens, certificate, log level and access log may change while the server runs.

The supervisor reads them at the start and again at SIGHUP, and notifies its children by counters in shared memory. A
child that is forked later gets the last valid ones, whatever the files contain by then. This module knows files,
counters and log lines; it must not know processes, sockets or HTTP.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from array import array
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from arcpipe import logs
from arcpipe.access import expiry, tokens
from arcpipe.access.tls import ServerTLS
from arcpipe.counters import ENDINGS, RELOAD_PARTS, Counters, Endings, Node, Worker, pack_name
from arcpipe.errors import ArcpipeError
from arcpipe.logs import line_writer

if TYPE_CHECKING:
    from arcpipe.access.tokens import Token
    from arcpipe.config.settings import Settings

log = logging.getLogger(__name__)

# Time between two log lines about the same expiry.
_ENDING_LINE_SECONDS: Final = 86_400.0
_ENDING_TEXTS: Final = {
    "certificate": "the certificate of {}",
    "client_ca": "the authority {} in server.tls_client_ca",
    "token": "token {}",
}
# Workers that have not taken a reload after this time are reported; they check four times a second.
_RELOAD_SECONDS: Final = 5.0


class Access(NamedTuple):
    """Tokens and TLS of a worker, each with the number of its reading."""

    tokens: tuple[Token, ...] | None  # None: requests need no token
    tokens_loaded: int
    tls: ServerTLS | None
    tls_loaded: int


def check(settings: Settings) -> None:
    """Raise ArcpipeError if tokens, certificate or access log would stop a start with these settings."""
    Changeable(settings, lambda: settings, Counters(1)).read(is_check=True)


class Changeable:
    """The last valid tokens, certificate and log level."""

    def __init__(self, settings: Settings, load_settings: Callable[[], Settings], counters: Counters) -> None:
        """Start with nothing; `read` comes first.

        Args:
            load_settings: returns the settings at a reload, or raises ConfigError.
        """
        self._settings = settings
        self._load_settings = load_settings
        self._node = counters.node
        self._workers = [(slot, counters.worker(slot)) for slot in range(1, counters.workers + 1)]
        self._endings = counters.endings
        self._told: dict[str, tuple[expiry.Life, bool, float]] = {}  # last warning by kind: of what, expired, when
        self._deadline = 0.0  # for workers to take a reload; 0: all have
        self._refused: list[str] = []  # parts of the last reload whose former state stays in force
        self._tokens: tuple[Token, ...] | None = None
        self.tls: ServerTLS | None = None

    def read(self, is_check: bool = False) -> None:
        """Read everything for the first time.

        Args:
            is_check: make no file, because a check may run as another user, who would then own it.

        Raises:
            ArcpipeError: a part cannot be used.
        """
        auth, server = self._settings.auth, self._settings.server
        self._node[Node.LOG_LEVEL] = _level(self._settings)
        if auth.enabled:
            self._take_tokens(tokens.read(auth.tokens_file))
        if server.tls_cert:
            self.tls = ServerTLS(
                server.tls_cert, server.tls_key, server.tls_client_ca, server.tls_client_auth == "required"
            )
            _warn_if_readable_by_others(server.tls_key, "server.tls_key")
        _try_access_log(self._settings, is_check)
        self.note_endings()

    def access(self) -> Access:
        """Return tokens and TLS for a worker that is forked now."""
        return Access(self._tokens, self._node[Node.TOKENS_LOADED], self.tls, self._node[Node.TLS_LOADED])

    def reload(self) -> None:
        """Read everything again, each part by itself.

        A bad part is refused, and the former one stays in force; it does not affect the others. So a bad certificate
        does not keep a revoked token alive. `is_reload_over` tells when all workers have taken the reload.
        """
        log.info("SIGHUP: reloading")
        self._refused.clear()
        try:
            settings = self._load_settings()
        except ArcpipeError as error:
            self._refused.append("the settings")
            for line in str(error).splitlines():
                log.error("the settings are refused, and the log level stays as it was: %s", line)
        else:
            self._take_log_level(settings)
        if self._tokens is not None:
            try:
                found = tokens.read(self._settings.auth.tokens_file)
            except ArcpipeError as error:
                self._refused.append("the tokens file")
                log.error("the tokens file is refused, and the former tokens stay in force: %s", error)
            else:
                self._take_tokens(found)
                self._node[Node.TOKENS_LOADED] += 1
        if self.tls is not None:
            try:
                self.tls.reload()
            except ArcpipeError as error:
                self._refused.append("the certificate")
                log.error("the certificate is refused, and the former one stays in force: %s", error)
            else:
                _warn_if_readable_by_others(self._settings.server.tls_key, "server.tls_key")
                self._node[Node.TLS_LOADED] += 1
        self.note_endings()
        self._node[Node.RELOAD_REFUSED] = sum(1 << RELOAD_PARTS.index(part) for part in self._refused)
        self._node[Node.RELOADS] += 1
        self._deadline = time.monotonic() + _RELOAD_SECONDS

    def is_reload_over(self) -> bool:
        """Return True once after a reload: when all workers have taken it, or their time is over."""
        if not self._deadline:
            return False
        wanted = [self._node[field] for field in (Node.LOG_LEVEL, Node.TOKENS_LOADED, Node.TLS_LOADED, Node.RELOADS)]
        taken = (Worker.LOG_LEVEL, Worker.TOKENS_LOADED, Worker.TLS_LOADED, Worker.RELOADS_TAKEN)
        late = [slot for slot, block in self._workers if [block[field] for field in taken] != wanted]
        if late and time.monotonic() < self._deadline:
            return False
        self._deadline = 0.0
        if late:
            log.error("not reloaded: %s", ", ".join(f"ingest {slot}" for slot in late))
        elif self._refused:
            log.warning("reloaded, except for %s: the lines above say why", ", ".join(self._refused))
        else:
            log.info("reloaded")
        return True

    def note_endings(self) -> None:
        """Publish the next expiry of each kind, and warn if it is soon. Call it about once a minute."""
        now = time.time()
        lives: dict[str, expiry.Life | None] = dict.fromkeys(ENDINGS)
        if self.tls is not None:
            lives["certificate"] = self.tls.certificate
            lives["client_ca"] = expiry.next_to_end(self.tls.authorities, now)
        if self._tokens is not None:
            lives["token"] = expiry.next_to_end(expiry.of_tokens(self._tokens), now)
            states: Counter[str] = Counter(token.state(datetime.fromtimestamp(now, UTC)) for token in self._tokens)
            for number, state in enumerate(Endings.TOKEN_STATES, Endings.TOKENS):
                self._endings[number] = states[state]
        for number, (kind, life) in enumerate(lives.items()):
            words = [0] * Endings.WORDS
            if life is not None:
                words = [max(1, int(life.ends)), max(0, int(life.warn_from)), *pack_name(life.name)]
                self._warn_of_end(kind, life, now)
            self._endings[number * Endings.WORDS : (number + 1) * Endings.WORDS] = array("Q", words)

    def _warn_of_end(self, kind: str, life: expiry.Life, now: float) -> None:
        """Log a warning of an expiry, once a day and when it has come."""
        if now < life.warn_from:
            return
        is_over = life.ends <= now
        told = self._told.get(kind)
        if told is not None and told[:2] == (life, is_over) and 0 <= now - told[2] < _ENDING_LINE_SECONDS:
            return
        self._told[kind] = life, is_over, now
        what = _ENDING_TEXTS[kind].format(life.name)
        log.warning("%s has expired at %s" if is_over else "%s expires at %s", what, expiry.date(life.ends))

    def _take_tokens(self, found: tuple[Token, ...]) -> None:
        self._tokens = found
        now = datetime.now(UTC)
        log.info("%d tokens, %d of them active", len(found), sum(token.state(now) == "active" for token in found))
        _warn_if_readable_by_others(self._settings.auth.tokens_file, "auth.tokens_file")

    def _take_log_level(self, settings: Settings) -> None:
        changed = [key for key, *_ in settings.effective() if settings.value(key) != self._settings.value(key)]
        needing_restart = [key for key in changed if key != "log.level"]
        if needing_restart:
            log.warning("changes of %s take effect at the next start", ", ".join(needing_restart))
        self._node[Node.LOG_LEVEL] = _level(settings)
        logs.set_level(_level(settings))


def _try_access_log(settings: Settings, is_check: bool) -> None:
    """Raise ArcpipeError if the access log cannot be written to."""
    access_log = settings.access_log
    if access_log.format == "off" or access_log.path == line_writer.STDERR:
        return
    try:
        if is_check and not os.path.exists(access_log.path):
            _try_to_make(access_log.path)
        else:
            os.close(line_writer.open_to_append(access_log.path))
    except OSError as error:
        reason = error.strerror or error
        raise ArcpipeError(f"access_log.path: {access_log.path} cannot be opened to append to: {reason}") from None


def _try_to_make(path: str) -> None:
    """Raise OSError if a file could not be made."""
    folder = os.path.dirname(path) or "."
    code = 0 if stat.S_ISDIR(os.stat(folder).st_mode) else errno.ENOTDIR
    if not code and not os.access(folder, os.W_OK | os.X_OK):
        code = errno.EACCES
    if code:
        raise OSError(code, os.strerror(code), path)


def _level(settings: Settings) -> int:
    return logging.getLevelNamesMapping()[settings.log.level]


def _warn_if_readable_by_others(path: str, what: str) -> None:
    """Log a warning if others than its owner may read a file.

    The group may read a file of another owner, because this process may read it by the group, such as one of root's.
    """
    with contextlib.suppress(OSError):
        status = os.stat(path)
        by_group = status.st_mode & stat.S_IRGRP and status.st_uid == os.geteuid()
        if by_group or status.st_mode & stat.S_IROTH:
            log.warning("%s (%s) can be read by others: run `chmod 600 %s`", path, what, path)

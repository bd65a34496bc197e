"""Reloads in a worker: tokens, certificates and the log level, after the supervisor has read and validated them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from arcpipe import logs
from arcpipe.access import tokens
from arcpipe.counters import Node as NodeBlock
from arcpipe.errors import ArcpipeError
from arcpipe.ingest.publishing import Loaded

if TYPE_CHECKING:
    from arcpipe.access.reload import Access
    from arcpipe.ingest.service import Service

log = logging.getLogger(__name__)

# Seconds between two log lines of a reload that fails.
_LINE_SECONDS: Final = 10.0


class Reloads:
    """Follows the supervisor's reloads."""

    def __init__(self, node: memoryview, access: Access, service: Service, tokens_file: str) -> None:
        self._node = node
        self._tls = access.tls
        self._auth = service.judges.auth
        self._gate = service.judges.gate
        self._access_log = service.access_log
        self._context = service.context
        self._tokens_file = tokens_file
        self._tokens_loaded = access.tokens_loaded
        self._tls_loaded = access.tls_loaded
        # An access log counts reloads from the one before which it was opened.
        opened = self._access_log.writer.reopened if self._access_log is not None else node[NodeBlock.RELOADS]
        self._taken = self._asked = opened
        self._next_line = 0.0

    @property
    def loaded(self) -> Loaded:
        """The readings that the worker goes by now."""
        return Loaded(self._tokens_loaded, self._tls_loaded, self._taken)

    def tick(self) -> None:
        """Take over new readings, and let tokens, limits and access log do their periodic work."""
        logs.set_level(self._node[NodeBlock.LOG_LEVEL])
        logs.flush()
        self._tick_tokens()
        self._tick_tls()
        self._tick_access_log()
        if self._context.gate is not None:
            self._context.gate.tick()

    def _tick_tokens(self) -> None:
        auth, gate = self._auth, self._gate
        if auth is None:
            return
        loaded = self._node[NodeBlock.TOKENS_LOADED]
        if loaded != self._tokens_loaded:
            try:
                auth.replace(tokens.read(self._tokens_file))
            except ArcpipeError as error:  # the file has changed again since the supervisor read it
                self._report("tokens file", error)
            else:
                self._tokens_loaded = loaded
                if gate is not None:
                    gate.reload()
                    if gate.is_needed:
                        self._context.limit_by(gate)
        auth.tick(self._context.now)

    def _tick_tls(self) -> None:
        loaded = self._node[NodeBlock.TLS_LOADED]
        if self._tls is None or loaded == self._tls_loaded:
            return
        try:
            self._tls.reload()
        except ArcpipeError as error:
            self._report("certificate", error)
        else:
            self._tls_loaded = loaded

    def _tick_access_log(self) -> None:
        """Open the access log again after a reload; without one, the reload is done."""
        reloads = self._node[NodeBlock.RELOADS]
        access_log = self._access_log
        if access_log is None:
            self._taken = reloads
            return
        if reloads != self._asked:
            self._asked = reloads
            access_log.flush()
            access_log.writer.reopen(reloads)
        self._taken = access_log.writer.reopened
        access_log.tick(self._context.now)

    def _report(self, what: str, error: ArcpipeError) -> None:
        if self._context.now >= self._next_line:
            self._next_line = self._context.now + _LINE_SECONDS
            log.error("cannot reload the %s, keeping the previous one and retrying: %s", what, error)

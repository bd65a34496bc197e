"""A REST catalogue, with time limits, and without the snapshots that a commit does not need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pyiceberg.catalog.rest import SNAPSHOT_LOADING_MODE, RestCatalog
from pyiceberg.io import FileIO
from pyiceberg.typedef import EMPTY_DICT, Properties
from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter

from arcpipe.tables.iceberg.shared_io import SharedFiles

_CONNECT_SECONDS: Final = 10.0
_READ_SECONDS: Final = 60.0


class RESTCatalogue(RestCatalog):
    """The catalogue."""

    def __init__(self, name: str, files: SharedFiles, **properties: str) -> None:
        self._files = files
        # Those that a branch or tag refers to: a long history is neither sent nor parsed.
        super().__init__(name, **{**properties, SNAPSHOT_LOADING_MODE: "refs"})

    def _create_session(self) -> Session:
        session = super()._create_session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Limited())
        return session

    def _load_file_io(self, properties: Properties = EMPTY_DICT, location: str | None = None) -> FileIO:
        return self._files.of(location or "", {**self.properties, **properties})

    @contextmanager
    def all_snapshots(self) -> Iterator[None]:
        """Load tables with all of their snapshots."""
        mode = self.properties.pop(SNAPSHOT_LOADING_MODE)
        try:
            yield
        finally:
            self.properties[SNAPSHOT_LOADING_MODE] = mode


class _Limited(HTTPAdapter):
    """Requests with time limits: requests has none, and a server that hangs would hold the committer for ever."""

    def send(
        self, request: PreparedRequest, stream: bool = False, timeout: Any = None, *args: Any, **options: Any
    ) -> Response:
        response = super().send(request, stream, timeout or (_CONNECT_SECONDS, _READ_SECONDS), *args, **options)
        # JSON is UTF-8. Where the server does not say so, requests would guess, which takes longer than all else.
        response.encoding = "utf-8"
        return response

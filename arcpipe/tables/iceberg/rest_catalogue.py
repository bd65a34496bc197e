"""A REST catalogue, with time limits, and without the snapshots that a commit does not need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

import msgspec
from pyiceberg.catalog import TOKEN
from pyiceberg.catalog.rest import _RETRY_ARGS, SNAPSHOT_LOADING_MODE, Endpoints, RestCatalog
from pyiceberg.catalog.rest.response import _handle_non_200_response
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException, NoSuchTableError, RESTError
from pyiceberg.io import FileIO
from pyiceberg.table import CommitTableRequest, CommitTableResponse, Namespace, Table, TableIdentifier
from pyiceberg.table.update import TableRequirement, TableUpdate
from pyiceberg.typedef import EMPTY_DICT, Properties
from requests import HTTPError, PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter
from tenacity import retry

from arcpipe.tables.iceberg.shared_io import SharedFiles

_CONNECT_SECONDS: Final = 10.0
_READ_SECONDS: Final = 60.0
_OUTCOMES: Final[dict[int, type[Exception]]] = {
    404: NoSuchTableError,
    409: CommitFailedException,
    500: CommitStateUnknownException,
    502: CommitStateUnknownException,
    504: CommitStateUnknownException,
}


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

    # Of 401 and 419 alone, with a new token: the server has done nothing then.
    @retry(**_RETRY_ARGS)  # type: ignore[call-overload,untyped-decorator]
    def commit_table(
        self, table: Table, requirements: tuple[TableRequirement, ...], updates: tuple[TableUpdate, ...]
    ) -> CommitTableResponse:
        """Try a commit, as pyiceberg does, but for parsing the answer: it has all snapshots, and nobody needs it.

        Raises:
            CommitFailedException: the table is not as the requirements say; nothing happened.
            CommitStateUnknownException: it is not known what happened.
        """
        *namespace, name = table.name()
        identifier = TableIdentifier(namespace=Namespace(list(namespace)), name=name)
        request = CommitTableRequest(identifier=identifier, requirements=requirements, updates=updates)
        token = table.config.get(TOKEN)
        response = self._session.post(
            self.url(Endpoints.update_table, prefixed=True, **self._split_identifier_for_path(identifier)),
            data=request.model_dump_json().encode(),
            headers={"Authorization": f"Bearer {token}"} if token else None,
        )
        try:
            response.raise_for_status()
        except HTTPError as error:
            _handle_non_200_response(error, _OUTCOMES)
        # Whoever else answers 200, such as a proxy that wants a login, does not name the table.
        if not response.content.lstrip().startswith(b"{") or str(table.metadata.table_uuid) not in response.text:
            raise CommitStateUnknownException(f"the answer is not of a catalogue: {response.text[:100]!r}")
        return CommitTableResponse.model_construct()

    @contextmanager
    def all_snapshots(self) -> Iterator[None]:
        """Load tables with all of their snapshots."""
        mode = self.properties.pop(SNAPSHOT_LOADING_MODE)
        try:
            yield
        finally:
            self.properties[SNAPSHOT_LOADING_MODE] = mode


class _Limited(HTTPAdapter):
    """Requests with time limits: requests has none, and a server that hangs would hold the committer for ever.

    A 404 has to be the catalogue's own: a table that is taken for a dropped one would lose the files of a merge.
    """

    def send(
        self, request: PreparedRequest, stream: bool = False, timeout: Any = None, *args: Any, **options: Any
    ) -> Response:
        response = super().send(request, stream, timeout or (_CONNECT_SECONDS, _READ_SECONDS), *args, **options)
        # JSON is UTF-8. Where the server does not say so, requests would guess, which takes longer than all else.
        response.encoding = "utf-8"
        if response.status_code == HTTPStatus.NOT_FOUND and request.method != "HEAD" and not _is_of_catalogue(response):
            raise RESTError(f"it is no answer of a catalogue: 404 {response.text[:100]!r}")
        return response


def _is_of_catalogue(response: Response) -> bool:
    """Tell a catalogue's 404 from that of a proxy which does not reach it. Only the former says what is not there."""
    try:
        content = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        return False
    return isinstance(content, dict) and any(key.startswith("error") for key in content)

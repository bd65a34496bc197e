"""AWS Glue as the catalogue. Only who uses it needs its library, boto3."""

from __future__ import annotations

from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.io import FileIO
from pyiceberg.typedef import EMPTY_DICT, Properties

from arcpipe.config.settings import StorageS3
from arcpipe.tables.iceberg.shared_io import SharedFiles


class GlueCatalogue(GlueCatalog):
    """The catalogue."""

    def __init__(self, name: str, files: SharedFiles, **properties: str) -> None:
        self._files = files
        super().__init__(name, **properties)

    def _load_file_io(self, properties: Properties = EMPTY_DICT, location: str | None = None) -> FileIO:
        return self._files.of(location or "", {**self.properties, **properties})


def glue_properties(options: StorageS3, endpoint: str) -> dict[str, str]:
    """Return the properties of Glue: the credentials and the region of the store's."""
    found = {
        "glue.endpoint": endpoint,
        "glue.region": options.region,
        "glue.access-key-id": options.access_key_id,
        "glue.secret-access-key": options.secret_access_key,
        "glue.session-token": options.session_token,
    }
    return {key: value for key, value in found.items() if value}

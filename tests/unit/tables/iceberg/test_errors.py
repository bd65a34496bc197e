"""Each failure of a library has its one consequence."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from pyiceberg import exceptions as of
from requests import ConnectionError as RequestsConnectionError
from requests import ReadTimeout
from sqlalchemy.exc import OperationalError

from arcpipe.tables.base import Conflict, Refused, TableError, Unavailable
from arcpipe.tables.iceberg.errors import translated


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (of.CommitFailedException("stale"), Conflict),
        (of.TableAlreadyExistsError("there"), Conflict),
        (of.NoSuchTableError("gone"), Conflict),
        (of.CommitStateUnknownException("?"), Unavailable),
        (of.ServerError("500"), Unavailable),
        (of.ServiceUnavailableError("503"), Unavailable),
        (of.TooManyRequestsError("429"), Unavailable),
        (ReadTimeout("slow"), Unavailable),
        (RequestsConnectionError("reset"), Unavailable),
        (OperationalError("SELECT secret", {"p": "secret"}, Exception("locked")), Unavailable),
        (EndpointConnectionError(endpoint_url="x"), Unavailable),
        (ClientError({"Error": {"Code": "ThrottlingException", "Message": ""}}, "GetTable"), Unavailable),
        (OSError(28, "No space left on device"), Unavailable),
        (KeyError("of a bug"), Unavailable),
        (of.ForbiddenError("403"), Refused),
        (of.UnauthorizedError("401"), Refused),
        (of.BadRequestError("400"), Refused),
        (ClientError({"Error": {"Code": "AccessDeniedException", "Message": ""}}, "GetTable"), Refused),
        (PermissionError(13, "Permission denied"), Refused),
        (OSError("When writing: AWS Error ACCESS_DENIED during PutObject"), Refused),
    ],
)
def test_each_failure_has_its_consequence(raised: Exception, expected: type[TableError]) -> None:
    with pytest.raises(TableError, match="cannot commit") as caught, translated("cannot commit"):
        raise raised
    assert type(caught.value) is expected
    assert "secret" not in str(caught.value)


def test_errors_of_tables_pass() -> None:
    refused = Refused("no", column="a")
    with pytest.raises(Refused) as caught, translated("cannot commit"):
        raise refused
    assert caught.value is refused

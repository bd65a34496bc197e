"""What pyiceberg and the libraries below it raise, as the errors of `tables.base`.

An answer that did not come says nothing: the commit may be there. So everything that is not known to have changed
nothing is Unavailable, and whoever meets it reads the marker.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from botocore.exceptions import ClientError
from pyiceberg import exceptions as of
from sqlalchemy.exc import SQLAlchemyError

from arcpipe.tables.base import Conflict, Refused, TableError, Unavailable

# Somebody else was first: a requirement did not hold, or the table came or went meanwhile.
_CONFLICTS: Final = (
    of.CommitFailedException,
    of.TableAlreadyExistsError,
    of.NamespaceAlreadyExistsError,
    of.NoSuchTableError,
    of.NoSuchNamespaceError,
)
# The catalogue has understood, and will answer the same again.
_REFUSALS: Final = (
    of.BadRequestError,
    of.ForbiddenError,
    of.UnauthorizedError,
    of.AuthorizationExpiredError,
    of.OAuthError,
    of.NotInstalledError,
)
_DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException", "UnrecognizedClientException"})


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise the errors of `tables.base`.

    Args:
        what: begins the text, such as "cannot commit to table 'cpu' of database 'default'".
    """
    try:
        yield
    except TableError:
        raise
    except _CONFLICTS as error:
        raise Conflict(f"{what}: somebody else changed it first ({reason(error)}); it is tried again") from error
    except _REFUSALS as error:
        raise Refused(
            f"{what}: the catalogue refuses it ({reason(error)}): check tables.iceberg's credentials and rights"
        ) from error
    except Exception as error:
        if _is_denied(error):
            raise Refused(
                f"{what}: access is denied ({reason(error)}): check the credentials and their rights"
            ) from error
        raise Unavailable(f"{what}: {reason(error)}; it is tried again") from error


def reason(error: BaseException) -> str:
    """Return the text of an error on one line, with its type, and not too long."""
    if isinstance(error, SQLAlchemyError):  # its text has the statement and its parameters
        error = getattr(error, "orig", None) or error
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _is_denied(error: BaseException) -> bool:
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) in _DENIED
    if isinstance(error, OSError) and not isinstance(error, PermissionError):
        return "ACCESS_DENIED" in str(error)  # of Arrow's S3 client
    return isinstance(error, PermissionError)

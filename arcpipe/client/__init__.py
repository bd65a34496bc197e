"""The client: it sends records over HTTP so that each of them is stored exactly once, and keeps them until they are.

    from arcpipe.client import Client, Options

    with Client("http://127.0.0.1:8000", Options(database="production", spool="/var/spool/meter")) as client:
        client.write("cpu", {"host": "web-1", "usage": 0.5}, tags=["host"])

`Client` is for threads, `AsyncClient` for event loops. `docs/client.md` tells all of it. This package is
light to import, and knows nothing of the server: of arcpipe it uses the ground alone.

The way of a record:

1. `encoding` makes bytes of it; a record that cannot be sent is refused here.
2. `buffer` puts it into the open batch of its format and database, in memory or in a file (`spool`).
3. The sender's thread (`core`) takes batches that are full or old enough. `delivery` sends one until there is an answer
   that counts, always with the key that the batch was given when it was begun.
4. `retry` says what an answer means, `routes` which node is asked.
"""

from arcpipe.client.asynchronous import AsyncClient
from arcpipe.client.blocking import Client
from arcpipe.client.core import Stats
from arcpipe.client.errors import BadRecord, ClientError, Closed, Full, NotSent, Refusal, Refused, SpoolError
from arcpipe.client.options import Options

__all__ = [
    "AsyncClient",
    "BadRecord",
    "Client",
    "ClientError",
    "Closed",
    "Full",
    "NotSent",
    "Options",
    "Refusal",
    "Refused",
    "SpoolError",
    "Stats",
]

"""The limit of open files, raised before the workers are forked."""

from __future__ import annotations

import logging
import resource

from arcpipe import descriptors
from arcpipe.errors import ArcpipeError

log = logging.getLogger(__name__)


def raise_file_limit(connections: int) -> None:
    """Allow each worker the open files that this many connections need, as far as the hard limit permits.

    Raises:
        ArcpipeError: the hard limit does not even allow what a process needs besides connections.
    """
    wanted = descriptors.needed(connections)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        advice = "Raise the limit (ulimit -Hn, or LimitNOFILE= of the service)"
        if hard < descriptors.LEAST:
            raise ArcpipeError(f"a process may have {hard} open files, and it needs {descriptors.LEAST}. {advice}.")
        log.warning(
            "server.max_connections = %d needs %d open files, and a process may have %d: each worker takes %d "
            "connections and answers 503 above that. %s, or lower the setting",
            *(connections, wanted, hard, descriptors.room(connections, hard).connections, advice),
        )
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

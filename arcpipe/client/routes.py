"""Which of several nodes gets a batch: the same one for the same key, as long as it is there.

A node knows the keys that it took itself, and no others. So a batch goes to another node only if the first one cannot
have it. If the first may have it (the connection broke after the request was sent), the batch waits for that node for
`failover_seconds`. After that it goes elsewhere, and may be there twice: that is the price of a failover.

The first node of a key follows from the key and the URLs, so that a sender that was started again asks the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from arcpipe.client.options import Node

_AVOIDED_SECONDS: Final = 10.0  # for which a node that could not be reached is the last choice


class Routes:
    """The nodes of one client, and which of them could not be reached lately."""

    def __init__(self, nodes: Sequence[Node], failover_seconds: float, clock: Callable[[], float]) -> None:
        self._nodes = list(nodes)
        self._failover_seconds = failover_seconds
        self._clock = clock
        self._avoided_until: dict[str, float] = {}

    def route(self, key: str, may_be_sent: bool = False) -> Route:
        """Return the nodes of a batch, in their order.

        Args:
            may_be_sent: a former process may have sent it to the first node, so it is held there from the beginning.
        """
        order = sorted(self._nodes, key=lambda node: hashlib.sha256(f"{key} {node.url}".encode()).digest())
        now = self._clock()
        if not may_be_sent:
            order.sort(key=lambda node: self._avoided_until.get(node.url, now) > now)  # stable
        return Route(order, self._failover_seconds, self._clock, now if may_be_sent else None)

    def avoid(self, node: Node) -> None:
        """Prefer other nodes to this one for some seconds."""
        self._avoided_until[node.url] = self._clock() + _AVOIDED_SECONDS


class Route:
    """The way of one batch from node to node."""

    def __init__(
        self, order: list[Node], failover_seconds: float, clock: Callable[[], float], held_since: float | None = None
    ) -> None:
        self._order = order
        self._at = 0
        self._failover_seconds = failover_seconds
        self._clock = clock
        self._held_since = held_since  # when the present node may have got it; None if it did not
        self.may_be_doubled = False

    @property
    def node(self) -> Node:
        """Return the node to try now."""
        return self._order[self._at % len(self._order)]

    def failed(self, may_be_written: bool) -> bool:
        """Choose the next node after a failure.

        Returns:
            Whether the next one was not tried yet in this round, so that there is no reason for a pause.
        """
        now = self._clock()
        if may_be_written and self._held_since is None:
            self._held_since = now
        if self._held_since is not None:
            if len(self._order) == 1 or now - self._held_since < self._failover_seconds:
                return False
            self.may_be_doubled = True
            self._held_since = None
        self._at += 1
        return self._at % len(self._order) != 0

"""The operations of a day, each with the effects that clients and figures may show.

Each returns when the instance is well again, or will be by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.crash.day.instance import Instance
from tests.crash.day.load import Load
from tests.crash.day.model import Effects, Model
from tests.crash.day.operations.deaths import DeathsOperations
from tests.crash.day.operations.ends import EndsOperations
from tests.crash.day.operations.faults import FaultsOperations
from tests.crash.day.operations.settings import SettingsOperations


class Operations(SettingsOperations, DeathsOperations, FaultsOperations, EndsOperations):
    """All of them, for one instance under load."""

    def __init__(self, instance: Instance, load: Load, model: Model, chance: random.Random, is_long: bool) -> None:
        super().__init__(instance, load, model, chance)
        self.all: list[Callable[[], Effects]] = [
            *(self.reload, self.reload_bad, self.signals, self.rotate_tokens, self.upgrade, self.upgrade_bad),
            *(self.kill_worker, self.kill_uploader, self.kill_supervisor, self.kill_all, self.kill_in_upgrade),
            *(self.pause, self.step_clock, self.sick_wal, self.sick_listing, self.sick_listing_of_uploader),
            *(self.stop, self.stop_all_at_once, self.stop_with_sick_store, self.stop_blind, self.kill_in_drain),
            self.full_stderr,
            *((self.sick_store,) if instance.proxy is None else (self.sick_store, self.flaky_store)),
        ]
        if is_long:
            self.all += [self.hang_supervisor, self.hang_worker]

"""Steps of arcpipe's own code at which a process dies, meets an error, or is stopped."""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import os
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple


class Step(NamedTuple):
    """The `nth` call (from 1) of a function whose arguments, as text, match a pattern."""

    function: str  # "package.module:Class.method" or "package.module:function"
    when: Literal["before", "after"]
    nth: int = 1
    pattern: str = ""


def arm_deaths(order: Mapping[str, Any]) -> None:
    """Arm the steps of an order: `die` gets a SIGKILL, at `fail` an I/O error is raised, once."""
    if order["die"] is not None:
        arm(Step(*order["die"]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    if order["fail"] is not None:
        arm(Step(*order["fail"]), raise_io_error)


def arm(step: Step, strike: Callable[[], None]) -> None:
    """Puts something around a function that strikes at the step, once."""
    owner, name = find(step.function)
    original = getattr(owner, name)
    calls = 0

    def is_it(arguments: tuple[object, ...]) -> bool:
        nonlocal calls
        if re.search(step.pattern, " ".join(map(str, arguments))) is None:
            return False
        calls += 1
        return calls == step.nth

    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def around_async(*args: Any, **kwargs: Any) -> Any:
            hit = is_it(args)
            if hit and step.when == "before":
                strike()
            result = await original(*args, **kwargs)
            if hit and step.when == "after":
                strike()
            return result

        setattr(owner, name, around_async)
        return

    @functools.wraps(original)
    def around(*args: Any, **kwargs: Any) -> Any:
        hit = is_it(args)
        if hit and step.when == "before":
            strike()
        result = original(*args, **kwargs)
        if hit and step.when == "after":
            strike()
        return result

    setattr(owner, name, around)


def find(name: str) -> tuple[Any, str]:
    """Resolve "package.module:path.to.it" to its owner and its name there."""
    module, _, path = name.partition(":")
    *owners, last = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    assert hasattr(owner, last), f"there is no {name} any more"
    return owner, last


def raise_io_error() -> None:
    raise OSError(errno.EIO, "this step fails once, because a test wants it")

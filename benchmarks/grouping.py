"""Commands whose options come in groups: dataclasses with a field for each option."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function that takes groups of options one that takes each option, as typer wants it.

    Args:
        function: Each of its parameters is annotated with a dataclass of options.

    Returns:
        A function with the same docstring, and with one parameter per field of the dataclasses.
    """
    groups = {name: group for name, group in get_type_hints(function).items() if name != "return"}
    fields = {name: get_type_hints(group, include_extras=True) for name, group in groups.items()}

    def command(**options: Any) -> None:
        function(
            **{
                name: group(**{field: options[field] for field in fields[name] if field in options})
                for name, group in groups.items()
            }
        )

    parameters = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=fields[name][field.name]
        )
        for name, group in groups.items()
        for field in dataclasses.fields(group)
    ]
    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command

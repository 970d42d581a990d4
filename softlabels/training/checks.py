"""What a recipe's fields may hold."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from softlabels.errors import InputError, quoted


def check_choice(recipe: Any, name: str, choices: Collection[str]) -> None:
    """Raise `InputError` unless a field is one of the choices."""
    value = getattr(recipe, name)
    if value not in choices:
        raise InputError(
            f"{type(recipe).__name__}: {name} is {quoted(value)}; it is one of {', '.join(choices)}"
        )


def check_counts(recipe: Any, *names: str, least: int = 1) -> None:
    """Raise `InputError` unless fields are None or whole numbers from `least` on."""
    for name in names:
        value = getattr(recipe, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(
                f"{type(recipe).__name__}: {name} is {quoted(value)}; it must be a whole number "
                f"from {least} on"
            )


def check_number(
    recipe: Any,
    name: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raise `InputError` unless a field is None or a finite number within the bounds."""
    value = getattr(recipe, name)
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and least <= value <= most and above < value < below:
        return
    bounds = [f"at least {least:g}"] * (least > -math.inf) + [f"above {above:g}"] * (
        above > -math.inf
    )
    bounds += [f"at most {most:g}"] * (most < math.inf) + [f"below {below:g}"] * (below < math.inf)
    raise InputError(
        f"{type(recipe).__name__}: {name} is {quoted(value)}; it must be a number, "
        f"{' and '.join(bounds)}"
    )

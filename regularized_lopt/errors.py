"""Error messages that say what was given, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnknownNameError(ValueError):
    """A name (of a task, regularizer, dataset, ...) that nothing is registered under."""


def check_name(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Returns `given` if it is among `allowed`.

    Raises:
      UnknownNameError: with the nearest allowed name and the whole list, on one line.
    """
    names = sorted(allowed)
    if given in names:
        return given
    by_lower = {name.lower(): name for name in names}
    nearest = difflib.get_close_matches(str(given).lower(), by_lower, n=1, cutoff=0.0)
    hint = f" Did you mean {by_lower[nearest[0]]!r}?" if nearest else ""
    raise UnknownNameError(f"Unknown {kind} {given!r}.{hint} Known: {', '.join(names)}.")


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless value > 0."""
    if not value > 0:
        raise ValueError(f"{name} = {value!r}: it must be greater than 0.")


def check_not_negative(name: str, value: float) -> None:
    """Raises ValueError unless value >= 0."""
    if not value >= 0:
        raise ValueError(f"{name} = {value!r}: it must be 0 or greater.")

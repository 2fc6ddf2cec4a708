"""Error messages that say what was given, what is allowed and what to do.

Ranges are checked of numbers that are known. One that is traced, as by `optax.inject_hyperparams`
under `jax.jit`, was checked when it was given.
"""

from __future__ import annotations

import difflib
import importlib.util
import numbers
import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import numpy as np

_T = TypeVar("_T")
_LARGEST = float(np.finfo(np.float32).max)  # What parameters become.


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
    raise UnknownNameError(f"Unknown {kind} {given!r}. {nearest(given, names)}")


def nearest(given: str, allowed: Iterable[str]) -> str:
    """What may have been meant, and all that there is."""
    names = sorted(allowed)
    by_lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(str(given).lower(), by_lower, n=1, cutoff=0.0)
    hint = f"Did you mean {by_lower[found[0]]!r}? " if found else ""
    return f"{hint}Known: {', '.join(names)}."


def check_installed(extra: str, *modules: str) -> None:
    """Raises ModuleNotFoundError unless all modules are there; the message names the extra."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed here and not "
            "installed: "
            f"pip install 'regularized_lopt[{extra}]' (from a clone '.[{extra}]').",
            name=missing[0],
        )


def is_traced(value: Any) -> bool:
    """Whether it is a number that will be known only when a compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def check_file_name(kind: str, name: str, most: int = 100) -> None:
    """Raises ValueError unless files can be called by it, with something before and after.

    Args:
      kind: of thing that has the name, for the message.
      name: given.
      most: bytes; file systems allow 255 with what is added.
    """
    if not name or "/" in name or "\0" in name or len(name.encode()) > most:
        shown = name if len(name) <= most else f"{name[:20]}... ({len(name.encode())} bytes)"
        raise ValueError(
            f"{kind} {shown!r}: files are called by it, so it must have 1 to {most} bytes and no /."
        )


def reason(error: BaseException) -> str:
    """An exception's text on one line; where it has none, its type."""
    return " ".join(str(error).split()) or type(error).__name__


def _is_number(value: Any) -> bool:
    """Whether it has a size; a string, None and an array of several have none."""
    if isinstance(value, np.ndarray | jax.Array):
        return value.ndim == 0
    return isinstance(value, numbers.Real)


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless value > 0, and finite in float32."""
    if is_traced(value):
        return
    if not (_is_number(value) and 0 < value <= _LARGEST):
        raise ValueError(f"{name} = {value!r}: it must be greater than 0, and finite in float32.")


def check_not_negative(name: str, value: float) -> None:
    """Raises ValueError unless value >= 0, and finite in float32."""
    if is_traced(value):
        return
    if not (_is_number(value) and 0 <= value <= _LARGEST):
        raise ValueError(f"{name} = {value!r}: it must be 0 or greater, and finite in float32.")


def check_std(name: str, value: float, dtype: Any = np.float32) -> None:
    """Raises ValueError unless it is > 0, and `dtype` has twice its square, which is divided by."""
    check_positive(name, value)
    kind = np.finfo(dtype)
    least, most = float(kind.tiny) ** 0.5, min(float(kind.max / 2) ** 0.5, _LARGEST)
    if not least <= value <= most:
        raise ValueError(
            f"{name} = {value!r}: it must be from {least:.2g} to {most:.2g}, so that {kind.dtype} "
            "has its square."
        )


def check_in(name: str, value: float, interval: str) -> None:
    """Raises ValueError unless value lies in an interval such as "(0, 1]", which has its 1."""
    if is_traced(value):
        return
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = _is_number(value) and (
        low < value < high
        or (value == low and interval[0] == "[")
        or (value == high and interval[-1] == "]")
    )
    if not inside:
        raise ValueError(f"{name} = {value!r}: it must be in {interval}.")


def check_count(name: str, value: int, least: int = 1, most: int = 2**31 - 1) -> None:
    """Raises ValueError unless least <= value <= most, by default what 32 bits can count.

    Counts set shapes, so that one that is traced is refused.
    """
    if is_traced(value):
        raise ValueError(
            f"{name} is traced, and a program is compiled for its value: give a plain number (to "
            "optax.inject_hyperparams as one of its static_args)."
        )
    try:
        inside = least <= operator.index(value) <= most
    except TypeError:  # No integer.
        inside = False
    if not inside:
        raise ValueError(f"{name} = {value!r}: it must be a whole number from {least} to {most}.")


def call_checked(name: str, function: Callable[..., Any], kind: type[_T], *args: Any) -> _T:
    """What the function, parameter `name`, makes of the arguments, if it is of the right kind.

    Raises:
      TypeError: that is of another kind, or the function does not take them.
    """
    try:
        result = function(*args)
    except TypeError as error:
        raise TypeError(f"{name} could not be called: {error}") from error
    if not isinstance(result, kind):
        raise TypeError(f"{name} returned {result!r}: it must return a {kind.__name__}.")
    return result


def check_seed(name: str, value: int) -> None:
    """Raises ValueError unless it is in 0, ..., 2^32 - 1: of others JAX would drop bits."""
    check_count(name, value, 0, 2**32 - 1)

"""Flatness terms for the outer objective, in meta space and in optimizee space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regularized_lopt import errors
from regularized_lopt.regularizers.base import Regularizer as Regularizer
from regularized_lopt.regularizers.sam import SAM as SAM

_REGISTRY: dict[str, Callable[..., Regularizer]] = {"none": Regularizer, "sam": SAM}


def names() -> tuple[str, ...]:
    """The registered regularizers."""
    return tuple(_REGISTRY)


def get(regularizer: str | Regularizer, **kwargs: Any) -> Regularizer:
    """The regularizer of that name; `kwargs` and gin's parameters go to its constructor.

    Raises:
      errors.UnknownNameError: the name is not registered; the message has the nearest name.
      TypeError: neither a name nor a regularizer.
    """
    if isinstance(regularizer, Regularizer):
        return regularizer
    if not isinstance(regularizer, str):
        raise TypeError(
            f"A regularizer is a name ({', '.join(names())}) or a Regularizer, not {regularizer!r}."
        )
    return _REGISTRY[errors.check_name("regularizer", regularizer, _REGISTRY)](**kwargs)

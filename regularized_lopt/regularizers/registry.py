"""Regularizers by name: ours, and those that users register."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.regularizers.asam import ASAM
from regularized_lopt.regularizers.base import Function, Regularizer
from regularized_lopt.regularizers.gam import GAM
from regularized_lopt.regularizers.gsam import GSAM
from regularized_lopt.regularizers.hessian import HessianFrobenius, HessianTop, HessianTrace
from regularized_lopt.regularizers.l2 import L2
from regularized_lopt.regularizers.orthogonal import Orthogonal
from regularized_lopt.regularizers.sam import SAM

_BUILT_IN: dict[str, Callable[..., Regularizer]] = {
    regularizer.name: regularizer
    for regularizer in (
        Regularizer,
        SAM,
        ASAM,
        GSAM,
        GAM,
        HessianTrace,
        HessianTop,
        HessianFrobenius,
        L2,
        Orthogonal,
    )
}
_REGISTRY = dict(_BUILT_IN)
_F = TypeVar("_F", bound=Callable[..., Any])


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


def register(name: str) -> Callable[[_F], _F]:
    """Makes a function a regularizer, in both spaces, with every estimator that has values::

        @regularizers.register("noisy")
        def noisy(loss_fn, point, *, key, step, deviation=0.01):
            noise = deviation * jax.random.normal(key, point.shape)
            return loss_fn(point + noise)

    It returns the flatness-aware loss at `point` (a pytree), differentiable in it; what it should
    not be differentiated through goes through `jax.lax.stop_gradient`. Then `regularizer = "noisy"`
    in gin, where its other parameters are configurable as well: `noisy.deviation = 0.1`. Those with
    annotations have their types checked.

    Raises:
      ValueError: the name is taken by a regularizer of ours, or the signature is another.
    """
    if name in _BUILT_IN:
        raise ValueError(f"{name!r} is a regularizer of regularized_lopt; choose another name.")

    def decorate(function: _F) -> _F:
        parameters = inspect.signature(function).parameters
        if len(parameters) < 4 or not {"key", "step"} <= set(parameters):
            raise ValueError(
                f"{name!r} has the parameters ({', '.join(parameters)}); a regularizer is a "
                "function of (loss_fn, point, *, key, step) and parameters of its own."
            )
        configured = configurable(name)(function)

        def make(weight: Any = 1.0, **kwargs: Any) -> Regularizer:
            return Function(name, functools.partial(configured, **kwargs), weight)

        _REGISTRY[name] = make
        return function

    return decorate

"""Learned optimizers: subclasses of upstream's `LearnedOptimizer`."""

from __future__ import annotations

from typing import Any, TypeVar

from regularized_lopt import upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.learned_optimizers.coordinatewise import (
    CoordinateWiseLOpt as CoordinateWiseLOpt,
)
from regularized_lopt.learned_optimizers.lstm import LSTMLOpt as LSTMLOpt
from regularized_lopt.learned_optimizers.stabilized import Stabilized as Stabilized
from regularized_lopt.learned_optimizers.star_lstm import StarLSTMLOpt as StarLSTMLOpt
from regularized_lopt.learned_optimizers.star_mlp import StarMLPLOpt as StarMLPLOpt

CLASSES: dict[str, type[upstream.LearnedOptimizer]] = {
    "LSTMLOpt": LSTMLOpt,
    "Stabilized": Stabilized,
    "StarLSTMLOpt": StarLSTMLOpt,
    "StarMLPLOpt": StarMLPLOpt,
}
"""Those that files of trained optimizers may hold, by name."""

_C = TypeVar("_C", bound=type[upstream.LearnedOptimizer])


def register(cls: _C) -> _C:
    """Makes a `LearnedOptimizer` of your own one that gin, `save` and `load` know (a decorator).

    Its instances need an attribute `config`: the constructor's arguments as a dict of JSON types,
    from which `load` makes it again. Then `outer_train.learned_opt = @YourLOpt()` in gin.

    Raises:
      TypeError: it is no `LearnedOptimizer`.
      ValueError: another class has that name.
    """
    if not issubclass(cls, upstream.LearnedOptimizer):
        raise TypeError(f"{cls.__name__} is no LearnedOptimizer of learned_optimization's.")
    if cls.__name__ in CLASSES:
        raise ValueError(f"A learned optimizer {cls.__name__!r} is registered; rename yours.")
    CLASSES[cls.__name__] = configurable()(cls)
    return cls


def make(name: str, config: dict[str, Any]) -> Any:
    """The optimizer of a class in `CLASSES`; what is nested in its config is made first.

    Raises:
      KeyError: there is no class of the name.
      TypeError: it does not take these arguments.
    """
    made = {
        key: make(value["class"], value["config"]) if _is_nested(value) else value
        for key, value in config.items()
    }
    return CLASSES[name](**made)


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"class", "config"}

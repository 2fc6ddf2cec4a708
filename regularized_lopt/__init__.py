"""Meta-train learned optimizers that find flat minima of ordinary losses.

A plugin for learned_optimization.

Importing this package makes the installed learned_optimization work on a current JAX (see
`upstream`) and registers our gin configurables. The names below are loaded when they are first
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from regularized_lopt import upstream as upstream

if TYPE_CHECKING:
    from regularized_lopt import regularizers as regularizers
    from regularized_lopt import tasks as tasks
    from regularized_lopt import zoo as zoo
    from regularized_lopt.learned_optimizers import LSTMLOpt as LSTMLOpt
    from regularized_lopt.outer_training.curriculum import Curriculum as Curriculum
    from regularized_lopt.outer_training.truncated_grad import (
        RegularizedTruncatedGrad as RegularizedTruncatedGrad,
    )
    from regularized_lopt.outer_training.truncated_step import (
        RegularizedTruncatedStep as RegularizedTruncatedStep,
    )
    from regularized_lopt.regularizers import SAM as SAM
    from regularized_lopt.zoo import LoadedLOpt as LoadedLOpt
    from regularized_lopt.zoo import load as load
    from regularized_lopt.zoo import save as save

__version__ = "0.1.0"

_LAZY = {
    "regularizers": "regularized_lopt.regularizers",
    "tasks": "regularized_lopt.tasks",
    "zoo": "regularized_lopt.zoo",
    "LSTMLOpt": "regularized_lopt.learned_optimizers",
    "Curriculum": "regularized_lopt.outer_training.curriculum",
    "RegularizedTruncatedGrad": "regularized_lopt.outer_training.truncated_grad",
    "RegularizedTruncatedStep": "regularized_lopt.outer_training.truncated_step",
    "SAM": "regularized_lopt.regularizers",
    "LoadedLOpt": "regularized_lopt.zoo",
    "load": "regularized_lopt.zoo",
    "save": "regularized_lopt.zoo",
}
__all__ = [*_LAZY, "upstream"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(
            f"module 'regularized_lopt' has no attribute {name!r}; it has {', '.join(__all__)}."
        )
    module = importlib.import_module(_LAZY[name])
    return module if module.__name__.endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)


# Gin finds a configurable only once its module is imported.
importlib.import_module("regularized_lopt.outer_training")

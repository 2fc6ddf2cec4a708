"""Learned optimizers: subclasses of upstream's `LearnedOptimizer`."""

from __future__ import annotations

from regularized_lopt.learned_optimizers.constructors import CLASSES as CLASSES
from regularized_lopt.learned_optimizers.constructors import describe as describe
from regularized_lopt.learned_optimizers.constructors import make as make
from regularized_lopt.learned_optimizers.constructors import register as register
from regularized_lopt.learned_optimizers.coordinatewise import (
    CoordinateWiseLOpt as CoordinateWiseLOpt,
)
from regularized_lopt.learned_optimizers.lstm import LSTMLOpt as LSTMLOpt
from regularized_lopt.learned_optimizers.meta_lstm import MetaLSTMLOpt as MetaLSTMLOpt
from regularized_lopt.learned_optimizers.simple import SimpleLOpt as SimpleLOpt
from regularized_lopt.learned_optimizers.stabilized import Stabilized as Stabilized
from regularized_lopt.learned_optimizers.star_lstm import StarLSTMLOpt as StarLSTMLOpt
from regularized_lopt.learned_optimizers.star_mlp import StarMLPLOpt as StarMLPLOpt

CLASSES |= {
    "LSTMLOpt": LSTMLOpt,
    "MetaLSTMLOpt": MetaLSTMLOpt,
    "SimpleLOpt": SimpleLOpt,
    "Stabilized": Stabilized,
    "StarLSTMLOpt": StarLSTMLOpt,
    "StarMLPLOpt": StarMLPLOpt,
}

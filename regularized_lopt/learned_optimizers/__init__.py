"""Learned optimizers: `LearnedOptimizer`s of upstream's interface."""

from regularized_lopt.learned_optimizers.lstm import LSTMLOpt as LSTMLOpt
from regularized_lopt.learned_optimizers.lstm import LSTMOptState as LSTMOptState

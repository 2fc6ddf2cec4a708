"""Optimizers on the noisy quadratic problem (Harrison, Metz & Sohl-Dickstein 2022, Section 4)."""

from regularized_lopt.measure.noisy_quadratic.linearization import Linearization as Linearization
from regularized_lopt.measure.noisy_quadratic.linearization import Linearized as Linearized
from regularized_lopt.measure.noisy_quadratic.linearization import check as check
from regularized_lopt.measure.noisy_quadratic.linearization import linearize as linearize
from regularized_lopt.measure.noisy_quadratic.meta_gradient import (
    GradientVariance as GradientVariance,
)
from regularized_lopt.measure.noisy_quadratic.meta_gradient import (
    gradient_variance as gradient_variance,
)
from regularized_lopt.measure.noisy_quadratic.meta_training import MetaTraining as MetaTraining
from regularized_lopt.measure.noisy_quadratic.meta_training import meta_train as meta_train
from regularized_lopt.measure.noisy_quadratic.problem import NoisyQuadratic as NoisyQuadratic
from regularized_lopt.measure.noisy_quadratic.stability import Stability as Stability
from regularized_lopt.measure.noisy_quadratic.stability import eigenvalue_maps as eigenvalue_maps
from regularized_lopt.measure.noisy_quadratic.stability import try_statements as try_statements

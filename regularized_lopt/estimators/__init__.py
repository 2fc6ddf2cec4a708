"""Estimators of theta's gradient, and the inner problem that they unroll."""

from regularized_lopt.estimators.evolution import (
    RegularizedTruncatedES as RegularizedTruncatedES,
)
from regularized_lopt.estimators.evolution import (
    RegularizedTruncatedPES as RegularizedTruncatedPES,
)
from regularized_lopt.estimators.flatness_aware import FlatnessAwareFamily as FlatnessAwareFamily
from regularized_lopt.estimators.regularized_estimator import (
    RegularizedEstimator as RegularizedEstimator,
)
from regularized_lopt.estimators.regularized_estimator import regularized as regularized
from regularized_lopt.estimators.truncated_grad import (
    RegularizedTruncatedGrad as RegularizedTruncatedGrad,
)
from regularized_lopt.estimators.truncated_step import (
    RegularizedTruncatedStep as RegularizedTruncatedStep,
)

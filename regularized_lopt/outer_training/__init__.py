"""Outer training: estimators of theta's gradient, the curriculum, and the loop around them."""

from regularized_lopt.outer_training.curriculum import Curriculum as Curriculum
from regularized_lopt.outer_training.curriculum import (
    StagedTruncationSchedule as StagedTruncationSchedule,
)
from regularized_lopt.outer_training.flatness_aware import (
    FlatnessAwareFamily as FlatnessAwareFamily,
)
from regularized_lopt.outer_training.regularized_estimator import (
    RegularizedEstimator as RegularizedEstimator,
)
from regularized_lopt.outer_training.regularized_estimator import regularized as regularized
from regularized_lopt.outer_training.run import OuterTrainResult as OuterTrainResult
from regularized_lopt.outer_training.run import outer_train as outer_train
from regularized_lopt.outer_training.theta_optimizer import (
    theta_learning_rate as theta_learning_rate,
)
from regularized_lopt.outer_training.theta_optimizer import theta_optimizer as theta_optimizer
from regularized_lopt.outer_training.truncated_grad import (
    RegularizedTruncatedGrad as RegularizedTruncatedGrad,
)
from regularized_lopt.outer_training.truncated_step import (
    RegularizedTruncatedStep as RegularizedTruncatedStep,
)

"""Outer training: the curriculum, theta's optimizer, populations, checkpoints, and the loop."""

from regularized_lopt.outer_training.curriculum import Curriculum as Curriculum
from regularized_lopt.outer_training.curriculum import (
    StagedTruncationSchedule as StagedTruncationSchedule,
)
from regularized_lopt.outer_training.run import OuterTrainResult as OuterTrainResult
from regularized_lopt.outer_training.run import outer_train as outer_train
from regularized_lopt.outer_training.theta_optimizer import (
    theta_learning_rate as theta_learning_rate,
)
from regularized_lopt.outer_training.theta_optimizer import theta_optimizer as theta_optimizer

"""Meta-train learned optimizers that find flat minima of ordinary losses.

A plugin for learned_optimization.

Importing this package makes the installed learned_optimization work on a current JAX (see
`upstream`) and registers our gin configurables.
"""

# Gin finds a configurable only once its module is imported.
from regularized_lopt import estimators as estimators
from regularized_lopt import outer_training as outer_training
from regularized_lopt import regularizers as regularizers
from regularized_lopt import tasks as tasks
from regularized_lopt import upstream as upstream
from regularized_lopt import zoo as zoo
from regularized_lopt._version import __version__ as __version__
from regularized_lopt.estimators import RegularizedTruncatedES as RegularizedTruncatedES
from regularized_lopt.estimators import RegularizedTruncatedGrad as RegularizedTruncatedGrad
from regularized_lopt.estimators import RegularizedTruncatedPES as RegularizedTruncatedPES
from regularized_lopt.estimators import RegularizedTruncatedStep as RegularizedTruncatedStep
from regularized_lopt.learned_optimizers import LSTMLOpt as LSTMLOpt
from regularized_lopt.outer_training import Curriculum as Curriculum
from regularized_lopt.regularizers import SAM as SAM
from regularized_lopt.zoo import LoadedLOpt as LoadedLOpt
from regularized_lopt.zoo import load as load
from regularized_lopt.zoo import save as save

"""A trained learned optimizer as an `optax.GradientTransformation`."""

from regularized_lopt.optax_bridge.any_optimizer import from_optimizer as from_optimizer
from regularized_lopt.optax_bridge.bridge import as_optax as as_optax
from regularized_lopt.optax_bridge.by_coordinate import ByCoordinateState as ByCoordinateState
from regularized_lopt.optax_bridge.by_tensor import ByTensorState as ByTensorState
from regularized_lopt.optax_bridge.mixing import MixedState as MixedState

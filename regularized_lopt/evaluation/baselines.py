"""SGD and Adam, each with a learning rate tuned on the meta-test train split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from regularized_lopt import upstream


@flax.struct.dataclass
class OptaxState:
    """Params, the optimizee's non-trained state, and optax's own state."""

    params: Any
    state: Any
    optax_state: Any


class OptaxBaseline(upstream.Optimizer):
    """An optax optimizer behind upstream's interface, whose learning rate may be a traced array.

    Upstream's own wrapper is jitted with the learning rate baked in; here a whole grid of rates is
    one program.
    """

    def __init__(
        self, name: str, make: Callable[[Any], optax.GradientTransformation], learning_rate: Any
    ):
        self._name = name
        self._transformation = make(learning_rate)

    @property
    def name(self) -> str:
        return self._name

    def init(
        self,
        params: Any,
        model_state: Any = None,
        num_steps: Any = None,
        key: Any = None,
        **kwargs: Any,
    ) -> OptaxState:
        del num_steps, key, kwargs
        return OptaxState(params, model_state, self._transformation.init(params))

    def update(
        self,
        opt_state: OptaxState,
        grad: Any,
        model_state: Any = None,
        key: Any = None,
        **kwargs: Any,
    ) -> OptaxState:
        del key, kwargs
        updates, optax_state = self._transformation.update(
            grad, opt_state.optax_state, opt_state.params
        )
        return OptaxState(optax.apply_updates(opt_state.params, updates), model_state, optax_state)


BASELINES: Mapping[str, Callable[[Any], upstream.Optimizer]] = {
    "SGD": lambda rate: OptaxBaseline("SGD", optax.sgd, rate),
    "Adam": lambda rate: OptaxBaseline("Adam", optax.adam, rate),
}
"""Baselines as functions of their learning rate."""

LEARNING_RATES: Mapping[str, jax.Array] = {
    "SGD": jnp.geomspace(0.01, 10.0, 10),
    "Adam": jnp.geomspace(1e-4, 0.1, 10),
}
"""The grids that are searched: ten rates, three decades."""

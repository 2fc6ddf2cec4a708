"""`StarMLPLOpt` with its weights, as upstream's training loops call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp

from regularized_lopt import upstream
from regularized_lopt.learned_optimizers import leaves
from regularized_lopt.learned_optimizers.star_features import Averages

if TYPE_CHECKING:
    from regularized_lopt.learned_optimizers.star_mlp import StarMLPLOpt

Theta = dict[str, Any]
Params = Any


@flax.struct.dataclass
class StarMLPOptState:
    """State of the optimizer: what a training loop carries from step to step.

    Attributes:
      params: the optimizee's weights, any pytree.
      state: the optimizee's non-trained state (`ModelState` upstream), or None.
      averages: one `Averages` for every floating leaf of `params`, in order.
      iteration: inner steps taken, int32 scalar.
    """

    params: Params
    state: Any
    averages: tuple[Averages, ...]
    iteration: jax.Array


class StarMLPOptimizer(upstream.Optimizer):
    """`StarMLPLOpt` with its weights: the interface of upstream's optimizers."""

    def __init__(self, lopt: StarMLPLOpt, theta: Theta, is_training: bool):
        self._lopt = lopt
        self._theta = theta
        self._is_training = is_training

    @property
    def name(self) -> str:
        return self._lopt.name

    def init(
        self,
        params: Params,
        model_state: Any = None,
        num_steps: int | None = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> StarMLPOptState:
        """Starts a run. `num_steps` and `key` are accepted and not needed."""
        del num_steps, key, kwargs
        leaves.check(params)
        trained = filter(leaves.is_trained, jax.tree.leaves(params))
        return StarMLPOptState(
            params=params,
            state=model_state,
            averages=tuple(map(self._lopt.initial_averages, trained)),
            iteration=jnp.asarray(0, jnp.int32),
        )

    def set_params(self, state: StarMLPOptState, params: Params) -> StarMLPOptState:
        return state.replace(params=params)  # type: ignore[attr-defined]

    def update(
        self,
        opt_state: StarMLPOptState,
        grad: Params,
        loss: jax.Array | None = None,
        model_state: Any = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> StarMLPOptState:
        """One inner step; `grad` is shaped like the params."""
        del loss, key, kwargs
        leaves.check_gradients(grad, opt_state.params)
        moved: list[Any] = jax.tree.leaves(opt_state.params)
        treedef: Any = jax.tree.structure(opt_state.params)
        trained = [index for index, leaf in enumerate(moved) if leaves.is_trained(leaf)]
        gradients = leaves.trained_gradients(grad, opt_state.params)
        params = [jnp.asarray(moved[index]) for index in trained]
        if not self._lopt.second_derivatives:
            gradients = jax.lax.stop_gradient(gradients)
        step = opt_state.iteration
        if self._is_training and trained:
            found = self._lopt.update_tensors(
                self._theta, opt_state.averages, gradients, params, step
            )
        else:
            found = self._lopt.update(self._theta, opt_state.averages, gradients, params, step)
        for index, param, (update, _) in zip(trained, params, found, strict=True):
            moved[index] = leaves.added_to(param, update)
        return StarMLPOptState(
            params=treedef.unflatten(moved),
            state=model_state,
            averages=tuple(new for _, new in found),
            iteration=opt_state.iteration + 1,
        )

"""What makes an optax optimizer look for flat minima; the baselines with it are in `optimizers`.

Each wraps an optimizer and needs `grad_fn(params, 0)`, the gradient on this step's batch, wherever
it takes one. The params outside are those to evaluate: never perturbed, and of an average the
average. A program that does not use the gradient that it gives does not compute it (XLA drops it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regularized_lopt import errors

GradFn = Callable[[Any, int], Any]


def sam(optimizer: optax.GradientTransformation, rho: float) -> optax.GradientTransformation:
    """SAM: the gradient at params + rho g / ||g||; two gradients per step.

    Foret et al. 2021, arXiv 2010.01412.

    Args:
      optimizer: what takes that gradient.
      rho: radius (global l2 norm), > 0.
    """
    errors.check_positive("sam.rho", rho)
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
    return optax.contrib.sam(optimizer, ascent, opaque_mode=True)


def msam(
    optimizer: optax.GradientTransformation, buffer: str, rho: float
) -> optax.GradientTransformationExtraArgs:
    """Momentum-SAM: the gradient at params - rho v / ||v||; one gradient per step.

    v is the momentum buffer before the step, over all params; while it is 0, nothing is perturbed.
    With SGD, v <- momentum v + g and params <- params - rate v, as in Becker et al. 2024, arXiv
    2401.12033, whose params are kept perturbed between steps: the sequence is the same. With Adam
    v is the first moment, whose bias correction cancels.

    Args:
      optimizer: what takes that gradient.
      buffer: what optax calls v in its state: "trace" of SGD with momentum, "mu" of Adam.
      rho: radius (global l2 norm), >= 0; at 0 it is `optimizer`.

    Raises:
      ValueError: there is no such buffer, or no `grad_fn`.
    """
    errors.check_not_negative("msam.rho", rho)

    def init(params: Any) -> Any:
        state = optimizer.init(params)
        if optax.tree.get(state, buffer) is None:
            raise ValueError(f"msam.buffer = {buffer!r}: the optimizer's state has none of that.")
        return state

    def update(
        grad: Any, state: Any, params: Any, *, grad_fn: GradFn | None = None, **_: Any
    ) -> Any:
        del grad  # At params.
        v = optax.tree.get(state, buffer)
        norm = optax.tree.norm(v)
        # Both branches of a `where` are computed.
        scale = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1), 0)
        perturbed = jax.tree.map(lambda leaf, ascent: leaf - scale * ascent, params, v)
        return optimizer.update(_needed("msam", grad_fn)(perturbed, 0), state, params)

    return optax.GradientTransformationExtraArgs(init, update)


class AveragedState(NamedTuple):
    """Of `averaged`: the params that are trained, the optimizer's state, the average's."""

    trained: Any
    optimizer: Any
    average: Any


def averaged(
    optimizer: optax.GradientTransformation, decay: float
) -> optax.GradientTransformationExtraArgs:
    """Params are an exponential moving average of those that are trained; one gradient per step.

    After t steps they are the sum over s = 1, ..., t of decay^(t - s) trained_s, divided by the
    sum of these weights (`optax.ema`, with its bias correction): inits have no part in them.

    Args:
      optimizer: what trains.
      decay: in [0, 1); at 0 it is `optimizer`, to rounding.

    Raises:
      ValueError: there is no `grad_fn`.
    """
    errors.check_in("averaged.decay", decay, "[0, 1)")
    ema = optax.ema(decay)

    def init(params: Any) -> AveragedState:
        return AveragedState(params, optimizer.init(params), ema.init(params))

    def update(
        grad: Any, state: AveragedState, params: Any, *, grad_fn: GradFn | None = None, **_: Any
    ) -> tuple[Any, AveragedState]:
        del grad  # At the average.
        grad = _needed("averaged", grad_fn)(state.trained, 0)
        updates, optimizer_state = optimizer.update(grad, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        average, ema_state = ema.update(trained, state.average)
        updates = jax.tree.map(jnp.subtract, average, params)
        return updates, AveragedState(trained, optimizer_state, ema_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _needed(name: str, grad_fn: GradFn | None) -> GradFn:
    if grad_fn is None:
        raise ValueError(f"{name} takes its gradient elsewhere than at params: give grad_fn.")
    return grad_fn

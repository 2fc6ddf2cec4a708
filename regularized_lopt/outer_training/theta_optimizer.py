"""The optimizer of theta, from optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.regularizers.schedules import Scheduled, check, is_zero

_SCHEDULES = ("constant", "cosine", "linear")
_OPTIMIZERS = ("adam", "adamw", "sgd")


@configurable()
def theta_learning_rate(
    learning_rate: Scheduled = 1e-3,
    schedule: str = "constant",
    schedule_steps: int | None = None,
    final_fraction: float = 0.0,
) -> optax.Schedule:
    """The learning rate of theta, a function of the outer step.

    Args:
      learning_rate: at outer step 0, a number > 0; or a schedule, which is multiplied with what
        `schedule` says.
      schedule: "constant", "cosine" or "linear" decay.
      schedule_steps: outer steps over which it decays, > 0; needed unless constant.
      final_fraction: where it decays to, as a share of `learning_rate`, in [0, 1].

    Raises:
      ValueError: an argument is out of its range.
    """
    errors.check_name("theta_learning_rate.schedule", schedule, _SCHEDULES)
    check("theta_learning_rate.learning_rate", learning_rate)
    if not callable(learning_rate):
        errors.check_positive("theta_learning_rate.learning_rate", learning_rate)
    errors.check_in("theta_learning_rate.final_fraction", final_fraction, "[0, 1]")
    if schedule_steps is not None:
        errors.check_count("theta_learning_rate.schedule_steps", schedule_steps)
    if callable(learning_rate):
        given = learning_rate
        share = theta_learning_rate(1.0, schedule, schedule_steps, final_fraction)
        return lambda step: given(step) * share(step)
    if schedule == "constant":
        return optax.constant_schedule(learning_rate)
    if schedule_steps is None:
        raise ValueError(
            f"theta_learning_rate.schedule = {schedule!r} needs theta_learning_rate.schedule_steps."
        )
    if schedule == "cosine":
        return optax.cosine_decay_schedule(learning_rate, schedule_steps, final_fraction)
    return optax.linear_schedule(learning_rate, final_fraction * learning_rate, schedule_steps)


@configurable()
def theta_optimizer(
    name: str = "adam",
    clip_norm: float | None = 1.0,
    clip_value: float | None = None,
    momentum: float = 0.0,
    decay: Scheduled | None = None,
) -> optax.GradientTransformation:
    """The optimizer of theta; its learning rate is `theta_learning_rate`.

    Args:
      name: "adam", "adamw" or "sgd".
      clip_norm: global norm that the total gradient is clipped to, once, after all corrections;
        > 0; None: no clipping.
      clip_value: bound on each element of the total gradient, before `clip_norm`, > 0; None: none.
      momentum: of SGD alone, in [0, 1).
      decay: of AdamW alone: theta shrinks by the learning rate times this at every step, in [0, 1],
        or a schedule; default: 0.1; STAR (Harrison et al. 2022) has 0.1 to 0.5. Matrices shrink,
        i.e. a network's weights; not its biases, nor what is no network, such as learned decays and
        scales.

    Raises:
      ValueError: an argument is out of its range, or not of this optimizer.
    """
    errors.check_name("theta_optimizer.name", name, _OPTIMIZERS)
    errors.check_in("theta_optimizer.momentum", momentum, "[0, 1)")
    if not is_zero(momentum) and name != "sgd":
        raise ValueError(f"theta_optimizer.momentum = {momentum} is of SGD, not of {name!r}.")
    if decay is not None and name != "adamw":
        raise ValueError(f"theta_optimizer.decay = {decay} is of AdamW, not of {name!r}.")
    decay = 0.1 if decay is None else decay
    if callable(decay):
        check("theta_optimizer.decay", decay)
    else:
        errors.check_in("theta_optimizer.decay", decay, "[0, 1]")
    if clip_norm is not None:
        errors.check_positive("theta_optimizer.clip_norm", clip_norm)
    if clip_value is not None:
        errors.check_positive("theta_optimizer.clip_value", clip_value)
    rate = theta_learning_rate()
    if name == "adam":
        step = optax.adam(rate)
    elif name == "adamw":
        step = optax.adamw(rate, weight_decay=decay, mask=_matrices)
    else:
        step = optax.sgd(rate, None if is_zero(momentum) else momentum)
    if clip_norm is not None:
        step = optax.chain(optax.clip_by_global_norm(clip_norm), step)
    return step if clip_value is None else optax.chain(optax.clip(clip_value), step)


def _matrices(theta: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, theta)

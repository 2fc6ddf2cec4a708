"""The optimizer of theta, from optax."""

from __future__ import annotations

import gin
import optax

from regularized_lopt import errors

_SCHEDULES = ("constant", "cosine", "linear")
_OPTIMIZERS = ("adam", "sgd")


@gin.configurable
def theta_learning_rate(
    learning_rate: float = 1e-3,
    schedule: str = "constant",
    schedule_steps: int | None = None,
    final_fraction: float = 0.0,
) -> optax.Schedule:
    """The learning rate of theta, a function of the outer step.

    Args:
      learning_rate: at outer step 0, > 0.
      schedule: "constant", "cosine" or "linear" decay.
      schedule_steps: outer steps over which it decays; needed unless constant.
      final_fraction: where it decays to, as a share of `learning_rate`.
    """
    errors.check_name("learning rate schedule", schedule, _SCHEDULES)
    errors.check_positive("theta_learning_rate.learning_rate", learning_rate)
    if schedule == "constant":
        return optax.constant_schedule(learning_rate)
    if schedule_steps is None:
        raise ValueError(
            f"theta_learning_rate.schedule = {schedule!r} needs theta_learning_rate.schedule_steps."
        )
    errors.check_positive("theta_learning_rate.schedule_steps", schedule_steps)
    if schedule == "cosine":
        return optax.cosine_decay_schedule(learning_rate, schedule_steps, final_fraction)
    return optax.linear_schedule(learning_rate, final_fraction * learning_rate, schedule_steps)


@gin.configurable
def theta_optimizer(
    name: str = "adam", clip_norm: float | None = 1.0, momentum: float = 0.0
) -> optax.GradientTransformation:
    """The optimizer of theta; its learning rate is `theta_learning_rate`.

    Args:
      name: "adam" or "sgd".
      clip_norm: global norm that the total gradient is clipped to, once, after all corrections;
        None: no clipping.
      momentum: of SGD.
    """
    errors.check_name("theta optimizer", name, _OPTIMIZERS)
    rate = theta_learning_rate()
    step = optax.adam(rate) if name == "adam" else optax.sgd(rate, momentum or None)
    return step if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), step)

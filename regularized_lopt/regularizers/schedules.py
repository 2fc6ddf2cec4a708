"""Strengths and radii that change over outer training.

Wherever a regularizer takes a weight, strength or radius, it takes a schedule too: a function of
the outer step, such as optax's. In gin::

    SAM.rho = @linear_schedule()
    linear_schedule.init_value = 0.0
    linear_schedule.end_value = 0.05
    linear_schedule.transition_steps = 1000

`constant_schedule`, `linear_schedule` and `cosine_decay_schedule` are optax's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gin
import jax
import jax.numpy as jnp
import optax

from regularized_lopt import errors
from regularized_lopt.configurable import configurable

Schedule = Callable[[Any], Any]
Scheduled = float | Schedule


class Dose:
    """A schedule, constant over outer steps, whose value each member of a population brings.

    Attributes:
      value: of the member at hand; None: there is none.
    """

    value: Any = None

    def __call__(self, step: Any) -> Any:
        """The value of the member at hand, float32.

        Raises:
          ValueError: it is asked for when something is made, once for all members.
        """
        del step
        if self.value is None:
            raise ValueError(
                "outer_train.doses has a parameter that is read when something else is made, such "
                "as the learning rate of a proportional_schedule: members cannot differ in it"
            )
        return jnp.asarray(self.value, jnp.float32)

    def __deepcopy__(self, memo: Any) -> Dose:
        """Itself: gin hands out copies of what is bound."""
        return self

    def __repr__(self) -> str:
        return "a dose"


for _schedule in (
    optax.constant_schedule,
    optax.linear_schedule,
    optax.cosine_decay_schedule,
):
    configurable(module="optax")(_schedule)


def value_at(value: Scheduled, step: Any) -> Any:
    """The value at an outer step; numbers are constant."""
    return value(step) if callable(value) else value


def check(name: str, value: Scheduled) -> Scheduled:
    """The value, if it is a number >= 0 or a schedule.

    Raises:
      ValueError: it is neither; `name` is what the message calls it.
    """
    if isinstance(value, Dose):  # Each member's own is checked.
        return value
    if not callable(value):
        errors.check_not_negative(name, value)
        return value
    try:
        number = jax.eval_shape(lambda step: jnp.asarray(value(step), float), 0)
    except Exception as error:  # Whatever a function raises that is no schedule.
        raise ValueError(
            f"{name} = {value!r}: a schedule takes the outer step and returns a number; called "
            f"with a step, this one fails ({' '.join(str(error).split())[:200]})."
        ) from error
    if number.shape:
        raise ValueError(
            f"{name} = {value!r}: a schedule returns a number, this one an array of shape "
            f"{number.shape}."
        )
    return value


def is_zero(value: Any) -> bool:
    """Whether it is the number 0, known before anything runs: the work can be left out."""
    return isinstance(value, int | float) and value == 0


def is_one(value: Any) -> bool:
    """Whether it is the number 1, known before anything runs."""
    return isinstance(value, int | float) and value == 1


@configurable()
def proportional_schedule(
    minimum: float = gin.REQUIRED,
    maximum: float = gin.REQUIRED,
    learning_rate: Schedule = gin.REQUIRED,
    num_steps: int = gin.REQUIRED,
) -> Schedule:
    """A radius tied to the learning rate of theta, as GSAM and GAM use it.

    minimum + (maximum - minimum) (lr_t - lr_min) / (lr_max - lr_min); the maximum where the rate is
    constant. Source: Zhuang et al. 2022.

    Args:
      minimum: value at the lowest learning rate, >= 0.
      maximum: value at the highest, >= minimum.
      learning_rate: schedule of theta's optimizer, in gin @theta_learning_rate().
      num_steps: outer steps among which the lowest and highest rates are found, 1 to 10^7.

    Raises:
      ValueError: an argument is out of its range.
    """
    errors.check_not_negative("proportional_schedule.minimum", minimum)
    errors.check_not_negative("proportional_schedule.maximum", maximum)
    errors.check_not_negative("proportional_schedule.maximum - minimum", maximum - minimum)
    errors.check_count("proportional_schedule.num_steps", num_steps, most=10**7)
    check("proportional_schedule.learning_rate", learning_rate)
    rates = jax.vmap(lambda step: jnp.asarray(learning_rate(step), float))(
        jnp.arange(num_steps + 1)
    )
    lowest, highest = float(rates.min()), float(rates.max())
    if highest == lowest:
        return optax.constant_schedule(maximum)

    def schedule(step: Any) -> Any:
        share = (learning_rate(step) - lowest) / (highest - lowest)
        return minimum + (maximum - minimum) * jnp.clip(share, 0.0, 1.0)

    return schedule

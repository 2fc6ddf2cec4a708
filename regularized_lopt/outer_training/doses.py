"""Doses: number-valued gin parameters of which every member of a population has its own value."""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
import jax.numpy as jnp

from regularized_lopt import errors
from regularized_lopt.configurable import hints
from regularized_lopt.regularizers.schedules import Schedule


class Dose:
    """A schedule, constant over outer steps, whose value each member brings."""

    def __init__(self) -> None:
        self.value: Any = 1.0

    def __call__(self, step: Any) -> Any:
        """The value of the member at hand, float32."""
        del step
        return jnp.asarray(self.value, jnp.float32)

    def __deepcopy__(self, memo: Any) -> Dose:
        """Itself: gin hands out copies of what is bound."""
        return self


class Doses:
    """The doses of a population: gin parameters that are bound to a `Dose` each.

    Attributes:
      schedules: by gin name, e.g. "SAM.rho".
    """

    def __init__(self, names: Sequence[str] = ()):
        """Initializer.

        Args:
          names: gin parameters that take a number or a schedule, e.g. "SAM.rho", "meta/SAM.rho".

        Raises:
          ValueError: there is no such parameter, or it takes no schedule.
        """
        for name in names:
            _check_takes_schedule(name)
        self.schedules = {name: Dose() for name in names}

    @contextlib.contextmanager
    def given(self, values: Sequence[Any]) -> Iterator[None]:
        """What is traced or called meanwhile is that of a member with these `values`."""
        schedules = list(self.schedules.values())
        before = [dose.value for dose in schedules]
        for dose, value in zip(schedules, values, strict=True):
            dose.value = value
        try:
            yield
        finally:
            for dose, value in zip(schedules, before, strict=True):
                dose.value = value


def check(doses: Mapping[str, Sequence[float]], num_members: int) -> None:
    """Raises ValueError unless there is one number per member."""
    for name, values in doses.items():
        parameter = f"outer_train.doses[{name!r}]"
        if len(values) != num_members:
            raise ValueError(
                f"{parameter} has {len(values)} values, and outer_train.seeds {num_members} "
                "members: give one value per member."
            )
        for value in values:
            errors.check_not_negative(parameter, value)


def _check_takes_schedule(name: str) -> None:
    selector, _, parameter = name.rpartition(".")
    try:
        made = gin.get_configurable(selector.rpartition("/")[-1])
    except ValueError as error:
        raise ValueError(
            f"outer_train.doses: {name!r} is no gin parameter ({errors.reason(error)}). Write for "
            "example 'SAM.rho'."
        ) from error
    function = made.__init__ if inspect.isclass(made) else made
    errors.check_name(
        f"parameter of {selector} in outer_train.doses",
        parameter,
        [one for one in inspect.signature(function).parameters if one != "self"],
    )
    if Schedule not in typing.get_args(hints(function).get(parameter)):
        raise ValueError(
            f"outer_train.doses: {name!r} is fixed when the program is compiled, so that members "
            "cannot differ in it. A dose is a parameter that takes a number or a schedule: a "
            "radius, a strength or a weight of a regularizer, Smoothing.strength, "
            "theta_learning_rate.learning_rate or theta_optimizer.decay. Run the others one by one."
        )

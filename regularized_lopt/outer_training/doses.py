"""Doses: number-valued gin parameters of which every member of a population has its own value."""

from __future__ import annotations

import contextlib
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin

from regularized_lopt import errors
from regularized_lopt.configurable import hints
from regularized_lopt.regularizers.schedules import Dose, Schedule


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
        found: dict[Any, str] = {}
        for name in names:
            where = _check_takes_schedule(name)
            if where in found:
                raise ValueError(
                    f"outer_train.doses: {found[where]!r} and {name!r} are the same parameter. "
                    "Leave one of them out."
                )
            found[where] = name
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
    """Raises ValueError unless members can differ in these, and there is one number for each."""
    Doses(tuple(doses))
    for name, values in doses.items():
        parameter = f"outer_train.doses[{name!r}]"
        if len(values) != num_members:
            raise ValueError(
                f"{parameter} has {len(values)} values, and outer_train.seeds {num_members} "
                "members: give one value per member."
            )
        for value in values:
            errors.check_not_negative(parameter, value)


def _check_takes_schedule(name: str) -> tuple[str, str, str]:
    """Scope, selector and parameter, if the parameter takes a number or a schedule."""
    selector, _, parameter = name.rpartition(".")
    try:
        if not re.fullmatch(r"[\w./]+", name):
            raise SyntaxError("it has other signs than letters, digits, '_', '.' and '/'")
        made = gin.get_configurable(selector.rpartition("/")[-1])
    except (ValueError, SyntaxError) as error:
        raise _no_parameter(name, error) from error
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
    try:
        key = gin.config.ParsedBindingKey.parse(name)
    except (ValueError, SyntaxError) as error:  # Its scope is no gin.
        raise _no_parameter(name, error) from error
    return key.scope, key.complete_selector, key.arg_name


def _no_parameter(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"outer_train.doses: {name!r} is no gin parameter ({errors.reason(error)}). Write for "
        "example 'SAM.rho'."
    )

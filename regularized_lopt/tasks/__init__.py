"""Tasks: `names()` lists them, `get(name)` builds one, gin knows them by the same names."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import gin

from regularized_lopt import errors, upstream
from regularized_lopt.tasks import autoencoder as autoencoder
from regularized_lopt.tasks import class_pairs, regression, resident
from regularized_lopt.tasks import es_wrapped as es_wrapped
from regularized_lopt.tasks import text as text
from regularized_lopt.tasks.class_pairs import ClassPairFamily as ClassPairFamily
from regularized_lopt.tasks.class_pairs import class_split as class_split
from regularized_lopt.tasks.image import ImageTask as ImageTask
from regularized_lopt.tasks.regression import CubicRegression as CubicRegression
from regularized_lopt.tasks.regression import CubicRegressionFamily as CubicRegressionFamily
from regularized_lopt.tasks.resident import ResidentTask as ResidentTask

_FACTORIES: dict[str, Callable[..., upstream.Task | upstream.TaskFamily]] = {
    **resident.FACTORIES,
    **class_pairs.FACTORIES,
    "CubicRegression": regression.CubicRegression,
    "CubicRegressionFamily": regression.CubicRegressionFamily,
}


def __getattr__(name: str) -> Callable[..., ResidentTask]:
    """Tasks are attributes of the module, too."""
    if name not in resident.FACTORIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resident.FACTORIES[name]


def names() -> tuple[str, ...]:
    """The tasks and task families of this package."""
    return tuple(_FACTORIES)


def get(name: str, phase: str = "meta_test") -> upstream.Task | upstream.TaskFamily:
    """Builds a task or family of ours, or any in gin's registry (upstream's included).

    Args:
      name: one of `names()`, or the gin name of another task.
      phase: "meta_train" or "meta_test": which part of the data the task sees (tasks that have
        phases).

    Raises:
      errors.UnknownNameError: nothing is registered under `name`; the message has the nearest name.
    """
    factory = _FACTORIES.get(name)
    if factory is None:
        try:
            factory = gin.get_configurable(name)
        except ValueError:
            errors.check_name("task", name, names())
            raise
    if "phase" in inspect.signature(factory).parameters:
        return factory(phase=phase)
    return factory()


def as_family(
    task: str | upstream.Task | upstream.TaskFamily, phase: str = "meta_train"
) -> upstream.TaskFamily:
    """A task, a family, or the name of either, as a `TaskFamily`."""
    if isinstance(task, str):
        task = get(task, phase)
    return task if isinstance(task, upstream.TaskFamily) else upstream.single_task_to_family(task)

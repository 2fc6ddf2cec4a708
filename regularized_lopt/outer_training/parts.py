"""What a run of outer training is made of, by its arguments and gin's parameters."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import gin
import jax
import optax

from regularized_lopt import (
    devices,
    errors,
    gin_files,
    learned_optimizers,
    provenance,
    tasks,
    upstream,
    zoo,
)
from regularized_lopt.configurable import checked
from regularized_lopt.estimators.base import TruncatedEstimator
from regularized_lopt.estimators.truncated_grad import RegularizedTruncatedGrad
from regularized_lopt.estimators.truncated_step import RegularizedTruncatedStep
from regularized_lopt.learned_optimizers import LSTMLOpt
from regularized_lopt.outer_training import curriculum as curriculum_lib
from regularized_lopt.outer_training import unread
from regularized_lopt.outer_training.doses import Doses
from regularized_lopt.outer_training.loop import Loop
from regularized_lopt.outer_training.objective import ObjectiveCheck
from regularized_lopt.outer_training.programs import Programs
from regularized_lopt.outer_training.session import Settings
from regularized_lopt.outer_training.theta_optimizer import theta_optimizer

AnyTask: TypeAlias = str | upstream.Task | upstream.TaskFamily


class Parts(NamedTuple):
    """What a run needs.

    Attributes:
      loop: takes its steps.
      task_name: of what it is meta-trained on; of several, with " + " between.
    """

    loop: Loop
    task_name: str

    @property
    def estimator(self) -> TruncatedEstimator:
        """Of theta's gradient."""
        return self.loop.estimator

    def describe(self) -> dict[str, Any]:
        """What theta's file says of how it was made."""
        estimator = self.estimator
        return {
            "estimator": estimator.describe(),
            "regularizer_meta_space": estimator.regularizer.describe(),
            "regularizer_optimizee_space": estimator.truncated_step.regularizer.describe(),
            "smoothing": estimator.smoothing and estimator.smoothing.describe(),
            "devices": self.loop.programs.num_devices,
            "made_with": provenance.versions(),
            "task": self.task_name,
        }

    def of_member(self, seed: int, doses: tuple[float, ...]) -> Loop:
        """The loop of a member, by the same programs."""
        loop = self.loop
        key = jax.random.PRNGKey(seed)
        return Loop(loop.programs, loop.curriculum, key, loop.warm_theta, doses)


def make(
    task: AnyTask | Sequence[AnyTask],
    learned_opt: upstream.LearnedOptimizer | None = None,
    curriculum: curriculum_lib.Curriculum | None = None,
    optimizer: Callable[[], optax.GradientTransformation] = theta_optimizer,
    estimator: Callable[..., TruncatedEstimator] = RegularizedTruncatedGrad,
    seed: int = 0,
    num_devices: int | None = None,
    warm_start: str | os.PathLike[str] | None = None,
    *,
    varied: Doses | None = None,
    num_members: int = 1,
) -> Parts:
    """What `outer_train` runs; arguments are its own.

    Args:
      varied: parameters of which every member has its own value.
      num_members: of a population. Devices share them where they divide their number, else the
        tasks of each.
    """
    learned_opt = learned_opt or LSTMLOpt()
    learned_optimizers.describe(learned_opt)  # Refuses what could not be saved.
    curriculum = curriculum or curriculum_lib.Curriculum()
    mesh = None
    count = num_devices or jax.device_count()
    if num_members > 1 and count <= jax.device_count() and num_members % count == 0:
        mesh = devices.make_mesh(num_devices, [num_members])
    own_devices = 1 if mesh is not None else num_devices
    of_theta, task_name = _estimator(estimator, task, learned_opt, own_devices)
    curriculum.check(of_theta.unroll_length)
    theta = None if warm_start is None else _theta_of(warm_start, learned_opt)
    transformation = errors.call_checked(
        "outer_train.optimizer", optimizer, optax.GradientTransformation
    )
    programs = Programs(
        of_theta,
        transformation,
        curriculum.num_validation_tasks,
        ObjectiveCheck(),
        varied,
        mesh,
        curriculum.validation_window,
    )
    values = tuple(1.0 for _ in programs.doses.schedules)
    return Parts(Loop(programs, curriculum, jax.random.PRNGKey(seed), theta, values), task_name)


def _estimator(
    estimator: Callable[..., TruncatedEstimator],
    task: AnyTask | Sequence[AnyTask],
    learned_opt: upstream.LearnedOptimizer,
    num_devices: int | None,
) -> tuple[TruncatedEstimator, str]:
    """The estimator of theta's gradient, and the name of what it is meta-trained on."""
    if isinstance(task, Sequence) and not task:
        raise ValueError("outer_train.task is empty: give the name of a task, or several.")
    several = isinstance(task, Sequence) and not isinstance(task, str)
    families = [tasks.as_family(one, "meta_train") for one in (task if several else [task])]
    schedule = curriculum_lib.CurriculumTruncationSchedule()
    steps = [RegularizedTruncatedStep(family, learned_opt, schedule) for family in families]
    mesh = devices.make_mesh(num_devices, [step.num_tasks for step in steps])
    made = errors.call_checked(
        "outer_train.estimator",
        functools.partial(estimator, mesh=mesh),
        TruncatedEstimator,
        steps if several else steps[0],
    )
    return made, " + ".join(family.name for family in families)


def _theta_of(path: str | os.PathLike[str], learned_opt: upstream.LearnedOptimizer) -> Any:
    """Of a trained optimizer, if it is one of this kind."""
    loaded = zoo.load(path)
    wanted, found = map(learned_optimizers.describe, (learned_opt, loaded.learned_opt))
    if wanted != found:
        raise ValueError(
            f"warm_start: {path} holds a {found['learned_opt']} with {found['config']}; this run "
            f"trains a {wanted['learned_opt']} with {wanted['config']}."
        )
    return loaded.theta


def check_bindings(asked_for: Sequence[str] = ()) -> dict[gin_files.Binding, str]:
    """Makes what `outer_train` would make with gin's parameters, and trains nothing.

    Warns of bindings that nothing reads.

    Returns:
      Of those in `asked_for` that nothing reads, what there is to say.

    Raises:
      ValueError, TypeError: a parameter is wrong.
    """
    given = gin.get_bindings("outer_train")
    if "task" not in given:
        raise ValueError("outer_train.task is missing: give the name of a task, or several.")
    wanted = inspect.signature(make).parameters
    arguments = {name: given[name] for name in given if name in wanted}
    made = checked(make, "outer_train")(**arguments)
    # Its own parameters are read when it is called.
    found = unread_bindings(made.loop, but="outer_train")
    named = gin_files.named_in(asked_for)
    advice = functools.partial(unread.advice, estimator=made.estimator)
    gin_files.check_read([one for one in found if one not in named], (), advice)
    return {one: gin_files.explain(one, advice) for one in found if one in named}


def unread_bindings(loop: Loop, but: str = "") -> list[gin_files.Binding]:
    """Bindings, but those of one configurable, that nothing reads."""

    def found() -> list[gin_files.Binding]:
        return [one for one in gin_files.unread() if one.configurable != but]

    if found():  # What is called inside of a step may read them.
        loop.trace()
    return found()


def check_read(made: Parts, asked_for: Sequence[str]) -> None:
    """Refuses bindings in `asked_for` that nothing reads; warns of others.

    Raises:
      gin_files.UnreadBindingError: names them.
    """
    advice = functools.partial(unread.advice, estimator=made.estimator)
    found = unread_bindings(made.loop)
    gin_files.check_read(found, gin_files.named_in(asked_for), advice)


def configuration() -> list[str]:
    """Gin's bindings, less those that may change on resuming: "gin" in a run's experiment.json."""
    free = (
        "ObjectiveCheck.",
        *(
            f"outer_train.{name} ="
            for name in (
                *(field.name for field in dataclasses.fields(Settings)),
                "num_devices",
                "progress",
                "seeds",
                "doses",
                "parallelism",
            )
        ),
    )
    return sorted(
        line
        for line in gin.config_str(max_line_length=10_000).splitlines()
        if line and not line.startswith(("#", "import", *free))
    )

"""What is compared on what: the configuration of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import gin

from regularized_lopt import errors, statistics
from regularized_lopt.configurable import configurable
from regularized_lopt.measure import flatness
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure.optimizers import EvaluatedOptimizer

GIVEN = "given"
"""In `Experiment.optimizers`: the optimizer is handed to the study as an object."""
_MOST_TESTS = 9
_NONE = "none"


def is_configuration(source: str) -> bool:
    """Whether a learned optimizer's source is a gin file to meta-train it from."""
    return source.endswith(".gin")


@configurable(denylist=["name"])
@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """What a study does on one task.

    Attributes:
      name: of an image task; there is no default.
      runs: paired runs per optimizer, > 0.
      measured_runs: properties are measured around the params of the first so many runs; None: of
        all, 0: of none, accuracies are all there is.
      examples: test images that they are measured on, > 0; None: `FlatnessConfig.num_examples`.
      optimizers: those that there are, of the experiment's and of all baselines, among them its
        reference; None: all of the experiment's, and its baselines.
      tuning_steps: inner steps of the runs by which baselines are tuned, > 0; None: as many as are
        reported.
      baselines_matched: baselines are measured at matched training loss, too, each with every
        meta-training seed of the reference.
    """

    name: str = ""
    runs: int = 10
    measured_runs: int | None = None
    examples: int | None = None
    optimizers: tuple[str, ...] | None = None
    tuning_steps: int | None = None
    baselines_matched: bool = True

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError(
                "A TaskPlan has no name: give Experiment.tasks the names of tasks. What gin says "
                "of a plan is in the scope of its task: NAME/TaskPlan.runs = 5."
            )
        names = self.optimizers or ()
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"TaskPlan.optimizers of {self.name!r} has {', '.join(map(repr, twice))} twice: "
                "name each once."
            )
        for name, least in (
            ("runs", 1),
            ("measured_runs", 0),
            ("examples", 1),
            ("tuning_steps", 1),
        ):
            if (count := getattr(self, name)) is not None:
                errors.check_count(f"TaskPlan.{name}", count, least)

    def joined_by(self, names: Iterable[str]) -> TaskPlan:
        """The plan with more optimizers."""
        if self.optimizers is None:
            return self
        more = (name for name in names if name not in self.optimizers)
        return dataclasses.replace(self, optimizers=(*self.optimizers, *more))

    @property
    def num_measured(self) -> int:
        """How many runs have their properties measured."""
        return self.runs if self.measured_runs is None else min(self.runs, self.measured_runs)


def task_plan(name: str, **settings: Any) -> TaskPlan:
    """The plan of a task: what is not given is what gin says, in the scope of the task's name.

    `TaskPlan.runs = 5` is for all tasks, `LeNet_Mnist/TaskPlan.runs = 2` for one.
    """
    # No other name can be a scope, or a task.
    with gin.config_scope(name if name.isidentifier() else None):
        return TaskPlan(name, **settings)


@configurable(denylist=["joining"])
@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is compared on what.

    It also takes `joining`: more of `optimizers`, on every task, whatever its plan says.

    Attributes:
      title: of the report.
      optimizers: learned optimizers by name: a gin file to meta-train one from, a trained one (a
        file or a directory of outer training), or `GIVEN`.
      tasks: image tasks to meta-test on: their plans, or their names, see `task_plan`.
      phase: whose images: "meta_test", or "meta_train" to choose hyperparameters by (its held-out
        images then stand for the test set), see `tasks.data`.
      reference: which of `optimizers` the others are compared with.
      primary: (optimizer, property) of the declared tests, one per measured task, at most 9; or
        None.
      properties: which property ("sam", "gsam", "gam") an optimizer should have learned; default:
        the regularizer of its training where that is one, else "sam".
      baselines: of `optimizers.BASELINES`, their learning rates tuned first.
      tuning_runs: runs per learning rate of a baseline's grid, > 0; none of them is reported.
      num_steps: inner steps per run, > 0.
      budget: what `num_steps` is of: "steps", or "gradients", of which some baselines take two per
        step; these then stop half-way, see `trainer.Trainer`, when they are tuned, too.
      seed: of inits and batches, 0 to 2^32 - 1.
      meta_training_seeds: each optimizer is meta-trained once per seed (gin files only), at
        least one; or the seeds by optimizer, of which all begin with the same ones.
      bindings: gin bindings of every meta-training, e.g. a number of outer steps.
      early_evidence: optimizers for the regression on cubic polynomials by name, gin files or
        trained ones; none: it is left out.
      alpha: of the declared tests, in (0, 1).
      test: see `statistics.decide`.
      parallelism: (batch, threads), each > 0, see `devices.Parallelism`; None: measured once per
        task.
      plans: of all tasks, by name; made from `tasks`.
    """

    title: str = "Do learned optimizers find flat minima?"
    optimizers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tasks: tuple[str | TaskPlan, ...] = ()
    phase: str = "meta_test"
    reference: str = _NONE
    primary: tuple[str, str] | None = None
    properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    baselines: tuple[str, ...] = optimizers_lib.DEFAULT_BASELINES
    tuning_runs: int = 2
    num_steps: int = 2000
    budget: str = "steps"
    seed: int = 0
    meta_training_seeds: tuple[int, ...] | Mapping[str, tuple[int, ...]] = (0,)
    bindings: tuple[str, ...] = ()
    early_evidence: Mapping[str, str] = dataclasses.field(default_factory=dict)
    alpha: float = 0.05
    test: str = "auto"
    parallelism: tuple[int, int] | None = None
    joining: dataclasses.InitVar[Mapping[str, str] | None] = None
    plans: Mapping[str, TaskPlan] = dataclasses.field(init=False, repr=False)

    def __post_init__(self, joining: Mapping[str, str] | None) -> None:
        if not self.optimizers or not self.tasks:
            raise ValueError(
                "Experiment.optimizers and Experiment.tasks must name at least one each, e.g. "
                'Experiment.optimizers = {"none": "gin_configs/digits_mlp_none.gin"}.'
            )
        for name in (*self.optimizers, *self.early_evidence):
            errors.check_file_name("An optimizer called", name)
        object.__setattr__(self, "plans", self._plans())
        if joining:
            self._join(joining)
        self._check_optimizers()
        errors.check_name("Experiment.phase", self.phase, ("meta_train", "meta_test"))
        errors.check_name("Experiment.budget", self.budget, optimizers_lib.BUDGETS)
        for name in ("tuning_runs", "num_steps"):
            errors.check_count(f"Experiment.{name}", getattr(self, name))
        for batch_or_threads in self.parallelism or ():
            errors.check_count("Experiment.parallelism", batch_or_threads)
        self._check_seeds()
        errors.check_seed("Experiment.seed", self.seed)
        errors.check_in("Experiment.alpha", self.alpha, "(0, 1)")
        errors.check_name("Experiment.test", self.test, statistics.TESTS)
        for optimizer, name in self.properties.items():
            errors.check_name("optimizer of Experiment.properties", optimizer, self.optimizers)
            errors.check_name("Experiment.properties", name, flatness.PROPERTIES)
        self._check_primary()

    def _plans(self) -> dict[str, TaskPlan]:
        plans: dict[str, TaskPlan] = {}
        for task in self.tasks:
            plan = task if isinstance(task, TaskPlan) else task_plan(task)
            if plan.name in plans:
                raise ValueError(f"Experiment.tasks has {plan.name!r} twice: name it once.")
            plans[plan.name] = plan
        return plans

    def _join(self, joining: Mapping[str, str]) -> None:
        for name in joining:
            errors.check_file_name("An optimizer called", name)
            if name in (*self.optimizers, *optimizers_lib.BASELINES):
                raise ValueError(
                    f"An optimizer that joins the experiment cannot be called {name!r}. Taken are "
                    f"its own names ({', '.join(self.optimizers)}) and those of baselines "
                    f"({', '.join(optimizers_lib.BASELINES)})."
                )
        plans = {name: plan.joined_by(joining) for name, plan in self.plans.items()}
        object.__setattr__(self, "optimizers", {**self.optimizers, **joining})
        object.__setattr__(self, "tasks", tuple(plans.values()))
        object.__setattr__(self, "plans", plans)

    def _check_optimizers(self) -> None:
        for name in self.baselines:
            errors.check_name("Experiment.baselines", name, optimizers_lib.BASELINES)
        if clash := set(self.optimizers) & set(self.baselines):
            raise ValueError(f"Experiment.optimizers has names of baselines: {sorted(clash)}.")
        compared = (*self.optimizers, *self.baselines)
        if self.reference == _NONE and _NONE not in compared:
            raise ValueError(
                f"Experiment.reference is {_NONE!r} unless it is set, and there is no optimizer of "
                f"that name: set it to one of {', '.join(compared)}."
            )
        errors.check_name("Experiment.reference", self.reference, compared)
        for plan in self.plans.values():
            if (names := plan.optimizers) is None:
                continue
            parameter = f"TaskPlan.optimizers of {plan.name!r}"
            for name in names:
                errors.check_name(parameter, name, (*self.optimizers, *optimizers_lib.BASELINES))
            if self.reference not in names:
                raise ValueError(
                    f"{parameter} = {names} lacks {self.reference!r}, the reference, with which "
                    "all others are compared: add it."
                )

    def _check_primary(self) -> None:
        if self.primary is None:
            return
        measured = [name for name, plan in self.plans.items() if plan.num_measured]
        if not measured:
            raise ValueError(
                f"Experiment.primary = {self.primary} declares tests of a property, and "
                "TaskPlan.measured_runs = 0 has none measured on any task: set one of them "
                "otherwise."
            )
        for task in measured:
            errors.check_name(
                "optimizer of Experiment.primary", self.primary[0], self.optimizers_on(task)
            )
        errors.check_name("property of Experiment.primary", self.primary[1], flatness.PROPERTIES)
        if len(measured) > _MOST_TESTS:
            raise ValueError(
                f"Experiment.primary declares a test for each of {len(measured)} tasks; "
                f"more than {_MOST_TESTS} cannot be decided by a reasonable number of runs."
            )

    def _check_seeds(self) -> None:
        longest = max((self.seeds_of(name) for name in self.optimizers), key=len)
        for seed in longest:
            errors.check_seed("Experiment.meta_training_seeds", seed)
        for name in self.optimizers:
            seeds = self.seeds_of(name)
            if not seeds or seeds != longest[: len(seeds)]:
                raise ValueError(
                    f"Experiment.meta_training_seeds of {name!r} = {seeds}: give at least one, and "
                    f"the first of {longest}, so that seeds can be paired."
                )

    def baselines_on(self, task: str) -> tuple[str, ...]:
        """The baselines on a task."""
        return tuple(name for name in self.optimizers_on(task) if name not in self.optimizers)

    def optimizers_on(self, task: str) -> tuple[str, ...]:
        """All names on a task, the reference first."""
        names = self.plans[task].optimizers
        names = (*self.optimizers, *self.baselines) if names is None else names
        return (self.reference, *(name for name in names if name != self.reference))

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """The meta-training seeds of an optimizer."""
        seeds = self.meta_training_seeds
        return tuple(seeds.get(name, (0,)) if isinstance(seeds, Mapping) else seeds)

    def tuning_steps_on(self, task: str) -> int:
        """Inner steps of the runs by which baselines are tuned on a task."""
        steps = self.plans[task].tuning_steps
        return self.num_steps if steps is None else steps

    def matches(self, name: str, task: str) -> bool:
        """Whether an optimizer is measured at matched training loss on a task."""
        plan = self.plans[task]
        if not plan.num_measured or name == self.reference:
            return False
        return name in self.optimizers or plan.baselines_matched

    def property_of(self, optimizer: EvaluatedOptimizer) -> str:
        """The property that an optimizer should have learned."""
        own = optimizer.trained_with.regularizer
        return self.properties.get(optimizer.name, own if own in flatness.PROPERTIES else "sam")

    def is_targeted(self, optimizer: EvaluatedOptimizer) -> bool:
        """Whether it was trained for that, by `properties` or by its regularizer."""
        own = optimizer.trained_with.regularizer
        return optimizer.name in self.properties or own in flatness.PROPERTIES

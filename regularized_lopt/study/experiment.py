"""What is compared on what: the configuration of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from regularized_lopt import errors, statistics
from regularized_lopt.configurable import configurable
from regularized_lopt.measure import flatness
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure.optimizers import EvaluatedOptimizer

GIVEN = "given"
"""In `Experiment.optimizers`: the optimizer is handed to the study as an object."""


@configurable()
@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is compared on what.

    Attributes:
      title: of the report.
      optimizers: learned optimizers by name: a gin file to meta-train one from, a trained one (a
        file or a directory of outer training), or `GIVEN`.
      tasks: names of image tasks to meta-test on.
      phase: whose images: "meta_test", or "meta_train" to choose hyperparameters by (its held-out
        images then stand for the test set), see `tasks.data`.
      reference: which of `optimizers` the others are compared with.
      primary: (optimizer, property) of the declared tests, one per measured task, at most 9; or
        None.
      properties: which property ("sam", "gsam", "gam") an optimizer should have learned; default:
        the regularizer of its training where that is one, else "sam".
      baselines: of `optimizers.BASELINES`, their learning rates tuned first.
      task_optimizers: tasks that have only these of `optimizers` and of all baselines, among them
        `reference`.
      tuning_runs: runs per learning rate of a baseline's grid, > 0; none of them is reported.
      tuning_steps: tasks on which those runs have so many steps, > 0, instead of `num_steps`.
      num_runs: paired runs per optimizer and task, > 0.
      task_runs: tasks that have another number of runs, > 0.
      num_steps: inner steps per run, > 0.
      property_runs: tasks on which properties are measured on the first so many runs alone, > 0.
      property_examples: tasks on which they are measured on so many test images, > 0, instead of
        `FlatnessConfig.num_examples`.
      seed: of inits and batches, 0 to 2^32 - 1.
      meta_training_seeds: each optimizer is meta-trained once per seed (gin files only), at
        least one; or the seeds by optimizer, of which all begin with the same ones.
      bindings: gin bindings of every meta-training, e.g. a number of outer steps.
      early_evidence: optimizers for the regression on cubic polynomials by name, gin files or
        trained ones; none: it is left out.
      alpha: of the declared tests, in (0, 1).
      test: see `statistics.decide`.
      parallelism: (batch, threads), each > 0, see `trainer.Parallelism`; None: measured once per
        task.
      measured: tasks on which properties are measured around the params; True: all, False: none.
        On the others accuracies are all there is.
      baselines_matched: measured tasks on which baselines are also measured at matched training
        loss, each with every meta-training seed of the reference; True: all, False: none.
    """

    title: str = "Do learned optimizers find flat minima?"
    optimizers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    phase: str = "meta_test"
    reference: str = "none"
    primary: tuple[str, str] | None = None
    properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    baselines: tuple[str, ...] = tuple(optimizers_lib.BASELINES)
    task_optimizers: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    tuning_runs: int = 2
    tuning_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    num_runs: int = 10
    task_runs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    num_steps: int = 2000
    property_runs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    property_examples: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seed: int = 0
    meta_training_seeds: tuple[int, ...] | Mapping[str, tuple[int, ...]] = (0,)
    bindings: tuple[str, ...] = ()
    early_evidence: Mapping[str, str] = dataclasses.field(default_factory=dict)
    alpha: float = 0.05
    test: str = "auto"
    parallelism: tuple[int, int] | None = None
    measured: bool | tuple[str, ...] = True
    baselines_matched: bool | tuple[str, ...] = True

    def __post_init__(self) -> None:
        if not self.optimizers or not self.tasks:
            raise ValueError(
                "Experiment.optimizers and Experiment.tasks must name at least one each, e.g. "
                'Experiment.optimizers = {"none": "gin_configs/digits_mlp_none.gin"}.'
            )
        for name in (*self.optimizers, *self.early_evidence):
            errors.check_file_name("An optimizer called", name)
        self._check_optimizers()
        errors.check_name("Experiment.phase", self.phase, ("meta_train", "meta_test"))
        for name in ("tuning_runs", "num_runs", "num_steps"):
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
        for name in ("tuning_steps", "task_runs", "property_runs", "property_examples"):
            for task, count in getattr(self, name).items():
                errors.check_name(f"task of Experiment.{name}", task, self.tasks)
                errors.check_count(f"Experiment.{name}[{task!r}]", count)
        for name in ("measured", "baselines_matched"):
            of = getattr(self, name)
            for task in () if isinstance(of, bool) else of:
                errors.check_name(f"task of Experiment.{name}", task, self.tasks)
        self._check_primary()

    def _check_optimizers(self) -> None:
        for name in self.baselines:
            errors.check_name("Experiment.baselines", name, optimizers_lib.BASELINES)
        if clash := set(self.optimizers) & set(self.baselines):
            raise ValueError(f"Experiment.optimizers has names of baselines: {sorted(clash)}.")
        errors.check_name(
            "Experiment.reference", self.reference, (*self.optimizers, *self.baselines)
        )
        for task, names in self.task_optimizers.items():
            errors.check_name("task of Experiment.task_optimizers", task, self.tasks)
            parameter = f"Experiment.task_optimizers[{task!r}]"
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
        measured = [task for task in self.tasks if self.measures(task)]
        if not measured:
            raise ValueError(
                f"Experiment.primary = {self.primary} declares tests of a property, and "
                f"Experiment.measured = {self.measured} has none measured: set one of them "
                "otherwise."
            )
        for task in measured:
            errors.check_name(
                "optimizer of Experiment.primary", self.primary[0], self.optimizers_on(task)
            )
        errors.check_name("property of Experiment.primary", self.primary[1], flatness.PROPERTIES)
        if len(measured) > 9:
            raise ValueError(
                f"Experiment.primary declares a test for each of {len(measured)} tasks; "
                "more than 9 cannot be decided by a reasonable number of runs."
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
        names = self.task_optimizers.get(task, (*self.optimizers, *self.baselines))
        return (self.reference, *(name for name in names if name != self.reference))

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """The meta-training seeds of an optimizer."""
        seeds = self.meta_training_seeds
        return tuple(seeds.get(name, (0,)) if isinstance(seeds, Mapping) else seeds)

    def runs_of(self, task: str) -> int:
        """Paired runs per optimizer on a task."""
        return self.task_runs.get(task, self.num_runs)

    def tuning_steps_of(self, task: str) -> int:
        """Inner steps of the runs by which baselines are tuned on a task."""
        return self.tuning_steps.get(task, self.num_steps)

    def measures(self, task: str) -> bool:
        """Whether properties are measured on a task."""
        return self.measured if isinstance(self.measured, bool) else task in self.measured

    def matches(self, name: str, task: str) -> bool:
        """Whether an optimizer is measured at matched training loss on a task."""
        if not self.measures(task) or name == self.reference:
            return False
        of = self.baselines_matched
        return name in self.optimizers or (of if isinstance(of, bool) else task in of)

    def measured_runs(self, task: str) -> int:
        """How many runs of a task have their properties measured."""
        return min(self.runs_of(task), self.property_runs.get(task, self.runs_of(task)))

    def property_of(self, optimizer: EvaluatedOptimizer) -> str:
        """The property that an optimizer should have learned."""
        own = optimizer.trained_with.regularizer
        return self.properties.get(optimizer.name, own if own in flatness.PROPERTIES else "sam")

    def is_targeted(self, optimizer: EvaluatedOptimizer) -> bool:
        """Whether it was trained for that, by `properties` or by its regularizer."""
        own = optimizer.trained_with.regularizer
        return optimizer.name in self.properties or own in flatness.PROPERTIES

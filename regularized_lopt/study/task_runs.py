"""The runs of one task of a study: networks that all optimizers train, from tuned baselines on."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from regularized_lopt import serialization, tasks
from regularized_lopt.devices import Parallelism
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.measure.training_curves import SavedParams, TrainingCurves
from regularized_lopt.study import cache as cache_lib
from regularized_lopt.study.cache import CacheKey
from regularized_lopt.study.cache_keys import CacheKeys, identity
from regularized_lopt.study.experiment import Experiment, TaskPlan
from regularized_lopt.study.steps import Step, cached_step

_MANIFEST = "manifest.json"

Part = tuple[Any, ...]
"""What tells the steps of a task apart: stage, optimizer, meta-training seed (its place), ..."""


@dataclasses.dataclass(frozen=True)
class TaskRuns:
    """The runs of one task: baselines are tuned, and networks are trained with every optimizer.

    Attributes:
      plan: what is done.
      experiment: what is compared.
      keys: of the experiment's results.
      cache: of these results.
      out_dir: where the manifest is.
      progress: show progress bars.
      learned: learned optimizers, by name, per meta-training seed; None: it is still to be trained.
    """

    plan: TaskPlan
    experiment: Experiment
    keys: CacheKeys
    cache: cache_lib.TimedCache
    out_dir: pathlib.Path
    progress: bool
    learned: Mapping[str, Sequence[EvaluatedOptimizer | None]]

    @functools.cached_property
    def trainer(self) -> trainer_lib.Trainer:
        """With the parallelism given, or found in the manifest, or measured and put there."""
        trainer = trainer_lib.Trainer(
            self._task,
            self.plan.runs,
            self.experiment.num_steps,
            self.experiment.seed,
            progress=self.progress,
            budget=self.experiment.budget,
        )
        if self.experiment.parallelism is not None:
            trainer.parallelism = Parallelism(*self.experiment.parallelism)
            return trainer
        path = self.out_dir / _MANIFEST
        size = f"{self.plan.name}, {trainer.num_runs} runs"
        # In the words of the files that are kept: lanes of a batch, workers for threads.
        chosen = cache_lib.read_json(path).get("layouts", {}).get(size)
        if chosen is None:
            learned = [one for of in self.learned.values() for one in of if one is not None]
            alike = [one for one in learned if one.kind == learned[0].kind]
            speeds = trainer_lib.measure_parallelism(trainer, alike)
            best = max(speeds, key=lambda parallelism: speeds[parallelism])
            chosen = {"lanes": best.batch, "workers": best.threads}
            cache_lib.update_json(
                path, lambda kept: kept.setdefault("layouts", {}).update({size: chosen})
            )
        trainer.parallelism = Parallelism(chosen["lanes"], chosen["workers"])
        return trainer

    @functools.cached_property
    def _task(self) -> tasks.ResidentTask:
        return resident_task(self.plan.name, self.experiment.phase)

    # Optimizers, by name and the place of their meta-training seed.

    @property
    def _names(self) -> tuple[str, ...]:
        return self.experiment.optimizers_on(self.plan.name)

    def _seeds(self, name: str) -> range:
        return range(len(self.learned[name]) if name in self.learned else 1)

    def _find(self, name: str, seed: int) -> EvaluatedOptimizer | None:
        """None: it is still to be meta-trained or tuned."""
        if name in self.learned:
            return self.learned[name][seed]
        return self._tuning["tune", name].find()

    def _optimizer(self, name: str, seed: int) -> EvaluatedOptimizer:
        found = self._find(name, seed)
        assert found is not None, name
        return found

    def _key(
        self, key: Callable[..., CacheKey], name: str, seed: int, *more: Any
    ) -> CacheKey | None:
        """One of `keys`; None: that of the optimizer is not known yet."""
        one = self._find(name, seed)
        return None if one is None else key(self.plan.name, name, identity(one), *more)

    def _label(self, name: str, seed: int = 0) -> str:
        return f"{self.plan.name}, {name}" + (f", #{seed}" if seed else "")

    # Training.

    @functools.cached_property
    def _tuning(self) -> dict[Part, Step[EvaluatedOptimizer]]:
        names = self.experiment.baselines_on(self.plan.name)
        return {("tune", name): self._tuning_step(name) for name in names}

    def _tuning_step(self, name: str) -> Step[EvaluatedOptimizer]:
        def compute() -> dict[str, Any]:
            num_steps = self.experiment.tuning_steps_on(self.plan.name)
            tuned = trainer_lib.tune(name, self.trainer, num_steps, self.experiment.tuning_runs)
            return {"learning_rate": np.asarray(tuned.learning_rate)}

        return cached_step(
            self.cache,
            "tune",
            self._label(name),
            f"tune {self.plan.name} {name}",
            lambda: self.keys.tune(self.plan.name, name),
            compute,
            lambda tree: optimizers_lib.baseline(name, float(tree["learning_rate"])),
            lambda rates: rates.tuning(self.plan.name, name),
        )

    @functools.cached_property
    def _training(self) -> dict[Part, Step[TrainingCurves]]:
        return {
            ("train", name, seed): self._training_step(name, seed)
            for name in self._names
            for seed in self._seeds(name)
        }

    def _training_step(self, name: str, seed: int) -> Step[TrainingCurves]:
        def find() -> TrainingCurves | None:
            key = self._key(self.keys.training_curves, name, seed)
            found = None if key is None else self.cache.results.find(key)
            return None if found is None else TrainingCurves(**found)

        return Step(
            "train",
            self._label(name, seed),
            f"train {self.plan.name} {name}",
            find,
            functools.partial(self._train, ("train", name, seed)),
            lambda rates: rates.training(self.plan.name, name),
        )

    def _train(self, first: Part) -> None:
        """Where a batch has room, later ones of its kind that are missing, in one program."""
        kind = self._optimizer(*first[1:]).kind
        missing = (
            part
            for part in itertools.dropwhile(lambda part: part != first, self._training)
            if self._optimizer(*part[1:]).kind == kind and self._training[part].find() is None
        )
        together = max(1, self.trainer.parallelism.batch // self.trainer.num_runs)
        self._train_group(list(itertools.islice(missing, together)))

    def _train_group(self, parts: Sequence[Part]) -> None:
        group = [self._optimizer(name, seed) for _, name, seed in parts]
        named = [dataclasses.replace(one, name=str(place)) for place, one in enumerate(group)]
        label = f"{self.plan.name}: " + ", ".join(one.label for one in group)
        start = time.monotonic()
        self.trainer.compile(named)
        compiled = time.monotonic()
        found = self.trainer.train(named, label)
        trained = (time.monotonic() - compiled) / len(group)
        for part, one, alias in zip(parts, group, named, strict=True):
            who = (self.plan.name, part[1], identity(one))
            curves = serialization.fields(found[alias.name])
            params = serialization.fields(curves.pop("saved_params"))
            curves = {name: of for name, of in curves.items() if of is not None}
            if self.plan.num_measured:  # Large, and of no other use.
                self.cache.results.save(self.keys.saved_params(*who), params)
            self.cache.results.save(self.keys.training_curves(*who), curves)
            steps = self.trainer.num_runs * self.trainer.steps_of(one)
            self.cache.timings[step_timing(self.plan.name, part[1])] = trained / steps
            self.cache.record_seconds(self._training[part].timing, trained + (compiled - start))

    def _saved_params(self, name: str, seed: int) -> SavedParams:
        """The params of an optimizer's runs.

        Raises:
          FileNotFoundError: they were not kept beside the runs.
        """
        one = self._optimizer(name, seed)
        who = (self.plan.name, name, identity(one))
        found = self.cache.results.find(self.keys.saved_params(*who))
        if found is None:
            raise FileNotFoundError(
                f"{self.out_dir} has the runs of {one.label} on {self.plan.name}, but not their "
                "params, around which something is still to be measured. To train these networks "
                f"again, delete cells/{self.keys.training_curves(*who).file_name}."
            )
        return SavedParams(**found)


def step_timing(task: str, name: str) -> str:
    """What the seconds of one inner step of one run are called in timings.json."""
    return f"step {task} {name}"


def resident_task(name: str, phase: str = "meta_test") -> tasks.ResidentTask:
    """A task of ours that can be meta-tested.

    Raises:
      errors.UnknownNameError: nothing is registered under `name`.
      TypeError: the task is no `ResidentTask`.
    """
    task = tasks.get(name, phase)
    if not isinstance(task, tasks.ResidentTask):
        raise TypeError(
            f"{name!r} cannot be meta-tested: its data do not live on the device. Take one of "
            "regularized_lopt.tasks.names(), or make yours a tasks.ResidentTask."
        )
    return task

"""One task of an experiment: all optimizers train on it, and what they found is measured."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from regularized_lopt import serialization, tasks
from regularized_lopt.measure import flatness, loss_slices, matched_loss
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.measure.results import POINTS, Matched, Result, TaskResult, seed_pairs
from regularized_lopt.measure.trainer import Parallelism
from regularized_lopt.measure.training_curves import SavedParams, TrainingCurves
from regularized_lopt.study import cache as cache_lib
from regularized_lopt.study.cache import CacheKey
from regularized_lopt.study.cache_keys import CacheKeys, identity
from regularized_lopt.study.experiment import Experiment, TaskPlan
from regularized_lopt.tasks import data as data_lib

_MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class TaskStudy:
    """Computes the results of one task, or reads them.

    Attributes:
      name: of the task.
      experiment: what is compared.
      keys: of the experiment's results.
      cache: of these results.
      out_dir: where the manifest is.
      progress: show progress bars.
    """

    name: str
    experiment: Experiment
    keys: CacheKeys
    cache: cache_lib.TimedCache
    out_dir: pathlib.Path
    progress: bool

    def result(self, learned: Mapping[str, Sequence[EvaluatedOptimizer]]) -> TaskResult:
        """All that is asked for, of learned optimizers (by name, per seed) and of baselines."""
        trainer = self.trainer([one for of in learned.values() for one in of])
        optimizers = {name: list(trained) for name, trained in learned.items()}
        for name in self.experiment.baselines_on(self.name):
            optimizers[name] = [self._tune(trainer, name)]
        curves = self._train(trainer, optimizers)
        found = {
            name: self._result(name, optimizers, curves)
            for name in self.experiment.optimizers_on(self.name)
        }
        return TaskResult(
            self.name,
            self.experiment.num_steps,
            self.keys.flatness_config_of(self.name),
            self.experiment.reference,
            found,
            self._task.facts,
        )

    def trainer(self, learned: Sequence[EvaluatedOptimizer]) -> trainer_lib.Trainer:
        """With the parallelism given, or found in the manifest, or measured and put there.

        Args:
          learned: the learned optimizers that are to be trained with.
        """
        trainer = trainer_lib.Trainer(
            self._task,
            self._plan.runs,
            self.experiment.num_steps,
            self.experiment.seed,
            progress=self.progress,
        )
        if self.experiment.parallelism is not None:
            trainer.parallelism = Parallelism(*self.experiment.parallelism)
            return trainer
        path = self.out_dir / _MANIFEST
        size = f"{self.name}, {trainer.num_runs} runs"
        # In the words of the files that are kept: lanes of a batch, workers for threads.
        chosen = cache_lib.read_json(path).get("layouts", {}).get(size)
        if chosen is None:
            alike = [one for one in learned if one.kind == learned[0].kind]
            speeds = trainer_lib.measure_parallelism(trainer, alike)
            best = max(speeds, key=lambda parallelism: speeds[parallelism])
            chosen = {"lanes": best.batch, "workers": best.threads}
            cache_lib.update_json(
                path, lambda kept: kept.setdefault("layouts", {}).update({size: chosen})
            )
        trainer.parallelism = Parallelism(chosen["lanes"], chosen["workers"])
        return trainer

    def tuned(self, name: str) -> EvaluatedOptimizer | None:
        """A baseline with its learning rate; None: that is still to be tuned."""
        found = self.cache.results.find(self.keys.tune(self.name, name))
        if found is None:
            return None
        return optimizers_lib.baseline(name, float(found["learning_rate"]))

    @property
    def _plan(self) -> TaskPlan:
        return self.experiment.plans[self.name]

    @functools.cached_property
    def _task(self) -> tasks.ImageTask:
        return image_task(self.name, self.experiment.phase)

    def _result(
        self,
        name: str,
        optimizers: Mapping[str, Sequence[EvaluatedOptimizer]],
        curves: Mapping[str, Sequence[TrainingCurves]],
    ) -> Result:
        own, first = optimizers[name], optimizers[name][0]
        result = Result(
            name=first.label,
            own_property=self.experiment.property_of(first),
            targeted=self.experiment.is_targeted(first),
            gradients_per_step=first.gradients_per_step,
            learning_rate=first.learning_rate,
            curves=curves[name],
            at={},
            matched=[],
            **dataclasses.asdict(first.trained_with),
        )
        if not self._plan.num_measured:
            return result
        headline = self.keys.flatness_config_of(self.name).headline
        is_matched = self.experiment.matches(name, self.name)
        is_learned = name in self.experiment.optimizers
        return dataclasses.replace(
            result,
            at={
                point: [self._measure(one, point).kept(headline) for one in own] for point in POINTS
            },
            matched=self._matched(name, optimizers, curves) if is_matched else [],
            slices=self._slices(first) if is_learned else None,
        )

    # Training.

    def _tune(self, trainer: trainer_lib.Trainer, name: str) -> EvaluatedOptimizer:
        def compute() -> dict[str, Any]:
            num_steps = self.experiment.tuning_steps_on(self.name)
            tuned = trainer_lib.tune(name, trainer, num_steps, self.experiment.tuning_runs)
            return {"learning_rate": np.asarray(tuned.learning_rate)}

        key = self.keys.tune(self.name, name)
        found = self.cache.get(key, f"tune {self.name} {name}", compute)
        return optimizers_lib.baseline(name, float(found["learning_rate"]))

    def _train(
        self, trainer: trainer_lib.Trainer, optimizers: Mapping[str, Sequence[EvaluatedOptimizer]]
    ) -> dict[str, list[TrainingCurves]]:
        """The runs of all; where a batch has room, several optimizers in one program."""
        keys = {
            name: [
                self.keys.training_curves(self.name, name, identity(one))
                for one in optimizers[name]
            ]
            for name in self.experiment.optimizers_on(self.name)
        }
        missing: dict[str, list[tuple[CacheKey, EvaluatedOptimizer]]] = {}
        for name, of in keys.items():
            for key, one in zip(of, optimizers[name], strict=True):
                if key not in self.cache.results:
                    missing.setdefault(one.kind, []).append((key, one))
        together = max(1, trainer.parallelism.batch // trainer.num_runs)
        for alike in missing.values():
            for begin in range(0, len(alike), together):
                self._train_group(trainer, alike[begin : begin + together])
        return {
            name: [TrainingCurves(**self.cache.results.load(key)) for key in of]
            for name, of in keys.items()
        }

    def _train_group(
        self, trainer: trainer_lib.Trainer, group: Sequence[tuple[CacheKey, EvaluatedOptimizer]]
    ) -> None:
        named = [dataclasses.replace(one, name=key.file_name) for key, one in group]
        label = f"{self.name}: " + ", ".join(one.label for _, one in group)
        start = time.monotonic()
        trainer.compile(named)
        compiled = time.monotonic()
        found = trainer.train(named, label)
        trained = (time.monotonic() - compiled) / len(group)
        for key, one in group:
            curves = serialization.fields(found[key.file_name])
            params = serialization.fields(curves.pop("saved_params"))
            if self._plan.num_measured:  # Large, and of no other use.
                saved = self.keys.saved_params(self.name, one.name, identity(one))
                self.cache.results.save(saved, params)
            self.cache.results.save(key, curves)
            steps = trainer.num_runs * self.experiment.num_steps
            self.cache.timings[f"step {self.name} {one.name}"] = trained / steps
            self.cache.record_seconds(f"train {self.name} {one.name}", trained + (compiled - start))

    # Measuring.

    def _measure(self, optimizer: EvaluatedOptimizer, point: str) -> flatness.Flatness:
        key = self.keys.flatness(self.name, optimizer.name, identity(optimizer), point)

        def compute() -> dict[str, Any]:
            saved = self._saved_params(optimizer).first(self._plan.num_measured)
            params = saved.poc if point == "poc" else saved.final
            what = self.keys.flatness_config_of(self.name)
            return serialization.fields(flatness.measure(self._task, params, what))

        return flatness.Flatness(**self.cache.get(key, f"measure {self.name}", compute))

    def _matched(
        self,
        name: str,
        optimizers: Mapping[str, Sequence[EvaluatedOptimizer]],
        curves: Mapping[str, Sequence[TrainingCurves]],
    ) -> list[Matched]:
        """Of every pair of meta-training seeds that is compared."""
        own, reference = optimizers[name], optimizers[self.experiment.reference]
        own_curves, reference_curves = curves[name], curves[self.experiment.reference]
        return [
            self._match(own[a], reference[b], own_curves[a], reference_curves[b])
            for a, b in seed_pairs(len(own), len(reference))
        ]

    def _match(
        self,
        optimizer: EvaluatedOptimizer,
        reference: EvaluatedOptimizer,
        curves: TrainingCurves,
        reference_curves: TrainingCurves,
    ) -> Matched:
        key = self.keys.matched(self.name, optimizer.name, identity(optimizer), identity(reference))

        def compute() -> dict[str, Any]:
            count = self._plan.num_measured
            own, other = curves.first(count), reference_curves.first(count)
            what = self.keys.flatness_config_of(self.name).headline_alone()
            level = matched_loss.common_loss_level(own, other)
            out: dict[str, Any] = {"level": matched_loss.level_loss(level)}
            for side, who, one in (("own", optimizer, own), ("reference", reference, other)):
                saved = self._saved_params(who).first(count)
                params, out[f"{side}_step"] = matched_loss.params_at_level(one, saved, level)
                out[side] = serialization.fields(flatness.measure(self._task, params, what))
            return out

        tree = self.cache.get(key, f"match {self.name}", compute)
        for side in ("own", "reference"):
            tree[side] = flatness.Flatness(**tree[side]).kept(0)  # Of one radius alone.
        return Matched(**tree)

    def _slices(self, optimizer: EvaluatedOptimizer) -> loss_slices.LossSlices:
        key = self.keys.slices(self.name, optimizer.name, identity(optimizer))

        def compute() -> dict[str, Any]:
            params = jax.tree.map(lambda leaf: leaf[0], self._saved_params(optimizer).poc)
            return serialization.fields(loss_slices.loss_slices(self._task, params))

        return loss_slices.LossSlices(**self.cache.get(key, f"slice {self.name}", compute))

    def _saved_params(self, optimizer: EvaluatedOptimizer) -> SavedParams:
        """The params of an optimizer's runs.

        Raises:
          FileNotFoundError: they were not kept beside the runs.
        """
        who = (self.name, optimizer.name, identity(optimizer))
        found = self.cache.results.find(self.keys.saved_params(*who))
        if found is None:
            raise FileNotFoundError(
                f"{self.out_dir} has the runs of {optimizer.label} on {self.name}, but not their "
                "params, around which something is still to be measured. To train these networks "
                f"again, delete cells/{self.keys.training_curves(*who).file_name}."
            )
        return SavedParams(**found)


def image_task(name: str, phase: str = "meta_test") -> tasks.ImageTask:
    """An image task of ours.

    Raises:
      errors.UnknownNameError: nothing is registered under `name`.
      TypeError: the task is not an image task of ours.
    """
    task = tasks.get(name, phase)
    if not isinstance(task, tasks.ImageTask) or not isinstance(
        task.datasets, data_lib.ResidentDatasets
    ):
        raise TypeError(f"Only image tasks of regularized_lopt are meta-tested; {name!r} is none.")
    return task

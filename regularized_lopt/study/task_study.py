"""One task of a study: all optimizers train on it, and what they found is measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import xarray as xr

from regularized_lopt import serialization
from regularized_lopt.measure import dataset, flatness, loss_slices, matched_loss
from regularized_lopt.measure.dataset import Found, Matched
from regularized_lopt.measure.flatness import Flatness
from regularized_lopt.measure.results import POINTS, seed_pairs
from regularized_lopt.study.cache import CacheKey
from regularized_lopt.study.cache_keys import identity
from regularized_lopt.study.steps import Step, cached_step
from regularized_lopt.study.task_runs import Part, TaskRuns


class TaskStudy(TaskRuns):
    """The steps of one task, and what comes of them."""

    def steps(self) -> dict[Part, Step[Any]]:
        """All of the task, in the order in which they are done."""
        return {**self._tuning, **self._training, **self._measuring()}

    def result(self) -> xr.Dataset:
        """What comes of all steps; those whose results are missing are done."""
        found = {part: step.result() for part, step in self.steps().items()}
        of_task = dataset.of_task(
            self.plan.name,
            self._task.facts,
            self.experiment.num_steps,
            self.keys.flatness_config_of(self.plan.name),
            self.experiment.reference,
            {name: self._found(name, found) for name in self._names},
        )
        return of_task.assign_attrs(
            budget=self.experiment.budget,
            tuning_runs=self.experiment.tuning_runs,
            tuning_steps=self.experiment.tuning_steps_on(self.plan.name),
        )

    def _found(self, name: str, found: Mapping[Part, Any]) -> Found:
        first, seeds = self._optimizer(name, 0), self._seeds(name)
        points = POINTS if self.plan.num_measured else ()
        return Found(
            first,
            curves=[found["train", name, seed] for seed in seeds],
            own_property=self.experiment.property_of(first),
            targeted=self.experiment.is_targeted(first),
            at={point: [found["measure", name, seed, point] for seed in seeds] for point in points},
            matched=[found["match", name, *pair] for pair in self._pairs(name)],
            slices=found.get(("slice", name)),
        )

    def _measuring(self) -> dict[Part, Step[Any]]:
        steps: dict[Part, Step[Any]] = {}
        for name in self._names if self.plan.num_measured else ():
            for seed, point in itertools.product(self._seeds(name), POINTS):
                steps["measure", name, seed, point] = self._measuring_step(name, seed, point)
            for own, reference in self._pairs(name):
                steps["match", name, own, reference] = self._matching_step(name, own, reference)
            if name in self.experiment.optimizers:
                steps["slice", name] = self._slicing_step(name)
        return steps

    def _measuring_step(self, name: str, seed: int, point: str) -> Step[Flatness]:
        what = self.keys.flatness_config_of(self.plan.name).at_ends()

        def compute() -> dict[str, Any]:
            saved = self._saved_params(name, seed).first(self.plan.num_measured)
            params = saved.poc if point == "poc" else saved.final
            return serialization.fields(flatness.measure(self._task, params, what))

        return cached_step(
            self.cache,
            "measure",
            f"{self._label(name, seed)}, {point}",
            f"measure {self.plan.name}",
            lambda: self._key(self.keys.flatness, name, seed, point),
            compute,
            lambda tree: Flatness(**tree),
            lambda rates: rates.measuring(self.plan.name),
        )

    def _matching_step(self, name: str, seed: int, other_seed: int) -> Step[Matched]:
        """Of a pair of meta-training seeds that is compared, the reference's the other."""
        sides = {"own": (name, seed), "reference": (self.experiment.reference, other_seed)}

        def key() -> CacheKey | None:
            other = self._find(*sides["reference"])
            if other is None:
                return None
            return self._key(self.keys.matched, name, seed, identity(other))

        def compute() -> dict[str, Any]:
            count = self.plan.num_measured
            what = self.keys.flatness_config_of(self.plan.name).headline_alone()
            curves = {
                side: self._training["train", *who].result().first(count)
                for side, who in sides.items()
            }
            level = matched_loss.common_loss_level(curves["own"], curves["reference"])
            out: dict[str, Any] = {"level": matched_loss.level_loss(level)}
            for side, who in sides.items():
                saved = self._saved_params(*who).first(count)
                params, out[f"{side}_step"] = matched_loss.params_at_level(
                    curves[side], saved, level
                )
                out[side] = serialization.fields(flatness.measure(self._task, params, what))
            return out

        def read(tree: dict[str, Any]) -> Matched:
            for side in sides:
                tree[side] = Flatness(**tree[side])
            return Matched(**tree)

        return cached_step(
            self.cache,
            "match",
            self._label(name, seed),
            f"match {self.plan.name}",
            key,
            compute,
            read,
            lambda rates: rates.matching(self.plan.name),
        )

    def _slicing_step(self, name: str) -> Step[loss_slices.LossSlices]:
        def compute() -> dict[str, Any]:
            params = jax.tree.map(lambda leaf: leaf[0], self._saved_params(name, 0).poc)
            return serialization.fields(loss_slices.loss_slices(self._task, params))

        return cached_step(
            self.cache,
            "slice",
            self._label(name),
            f"slice {self.plan.name}",
            lambda: self._key(self.keys.slices, name, 0),
            compute,
            lambda tree: loss_slices.LossSlices(**tree),
            lambda rates: rates.slicing(self.plan.name),
        )

    def _pairs(self, name: str) -> list[tuple[int, int]]:
        """Of an optimizer's seeds and the reference's, where it is measured at matched loss."""
        if not self.experiment.matches(name, self.plan.name):
            return []
        return seed_pairs(len(self._seeds(name)), len(self._seeds(self.experiment.reference)))

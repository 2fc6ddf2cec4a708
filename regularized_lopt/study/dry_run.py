"""What an experiment will compute and what that will cost, before it is computed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.measure.results import POINTS, seed_pairs
from regularized_lopt.study import study as study_lib
from regularized_lopt.study.cache import CacheKey
from regularized_lopt.study.cache_keys import identity
from regularized_lopt.study.rates import NotMeasuredError, Rates


@dataclasses.dataclass(frozen=True)
class PlannedResult:
    """A line of the plan.

    Attributes:
      stage: "meta-train", "tune", "train", "measure", "match", "slice" or "early evidence".
      label: of the result.
      cached: it is there.
      seconds: what it took, or is estimated to take; None: nothing measured to go by.
    """

    stage: str
    label: str
    cached: bool
    seconds: float | None


def plan(study: study_lib.Study, measure_rates: bool = False) -> list[PlannedResult]:
    """All results of an experiment; computes none.

    Args:
      study: what is planned.
      measure_rates: time a few steps of whatever is neither computed nor timed yet, which takes
        minutes. Rates are kept in the study's directory, and read from there in any case.
    """
    return list(_Plan(study, measure_rates).lines())


class _Plan:
    def __init__(self, study: study_lib.Study, measure_rates: bool):
        self._study = study
        self._experiment = study.experiment
        self._rates = Rates(study, measure_rates)

    def lines(self) -> Iterator[PlannedResult]:
        """In the order in which they are computed."""
        optimizers: dict[str, list[EvaluatedOptimizer | None]] = {}
        for name, source in self._experiment.optimizers.items():
            seeds = self._study.optimizers.seeds(name)
            optimizers[name] = [
                self._study.optimizers.trained(name, source, seed) for seed in seeds
            ]
            for seed, one in zip(seeds, optimizers[name], strict=True):
                label = f"{name}, seed {seed}" if source.endswith(".gin") else f"{name}, given"
                yield self._meta_training(name, source, seed, label, one)
        for task in self._experiment.plans:
            yield from self._task(task, optimizers)
        if self._experiment.early_evidence:
            yield from self._early_evidence()

    def _meta_training(
        self, name: str, source: str, seed: int, label: str, one: EvaluatedOptimizer | None
    ) -> PlannedResult:
        return self._line(
            "meta-train",
            label,
            one is not None,
            f"meta-train {name}",
            lambda rates: rates.meta_training(source, seed),
        )

    def _early_evidence(self) -> Iterator[PlannedResult]:
        found: dict[str, EvaluatedOptimizer | None] = {}
        for name, source in self._experiment.early_evidence.items():
            found[name] = self._study.optimizers.trained(study_lib.early_name(name), source, 0)
            label = f"early evidence, {name}"
            yield self._meta_training(study_lib.early_name(name), source, 0, label, found[name])
        learned = {name: identity(one) for name, one in found.items() if one is not None}
        key = self._study.keys.early_evidence(learned) if len(learned) == len(found) else None
        yield self._line(
            "early evidence",
            "cubic polynomials",
            self._cached(key),
            "early evidence",
            lambda rates: rates.early_evidence(),
        )

    def _task(
        self, task: str, learned: Mapping[str, Sequence[EvaluatedOptimizer | None]]
    ) -> Iterator[PlannedResult]:
        optimizers = {name: list(of) for name, of in learned.items()}
        for name in self._experiment.baselines_on(task):
            tuned = self._study.on(task).tuned(name)
            optimizers[name] = [tuned]
            yield self._line(
                "tune",
                f"{task}, {name}",
                tuned is not None,
                f"tune {task} {name}",
                functools.partial(Rates.tuning, task=task, name=name),
            )
        reference = optimizers[self._experiment.reference]
        for name in self._experiment.optimizers_on(task):
            pairs = seed_pairs(len(optimizers[name]), len(reference))
            for index, one in enumerate(optimizers[name]):
                yield from self._optimizer(task, name, index, one)
                if self._experiment.matches(name, task):
                    others = [reference[b] for a, b in pairs if a == index]
                    yield from self._matches(task, name, index, one, others)

    def _optimizer(
        self,
        task: str,
        name: str,
        index: int,
        one: EvaluatedOptimizer | None,
    ) -> Iterator[PlannedResult]:
        label = _label(task, name, index)
        made: dict[str, CacheKey] = {}
        if one is not None:
            who = (task, name, identity(one))
            made = {point: self._study.keys.flatness(*who, point) for point in POINTS}
            made |= {
                "train": self._study.keys.training_curves(*who),
                "slice": self._study.keys.slices(*who),
            }
        yield self._line(
            "train",
            label,
            self._cached(made.get("train")),
            f"train {task} {name}",
            lambda rates: rates.training(task, name),
        )
        if not self._experiment.plans[task].num_measured:
            return
        for point in POINTS:
            yield self._line(
                "measure",
                f"{label}, {point}",
                self._cached(made.get(point)),
                f"measure {task}",
                lambda rates: rates.measuring(task),
            )
        if name in self._experiment.optimizers and not index:
            yield self._line(
                "slice",
                label,
                self._cached(made.get("slice")),
                f"slice {task}",
                lambda rates: rates.slicing(task),
            )

    def _matches(
        self,
        task: str,
        name: str,
        index: int,
        one: EvaluatedOptimizer | None,
        others: Sequence[EvaluatedOptimizer | None],
    ) -> Iterator[PlannedResult]:
        """With every seed of the reference that it is compared with."""
        for other in others:
            key = None
            if one is not None and other is not None:
                key = self._study.keys.matched(task, name, identity(one), identity(other))
            yield self._line(
                "match",
                _label(task, name, index),
                self._cached(key),
                f"match {task}",
                lambda rates: rates.matching(task),
            )

    def _cached(self, key: CacheKey | None) -> bool:
        return key is not None and key in self._study.cache.results

    def _line(
        self, stage: str, label: str, cached: bool, timing: str, estimate: Callable[[Rates], float]
    ) -> PlannedResult:
        # What the same work took, here, before; else by the rates of its parts.
        seconds = self._study.cache.timings.get(timing)
        if seconds is None and not cached:
            with contextlib.suppress(NotMeasuredError):
                seconds = estimate(self._rates)
        return PlannedResult(stage, label, cached, seconds)


def _label(task: str, name: str, index: int) -> str:
    """Of an optimizer's meta-training seed, by its place."""
    return f"{task}, {name}" + (f", #{index}" if index else "")

"""What the measurements say: paired comparisons, the declared tests, and a verdict for each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from regularized_lopt.evaluation import statistics
from regularized_lopt.evaluation.landscape import LossSlices
from regularized_lopt.evaluation.properties import PROPERTIES, Measurement, Surroundings
from regularized_lopt.evaluation.runs import Runs

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
UNDECIDED = "undecided"
UNDERPOWERED = "underpowered"

POINTS = ("poc", "completion")
MEASURES = ("absolute", "relative", "matched")
"""Ways of measuring a property, each judged by itself: in either radius, and in the relative one at
matched training loss."""


@dataclasses.dataclass(frozen=True)
class Matched:
    """A contestant and the reference, each when it first reached the same training loss.

    Attributes:
      level: [runs], the training loss (nats); NaN where it was not comparable.
      own_step, reference_step: [runs].
      own, reference: what was measured around the params there, at the headline radius alone.
    """

    level: np.ndarray
    own_step: np.ndarray
    reference_step: np.ndarray
    own: Surroundings
    reference: Surroundings


@dataclasses.dataclass(frozen=True)
class Result:
    """One contestant on one task: what was found with each of its meta-training seeds.

    Attributes:
      name: in tables, with the learning rate of a baseline.
      own_property: which one it should have learned: "sam", "gsam" or "gam".
      gradients_per_step: of the loss.
      learning_rate: of a baseline; None: it was learned.
      runs: per seed.
      at: per point ("poc", "completion"), per seed; empty: nothing was measured.
      matched: per pair of seeds, see `seed_pairs`; empty for the reference, and where that was not
        measured.
      slices: of the loss around the PoC of the first run, if they were asked for.
      targeted: whether it was trained for its own property, which else is merely what to show.
    """

    name: str
    own_property: str
    gradients_per_step: int
    learning_rate: float | None
    runs: Sequence[Runs]
    at: Mapping[str, Sequence[Surroundings]]
    matched: Sequence[Matched]
    slices: LossSlices | None = None
    targeted: bool = True

    @property
    def is_learned(self) -> bool:
        """Not a baseline."""
        return self.learning_rate is None

    @property
    def judged_by(self) -> str:
        """The property that tells whether it finds flat minima: for SAM's the rise, max L - L.

        The larger part of max L is L itself, which is how well a network was trained.
        """
        return "gsam" if self.own_property == "sam" else self.own_property

    def accuracy(self) -> np.ndarray:
        """[seeds, runs], percent, at completion."""
        return np.stack([100 * runs.test_accuracy[:, -1] for runs in self.runs])

    def final_train_loss(self) -> np.ndarray:
        """[seeds, runs], nats."""
        return np.stack([runs.final_train_loss for runs in self.runs])

    def param_norm(self) -> np.ndarray:
        """[seeds, runs], at completion."""
        return np.stack([runs.param_norm[:, -1] for runs in self.runs])

    def last(self, name: str, point: str, radius: int, scale: str = "absolute") -> np.ndarray:
        """[seeds, runs]: a property after the last ascent step at one radius (index)."""
        return np.stack([s.last(name, scale)[:, radius] for s in self.at[point]])


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """All contestants on one task.

    Attributes:
      task: its name.
      num_steps: inner steps.
      measurement: what was measured.
      reference: name (key) of the contestant that others are compared with.
      contestants: by key.
    """

    task: str
    num_steps: int
    measurement: Measurement
    reference: str
    contestants: Mapping[str, Result]

    @property
    def is_measured(self) -> bool:
        """Whether anything was measured around the params."""
        return bool(self.reference_result.at)

    @property
    def others(self) -> Iterator[tuple[str, Result]]:
        """All contestants but the reference."""
        return ((k, r) for k, r in self.contestants.items() if k != self.reference)

    @property
    def learned(self) -> Iterator[tuple[str, Result]]:
        """The learned ones among the others."""
        return ((k, r) for k, r in self.others if r.is_learned)

    @property
    def reference_result(self) -> Result:
        """The contestant that others are compared with."""
        return self.contestants[self.reference]


def names(results: Sequence[TaskResult]) -> list[str]:
    """Keys of all contestants in order of appearance, the learned ones before the baselines."""
    learned = {k: one.is_learned for result in results for k, one in result.contestants.items()}
    return sorted(learned, key=lambda name: not learned[name])


def units(values: np.ndarray) -> np.ndarray:
    """[seeds, runs] -> the independent units: means over runs where there are several seeds.

    Runs of one trained optimizer tell about that optimizer; of a regularizer tell only optimizers
    that were trained anew.
    """
    return values.mean(axis=1) if values.shape[0] > 1 else values[0]


def seed_pairs(own: int, reference: int) -> list[tuple[int, int]]:
    """Places of the meta-training seeds that are compared, of two numbers of seeds.

    One seed (a baseline has no more) goes with every seed of the other; of two unequal numbers, the
    seeds that both have are paired.
    """
    if 1 in (own, reference):
        return list(itertools.product(range(own), range(reference)))
    return [(place, place) for place in range(min(own, reference))]


def paired_units(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The independent units of both, [seeds, runs] each, in the pairs of `seed_pairs`."""
    own, reference = zip(*seed_pairs(len(a), len(b)), strict=True)
    return units(a[list(own)]), units(b[list(reference)])


def compare(a: np.ndarray, b: np.ndarray) -> statistics.Difference:
    """a - b, both [seeds, runs], over the independent units."""
    return statistics.paired_difference(*paired_units(a, b))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a contestant has a property more than the reference has.

    Attributes:
      task, contestant, property, point: of which it is said.
      absolute, relative: difference to the reference at the headline radius; negative: flatter.
      matched: the same in the relative radius where both first reached the same training loss,
        whatever `point` is.
      decision: of the declared family's test; None for what is merely described.
    """

    task: str
    contestant: str
    property: str
    point: str
    absolute: statistics.Difference
    relative: statistics.Difference
    matched: statistics.Difference
    decision: statistics.Decision | None

    def by(self, measure: str) -> str:
        """What one of `MEASURES` says by its 95% interval, whatever the others say."""
        return _outcome(getattr(self, measure).sign)

    def text(self) -> str:
        """The measures by what they say: "holds: relative; undecided: absolute, matched"."""
        said = {
            outcome: [measure for measure in MEASURES if self.by(measure) == outcome]
            for outcome in (HOLDS, DOES_NOT_HOLD, UNDECIDED)
        }
        return "; ".join(f"{outcome}: {', '.join(by)}" for outcome, by in said.items() if by)

    def declared(self) -> str:
        """What the declared test decides, in absolute radius; empty where none was declared."""
        if self.decision is None:
            return ""
        return UNDERPOWERED if self.decision.underpowered else _outcome(self.decision.sign)


def _outcome(sign: int) -> str:
    """Of a difference to the reference, of which less is flatter."""
    return {-1: HOLDS, 0: UNDECIDED, 1: DOES_NOT_HOLD}[sign]


def judge(
    results: Sequence[TaskResult],
    primary: tuple[str, str] | None = None,
    alpha: float = 0.05,
    test: str = "auto",
) -> list[Verdict]:
    """A verdict for every contestant, property and point of every task that was measured.

    Args:
      results: by task.
      primary: (contestant, property) of the declared family: one test per task, at completion, at
        the headline radius, together under Holm's procedure; everything else is judged by its
        95% intervals, one by one, and is descriptive. None: nothing is declared.
      alpha: of the family.
      test: see `statistics.decide`.
    """
    decisions: Mapping[str, statistics.Decision] = {}
    if primary is not None:
        family = {}
        for result in results:
            tested = primary[0] in result.contestants and primary[0] != result.reference
            if result.is_measured and tested:
                pair = property_pair(result, primary[0], primary[1], "completion", "absolute")
                family[result.task] = statistics.differences(*paired_units(*pair))
        decisions = statistics.decide(family, alpha, test) if family else {}
    return [
        _verdict(
            result,
            key,
            name,
            point,
            decisions.get(result.task)
            if (key, name) == primary and point == "completion"
            else None,
        )
        for result in results
        if result.is_measured
        for key, _ in result.others
        for name in PROPERTIES
        for point in POINTS
    ]


def _verdict(
    result: TaskResult, key: str, name: str, point: str, decision: statistics.Decision | None
) -> Verdict:
    measured = {
        measure: compare(*measured_pair(result, key, name, point, measure)) for measure in MEASURES
    }
    return Verdict(result.task, key, name, point, **measured, decision=decision)


def measured_pair(
    result: TaskResult, key: str, name: str, point: str, measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """A property by one of `MEASURES`, [seeds, runs]: (contestant's, reference's)."""
    if measure == "matched":
        return matched_pair(result.contestants[key], name)
    return property_pair(result, key, name, point, measure)


def matched_pair(contestant: Result, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A property at matched training loss, relative radius, [pairs, runs]: (own, reference's).

    NaN where it was not measured.
    """
    if not contestant.matched:
        return np.full((1, 1), np.nan), np.full((1, 1), np.nan)
    pairs: list[list[Any]] = [
        [getattr(m, side).last(name, "relative")[:, 0] for m in contestant.matched]
        for side in ("own", "reference")
    ]
    return np.stack(pairs[0]), np.stack(pairs[1])


def property_pair(
    result: TaskResult, key: str, name: str, point: str, scale: str
) -> tuple[np.ndarray, np.ndarray]:
    """A property at the headline radius, [seeds, runs]: (contestant's, reference's)."""
    radius = result.measurement.headline
    return (
        result.contestants[key].last(name, point, radius, scale),
        result.reference_result.last(name, point, radius, scale),
    )

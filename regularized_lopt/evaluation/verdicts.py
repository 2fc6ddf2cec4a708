"""What the measurements say: paired comparisons, the declared tests, and a verdict for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from regularized_lopt.evaluation import statistics
from regularized_lopt.evaluation.landscape import LossSlices
from regularized_lopt.evaluation.properties import PROPERTIES, Measurement, Surroundings
from regularized_lopt.evaluation.runs import Runs

HOLDS = "holds"
ABSOLUTE_ONLY = "holds only in absolute radius"
DOES_NOT_HOLD = "does not hold"
UNDECIDED = "undecided"
UNDERPOWERED = "underpowered"
VERDICTS = (HOLDS, ABSOLUTE_ONLY, DOES_NOT_HOLD, UNDECIDED, UNDERPOWERED)

POINTS = ("poc", "completion")


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
      matched: per seed; empty for the reference, and where nothing was measured.
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


def paired_units(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The independent units of both, [seeds, runs] each.

    One seed goes with any number; of two unequal numbers, the seeds that both have.
    """
    if 1 not in (len(a), len(b)):
        both = min(len(a), len(b))
        a, b = a[:both], b[:both]
    a, b = np.broadcast_arrays(a, b)
    return units(a), units(b)


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
      verdict: one of `VERDICTS`.
    """

    task: str
    contestant: str
    property: str
    point: str
    absolute: statistics.Difference
    relative: statistics.Difference
    matched: statistics.Difference
    decision: statistics.Decision | None
    verdict: str


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
    absolute = compare(*property_pair(result, key, name, point, "absolute"))
    relative = compare(*property_pair(result, key, name, point, "relative"))
    matched = compare(*matched_pair(result.contestants[key], name))
    sign = absolute.sign if decision is None else decision.sign
    if decision is not None and decision.underpowered:
        verdict = UNDERPOWERED
    elif sign > 0:
        verdict = DOES_NOT_HOLD
    elif sign == 0:
        verdict = UNDECIDED
    elif relative.sign < 0 and matched.sign < 0:
        verdict = HOLDS
    else:
        verdict = ABSOLUTE_ONLY
    return Verdict(result.task, key, name, point, absolute, relative, matched, decision, verdict)


def matched_pair(contestant: Result, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A property at matched training loss, relative radius, [seeds, runs]: (own, reference's)."""
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

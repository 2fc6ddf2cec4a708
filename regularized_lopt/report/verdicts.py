"""What the measurements say: paired comparisons, the declared tests, and a verdict for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regularized_lopt import statistics
from regularized_lopt.measure.flatness import PROPERTIES
from regularized_lopt.measure.results import POINTS, Result, TaskResult, seed_pairs

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
UNDECIDED = "undecided"
UNDERPOWERED = "underpowered"

MEASURES = ("absolute", "relative", "matched")
"""Ways of measuring a property, each judged by itself: in either radius, and in the relative one at
matched training loss."""


def units(values: np.ndarray) -> np.ndarray:
    """[seeds, runs] -> the independent units: means over runs where there are several seeds.

    Runs of one trained optimizer tell about that optimizer; of a regularizer tell only optimizers
    that were trained anew.
    """
    return values.mean(axis=1) if values.shape[0] > 1 else values[0]


def paired_units(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The independent units of both, [seeds, runs] each, in the pairs of `seed_pairs`."""
    own, reference = zip(*seed_pairs(len(a), len(b)), strict=True)
    return units(a[list(own)]), units(b[list(reference)])


def compare(a: np.ndarray, b: np.ndarray) -> statistics.Difference:
    """a - b, both [seeds, runs], over the independent units."""
    return statistics.paired_difference(*paired_units(a, b))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether an optimizer has a property more than the reference has.

    Attributes:
      task, optimizer, property, point: of which it is said.
      absolute, relative: difference to the reference at the headline radius; negative: flatter.
      matched: the same in the relative radius where both first reached the same training loss,
        whatever `point` is.
      decision: of the declared family's test; None for what is merely described.
    """

    task: str
    optimizer: str
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
    """A verdict for every optimizer, property and point of every task that was measured.

    Args:
      results: by task.
      primary: (optimizer, property) of the declared family: one test per task, at completion, at
        the headline radius, together under Holm's procedure; everything else is judged by its
        95% intervals, one by one, and is descriptive. None: nothing is declared.
      alpha: of the family.
      test: see `statistics.decide`.
    """
    decisions: Mapping[str, statistics.Decision] = {}
    if primary is not None:
        family = {}
        for result in results:
            tested = primary[0] in result.optimizers and primary[0] != result.reference
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
    """A property by one of `MEASURES`, [seeds, runs]: (optimizer's, reference's)."""
    if measure == "matched":
        return matched_pair(result.optimizers[key], name)
    return property_pair(result, key, name, point, measure)


def matched_pair(one: Result, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A property at matched training loss, relative radius, [pairs, runs]: (own, reference's).

    NaN where it was not measured.
    """
    if not one.matched:
        return np.full((1, 1), np.nan), np.full((1, 1), np.nan)
    pairs: list[list[Any]] = [
        [getattr(m, side).last(name, "relative")[:, 0] for m in one.matched]
        for side in ("own", "reference")
    ]
    return np.stack(pairs[0]), np.stack(pairs[1])


def property_pair(
    result: TaskResult, key: str, name: str, point: str, scale: str
) -> tuple[np.ndarray, np.ndarray]:
    """A property at the headline radius, [seeds, runs]: (optimizer's, reference's)."""
    radius = result.flatness_config.headline
    return (
        result.optimizers[key].last(name, point, radius, scale),
        result.reference_result.last(name, point, radius, scale),
    )

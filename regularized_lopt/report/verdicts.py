"""What the measurements say: paired comparisons, the declared tests, and a verdict for each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from regularized_lopt import statistics
from regularized_lopt.measure import selections
from regularized_lopt.measure.flatness import PROPERTIES
from regularized_lopt.measure.results import POINTS, paired

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
    own, reference = paired(a, b)
    return units(own), units(reference)


def compare(a: np.ndarray, b: np.ndarray, bootstrap: bool = True) -> statistics.Difference:
    """a - b, both [seeds, runs], over the independent units; see `statistics.paired_difference`."""
    return statistics.paired_difference(*paired_units(a, b), bootstrap=bootstrap)


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
    tasks: Sequence[xr.Dataset],
    primary: tuple[str, str] | None = None,
    alpha: float = 0.05,
    test: str = "auto",
) -> list[Verdict]:
    """A verdict for every optimizer, property and point of every task that was measured.

    Args:
      tasks: their datasets.
      primary: (optimizer, property) of the declared family: one test per task, at completion, at
        the headline radius, together under Holm's procedure; everything else is judged by its
        95% intervals, one by one, and is descriptive. None: nothing is declared.
      alpha: of the family.
      test: see `statistics.decide`.
    """
    compared = [
        (task.attrs["task"], str(one["optimizer"].item()), one, selections.reference(task))
        for task in tasks
        if selections.is_measured(task)
        for one in selections.others(task)
    ]
    decisions: Mapping[str, statistics.Decision] = {}
    if primary is not None:
        family = {
            task: statistics.differences(
                *paired_units(*measured_pair(one, base, primary[1], "completion", "absolute"))
            )
            for task, key, one, base in compared
            if key == primary[0]
        }
        decisions = statistics.decide(family, alpha, test) if family else {}
    found = []
    for task, key, one, base in compared:
        for name, point in itertools.product(PROPERTIES, POINTS):
            is_primary = (key, name) == primary and point == "completion"
            measured = {m: compare(*measured_pair(one, base, name, point, m)) for m in MEASURES}
            decision = decisions.get(task) if is_primary else None
            found.append(Verdict(task, key, name, point, **measured, decision=decision))
    return found


def measured_pair(
    one: xr.Dataset, base: xr.Dataset, name: str, point: str, measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """A property by one of `MEASURES`, at the headline radius: (optimizer's, reference's).

    [seeds, runs] each; at matched training loss [pairs, runs], in the relative radius, or NaN where
    that was not measured.

    Args:
      one, base: what there is of the optimizer and of the reference, see `selections.optimizer`.
      name: of the property.
      point: "poc" or "completion"; at matched training loss without a meaning.
      measure: one of `MEASURES`.
    """
    if measure == "matched":
        if not one["pairs"]:
            return np.full((1, 1), np.nan), np.full((1, 1), np.nan)
        own, reference = selections.at(selections.matched(one, name), scale="relative")
        return own, reference
    radius, sides = selections.headline(one), (selections.last(of, name) for of in (one, base))
    own, reference = (selections.at(of, point=point, scale=measure, radius=radius) for of in sides)
    return own, reference

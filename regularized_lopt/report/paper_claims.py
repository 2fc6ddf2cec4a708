"""The six claims of arXiv 2510.08968, each with what was measured and what follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from regularized_lopt import statistics
from regularized_lopt.measure import selections
from regularized_lopt.measure.flatness import LABELS
from regularized_lopt.measure.results import POINTS
from regularized_lopt.report.verdicts import (
    DOES_NOT_HOLD,
    HOLDS,
    MEASURES,
    UNDECIDED,
    Verdict,
    compare,
    measured_pair,
    paired_units,
    units,
)

NOT_MEASURED = "not measured"
_HIGHER = {1: HOLDS, -1: DOES_NOT_HOLD, 0: UNDECIDED}
NOTE = (
    "Claims 2 to 4: each measure (absolute radius, relative radius, matched training loss) is "
    "judged alone, SAM's property by the rise, max L − L. Claim 5: by the ratio, paired by "
    "optimizer. These tests were chosen after the data had been seen and are exploratory. What was "
    "declared beforehand stands beside them."
)
"""What to know about the verdicts."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper and how it fared.

    Attributes:
      text: the claim.
      verdict: in a few words.
      evidence: what was measured, a sentence per line.
      declared: the verdict by what was declared beforehand, where that is another test.
    """

    text: str
    verdict: str
    evidence: tuple[str, ...]
    declared: str = ""

    @property
    def outcome(self) -> str:
        """The verdict, and the declared one beside it."""
        return self.verdict + (f" (declared beforehand: {self.declared})" if self.declared else "")


def table(claims: Sequence[Claim]) -> tuple[list[str], list[list[str]]]:
    """One row per claim: what became of it."""
    return ["claim", "outcome"], [[claim.text, claim.outcome] for claim in claims]


def check_claims(tasks: Sequence[xr.Dataset], judged: Sequence[Verdict]) -> list[Claim]:
    """All six, in the paper's order."""
    accuracy = _accuracy(tasks)
    tasks = [task for task in tasks if selections.is_measured(task)]
    return [
        accuracy,
        _learned(
            "SAM's property holds on all MLPs, CIFAR-10 included, and more at completion than at "
            "convergence.",
            "sam",
            tasks,
            judged,
            lambda facts: facts["architecture"] == "MLP",
        ),
        _learned(
            "GSAM's property holds at one of the two points; weakly for the MLP with ReLU at "
            "convergence.",
            "gsam",
            tasks,
            judged,
            lambda facts: True,
            either_point=True,
        ),
        _learned(
            "GAM's property holds for the CNN on MNIST and Fashion-MNIST, not on CIFAR-10.",
            "gam",
            tasks,
            judged,
            lambda facts: facts["architecture"] == "Conv" and facts["dataset"] != "Cifar10",
        ),
        _relu(tasks),
        _radius(tasks),
    ]


def _accuracy(tasks: Sequence[xr.Dataset]) -> Claim:
    text = "Regularized learned optimizers beat the unregularized one in test accuracy."
    signs, evidence = [], []
    for task in filter(selections.has_accuracy, tasks):
        base = selections.reference(task)
        for one in selections.learned(task):
            if one["regularizer"] == base["regularizer"]:  # None, either.
                continue
            difference = compare(selections.accuracy(one), selections.accuracy(base))
            signs.append(difference.sign)
            evidence.append(f"{_named(one)}: {difference} points.")
    if not signs:
        return Claim(text, NOT_MEASURED, ())
    counts = (signs.count(1), signs.count(-1), signs.count(0))
    evidence.append("{} better, {} worse, {} open by their 95% intervals.".format(*counts))
    if counts[0] == len(signs):
        verdict = HOLDS
    elif counts[1] and not counts[0]:
        verdict = DOES_NOT_HOLD
    elif counts[1]:
        verdict = "holds for some, fails for others"
    else:
        verdict = UNDECIDED if not counts[0] else f"holds in {counts[0]} of {len(signs)}"
    return Claim(text, verdict, tuple(evidence))


def _learned(
    text: str,
    name: str,
    tasks: Sequence[xr.Dataset],
    judged: Sequence[Verdict],
    claimed: Callable[[Mapping[str, str]], bool],
    either_point: bool = False,
) -> Claim:
    """Whether optimizers that were trained for a property have it, where the paper says so."""
    owners = {
        (task.attrs["task"], one["optimizer"].item()): selections.judged_by(one)
        for task in tasks
        for one in selections.learned(task)
        if one["own_property"] == name and one["targeted"]
    }
    relevant = [v for v in judged if owners.get((v.task, v.optimizer)) == v.property]
    if not relevant:
        return Claim(text, NOT_MEASURED, ())
    evidence = [
        f"{v.task}, {v.optimizer}, {LABELS[v.property]} at {v.point}: {v.absolute} in absolute "
        f"radius, {v.relative} in relative, {v.matched} at matched training loss. "
        f"{v.text().capitalize()}."
        for v in relevant
    ]
    by_name = {task.attrs["task"]: task for task in tasks}
    evidence += [_growth(by_name[task], key, by) for (task, key), by in sorted(owners.items())]
    wanted = [v for v in relevant if claimed(by_name[v.task].attrs)]
    if not wanted:
        return Claim(text, NOT_MEASURED, tuple(evidence))
    at = [v for v in wanted if either_point or v.point == "completion"]
    tested = [
        v.declared()
        for v in judged
        if v.decision and (v.task, v.optimizer) in owners and claimed(by_name[v.task].attrs)
    ]
    return Claim(text, _by_measure(at), tuple(evidence), _tally(tested) if tested else "")


def _by_measure(at: Sequence[Verdict]) -> str:
    """What each measure says of all tasks and optimizers; once, where they say the same."""
    said = {}
    for measure in MEASURES:
        cells: dict[tuple[str, str], list[str]] = {}
        for v in at:
            cells.setdefault((v.task, v.optimizer), []).append(v.by(measure))
        said[measure] = _tally([_strongest(found) for found in cells.values()])
    if len(set(said.values())) == 1:
        return said[MEASURES[0]]
    return "; ".join(f"{measure}: {text}" for measure, text in said.items())


def _tally(outcomes: Sequence[str]) -> str:
    """ "undecided in 9, does not hold in 1 of 10", or the one outcome that there is."""
    if len(set(outcomes)) == 1:
        return outcomes[0]
    parts = (f"{outcome} in {outcomes.count(outcome)}" for outcome in dict.fromkeys(outcomes))
    return f"{', '.join(parts)} of {len(outcomes)}"


def _named(one: xr.Dataset) -> str:
    """The optimizer, and on which task."""
    return f"{one.attrs['task']}, {one['optimizer'].item()}"


def _growth(task: xr.Dataset, key: str, name: str) -> str:
    """How much more of the property there is at completion than at convergence."""
    one, base = selections.optimizer(task, key), selections.reference(task)
    poc, end = (
        paired_units(*measured_pair(one, base, name, point, "absolute")) for point in POINTS
    )
    growth = statistics.paired_difference(
        statistics.differences(*end), statistics.differences(*poc)
    )
    ratio = statistics.paired_ratio(end[0] * poc[1], poc[0] * end[1])
    return (
        f"{_named(one)}, {LABELS[name]} in absolute radius, against {task.attrs['reference']}: "
        f"completion less convergence {growth}, completion over convergence {ratio}."
    )


def _strongest(found: Sequence[str]) -> str:
    for verdict in (HOLDS, DOES_NOT_HOLD):
        if verdict in found:
            return verdict
    return found[0]


def _relu(tasks: Sequence[xr.Dataset]) -> Claim:
    """By the ratio, paired by optimizer; the unpaired difference is what was declared."""
    text = "The MLP with ReLU shows a much higher maximum loss nearby than the one with sigmoid."
    with_sigmoid = {_network(task): task for task in tasks if task.attrs["activation"] == "Sigmoid"}
    evidence, found, declared = [], [], []
    for task in tasks:
        sigmoid = with_sigmoid.get(_network(task))
        if task.attrs["activation"] != "Relu" or sigmoid is None:
            continue
        one, other = (selections.reference(either) for either in (task, sigmoid))
        high, low = measured_pair(one, other, "sam", "completion", "absolute")
        pair = paired_units(high, low)
        ratio = statistics.paired_ratio(*pair)
        difference = statistics.unpaired_difference(units(high), units(low))
        found.append(_HIGHER[ratio.sign])
        declared.append(_HIGHER[difference.sign])
        evidence.append(
            f"{_named(one)}: {ratio} times as high, paired by optimizer, "
            f"higher in {np.sum(pair[0] > pair[1])} of {len(pair[0])}; {np.mean(high):.3g} against "
            f"{np.mean(low):.3g} nats, difference {difference}, unpaired."
        )
    if not found:
        return Claim(text, NOT_MEASURED, ())
    return Claim(text, _tally(found), tuple(evidence), _tally(declared))


def _network(task: xr.Dataset) -> tuple[str, ...]:
    """Which it is, but for its activation."""
    return tuple(task.attrs[fact] for fact in ("dataset", "architecture", "sizes"))


def _radius(tasks: Sequence[xr.Dataset]) -> Claim:
    """Where differences stand out most from their spread, over optimizers and tasks."""
    text = "Radius 0.01 reads best."
    effects: list[dict[float, float]] = []
    for task in tasks:
        base = selections.reference(task)
        for one in selections.learned(task):
            found = _effects(one, base)
            if np.isfinite(list(found.values())).all():
                effects.append(found)
    if not effects:
        return Claim(text, NOT_MEASURED, ())
    by_radius = {radius: np.array([found[radius] for found in effects]) for radius in effects[0]}
    best = max(by_radius, key=lambda radius: by_radius[radius].mean())
    lead = {
        radius: statistics.paired_difference(by_radius[best], values)
        for radius, values in by_radius.items()
        if radius != best and len(effects) > 1
    }
    evidence = tuple(
        f"Radius {radius:g}: differences are {values.mean():.2f} standard deviations, on average"
        + (f", {lead[radius]} short of the best." if radius in lead else ".")
        for radius, values in by_radius.items()
    )
    if not lead or any(ahead.sign <= 0 for ahead in lead.values()):
        verdict = UNDECIDED
    else:
        verdict = HOLDS if best == 0.01 else f"{best:g} reads best here"
    return Claim(text, verdict, evidence)


def _effects(one: xr.Dataset, base: xr.Dataset) -> dict[float, float]:
    """By radius, |mean| over standard deviation of the differences to the reference, or NaN."""
    name = one["own_property"].item()
    at = {"point": "completion", "scale": "absolute"}
    a, b = (selections.last(side, name).sel(at) for side in (one, base))
    found = {}
    for radius in a["radius"].values:
        pair = paired_units(a.sel(radius=radius).values, b.sel(radius=radius).values)
        difference = statistics.differences(*pair)
        spread = np.std(difference, ddof=1) if len(difference) > 1 else 0.0
        found[float(radius)] = abs(float(difference.mean() / spread)) if spread > 0 else np.nan
    return found

"""What the paper says of the noisy quadratic problem, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from regularized_lopt import statistics
from regularized_lopt.measure.noisy_quadratic.meta_gradient import Variance
from regularized_lopt.measure.noisy_quadratic.meta_training import MetaTrained
from regularized_lopt.measure.noisy_quadratic.stability import Tried
from regularized_lopt.report.noisy_quadratic.figures import is_stable
from regularized_lopt.report.paper_claims import Claim
from regularized_lopt.report.verdicts import DOES_NOT_HOLD, HOLDS, UNDECIDED

NOTE = (
    "Claims are those of Section 4 of Harrison, Metz & Sohl-Dickstein 2022, in our words. Nothing "
    "was declared beforehand."
)
STATEMENTS = {
    "Theorem 1": "A is stable if P is diagonalizable with real eigenvalues between -a and "
    "2 / lambda_max(H) - a (Theorem 1).",
    "Lemma 2": "With H^(-1/2) as a preconditioner of the update, 2 / sqrt(lambda_max(H)) takes the "
    "place of 2 / lambda_max(H) (Lemma 2).",
    "Lemma 3": "If P = D P~, D diagonal with entries in (0, d_max], D and P~ diagonalizable "
    "together, the bounds on the eigenvalues of P~ are those of P over d_max (Lemma 3).",
}
_ORDERS_OF_MAGNITUDE = 100
"""The least factor that is called orders of magnitude: two of them."""
_RARE = 3e-4
"""Where none was unstable, a larger share of unstable ones has to be excluded, at 95%."""


def check(
    tried: Sequence[Tried],
    maps: Mapping[str, np.ndarray],
    variance: Variance,
    trained: MetaTrained,
) -> list[Claim]:
    """All of them, in the paper's order."""
    return [
        *(_statement(name, [one for one in tried if one.statement == name]) for name in STATEMENTS),
        _changes(maps),
        _variance(variance),
        _meta_training(trained),
    ]


def _statement(name: str, tried: Sequence[Tried]) -> Claim:
    """One that is unstable refutes; none of a few says little, see `_RARE`."""
    failing = [one.kind for one in tried if one.unstable > 0]
    none = [one for one in tried if one.unstable == 0]
    holding = [one.kind for one in none if _share(one)[1] <= _RARE]
    open_ = [one.kind for one in none if _share(one)[1] > _RARE]
    if any(one.claimed for one in tried if one.kind in failing):
        verdict = DOES_NOT_HOLD
    elif failing and not open_:
        verdict = f"{HOLDS} for {', '.join(holding)} alone"
    else:
        verdict = _by_outcome({HOLDS: holding, DOES_NOT_HOLD: failing, UNDECIDED: open_})
    evidence = [
        f"{one.kind}: {100 * one.unstable:.2f}% of {len(one.radius)} have a spectral radius above "
        f"1 ({_interval(one)}), the largest is {one.radius.max():.6g}."
        for one in tried
    ]
    verdict += f" ({min(len(one.radius) for one in tried)} of each kind)"
    return Claim(STATEMENTS[name], verdict, tuple(evidence))


def _by_outcome(outcomes: Mapping[str, Sequence[str]]) -> str:
    """Which has which; where all have one, that alone."""
    said = {outcome: names for outcome, names in outcomes.items() if names}
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{outcome} for {', '.join(names)}" for outcome, names in said.items())


def _share(one: Tried) -> tuple[float, float]:
    """Of unstable ones, the 95% interval of the binomial; where there is none, with one end."""
    count, total = round(one.unstable * len(one.radius)), len(one.radius)
    found = scipy.stats.binomtest(count, total, alternative="two-sided" if count else "less")
    interval = found.proportion_ci(0.95)
    return float(interval.low), float(interval.high)


def _interval(one: Tried) -> str:
    low, high = (100 * end for end in _share(one))
    return f"95%: {low:.3g}% to {high:.3g}%" if low else f"95%: at most {high:.2g}%"


def _changes(maps: Mapping[str, np.ndarray]) -> Claim:
    """Paired by P: of those that a change makes stable or unstable, most have to become stable."""
    before, *changes = maps
    was = is_stable(maps[before])
    evidence = [f"{before}: {was.mean():.1%} of {len(was)} are stable."]
    outcomes: dict[str, list[str]] = {HOLDS: [], DOES_NOT_HOLD: [], UNDECIDED: []}
    for name in changes:
        now = is_stable(maps[name])
        gained, lost = int((now & ~was).sum()), int((was & ~now).sum())
        outcomes[_more(gained, lost)].append(name)
        evidence.append(
            f"{name}: {now.mean():.1%} are stable; {gained} become so, and {lost} are no longer."
        )
    verdict = f"{_by_outcome(outcomes)} ({len(was)} black boxes)"
    return Claim(
        "A nominal term, decay of P and a preconditioner, each alone and all together, bring the "
        "eigenvalues of A into the unit circle (Figure 1).",
        verdict,
        tuple(evidence),
    )


def _more(gained: int, lost: int) -> str:
    """Whether more are gained than lost, by the binomial's 95% interval (exact McNemar)."""
    if not gained + lost:
        return UNDECIDED
    interval = scipy.stats.binomtest(gained, gained + lost).proportion_ci(0.95)
    if interval.low > 0.5:
        return HOLDS
    return DOES_NOT_HOLD if interval.high < 0.5 else UNDECIDED


def _variance(found: Variance) -> Claim:
    """Between the two edges of stability, the first and the last nominal step."""
    horizons, order = np.unique(found.horizons, return_index=True)
    traces, error = found.trace[:, order], found.error[:, order[-1]].max()
    trace, lowest = traces[:, -1], int(traces[:, -1].argmin())
    edges = traces[[0, -1]]
    ratios = edges[:, -1] / trace[lowest]
    margin = 1 + 4 * error
    if len(horizons) == 1:
        verdict = UNDECIDED
    elif np.any(np.diff(edges) <= 0) or ratios.min() < _ORDERS_OF_MAGNITUDE / margin:
        verdict = DOES_NOT_HOLD
    else:
        verdict = HOLDS if ratios.min() > _ORDERS_OF_MAGNITUDE * margin else UNDECIDED
    return Claim(
        "The variance of the meta-gradient grows with the horizon at the edge of stability, and an "
        "intermediate nominal step makes it orders of magnitude lower (Figure 2, left).",
        verdict,
        (
            f"T = {horizons[-1]}: the lowest trace is {trace[lowest]:.3g}, at "
            f"a = {found.nominals[lowest]:.3g}; at a = 0 it is {ratios[0]:.2g} times as large, at "
            f"a = {found.nominals[-1]:.3g} {ratios[1]:.2g} times. Standard errors of these are at "
            f"most {error:.0%}.",
            f"From T = {horizons[0]} to T = {horizons[-1]} it goes from {edges[0, 0]:.3g} to "
            f"{edges[0, -1]:.3g} at a = 0, and from {edges[1, 0]:.3g} to {edges[1, -1]:.3g} at "
            f"a = {found.nominals[-1]:.3g}.",
        ),
    )


def _meta_training(found: MetaTrained) -> Claim:
    """Every other nominal step against the first, which should be 0: on the way, and at the end."""
    unstable = (found.radius > 1).mean(axis=(1, 2))
    on_the_way = against_first(found.expected.mean(axis=-1))
    at_the_end = against_first(found.expected[..., -1])
    outcomes = {
        "stability": _never(unstable[1:]),
        "the meta-loss on the way": _lower(on_the_way),
        "the meta-loss at the end": _lower(at_the_end),
    }
    evidence = [
        f"a = {nominal:.3g}: {share:.1%} of outer steps have a spectral radius above 1."
        for nominal, share in zip(found.nominals, unstable, strict=True)
    ]
    for place, pair in enumerate(zip(on_the_way, at_the_end, strict=True), 1):
        evidence.append(
            f"a = {found.nominals[place]:.3g} less a = {found.nominals[0]:.3g}: mean over outer "
            f"steps {pair[0]}, at the end {pair[1]}."
        )
    return Claim(
        "With a nominal term meta-training is stable and its meta-loss lower (Figure 2, right).",
        "; ".join(f"{what}: {outcome}" for what, outcome in outcomes.items())
        + f" ({found.radius.shape[1]} seeds)",
        tuple(evidence),
    )


def against_first(values: np.ndarray) -> list[statistics.Difference]:
    """Of each nominal step but the first, [nominal steps, seeds], paired by seed."""
    return [statistics.paired_difference(other, values[0]) for other in values[1:]]


def _never(unstable: np.ndarray) -> str:
    """Whether no share is above zero."""
    if not len(unstable):
        return UNDECIDED
    return DOES_NOT_HOLD if unstable.any() else HOLDS


def _lower(differences: Sequence[statistics.Difference]) -> str:
    if differences and all(one.high < 0 for one in differences):
        return HOLDS
    return DOES_NOT_HOLD if any(one.low > 0 for one in differences) else UNDECIDED

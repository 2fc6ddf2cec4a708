"""What the paper says of the noisy quadratic problem, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from regularized_lopt import statistics
from regularized_lopt.measure.noisy_quadratic.meta_gradient import Variance
from regularized_lopt.measure.noisy_quadratic.meta_training import MetaTrained
from regularized_lopt.measure.noisy_quadratic.stability import Tried
from regularized_lopt.report.noisy_quadratic.figures import stable
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
    failing = [one.kind for one in tried if one.unstable > 0]
    if not failing:
        verdict = HOLDS
    elif any(one.claimed for one in tried if one.kind in failing):
        verdict = DOES_NOT_HOLD
    else:
        verdict = f"holds for {next(one.kind for one in tried if one.claimed)} alone"
    evidence = [
        f"{one.kind}: {100 * one.unstable:.2f}% of {len(one.radius)} have a spectral radius above "
        f"1, the largest is {one.radius.max():.6g}."
        for one in tried
    ]
    return Claim(STATEMENTS[name], verdict, tuple(evidence))


def _changes(maps: Mapping[str, np.ndarray]) -> Claim:
    before, *changes = maps
    shares = {name: stable(values) for name, values in maps.items()}
    # Paired by P: the standard error of a difference is at most that of two unpaired shares.
    margin = 2 * (0.5 / len(maps[before])) ** 0.5
    more = [name for name in changes if shares[name] > shares[before] + margin]
    verdict = HOLDS if more == changes else f"holds for {', '.join(more) or 'none'}"
    evidence = [f"{name}: {100 * share:.1f}% are stable." for name, share in shares.items()]
    return Claim(
        "A nominal term, decay of P and a preconditioner, each alone and all together, bring the "
        "eigenvalues of A into the unit circle (Figure 1).",
        verdict,
        tuple(evidence),
    )


def _variance(found: Variance) -> Claim:
    """Between the two edges of stability, the first and the last nominal step."""
    horizons, order = np.unique(found.horizons, return_index=True)
    traces, error = found.trace[:, order], found.error[:, order[-1]].max()
    trace, lowest = traces[:, -1], int(traces[:, -1].argmin())
    edges = traces[[0, -1]]
    ratios = edges[:, -1] / trace[lowest]
    lower = ratios.min() > _ORDERS_OF_MAGNITUDE * (1 + 4 * error)
    if len(horizons) == 1:
        verdict = UNDECIDED
    else:
        verdict = HOLDS if lower and np.all(np.diff(edges) > 0) else DOES_NOT_HOLD
    return Claim(
        "The variance of the meta-gradient grows with the horizon at the edge of stability, and an "
        "intermediate nominal step makes it orders of magnitude lower (Figure 2, left).",
        verdict,
        (
            f"T = {horizons[-1]}: the lowest trace is {trace[lowest]:.3g}, at "
            f"a = {found.nominals[lowest]:.3g}; at a = 0 it is {ratios[0]:.2g} times as large, at "
            f"a = {found.nominals[-1]:.3g} {ratios[1]:.2g} times.",
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
        "; ".join(f"{what}: {outcome}" for what, outcome in outcomes.items()),
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

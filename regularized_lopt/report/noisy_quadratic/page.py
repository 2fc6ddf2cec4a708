"""Tables, figures and the page of the noisy quadratic problem."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from regularized_lopt.measure.noisy_quadratic.linearization import Linearization, Linearized
from regularized_lopt.measure.noisy_quadratic.meta_gradient import Variance
from regularized_lopt.measure.noisy_quadratic.meta_training import MetaTrained
from regularized_lopt.measure.noisy_quadratic.problem import NoisyQuadratic
from regularized_lopt.measure.noisy_quadratic.stability import Tried
from regularized_lopt.report import export
from regularized_lopt.report.noisy_quadratic import claims, figures
from regularized_lopt.report.sections import Page, Table

_EVERY = 40
"""Outer steps of which meta_training.csv has one."""


@dataclasses.dataclass(frozen=True)
class Results:
    """All that the page is made from.

    Attributes:
      problem: what was optimized.
      maps: eigenvalues by change, see `eigenvalue_maps`.
      tried: the theorem and the lemmas.
      variance: of the meta-gradient.
      trained: courses of meta-training.
      linearization: how optimizers were linearized.
      optimizers: them, by name.
    """

    problem: NoisyQuadratic
    maps: Mapping[str, np.ndarray]
    tried: Sequence[Tried]
    variance: Variance
    trained: MetaTrained
    linearization: Linearization
    optimizers: Mapping[str, Linearized]


def write(found: Results, out_dir: pathlib.Path) -> Page:
    """Writes tables and figures, and returns the page, not written yet."""
    out_dir.mkdir(parents=True, exist_ok=True)
    _write_tables(found, out_dir)
    page = Page("The noisy quadratic problem: what keeps an optimizer stable?", _lead(found))

    def add(figure: Any, name: str, caption: str) -> None:
        (out_dir / f"{name}.png").write_bytes(page.figure(figure, caption, f"{name}.png"))

    checked = claims.check(found.tried, found.maps, found.variance, found.trained)
    page.claims(checked, claims.NOTE)
    page.table_section("Theorem 1, Lemma 2 and Lemma 3", _statements(found.tried), _STATEMENTS)
    for example in _counterexamples(found.tried):
        page.note(example)
    page.table_section("Eigenvalues of A (Figure 1)", _changes(found.maps), _CHANGES)
    add(figures.eigenvalue_maps(found.maps), "eigenvalues", _EIGENVALUES)
    errors = found.variance.error
    page.table_section(
        "Variance of the meta-gradient (Figure 2)",
        _variance(found.variance),
        _VARIANCE.format(errors.max(), np.median(errors)),
    )
    add(figures.meta_learning(found.variance, found.trained), "meta_learning", _META_LEARNING)
    page.table_section(
        "Meta-training (Figure 2)",
        _meta_training(found.trained),
        _META_TRAINING.format(found.trained.optimum),
    )
    if found.optimizers:
        note = _optimizers_note(found.linearization)
        page.table_section("Optimizers, linearized", _optimizers(found.optimizers), note)
        add(figures.optimizers(found.optimizers), "optimizers", _OPTIMIZERS)
    return page


def _lead(found: Results) -> str:
    return (
        f"Harrison, Metz & Sohl-Dickstein 2022 (arXiv 2209.11208), Section 4, with H = "
        f"{_matrix(found.problem.H)}: eigenvalues, the variance of the meta-gradient, "
        f"meta-training, and {len(found.optimizers)} optimizers."
    )


_STATEMENTS = (
    "Eigenvalues of P (of P~ in Lemma 3) are drawn between the bounds of the statement, so that "
    "all A should be stable. The statements are true for the first kind of each. The proof needs "
    "aI + P to be symmetric and positive semi-definite. In Lemma 3 it is where P~ is symmetric and "
    "commutes with D."
)
_CHANGES = "The same random P throughout; stable: a spectral radius below 1."
_EIGENVALUES = (
    "Eigenvalues of A for random P: grey with P alone, in colour with the change; the unit circle."
)
_VARIANCE = (
    "Trace of the variance over seeds, by nominal step, at P = 0. Its standard error is at most "
    "{:.0%} and mostly {:.0%} of it."
)
_META_LEARNING = (
    "Left: a line per horizon. Middle and right: mean and one standard error over seeds; thin: the "
    "losses that meta-training saw, averaged. They are of few random trajectories each, and may "
    "lie below the dashed line, which is the lowest expected one."
)
_META_TRAINING = (
    "Meta-loss in closed form, mean ± standard deviation over seeds; the difference to the first "
    "row is paired by seed. The lowest that any P has: {:.4f}, whatever the nominal step."
)
_OPTIMIZERS = "Eigenvalues of params and state, all states together; the unit circle."


def _matrix(values: np.ndarray) -> str:
    rows = (", ".join(f"{value:.4g}" for value in row) for row in values)
    return f"[{'; '.join(rows)}]"


def _statements(tried: Sequence[Tried]) -> Table:
    rows = [
        [
            f"{one.statement}, {one.kind}",
            f"{one.nominal:.3g}",
            f"{len(one.radius)}",
            f"{100 * one.unstable:.2f}%",
            f"{one.radius.max():.6g}",
        ]
        for one in tried
    ]
    return ["statement", "a", "drawn", "unstable", "largest spectral radius"], rows


def _counterexamples(tried: Sequence[Tried]) -> Iterator[str]:
    for one in tried:
        if one.example is not None:
            yield (
                f"{one.statement}, {one.kind}: P = {_matrix(one.example)} with a = "
                f"{one.nominal:.4g} is within the bounds, and A has a spectral radius of "
                f"{one.example_radius:.4g}."
            )


def _changes(maps: Mapping[str, np.ndarray]) -> Table:
    rows = []
    for name, values in maps.items():
        radius = np.abs(values).max(axis=1)
        quartiles = (f"{value:.3f}" for value in np.quantile(radius, (0.25, 0.5, 0.75)))
        complex_ = np.mean(np.abs(values.imag).max(axis=1) > 0)
        rows.append([name, f"{figures.stable(values):.1%}", *quartiles, f"{complex_:.1%}"])
    header = ["changed", "stable", "spectral radius: 25%", "median", "75%", "complex eigenvalues"]
    return header, rows


def _variance(found: Variance) -> Table:
    rows = []
    for horizon, trace in zip(found.horizons, found.trace.T, strict=True):
        lowest = trace.argmin()
        ends = (f"{trace[place]:.3g}" for place in (0, lowest, -1))
        rows.append([str(horizon), *ends, f"{found.nominals[lowest]:.3g}"])
    return ["T", "a = 0", "lowest", f"a = {found.nominals[-1]:.3g}", "lowest at a ="], rows


def _meta_training(found: MetaTrained) -> Table:
    rows = []
    differences = ["", *map(str, claims.against_first(found.expected[..., -1]))]
    for nominal, loss, radius, difference in zip(
        found.nominals, found.expected, found.radius, differences, strict=True
    ):
        rows.append(
            [
                f"{nominal:.3g}",
                *(_mean(loss[:, step]) for step in (0, loss.shape[1] // 10, -1)),
                difference,
                _mean(radius[:, -1]),
                f"{(radius > 1).mean():.1%}",
            ]
        )
    tenth = found.expected.shape[-1] // 10
    header = ["a", "meta-loss at the start", f"after {tenth} steps", "at the end", "difference"]
    return [*header, "spectral radius at the end", "steps above 1"], rows


def _mean(seeds: np.ndarray) -> str:
    return f"{seeds.mean():.3f} ± {seeds.std(ddof=1):.3f}"


def _optimizers(found: Mapping[str, Linearized]) -> Table:
    rows = [
        [
            name,
            _range(one.params_radius),
            _range(one.joint_radius),
            _range(np.linalg.norm(one.predicted, 2, axis=(1, 2))),
            _range(np.linalg.norm(one.measured, 2, axis=(1, 2))),
            f"{one.disagreement.max():.1%}",
        ]
        for name, one in found.items()
    ]
    header = ["optimizer", "params alone", "params and state", "left, foretold", "left, measured"]
    return [*header, "largest error"], rows


def _range(states: np.ndarray) -> str:
    low, high = f"{states.min():.5f}", f"{states.max():.5f}"
    return low if low == high else f"{low} to {high}"


def _optimizers_note(what: Linearization) -> str:
    return (
        f"Spectral radii of the expected step, linearized at the minimum in the state of "
        f"{what.num_states} trajectories of {what.warmup} steps (lowest to highest). Params alone: "
        f"what stands for A. Left: the largest share of an offset of {what.offset:g} from the "
        f"minimum that is there after {what.horizon} steps, foretold by the linear map of params "
        "and state, and measured. The last column is the largest difference of the two maps, as a "
        "share of the offset: where it is large, the linear map tells of one step and no more."
    )


def _write_tables(found: Results, out_dir: pathlib.Path) -> None:
    """As a reader sees them, and what figures draw."""
    seen = {
        "statements.csv": _statements(found.tried),
        "eigenvalues.csv": _changes(found.maps),
        "optimizers.csv": _optimizers(found.optimizers),
    }
    for name, (header, rows) in seen.items():
        export.write_csv(out_dir / name, (dict(zip(header, row, strict=True)) for row in rows))
    export.write_csv(out_dir / "variance.csv", _variance_rows(found.variance))
    export.write_csv(out_dir / "meta_training.csv", _meta_training_rows(found.trained))


def _variance_rows(found: Variance) -> Iterator[dict[str, Any]]:
    for i, nominal in enumerate(found.nominals):
        for j, horizon in enumerate(found.horizons):
            yield {
                "nominal": float(nominal),
                "horizon": int(horizon),
                "trace": float(found.trace[i, j]),
                "relative_error": float(found.error[i, j]),
                "squared_gradient": float(found.signal[i, j]),
            }


def _meta_training_rows(found: MetaTrained) -> Iterator[dict[str, Any]]:
    """Of every seed, at the start, after every `_EVERY` outer steps, and at the end."""
    last = found.expected.shape[-1] - 1
    for i, nominal in enumerate(found.nominals):
        for seed in range(found.expected.shape[1]):
            for step in sorted({*range(0, last, _EVERY), last}):
                at = (i, seed, step)
                yield {
                    "nominal": float(nominal),
                    "seed": seed,
                    "outer_step": step + 1,
                    "meta_loss": float(found.expected[at]),
                    "observed": float(found.observed[at]),
                    "spectral_radius": float(found.radius[at]),
                }

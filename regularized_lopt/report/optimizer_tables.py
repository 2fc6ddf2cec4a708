"""Tables of the optimizers themselves: how they were made, and what they do on their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
import xarray as xr

from regularized_lopt import statistics
from regularized_lopt.measure import selections
from regularized_lopt.measure.cubic_regression import EarlyEvidence
from regularized_lopt.measure.update_curves import UpdateCurve
from regularized_lopt.report.log_ratios import LogRatio
from regularized_lopt.report.sections import Table
from regularized_lopt.report.tables import summary
from regularized_lopt.report.verdicts import compare


def early_evidence_table(found: EarlyEvidence) -> Table:
    """One row per optimizer; differences to the first."""
    first = next(iter(found.fits.values()))
    header = ["optimizer", "R² (median)", "R²", "vs first (95%)", "‖p‖", "vs first (95%)", "loss"]
    rows = []
    for name, fits in found.fits.items():
        same = fits is first
        rows.append(
            [
                name,
                f"{np.median(fits.r2):.4g}",
                str(statistics.summarize(fits.r2)),
                "" if same else str(statistics.paired_difference(fits.r2, first.r2)),
                str(statistics.summarize(fits.norm)),
                "" if same else str(statistics.paired_difference(fits.norm, first.norm)),
                str(statistics.summarize(fits.train_loss)),
            ]
        )
    return header, rows


def meta_training_table(
    curves: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]],
    losses: Mapping[str, Sequence[float]],
) -> Table:
    """One row per meta-training: how long it was, how well it went, and what it had to survive.

    Args:
      curves: by optimizer and meta-training seed.
      losses: validation losses (nats), by optimizer, one per seed; infinite: none was made.
    """
    header = ["optimizer", "outer steps", "validation loss", "skipped", "drawn anew", "returns"]
    rows = []
    for name, seeds in curves.items():
        for (seed, columns), loss in zip(seeds.items(), losses[name], strict=True):
            counts = [columns[key] for key in ("nonfinite", "redrawn", "rollbacks")]
            rows.append(
                [
                    name if len(seeds) == 1 else f"{name}, seed {seed}",
                    f"{columns['outer_step'].max():.0f}",
                    f"{loss:.4f}" if np.isfinite(loss) else "none made",
                    *(
                        f"{np.nanmax(one):.0f}" if np.isfinite(one).any() else "not recorded"
                        for one in counts
                    ),
                ]
            )
    return header, rows


_LATE = 0.75  # Of the outer steps: where "the end of meta-training" begins.
_SPACES = {"optimizee_rise_at_reference": "params", "meta_rise_at_reference": "theta"}
LEARNED_NOTE = (
    "L_reg − L within the reference radius, which all meta-trainings share (ObjectiveCheck): what "
    "a regularizer should lower, on images of the meta-train half, with params or theta moved. "
    "Geometric means over the validations in the last quarter of the outer steps, then over "
    "meta-training seeds; ratios are paired by seed, with 95% intervals (Student's t on the log "
    "scale). Seeds with a value that is not positive are left out, and their number tells. Beside "
    "each ratio the smallest decrease that so many seeds would show."
)


def objective_table(
    curves: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]], reference: str
) -> Table:
    """One row per optimizer: whether its objective is learned, see `ObjectiveCheck`.

    Args:
      curves: by optimizer and meta-training seed.
      reference: the optimizer that others are compared with.

    Returns:
      The table; without rows where it was not measured of the reference and of another optimizer.
    """
    header = ["optimizer", "validation loss (nats)", f"ratio to {reference} (95%)"]
    for around in _SPACES.values():
        header += [f"L_reg − L around {around} (nats)", f"ratio to {reference} (95%)"]
        header += ["seeds", "would show"]
    measured = {
        name: seeds
        for name, seeds in curves.items()
        if any(np.isfinite(of.get(c, np.nan)).any() for of in seeds.values() for c in _SPACES)
    }
    if reference not in measured or len(measured) < 2:
        return header, []
    return header, [
        [name, *_objective(seeds, measured[reference], name == reference)]
        for name, seeds in measured.items()
    ]


def _objective(
    own: Mapping[int, Mapping[str, np.ndarray]],
    reference: Mapping[int, Mapping[str, np.ndarray]],
    same: bool,
) -> list[str]:
    cells = []
    for column in ("validation_loss", *_SPACES):
        values = np.array([_late(columns, column) for columns in own.values()])
        known = values[np.isfinite(values)]
        cells.append(f"{np.exp(np.log(known).mean()):.4g}" if len(known) else "")
        pairs = [
            (_late(columns, column), _late(reference[seed], column))
            for seed, columns in own.items()
            if seed in reference
        ]
        ratio = LogRatio.of(*np.reshape(pairs, (-1, 2, 1)).swapaxes(0, 1))
        against, seeds, would_show = ratio.cells()
        cells.append("" if same else against)
        if column != "validation_loss":
            cells += [seeds, "" if same else would_show]
    return cells


def _late(columns: Mapping[str, np.ndarray], column: str) -> float:
    """Geometric mean at the end of a meta-training; NaN where a value is not positive, or none."""
    steps = columns["outer_step"]
    values = columns.get(column, np.full_like(steps, np.nan))[steps > _LATE * steps.max()]
    values = values[~np.isnan(values)]
    positive = len(values) > 0 and bool(np.all(values > 0))
    return float(np.exp(np.log(values).mean())) if positive else np.nan


def validation_table(tasks: Sequence[xr.Dataset], losses: Mapping[str, Sequence[float]]) -> Table:
    """One row per task with three optimizers: what the validation loss of meta-training foretells.

    Args:
      tasks: their datasets.
      losses: by optimizer, one (nats) per meta-training seed.

    Spearman's rank correlation over all optimizers and seeds (-1: the lower the loss, the higher
    the test accuracy, or the lower the test loss), and its p of no relation.
    """
    rows = []
    for task in tasks:
        known = [one for one in selections.optimizers(task) if one["optimizer"].item() in losses]
        loss = [value for one in known for value in losses[one["optimizer"].item()]]
        if len(loss) < 3:  # Of two, the order is always right or wrong.
            continue
        reached = np.concatenate([selections.quality(one).mean(axis=1) for one in known])
        if not selections.has_accuracy(task):
            reached = -reached
        found = scipy.stats.spearmanr(loss, np.where(np.isnan(reached), -np.inf, reached))
        rows.append(
            [task.attrs["task"], str(len(loss)), f"{found.statistic:+.2f}", f"{found.pvalue:.2g}"]
        )
    return ["task", "optimizers", "rank correlation", "p"], rows


def smoothness_table(
    curves: Mapping[str, Sequence[Sequence[UpdateCurve]]], reference: str
) -> Table:
    """One row per optimizer: the steepest slope of its update at each scale, with differences.

    Args:
      curves: by optimizer, meta-training seed and scale.
      reference: optimizer that the others are compared with, if it is among them.
    """
    slopes = {
        name: np.array([[curve.roughness for curve in of] for of in seeds])
        for name, seeds in curves.items()
    }
    header = ["optimizer"]
    for curve in next(iter(curves.values()))[0]:
        limit = f"gradients up to {curve.gradient.max():g}"
        header += [f"steepest slope, {limit}", f"vs {reference} (95%)"]
    rows = []
    for name, own in slopes.items():
        row = [name]
        for scale in range(own.shape[1]):
            row.append(summary(own[:, scale, None]))
            other = None if name == reference else slopes.get(reference)
            row.append(
                "" if other is None else str(compare(own[:, scale, None], other[:, scale, None]))
            )
        rows.append(row)
    return header, rows


def compute_table(seconds: Mapping[str, float]) -> Table:
    """Minutes by kind of result, from `TimedCache.spent`."""
    total = sum(seconds.values())
    rows = [[kind, f"{value / 60:.1f}"] for kind, value in sorted(seconds.items())]
    return ["", "minutes"], [*rows, ["all", f"{total / 60:.1f}"]]

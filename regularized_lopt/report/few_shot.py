"""Tables, figure and page of a few-shot study, made of its dataset alone."""

from __future__ import annotations

import pathlib
from typing import Any

import matplotlib
import numpy as np
import xarray as xr

from regularized_lopt import power, statistics
from regularized_lopt.report import plot_style
from regularized_lopt.report.sections import Page, Table

_ACCURACY = (
    "Mean accuracy on the query of {episodes} test episodes, the same for all learners. Over "
    "episodes: 95% interval (Student's t) of the episodes' means over seeds: what another draw of "
    "episodes would give. Over seeds: of the seeds' means: what another meta-training would give."
)
_DIFFERENCES = (
    "Paired by seed, in points, with 95% intervals (Student's t) over seeds. The last column is "
    "the smallest true difference that so many seeds of this spread find with 80% power."
)
_COURSE = (
    "Accuracy on episodes of the validation classes along meta-training: mean over seeds, and one "
    "standard deviation."
)


def write(found: xr.Dataset, out_dir: pathlib.Path) -> Page:
    """Writes the figure, and returns the page, not written yet.

    Args:
      found: accuracy [learner, seed, episode], NaN where a learner has fewer seeds;
        validation_accuracy [optimizer, seed, validation], with coordinate outer_step; attributes
        task, and reference, the learner that others are compared with.
      out_dir: where the figure goes.
    """
    lead = f"{found.attrs['task']}: classes at test are new to all learners."
    page = Page("Few-shot learning", lead)
    page.table_section(
        "Accuracy", _accuracies(found), _ACCURACY.format(episodes=found.sizes["episode"])
    )
    reference = found.attrs["reference"]
    if len(differences := _differences(found, reference)[1]) and found.sizes["seed"] > 1:
        title = f"Less that of {reference}"
        page.table_section(title, (_HEADER, differences), _DIFFERENCES)
    if found.sizes["validation"]:
        page.heading("Meta-training")
        png = page.figure(_course(found), _COURSE, "meta_training.png")
        (out_dir / "meta_training.png").write_bytes(png)
    return page


def _by_seed(found: xr.Dataset, learner: str) -> np.ndarray:
    """[seeds, episodes], in percent, of those seeds that the learner has."""
    values = 100 * found.accuracy.sel(learner=learner).values
    return values[np.isfinite(values).all(axis=1)]


def _mean(values: np.ndarray) -> statistics.Difference:
    return statistics.paired_difference(values, np.zeros_like(values), bootstrap=False)


def _interval(of: statistics.Difference) -> str:
    return f"[{of.low:.2f}, {of.high:.2f}]" if np.isfinite(of.low) else "one alone"


def _accuracies(found: xr.Dataset) -> Table:
    rows = []
    for learner in found.learner.values:
        values = _by_seed(found, learner)
        over_episodes, over_seeds = _mean(values.mean(axis=0)), _mean(values.mean(axis=1))
        rows.append(
            [
                str(learner),
                f"{over_episodes.mean:.2f}",
                _interval(over_episodes),
                _interval(over_seeds),
                str(len(values)),
            ]
        )
    return ["learner", "accuracy, %", "over episodes", "over seeds", "seeds"], rows


_HEADER = ["learner", "difference", "95% interval", "detectable"]


def _differences(found: xr.Dataset, reference: str) -> Table:
    rows = []
    own = _by_seed(found, reference).mean(axis=1)
    for learner in found.learner.values:
        other = _by_seed(found, learner).mean(axis=1)
        if learner == reference or len(own) < 2:
            continue
        if len(other) == 1:  # It does not depend on a seed.
            other = np.repeat(other, len(own))
        if len(other) != len(own):
            continue
        difference = statistics.paired_difference(other, own, bootstrap=False)
        deviation = float(np.std(other - own, ddof=1))
        least = power.detectable_difference(deviation, len(own))
        rows.append(
            [str(learner), f"{difference.mean:+.2f}", _interval(difference), f"{least:.2f}"]
        )
    return _HEADER, rows


def _course(found: xr.Dataset) -> Any:
    with matplotlib.rc_context(plot_style.STYLE):
        figure, (axis,) = plot_style.new_figure(1, width=6.4, height=3.2)
        for name, color in zip(found.optimizer.values, plot_style.cycle(), strict=False):
            runs = 100 * found.validation_accuracy.sel(optimizer=name).values
            seen = np.isfinite(runs).all(axis=0)
            steps = found.outer_step.values[seen]
            plot_style.band(axis, steps, runs[:, seen], color=color, label=str(name))
        axis.set(xlabel="episodes", ylabel="accuracy on validation classes, %")
        plot_style.legend_below(figure, axis)
    return figure

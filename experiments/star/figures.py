"""The paper's Figures 3 and 4 on our data: training loss by inner step, to 200,000.

python experiments/star/figures.py [--folder FOLDER] [--adam_oracle FILE]

FOLDER has the results; default: this one, where beyond_horizon.png is written, too. FILE is
upstream's speedup_over_multiple_baselines.json or a part of it, {task: {"steps": [...],
"train_loss": [...]}}: the lowest loss of any Adam of its grids by step. It is drawn beside ours,
for task and split are upstream's.
"""

import argparse
import json
import pathlib

import matplotlib
import numpy as np
import verdicts
import xarray as xr
from matplotlib import figure as mpl_figure

from regularized_lopt.measure import results_file, selections
from regularized_lopt.report import plot_style

FIGURE = "beyond_horizon.png"
PANELS = {
    "STAR and what it is made of": ("star_0.1", "blackbox", "hyperparam"),
    "One part less": ("star_0.1", "no_nominal", "no_preconditioner", "star_own"),
    "Decay of theta": ("star_0", "star_0.1", "star_0.5", "star_1"),
    "Backpropagation in place of PES": (
        "star_0.1", "star_0.1_bptt", "blackbox", "blackbox_bptt",
    ),
}  # fmt: skip
UPSTREAM = "ImageMLP_FashionMnist8_Relu32"
HIGHEST = 10.0
"""Of what is drawn (nats): above it a run is lost, and how far says nothing."""
FIRST_OF_ORACLE = 1000
"""Upstream's curve is an exponential moving average; before this step it is not to be read."""


def curve(one: xr.Dataset) -> np.ndarray:
    """[seeds, points], the geometric mean over a seed's networks; NaN where one is not finite."""
    losses = one["train_loss"].values.astype(np.float64)
    return np.exp(np.log(losses, where=losses > 0, out=np.full_like(losses, np.nan)).mean(axis=1))


def draw(task: xr.Dataset, oracle: tuple[np.ndarray, np.ndarray] | None) -> mpl_figure.Figure:
    """A thin line per seed, and a thick one for the median seed of each optimizer.

    Args:
      task: results.
      oracle: steps and losses of upstream's Adam, or None.
    """
    known = selections.keys(task)
    there = {title: [name for name in names if name in known] for title, names in PANELS.items()}
    # Where those are not there that a panel is about, another one has what is left of it.
    panels = {
        title: names
        for title, names in there.items()
        if not any(set(names) < set(other) for other in there.values())
    }
    learned = [name for name in known if selections.is_learned(selections.optimizer(task, name))]
    baselines = [name for name in known if name not in learned]
    colors, steps = plot_style.palette([task]), task["loss_step"].values + 1
    with matplotlib.rc_context(plot_style.STYLE):
        figure, axes = plot_style.new_figure(2, rows=-(-len(panels) // 2))
        for axis, (title, names) in zip(axes, panels.items(), strict=False):
            for style, one in plot_style.styled(task, [*names, *baselines], colors):
                # A seed that is not finite is the highest; the others are still drawn.
                seeds = np.nan_to_num(curve(one), nan=np.inf)
                axis.plot(steps, np.median(seeds, axis=0), linewidth=1.6, **style)
                faint = {**style, "label": None, "linewidth": 0.6, "alpha": 0.6}
                axis.plot(steps, seeds.T, **faint)
            if oracle is not None:
                axis.plot(*oracle, ":", color="#606060", label="upstream's Adam, best of grids")
            axis.axvline(verdicts.HORIZON, color="#808080", linewidth=0.8)
            axis.set(xscale="log", yscale="log", xlabel="inner step", ylabel="training loss (nats)")
            axis.set_ylim(top=HIGHEST)
            axis.set_title(title)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        plot_style.legend_below(figure, *axes)
    return figure


def read_oracle(path: pathlib.Path, task: str = UPSTREAM) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of upstream's Adam on a task of its own."""
    curves = json.loads(path.read_text())
    if task not in curves:
        raise ValueError(f"{path} has no curve of {task!r}, but of {', '.join(curves)}.")
    steps, losses = (np.asarray(curves[task][key], float) for key in ("steps", "train_loss"))
    return steps[steps >= FIRST_OF_ORACLE], losses[steps >= FIRST_OF_ORACLE]


def main() -> None:
    """Writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--adam_oracle", type=pathlib.Path)
    given = parser.parse_args()
    oracle = read_oracle(given.adam_oracle) if given.adam_oracle else None
    task = results_file.load(given.folder / results_file.FILE).tasks[0]
    (given.folder / FIGURE).write_bytes(plot_style.to_png(draw(task, oracle)))
    print(given.folder / FIGURE)


if __name__ == "__main__":
    main()

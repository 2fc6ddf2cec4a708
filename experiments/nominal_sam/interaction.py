"""The answer of PROTOCOL.md: the interaction of the nominal term and SAM. Tables and a figure.

python experiments/nominal_sam/interaction.py

Writes interaction.png beside it. Reads the results of this folder (star) and of
experiments/nominal_sam_blackbox. Takes seconds.
"""

import dataclasses
import math
import pathlib

import matplotlib
import numpy as np
import xarray as xr
from matplotlib import figure as mpl_figure

from regularized_lopt import power, statistics
from regularized_lopt.measure import results_file, selections
from regularized_lopt.measure.results import paired
from regularized_lopt.report import log_ratios, plot_style
from regularized_lopt.report.terminal import print_table

FIGURE = "interaction.png"
HERE = pathlib.Path(__file__).parent
STUDIES = {"star": HERE, "blackbox": HERE.with_name("nominal_sam_blackbox")}
LEVEL = 0.05
WITHIN = math.log(0.8), math.log(1.25)
"""What the interval of an interaction that is called none must lie in."""


@dataclasses.dataclass(frozen=True)
class Interaction:
    """The effect of SAM on `blackbox` less that on `star`.

    Attributes:
      difference: its mean over seeds, and interval.
      p: two-sided.
      shown: the smallest one that could have been shown, with 80% power.
    """

    difference: statistics.Difference
    p: float
    shown: float

    @classmethod
    def of(cls, blackbox: np.ndarray, star: np.ndarray) -> "Interaction":
        """Of effects, [seeds] each, of the same seeds."""
        difference = statistics.paired_difference(blackbox, star, bootstrap=False)
        deviation = float(np.std(blackbox - star, ddof=1))
        shown = power.detectable_difference(deviation, len(star))
        return cls(difference, statistics.t_p(blackbox - star), shown)

    def words(self) -> str:
        """The protocol's."""
        if self.p < LEVEL:
            undoes = self.difference.mean < 0
            return "the nominal term undoes it" if undoes else "the nominal term makes it learnable"
        within = WITHIN[0] < self.difference.low and self.difference.high < WITHIN[1]
        return "neither, within a fifth" if within else "open"


def rises(task: xr.Dataset, point: str) -> np.ndarray:
    """[seeds], log ratios of the rise with SAM to that without, in the primary ball."""
    own, base = selections.optimizer(task, "sam"), selections.reference(task)
    found = log_ratios.rise(own, base, "gsam", point, "live", selections.headline(task))
    assert found is not None, f"nothing was measured at {point}"
    return found.logs


def gains(task: xr.Dataset) -> np.ndarray:
    """[seeds], points of accuracy that SAM adds."""
    own, base = selections.optimizer(task, "sam"), selections.reference(task)
    both = paired(selections.accuracy(own), selections.accuracy(base))
    return np.asarray(np.subtract(*(one.mean(axis=-1) for one in both)))


def failures(task: xr.Dataset, best: float) -> dict[str, int]:
    """By arm, seeds that end more than ten points below the best of all."""
    return {
        name: int(
            np.sum(selections.accuracy(selections.optimizer(task, name)).mean(-1) < best - 10)
        )
        for name in selections.keys(task)
    }


def draw(effects: dict[str, dict[str, np.ndarray]]) -> mpl_figure.Figure:
    """A dot per seed, and the mean with its interval.

    Args:
      effects: log ratios of the rise with SAM to that without, [seeds], by where they are measured
        and by half.
    """
    with matplotlib.rc_context(plot_style.STYLE):
        figure, axes = plot_style.new_figure(len(effects))
        for axis, (where, halves) in zip(axes, effects.items(), strict=True):
            for row, ((name, logs), color) in enumerate(
                zip(halves.items(), plot_style.cycle(), strict=False)
            ):
                spread = row + np.linspace(-0.2, 0.2, len(logs))
                axis.plot(np.exp(logs), spread, "o", color=color, alpha=0.4, markersize=4)
                mean = statistics.paired_difference(logs, np.zeros(len(logs)), bootstrap=False)
                low, middle, high = np.exp([mean.low, mean.mean, mean.high])
                axis.plot([low, high], [row, row], color=color, linewidth=2.5)
                axis.plot(middle, row, "|", color=color, markersize=14, label=name)
            axis.axvline(1, color="#808080", linewidth=0.8)
            axis.set(xscale="log", yticks=range(len(halves)), yticklabels=halves, title=where)
            axis.set_xticks(ticks := (0.7, 0.8, 0.9, 1.0, 1.2), map(str, ticks))
            axis.minorticks_off()
            axis.set_xlabel("rise, SAM over none (ratio)")
    return figure


def main() -> None:
    """Prints the tables, and writes the figure."""
    tasks = {
        name: results_file.load(folder / results_file.FILE).tasks[0]
        for name, folder in STUDIES.items()
    }
    rows, effects = [], []
    for name, task in tasks.items():
        matched, done, gain = (
            rises(task, log_ratios.MATCHED),
            rises(task, "completion"),
            gains(task),
        )
        zeros = np.zeros(len(gain))
        ratios = [
            statistics.Ratio(statistics.paired_difference(one, zeros, bootstrap=False))
            for one in (matched, done)
        ]
        gained = statistics.paired_difference(gain, zeros, bootstrap=False)
        rows.append([name, str(len(gain)), *map(str, ratios), str(gained)])
        effects.append((matched, done, gain))
    print_table(
        "SAM against none, by optimizer (95%)",
        ["", "seeds", "rise at matched loss, ratio", "at completion, ratio", "accuracy, points"],
        rows,
    )
    drawn = {
        where: dict(zip(("with nominal term", "without"), of, strict=True))
        for where, of in zip(
            ("at matched training loss", "at completion"), zip(*effects, strict=True), strict=False
        )
    }
    (HERE / FIGURE).write_bytes(plot_style.to_png(draw(drawn)))
    star, blackbox = effects
    labels = ("rise at matched loss, log ratio", "at completion, log ratio", "accuracy, points")
    found = [Interaction.of(b, s) for s, b in zip(star, blackbox, strict=True)]
    print_table(
        "Interaction: blackbox less star (95%)",
        ["", "difference", "p", "would show", "answer"],
        [
            [label, str(one.difference), f"{one.p:.2g}", f"{one.shown:.2g}", answer]
            for label, one, answer in zip(labels, found, (found[0].words(), "", ""), strict=True)
        ],
    )
    best = max(
        float(selections.accuracy(one).mean(axis=-1).max())
        for task in tasks.values()
        for one in selections.optimizers(task)
    )
    print_table(
        "Seeds that fail",
        ["", "none", "sam"],
        [[name, *map(str, failures(task, best).values())] for name, task in tasks.items()],
    )


if __name__ == "__main__":
    main()

"""Trials of a search for hyperparameters: a table, a figure, and the gin files that won."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib import figure as mpl_figure

from regularized_lopt.measure import selections
from regularized_lopt.measure.flatness import HEADLINE_RADIUS, SCALES
from regularized_lopt.measure.trial import Trial
from regularized_lopt.report import export, plot_style


def row(trial: Trial) -> dict[str, Any]:
    """For trials.csv."""
    known = selections.has_accuracy(trial.found)
    accuracy = f"{selections.accuracy(trial.found).mean():.2f}" if known else ""
    train_loss, norm = (selections.final(trial.found, of) for of in ("train_loss", "param_norm"))
    return {
        "variant": trial.variant,
        "bindings": "; ".join(trial.bindings),
        "held_out_loss": f"{trial.loss.mean():.4f}",
        "std": f"{trial.loss.std(ddof=1):.4f}",
        **({"held_out_accuracy": accuracy} if known else {}),
        "train_loss": f"{train_loss.mean():.4f}",
        "param_norm": f"{norm.mean():.1f}",
        "rise_absolute": f"{trial.rise('absolute').mean():.4f}",
        "rise_relative": f"{trial.rise('relative').mean():.4f}",
        "chosen": "yes" if trial.chosen else "",
    }


def write(trials: Sequence[Trial], out_dir: pathlib.Path) -> None:
    """Writes trials.csv, and for every variant chosen/<variant>.gin with what won."""
    out_dir.mkdir(parents=True, exist_ok=True)
    export.write_csv(out_dir / "trials.csv", (row(trial) for trial in trials))
    chosen = out_dir / "chosen"
    chosen.mkdir(exist_ok=True)
    for trial in trials:
        if trial.chosen:
            lines = ["# Found by python -m regularized_lopt.search", *trial.bindings, ""]
            (chosen / f"{trial.variant}.gin").write_text("\n".join(lines))


def plot(trials: Sequence[Trial]) -> mpl_figure.Figure:
    """Held-out loss against the rise of the loss nearby: what each variant's trials buy.

    Trials at more than twice the lowest loss would flatten all others; they are only counted.
    """
    limit = 2 * min(trial.score for trial in trials)
    beyond = sum(trial.score > limit for trial in trials)
    with matplotlib.rc_context(plot_style.STYLE):
        figure, axes = plot_style.new_figure(2)
        variants = dict.fromkeys(trial.variant for trial in trials)
        for axis, scale in zip(axes, SCALES, strict=True):
            for variant, color in zip(variants, plot_style.COLORS, strict=False):
                own = [t for t in trials if t.variant == variant and t.score <= limit]
                for trial in own:
                    axis.plot(
                        trial.rise(scale).mean(),
                        trial.score,
                        "o",
                        color=color,
                        markersize=9 if trial.chosen else 4,
                        label=variant if trial is own[0] else None,
                    )
            axis.set(xscale="log", xlabel="rise of the loss", ylabel="held-out loss (nats)")
            axis.set_title(f"Nearby in {scale} radius {HEADLINE_RADIUS} (large: chosen)")
        if beyond:
            axes[-1].annotate(f"{beyond} beyond the scale", (0.02, 0.95), xycoords="axes fraction")
        axes[0].legend()
    return figure

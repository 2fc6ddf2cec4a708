"""A search for hyperparameters that never sees meta-test data, logged in full.

Every variant gets the same number of trials, each with the same number of outer steps. A trial's
optimizer trains fresh networks on the meta-train images; its score is their loss, at the end, on
the images that are held out of that half. The lowest mean wins.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.measure.flatness import HEADLINE_RADIUS, SCALES, FlatnessConfig
from regularized_lopt.measure.results import Result
from regularized_lopt.report import export, plot_style
from regularized_lopt.study import locks
from regularized_lopt.study.experiment import Experiment
from regularized_lopt.study.study import Study

Bindings = tuple[str, ...]


@configurable()
@dataclasses.dataclass(frozen=True)
class Search:
    """What is tried.

    Attributes:
      variants: gin file of each variant, by name. The first is the base: what it finds holds for
        the others too, so that they search for what is theirs.
      trials: gin bindings of each trial, by variant; as many for each.
      task: name of the image task that is meta-trained on.
      bindings: gin bindings of all trials, e.g. a number of outer steps.
      num_runs: networks that judge a trial, > 0.
      num_steps: inner steps of each, > 0.
      seed: of meta-training and of those networks, 0 to 2^32 - 1.
    """

    variants: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trials: Mapping[str, Sequence[Bindings]] = dataclasses.field(default_factory=dict)
    task: str = "ImageMLP_Mnist_20_Sigmoid"
    bindings: Bindings = ()
    num_runs: int = 4
    num_steps: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {name: len(self.trials.get(name, ())) for name in self.variants}
        alike = len(set(counts.values())) == 1 and 0 not in counts.values()
        if set(self.trials) != set(self.variants) or not alike:
            raise ValueError(
                f"Search.trials gives {counts} for Search.variants {sorted(self.variants)}: give "
                "each variant, and no other, the same number of trials, at least one."
            )
        errors.check_count("Search.num_runs", self.num_runs)
        errors.check_count("Search.num_steps", self.num_steps)
        errors.check_seed("Search.seed", self.seed)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial and what came of it.

    Attributes:
      variant: its name.
      bindings: what was tried.
      result: runs on meta-train images, judged on held-out ones, and what was measured around their
        ends.
      chosen: whether it is the variant's best.
    """

    variant: str
    bindings: Bindings
    result: Result
    chosen: bool = False

    @property
    def loss(self) -> np.ndarray:
        """[runs], held-out loss (nats) at the end."""
        return self.result.curves[0].test_loss[:, -1]

    @property
    def score(self) -> float:
        """Its mean; infinite if any run diverged."""
        return float(np.nan_to_num(self.loss.mean(), nan=np.inf))

    def rise(self, scale: str) -> np.ndarray:
        """[runs], of the held-out loss within `HEADLINE_RADIUS` of the end."""
        return self.result.at["completion"][0].last("gsam", scale)[:, 0]

    def row(self) -> dict[str, Any]:
        """For trials.csv."""
        curves = self.result.curves[0]
        return {
            "variant": self.variant,
            "bindings": "; ".join(self.bindings),
            "held_out_loss": f"{self.loss.mean():.4f}",
            "std": f"{self.loss.std(ddof=1):.4f}",
            "held_out_accuracy": f"{100 * curves.test_accuracy[:, -1].mean():.2f}",
            "train_loss": f"{curves.final_train_loss.mean():.4f}",
            "param_norm": f"{curves.param_norm[:, -1].mean():.1f}",
            "rise_absolute": f"{self.rise('absolute').mean():.4f}",
            "rise_relative": f"{self.rise('relative').mean():.4f}",
            "chosen": "yes" if self.chosen else "",
        }


def search(
    what: Search, out_dir: str | pathlib.Path, progress: bool = True
) -> Iterator[list[Trial]]:
    """Runs what is missing; yields the trials of one variant after the other.

    What is wrong with one is said when it is reached, or of all at once by `check`.

    Args:
      what: is tried.
      out_dir: keeps trained optimizers and runs; what is there is not made again. Processes that
        search in the same one share the trials.
      progress: show progress bars.
    """
    out_dir = pathlib.Path(out_dir)
    base: Bindings = ()
    first = next(iter(what.variants))
    for variant, source in what.variants.items():
        trials = {
            f"{variant}-{number}": (*base, *bindings)
            for number, bindings in enumerate(what.trials[variant], 1)
        }
        done = locks.share(
            {
                name: functools.partial(_try, what, name, source, bindings, out_dir, progress)
                for name, bindings in trials.items()
            },
            out_dir / "locks",
        )
        tried = [Trial(variant, trials[name], result) for name, result in done.items()]
        best = int(np.argmin([trial.score for trial in tried]))
        tried[best] = dataclasses.replace(tried[best], chosen=True)
        if variant == first:
            base = tried[best].bindings
        yield tried


def check(what: Search, out_dir: str | pathlib.Path) -> None:
    """Refuses what is wrong before anything is trained, as `Study.check` does.

    That is every trial, with whatever the first variant may find.
    """
    first = next(iter(what.variants))
    for variant, source in what.variants.items():
        for base in [()] if variant == first else what.trials[first]:
            for bindings in what.trials[variant]:
                _study(what, variant, source, (*base, *bindings), out_dir).check()


def _try(
    what: Search,
    name: str,
    source: str,
    bindings: Bindings,
    out_dir: pathlib.Path,
    progress: bool,
) -> Result:
    (found,) = _study(what, name, source, bindings, out_dir, progress).run()
    return found.optimizers[name]


def _study(
    what: Search,
    name: str,
    source: str,
    bindings: Bindings,
    out_dir: str | pathlib.Path,
    progress: bool = True,
) -> Study:
    experiment = Experiment(
        optimizers={name: source},
        tasks=(what.task,),
        phase="meta_train",
        reference=name,
        baselines=(),
        num_runs=what.num_runs,
        num_steps=what.num_steps,
        seed=what.seed,
        meta_training_seeds=(what.seed,),
        bindings=(*what.bindings, *bindings),
    )
    flatness_config = FlatnessConfig(radii=(HEADLINE_RADIUS,), num_probes=0)
    return Study(experiment, out_dir, flatness_config, progress=progress)


def write(trials: Sequence[Trial], out_dir: pathlib.Path) -> None:
    """Writes trials.csv, and for every variant chosen/<variant>.gin with what won."""
    out_dir.mkdir(parents=True, exist_ok=True)
    export.write_csv(out_dir / "trials.csv", (trial.row() for trial in trials))
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

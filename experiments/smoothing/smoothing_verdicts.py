"""What PROTOCOL.md's measures are, and what they say on the paper's statements: prints tables.

python experiments/smoothing/smoothing_verdicts.py [FOLDER]

FOLDER: with the studies' folders (smoothing_mnist, ...); default: the one above this. Studies
without results are open. Takes a minute.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from regularized_lopt import power, run_files, statistics, zoo
from regularized_lopt.measure import results_file, selections
from regularized_lopt.measure.optimizers import BASELINES
from regularized_lopt.measure.results import paired
from regularized_lopt.measure.update_curves import NUM_WARMUP, update_curve
from regularized_lopt.report.log_ratios import LogRatio
from regularized_lopt.report.terminal import print_table
from regularized_lopt.study.meta_training import ARCHIVED, unpack

FEWEST_SEEDS = 3
MOST = 100.0
"""Nats that a training loss counts as if it is higher or not finite."""
LIMIT, POINTS = 1e-2, 1000
"""Of Figure 7: gradients span [-LIMIT, LIMIT]."""
HORIZON = 200
LONG, LONGEST = 1000, 10_000
"""Steps of statements beyond the horizon."""
CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "open"
PLAIN, SMOOTHED = "simple", "simple_smoothing"
TABLE_1 = {
    PLAIN: "69.02 ± 0.58",
    SMOOTHED: "72.50 ± 0.49",
    "l2": "69.69",
    "orthogonal": "10.00",
    "spectral": "69.35",
}
"""The paper's test accuracies on CIFAR-10, percent."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A study's folder and what was found on its task.

    Attributes:
      folder: with its configuration and weights.
      task: its dataset.
      seeds: by optimizer, the seeds of meta-training that the results have.
    """

    folder: pathlib.Path
    task: xr.Dataset
    seeds: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, folder: pathlib.Path) -> "Study | None":
        """None: it has no results."""
        file = folder / results_file.FILE
        if not file.is_file():
            return None
        found = results_file.load(file)
        seeds = {name: tuple(of) for name, of in found.meta_training.items()}
        return cls(folder, found.tasks[0], seeds)

    @property
    def names(self) -> list[str]:
        """Of the optimizers."""
        return selections.keys(self.task)

    @property
    def end(self) -> int:
        """After how many steps networks were done."""
        return int(self.task["loss_step"].values[-1]) + 1

    def loss(self, name: str, step: int) -> np.ndarray:
        """[seeds, runs], training loss (nats) after so many steps, at most `MOST`.

        Raises:
          ValueError: networks were trained for fewer.
        """
        if step > self.end:
            raise ValueError(f"There is no loss after {step:,} steps: {self.end:,} were run.")
        one = selections.optimizer(self.task, name)
        place = np.searchsorted(one["loss_step"].values, step - 1, side="right") - 1
        found = one["train_loss"].values[..., place].astype(np.float64)
        return np.minimum(np.nan_to_num(found, nan=MOST, posinf=MOST), MOST)

    def accuracy(self, name: str) -> np.ndarray:
        """[seeds, runs], test accuracy at the end, percent."""
        return selections.accuracy(selections.optimizer(self.task, name))

    def roughness(self, name: str) -> dict[int, float]:
        """By seed, the steepest slope around zero, see `UpdateCurve.relative_roughness`.

        Of seeds that the results have; what else lies among the weights is left out.

        Raises:
          ValueError: one of these seeds is there twice.
        """
        weights = self.folder / "optimizers"
        unpack(self.folder / f"optimizers{ARCHIVED}", weights)
        found: dict[int, tuple[pathlib.Path, float]] = {}
        for path in sorted(weights.glob(f"{name}-seed*")):
            if not (path / run_files.THETA_FILE).is_file():
                continue  # Just begun.
            loaded = zoo.load(path)
            seed = int(loaded.metadata["seed"])
            if seed not in self.seeds.get(name, ()):
                continue
            if seed in found:
                raise ValueError(
                    f"{name}, seed {seed}, is twice in {weights}: {found[seed][0].name} and "
                    f"{path.name}. Move away the one that the results are not of."
                )
            curve = update_curve(loaded.opt(), LIMIT, POINTS, NUM_WARMUP)
            found[seed] = path, float(curve.relative_roughness)
        return {seed: slope for seed, (_, slope) in found.items()}


@dataclasses.dataclass(frozen=True)
class Compared:
    """Two optimizers, paired by meta-training seed.

    Attributes:
      sign: 1 or -1 where the interval excludes no change, else 0.
      seeds: pairs.
      text: the change, its interval, and what could have been shown.
    """

    sign: int
    seeds: int
    text: str

    @classmethod
    def by_ratio(cls, own: np.ndarray, other: np.ndarray) -> "Compared":
        """Of positive values, [seeds, runs] each; runs of a seed are averaged as logarithms."""
        found = LogRatio.of(*paired(own, other))
        return cls(found.ratio.sign, found.seeds, str(found))

    @classmethod
    def by_difference(cls, own: np.ndarray, other: np.ndarray) -> "Compared":
        """Of percentages, [seeds, runs] each; runs of a seed are averaged."""
        one, base = (of.mean(axis=1) for of in paired(own, other))
        found = statistics.paired_difference(one, base, bootstrap=False)
        count = len(one)
        shown = ""
        if count > 1:
            deviation = float(np.std(one - base, ddof=1))
            shown = f", would show {power.detectable_difference(deviation, count):.2g}"
        return cls(found.sign, count, f"{found} points ({count} seeds{shown})")


Answer = tuple[str, str]


def _needing(
    answer: Callable[[Study], Answer], *names: str, steps: int = 0
) -> Callable[[Study], Answer]:
    """The answer where there are enough seeds of each and enough steps, else that it is open."""

    def checked(study: Study) -> Answer:
        there = set(study.names)
        seeds = [len(study.accuracy(name)) if name in there else 0 for name in names]
        if min(seeds) < FEWEST_SEEDS:
            return OPEN, f"{min(seeds)} seeds"
        if study.end < steps:
            return OPEN, f"not run: {study.end:,} of {steps:,} steps"
        return answer(study)

    return checked


def _word(found: Compared, wanted: int) -> str:
    if found.sign == wanted:
        return CONFIRMED
    return OPEN if found.sign == 0 else REFUTED


def lower_loss(own: str, other: str, step: int) -> Callable[[Study], Answer]:
    """Whether an optimizer's training loss is the lower one after so many steps."""

    def answer(study: Study) -> Answer:
        found = Compared.by_ratio(study.loss(own, step), study.loss(other, step))
        return _word(found, -1), f"training loss at {step:,}, ratio: {found.text}"

    return _needing(answer, own, other, steps=step)


def below_baselines(own: str) -> Callable[[Study], Answer]:
    """Whether its training loss at the horizon is below that of the best tuned baseline."""

    def answer(study: Study) -> Answer:
        baselines = [name for name in study.names if name in BASELINES]
        if not baselines:
            return OPEN, "no baselines"
        best = min(baselines, key=lambda name: np.log(study.loss(name, HORIZON)).mean())
        found = Compared.by_ratio(study.loss(own, HORIZON), study.loss(best, HORIZON))
        return _word(found, -1), f"training loss at {HORIZON}, ratio to {best}: {found.text}"

    return _needing(answer, own, steps=HORIZON)


def more_accurate(own: str, *others: str, steps: int = LONGEST) -> Callable[[Study], Answer]:
    """Whether an optimizer ends, after so many steps, more accurate than each of others."""

    def answer(study: Study) -> Answer:
        found = [
            Compared.by_difference(study.accuracy(own), study.accuracy(other)) for other in others
        ]
        words = [_word(one, 1) for one in found]
        text = "; ".join(f"to {name} {one.text}" for name, one in zip(others, found, strict=True))
        if set(words) == {CONFIRMED}:
            return CONFIRMED, text
        return (REFUTED if REFUTED in words else OPEN), text

    return _needing(answer, own, *others, steps=steps)


def smoother(own: str, other: str) -> Callable[[Study], Answer]:
    """Whether updates around zero are the less steep, relative to their size."""

    def answer(study: Study) -> Answer:
        slopes, others = study.roughness(own), study.roughness(other)
        seeds = sorted(slopes.keys() & others.keys())
        if len(seeds) < FEWEST_SEEDS:
            return OPEN, f"weights of {len(seeds)} seeds"
        found = Compared.by_ratio(*(np.array([[by[s]] for s in seeds]) for by in (slopes, others)))
        return _word(found, -1), f"steepest slope around zero, ratio: {found.text}"

    return _needing(answer, own, other)


STATEMENTS: tuple[tuple[str, str, str, Callable[[Study], Answer]], ...] = (
    ("1. MLP, 200 steps", "smoothing_mnist", "lower", lower_loss(SMOOTHED, PLAIN, HORIZON)),
    ("2. LeNet, 200 steps", "smoothing_lenet", "lower", lower_loss(SMOOTHED, PLAIN, HORIZON)),
    ("3. LeNet, 1,000 steps", "smoothing_lenet", "lower", lower_loss(SMOOTHED, PLAIN, LONG)),
    ("4. DM on the MLP", "smoothing_mnist", "lower", lower_loss("dm_smoothing", "dm", HORIZON)),
    ("5. CNN, 10,000 steps", "smoothing_cifar", "lower", lower_loss(SMOOTHED, PLAIN, LONGEST)),
    ("6. CNN, accuracy", "smoothing_cifar", "+3.48", more_accurate(SMOOTHED, PLAIN)),
    (
        *("7. CNN, other regularizers", "smoothing_cifar", "+2.81, +62.50, +3.15"),
        more_accurate(SMOOTHED, "l2", "orthogonal", "spectral"),
    ),
    ("8. two unseen classes", "smoothing_pairs", "lower", lower_loss(SMOOTHED, PLAIN, HORIZON)),
    ("9. updates around zero", "smoothing_mnist", "smoother", smoother(SMOOTHED, PLAIN)),
    ("10. tuned baselines, MLP", "smoothing_mnist", "lower", below_baselines(SMOOTHED)),
    ("11. tuned baselines, LeNet", "smoothing_lenet", "lower", below_baselines(SMOOTHED)),
)
"""What is stated, the study that decides it, what the paper has, and how it is decided."""


def statements(folder: pathlib.Path) -> list[list[str]]:
    """Rows of (statement, verdict, what it rests on, the paper's)."""
    study = functools.cache(lambda name: Study.of(folder / name))
    rows = []
    for statement, name, papers, answer in STATEMENTS:
        found = study(name)
        verdict, reason = (OPEN, "not run") if found is None else answer(found)
        rows.append([statement, verdict, reason, papers])
    return rows


def measures(study: Study) -> list[list[str]]:
    """By optimizer: seeds, training losses (geometric means), test accuracy, the paper's."""
    rows = []
    for name in study.names:
        losses = [study.loss(name, step) for step in shown_steps(study)]
        means = [f"{np.exp(np.log(loss).mean()):.4g}" for loss in losses]
        by_seed = study.accuracy(name).mean(axis=1)
        spread = f" ± {np.std(by_seed, ddof=1):.2f}" if len(by_seed) > 1 else ""
        accuracy = f"{by_seed.mean():.2f}{spread}"
        rows.append([name, str(len(by_seed)), *means, accuracy])
    return rows


def shown_steps(study: Study) -> list[int]:
    """At which training losses are shown: the horizon, where it was reached, and the end."""
    return sorted({min(HORIZON, study.end), study.end})


def main(folder: str = str(pathlib.Path(__file__).parent.parent)) -> None:
    """Prints the tables."""
    root = pathlib.Path(folder)
    for path in sorted(root.glob("smoothing_*")):
        if (study := Study.of(path)) is None:
            continue
        is_table_1 = path.name == "smoothing_cifar"
        rows = [[*row, TABLE_1.get(row[0], "")] if is_table_1 else row for row in measures(study)]
        print_table(
            f"{study.task.attrs['task']}: training loss (geometric means), test accuracy (%)",
            ["optimizer", "seeds", *(f"at {step:,}" for step in shown_steps(study)), "accuracy"]
            + (["the paper's"] if is_table_1 else []),
            rows,
        )
    print_table(
        "Does smoothing help?",
        ["statement", "verdict", "rests on", "the paper"],
        statements(root),
    )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ValueError as error:
        sys.exit(f"Error: {error}")

"""What PROTOCOL.md's measures are, and what they say on the paper's statements: prints tables.

python experiments/star/verdicts.py [FOLDER [OTHER_TASKS]]

Takes seconds.
"""

import argparse
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from regularized_lopt.measure import results_file, selections
from regularized_lopt.measure.results import StudyResults, paired
from regularized_lopt.report.log_ratios import LogRatio
from regularized_lopt.report.terminal import print_table

HERE = pathlib.Path(__file__).parent
OTHER = HERE.with_name("star_generalization")
HORIZON = 2000
STEPS = (2000, 20_000, 200_000)
FEWEST_SEEDS = 3
MARGIN = 1.1
"""A loss is above another one if it is by this factor: one batch's is noise."""
SEQUENCES = ("LSTM_Python_32", "Transformer_Python_32x32")
"""Networks that no optimizer of the study has seen the like of."""
MOST = 1e6
"""A training loss (nats) that is not finite, or above, counts as this one: no seed drops out."""
CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "open"


@dataclasses.dataclass(frozen=True)
class Arm:
    """An optimizer's curves.

    Attributes:
      losses: [seeds, runs, points], training loss (nats), trailing means.
      steps: [points], numbers of the steps, from 0.
    """

    losses: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, task: xr.Dataset, name: str) -> "Arm":
        """From a task's dataset."""
        one = selections.optimizer(task, name)
        return cls(one["train_loss"].values.astype(np.float64), one["loss_step"].values)

    def at(self, step: int) -> np.ndarray:
        """[seeds, runs], after so many steps, at most `MOST`.

        Raises:
          ValueError: runs are shorter.
        """
        if step > self.num_steps:
            raise ValueError(f"Runs have {self.num_steps:,} steps, not {step:,}.")
        place = np.searchsorted(self.steps, step - 1, side="right") - 1
        return self._capped[..., place]

    def meta_loss(self) -> np.ndarray:
        """[seeds, runs], the mean of the first `HORIZON` steps."""
        steps = np.arange(HORIZON)
        dense = np.apply_along_axis(lambda row: np.interp(steps, self.steps, row), -1, self._capped)
        return np.trapezoid(dense, steps, axis=-1) / steps[-1]

    def diverged(self, margin: float = MARGIN) -> np.ndarray:
        """[seeds], whether any of its runs ends above its first loss or not finite."""
        return np.any(self._capped[..., -1] > margin * self._capped[..., 0], axis=1)

    def rises(self) -> np.ndarray:
        """[seeds], whether any of its runs ends above its loss at the horizon."""
        return np.any(self._capped[..., -1] > MARGIN * self.at(HORIZON), axis=1)

    @property
    def num_steps(self) -> int:
        """Of a run."""
        return int(self.steps[-1]) + 1

    @property
    def _capped(self) -> np.ndarray:
        lost = ~(self.losses < MOST)  # NaN, too.
        return np.where(lost | np.isneginf(self.losses), MOST, self.losses)


Arms = Mapping[str, Arm]


def ratio(own: np.ndarray, other: np.ndarray) -> LogRatio:
    """Of [seeds, runs] each, paired by seed."""
    return LogRatio.of(*paired(own, other))


def reached(validations: np.ndarray, mark: float) -> float:
    """The outer step of the first validation at or below a loss; infinity: none.

    Args:
      validations: [count, 2], outer steps and losses.
      mark: the loss.
    """
    steps = validations[validations[:, 1] <= mark, 0]
    return float(steps[0]) if len(steps) else math.inf


def validations(study: StudyResults, name: str) -> dict[int, np.ndarray]:
    """[count, 2] by meta-training seed: outer steps and validation losses, where finite."""
    found = {}
    for seed, metrics in study.meta_training.get(name, {}).items():
        table = np.stack([metrics["outer_step"], metrics["validation_loss"]], axis=1)
        found[seed] = table[np.isfinite(table[:, 1])]
    return found


def stable(arms: Arms) -> tuple[str, str]:
    """Statement 1; beside it, the seeds that lose what they had at the horizon."""
    own = arms["star_0.1"].diverged()
    said = ", ".join(
        f"{name}: {arms[name].diverged().sum()} of {len(arms[name].losses)} seeds diverge, "
        f"{arms[name].rises().sum()} rise beyond the horizon"
        for name in ("star_0.1", "blackbox")
    )
    return _word(own.sum() == 0, own.sum() >= 2), said


def faster(study: StudyResults) -> tuple[str, str]:
    """Statement 2, over the seeds that both have."""
    own, other = validations(study, "star_0.1"), validations(study, "blackbox")
    seeds = sorted(own.keys() & other.keys())
    if len(seeds) < FEWEST_SEEDS:
        return OPEN, _seeds(len(seeds))
    mark = float(np.median([other[seed][-1, 1] if len(other[seed]) else MOST for seed in seeds]))
    first = [(reached(own[seed], mark), reached(other[seed], mark)) for seed in seeds]
    sooner = [a < b for a, b in first]
    answer = _word(all(sooner), not any(sooner))
    text = ", ".join(f"{_step(a)} against {_step(b)}" for a, b in first)
    return answer, f"outer steps to {mark:.3g}, seed by seed: {text}"


def helps(part: str, arms: Arms) -> tuple[str, str]:
    """Statements 3 and 4: STAR's meta-loss against that without the part."""
    found = ratio(arms["star_0.1"].meta_loss(), arms[part].meta_loss())
    sign = found.ratio.sign
    return _word(sign < 0, sign > 0), f"meta-loss, ratio to {part}: {found}"


def decay(arms: Arms) -> tuple[str, str]:
    """Statement 5, over the seeds that all four decays have."""
    inner, outer = ("star_0.1", "star_0.5"), ("star_0", "star_1")
    losses = {name: arms[name].meta_loss() for name in (*inner, *outer)}
    seeds = min(map(len, losses.values()))
    losses = {name: loss[:seeds] for name, loss in losses.items()}
    means = {name: float(np.exp(np.log(loss).mean())) for name, loss in losses.items()}
    order = sorted(means, key=means.__getitem__)
    best = order[0]
    ratios = {
        name: ratio(losses[best], losses[name]) for name in (inner if best in outer else outer)
    }
    signs = [one.ratio.sign for one in ratios.values()]
    answer = _word(
        set(order[:2]) == set(inner) and -1 in signs, best in outer and set(signs) == {-1}
    )
    text = ", ".join(f"{name} {means[name]:.4g}" for name in order)
    compared = "; ".join(f"to {name}: {one}" for name, one in ratios.items())
    return answer, f"meta-loss: {text}; {best}, ratio {compared}"


def mixed(arms: Arms) -> tuple[str, str]:
    """Statement 6."""
    steps = steps_within(arms["star_0.1"])
    found = [ratio(arms["star_0.1"].at(step), arms["hyperparam"].at(step)) for step in steps]
    signs = {one.ratio.sign for one in found}
    answer = _word({-1, 1} <= signs, signs in ({-1}, {1}))
    text = "; ".join(f"{step:,}: {one}" for step, one in zip(steps, found, strict=True))
    return answer, f"training loss, ratio to hyperparam at {text}"


def generalizes(tasks: Sequence[xr.Dataset]) -> tuple[str, str]:
    """Statement 7, given the tasks that were run."""
    arms = {
        task.attrs["task"]: Arm.of(task, "star_0.1")
        for task in tasks
        if task.attrs["task"] in SEQUENCES and "star_0.1" in selections.keys(task)
    }
    seeds = min((len(arms[name].losses) if name in arms else 0) for name in SEQUENCES)
    if seeds < FEWEST_SEEDS:
        return OPEN, _seeds(seeds)
    fail = {name: int(arm.diverged(margin=1.0).sum()) for name, arm in arms.items()}
    text = ", ".join(f"{name}: {fail[name]} of {len(arms[name].losses)}" for name in arms)
    answer = _word(not any(fail.values()), any(count >= 2 for count in fail.values()))
    return answer, f"seeds that end above their first loss or not finite: {text}"


def comparable(arms: Arms, baseline: str) -> tuple[str, str]:
    """Statement 8."""
    if baseline not in arms:
        return OPEN, f"not run: {baseline}"
    found = ratio(arms["star_0.1"].at(HORIZON), arms[baseline].at(HORIZON))
    log, least = found.ratio.log, math.log(MARGIN)
    answer = _word(log.high <= least, log.low > least)
    return answer, f"training loss at {HORIZON:,} steps, ratio to {baseline}: {found}"


def statements(study: StudyResults, others: StudyResults | None = None) -> list[list[str]]:
    """Rows of (statement, verdict, what it rests on); `others` has the tasks of statement 7."""
    task = study.tasks[0]
    arms = {name: Arm.of(task, name) for name in selections.keys(task)}
    baseline = next((name for name in arms if name.startswith("Adam")), "Adam")
    asked: dict[str, tuple[Sequence[str], Callable[[], tuple[str, str]]]] = {
        "stable beyond its horizon": (["star_0.1", "blackbox"], lambda: stable(arms)),
        "faster to meta-train": (["star_0.1", "blackbox"], lambda: faster(study)),
        "the nominal term helps": (
            ["star_0.1", "no_nominal"],
            lambda: helps("no_nominal", arms),
        ),
        "the preconditioner helps the meta-loss": (
            ["star_0.1", "no_preconditioner"],
            lambda: helps("no_preconditioner", arms),
        ),
        "decay of 0.1 to 0.5 is best": (
            ["star_0", "star_0.1", "star_0.5", "star_1"],
            lambda: decay(arms),
        ),
        "mixed against Hyperparam": (["star_0.1", "hyperparam"], lambda: mixed(arms)),
        "generalizes to an LSTM and a transformer": (
            [],
            lambda: generalizes(others.tasks if others else ()),
        ),
        "comparable to tuned Adam": (["star_0.1"], lambda: comparable(arms, baseline)),
    }
    rows = []
    for statement, (needed, answer) in asked.items():
        missing = [name for name in needed if name not in arms]
        seeds = min((len(arms[name].losses) for name in needed if name in arms), default=None)
        if missing:
            found = OPEN, f"not run: {', '.join(missing)}"
        elif seeds is not None and seeds < FEWEST_SEEDS:
            found = OPEN, _seeds(seeds)
        else:
            found = answer()
        rows.append([statement, *found])
    return rows


def steps_within(arm: Arm) -> list[int]:
    """Those of `STEPS` that its runs have."""
    return [step for step in STEPS if step <= arm.num_steps]


def measures(study: StudyResults) -> tuple[list[str], list[list[str]]]:
    """(Header, rows) by optimizer: seeds, divergences, geometric means of its losses."""
    task = study.tasks[0]
    header, rows = [], []
    for name in selections.keys(task):
        arm = Arm.of(task, name)
        steps = steps_within(arm)
        header = ["optimizer", "seeds", "diverge", "rise", "meta-loss"]
        header += [f"at {step:,}" for step in steps]
        values = [arm.meta_loss(), *(arm.at(step) for step in steps)]
        means = [f"{np.exp(np.log(value).mean()):.4g}" for value in values]
        counts = [len(arm.losses), arm.diverged().sum(), arm.rises().sum()]
        rows.append([name, *(str(int(count)) for count in counts), *means])
    return header, rows


def _word(confirmed: bool, refuted: bool) -> str:
    if confirmed:
        return CONFIRMED
    return REFUTED if refuted else OPEN


def _step(step: float) -> str:
    return "never" if math.isinf(step) else f"{step:,.0f}"


def _seeds(count: int) -> str:
    return f"{count} seeds, fewer than {FEWEST_SEEDS}"


def main(given: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=HERE, help="has results")
    parser.add_argument(
        "other_tasks", nargs="?", type=pathlib.Path, default=OTHER, help="has those of statement 7"
    )
    folders = parser.parse_args(given)
    try:
        study = results_file.load(folders.folder / results_file.FILE)
    except FileNotFoundError as error:
        parser.error(f"{folders.folder} has no {results_file.FILE} ({error.strerror}).")
    beside = folders.other_tasks / results_file.FILE
    others = results_file.load(beside) if beside.is_file() else None
    name = study.tasks[0].attrs["task"]
    print_table(f"{name}: training loss, geometric means over seeds", *measures(study))
    print_table(
        "The paper's statements", ["statement", "verdict", "rests on"], statements(study, others)
    )


if __name__ == "__main__":
    main()

"""What PROTOCOL.md's measures are, and what they say on the paper's statements: prints tables.

python experiments/star/verdicts.py [FOLDER [OTHER_TASKS]]

FOLDER has the results, default: this one; OTHER_TASKS those of statement 7, default:
experiments/star_generalization. Takes seconds.
"""

import dataclasses
import math
import os
import pathlib
import sys
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
LEAST_BEHIND = math.log(1.1)
"""Of tuned Adam's training loss: what counts as comparable."""
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
        """[seeds, runs], after so many steps, at most `MOST`."""
        place = np.searchsorted(self.steps, step - 1, side="right") - 1
        return self._capped[..., place]

    def meta_loss(self) -> np.ndarray:
        """[seeds, runs], the mean of the first `HORIZON` steps."""
        steps = np.arange(HORIZON)
        dense = np.apply_along_axis(lambda row: np.interp(steps, self.steps, row), -1, self._capped)
        return np.trapezoid(dense, steps, axis=-1) / steps[-1]

    def diverged(self) -> np.ndarray:
        """[seeds], whether any of its runs ends above its first loss or not finite."""
        last = self.losses[..., -1]
        return np.any(~(np.isfinite(last) & (last <= self.losses[..., 0])), axis=1)

    @property
    def _capped(self) -> np.ndarray:
        return np.minimum(np.nan_to_num(self.losses, nan=MOST, posinf=MOST), MOST)


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


def validations(study: StudyResults, name: str) -> list[np.ndarray]:
    """[count, 2] of every seed: outer steps and validation losses."""
    found = []
    for metrics in study.meta_training[name].values():
        table = np.stack([metrics["outer_step"], metrics["validation_loss"]], axis=1)
        found.append(table[np.isfinite(table[:, 1])])
    return found


def stable(arms: Arms) -> tuple[str, str]:
    """Statement 1."""
    own = arms["star_0.1"].diverged()
    said = ", ".join(
        f"{name}: {arms[name].diverged().sum()} of {len(arms[name].losses)} seeds diverge"
        for name in ("star_0.1", "blackbox")
    )
    return _word(own.sum() == 0, own.sum() >= 2), said


def faster(study: StudyResults) -> tuple[str, str]:
    """Statement 2."""
    own, other = validations(study, "star_0.1"), validations(study, "blackbox")
    mark = float(np.median([one[-1, 1] for one in other]))
    first = [(reached(a, mark), reached(b, mark)) for a, b in zip(own, other, strict=False)]
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
    found = [ratio(arms["star_0.1"].at(step), arms["hyperparam"].at(step)) for step in STEPS]
    signs = {one.ratio.sign for one in found}
    answer = _word({-1, 1} <= signs, signs in ({-1}, {1}))
    text = "; ".join(f"{step:,}: {one}" for step, one in zip(STEPS, found, strict=True))
    return answer, f"training loss, ratio to hyperparam at {text}"


def generalizes(tasks: Sequence[xr.Dataset]) -> tuple[str, str]:
    """Statement 7, on tasks of sequences."""
    arms = {task.attrs["task"]: Arm.of(task, "star_0.1") for task in tasks}
    fail = {name: int(arm.diverged().sum()) for name, arm in arms.items()}
    text = ", ".join(f"{name}: {fail[name]} of {len(arms[name].losses)}" for name in arms)
    answer = _word(not any(fail.values()), any(count >= 2 for count in fail.values()))
    return answer, f"seeds that end above their first loss or not finite: {text}"


def comparable(arms: Arms, baseline: str) -> tuple[str, str]:
    """Statement 8."""
    found = ratio(arms["star_0.1"].at(HORIZON), arms[baseline].at(HORIZON))
    log = found.ratio.log
    answer = _word(log.high <= LEAST_BEHIND, log.low > LEAST_BEHIND)
    return answer, f"training loss at {HORIZON:,} steps, ratio to {baseline}: {found}"


def statements(study: StudyResults, others: StudyResults | None = None) -> list[list[str]]:
    """Rows of (statement, verdict, what it rests on); `others` has the tasks of statement 7."""
    task = study.tasks[0]
    arms = {name: Arm.of(task, name) for name in selections.keys(task)}
    baseline = next((name for name in arms if name.startswith("Adam")), None)
    asked: list[tuple[str, tuple[str, ...], Callable[[], tuple[str, str]]]] = [
        ("stable beyond its horizon", ("star_0.1", "blackbox"), lambda: stable(arms)),
        ("faster to meta-train", ("star_0.1", "blackbox"), lambda: faster(study)),
        ("the nominal term helps", ("star_0.1", "no_nominal"), lambda: helps("no_nominal", arms)),
        (
            "the preconditioner helps the meta-loss",
            ("star_0.1", "no_preconditioner"),
            lambda: helps("no_preconditioner", arms),
        ),
        (
            "decay of 0.1 to 0.5 is best",
            ("star_0", "star_0.1", "star_0.5", "star_1"),
            lambda: decay(arms),
        ),
        ("mixed against Hyperparam", ("star_0.1", "hyperparam"), lambda: mixed(arms)),
    ]
    sequences = [task for task in others.tasks if task.attrs["task"] in SEQUENCES] if others else []
    if len(sequences) == len(SEQUENCES):
        asked.append(
            (
                "generalizes to an LSTM and a transformer",
                ("star_0.1",),
                lambda: generalizes(sequences),
            )
        )
    if baseline is not None:
        asked.append(
            ("comparable to tuned Adam", ("star_0.1",), lambda: comparable(arms, baseline))
        )
    rows = []
    for statement, needed, answer in asked:
        seeds = min(len(arms[name].losses) if name in arms else 0 for name in needed)
        verdict, reason = answer() if seeds >= FEWEST_SEEDS else (OPEN, f"{seeds} seeds")
        rows.append([statement, verdict, reason])
    return rows


def measures(study: StudyResults) -> list[list[str]]:
    """By optimizer: seeds, divergences, and geometric means of its losses."""
    task = study.tasks[0]
    rows = []
    for name in selections.keys(task):
        arm = Arm.of(task, name)
        values = [arm.meta_loss(), *(arm.at(step) for step in STEPS)]
        means = [f"{np.exp(np.log(value).mean()):.4g}" for value in values]
        rows.append([name, str(len(arm.losses)), str(int(arm.diverged().sum())), *means])
    return rows


def _word(confirmed: bool, refuted: bool) -> str:
    if confirmed:
        return CONFIRMED
    return REFUTED if refuted else OPEN


def _step(step: float) -> str:
    return "never" if math.isinf(step) else f"{step:,.0f}"


def main(
    folder: str | os.PathLike[str] = HERE, other_tasks: str | os.PathLike[str] = OTHER
) -> None:
    """Prints the tables."""
    study = results_file.load(pathlib.Path(folder) / results_file.FILE)
    beside = pathlib.Path(other_tasks) / results_file.FILE
    others = results_file.load(beside) if beside.is_file() else None
    columns = ["meta-loss", *(f"at {step:,}" for step in STEPS)]
    print_table(
        f"{study.tasks[0].attrs['task']}: training loss, geometric means",
        ["optimizer", "seeds", "diverge", *columns],
        measures(study),
    )
    print_table(
        "The paper's statements", ["statement", "verdict", "rests on"], statements(study, others)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

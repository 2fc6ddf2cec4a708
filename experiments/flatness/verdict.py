"""The answer of PROTOCOL.md, and how often its procedure errs: prints tables.

python experiments/flatness/verdict.py [STUDY [OPTIMIZER]]

STUDY: a folder with results; default: this one. OPTIMIZER: what is compared with the reference;
default: sam. Takes seconds.
"""

import dataclasses
import math
import pathlib
import sys

import numpy as np
import scipy.stats
import xarray as xr

from regularized_lopt import statistics
from regularized_lopt.measure import results_file, selections
from regularized_lopt.measure.results import paired
from regularized_lopt.report import log_ratios, paper_claims, verdicts
from regularized_lopt.report.log_ratios import LogRatio
from regularized_lopt.report.terminal import print_table

LEVEL = 0.05
LEAST_ACCURACY = -0.3
"""Points that the lower end of the accuracy's interval must exceed."""
A_FIFTH = 0.8
FUTILE = 0.9
LOOK_AFTER = 8
RESAMPLINGS = 10_000


@dataclasses.dataclass(frozen=True)
class Compared:
    """An optimizer and the reference on one task, by meta-training seed.

    Attributes:
      log_rises: [2, seeds], its and the reference's: of the rise (nats) in the primary ball, at
        matched training loss, the mean over networks of the natural logarithm.
      accuracies: [2, seeds], at completion, percent.
    """

    log_rises: np.ndarray
    accuracies: np.ndarray

    @classmethod
    def of(cls, task: xr.Dataset, optimizer: str) -> "Compared":
        """From a task's dataset."""
        own, base = selections.optimizer(task, optimizer), selections.reference(task)
        rises = selections.matched(own, "gsam").sel(scale="live").values
        accuracies = paired(selections.accuracy(own), selections.accuracy(base))
        return cls(np.log(rises).mean(axis=-1), np.stack(accuracies).mean(axis=-1))


@dataclasses.dataclass(frozen=True)
class Answer:
    """Of the primary test, with so many seeds.

    Attributes:
      ratio: of the rises.
      accuracy: difference, points.
      p: of the ratio, two-sided.
    """

    ratio: statistics.Ratio
    accuracy: statistics.Difference
    p: float

    @classmethod
    def of(cls, found: Compared, seeds: int | None = None) -> "Answer":
        """After the first so many seeds; None: after all."""
        rises, accuracies = found.log_rises[:, :seeds], found.accuracies[:, :seeds]
        log_ratio, gain = (
            statistics.paired_difference(own, base, bootstrap=False)
            for own, base in (rises, accuracies)
        )
        return cls(statistics.Ratio(log_ratio), gain, statistics.t_p(rises[0] - rises[1]))

    @property
    def yes(self) -> bool:
        return self.p < LEVEL and self.ratio.log.mean < 0 and self.accuracy.low > LEAST_ACCURACY

    @property
    def no(self) -> bool:
        """A fall of a fifth is excluded."""
        return self.ratio.log.low > math.log(A_FIFTH)

    @property
    def futile(self) -> bool:
        return self.ratio.log.low > math.log(FUTILE)

    def words(self) -> str:
        """The protocol's."""
        if self.yes:
            return "yes, by less than a fifth" if self.no else "yes"
        return "no" if self.no else "open"


@dataclasses.dataclass(frozen=True)
class Secondary:
    """One test of the secondary family.

    Attributes:
      values: [seeds], differences; of logarithms, but for accuracy.
      mean: of them, as a ratio where they are of logarithms.
    """

    values: np.ndarray
    mean: statistics.Ratio | statistics.Difference

    @classmethod
    def of(cls, found: LogRatio | None) -> "Secondary":
        """Of a ratio, which must have been measured."""
        assert found is not None, "at matched training loss nothing was measured"
        return cls(found.logs, found.ratio)


def secondary(task: xr.Dataset, optimizer: str) -> dict[str, Secondary]:
    """The secondary family, by quantity."""
    own, base = selections.optimizer(task, optimizer), selections.reference(task)

    def rise(point: str, scale: str) -> Secondary:
        radius = selections.headline(task)
        return Secondary.of(log_ratios.rise(own, base, "gsam", point, scale, radius))

    family = {"rise at completion": rise("completion", "live")}
    for scale in ("absolute", "relative", "l2"):
        family[f"rise, {scale} ball"] = rise(log_ratios.MATCHED, scale)
    for name, label in (("norm", "norm of params"), ("trace", "trace"), ("top", "top eigenvalue")):
        found = log_ratios.at_params(own, base, name, log_ratios.MATCHED)
        family[label] = Secondary.of(found)
    compared = Compared.of(task, optimizer)
    gain = Answer.of(compared).accuracy
    family["accuracy, points"] = Secondary(np.subtract(*compared.accuracies), gain)
    return family


def _secondary_rows(family: dict[str, Secondary]) -> list[list[str]]:
    """Holm's procedure within the family."""
    values = {name: one.values for name, one in family.items()}
    words = {-1: "less", 0: "-", 1: "more"}
    return [
        [name, str(family[name].mean), f"{of.p:.2g}", f"{of.threshold:.2g}", words[of.sign]]
        for name, of in statistics.decide(values, LEVEL, test="t").items()
    ]


def false_positives(found: Compared, seeds: int, rng: np.random.Generator) -> dict[str, float]:
    """Percent of resamplings of the reference's members, half of them taken for another optimizer.

    Args:
      found: whose reference is resampled, rises and accuracies together.
      seeds: on each side, drawn with replacement.
      rng: draws.
    """
    drawn = rng.integers(0, found.log_rises.shape[1], (RESAMPLINGS, 2, seeds))
    rises, accuracies = found.log_rises[1][drawn], found.accuracies[1][drawn]
    log_ratio, gain = rises[:, 0] - rises[:, 1], accuracies[:, 0] - accuracies[:, 1]
    low, high = _interval(log_ratio)
    differs = (low > 0) | (high < 0)
    yes = (high < 0) & (_interval(gain)[0] > LEAST_ACCURACY)
    goes_on = _interval(log_ratio[:, :LOOK_AFTER])[0] <= math.log(FUTILE)
    return {
        "p < 0.05, either way": 100 * float(differs.mean()),
        "yes": 100 * float(yes.mean()),
        "yes, were the look obeyed": 100 * float((yes & goes_on).mean()),
    }


def coverage(found: Compared, seeds: int, rng: np.random.Generator) -> float:
    """Percent of 95% intervals that hold the mean of log ratios drawn from those measured."""
    measured = found.log_rises[0] - found.log_rises[1]
    centred = measured - measured.mean()
    low, high = _interval(centred[rng.integers(0, len(centred), (RESAMPLINGS, seeds))])
    return 100 * float(((low <= 0) & (high >= 0)).mean())


def _interval(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's, of each row."""
    count = differences.shape[1]
    error = differences.std(axis=1, ddof=1) / math.sqrt(count)
    margin = scipy.stats.t.isf((1 - 0.95) / 2, count - 1) * error
    mean = differences.mean(axis=1)
    return mean - margin, mean + margin


def main(study: str = str(pathlib.Path(__file__).parent), optimizer: str = "sam") -> None:
    """Prints the tables."""
    tasks = results_file.load(pathlib.Path(study) / results_file.FILE).tasks
    task = tasks[0]
    found = Compared.of(task, optimizer)
    seeds = found.log_rises.shape[1]
    rows = []
    for count in sorted({min(LOOK_AFTER, seeds), seeds}):
        answer = Answer.of(found, count)
        futile = "yes" if answer.futile else "no"
        row = [str(count), str(answer.ratio), f"{answer.p:.2g}", str(answer.accuracy)]
        rows.append([*row, futile, answer.words()])
    print_table(
        f"{optimizer} against {task.attrs['reference']} on {task.attrs['task']}",
        ["seeds", "rise, ratio (95%)", "p", "accuracy, points (95%)", "futile", "answer"],
        rows,
    )
    print_table(
        "Secondary, at matched training loss where nothing is said",
        ["quantity", "ratio or difference (95%)", "p", "Holm's threshold", "found"],
        _secondary_rows(secondary(task, optimizer)),
    )
    rng = np.random.default_rng(0)
    rates = false_positives(found, seeds, rng)
    print_table(
        f"The reference against itself, {RESAMPLINGS} resamplings of {seeds} seeds",
        ["outcome", "share"],
        [[name, f"{share:.2f}%"] for name, share in rates.items()],
    )
    print_table(
        "Log ratios drawn from those measured: intervals that hold the mean",
        ["seeds", "coverage (nominal 95%)"],
        [[str(count), f"{coverage(found, count, rng):.1f}%"] for count in (8, 16)],
    )
    claims = paper_claims.check_claims(tasks, verdicts.judge(tasks))
    print_table("The paper's claims, on all tasks", *paper_claims.table(claims))


if __name__ == "__main__":
    main(*sys.argv[1:])

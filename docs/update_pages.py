"""Writes measured numbers into README.md and docs/, so that none is copied by hand.

What stands between `<!-- table 1 -->` and `<!-- end table 1 -->` is replaced by what the results in
experiments/ and the zoo's cards say of it; `PAGES` has every page and the names of its marks.
With --rewrite, every study's own page, figures and tables are made anew from its results first.

    python docs/update_pages.py [--rewrite]
"""

import argparse
import dataclasses
import fnmatch
import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from regularized_lopt import study_report
from regularized_lopt.measure import results_file, selections
from regularized_lopt.measure.flatness import SCALES
from regularized_lopt.measure.results import StudyResults
from regularized_lopt.report import export, log_ratios, pages, paper_claims, tables, verdicts
from regularized_lopt.report.markdown import table as markdown_table

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
EXPERIMENTS = REPOSITORY / "experiments"
APART = (
    "flatness_pilot",
    "flatness_mean",
    "flatness_unroll_100",
    "flatness",
    "flatness_gradients",
    "flatness_stored",
    "nominal_sam",
    "nominal_sam_blackbox",
    "star",
    "star_generalization",
)
"""Studies whose intervals are not counted: of other optimizers, or of LSTMs counted elsewhere."""
TABLES = {
    "table_1": tables.table_1,
    "failures": tables.failures,
    "over_tasks": tables.over_tasks,
}
ENTRIES = REPOSITORY / "regularized_lopt" / "zoo" / "entries"
SHOWN = ("none", "sam_optimizee", "gsam_optimizee", "gam_optimizee")
"""Of the zoo's `mnist_mlp_*`, what the README shows, before the one of two loss surfaces."""
TASKS = {
    "MNIST, sigmoid": "ImageMLP_Mnist_20_Sigmoid",
    "MNIST, ReLU": "ImageMLP_Mnist_20_Relu",
    "Fashion-MNIST, ReLU": "ImageMLP_FashionMnist_20_Relu",
}


@functools.cache
def study(name: str) -> StudyResults:
    """The results of a study."""
    return results_file.load(EXPERIMENTS / name / results_file.FILE)


@functools.cache
def read(name: str, table: str) -> list[list[str]]:
    """The rows of one of `TABLES` of a study, the header first."""
    header, rows = TABLES[table](study(name).tasks)
    return [header, *rows]


def by_task(name: str) -> str:
    """A table of the reproduction with a column per task."""
    header, *rows = read("paper", name)
    return markdown_table([header[0], *labels("paper", header[1:])], rows)


def labels(name: str, tasks: Iterable[str]) -> list[str]:
    """Short names of tasks of a study."""
    of = {task.attrs["task"]: selections.label(task) for task in study(name).tasks}
    return [of[task] for task in tasks]


def claims() -> str:
    """The paper's claims and how they fared."""
    of = study("paper")
    judged = verdicts.judge(of.tasks, of.primary, of.alpha, of.test)
    return markdown_table(
        ["claim", "verdict", "by what was declared beforehand, if another test"],
        [
            [claim.text, claim.verdict, claim.declared]
            for claim in paper_claims.check_claims(of.tasks, judged)
        ],
    )


def counts() -> str:
    """How often a flatness term left its mark, and how often optimizers fail."""
    everywhere = ", ".join(
        f"{failing('paper', row[0])} with `{row[0]}`"
        for row in read("paper", "failures")[1:]
        if row[0] != "none"
    )
    one, two, averages, without = (
        failing(part, name)
        for part, name in (
            ("mixture", "none"),
            ("mixture", "none_mixture"),
            ("momentum", "none_momentum"),
            ("momentum", "none"),
        )
    )
    return (
        f"{flatness()}\n"
        f"* Of the pairs of a seed and a task, {failing('paper', 'none')} fail without a "
        f"regularizer, {everywhere}. Meta-trained on two loss surfaces at once without a "
        f"regularizer, {two} fail; with one surface, {one} fail on the same tasks.\n"
        f"* With running averages of the gradient among the inputs, and no regularizer, {averages} "
        f"fail; without them, {without} fail on the same tasks. On the network of the "
        f"meta-training, accuracy is {accuracy('momentum', 'none_momentum')}% with them and "
        f"{accuracy('momentum', 'none')}% without."
    )


def measures() -> Iterator[dict[str, Any]]:
    """What every plain LSTM of every study is judged by, see `export.measure_rows`."""
    for path in sorted(EXPERIMENTS.glob(f"*/{results_file.FILE}")):
        if path.parent.name not in APART:
            yield from export.measure_rows(study(path.parent.name).tasks)


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How optimizers compare on the flatness that their own term asks for.

    Attributes:
      total: the intervals, those of all studies once.
      below: of `total`, those below zero: flatter than without the term.
      above: of `total`, those above zero.
      ratios: of `total`, those of a ratio.
      narrow: of `ratios`, those that could have shown a change of 30%.
    """

    total: int
    below: int
    above: int
    ratios: int
    narrow: int

    def by_chance(self) -> str:
        """How many of them would exclude zero if there were no difference."""
        return f"{0.05 * self.total:.0f}"


@functools.cache
def intervals() -> Intervals:
    """Those of the learned optimizers that have a flatness term."""
    # Studies share tasks and optimizers; NaN, which is not equal to itself, as text.
    rows = {repr(row): row for row in measures()}.values()
    own = [row for row in rows if row["learned"] and row["targeted"]]
    known = [row for row in own if math.isfinite(row["low"])]
    widths = [
        (row["log_ratio_high"] - row["log_ratio_low"]) / 2
        for row in known
        if not math.isnan(row["log_ratio_low"])
    ]
    return Intervals(
        len(known),
        sum(row["high"] < 0 for row in known),
        sum(row["low"] > 0 for row in known),
        len(widths),
        sum(width < math.log(1 / 0.7) for width in widths),
    )


def flatness() -> str:
    """How many are flatter for their own flatness term, and what could have been seen."""
    found = intervals()
    return (
        f"* Of {found.total} intervals, {found.below} lie below zero (flatter than without the "
        f"flatness term) and {found.above} above. With no difference at all, chance alone would "
        f"put about {found.by_chance()} outside zero. The intervals cover every measured task in "
        "all studies of plain LSTMs, absolute and relative radius, each at convergence and at "
        "completion, and matched training loss; the measure is the rise of the loss nearby, for "
        "GAM that of the gradient's norm. Most are too wide to say more: of the "
        f"{found.ratios} that have a ratio, {found.narrow} could have shown a change of 30% (half "
        "their width, on the log scale, is less than log(1/0.7))."
    )


def confirmation() -> str:
    """What SAM at the pilot's dose does on MNIST."""
    name, optimizer = "flatness", "sam"
    task, *others = study(name).tasks
    one, base = selections.optimizer(task, optimizer), selections.reference(task)
    at = (log_ratios.MATCHED, "live", selections.headline(task))
    rise = log_ratios.rise(one, base, "gsam", *at)
    assert rise is not None, f"{name} has nothing at matched training loss"

    def points(on: xr.Dataset) -> str:
        """Of accuracy."""
        sides = selections.optimizer(on, optimizer), selections.reference(on)
        return str(verdicts.compare(*map(selections.accuracy, sides), bootstrap=False))

    elsewhere = " and ".join(map(points, others))
    return (
        f"Of a stable one, over {rise.seeds} seeds, SAM multiplies the rise at equal loss by "
        f"{rise.ratio} and changes accuracy by {points(task)} points, on {len(others)} other "
        f"networks by {elsewhere} ([experiment](experiments/{name}/RESULTS.md))."
    )


def summary() -> str:
    """What the README says of the results."""
    found, (gsam, ninefold) = intervals(), on_cnns()
    shown = ("SGD", "none", "gsam_optimizee")
    sigmoid, relu = ([f"{accuracy('paper', one, task)}%" for one in shown] for task in (0, 1))
    return (
        "* **Beyond a pilot on Digits, flatness terms in meta-training led to no flatter minima.** "
        f"Of {found.total} intervals (95%) of the change in sharpness of plain ones, {found.below} "
        f"lie below zero and {found.above} above, no more than by chance; {found.narrow} of "
        f"{found.ratios} could have shown a change of 30%. {confirmation()}\n"
        "* **The meta-training seed matters more.** Without a flatness term, five seeds reach "
        f"{accuracy('paper', 'none', 2)}% (mean and deviation) on MNIST's CNN, which is outside "
        f"their meta-training. Over ten seeds, GSAM changes the mean on three CNNs by {gsam} "
        "points; nine times as many outer steps without it change the mean on two of them by "
        f"{ninefold}.\n"
        "* **Tuned SGD is still ahead on MNIST.** On the network of the meta-training it reaches "
        f"{sigmoid[0]}, learned optimizers {sigmoid[1]} without a flatness term and {sigmoid[2]} "
        f"with GSAM. With ReLU, SGD reaches {relu[0]}, the others {relu[1]} and {relu[2]}."
    )


def on_cnns() -> tuple[str, str]:
    """GSAM's difference with ten seeds, and that of ninefold meta-training: "+28.8 [+6, +55]"."""

    def difference(part: str, optimizer: str) -> str:
        header, *rows = read(part, "over_tasks")
        (row,) = (row for row in rows if row[0] == optimizer)
        return row[header.index("CNNs: vs none (points, 95%)")]

    return difference("replication", "gsam_optimizee"), difference("ninefold", "none_ninefold")


def trained() -> str:
    """Trained optimizers and the test accuracies on their cards."""
    rows = []
    lstms = [f"mnist_mlp_{one}" for one in SHOWN]
    for name in ("mnist_star_lstm_none", "mnist_star_none", *lstms, "mnist_mixture_none"):
        card = json.loads((ENTRIES / name / "card.json").read_text())
        reached = {
            figure["task"]: "{:.2f} ± {:.2f}".format(*figure["accuracy"])
            for figure in card["figures"]
        }
        term = card["regularizer"].partition(" ")[0]
        rows.append([f"`{name}`", term, *(reached[task] for task in TASKS.values())])
    return markdown_table(["name", "flatness term", *TASKS], rows)


def relative_radius() -> str:
    """How closely the rise in relative radius follows the norm of the params."""
    name = "ImageMLP_Mnist_20_Sigmoid"
    (task,) = (task for task in study("paper").tasks if task.attrs["task"] == name)
    at = {"point": "completion", "radius": selections.headline(task)}
    every = list(selections.optimizers(task))
    rises = [selections.last(one, "gsam").sel(at) for one in every]
    absolute, relative = (
        np.log(np.concatenate([selections.networks(rise.sel(scale=scale)) for rise in rises]))
        for scale in SCALES
    )
    measured = task.sizes["measured_run"]
    norms = [selections.final(one, "param_norm")[:, :measured].ravel() for one in every]
    norm = np.log(np.concatenate(norms))
    return (
        "A relative radius follows the norm of the params. On the network of the meta-training, "
        "the log of the norm and the log of the rise within a relative radius have a correlation "
        f"of {np.corrcoef(norm, relative)[0, 1]:.2f} over {len(norm)} networks (absolute radius: "
        f"{np.corrcoef(norm, absolute)[0, 1]:.2f}). Params with a larger norm look sharper in it, "
        "so a difference there may be a difference of norms."
    )


def minutes() -> str:
    """What a meta-training took."""

    def of(name: str) -> str:
        curves = study("paper").meta_training
        took = [
            metrics["seconds"][-1] / 60
            for one in fnmatch.filter(curves, name)
            for metrics in curves[one].values()
        ]
        return f"{min(took):.1f} to {max(took):.1f}"

    return (
        f"3,000 outer steps took {of('none')} minutes without a regularizer, "
        f"{of('*_optimizee')} with one in optimizee space and {of('sam')} with SAM in meta "
        "space, on two cores that were at times shared with other work."
    )


def cnns() -> str:
    """What seeds reach over CNNs on average, and how often they fail there."""
    rows = []
    for part, seeds in (("accuracy", "0 to 4"), ("replication", "0 to 9"), ("ninefold", "0 to 4")):
        header, *found = read(part, "over_tasks")
        columns = [i for i, name in enumerate(header) if name.startswith("CNNs")]
        rows += [[row[0], seeds, *(row[i] for i in columns)] for row in found if row[columns[0]]]
    names = [header[i].removeprefix("CNNs: ") for i in columns]
    return markdown_table(["optimizer", "seeds", *names], rows)


def stable() -> str:
    """By task, what stable optimizers reach, and how many of their seeds fail."""
    header, *rows = read("stable", "table_1")
    failed = {row[0]: row[1:] for row in read("stable", "failures")}
    titles, columns = ["network"], [labels("stable", header[1:])]
    for name, *cells in rows:
        titles.append(f"`{name}`")
        columns.append(cells)
        if name in failed:
            titles.append("fail")
            columns.append(failed[name])
    return markdown_table(titles, [list(row) for row in zip(*columns, strict=True)])


def failing(part: str, optimizer: str) -> str:
    """How many of its seeds fail, summed over the tasks of a study: "5 of 25"."""
    pairs = [tuple(map(int, cell.split(" of "))) for cell in of(part, "failures", optimizer)]
    return f"{sum(failed for failed, _ in pairs)} of {sum(seeds for _, seeds in pairs)}"


def accuracy(part: str, optimizer: str, task: int = 0) -> str:
    """At completion on a task of a study, counted from 0: "93.5 ± 0.3"."""
    return of(part, "table_1", optimizer)[task]


def of(part: str, table: str, optimizer: str) -> list[str]:
    """An optimizer's row in a table, less the tasks that it is not on."""
    row = next(row for row in read(part, table) if row[0] == optimizer)
    return [cell for cell in row[1:] if cell]


PAGES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {"results": summary, "trained": trained},
    "docs/results.md": {
        "table 1": lambda: by_task("table_1"),
        "failures": lambda: by_task("failures"),
        "claims": claims,
        "counts": counts,
        "cnns": cnns,
    },
    "docs/stable.md": {"stable": stable},
    "docs/studies.md": {"relative radius": relative_radius},
    "docs/meta_training.md": {"minutes": minutes},
}
"""What makes the text between the marks of a page, by page and name of the marks."""


def replaced(text: str, name: str, contents: str) -> str:
    """The text with new contents between the marks of `name`.

    Raises:
      ValueError: it has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"The page has no {begin} ... {end}.")
    return pattern.sub(lambda _: f"{begin}\n{contents}\n{end}", text)


def updated(text: str, page: str) -> str:
    """The text of a page of `PAGES` with what the results say today."""
    for name, contents in PAGES[page].items():
        text = replaced(text, name, contents())
    return text


def rewrite_studies() -> None:
    """Page, figures and tables of every study that has a page, in one process."""
    for results in sorted(EXPERIMENTS.glob(f"*/{results_file.FILE}")):
        if (results.parent / pages.RESULTS).exists():
            study_report.report(study(results.parent.name), results.parent)


def main() -> None:
    """Updates the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rewrite", action="store_true", help="the studies' own pages, too")
    if parser.parse_args().rewrite:
        rewrite_studies()
    for page in PAGES:
        path = REPOSITORY / page
        path.write_text(updated(path.read_text(), page))


if __name__ == "__main__":
    main()

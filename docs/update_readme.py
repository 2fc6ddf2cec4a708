"""Writes measured numbers into README.md, so that none is copied by hand.

What stands between `<!-- table 1 -->` and `<!-- end table 1 -->`, and the same for "failures",
"claims", "counts", "cnns", "relative radius" and "minutes", is replaced by what the files in
results/ say of it.

    python docs/update_readme.py
"""

import csv
import json
import math
import pathlib
import re

import numpy as np

from regularized_lopt.report.markdown import table as markdown_table
from regularized_lopt.report.plot_style import short

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"
PAPER = RESULTS / "paper"


def read(path: pathlib.Path) -> list[list[str]]:
    """The rows of a CSV file, the header first."""
    with path.open(newline="") as file:
        return list(csv.reader(file))


def by_task(name: str) -> str:
    """A table of results/paper with a column per task."""
    header, *rows = read(PAPER / f"{name}.csv")
    return markdown_table([header[0], *map(short, header[1:])], rows)


def claims() -> str:
    """The paper's claims and how they fared."""
    found = json.loads((PAPER / "results.json").read_text())["claims"]
    return markdown_table(
        ["claim", "verdict", "by what was declared beforehand, if another test"],
        [[claim["text"], claim["verdict"], claim["declared"]] for claim in found],
    )


def counts() -> str:
    """How often a flatness term left its mark, and how often optimizers fail."""
    everywhere = ", ".join(
        f"{failing('paper', row[0])} with `{row[0]}`"
        for row in read(PAPER / "failures.csv")[1:]
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
        f"* Of the pairs of a seed and a task {failing('paper', 'none')} fail without a "
        f"regularizer, {everywhere}. Meta-trained without one, but on two loss surfaces at once, "
        f"{two} fail, where with one surface {one} do on the same tasks.\n"
        f"* With running averages of the gradient among the inputs {averages} fail, without them "
        f"{without} on the same tasks; with the network of the meta-training accuracy is "
        f"{accuracy('momentum', 'none_momentum')}% and {accuracy('momentum', 'none')}%. No "
        "regularizer in either."
    )


def flatness() -> str:
    """How many optimizers are flatter for their own flatness term, and what could have been seen.

    Over all parts of results/; what two parts share is counted once.
    """
    rows = {tuple(row.items()) for part in RESULTS.iterdir() for row in dicts(part, "measures")}
    own = [row for row in map(dict, rows) if row["learned"] == row["targeted"] == "True"]
    known = [row for row in own if row["low"] not in ("nan", "-inf")]
    below = sum(float(row["high"]) < 0 for row in known)
    above = sum(float(row["low"]) > 0 for row in known)
    widths = [
        (float(row["log_ratio_high"]) - float(row["log_ratio_low"])) / 2
        for row in known
        if row["log_ratio_low"] != "nan"
    ]
    seen = sum(width < math.log(1 / 0.7) for width in widths)
    return (
        f"* Of {len(known)} intervals of what an optimizer is judged by (the rise of the loss "
        "nearby, of GAM's that of the gradient's norm; every task on which it was measured, all "
        "parts of results/; absolute and relative radius, each at convergence and at completion, "
        f"and matched training loss) {below} lie below zero, flatter than without its flatness "
        f"term, and {above} above. By chance alone, were there no difference, "
        f"{0.05 * len(known):.0f} would leave zero out. Most are too wide to say more: of the "
        f"{len(widths)} that have a ratio, {seen} could have shown a change of 30% "
        "(half their width, on the log scale, is less than log(1/0.7))."
    )


def relative_radius() -> str:
    """How closely the rise in relative radius follows the norm of the params."""
    runs = [
        row
        for row in dicts(PAPER, "runs")
        if row["task"] == "ImageMLP_Mnist_20_Sigmoid"
        and row["point"] == "completion"
        and row["gsam_relative_r0.01"]
    ]
    columns = ("param_norm", "gsam_relative_r0.01", "gsam_absolute_r0.01")
    norm, relative, absolute = np.log([[float(row[c]) for row in runs] for c in columns])
    return (
        "A relative radius follows the norm of the params: with the network of the meta-training "
        "the logarithms of the norm and of the rise in it have a correlation of "
        f"{np.corrcoef(norm, relative)[0, 1]:.2f} over {len(runs)} networks (in absolute radius "
        f"{np.corrcoef(norm, absolute)[0, 1]:.2f}). So longer params look sharper in it, and a "
        "difference there may be one of norms."
    )


def minutes() -> str:
    """What a meta-training took."""

    def of(name: str) -> str:
        directories = (PAPER / "optimizers").glob(f"{name}-seed*")
        took = [float(dicts(one, "metrics")[-1]["seconds"]) / 60 for one in directories]
        return f"{min(took):.1f} to {max(took):.1f}"

    return (
        f"3,000 outer steps took {of('none')} minutes without a regularizer, "
        f"{of('*_optimizee')} with one in optimizee space and {of('sam')} with SAM in meta "
        "space, on two cores that had other work at times."
    )


def dicts(part: pathlib.Path, table: str) -> list[dict[str, str]]:
    """The rows of a CSV file of a part of results/; none where it has no such file."""
    path = part / f"{table}.csv"
    if not path.is_file():
        return []
    header, *rows = read(path)
    return [dict(zip(header, row, strict=True)) for row in rows]


def cnns() -> str:
    """What seeds reach over CNNs on average, and how often they fail there."""
    rows = []
    for part, seeds in (("accuracy", "0 to 4"), ("replication", "0 to 9"), ("ninefold", "0 to 4")):
        header, *found = read(RESULTS / part / "over_tasks.csv")
        columns = [i for i, name in enumerate(header) if name.startswith("CNNs")]
        rows += [[row[0], seeds, *(row[i] for i in columns)] for row in found if row[columns[0]]]
    names = [header[i].removeprefix("CNNs: ") for i in columns]
    return markdown_table(["optimizer", "seeds", *names], rows)


def failing(part: str, optimizer: str) -> str:
    """How many of its seeds fail, summed over the tasks of a part of results/: "5 of 25"."""
    pairs = [tuple(map(int, cell.split(" of "))) for cell in of(part, "failures", optimizer)]
    return f"{sum(failed for failed, _ in pairs)} of {sum(seeds for _, seeds in pairs)}"


def accuracy(part: str, optimizer: str) -> str:
    """At completion on the first task of a part of results/: "93.5 ± 0.3"."""
    return of(part, "table_1", optimizer)[0]


def of(part: str, table: str, optimizer: str) -> list[str]:
    """An optimizer's row in a table of results/, less the tasks that it has not."""
    row = next(row for row in read(RESULTS / part / f"{table}.csv") if row[0] == optimizer)
    return [cell for cell in row[1:] if cell]


def replaced(text: str, name: str, contents: str) -> str:
    """The text with new contents between the marks of `name`.

    Raises:
      ValueError: it has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no {begin} ... {end}.")
    return pattern.sub(lambda _: f"{begin}\n{contents}\n{end}", text)


def updated(text: str) -> str:
    """The text of README.md with what results/ says today."""
    for name, contents in {
        "table 1": by_task("table_1"),
        "failures": by_task("failures"),
        "claims": claims(),
        "counts": counts(),
        "cnns": cnns(),
        "relative radius": relative_radius(),
        "minutes": minutes(),
    }.items():
        text = replaced(text, name, contents)
    return text


def main() -> None:
    """Updates README.md."""
    readme = REPOSITORY / "README.md"
    readme.write_text(updated(readme.read_text()))


if __name__ == "__main__":
    main()

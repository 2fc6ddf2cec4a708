"""Writes measured numbers into README.md, so that none is copied by hand.

What stands between `<!-- table 1 -->` and `<!-- end table 1 -->`, and the same for "failures",
"claims", "counts" and "cnns", is replaced by what the files in results/ say of it.

    python docs/update_readme.py
"""

import csv
import json
import pathlib
import re

from regularized_lopt.evaluation.drawing import short
from regularized_lopt.evaluation.experiment import trained_with
from regularized_lopt.evaluation.page import markdown_table

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"
PAPER = RESULTS / "paper"
INTERVAL = re.compile(r"\[(\S+), (\S+)\]$")


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
        ["claim", "verdict"], [[claim["text"], claim["verdict"]] for claim in found]
    )


def counts() -> str:
    """How often a flatness term left its mark, and how often optimizers fail."""
    header, *rows = read(PAPER / "verdicts.csv")
    bounds = []
    for row in rows:
        one = dict(zip(header, row, strict=True))
        if trained_with(one["optimizer"]) != one["property"]:  # SAM's, in either space, and so on.
            continue
        for name, cell in one.items():
            twice = (
                "matched" in name and one["point"] != "completion"
            )  # It has no point of its own.
            if name.endswith("(95%)") and not twice and (interval := INTERVAL.search(cell)):
                bounds.append(tuple(map(float, interval.groups())))
    below, above = sum(high < 0 for _, high in bounds), sum(low > 0 for low, _ in bounds)
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
        f"* Of {len(bounds)} intervals of the property that an optimizer's own flatness term "
        "stands for (every task on which it was measured; absolute and relative radius, each at "
        f"convergence and at completion, and matched training loss) {below} lie below zero, "
        f"flatter than without it, and {above} above.\n"
        f"* Of the pairs of a seed and a task {failing('paper', 'none')} fail without a "
        f"regularizer, {everywhere}. Meta-trained without one, but on two loss surfaces at once, "
        f"{two} fail, where with one surface {one} do on the same tasks.\n"
        f"* With running averages of the gradient among the inputs {averages} fail, without them "
        f"{without} on the same tasks; with the network of the meta-training accuracy is "
        f"{accuracy('momentum', 'none_momentum')}% and {accuracy('momentum', 'none')}%. No "
        "regularizer in either."
    )


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


def main() -> None:
    """Updates README.md."""
    readme = REPOSITORY / "README.md"
    text = readme.read_text()
    for name, contents in {
        "table 1": by_task("table_1"),
        "failures": by_task("failures"),
        "claims": claims(),
        "counts": counts(),
        "cnns": cnns(),
    }.items():
        text = replaced(text, name, contents)
    readme.write_text(text)


if __name__ == "__main__":
    main()

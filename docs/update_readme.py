"""Writes measured numbers into README.md, so that none is copied by hand.

What stands between `<!-- table 1 -->` and `<!-- end table 1 -->`, and the same for "failures" and
"claims", is replaced by what results/paper says of it.

    python docs/update_readme.py
"""

import csv
import json
import pathlib
import re

from regularized_lopt.evaluation.drawing import short
from regularized_lopt.evaluation.page import markdown_table

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results" / "paper"


def by_task(name: str) -> str:
    """A table of results/paper with a column per task."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    return markdown_table([header[0], *map(short, header[1:])], rows)


def claims() -> str:
    """The paper's claims and how they fared."""
    found = json.loads((RESULTS / "results.json").read_text())["claims"]
    return markdown_table(
        ["claim", "verdict"], [[claim["text"], claim["verdict"]] for claim in found]
    )


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
    }.items():
        text = replaced(text, name, contents)
    readme.write_text(text)


if __name__ == "__main__":
    main()

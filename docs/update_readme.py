"""Writes measured numbers into README.md, so that none is copied by hand.

What stands between `<!-- NAME -->` and `<!-- end NAME -->` is replaced by the table made of
results/table_1.csv (NAME: table 1).

    python docs/update_readme.py
"""

import csv
import pathlib
import re

from regularized_lopt.evaluation.report import markdown_table

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def short(task: str) -> str:
    """A task's name as a column has it."""
    kind, data, *rest = task.split("_")
    network = "CNN" if kind == "Conv" else f"MLP {rest[-1]}"
    return f"{data}, {network}"


def table_1() -> str:
    """Test accuracy at completion by optimizer and task."""
    with (REPOSITORY / "results" / "table_1.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    return markdown_table([header[0], *map(short, header[1:])], rows)


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
    readme.write_text(replaced(readme.read_text(), "table 1", table_1()))


if __name__ == "__main__":
    main()

"""python -m regularized_lopt.zoo: what trained optimizers there are. With names: their cards."""

import sys

import rich.console
import rich.table

from regularized_lopt import errors, zoo


def main(names: list[str]) -> None:
    """Prints a table of all entries, or the cards of those named."""
    if names:
        for name in names:
            print(zoo.card(name))
        return
    table = rich.table.Table(
        title="Trained optimizers: regularized_lopt.load(name)",
        caption=f"License: {_licenses()}",
    )
    # Names are there to be copied: whole.
    table.add_column("name", min_width=max(map(len, zoo.names())))
    for column in ("meta-trained on", "regularizer", "space", "test accuracy there (%)"):
        table.add_column(column)
    for name in zoo.names():
        card = zoo.card(name)
        own = [row["accuracy"] for row in card.figures if row["task"] in card.task.split(" + ")]
        reached = ", ".join("{:.2f} ± {:.2f}".format(*accuracy) for accuracy in own)
        table.add_row(name, card.task, card.regularizer, card.space, reached)
    rich.console.Console(width=120).print(table)


def _licenses() -> str:
    return ", ".join(sorted({zoo.card(name).license for name in zoo.names()}))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except errors.UnknownNameError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)

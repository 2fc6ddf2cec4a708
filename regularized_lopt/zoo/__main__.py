"""python -m regularized_lopt.zoo: what trained optimizers there are. With names: their cards."""

import argparse
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
    for column in ("name", "meta-trained on", "regularizer", "space", "test accuracy there (%)"):
        table.add_column(column, no_wrap=True)
    for name in zoo.names():
        card = zoo.card(name)
        own = [row["accuracy"] for row in card.figures if row["task"] in card.task.split(" + ")]
        reached = ", ".join("{:.2f} ± {:.2f}".format(*accuracy) for accuracy in own)
        table.add_row(name, card.task, card.regularizer, card.space, reached)
    # Whole, whatever the terminal's width: names are there to be copied.
    console = rich.console.Console(width=1_000)
    rich.console.Console(width=console.measure(table).maximum).print(table)


def _licenses() -> str:
    return ", ".join(sorted({zoo.card(name).license for name in zoo.names()}))


if __name__ == "__main__":
    try:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("names", nargs="*", help="of entries; none: a table of all")
        main(parser.parse_args().names)
    except errors.UnknownNameError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)

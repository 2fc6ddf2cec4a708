"""python -m regularized_lopt.zoo: what trained optimizers there are. With names: their cards."""

import argparse
import shutil
import sys
import textwrap

from regularized_lopt import errors, zoo


def main(names: list[str]) -> None:
    """Prints a list of all entries, as wide as the terminal, or the cards of those named."""
    if names:
        for name in names:
            print(zoo.card(name))
        return
    width = shutil.get_terminal_size().columns
    print("Trained optimizers: regularized_lopt.load(name)")
    for name in zoo.names():
        print(f"\n{name}")  # Whole: it is there to be copied.
        for line in _about(zoo.card(name)):
            print(textwrap.fill(line, width, initial_indent="  ", subsequent_indent="    "))
    print(f"\nLicense: {_licenses()}")


def _about(card: zoo.Card) -> list[str]:
    """What it was meta-trained on, with what it reached there, and with which regularizer."""
    reached = {row["task"]: row["accuracy"] for row in card.figures}
    on = [
        "{} (test accuracy {:.2f} ± {:.2f} %)".format(task, *reached[task])
        if task in reached
        else task
        for task in card.task.split(" + ")
    ]
    space = "" if card.space == "none" else f", {card.space} space"
    return [f"meta-trained on {' + '.join(on)}", f"regularizer: {card.regularizer}{space}"]


def _licenses() -> str:
    return ", ".join(sorted({zoo.card(name).license for name in zoo.names()}))


if __name__ == "__main__":
    try:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("names", nargs="*", help="of entries; none: a list of all")
        main(parser.parse_args().names)
    except errors.UnknownNameError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)

"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import rich.console
import rich.table

from regularized_lopt.report.sections import Page, Rows


def show(page: Page) -> None:
    """Prints the tables of a page that have titles."""
    for part in page.parts:
        if isinstance(part, Rows) and part.title is not None:
            print_table(part.title, part.header, part.rows)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    table = rich.table.Table(title=title, title_justify="left")
    for index, cell in enumerate(header):
        table.add_column(cell, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = rich.console.Console()
    if not console.is_terminal:  # Piped into a file there is no width to fit: do not wrap.
        console = rich.console.Console(width=200)
    console.print(table)

"""What a page consists of, before it is HTML, Markdown or lines on a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from matplotlib import figure as mpl_figure

from regularized_lopt.report import plot_style
from regularized_lopt.report.paper_claims import Claim

Table = tuple[list[str], list[list[str]]]


@dataclasses.dataclass(frozen=True)
class Heading:
    """Begins a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Note:
    """A paragraph about what stands beside it."""

    text: str


@dataclasses.dataclass(frozen=True)
class Rows:
    """A table.

    Attributes:
      header: of the columns.
      rows: below it.
      title: with which a terminal shows it; None: it does not.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
      png: the file's bytes.
      width: in CSS pixels, where the page has room.
      caption: below it.
      file: its name, for Markdown; None: it is left out there.
    """

    png: bytes
    width: int
    caption: str
    file: str | None


@dataclasses.dataclass(frozen=True)
class Claims:
    """The paper's claims, in its order."""

    claims: Sequence[Claim]


Part = Heading | Note | Rows | Figure | Claims


class Page:
    """Collects the parts of a page.

    Attributes:
      title, lead: with which it begins.
      parts: in order.
    """

    def __init__(self, title: str, lead: str):
        """A page without parts."""
        self.title = title
        self.lead = lead
        self.parts: list[Part] = []

    def heading(self, text: str) -> None:
        """Begins a section."""
        self.parts.append(Heading(text))

    def note(self, text: str) -> None:
        """A paragraph in a softer colour."""
        self.parts.append(Note(text))

    def table(self, table: Table, title: str | None = None) -> None:
        """A table; with a title, a terminal shows it, too."""
        self.parts.append(Rows(*table, title))

    def table_section(self, title: str, table: Table, note: str) -> None:
        """A section of a table, and what to know about it."""
        self.heading(title)
        self.table(table, title)
        self.note(note)

    def figure(self, figure: mpl_figure.Figure, caption: str, file: str | None = None) -> bytes:
        """A figure, which is in the page itself; returns it as PNG.

        In Markdown it is a link to `file`, which is not written here; None: it is left out.
        """
        png = plot_style.to_png(figure)
        # So that letters are as large as the text.
        width = round(125 * figure.get_figwidth())
        self.parts.append(Figure(png, width, caption, file))
        return png

    def claims(self, claims: Sequence[Claim], note: str) -> None:
        """A section that goes through the paper's claims, and what to know about the verdicts."""
        self.heading("The paper's claims")
        self.note(note)
        self.parts.append(Claims(claims))

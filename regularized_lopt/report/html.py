"""The page that a person reads: one self-contained HTML file, the same in Markdown, and tables."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Sequence

import rich.console
import rich.table
from matplotlib import figure as mpl_figure

from regularized_lopt.report import plot_style
from regularized_lopt.report.paper_claims import Claim

Table = tuple[list[str], list[list[str]]]

_CSS = """
:root {
  color-scheme: light dark;
  --ink: #1b1f24; --paper: #ffffff; --line: #d5d9de; --soft: #5b6470; --strong: #1b6aa5;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #14171b; --line: #363c44; --soft: #9aa4b0; --strong: #7cc0f0; }
}
body {
  color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif;
  margin: 2rem auto; max-width: 80rem; padding: 0 1rem;
}
h1 { font-size: 1.6rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin-bottom: 0.2rem; }
p.note, figcaption { color: var(--soft); }
figcaption, li, summary { font-size: 0.85rem; }
b.verdict { color: var(--strong); }
div.wide { overflow-x: auto; }
div.wide svg { min-width: 36rem; }
table { border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; }
th, td {
  border-bottom: 1px solid var(--line); padding: 0.35rem 0.6rem; text-align: right;
  white-space: nowrap;
}
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; }
svg { color: var(--ink); height: auto; }
"""


class Page:
    """Collects sections; writes them as one HTML file that needs nothing else, and as Markdown."""

    def __init__(self, title: str, lead: str):
        self._title = title
        self._body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(lead)}</p>"]
        self._lead = f"# {title}\n\n{lead}"
        self._markdown: list[str] = []

    def heading(self, text: str) -> None:
        """Begins a section."""
        self._body.append(f"<h2>{html.escape(text)}</h2>")
        self._markdown.append(f"## {text}")

    def note(self, text: str) -> None:
        """A paragraph in a softer colour."""
        self._body.append(f'<p class="note">{html.escape(text)}</p>')
        self._markdown.append(text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; wide ones scroll."""
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        lines = [
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        ]
        self._body.append(
            f'<div class="wide"><table><tr>{cells}</tr>{"".join(lines)}</table></div>'
        )
        self._markdown.append(markdown_table(header, rows))

    def table_section(self, title: str, table: Table, note: str) -> None:
        """A section of a table, also printed, and what to know about it."""
        print_table(title, *table)
        self.heading(title)
        self.table(*table)
        self.note(note)

    def figure(self, figure: mpl_figure.Figure, caption: str, file: str | None = None) -> str:
        """The figure as inline SVG, in the page's colours; returns that SVG.

        In Markdown it is a link to `file`, which is not written here; None: it is left out.
        """
        svg = plot_style.to_svg(figure)
        if file is not None:
            self._markdown.append(f"![{caption}]({file})\n\n*{caption}*")
        self._body.append(
            f'<figure><div class="wide">{svg}</div>'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
        return svg

    def claims(self, claims: Sequence[Claim], note: str) -> None:
        """A section that goes through the paper's claims, and what to know about the verdicts."""
        self.heading("The paper's claims")
        self.note(note)
        for number, claim in enumerate(claims, 1):
            measured = [f"   - {line}" for line in claim.evidence]
            self._markdown.append(
                "\n".join([f"{number}. {claim.text} **{claim.outcome}**", *measured])
            )
            verdict = f'<b class="verdict">{html.escape(claim.outcome)}</b>'
            self._body.append(f"<h3>{number}. {html.escape(claim.text)} {verdict}</h3>")
            if claim.evidence:
                items = "".join(f"<li>{html.escape(line)}</li>" for line in claim.evidence)
                self._body.append(f"<details><summary>Measured</summary><ul>{items}</ul></details>")

    def write(self, path: pathlib.Path) -> None:
        """Writes the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>{html.escape(self._title)}</title>"
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{_CSS}</style></head><body>{''.join(self._body)}</body></html>\n"
        )

    def write_markdown(self, path: pathlib.Path, notes: str = "") -> None:
        """Writes the same as Markdown, with `notes` (Markdown, too) before the sections."""
        parts = [self._lead, *([notes.strip()] if notes else []), *self._markdown]
        path.write_text("\n\n".join(parts) + "\n")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = [":--"] + ["--:"] * (len(header) - 1)
    return "\n".join([line(header), line(rule), *map(line, rows)])


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The same table on the terminal."""
    table = rich.table.Table(title=title, title_justify="left")
    for index, cell in enumerate(header):
        table.add_column(cell, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = rich.console.Console()
    if not console.is_terminal:  # Piped into a file there is no width to fit: do not wrap.
        console = rich.console.Console(width=200)
    console.print(table)

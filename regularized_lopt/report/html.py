"""A page as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import pathlib

from regularized_lopt.report.paper_claims import Claim
from regularized_lopt.report.sections import Claims, Figure, Heading, Note, Page, Part, Rows

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


def write(page: Page, path: pathlib.Path) -> None:
    """Writes the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(page.title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head><body>"
        f"<h1>{html.escape(page.title)}</h1><p>{html.escape(page.lead)}</p>"
        f"{''.join(map(_part, page.parts))}</body></html>\n"
    )


def _part(part: Part) -> str:
    match part:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Note(text):
            return f'<p class="note">{html.escape(text)}</p>'
        case Rows():
            return _table(part)
        case Figure(svg, caption):
            return (
                f'<figure><div class="wide">{svg}</div>'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )
        case Claims(claims):
            return "".join(_claim(number, claim) for number, claim in enumerate(claims, 1))


def _table(table: Rows) -> str:
    """Wide ones scroll."""
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    ]
    return f'<div class="wide"><table><tr>{cells}</tr>{"".join(lines)}</table></div>'


def _claim(number: int, claim: Claim) -> str:
    verdict = f'<b class="verdict">{html.escape(claim.outcome)}</b>'
    heading = f"<h3>{number}. {html.escape(claim.text)} {verdict}</h3>"
    if not claim.evidence:
        return heading
    items = "".join(f"<li>{html.escape(line)}</li>" for line in claim.evidence)
    return f"{heading}<details><summary>Measured</summary><ul>{items}</ul></details>"

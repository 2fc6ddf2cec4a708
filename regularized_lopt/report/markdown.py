"""A page as Markdown."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from regularized_lopt.report.paper_claims import Claim
from regularized_lopt.report.sections import Claims, Figure, Heading, Note, Page, Part, Rows


def write(page: Page, path: pathlib.Path, notes: str = "") -> None:
    """Writes the page, with `notes` (Markdown, too) before its sections.

    A figure that the notes show is not shown again.
    """
    found = [text for part in page.parts if not _is_in(part, notes) for text in _part(part)]
    lead = f"# {page.title}\n\n{page.lead}"
    path.write_text("\n\n".join([lead, *([notes.strip()] if notes else []), *found]) + "\n")


def _is_in(part: Part, notes: str) -> bool:
    return isinstance(part, Figure) and f"]({part.file})" in notes


def _part(part: Part) -> list[str]:
    """Its paragraphs."""
    match part:
        case Heading(text):
            return [f"## {text}"]
        case Note(text):
            return [text]
        case Rows(header, rows):
            return [table(header, rows)]
        case Figure(caption=caption, file=file):
            return [] if file is None else [f"![{caption}]({file})\n\n*{caption}*"]
        case Claims(claims):
            return [_claim(number, claim) for number, claim in enumerate(claims, 1)]


def _claim(number: int, claim: Claim) -> str:
    measured = [f"   - {line}" for line in claim.evidence]
    return "\n".join([f"{number}. {claim.text} **{claim.outcome}**", *measured])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = [":--"] + ["--:"] * (len(header) - 1)
    return "\n".join([line(header), line(rule), *map(line, rows)])

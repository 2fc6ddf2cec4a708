"""A page as the files that a reader opens, and on the terminal."""

from __future__ import annotations

import pathlib

from regularized_lopt.report import html, markdown, terminal
from regularized_lopt.report.sections import Page

REPORT = "report.html"
RESULTS = "RESULTS.md"
NOTES = "NOTES.md"


def write(page: Page, out_dir: pathlib.Path) -> None:
    """Writes report.html and RESULTS.md, and shows the tables that have a title.

    If the directory has a NOTES.md, RESULTS.md begins with it.
    """
    html.write(page, out_dir / REPORT)
    notes = out_dir / NOTES
    markdown.write(page, out_dir / RESULTS, notes.read_text() if notes.is_file() else "")
    terminal.show(page)

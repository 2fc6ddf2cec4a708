"""Reports a person reads: one self-contained HTML file, and tables on the terminal."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Sequence

import rich.console
import rich.table
from matplotlib import figure as mpl_figure

from regularized_lopt.evaluation import figures as figures_lib
from regularized_lopt.evaluation import results as results_lib
from regularized_lopt.evaluation.meta_test import MetaTestResult

_CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --line: #d5d9de; --soft:
#5b6470; } @media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #14171b; --line: #363c44; --soft: #9aa4b0; }
}
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; margin:
2rem auto;
  max-width: 80rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.note { color: var(--soft); }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 0.35rem 0.6rem; text-align: right;
white-space: nowrap; } th { white-space: normal; vertical-align: bottom; } th:first-child,
td:first-child { text-align: left; } figure { margin: 1rem 0; } figcaption { color: var(--soft);
font-size: 0.85rem; } svg { color: var(--ink); height: auto; }
"""


_CAPTIONS = {
    "training_curves": "Mean over runs; bands: one standard deviation.",
    "sharpness_by_radius": "Lower is flatter. All radii of the paper.",
    "ascent_curves": "The loss along the ascent from a random start in the ball.",
}


class Report:
    """Collects sections and writes them as one HTML file that needs nothing else."""

    def __init__(self, title: str, lead: str):
        self._title = title
        self._body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(lead)}</p>"]

    def heading(self, text: str) -> None:
        """Begins a section."""
        self._body.append(f"<h2>{html.escape(text)}</h2>")

    def note(self, text: str) -> None:
        """A paragraph in a softer colour."""
        self._body.append(f'<p class="note">{html.escape(text)}</p>')

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

    def figure(self, figure: mpl_figure.Figure, caption: str) -> None:
        """The figure as inline SVG, in the page's colours."""
        svg = figures_lib.to_svg(figure)
        self._body.append(f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>")

    def meta_test(self, result: MetaTestResult, figure_dir: pathlib.Path | None = None) -> None:
        """A section on a meta-test: table (also printed), figures (also PNGs in `figure_dir`)."""
        title = f"{result.task}: {result.num_runs} runs of {result.num_steps} steps"
        header, rows = results_lib.table(result)
        print_table(title, header, rows)
        self.heading(title)
        self.table(header, rows)
        self.note(
            "Means ± standard deviation over runs. Differences are paired (same inits and "
            "batches) with a 95% bootstrap interval. Rise: how much the held-out loss grows "
            "from the params to the end of a 10-step projected gradient ascent in an l∞ ball; "
            "an absolute radius favours large params, so read it with ‖p‖ and the train loss."
        )
        for name, figure in figures_lib.meta_test_figures(result).items():
            self.figure(figure, _CAPTIONS[name])
            if figure_dir is not None:
                figures_lib.save_png(figure, figure_dir / f"{name}.png")

    def write(self, path: pathlib.Path) -> None:
        """Writes the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>{html.escape(self._title)}</title>"
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{_CSS}</style></head><body>{''.join(self._body)}</body></html>\n"
        )


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

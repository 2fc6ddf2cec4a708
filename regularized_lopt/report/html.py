"""A page as one HTML file that needs nothing else; page.html and page.css are its form."""

from __future__ import annotations

import base64
import functools
import pathlib

import jinja2

from regularized_lopt.report import sections


def write(page: sections.Page, path: pathlib.Path) -> None:
    """Writes the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_template().render(page=page) + "\n")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.tests.update(
        heading=lambda part: isinstance(part, sections.Heading),
        note=lambda part: isinstance(part, sections.Note),
        rows=lambda part: isinstance(part, sections.Rows),
        figure=lambda part: isinstance(part, sections.Figure),
        claims=lambda part: isinstance(part, sections.Claims),
    )
    return environment.get_template("page.html")

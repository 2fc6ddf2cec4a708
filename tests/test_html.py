"""Pages as HTML."""

import base64
import xml.etree.ElementTree

import pytest
from matplotlib import figure

from regularized_lopt.report import html, paper_claims, plot_style, sections


@pytest.fixture
def written(tmp_path):
    """A page of every kind of part, as HTML, and the PNG in it."""
    page = sections.Page("A < B", "Both & none")
    page.heading("Accuracy <1>")
    page.table((["", "a & b"], [["task", "1 < 2"]]))
    page.note('"Quoted"')
    page.claims([paper_claims.Claim("Flat", "holds", ("in 3 of <4>",))], "Of the paper")
    drawn = figure.Figure(figsize=(2.0, 1.0))
    png = page.figure(drawn, "A caption > all")
    html.write(page, tmp_path / "deep" / "page.html")
    return (tmp_path / "deep" / "page.html").read_text(), png


def test_what_has_a_meaning_in_html_is_escaped(written):
    text, _ = written
    body = text[text.index("<body>") : text.index("</html>")]
    tree = xml.etree.ElementTree.fromstring(body)
    for tag, wanted in {
        "h1": "A < B",
        "h2": "Accuracy <1>",
        "td": "task",
        "figcaption": "A caption > all",
        "li": "in 3 of <4>",
    }.items():
        assert next(tree.iter(tag)).text == wanted
    assert [cell.text for cell in tree.iter("td")] == ["task", "1 < 2"]
    assert next(tree.iter("b")).text == "holds"


def test_a_figure_is_in_the_page_itself_as_wide_as_it_was_drawn(written):
    text, png = written
    assert png.startswith(b"\x89PNG")
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    assert f'style="max-width: 250px" src="{source}"' in text
    assert plot_style.to_png(figure.Figure(figsize=(2.0, 1.0))) == png

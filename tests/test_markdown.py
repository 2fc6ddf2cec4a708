"""Pages as Markdown."""

from regularized_lopt.report import markdown
from regularized_lopt.report.sections import Figure, Page


def test_notes_stand_before_the_sections_and_their_figures_are_not_repeated(tmp_path):
    page = Page("Title", "Lead.")
    page.heading("Section")
    for name in ("one.png", "two.png", None):
        page.parts.append(Figure(b"", 100, "Caption", name))
    markdown.write(page, tmp_path / "page.md", "## Figure\n\n![Seen](one.png)\n")
    assert (tmp_path / "page.md").read_text() == (
        "# Title\n\nLead.\n\n## Figure\n\n![Seen](one.png)\n\n## Section\n\n"
        "![Caption](two.png)\n\n*Caption*\n"
    )


def test_a_table_keeps_bars_in_its_cells():
    table = markdown.table(["name", "size"], [["a|b", "1"]])
    assert table == "| name | size |\n| :-- | --: |\n| a\\|b | 1 |"

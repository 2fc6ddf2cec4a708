"""Links between the Markdown files of the repository lead somewhere."""

import os
import re

import pytest
from conftest import REPOSITORY

PAGES = sorted(
    [
        *(REPOSITORY / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")),
        REPOSITORY / "benchmarks" / "RESULTS.md",
        *(REPOSITORY / "experiments").rglob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
    ]
)
FENCED = re.compile(r"^(`{3,}|~{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(`+)(?!`)(?:(?!\n\n).)*?\1", re.DOTALL)  # Within a paragraph.
LINK = re.compile(r"\]\(<?([^)>\s]+)|<(?:img|a)\s[^>]*?(?:src|href)=\"([^\"]+)\"")
STUDIES = sorted(
    [*(REPOSITORY / "experiments").glob("*/RESULTS.md"), REPOSITORY / "experiments/search/NOTES.md"]
)
SECTIONS = ["Question", "Design", "Power", "Result", "Figure", "Data"]
HEADING = re.compile(r"^#{1,6} +(.+?)[ #]*$", re.MULTILINE)


def anchors(page):
    """What GitHub and MyST call the headings of a page: `## A b, c` is #a-b-c."""
    found = set()
    for heading in HEADING.findall(FENCED.sub("", page.read_text())):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        numbered = (f"{slug}-{number}" if number else slug for number in range(len(found) + 1))
        found.add(next(name for name in numbered if name not in found))
    return found


def broken_links(page):
    """The page's relative links whose file or heading does not exist."""
    broken = []
    for match in LINK.finditer(INLINE.sub("", FENCED.sub("", page.read_text()))):
        link = match[1] or match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (
            anchor and not (target.suffix == ".md" and anchor in anchors(target))
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_relative_links_lead_to_files_and_headings(page):
    assert not broken_links(page)


def test_the_index_lists_every_page():
    """In the text and in the toctrees."""
    docs = REPOSITORY / "docs"
    pages = {docs / "api/index.md", *docs.glob("*.md"), *docs.glob("tutorials/*")}
    pages -= {docs / "index.md"}
    pages |= {REPOSITORY / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING")}
    pages |= {REPOSITORY / "benchmarks/RESULTS.md", REPOSITORY / "experiments/README.md"}
    text, *toctrees = (docs / "index.md").read_text().split("```{toctree}")
    assert {(docs / link[1]).resolve() for link in LINK.finditer(text)} == pages
    lines = {line for tree in toctrees for line in tree.splitlines()}
    assert lines >= {os.path.relpath(page.with_suffix(""), docs) for page in pages}


def test_the_table_of_studies_has_every_page_of_one():
    table = REPOSITORY / "experiments/README.md"
    assert {table.parent / link[1] for link in LINK.finditer(table.read_text())} >= {*STUDIES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_no_page_includes_another(page):
    assert "```{include}" not in page.read_text()


@pytest.mark.parametrize("study", [page.parent.name for page in STUDIES])
def test_every_study_has_the_same_sections(study):
    (page,) = (page for page in STUDIES if page.parent.name == study)
    assert HEADING.findall(page.read_text())[1 : len(SECTIONS) + 1] == SECTIONS


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_bytes()) <= 6 * 1024


def test_broken_links_are_found(tmp_path):
    page, other = (tmp_path / name for name in ("page.md", "other.md"))
    other.write_text("# Two `words`\n\n## Again\n\n## Again\n\n```\n# no heading\n```\n")
    page.write_text(
        "[file](other.md) [web](https://example.org/x#y) `[code](no.md)` [here](#own)\n"
        "[heading](other.md#two-words) [second](other.md#again-1)\n\n# Own\n\n"
        "```\n[code](nothing.md)\n```\n\n"
        "![image](no.png) [gone](<no.md>) [lost](other.md#no-heading) [up](#no)\n"
        '<img src="no.svg">\n'
    )
    assert broken_links(page) == ["no.png", "no.md", "other.md#no-heading", "#no", "no.svg"]

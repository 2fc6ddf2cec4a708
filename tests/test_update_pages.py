"""The numbers in README.md and docs/ are what the results say."""

import math

import pytest
from conftest import REPOSITORY, script


@pytest.fixture(scope="module")
def update_pages():
    """Of all tests: what it reads of the studies, it keeps."""
    return script("docs/update_pages.py")


@pytest.mark.parametrize(
    "page",
    [
        *("README.md", "docs/results.md", "docs/stable.md", "docs/studies.md"),
        "docs/meta_training.md",
    ],
)
def test_pages_say_what_the_results_say(update_pages, page):
    text = (REPOSITORY / page).read_text()
    assert update_pages.updated(text, page) == text


def test_a_mark_that_a_page_lacks_is_named(update_pages):
    with pytest.raises(ValueError, match="no <!-- minutes -->"):
        update_pages.updated("# A page\n", "docs/meta_training.md")


def test_studies_that_have_a_page_are_rewritten(update_pages, monkeypatch, tmp_path):
    for name in ("b/results.nc.xz", "b/RESULTS.md", "a/results.nc.xz", "c/RESULTS.md"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    rewritten = []
    monkeypatch.setattr(update_pages, "EXPERIMENTS", tmp_path)
    monkeypatch.setattr(update_pages, "study", "results of {}".format)
    monkeypatch.setattr(update_pages.study_report, "report", lambda *of: rewritten.append(of))
    update_pages.rewrite_studies()
    assert rewritten == [("results of b", tmp_path / "b")]


def row(low, high, log_ratio=(-1.0, 1.0), targeted=True, task="a"):
    names = ("task", "learned", "targeted", "low", "high", "log_ratio_low", "log_ratio_high")
    return dict(zip(names, (task, True, targeted, low, high, *log_ratio), strict=True))


def test_intervals_are_counted_over_all_studies_once(update_pages, monkeypatch):
    narrow = (-math.log(1 / 0.71), math.log(1 / 0.71))
    of_study = {
        "first": [row(-2, -1, narrow), row(-1, 1), row(-1, 1, targeted=False)],
        "second": [row(-2, -1, narrow), row(1, 2, (math.nan, math.nan)), row(-math.inf, math.inf)],
        "without": [],
    }
    measured = [one for rows in of_study.values() for one in rows]
    monkeypatch.setattr(update_pages, "measures", lambda: iter(measured))
    monkeypatch.setattr(update_pages, "intervals", update_pages.intervals.__wrapped__)
    found = update_pages.Intervals(total=3, below=1, above=1, ratios=2, narrow=1)
    assert update_pages.intervals() == found
    said = update_pages.flatness()
    assert "Of 3 intervals, 1 lie below zero" in said
    assert "and 1 above" in said
    assert "of the 2 that have a ratio, 1 could have shown a change of 30%" in said

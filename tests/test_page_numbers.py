"""What docs/page_numbers.py keeps of a page, and what it notices."""

import json
import re

import pytest
from conftest import script

PAGE = """\
# Found in 12 runs

Test accuracy (%) is higher by 0.3 with SAM, [see there](other.md#part-77), on
CIFAR-10 and with `Conv_Mnist_16x32`. Seven of twenty-one fail. No number here.

```
python run.py --steps=4711
```

## Flatness

Properties at completion:

| optimizer | max L | vs none | λ max | vs none |
| :-- | --: | --: | --: | --: |
| none | 1.5 ± 0.2 |  | 20 |  |
| sam (lr 0.1) | 1.2 ± 0.1 | -0.3 [-0.5, +0.1] | **18** | -2 |

| task | optimizer | accuracy |
| :-- | --: | --: |
| Mnist | none | 93.5 |
| Mnist | sam | 93.8 |
| Cifar10 | none | 28.6 |

1. Holds in 3 of 45.
   - Mnist, sam: +0.382.
"""


@pytest.fixture
def page_numbers():
    return script("docs/page_numbers.py")


@pytest.fixture
def check(page_numbers, tmp_path, capsys):
    """Keeps the numbers of PAGE, and returns what is said of the page after a change."""
    path = tmp_path / "results" / "part" / "RESULTS.md"
    path.parent.mkdir(parents=True)
    (tmp_path / "README.md").write_text("# Nothing\n")
    path.write_text(PAGE)
    assert page_numbers.main([], tmp_path) == 0

    def check(*changes):
        text = PAGE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        code = page_numbers.main(["--check"], tmp_path)
        lines = capsys.readouterr().out.splitlines()
        assert code == bool(lines)
        return lines

    return check


def kept(page_numbers, markdown):
    return {name: section.kept() for name, section in page_numbers.sections(markdown).items()}


def test_tables_are_kept_by_caption_row_and_column(page_numbers):
    tables = kept(page_numbers, PAGE)["Found in 12 runs > Flatness"]["tables"]
    assert tables == {
        "Properties at completion": {
            "labels": ["optimizer"],
            "rows": {
                "none": {"max L": "1.5 ± 0.2", "λ max": "20"},
                "sam (lr 0.1)": {
                    "max L": "1.2 ± 0.1",
                    "max L / vs none": "-0.3 [-0.5, +0.1]",
                    "λ max": "18",
                    "λ max / vs none": "-2",
                },
            },
        },
        "table 2": {
            "labels": ["task", "optimizer"],
            "rows": {
                "Mnist | none": {"accuracy": "93.5"},
                "Mnist | sam": {"accuracy": "93.8"},
                "Cifar10 | none": {"accuracy": "28.6"},
            },
        },
    }


def test_prose_is_kept_by_sentences_without_code_targets_and_names(page_numbers):
    found = kept(page_numbers, PAGE)
    assert [(one["text"], one["numbers"]) for one in found["Found in 12 runs"]["prose"]] == [
        ("Found in 12 runs", ["12"]),
        (
            "Test accuracy (%) is higher by 0.3 with SAM, see there, on CIFAR-10 and with "
            "Conv_Mnist_16x32.",
            ["0.3"],
        ),
        ("Seven of twenty-one fail.", ["seven", "twenty-one"]),
    ]
    prose = found["Found in 12 runs > Flatness"]["prose"]
    assert [one["numbers"] for one in prose] == [["3", "45"], ["+0.382"]]


def test_rows_that_nothing_tells_apart_are_all_kept(page_numbers):
    rows = "| a | 1 |\n| a | 1 |\n| | 2 |\n"
    (section,) = kept(page_numbers, f"# A\n\n| name | value |\n|---|---|\n{rows}").values()
    assert section["tables"]["table 1"]["rows"] == {
        "a": {"value": "1"},
        "a (2)": {"value": "1"},
        "a (3)": {"value": "2"},
    }


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3,000 steps, 35% and 20x20 units", ["3,000", "35%", "20x20"]),
        ("[-3.85e+03, +0.7], 10-20, 1e-4", ["-3.85e+03", "+0.7", "10", "20", "1e-4"]),
        ("H100, R², L2, float32, only one", []),
    ],
)
def test_numbers(page_numbers, text, numbers):
    assert page_numbers.numbers(text) == numbers


def test_the_file_is_the_same_every_time(check, page_numbers, tmp_path):
    path = tmp_path / page_numbers.KEPT
    text = path.read_text()
    page_numbers.main([], tmp_path)
    assert path.read_text() == text
    assert text.endswith("}\n")
    assert list(json.loads(text)) == ["README.md", "results/part/RESULTS.md"]


def test_another_layout_is_no_difference(check):
    row = "| Mnist | none | 93.5 |\n"
    assert not check()
    assert not check((row, ""), ("28.6 |\n", f"28.6 |\n{row}"))
    assert not check(("on\nCIFAR-10", "on CIFAR-10"), ("No number", "Not any"))
    assert not check(
        ("| none | 1.5 ± 0.2 |  | 20 |  |", "| none | 1.5 ± 0.2 |  | 20 |  | 7 |"),
        ("| sam (lr 0.1) | 1.2 ± 0.1 |", "| new | 9 | 9 | 9 | 9 |\n| sam (lr 0.1) | 1.2 ± 0.1 |"),
    )
    assert not check(("Seven of twenty-one fail", "It fails in seven cases of twenty-one"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1.2 ± 0.1", "1.2 ± 0.2", "sam (lr 0.1): max L: was 1.2 ± 0.1, is 1.2 ± 0.2"),
        ("| 93.8 |", "| |", "Mnist | sam: accuracy: was 93.8, is nothing"),
        ("lr 0.1", "lr 0.2", "row sam (lr 0.1): missing"),
        ("| λ max |", "| tr H |", "column λ max: missing"),
        ("Seven of", "Six of", "was seven, twenty-one, is six, twenty-one: Seven of"),
        ("- Mnist, sam: +0.382.", "- Mnist.", "+0.382 missing: Mnist, sam"),
        ("## Flatness", "## Sharpness", "> Flatness: missing"),
        ("completion:", "the end:", "Properties at completion: missing"),
    ],
)
def test_a_difference_is_told(check, old, new, said):
    lines = check((old, new))
    assert any(said in line for line in lines)
    assert all(line.startswith("results/part/RESULTS.md: Found in 12 runs") for line in lines)


def test_a_page_without_headings_is_kept(page_numbers):
    assert kept(page_numbers, "Took 12 minutes.") == {
        "": {"prose": [{"text": "Took 12 minutes.", "numbers": ["12"]}]}
    }


def test_what_moved_is_found_on_the_pages_that_it_moved_to(page_numbers, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(PAGE)
    page_numbers.main([], tmp_path)

    def lines(readme, results):
        (tmp_path / "README.md").write_text(readme)
        (tmp_path / "docs" / "results.md").write_text(results)
        page_numbers.main(["--check"], tmp_path)
        return capsys.readouterr().out.splitlines()

    above, between, below = re.split(r"(?=## Flatness)|(?=\| task)", PAGE)
    assert not lines(above, between + below)
    assert not lines(above.replace("Seven of", "7 of"), between.replace(":", ".") + below)
    (told,) = lines(above, between + below.replace("93.8", "94.8"))
    assert told.endswith("Mnist | sam: accuracy: was 93.8, is 94.8")
    (told,) = lines(above, between + below.replace("of 45", "of 46"))
    assert told == "README.md: was 3, 45, is 3, 46: Holds in 3 of 45."
    (told,) = lines(above.replace("Seven", "Many"), between + below)
    assert told.startswith("README.md: 7 missing: Seven of")
    assert set(lines(above, between)) == {
        *(f"README.md: {number} missing: {number}" for number in ("93.5", "93.8", "28.6")),
        "README.md: 3, 45 missing: Holds in 3 of 45.",
        "README.md: +0.382 missing: Mnist, sam: +0.382.",
    }
    text = "Cifar10 has 28.6, Mnist 93.5 and 93.8. Holds in 3 of 45, by +0.382.\n"
    assert not lines(above, between + text)


def test_a_missing_page_is_told_once(check, page_numbers, tmp_path, capsys):
    (tmp_path / "results" / "part" / "RESULTS.md").unlink()
    assert page_numbers.main(["--check"], tmp_path) == 1
    assert capsys.readouterr().out == "results/part/RESULTS.md: missing\n"

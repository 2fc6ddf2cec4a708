"""Tables of the optimizers themselves."""

import numpy as np
import pytest
from helpers_results import measured_task, trained
from helpers_study import RELU

from regularized_lopt.measure import StudyResults, results_file
from regularized_lopt.report import optimizer_tables, sections, write
from regularized_lopt.run_files import METRICS

RISES = ("optimizee_rise_at_reference", "meta_rise_at_reference")
STEPS = np.arange(1.0, 9.0)


def run(params, theta=1.0, loss=0.5):
    """Eight outer steps that validate every other one; the last quarter begins after the sixth."""
    validated = STEPS % 2 == 0

    def column(value):
        values = np.where(STEPS > 6, value, 100.0)  # Early ones are not looked at.
        return np.where(validated, values, np.nan)

    columns = {"outer_step": STEPS, "validation_loss": column(loss)}
    return columns | dict(zip(RISES, (column(params), column(theta)), strict=True))


def without(columns):
    return {name: values for name, values in columns.items() if name not in RISES}


def test_a_planted_ratio_of_the_rise_is_found_seed_by_seed():
    """Seeds spread by factors, which pairing by seed takes out; the order says nothing."""
    none = {seed: run(0.1 * (1 + seed), 0.01, 0.5) for seed in (0, 1, 2)}
    sam = {seed: run(0.08 * (1 + seed), 0.02, 0.55) for seed in (2, 0, 1, 5)}
    header, rows = optimizer_tables.objective_table({"none": none, "sam": sam}, "none")
    assert header[2] == "ratio to none (95%)"
    assert rows[0] == [
        "none", "0.5", "", "0.1817", "", "3", "", "0.01", "", "3", ""
    ]  # fmt: skip
    # Of the fourth there is no reference, though it counts in the mean.
    assert rows[1][:3] == ["sam", "0.55", "1.1 [1.1, 1.1]"]
    assert rows[1][4:6] == ["0.8 [0.8, 0.8]", "3"]
    assert rows[1][7:10] == ["0.02", "2 [2, 2]", "3"]
    assert float(rows[1][3]) == pytest.approx(0.08 * 36**0.25, rel=1e-3)


def test_validations_are_averaged_geometrically_from_the_last_quarter_on():
    columns = run(1.0)
    columns[RISES[0]] = np.array([9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 0.1, 0.4])
    rows = optimizer_tables.objective_table({"none": {0: run(0.2)}, "sam": {0: columns}}, "none")[1]
    assert rows[1][3] == "0.2"
    assert rows[1][4].startswith("1 [")


def test_seeds_whose_rise_is_not_positive_are_left_out_and_counted():
    none = {seed: run(0.1, -0.01 if seed == 2 else 0.01) for seed in range(4)}
    sam = {seed: run(0.05, -0.01 if seed == 0 else 0.01) for seed in range(4)}
    rows = optimizer_tables.objective_table({"none": none, "sam": sam}, "none")[1]
    assert rows[0][9] == "3 of 4"
    assert rows[1][4:6] == ["0.5 [0.5, 0.5]", "4"]
    assert rows[1][8:10] == ["1 [1, 1]", "2 of 4"]


@pytest.mark.parametrize("absent", [without, lambda of: of | dict.fromkeys(RISES, 0 * STEPS / 0)])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_was_not_measured_has_no_row_and_maybe_no_table(absent):
    one, old = {0: run(0.1)}, {0: absent(run(0.1))}
    curves = {"none": one, "sam": one, "old": old}
    rows = optimizer_tables.objective_table(curves, "none")[1]
    assert [row[0] for row in rows] == ["none", "sam"]
    for curves in (
        {"none": old, "sam": one},
        {"none": one, "sam": old},
        {"none": old, "sam": old},
        {"sam": one, "gam": one},
    ):
        assert optimizer_tables.objective_table(curves, "none")[1] == []


@pytest.mark.parametrize("checked", [True, False])
def test_a_page_that_is_made_again_from_its_file_has_the_table(tmp_path, checked):
    one = run(0.1) if checked else without(run(0.1))
    every = {name: one.get(name, np.full_like(STEPS, np.nan)) for name in METRICS}
    both = ("none", "sam")
    study = StudyResults(
        "A study",
        "Of one task.",
        [measured_task(RELU, **{name: trained([0.9]) for name in both})],
        meta_training={name: {0: every} for name in both},
        validation_losses={name: [0.5] for name in both},
    )
    results_file.save(study, tmp_path / results_file.FILE)
    page = write.write(results_file.load(tmp_path / results_file.FILE), tmp_path)
    titles = [part.title for part in page.parts if isinstance(part, sections.Rows)]
    assert ("Is the objective learned?" in titles) is checked

"""Ratios to the reference over seeds: what is planted is found, and what is missing is told."""

import csv
import dataclasses

import numpy as np
import pytest
import scipy.stats
from helpers_results import EVERY, EVERY_BALL, SEEDS, in_every_ball, measured_task, optimizer
from helpers_study import RELU

from regularized_lopt import power
from regularized_lopt.measure import StudyResults
from regularized_lopt.measure.flatness import NORMS, SCALES
from regularized_lopt.report import export, log_ratios, sections, write

FACTORS = {"absolute": 0.5, "relative": 0.8, "live": 1.0, "l2": 1.25}
SPREAD = np.exp(0.2 * np.random.default_rng(0).normal(size=(SEEDS, 3)))


def found(factors, loss=1.0, spread=SPREAD):
    return in_every_ball(factors, loss, spread)


def by_quantity(task):
    header, rows = log_ratios.table(task)
    assert len({len(row) for row in rows} | {len(header)}) == 1
    return {(row[0], row[1]): [row[2:5], row[5:8], row[8:]] for row in rows}


def test_a_planted_ratio_is_found_with_scipy_s_interval():
    """The reference's runs do not spread, so that the log ratio spreads as the optimizer's."""
    none = found(dict.fromkeys(EVERY, 1.0), loss=3.0, spread=np.ones((SEEDS, 3)))
    task = measured_task(RELU, config=EVERY_BALL, none=none, sam=found(FACTORS))
    rows = by_quantity(task)
    for scale, factor in FACTORS.items():
        logs = np.log(factor * SPREAD).mean(axis=1)
        test = scipy.stats.ttest_1samp(logs, 0.0).confidence_interval()
        wanted = np.exp([logs.mean(), test.low, test.high])
        least = 1 - np.exp(-power.detectable_difference(np.std(logs, ddof=1), SEEDS))
        for cells in rows["sam", f"max L − L, {scale}"]:
            ratio, low, high = (float(of.strip("[],")) for of in cells[0].split())
            np.testing.assert_allclose([ratio, low, high], wanted, rtol=0.01)
            assert cells[1:] == ["8", f"−{100 * least:.2g}%"]
    norms = [rows["sam", label][1][0] for label in ("‖p‖", "‖p‖ of live weights")]
    assert norms[0] == norms[1]
    # Its sign is the reference's, but a negative trace has no logarithm.
    assert rows["sam", "tr H"] == [["not comparable", "0 of 8", ""]] * 3
    assert rows["sam", "λ max"][2][0] == rows["sam", "max L − L, absolute"][2][0]


def test_seeds_that_cannot_be_compared_are_counted():
    spread = SPREAD.copy()
    spread[2, 1] = np.nan
    spread[5] = -1.0
    none = found(dict.fromkeys(EVERY, 1.0))
    task = measured_task(RELU, config=EVERY_BALL, none=none, sam=found(FACTORS, spread=spread))
    cells = by_quantity(task)["sam", "max L − L, live"]
    assert [of[1] for of in cells] == ["6 of 8"] * 3
    ratio = log_ratios.LogRatio.of(spread, SPREAD)
    assert (ratio.seeds, ratio.pairs) == (6, 8)
    assert ratio.ratio.log.mean == pytest.approx(0)


def test_one_seed_shows_nothing():
    """Its runs are no seeds."""
    one = log_ratios.LogRatio.of(SPREAD[:1], SPREAD[1:2])
    assert (one.ratio.log.low, one.ratio.log.high) == (-np.inf, np.inf)
    assert one.cells()[1:] == ["1", ""]
    assert str(one) == f"{one.ratio} (1 seeds)"


def test_in_words_a_ratio_has_its_seeds_and_what_they_would_show():
    ratio = log_ratios.LogRatio.of(SPREAD, SPREAD[::-1])
    assert str(ratio) == "{} ({} seeds, would show {})".format(*ratio.cells())


@pytest.mark.parametrize(
    ("factor", "text"), [(0.9, "−10%"), (0.022, "−98%"), (0.003, "−99.7%"), (1e-5, "nothing")]
)
def test_a_decrease_in_percent(factor, text):
    assert log_ratios.decrease(factor) == text


def test_a_baseline_is_compared_with_every_seed_of_the_reference():
    none = found(dict.fromkeys(EVERY, 1.0))
    task = measured_task(RELU, config=EVERY_BALL, none=none, SGD=found(FACTORS, spread=SPREAD[:1]))
    (poc, *_) = by_quantity(task)["SGD", "max L − L, live"]
    assert poc[1] == "8"


def test_results_without_the_new_scales_have_no_table(tmp_path):
    plain = measured_task(RELU, none=optimizer([0.0], [1.0]), sam=optimizer([0.0], [1.0]))
    assert log_ratios.table(plain)[1] == []
    export.write([plain], [], [], tmp_path)
    assert not (tmp_path / "log_ratios.csv").exists()


@pytest.mark.parametrize("config", [EVERY_BALL, dataclasses.replace(EVERY_BALL, scales=SCALES)])
def test_a_page_has_the_table_and_figures_of_the_scales_that_were_measured(tmp_path, config):
    none = found(dict.fromkeys(EVERY, 1.0))
    task = measured_task(RELU, config=config, none=none, sam=found(FACTORS))
    page = write.write(StudyResults("A study", "Of one task.", [task]), tmp_path)
    drawn = {part.file for part in page.parts if isinstance(part, sections.Figure)}
    for scale in EVERY:
        assert (f"sam_by_{scale}_radius.png" in drawn) is (scale in config.scales)
    notes = [part.text for part in page.parts if isinstance(part, sections.Note)]
    assert (log_ratios.NOTE in notes) is config.has_norms


def test_the_file_has_every_property_scale_radius_and_point(tmp_path):
    none = found(dict.fromkeys(EVERY, 1.0), spread=np.ones((SEEDS, 3)))
    task = measured_task(RELU, config=EVERY_BALL, none=none, sam=found(FACTORS))
    export.write([task], [], [], tmp_path)
    rows = list(csv.DictReader((tmp_path / "log_ratios.csv").open()))
    rises = 3 * len(EVERY) * (2 + 2 + 1)
    assert len(rows) == rises + 3 * (len(NORMS) + 2)
    gsam = [row for row in rows if (row["quantity"], row["scale"]) == ("gsam", "relative")]
    logs = np.log(0.8 * SPREAD).mean(axis=1)
    for row in gsam:
        assert float(row["ratio"]) == pytest.approx(np.exp(logs.mean()), rel=1e-4)
        assert float(row["deviation"]) == pytest.approx(logs.std(ddof=1), rel=1e-4)
        assert float(row["low"]) < float(row["ratio"]) < float(row["high"])
        assert 0 < float(row["detectable"]) < 1

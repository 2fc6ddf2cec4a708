"""One regularizer at several strengths: what is planted is drawn and told."""

import dataclasses
import json

import numpy as np
import pytest
from helpers_results import EVERY, EVERY_BALL, SEEDS, curves, in_every_ball, measured_task
from helpers_results import optimizer as in_two_balls
from helpers_study import RELU

from regularized_lopt.measure import StudyResults
from regularized_lopt.measure.optimizers import TrainedWith
from regularized_lopt.report import dose_response, plot_style, sections, write

RISES = {0.5: 0.8, 2.0: 1.25}
ACCURACIES = 0.9 + 0.001 * np.arange(SEEDS)
FLAT = np.ones((SEEDS, 3))


def sam(rho, weight=1.0):
    return TrainedWith("sam", "optimizee", weight, rho)


def dosed(found, trained_with, accuracies=ACCURACIES, learning_rate=None):
    """With another regularizer, and with accuracies, one per seed."""
    who = dataclasses.replace(
        found.optimizer, trained_with=trained_with, learning_rate=learning_rate
    )
    return dataclasses.replace(found, optimizer=who, curves=[curves([one]) for one in accuracies])


def rising(factor, trained_with, more=0.0, **others):
    """The rise in the live ball alone is `factor` times the reference's."""
    factors = dict.fromkeys(EVERY, 7.0) | {"live": factor}
    return dosed(in_every_ball(factors, 1.0, FLAT), trained_with, ACCURACIES + more, **others)


def planted():
    """Names say nothing of doses, and are in another order."""
    none = rising(1.0, TrainedWith())
    sgd = in_every_ball(dict.fromkeys(EVERY, 0.5), 1.0, FLAT)
    return measured_task(
        RELU,
        config=EVERY_BALL,
        none=dataclasses.replace(none, matched=()),
        a=rising(RISES[2.0], sam(2.0), -0.02),
        b=rising(RISES[0.5], sam(0.5), 0.01),
        SGD=dosed(sgd, TrainedWith(), [0.95], learning_rate=0.1),
    )


def test_a_planted_ratio_and_difference_are_in_the_row_of_their_dose():
    (family,) = dose_response.families([planted()])
    header, rows = dose_response.table(family)
    assert header[2] == "rho"
    assert header[3] == "max L − L: ratio to none (95%)"
    assert [row[1:6] for row in rows] == [
        ["none", "0", "", "", ""],
        ["b", "0.5", "0.8 [0.8, 0.8]", "8", "−0%"],
        ["a", "2", "1.25 [1.25, 1.25]", "8", "−0%"],
        ["SGD (lr 0.1)", "", "0.5 [0.5, 0.5]", "8", "−0%"],
    ]
    assert rows[0][7] == ""
    assert rows[1][7].startswith("+1 [")
    assert rows[2][7].startswith("-2 [")
    assert rows[3][6].startswith("95 ")


def test_a_figure_has_a_dot_per_seed_above_its_dose_and_baselines_are_hollow():
    task = planted()
    (family,) = dose_response.families([task])
    colors = plot_style.palette([task])
    upper, lower = dose_response.draw(family, colors).axes
    assert [of.get_text() for of in lower.get_xticklabels()] == ["0", "0.5", "2", "SGD"]
    assert lower.get_xlabel() == "rho of sam in optimizee space (0: none)"
    assert "live radius 0.01" in upper.get_title()
    places = dict(zip(("none", "b", "a", "SGD"), lower.get_xticks(), strict=True))
    for axis, wanted in (
        (upper, {"b": RISES[0.5], "a": RISES[2.0]}),
        (lower, {"none": 0.0, "b": 1.0, "a": -2.0}),
    ):
        dots = {line.get_color(): line for line in axis.lines if len(line.get_xdata()) == SEEDS}
        assert set(dots) == {colors[name] for name in wanted}
        for name, value in wanted.items():
            line = dots[colors[name]]
            assert np.all(np.abs(line.get_xdata() - places[name]) < 0.5)
            values = value if axis is upper else 100 * ACCURACIES + value
            np.testing.assert_allclose(line.get_ydata(), np.broadcast_to(values, SEEDS), rtol=1e-6)
        (hollow,) = (line for line in axis.lines if line.get_markerfacecolor() == "white")
        assert hollow.get_xdata() == places["SGD"]
        np.testing.assert_allclose(hollow.get_ydata(), 0.5 if axis is upper else 95.0, rtol=1e-6)


def two_balls(reference=None, **trained_with):
    """The reference's rise is 1 in the relative ball, and that of others is 2."""
    values = [0.0] * 2, [1.0] * 2
    found = {
        name: dosed(in_two_balls(*values, matched=[(2.0, 1.0)] * 2), of, [0.9, 0.8])
        for name, of in trained_with.items()
    }
    task = measured_task(RELU, none=in_two_balls(*values, matched=[]), **found)
    for name, value in {} if reference is None else dataclasses.asdict(reference).items():
        task[name].loc[{"optimizer": "none"}] = value
    return task


def hessian(strength):
    return TrainedWith("hessian_trace", "optimizee", strength)


@pytest.mark.parametrize(
    ("trained_with", "wanted"),
    [
        ({"a": sam(0.5), "b": sam(1.0)}, {"none": 0.0, "a": 0.5, "b": 1.0}),
        ({"a": hessian(0.1), "b": hessian(0.01)}, {"none": 0.0, "b": 0.01, "a": 0.1}),
        ({"a": sam(0.2, 0.5), "b": sam(0.2, 1.0)}, {"none": 0.0, "a": 0.5, "b": 1.0}),
        # Of two of the same dose both are shown; one whose dose is a schedule is left out.
        ({"a": sam(0.5), "b": sam(1.0), "c": sam(1.0), "d": sam(None)}, None),
        # One dose is no series, and neither is that of two regularizers.
        ({"a": sam(0.5)}, {}),
        ({"a": sam(0.5), "b": TrainedWith("gsam", "optimizee", 1.0, 1.0)}, {}),
        ({"a": sam(0.5), "b": TrainedWith("sam", "meta", 1.0, 1.0)}, {}),
        # Which of the two is the dose?
        ({"a": sam(0.5, 0.5), "b": sam(1.0, 1.0)}, {}),
    ],
)
def test_families_are_made_of_facts(trained_with, wanted):
    if wanted is None:
        wanted = {"none": 0.0, "a": 0.5, "b": 1.0, "c": 1.0}
    found = dose_response.families([two_balls(**trained_with)])
    assert [list(family.strengths.items()) for family in found] == (
        [list(wanted.items())] if wanted else []
    )


def test_the_reference_is_at_zero_if_it_has_no_strength():
    doses = {"a": sam(0.5), "b": sam(1.0)}
    (family,) = dose_response.families([two_balls(reference=sam(0.0), **doses)])
    assert family.strengths["none"] == 0
    assert dose_response.families([two_balls(reference=sam(0.1), **doses)]) == []


def test_without_live_weights_the_ball_is_relative():
    task = two_balls(a=sam(0.5), b=sam(1.0))
    assert "live" not in json.loads(task.attrs["flatness"]).get("scales", ())
    (family,) = dose_response.families([task])
    assert [row[3] for row in dose_response.table(family)[1]] == ["", *["2 [2, 2]"] * 2]
    assert (
        "relative radius"
        in dose_response.draw(family, plot_style.palette([task])).axes[0].get_title()
    )


@pytest.mark.parametrize("knows_radii", [True, False])
def test_a_page_has_them_unless_its_results_are_older(tmp_path, knows_radii):
    task = planted() if knows_radii else planted().drop_vars("rho")
    page = write.write(StudyResults("A study", "Of one task.", [task]), tmp_path)
    drawn = {part.file for part in page.parts if isinstance(part, sections.Figure)}
    assert ("sam_optimizee_doses.png" in drawn) is knows_radii
    assert (tmp_path / "sam_optimizee_doses.png").exists() is knows_radii
    tables = {part.title for part in page.parts if isinstance(part, sections.Rows)}
    assert ("Doses of sam in optimizee space" in tables) is knows_radii

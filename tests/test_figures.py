"""Figures of a run of outer training, by the lines that they have."""

import numpy as np

from regularized_lopt.report import figures


def columns(**more):
    """Of a run that validated at every second of four rows."""
    found = {"outer_step": np.arange(1.0, 5.0), "loss": np.array([4.0, 3.0, 2.0, 1.0])}
    return found | {"validation_loss": np.array([np.nan, 2.0, np.nan, 1.0])} | more


def test_what_the_regularizer_adds_is_drawn_where_it_was_measured():
    rise = np.array([np.nan, 0.3, np.nan, 0.1])
    more = {"optimizee_rise_at_reference": rise, "meta_rise_at_reference": rise / 10}
    figure = figures.outer_training({"old": {0: columns()}, "new": {0: columns(**more)}})
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 2, 2]
    for axes, wanted in zip(figure.axes[2:], more.values(), strict=True):
        old, new = axes.lines
        assert not len(old.get_xdata())
        np.testing.assert_array_equal(new.get_xdata(), [2.0, 4.0])
        np.testing.assert_array_equal(new.get_ydata(), wanted[[1, 3]])


def test_runs_of_which_it_was_not_measured_have_two_panels():
    nothing = dict.fromkeys(("optimizee_rise_at_reference", "meta_rise_at_reference"))
    nothing = {name: np.full(4, np.nan) for name in nothing}
    for of in (columns(), columns(**nothing)):
        assert len(figures.outer_training({"one": {0: of, 1: of}}).axes) == 2

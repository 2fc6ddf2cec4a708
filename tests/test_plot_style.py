"""What all figures share."""

import matplotlib.figure
import pytest

from regularized_lopt.report import (
    plot_style,
)


def test_lines_of_panels_are_of_one_length_or_nearly():
    for count, wanted in {1: (1, 1), 5: (1, 5), 6: (2, 3), 7: (2, 4), 11: (3, 4)}.items():
        figure, axes = plot_style.panels(count, 5, 1.0)
        assert len(axes) == count
        assert axes[0].get_subplotspec().get_gridspec().get_geometry() == wanted
        assert sum(axis.axison for axis in figure.axes) == count


def test_titles_of_panels_do_not_overlap():
    titles = ["LayerNormMLP, Cifar10, 32x32", "TwiceStridedConv, Cifar10, 32x32x32"]
    figure, axes = plot_style.panels(2, 5, 2.0)
    for axis, title in zip(axes, titles, strict=True):
        plot_style.panel_title(axis, title)
    figure.draw_without_rendering()
    left, right = (axis.title.get_window_extent() for axis in axes)
    assert left.x1 < right.x0


@pytest.mark.parametrize(
    ("errors", "wanted"),
    [
        ((2.0, 90.0), [2, 5, 10, 20, 50]),
        ((1.0, 100.0), [1, 2, 5, 10, 20, 50, 100]),
        ((0.0107, 0.607), [0.02, 0.05, 0.1, 0.2, 0.5]),
        ((1.7, 514.0), [10, 100]),
        ((0.3, 27_000.0), [1, 10, 100, 1000, 10_000]),
    ],
)
def test_errors_that_spread_have_ticks_wherever_they_lie(errors, wanted):
    axis = matplotlib.figure.Figure().subplots()
    axis.plot(errors, (0, 1), "o")
    plot_style.log_if_some_fail(axis, "x")
    assert axis.get_xscale() == "log"
    assert axis.get_xticks() == pytest.approx(wanted)
    assert [label.get_text() for label in axis.get_xticklabels()] == [f"{t:g}" for t in wanted]


def test_errors_that_are_alike_or_none_are_drawn_as_they_are():
    for errors in ((2.0, 9.0), (0.0, 9.0)):
        axis = matplotlib.figure.Figure().subplots()
        axis.plot(errors, (0, 1), "o")
        plot_style.log_if_some_fail(axis, "x")
        assert axis.get_xscale() == "linear"

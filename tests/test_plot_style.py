"""What all figures share."""

from regularized_lopt.report import (
    plot_style,
)


def test_lines_of_panels_are_of_one_length_or_nearly():
    for count, wanted in {1: (1, 1), 5: (1, 5), 6: (2, 3), 7: (2, 4), 11: (3, 4)}.items():
        figure, axes = plot_style.panels(count, 5, 1.0)
        assert len(axes) == count
        assert axes[0].get_subplotspec().get_gridspec().get_geometry() == wanted
        assert sum(axis.axison for axis in figure.axes) == count

"""The answer of experiments/nominal_sam/PROTOCOL.md."""

import numpy as np
import pytest
import scipy.stats
from conftest import script

interaction = script("experiments/nominal_sam/interaction.py")
NOISE = np.tile([-1.0, 1.0, -0.5, 0.5], 4)


@pytest.mark.parametrize(
    ("effect", "deviation", "answer"),
    [
        (-0.1, 0.05, "the nominal term undoes it"),
        (0.1, 0.05, "the nominal term makes it learnable"),
        (0.01, 0.05, "neither, within a fifth"),
        (0.1, 0.5, "open"),
    ],
)
def test_the_answer_is_the_protocol_s(effect, deviation, answer):
    star = np.linspace(-0.2, 0.2, 16)
    found = interaction.Interaction.of(star + effect + deviation * NOISE, star)
    assert found.words() == answer
    np.testing.assert_allclose(found.difference.mean, effect)


def test_p_is_that_of_a_paired_t_test():
    star, blackbox = np.random.default_rng(0).normal(size=(2, 16))
    found = interaction.Interaction.of(blackbox, star)
    expected = scipy.stats.ttest_rel(blackbox, star)
    np.testing.assert_allclose(found.p, expected.pvalue)
    np.testing.assert_allclose(
        [found.difference.low, found.difference.high], expected.confidence_interval()
    )


def test_the_figure_has_the_mean_of_each_half():
    star = np.linspace(-0.02, 0.02, 16)
    drawn = interaction.draw({"there": {"with": star, "without": star - 0.1}})
    (axis,) = [axis for axis in drawn.axes if axis.get_title() == "there"]
    means = {line.get_label(): line.get_xdata()[0] for line in axis.get_lines()}
    np.testing.assert_allclose([means["with"], means["without"]], np.exp([0.0, -0.1]))

"""The procedure of experiments/flatness/PROTOCOL.md: what it answers, and how often it errs."""

import numpy as np
import pytest
from conftest import REPOSITORY, script

from regularized_lopt.measure import results_file, selections
from regularized_lopt.report import log_ratios

PILOT = REPOSITORY / "experiments/flatness_pilot" / results_file.FILE
verdict = script("experiments/flatness/verdict.py")
Compared, Answer = verdict.Compared, verdict.Answer
# Of mean 0 and deviation 1.
NOISE = np.tile([-1.0, 1.0, -0.5, 0.5], 4) / np.std(np.tile([-1.0, 1.0, -0.5, 0.5], 4))


@pytest.fixture(scope="module")
def pilot():
    return Compared.of(results_file.load(PILOT).tasks[0], "sam_0.25")


def planted(ratio, deviation, gain=0.0, seeds=16):
    """Log ratios and accuracies with these means and deviations (accuracy: 0.1)."""
    noise = NOISE[:seeds]
    rises = np.stack([np.log(ratio) + deviation * noise, np.zeros(seeds)])
    return Compared(rises, np.stack([gain + 0.1 * noise, np.zeros(seeds)]))


@pytest.mark.parametrize(
    ("ratio", "deviation", "gain", "answer"),
    [
        (0.7, 0.1, 0.0, "yes"),
        (0.95, 0.03, 0.0, "yes, by less than a fifth"),
        (0.95, 0.03, -0.4, "no"),  # Accuracy pays for it.
        (0.7, 0.1, -0.4, "open"),
        (1.2, 0.1, 0.0, "no"),
        (1.0, 0.1, 0.0, "no"),
        (0.9, 0.5, 0.0, "open"),
    ],
)
def test_the_answer_is_the_protocol_s(ratio, deviation, gain, answer):
    assert Answer.of(planted(ratio, deviation, gain)).words() == answer


def test_the_look_is_at_the_first_seeds_alone():
    found = planted(1.0, 0.05)
    found.log_rises[0, 8:] = np.log(0.1)
    assert Answer.of(found, 8).futile
    assert not Answer.of(found).futile


def test_rises_are_averaged_on_the_log_scale_over_a_seed_s_networks(pilot):
    task = results_file.load(PILOT).tasks[0]
    one = selections.optimizer(task, "sam_0.25")
    last, loss = (one[f"matched_loss{part}"] for part in ("_last", ""))
    rises = (last.sel(scale="live") - loss).values
    np.testing.assert_allclose(np.exp(pilot.log_rises), np.sqrt(rises.prod(axis=-1)), rtol=1e-5)
    assert pilot.log_rises.shape == pilot.accuracies.shape == (2, 8)
    assert np.all((pilot.accuracies > 80) & (pilot.accuracies < 100))


def test_the_secondary_family_is_what_the_table_of_log_ratios_has():
    task = results_file.load(PILOT).tasks[0]
    family = verdict.secondary(task, "sam_0.5")
    _, rows = log_ratios.table(task)
    cells = {row[1]: row[2:] for row in rows if row[0] == "sam_0.5"}
    for name, label in (
        ("rise, absolute ball", "max L − L, absolute"),
        ("rise, l2 ball", "max L − L, l2"),
        ("norm of params", "‖p‖"),
        ("trace", "tr H"),
    ):
        assert str(family[name].mean) == cells[label][6]
    assert str(family["rise at completion"].mean) == cells["max L − L, live"][3]
    assert str(family["accuracy, points"].mean).startswith("-0.3")


@pytest.mark.parametrize("seeds", [8, 16])
def test_it_errs_as_often_as_it_says_on_what_was_measured(pilot, seeds):
    """10,000 resamplings: a rate's standard error is 0.2 points."""
    rng = np.random.default_rng(seeds)
    rates = verdict.false_positives(pilot, seeds, rng)
    either_way, yes, obeyed = rates.values()
    assert 2.0 < either_way <= 5.5
    assert obeyed <= yes <= either_way
    assert 92 < verdict.coverage(pilot, seeds, rng) < 97.5


def test_a_true_effect_is_found_through_the_resampling(pilot):
    """The rates are no constants: with rises that hardly deviate, a look stops every yes."""
    rng = np.random.default_rng(0)
    wide = Compared(pilot.log_rises * 20, pilot.accuracies)
    narrow = verdict.false_positives(pilot, 16, rng)["yes, were the look obeyed"]
    assert verdict.false_positives(wide, 16, rng)["yes, were the look obeyed"] > narrow

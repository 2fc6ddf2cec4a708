"""The measures of experiments/smoothing/PROTOCOL.md, and the verdicts that rest on them."""

import shutil

import jax
import numpy as np
import pytest
import xarray as xr
from conftest import script

from regularized_lopt import run_files, zoo
from regularized_lopt.learned_optimizers import SimpleLOpt
from regularized_lopt.measure import results_file
from regularized_lopt.measure.results import StudyResults
from regularized_lopt.measure.training_curves import loss_grid
from regularized_lopt.measure.update_curves import update_curve

verdicts = script("experiments/smoothing/smoothing_verdicts.py")
STEPS = loss_grid(10_000)
SEEDS = (0, 1, 10, 11, 12)
NAMES = ("simple_smoothing", "simple", "dm_smoothing", "dm", "l2", "orthogonal", "spectral", "Adam")


def task(losses=None, accuracies=None, seeds=5, steps=STEPS):
    """These losses and accuracies; both spread over seeds, next to alike in all arms."""
    spread = np.linspace(0.9, 1.1, seeds)
    jitter = np.resize([1.001, 0.999], seeds)
    train, test = [], []
    for name in NAMES:
        factors = spread if name in ("simple", "dm") else spread * jitter
        loss, accuracy = (losses or {}).get(name, 0.5), (accuracies or {}).get(name, 70)
        train.append(
            [[loss * factor * run + 0 * steps for run in (0.999, 1.001)] for factor in factors]
        )
        test.append(
            [[[0.0, 0.01 * (accuracy + 5 * factor + run)] for run in (-1, 1)] for factor in factors]
        )
    return xr.Dataset(
        {
            "train_loss": (("optimizer", "seed", "run", "loss_step"), np.array(train)),
            "test_accuracy": (("optimizer", "seed", "run", "eval_step"), np.array(test)),
            **{name: ("optimizer", np.full(len(NAMES), seeds)) for name in ("seeds", "pairs")},
        },
        {"optimizer": list(NAMES), "loss_step": steps, "eval_step": [0, steps[-1] + 1]},
        {"task": "T", "reference": "simple"},
    )


def study(folder=None, **planted):
    found = task(**planted)
    return verdicts.Study(folder, found, dict.fromkeys(NAMES, SEEDS[: found.sizes["seed"]]))


def answer(number, of):
    (found,) = [one for name, *_, one in verdicts.STATEMENTS if name.startswith(f"{number}. ")]
    return found(of)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(("level", "word"), [(0.45, "confirmed"), (0.55, "refuted"), (0.5, "open")])
def test_a_lower_loss(number, level, word):
    own = "dm_smoothing" if number == 4 else "simple_smoothing"
    verdict, reason = answer(number, study(losses={own: level}))
    assert verdict == word
    assert f"ratio: {level / 0.5:.3g} [" in reason
    assert "5 seeds, would show" in reason


@pytest.mark.parametrize(
    ("level", "word"), [(73.5, "confirmed"), (66.5, "refuted"), (70.0, "open")]
)
def test_accuracy(level, word):
    verdict, reason = answer(6, study(accuracies={"simple_smoothing": level}))
    assert verdict == word
    assert "points (5 seeds" in reason


@pytest.mark.parametrize(
    ("accuracies", "word"),
    [
        ({"l2": 68, "orthogonal": 10, "spectral": 69}, "confirmed"),
        ({"l2": 68, "orthogonal": 10, "spectral": 71}, "refuted"),
        ({"l2": 68, "orthogonal": 10}, "open"),
    ],
)
def test_it_is_compared_with_each_other_regularizer(accuracies, word):
    assert answer(7, study(accuracies=accuracies))[0] == word


@pytest.mark.parametrize(("level", "word"), [(0.6, "confirmed"), (0.4, "refuted")])
def test_the_best_tuned_baseline(level, word):
    for number in (10, 11):
        verdict, reason = answer(number, study(losses={"Adam": level}))
        assert verdict == word
        assert "ratio to Adam" in reason


def test_a_loss_is_read_where_it_was_last_seen_and_one_that_is_not_finite_counts():
    planted = study()
    planted.task["train_loss"][:] = STEPS.astype(float)
    for step in (200, 1000, 10_000):
        (found,) = set(planted.loss("dm", step).ravel())
        assert found == min(STEPS[step - 1 >= STEPS].max(), 100)
    planted.task["train_loss"][0, 0, 0] = np.nan
    planted.task["train_loss"][0, 0, 1] = np.inf
    planted.task["train_loss"][0, 1, 1] = 2.0
    losses = planted.loss("simple_smoothing", 50)
    assert losses[0].tolist() == [100, 100]
    assert losses[1, 1] == 2


def test_two_seeds_are_no_verdict_and_neither_is_an_absent_arm():
    few = study(seeds=2, losses={"simple_smoothing": 0.1})
    assert {answer(number, few) for number in range(1, 12)} == {("open", "2 seeds")}
    without = verdicts.Study(None, task().drop_sel(optimizer="spectral"), {})
    assert answer(7, without) == ("open", "0 seeds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of three seeds, those of the smoothed arm with a tenth of the input's weights."""
    path = tmp_path_factory.mktemp("studies") / "smoothing_mnist"
    lopt = SimpleLOpt(hidden_size=4)
    for seed in (0, 1, 10):
        theta = lopt.init(jax.random.PRNGKey(seed))
        theta["rnn"]["w_x"] = 20 * theta["rnn"]["w_x"]
        for name, factor in (("simple", 1.0), ("simple_smoothing", 0.1)):
            theta["rnn"]["w_x"] = factor * theta["rnn"]["w_x"]
            where = path / f"optimizers/{name}-seed{seed}-0123456789ab" / run_files.THETA_FILE
            zoo.save(where, lopt, theta, {"seed": seed})
    return path


def test_the_steepest_slopes_of_stored_optimizers_are_compared_by_seed(folder):
    planted = study(folder)
    own = planted.roughness("simple")
    assert list(own) == [0, 1, 10]
    loaded = zoo.load(folder / "optimizers/simple-seed10-0123456789ab").opt()
    assert own[10] == update_curve(loaded, 1e-2, 1000, 10).relative_roughness
    verdict, reason = answer(9, planted)
    assert verdict == "confirmed"
    assert "3 seeds" in reason


def copied(folder, to):
    shutil.copytree(folder, to)
    return to / "optimizers", study(to)


def test_slopes_are_of_seeds_that_both_arms_and_the_results_have(folder, tmp_path):
    fewer = verdicts.Study(folder, task(), {**study(folder).seeds, "simple": (1, 10, 12)})
    assert set(fewer.roughness("simple")) == {1, 10}
    assert answer(9, fewer) == ("open", "weights of 2 seeds")
    # Others in one arm shift no pair.
    weights, more = copied(folder, tmp_path / "more")
    lopt = SimpleLOpt(hidden_size=4)
    theta = lopt.init(jax.random.PRNGKey(5))
    theta["rnn"]["w_x"] = 1e3 * theta["rnn"]["w_x"]
    for seed in (-1, 11):
        where = weights / f"simple_smoothing-seed{seed}-0123456789ab" / run_files.THETA_FILE
        zoo.save(where, lopt, theta, {"seed": seed})
    assert set(more.roughness("simple_smoothing")) == {0, 1, 10, 11}
    assert answer(9, more) == answer(9, study(folder))


def test_without_weights_statement_9_is_open(tmp_path):
    assert answer(9, study(tmp_path)) == ("open", "weights of 0 seeds")


def test_a_seed_that_is_there_twice_is_refused(folder, tmp_path):
    weights, twice = copied(folder, tmp_path / "twice")
    shutil.copytree(weights / "simple-seed1-0123456789ab", weights / "simple-seed1-ffffffffffff")
    with pytest.raises(ValueError, match=r"simple, seed 1, is twice in .*ffffffffffff\. Move"):
        answer(9, twice)


def test_what_was_not_run_so_far_is_not_decided():
    short = study(losses={"simple_smoothing": 0.1, "dm_smoothing": 0.1}, steps=loss_grid(500))
    assert answer(1, short)[0] == "confirmed"
    assert answer(3, short) == ("open", "not run: 500 of 1,000 steps")
    for number in (5, 6, 7):
        assert answer(number, short) == ("open", "not run: 500 of 10,000 steps")
    with pytest.raises(ValueError, match="no loss after 501 steps: 500 were run"):
        short.loss("dm", 501)
    shorter = study(steps=loss_grid(100))
    assert {answer(number, shorter) for number in (1, 2, 4, 8, 10, 11)} == {
        ("open", "not run: 100 of 200 steps")
    }
    assert len(verdicts.measures(shorter)[0]) == 4  # No column of step 200.


def test_what_has_results_is_read_from_its_folder_and_the_rest_is_open(tmp_path, capsys):
    assert {tuple(row[1:3]) for row in verdicts.statements(tmp_path)} == {("open", "not run")}
    losses = {"simple_smoothing": 0.4}
    for name in ("smoothing_lenet", "smoothing_cifar"):
        (tmp_path / name).mkdir()
        results_file.save(StudyResults("", "", [task(losses)]), tmp_path / name / results_file.FILE)
    words = {row[0].split(".")[0]: row[1] for row in verdicts.statements(tmp_path)}
    assert [words[number] for number in ("2", "3", "5")] == ["confirmed"] * 3
    assert words["1"] == words["8"] == "open"
    verdicts.main(str(tmp_path))
    said = capsys.readouterr().out
    assert "72.50 ± 0.49" in said
    assert "at 10,000" in said

"""The search for hyperparameters: equal budgets, meta-train images alone, all of it logged."""

import csv

import numpy as np
import pytest
import xarray as xr
from conftest import REPOSITORY

from regularized_lopt import gin_files
from regularized_lopt.report import trials as report
from regularized_lopt.study import search as search_lib
from regularized_lopt.study import task_study
from regularized_lopt.tasks import data

SIGMOID = "ImageMLP_Digits_20_Sigmoid"
NONE, SAM = "gin_configs/digits_mlp_none.gin", "gin_configs/digits_mlp_sam_optimizee.gin"
RATES = ("theta_learning_rate.learning_rate = 1e-3", "theta_learning_rate.learning_rate = 1e-30")


@pytest.fixture
def no_meta_test_data(monkeypatch):
    def host_arrays(self, split):
        assert self.phase == "meta_train", "A search must not see meta-test data."
        return original(self, split)

    original = data.ResidentDatasets.host_arrays
    monkeypatch.setattr(data.ResidentDatasets, "host_arrays", host_arrays)


def test_a_search_ends_with_a_winner_per_variant(tmp_path, monkeypatch, no_meta_test_data):
    monkeypatch.chdir(REPOSITORY)
    what = search_lib.Search(
        variants={"none": NONE, "sam": SAM},
        trials={"none": [(rate,) for rate in RATES], "sam": [("SAM.rho = 0.1",), ("SAM.rho = 0",)]},
        task=SIGMOID,
        bindings=(
            "outer_train.num_outer_steps = 8",
            "Curriculum.num_validation_tasks = 1",
            "ObjectiveCheck.num_trajectories = 0",
        ),
        num_runs=2,
        num_steps=40,
    )
    trials = [trial for of in search_lib.search(what, tmp_path, progress=False) for trial in of]
    assert [trial.variant for trial in trials] == ["none", "none", "sam", "sam"]
    for one, other in (trials[:2], trials[2:]):
        assert one.chosen == (one.score <= other.score)
        assert other.chosen != one.chosen
    winner = trials[0].bindings if trials[0].chosen else trials[1].bindings
    assert trials[2].bindings == (*winner, "SAM.rho = 0.1")  # The base's choice holds for all.
    # Learning, and the radius, did something.
    assert len({trial.score for trial in trials}) >= 3
    # What is there is not made again, and gives the same.
    monkeypatch.setattr(task_study.TaskStudy, "_train_group", None)
    again = [trial for of in search_lib.search(what, tmp_path, progress=False) for trial in of]
    assert [t.score for t in again] == [t.score for t in trials]

    report.write(trials, tmp_path)
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["chosen"] for row in rows].count("yes") == 2
    assert float(rows[0]["held_out_loss"]) == pytest.approx(trials[0].loss.mean(), abs=1e-4)
    chosen = tmp_path / "chosen" / "sam.gin"
    best = next(t for t in trials[2:] if t.chosen)
    gin_files.parse_gin([SAM, str(chosen)], [])
    assert all(binding in chosen.read_text() for binding in best.bindings)
    assert len(report.plot(trials).axes) == 2


def judge_by(losses, monkeypatch):
    """Trials end at these losses, by number, and train nothing."""

    def tried(what, name, *_):
        loss = losses[int(name.rsplit("-", maxsplit=1)[1]) - 1]
        return xr.Dataset({"test_loss": (("seed", "run", "eval_step"), [[[0.1, loss]]])})

    monkeypatch.setattr(search_lib, "_try", tried)


def test_a_diverged_trial_loses(tmp_path, monkeypatch):
    judge_by([0.3, np.nan, 0.2], monkeypatch)
    what = search_lib.Search(variants={"none": NONE}, trials={"none": [("a",), ("b",), ("c",)]})
    ((first, second, third),) = search_lib.search(what, tmp_path)
    assert [t.chosen for t in (first, second, third)] == [False, False, True]
    assert second.score == np.inf


def test_a_base_that_wins_as_it_is_adds_nothing_to_the_others(tmp_path, monkeypatch):
    judge_by([0.1, 0.2], monkeypatch)
    what = search_lib.Search(
        variants=dict.fromkeys("abc", NONE),
        trials={"a": [(), ("x",)], "b": [("y",), ("z",)], "c": [("v",), ("w",)]},
    )
    found = [[trial.bindings for trial in of] for of in search_lib.search(what, tmp_path)]
    assert found == [[(), ("x",)], [("y",), ("z",)], [("v",), ("w",)]]


@pytest.mark.parametrize(
    "trials",
    [{}, {"none": []}, {"none": [("a",)], "sam": []}, {"none": [("a",)], "sam": [("a",)] * 2}],
)
def test_budgets_that_differ_are_refused(trials):
    with pytest.raises(ValueError, match="the same number of trials"):
        search_lib.Search(variants={"none": NONE, "sam": SAM}, trials=trials)

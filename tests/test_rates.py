"""What a stage of a study is expected to take."""

import json

from conftest import REPOSITORY
from helpers_study import QUICK, SIGMOID

from regularized_lopt.study import Experiment, Study, TaskPlan
from regularized_lopt.study.rates import Rates


def test_an_optimizer_that_is_still_to_be_trained_is_timed_as_one_of_its_own_kind(
    tmp_path, monkeypatch
):
    """Not as a plain LSTM, whose steps cost another time."""
    monkeypatch.chdir(REPOSITORY)
    experiment = Experiment(
        optimizers={"star": "experiments/star/star_1.gin"},
        reference="star",
        tasks=(TaskPlan(SIGMOID, 1, measured_runs=0),),
        baselines=(),
        num_steps=20,
        parallelism=(1, 1),
    )
    study = Study(experiment, tmp_path, QUICK, progress=False)
    assert Rates(study, measure=True).training(SIGMOID, "star") > 0
    (timed,) = json.loads((tmp_path / "rates.json").read_text())
    assert "StarMLPLOpt" in timed
    assert f"('epsilon', {1e-6})" in timed

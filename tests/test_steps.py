"""The steps of a study: what a dry run lists is what running does."""

import collections
import re

from conftest import REPOSITORY
from helpers_study import QUICK, RELU, SIGMOID

from regularized_lopt import study_report
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.study import Experiment, Study, TaskPlan, dry_run, meta_training
from regularized_lopt.study import cache as cache_lib
from regularized_lopt.study.experiment import GIVEN

STAGES = {
    "tune": "tune",
    "runs": "train",
    "surroundings": "measure",
    "matched": "match",
    "slices": "slice",
    "updates": "update curves",
}
"""By the kind of result that they leave."""
BINDINGS = (
    "outer_train.num_outer_steps = 2",
    "LSTMLOpt.hidden_size = 3",
    "Curriculum.train_lengths = (20,)",
    "Curriculum.validation_period = 2",
    "Curriculum.num_validation_tasks = 1",
    "ObjectiveCheck.num_trajectories = 0",
)


def make_study(out_dir, baselines, **plan):
    """Two seeds of a learned optimizer, one that is given, and baselines, which share programs."""
    given = {"sam": optimizers_lib.baseline("SGD+SAM", 0.5)}
    experiment = Experiment(
        optimizers={"none": "gin_configs/digits_mlp_none.gin", "sam": GIVEN},
        meta_training_seeds={"none": (0, 1)},
        tasks=(TaskPlan(RELU, 1, **plan), TaskPlan(SIGMOID, 1, measured_runs=0)),
        baselines=baselines,
        tuning_runs=1,
        num_steps=20,
        parallelism=(2, 1),
        bindings=BINDINGS,
    )
    return Study(experiment, out_dir, QUICK, given=given, progress=False)


def test_running_computes_exactly_what_the_plan_lists_as_missing(tmp_path, monkeypatch):
    """By the files that it writes; from nothing, and where some of it is there."""
    monkeypatch.chdir(REPOSITORY)
    computed = collections.Counter()
    save, outer_train = cache_lib.ResultCache.save, meta_training.outer_train

    def saving(self, key, tree):
        if key.kind != "ends":  # Beside runs.
            computed[STAGES[key.kind], key.label] += 1
        save(self, key, tree)

    def training(directory, **kwargs):
        name, seed, _ = directory.name.split("-")
        computed["meta-train", f"{name} seed {seed.removeprefix('seed')}"] += 1
        return outer_train(directory, **kwargs)

    monkeypatch.setattr(cache_lib.ResultCache, "save", saving)
    monkeypatch.setattr(meta_training, "outer_train", training)

    def missing(study):
        return collections.Counter(
            (line.stage, re.sub(", #[0-9]+", "", line.label).replace(", ", " "))
            for line in dry_run.plan(study)
            if not line.cached
        )

    first = make_study(tmp_path, ("SGD",))
    more = make_study(tmp_path, ("SGD", "Adam"), examples=32)
    stages = []
    for study in (first, more):
        computed.clear()
        before = missing(study)
        assert not computed
        study_report.results(study, "")
        assert computed == before
        assert not missing(study)
        stages.append({stage for stage, _ in before})
    assert stages == [{"meta-train", *STAGES.values()}, {"tune", "train", "measure", "match"}]

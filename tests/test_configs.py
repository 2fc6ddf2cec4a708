"""Every gin configuration, also those of studies: it parses, and its outer step can be traced."""

import dataclasses
import re
import warnings

import gin
import jax
import pytest
from conftest import REPOSITORY
from helpers import KEY, weights

import regularized_lopt
from regularized_lopt import gin_files, regularizers, tasks
from regularized_lopt.estimators import RegularizedTruncatedGrad, RegularizedTruncatedStep
from regularized_lopt.measure import FlatnessConfig
from regularized_lopt.outer_training import Curriculum, theta_optimizer
from regularized_lopt.outer_training.curriculum import CurriculumState
from regularized_lopt.outer_training.parts import check_bindings
from regularized_lopt.regularizers import registry
from regularized_lopt.study import Experiment, Study, task_runs
from regularized_lopt.study import search as search_lib
from regularized_lopt.study.search import Search

RELU = "ImageMLP_Digits_20_Relu"
STEP = RegularizedTruncatedStep(tasks.as_family(RELU), regularized_lopt.LSTMLOpt())
CONFIGS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("gin_configs/*.gin", "experiments/*/*.gin")
    for path in REPOSITORY.glob(pattern)
)
STUDIES = [one for one in CONFIGS if re.search(r"/(reproduce_\w+|plan|experiment)\.gin", one)]
SEARCHES = [one for one in CONFIGS if re.search(r"/search(_\w+|/\w+)\.gin", one)]
INCLUDED = [one for one in CONFIGS if re.search(r"/(base|common|ninefold|paper|pes)\.gin", one)]
UPSTREAM_S = [one for one in CONFIGS if "/upstream_" in one]
FEW_SHOT = [one for one in CONFIGS if "few_shot" in one]
META_TRAININGS = [
    one for one in CONFIGS if one not in (*STUDIES, *SEARCHES, *INCLUDED, *UPSTREAM_S, *FEW_SHOT)
]


def started():
    """What docs/regularizers.md tells to start from: (regularizer, space, bindings)."""
    text = (REPOSITORY / "docs/regularizers.md").read_text()
    for name, *cells in re.findall(
        r"^\| `(\w+)` \| (`\w+\.\w+ = .*) \| (`.*) \|$", text, re.MULTILINE
    ):
        for space, cell in zip(("meta", "optimizee"), cells, strict=True):
            yield name, space, re.findall(r"`(.*?)`", cell)


def test_the_page_says_how_to_start_with_each_regularizer():
    assert {name for name, _, _ in started()} == {*registry._BUILT_IN} - {"none"}


@pytest.mark.parametrize(("name", "space", "bindings"), list(started()))
def test_a_regularizer_joins_a_configuration(name, space, bindings):
    where = {"meta": "RegularizedTruncatedGrad", "optimizee": "RegularizedTruncatedStep"}[space]
    gin_files.parse_gin(
        ["gin_configs/digits_mlp_none.gin"],
        ["LSTMLOpt.hidden_size = 3", f'{where}.regularizer = "{name}"', *bindings],
    )
    assert not check_bindings()
    assert traced("ImageMLP_Digits_20_Sigmoid") == {
        "meta": "none", "optimizee": "none", "smoothing": False, space: name
    }  # fmt: skip


@pytest.mark.parametrize("config", [*STUDIES, *SEARCHES, *META_TRAININGS])
def test_all_that_it_binds_is_read(config, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    kinds = {**dict.fromkeys(STUDIES, _check_study), **dict.fromkeys(SEARCHES, _check_search)}
    check = kinds.get(config, lambda _: check_bindings())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gin_files.parse_gin([config], [])
        check(tmp_path)


def _check_study(out_dir):
    Study(Experiment(), out_dir).check()
    assert not gin_files.unread()


def _check_search(out_dir):
    search_lib.check(Search(), out_dir)
    assert not gin_files.unread()


@pytest.mark.parametrize("config", SEARCHES)
def test_each_trial_of_a_search_is_a_whole_experiment(config):
    gin.add_config_file_search_path(str(REPOSITORY))
    gin_files.parse_gin([config], [])
    what = Search()
    for variant, source in what.variants.items():
        for bindings in what.trials[variant]:
            gin.clear_config()
            gin_files.parse_gin([source], [*what.bindings, *bindings])
            assert theta_optimizer() is not None
            estimator = RegularizedTruncatedGrad(STEP)
            Curriculum().check(estimator.unroll_length)


@pytest.mark.parametrize("config", STUDIES)
def test_is_an_experiment_of_the_study(config):
    gin.add_config_file_search_path(str(REPOSITORY))
    gin_files.parse_gin([config], [])
    experiment = Experiment()
    assert FlatnessConfig().num_examples > 0
    for task in experiment.plans:
        assert task_runs.resident_task(task).name == task
    for source in (*experiment.optimizers.values(), *experiment.early_evidence.values()):
        gin.clear_config()
        gin_files.parse_gin([source], experiment.bindings if "mlp" in source else [])
        if "mlp" in source and "digits" not in config:
            times = {"twice": 6000, "ninefold": 26_400}.get(source[:-4].rsplit("_", 1)[-1], 3000)
            _check_pace(source, times)
        Curriculum().check(RegularizedTruncatedGrad(STEP).unroll_length)


def test_the_page_says_how_to_run_the_whole_curriculum():
    page = (REPOSITORY / "docs/studies.md").read_text()
    (bindings,) = re.findall(r"^```\n(Experiment\.bindings = .*?)```$", page, re.M | re.S)
    gin.add_config_file_search_path(str(REPOSITORY))
    gin_files.parse_gin(["gin_configs/reproduce_paper.gin"], [bindings])
    experiment = Experiment()
    for source in experiment.optimizers.values():
        gin.clear_config()
        gin_files.parse_gin([source], experiment.bindings)
        _check_pace(source, 162_000)


def _check_pace(source, outer_steps):
    """What follows theta's learning rate ends with it, and that with the curriculum."""
    assert gin.get_bindings("outer_train")["num_outer_steps"] == outer_steps
    whole = _outer_steps_of(Curriculum())
    assert outer_steps == whole or "ninefold" in source
    assert gin.get_bindings("theta_learning_rate")["schedule_steps"] == whole
    if "gsam" in source or "gam" in source:
        assert gin.get_bindings("proportional_schedule")["num_steps"] == whole


def _outer_steps_of(curriculum):
    """Outer steps until it ends whatever validations say."""
    unroll_length = RegularizedTruncatedGrad(STEP).unroll_length
    stage, steps = CurriculumState(), 0
    while not stage.finished:
        steps += 1
        stage = dataclasses.replace(stage, steps_in_stage=stage.steps_in_stage + 1)
        if curriculum.validation_due(stage, unroll_length):
            stage, _ = curriculum.on_validation(stage, float(steps))  # Never better.
    return steps


@pytest.mark.parametrize("config", META_TRAININGS)
def test_is_a_whole_experiment(config):
    """Traced with Digits in the place of MNIST, so that no data are needed."""
    gin.add_config_file_search_path(str(REPOSITORY))
    gin_files.parse_gin([config], ["LSTMLOpt.hidden_size = 3"])
    found = traced(gin.query_parameter("outer_train.task"))

    # It does what its name says.
    words = config.removesuffix(".gin").split("_mlp_")[-1]
    space = "optimizee" if words.endswith("_optimizee") else "meta"
    name = words.removesuffix("_optimizee")
    assert found.pop("smoothing") == name.endswith("smoothing")
    if name in regularizers.names():
        assert found == {"meta": "none", "optimizee": "none", space: name}


def _of_digits(name):
    """A task like it whose data need no file."""
    assert name in tasks.names()
    like = re.sub("(Fashion)?Mnist8?", "Digits", name)
    return like if like in tasks.names() else RELU


def traced(named):
    """Traces the outer step of what gin has; the names of its terms."""
    several = isinstance(named, tuple)
    steps = [
        RegularizedTruncatedStep(tasks.as_family(_of_digits(name)), regularized_lopt.LSTMLOpt())
        for name in (named if several else [named])
    ]
    estimator = RegularizedTruncatedGrad(steps if several else steps[0])
    Curriculum().check(estimator.unroll_length)
    theta = estimator.learned_opt.init(KEY)
    theta_optimizer().init(theta)
    state = estimator.init_worker_state(weights(theta), KEY)
    out = jax.eval_shape(
        estimator.estimate, theta, state, KEY, estimator.get_datas(), weights(theta).outer_state
    )
    assert jax.tree.structure(out.grad) == jax.tree.structure(theta)
    return {
        "meta": estimator.regularizer.name,
        "optimizee": steps[0].regularizer.name,
        "smoothing": estimator.smoothing is not None,
    }

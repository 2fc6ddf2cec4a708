"""What nothing reads is said, and refused where it was asked for by name."""

import warnings

import gin
import pytest
from conftest import REPOSITORY

from regularized_lopt import gin_files, regularizers
from regularized_lopt.estimators import RegularizedTruncatedGrad
from regularized_lopt.outer_training import outer_train, parts
from regularized_lopt.outer_training.parts import check_bindings
from regularized_lopt.outer_training.unread import SharedRegularizerWarning
from regularized_lopt.regularizers import registry
from regularized_lopt.study import Experiment, Study, search

NONE, SAM = (f"gin_configs/digits_mlp_{name}.gin" for name in ("none", "sam_optimizee"))
TASK = "ImageMLP_Digits_20_Relu"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def names(bindings):
    return sorted(str(one).partition(" =")[0] for one in bindings)


def test_what_was_taken_from_gin_has_been_read():
    gin_files.parse_gin(
        [], ["X = 0.1", "SAM.rho = %X", "a/SAM.rho = 1", "a/b/SAM.rho = 2", "SAM.weight = 3"]
    )
    assert names(gin_files.unread()) == ["SAM.rho", "SAM.weight", "X", "a/SAM.rho", "a/b/SAM.rho"]
    with gin.config_scope("a/b"):
        assert regularizers.SAM().rho == 2
    assert names(gin_files.unread()) == ["SAM.rho", "X", "a/SAM.rho"]
    regularizers.SAM(rho=0.2)  # The caller's; gin evaluates macros all the same.
    assert names(gin_files.unread()) == ["SAM.rho", "a/SAM.rho"]
    regularizers.SAM()
    assert names(gin_files.unread()) == ["a/SAM.rho"]


def test_gin_is_put_back_as_it_was():
    made = regularizers.SAM()
    gin.bind_parameter("RegularizedTruncatedGrad.regularizer", made)  # Text could not say which.
    gin.bind_parameter("SAM.rho", 0.3)
    regularizers.SAM()
    with gin_files.set_aside():
        assert not gin.config._CONFIG
        gin_files.parse_gin([], ["SAM.rho = 0.7"])
        assert regularizers.SAM().rho == 0.7
    assert gin.query_parameter("RegularizedTruncatedGrad.regularizer") is made
    assert names(gin_files.unread()) == ["RegularizedTruncatedGrad.regularizer"]


@pytest.mark.parametrize(
    ("binding", "reason"),
    [
        (
            "SAM.rho = 0.5",
            "no regularizer here is sam. Add RegularizedTruncatedGrad.regularizer = 'sam' (meta "
            "space) or RegularizedTruncatedStep.regularizer = 'sam' (optimizee space).",
        ),
        (
            "meta/GAM.rho = 0.5",
            "no regularizer here is gam. Add RegularizedTruncatedGrad.regularizer = @meta/GAM() "
            "(meta space) or RegularizedTruncatedStep.regularizer = @meta/GAM() (optimizee space).",
        ),
        (
            "Smoothing.strength = 2.0",
            "nothing here is smoothed. Add RegularizedTruncatedGrad.smoothing = @Smoothing().",
        ),
        ("MINE = 3", "%MINE is in no binding that is read. Refer to it, or leave this out."),
        (
            "RegularizedTruncatedStep.trunc_sched = None",
            "whoever calls RegularizedTruncatedStep gives it another trunc_sched. Leave this out.",
        ),
        (
            "FlatnessConfig.num_examples = 3",
            "FlatnessConfig is not used here. Refer to @FlatnessConfig where it is wanted, or "
            "leave this out.",
        ),
        (
            "a/Curriculum.min_validations = 3",
            "Curriculum is not used in that scope (in none). Refer to it as @a/Curriculum.",
        ),
    ],
)
def test_a_run_refuses_what_was_asked_for_and_warns_of_the_rest(binding, reason, tmp_path):
    gin_files.parse_gin([NONE], [binding])
    text = f"{binding} is read by nothing: {reason}"
    with pytest.raises(gin_files.UnreadBindingError) as error:
        outer_train(tmp_path / "run", asked_for=[binding])
    assert str(error.value).partition("\n  In call")[0] == text
    assert not (tmp_path / "run").exists()
    with pytest.warns(gin_files.UnreadBindingWarning) as warned:
        assert not check_bindings()
    assert [str(one.message) for one in warned] == [text]


def test_a_narrower_scope_hides_a_binding():
    gin_files.parse_gin(
        [NONE],
        [
            "RegularizedTruncatedGrad.regularizer = @meta/SAM()",
            "meta/SAM.rho = 0.1",
            "SAM.rho = 0.5",
        ],
    )
    with pytest.warns(gin_files.UnreadBindingWarning, match="in a narrower scope takes its place"):
        check_bindings()


def test_what_is_read_inside_of_a_step_counts(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @regularizers.register("late")
    def late(loss_fn, point, *, key, step, height=1.0):
        return height * loss_fn(point)

    given = ["RegularizedTruncatedStep.regularizer = 'late'", "late.height = 2.0"]
    gin_files.parse_gin([NONE], given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not check_bindings(given)
    gin.clear_config()
    gin_files.parse_gin([NONE], given[1:])
    (reason,) = check_bindings(given[1:]).values()
    assert "no regularizer here is late. Add " in reason


BOTH = [f"RegularizedTruncated{owner}.regularizer = 'sam'" for owner in ("Grad", "Step")]
SCOPED = [
    "RegularizedTruncatedGrad.regularizer = @meta/SAM()",
    "RegularizedTruncatedStep.regularizer = @optimizee/SAM()",
    "meta/SAM.rho = 0.05",
    "optimizee/SAM.rho = 0.5",
]


def test_a_regularizer_in_two_spaces_has_parameters_for_each(monkeypatch, tmp_path):
    seen = []

    class Reached(Exception):
        pass

    def reached(loop, *_, **__):
        seen.append(loop.estimator)
        raise Reached

    monkeypatch.setattr(parts, "unread_bindings", reached)

    def run(bindings):
        gin.clear_config()
        gin_files.parse_gin([NONE], bindings)
        with pytest.raises(Reached):
            outer_train(tmp_path / "run")

    sum_of_it = ["RegularizedTruncatedStep.regularizer = @Sum()", "Sum.terms = [(1.0, 'sam')]"]
    with pytest.warns(SharedRegularizerWarning, match=r"Give each a scope: .*@meta/SAM\(\), "):
        run([*BOTH, "SAM.rho = 0.1"])
    with pytest.warns(SharedRegularizerWarning, match=r"@meta/SAM\(\), .*@optimizee/SAM\(\), "):
        run([BOTH[0], "RegularizedTruncatedStep.regularizer = @SAM()"])
    with pytest.warns(SharedRegularizerWarning, match=r"^sam .*@optimizee/Sum\(\), "):
        run([BOTH[0], *sum_of_it])
    shared = len(seen)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SharedRegularizerWarning)
        run(SCOPED)
        for one in BOTH:
            run([one])
        run([BOTH[0], "RegularizedTruncatedStep.regularizer = 'l2'"])
        run([SCOPED[0], *sum_of_it])
        run([])
    scoped = seen[shared]
    assert isinstance(scoped, RegularizedTruncatedGrad)
    assert (scoped.regularizer.rho, scoped.truncated_step.regularizer.rho) == (0.05, 0.5)


def experiment(**parameters):
    return Experiment(
        optimizers={"none": NONE, "sam": SAM}, tasks=(TASK,), baselines=(), **parameters
    )


def test_a_study_s_binding_must_be_for_some_meta_training(tmp_path):
    given = ("SAM.rho = 0.3", "outer_train.num_outer_steps = 3")
    Study(experiment(bindings=given), tmp_path).check()
    with pytest.raises(gin_files.UnreadBindingError) as error:
        Study(experiment(bindings=(*given, "GAM.rho = 0.3")), tmp_path).check()
    assert str(error.value).startswith(
        "Experiment.bindings: GAM.rho = 0.3 is read by nothing: no regularizer here is gam."
    )
    assert not list(tmp_path.iterdir())


def test_a_study_remembers_what_it_read(tmp_path):
    gin_files.parse_gin(
        [],
        [
            f"Experiment.optimizers = {{'none': '{NONE}'}}",
            f"Experiment.tasks = ('{TASK}',)",
            "FlatnessConfig.num_examples = 64",
            "meta_splits.seed = 1",
            "SAM.rho = 0.1",
        ],
    )
    Study(Experiment(), tmp_path).check()
    assert names(gin_files.unread()) == ["SAM.rho"]


def test_a_search_looks_at_all_trials_first(tmp_path):
    trials = {"none": [("outer_train.num_outer_steps = 8",)], "sam": [("SAM.rho = 0.1",)]}
    search.check(search.Search({"none": NONE, "sam": SAM}, trials, TASK), tmp_path)
    trials["sam"] = [("GAM.rho = 0.1",)]
    with pytest.raises(gin_files.UnreadBindingError, match="no regularizer here is gam"):
        search.check(search.Search({"none": NONE, "sam": SAM}, trials, TASK), tmp_path)

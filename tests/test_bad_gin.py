"""Every gin parameter is given nonsense: a clear error at once, or the nonsense has a meaning."""

import collections.abc
import dataclasses
import functools
import importlib
import inspect
import pathlib
import tempfile
import traceback
import types
import typing

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import REPOSITORY
from helpers import CONSTANT, KEY, weights

import regularized_lopt
from regularized_lopt import gin_files, regularizers, tasks, upstream
from regularized_lopt.estimators import RegularizedTruncatedGrad, RegularizedTruncatedStep
from regularized_lopt.estimators.base import TruncatedEstimator
from regularized_lopt.estimators.regularized_estimator import RegularizedEstimator
from regularized_lopt.learned_optimizers import MetaLSTMLOpt
from regularized_lopt.measure import few_shot, flatness, noisy_quadratic
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.outer_training import curriculum as curriculum_lib
from regularized_lopt.outer_training import loop as loop_lib
from regularized_lopt.outer_training import outer_train, parts
from regularized_lopt.outer_training.objective import ObjectiveCheck
from regularized_lopt.regularizers import registry
from regularized_lopt.study import experiment, meta_training, search
from regularized_lopt.study import study as study_lib
from regularized_lopt.tasks.few_shot import FewShotFamily

PACKAGE = str(pathlib.Path(regularized_lopt.__file__).parent)
for _file in pathlib.Path(PACKAGE).rglob("*.py"):  # So that none is missing below.
    if "@configurable(" in _file.read_text():
        _module = _file.relative_to(pathlib.Path(PACKAGE).parent).with_suffix("")
        importlib.import_module(".".join(_module.parts).removesuffix(".__init__"))
CONFIGURABLES = {
    selector: configurable
    for selector, configurable in gin.config._REGISTRY.items()
    if selector.startswith("regularized_lopt.")
}
TASK = "ImageMLP_Digits_20_Sigmoid"
FAMILY = tasks.as_family(TASK)
LOPT = regularized_lopt.LSTMLOpt(hidden_size=2, num_layers=1)
STEP = RegularizedTruncatedStep(FAMILY, LOPT, CONSTANT(20))

# What each needs to be called, beside the parameter that is tested.
ARGUMENTS = {
    "Curriculum": {"train_lengths": (20,)},
    "Experiment": {
        "optimizers": {"none": str(REPOSITORY / "gin_configs" / "digits_mlp_none.gin")},
        "tasks": (TASK,),
    },
    "FewShotFamily": {"dataset": "Digits", "ways": 2},
    "FlatnessAwareFamily": {"task_family": FAMILY},
    "MetaLSTMLOpt": {"shapes": {"linear": {"w": (2, 3), "b": (3,)}}},
    "RegularizedTruncatedES": {"truncated_step": STEP, "unroll_length": 20},
    "RegularizedTruncatedGrad": {"truncated_step": STEP},
    "RegularizedTruncatedPES": {"truncated_step": STEP, "unroll_length": 20},
    "RegularizedTruncatedStep": {"task_family": FAMILY, "learned_opt": LOPT},
    "Stabilized": {"learned_opt": LOPT, "controller": "coordinate"},
    "StagedTruncationSchedule": {"lengths": (10, 20), "boundaries": (5,)},
    "Search": {
        "variants": {"none": "gin_configs/digits_mlp_none.gin"},
        "trials": {"none": (("outer_train.num_outer_steps = 5",),)},
    },
    "Sum": {"terms": ((1.0, "sam"), (1.0, "l2"))},
    "TaskPlan": {"name": TASK},
    "few_shot": {
        "out_dir": "unused",
        "family": FewShotFamily("Digits", ways=2, shots=2, queries=2, channels=2, blocks=1),
    },
    "meta_splits": {"num_train": 100},
    "meta_test": {"opts": {"mine": upstream.SGD()}, "task": TASK},
    "outer_train": {"train_log_dir": "unused", "task": TASK, "learned_opt": LOPT},
    "proportional_schedule": {
        "minimum": 0.0,
        "maximum": 1.0,
        "learning_rate": optax.linear_schedule(1.0, 0.0, 5),
        "num_steps": 5,
    },
    "regularized_estimator": {"estimator_fn": lambda: RegularizedTruncatedGrad(STEP)},
    "theta_learning_rate": {"schedule": "cosine", "schedule_steps": 10},
    "theta_optimizer": {"name": "sgd"},
    "trained_opt": {"name_or_path": regularized_lopt.zoo.names()[0]},
}


class Thing:
    """Nothing that a parameter could want."""

    def __repr__(self):
        return "<thing>"


def nonsense(hint):
    """Values that are wrong, or at the edge, where `hint` is wanted."""
    kind, of = typing.get_origin(hint) or hint, typing.get_args(hint)
    yield from (Thing(), None)
    if kind in (typing.Union, types.UnionType):
        for one in of:
            yield from nonsense(one)
    elif kind is int:
        yield from ("x", True, 1.5, float("nan"), -1, 0, 2**40, 10**30, [1])
    elif kind is float:
        yield from ("x", True, float("nan"), float("inf"), -float("inf"), [1.0])
        yield from (-1, 0, 2, 2**40, 1e30, -1e30)
    elif kind is bool:
        yield from ("x", 2, 0.0)
    elif kind is str:
        yield from ("nonsense", "", 3, True)
    elif kind is collections.abc.Callable:
        yield from ("x", 3, lambda: 1.0, lambda a, b, c, d: 1.0)
        yield from (lambda *_: "x", lambda *_: jnp.ones(2), lambda *_: None)
    elif kind in (tuple, collections.abc.Sequence):
        yield from ((), "x", 3)
        if len(of) == 1 or of[1] is ...:
            yield from ((one,) for one in nonsense(of[0]))
        else:
            yield (Thing(),)
            yield from zip(*map(nonsense, of), strict=False)  # All items wrong alike.
    elif kind is collections.abc.Mapping:
        yield from ({}, "x", 3, {3: 3}, *({"nonsense": one} for one in nonsense(of[1])))
    elif kind is not types.NoneType:
        yield from ("nonsense", 3, kind)


@functools.singledispatch
def use(made):
    """Traces what a configurable made, without compiling: whatever was accepted has a meaning."""
    if callable(made):  # A schedule.
        assert jax.eval_shape(made, 0).shape == ()
    else:
        pytest.fail(f"Say in `use` how {type(made).__name__} is used.")


@use.register
def _(made: regularizers.Regularizer):
    point = {"w": jnp.ones(3)}

    def both(point):
        def loss(p):
            return jnp.sum(p["w"] ** 2)

        return made.value_and_grad(loss, point, key=KEY), made.value(loss, point, key=KEY)

    jax.eval_shape(both, point)


@use.register
def _(made: regularizers.Smoothing):
    use(RegularizedTruncatedGrad(STEP, smoothing=made))


@use.register
def _(made: optax.GradientTransformation):
    theta = {"w": jnp.ones(3)}
    jax.eval_shape(lambda grad: made.update(grad, made.init(theta), theta), theta)


@use.register
def _(made: upstream.LearnedOptimizer):
    use_optimizer(lambda key: made.opt_fn(made.init(key)))


@use.register
def _(made: MetaLSTMLOpt):
    theta = jax.eval_shape(made.init, KEY)
    jax.eval_shape(lambda theta: made.opt_fn(theta).init(theta["initial"]), theta)


@use.register
def _(made: upstream.Optimizer):
    use_optimizer(lambda key: made)


def use_optimizer(make):
    def train(key):
        opt = make(key)
        state = opt.init({"w": jnp.ones(3)}, num_steps=10, key=key)
        return opt.update(state, {"w": jnp.ones(3)}, loss=jnp.ones(()), key=key)

    jax.eval_shape(train, KEY)


@use.register
def _(made: upstream.Task):
    batch = () if made.datasets is None else made.datasets.abstract_batch
    jax.eval_shape(lambda batch: made.loss(made.init(KEY), KEY, batch), batch)


@use.register
def _(made: upstream.TaskFamily):
    batch = () if made.datasets is None else made.datasets.abstract_batch

    def loss(batch):
        task = made.sample_task(KEY)
        params, state = task.init_with_state(KEY)
        return task.loss_with_state_and_aux(params, state, KEY, batch)

    jax.eval_shape(loss, batch)


@use.register
def _(made: upstream.TruncationSchedule):
    jax.eval_shape(lambda step: made.init(KEY, upstream.OuterState(step)), jnp.asarray(0))


@use.register
def _(made: curriculum_lib.Curriculum):
    state = curriculum_lib.CurriculumState(steps_in_stage=1)
    made.check(1)
    made.validation_due(state, 1)
    made.on_validation(state, 1.0)
    assert jnp.asarray(made.trajectory_length(state), jnp.int32) > 0


@use.register
def _(made: RegularizedTruncatedStep):
    use(RegularizedTruncatedGrad(made))


@use.register(TruncatedEstimator)
@use.register(RegularizedEstimator)
def _(made):
    data = made.get_datas()

    def estimate(key):
        worker = weights(LOPT.init(key))
        state = made.init_worker_state(worker, key)
        return made.compute_gradient_estimate(worker, key, state, False, datas_list=data)

    jax.eval_shape(estimate, KEY)


@use.register
def _(made: loop_lib.Loop):
    made.trace()


@use.register
def _(made: ObjectiveCheck):
    outer_state = curriculum_lib.CurriculumOuterState(jnp.asarray(0), jnp.asarray(20))
    estimator, data = RegularizedTruncatedGrad(STEP), [STEP.unroll_data(20, "outer_valid")]
    if made.num_trajectories:

        def rises(theta, key):
            return made.rises(estimator, theta, key, outer_state, data)

        jax.eval_shape(rises, jax.eval_shape(LOPT.init, KEY), KEY)


@use.register
def _(made: dict):  # Parts of a data set.
    assert all(len(part) for part in made.values())


@use.register
def _(made: flatness.FlatnessConfig):
    assert made.radii[made.headline] > 0


@use.register
def _(made: few_shot.FineTuning):
    assert made.pretraining_rate + max(made.learning_rates) > 0


@use.register
def _(made: noisy_quadratic.NoisyQuadratic):
    jax.eval_shape(lambda P: made.meta_loss(0.1, P, 3), jnp.zeros((made.size, made.size)))


@use.register
def _(made: noisy_quadratic.Stability):
    made = dataclasses.replace(made, num_samples=10)
    noisy_quadratic.eigenvalue_maps(noisy_quadratic.NoisyQuadratic(), made)
    noisy_quadratic.try_statements(noisy_quadratic.NoisyQuadratic(), made)


@use.register
def _(made: noisy_quadratic.GradientVariance):
    assert max(made.horizons) > 0


@use.register
def _(made: noisy_quadratic.MetaTraining):
    assert max(made.nominals) >= 0


@use.register
def _(made: noisy_quadratic.Linearization):
    noisy_quadratic.check(upstream.SGD(), noisy_quadratic.NoisyQuadratic(), made)


@use.register
def _(made: experiment.Experiment):
    for task, plan in made.plans.items():
        use(plan)
        for name in made.optimizers_on(task):
            optimizer = dataclasses.replace(optimizers_lib.baseline("SGD", 1.0), name=name)
            assert made.property_of(optimizer) in flatness.PROPERTIES


@use.register
def _(made: experiment.TaskPlan):
    assert 0 <= made.num_measured <= made.runs


class Reached(BaseException):
    """A run has come to what would compile."""


def hints(configurable):
    function = configurable.wrapped
    return typing.get_type_hints(
        inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    )


def made_with(selector, parameter, value):
    """What the configurable makes with one parameter bound to a value, run up to `Reached`."""
    configurable = CONFIGURABLES[selector]
    arguments = {**ARGUMENTS.get(configurable.name, {})}
    arguments.pop(parameter, None)
    gin.clear_config()
    gin.bind_parameter(f"{selector}.{parameter}", value)
    try:
        made = configurable.wrapper(**arguments)
        if isinstance(made, experiment.Experiment):
            study_lib.Study(made, tempfile.gettempdir()).run()
        if isinstance(made, search.Search):
            next(search.search(made, tempfile.gettempdir(), progress=False))
        return made
    except Reached as reached:
        return reached.args[0]


@pytest.fixture(autouse=True)
def _stop_before_compiling(monkeypatch):
    class Stopped(loop_lib.Loop):
        def __init__(self, *args):
            super().__init__(*args)
            raise Reached(self)

    monkeypatch.setattr(parts, "Loop", Stopped)

    def reached(self, *_):
        raise Reached(self.experiment)

    monkeypatch.setattr(meta_training.MetaTrainedOptimizers, "step", reached)


@pytest.mark.parametrize("selector", CONFIGURABLES)
def test_nonsense_is_refused_clearly_or_has_a_meaning(selector):
    configurable = CONFIGURABLES[selector]
    arguments = ARGUMENTS.get(configurable.name, {})
    for name, parameter in inspect.signature(configurable.wrapper).parameters.items():
        if parameter.kind is not parameter.VAR_POSITIONAL and name not in arguments:
            assert parameter.default not in (parameter.empty, gin.REQUIRED), (
                f"Add {configurable.name!r}: {{{name!r}: ...}} to ARGUMENTS."
            )
    problems = []
    for name, hint in hints(configurable).items():
        if name in ("return", "args", *(configurable.denylist or ())):
            continue
        for value in {repr(value): value for value in nonsense(hint)}.values():
            if problem := problem_with(selector, name, value):
                problems.append(f"{configurable.name}.{name} = {value!r} {problem}")
    assert not problems, "\n".join(problems)


def problem_with(selector, name, value):
    try:
        made = made_with(selector, name, value)
    except Exception as error:
        text = str(error).partition("\n  In call to configurable")[0]
        innermost = list(traceback.walk_tb(error.__traceback__))[-1][0].f_code.co_filename
        if not isinstance(error, ValueError | TypeError | OSError):
            return f"raises {type(error).__name__}: {text}"
        if not innermost.startswith(PACKAGE):
            return f"is refused in {innermost}: {text}"
        parts = jax.tree.leaves((name, value), is_leaf=lambda part: part is None)
        if "\n" in text or not any(str(part) in text for part in parts):
            return f"is refused by {text!r}, which is no line that names it"
        return None
    try:
        use(made)
    except Exception as error:
        return f"is accepted, but then {type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: regularizers.SAM(rho="x"),
            "SAM.rho = 'x': it must be a number or a function.",
        ),
        (
            lambda: regularizers.SAM(rho=float("inf")),
            "SAM.rho = inf: it must be 0 or greater, and finite in float32.",
        ),
        (
            lambda: regularized_lopt.LSTMLOpt(num_layers=True),
            "LSTMLOpt.num_layers = True: it must be an integer.",
        ),
        (
            lambda: regularized_lopt.LSTMLOpt(inputs=("grad", 3)),
            "LSTMLOpt.inputs = ('grad', 3): it must be a string or a sequence (each item a "
            "string).",
        ),
        (
            lambda: experiment.Experiment(parallelism=(1,)),
            "Experiment.parallelism = (1,): it must be a sequence of 2 (an integer, an integer) or "
            "None.",
        ),
        (
            lambda: experiment.Experiment(properties={"mine": 3}),
            "Experiment.properties = {'mine': 3}: it must be a dict (each key a string, each value "
            "a string).",
        ),
        (
            lambda: RegularizedTruncatedStep(FAMILY, regularized_lopt.LSTMLOpt),
            "RegularizedTruncatedStep.learned_opt = <class "
            "'regularized_lopt.learned_optimizers.lstm.LSTMLOpt'>: it must be a "
            "LearnedOptimizer. Write @LSTMLOpt(), with parentheses.",
        ),
        (
            lambda: outer_train("unused", TASK, seed=2**32),
            "outer_train.seed = 4294967296: it must be a whole number from 0 to 4294967295.",
        ),
        (
            lambda: outer_train("unused", TASK, rollback_factor=1.5),
            "outer_train.rollback_factor = 1.5: it must be in (0, 1].",
        ),
        (
            lambda: regularizers.SAM(rho=10**400),
            f"SAM.rho = 1{'0' * 76}...: no float is so large.",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value).startswith(f"{message}\n  In call to configurable")


@pytest.mark.parametrize("number", [2, np.float32(2), np.int64(2), jnp.asarray(2.0), np.ones(())])
def test_any_number_is_one(number):
    assert regularizers.SAM(rho=number).rho == number
    curriculum_lib.Curriculum(train_lengths=[np.int64(20)], validation_period=np.int64(3))


def test_what_users_register_is_checked_too(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @regularizers.register("wavy")
    def wavy(loss_fn, point, *, key, step, height: float = 1.0, dims: "Dims[n]" = None):
        return height * loss_fn(point)

    use(regularizers.get("wavy", dims=3))  # Its annotation cannot be resolved.
    gin.bind_parameter("wavy.height", "high")
    with pytest.raises(TypeError, match=r"wavy\.height = 'high': it must be a number"):
        use(regularizers.get("wavy"))


def test_signatures_and_subclasses_are_those_of_the_class():
    assert list(inspect.signature(regularizers.SAM).parameters) == ["rho", "weight"]
    assert isinstance(regularizers.GSAM(), regularizers.SAM)

    class Mine(regularizers.SAM):
        def __init__(self, other="a string"):
            super().__init__(0.5)
            self.other = other

    assert Mine().rho == 0.5


@pytest.mark.parametrize(
    "line",
    ["nonsense", "SAM.rho =", "SAM.rho = word", "SAM.rho = (1,", "= 3", "SAM. = 3"],
)
def test_what_is_no_gin_is_refused_on_one_line(line):
    with pytest.raises(ValueError, match=r"This is no gin: ") as error:
        gin_files.parse_gin([], [line])
    assert "\n" not in str(error.value)


def test_a_study_reads_all_its_optimizers_before_it_trains_any(tmp_path):
    first = ARGUMENTS["Experiment"]["optimizers"]
    for late in ({"optimizers": {**first, "sam": "typo"}}, {"early_evidence": {"sam": "typo"}}):
        what = experiment.Experiment(**{**ARGUMENTS["Experiment"], **late})
        with pytest.raises(FileNotFoundError, match="no file or directory typo"):
            study_lib.Study(what, tmp_path).run()

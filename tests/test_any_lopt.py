"""Every learned optimizer of upstream's is saved, loaded and applied like one of ours."""

import copy
import dataclasses
import functools
import inspect
import pickle
import subprocess
import sys

import chex
import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import digits_config
from helpers import KEY, TwoLayer, make, run
from hypothesis import given, settings
from hypothesis import strategies as st

import regularized_lopt
from regularized_lopt import (
    errors,
    gin_files,
    learned_optimizers,
    regularizers,
    serialization,
    upstream,
)
from regularized_lopt.learned_optimizers import describe
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure.flatness import FlatnessConfig
from regularized_lopt.optax_bridge import as_optax
from regularized_lopt.outer_training import outer_train
from regularized_lopt.outer_training.parts import check_bindings
from regularized_lopt.study import meta_test

PACKAGE = "learned_optimization.learned_optimizers."
upstream.import_learned_optimizers()
CLASSES = {
    one.wrapped.__name__: one.wrapper
    for selector, one in gin.config._REGISTRY.items()
    if selector.startswith(PACKAGE)
    and inspect.isclass(one.wrapped)
    and issubclass(one.wrapped, upstream.LearnedOptimizer)
}
SMALL = {
    "AdafacMLPLOpt": {"hidden_size": 2, "hidden_layers": 1, "initial_momentum_decays": (0.9,)},
    "MLPLOpt": {"hidden_size": 2, "hidden_layers": 1},
    "MLPNomLOpt": {"hidden_size": 2, "hidden_layers": 1, "nominal_stepsize": 0.1},
    "NNAdam": {"output_scale": 0.1},
    "RNNMLPLOpt": {"hidden_size": 2, "lstm_hidden_size": 2, "lstm_to_ff": 2},
}
ALL = pytest.mark.parametrize("name", sorted(CLASSES))
# Compiled, 1 - decay^0 + 1e-8 of its loss normalizer may be 0, and then all is NaN.
NOT_FINITE = {"RNNMLPLOpt"}
SLOW = {"AdafacMLPLOpt", "MLPNomLOpt", "RNNMLPLOpt"}  # To compile.
SOME_ARE_SLOW = pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in sorted(CLASSES)],
)


def small(name, **more):
    return CLASSES[name](**SMALL.get(name, {}), **more)


def theta_of(lopt):
    """Strongly typed, as one that was trained."""
    return jax.tree.map(lambda t: jnp.asarray(np.asarray(t) + np.float32(0.01)), lopt.init(KEY))


def reload(lopt, path, theta=None, **metadata):
    regularized_lopt.save(path, lopt, theta_of(lopt) if theta is None else theta, metadata)
    return regularized_lopt.load(path)


def test_all_of_upstream_s_are_here():
    names = {"AdafacMLPLOpt", "LearnableAdam", "LearnableSGD", "LearnableSGDM", "MLPLOpt"}
    names |= {"NNAdam", "RNNMLPLOpt"} | ({"MLPNomLOpt"} if upstream.GENERATION == "main" else set())
    assert names == set(CLASSES)


# What an optimizer is made from is recorded.


def test_arguments_are_those_of_the_caller_of_gin_and_the_defaults():
    gin.parse_config("LearnableSGDM.initial_lr = %X\nX = 0.5\nin/LearnableSGDM.initial_lr = 0.25")
    cls = CLASSES["LearnableSGDM"]
    found = {
        "plain": describe(cls()),
        "positional": describe(cls(1.0)),
        "keyword": describe(cls(initial_momentum=0.5)),
        "required": describe(cls(gin.REQUIRED, np.float32(0.75))),
    }
    with gin.config_scope("in"):
        found["scoped"] = describe(cls())
    assert {name: list(one["config"].values()) for name, one in found.items()} == {
        "plain": [0.5, 0.9],
        "positional": [1.0, 0.9],
        "keyword": [0.5, 0.5],
        "required": [0.5, 0.75],
        "scoped": [0.25, 0.9],
    }
    assert found["plain"]["module"] == PACKAGE + "base"


def test_the_host_is_left_alone():
    cls = CLASSES["LearnableSGD"]
    made = cls(0.5)
    for twin in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert describe(twin) == describe(made)
    assert str(inspect.signature(cls)) == "(initial_lr=0.01)"
    with pytest.raises(TypeError, match="positional arguments but 4 were given"):
        cls(1, 2, 3)
    with pytest.raises(TypeError, match="abstract"):
        upstream.LearnedOptimizer()

    class Nothing(_Base):
        pass

    assert str(inspect.signature(Nothing)) == "()"
    with pytest.raises(TypeError, match=r"Nothing\(\) takes no arguments"):
        Nothing(1)
    configured = gin.configurable(module="here")(Nothing)
    assert isinstance(configured(), Nothing)
    with pytest.raises(ValueError, match="doesn't have a parameter named 'x'"):
        gin.parse_config("Nothing.x = 1")


class _Base(upstream.LearnedOptimizer):
    def init(self, key):
        return {"x": jnp.zeros(2)}

    def opt_fn(self, theta, is_training=False):
        return upstream.SGD(0.1)


@pytest.fixture
def register(monkeypatch):
    """As `learned_optimizers.register`, for one test."""
    monkeypatch.setattr(gin.config, "_INTERACTIVE_MODE", True)
    before = dict(learned_optimizers.CLASSES)
    yield learned_optimizers.register
    learned_optimizers.CLASSES.clear()
    learned_optimizers.CLASSES.update(before)


def test_data_classes_and_those_that_inherit_a_constructor(register):
    @register
    @dataclasses.dataclass(frozen=True)
    class Data(_Base):
        x: int = 3
        y: tuple = (1, [2.0, None])

    @register
    class Inherits(CLASSES["LearnableSGD"]):
        pass

    assert describe(Data(y=[1]))["config"] == {"x": 3, "y": [1]}
    assert learned_optimizers.make(describe(Data())) == Data()
    gin.parse_config("LearnableSGD.initial_lr = 0.5")
    assert describe(Inherits())["config"] == {"initial_lr": 0.5}
    gin.parse_config("Inherits.initial_lr = 0.75")
    assert describe(Inherits())["config"] == {"initial_lr": 0.75}
    assert Inherits().initial_lr == 0.75


def test_optimizers_within_optimizers(register, tmp_path):
    @register
    class Wrapper(_Base):
        def __init__(self, learned_opts, scale=1.0, **options):
            self.learned_opts, self.scale, self.options = learned_opts, scale, options

    inner = CLASSES["LearnableSGD"](0.5)
    made = Wrapper([inner, Wrapper((inner,))], depth={"a": (1, 2)})
    loaded = reload(made, tmp_path / "lopt.npz").learned_opt
    assert describe(loaded) == describe(made)
    assert loaded.learned_opts[1].learned_opts[0].initial_lr == 0.5
    assert loaded.options == {"depth": {"a": (1, 2)}}


def _draw():
    return np.random.default_rng().random()


def _refused(cls, **arguments):
    with pytest.raises(ValueError, match="cannot be saved") as error:
        describe(cls(**arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_written_is_refused_by_name(register, tmp_path):
    sgd = CLASSES["LearnableSGD"]
    assert "argument initial_lr is a function (_draw)" in _refused(sgd, initial_lr=_draw)
    assert "initial_lr is a ArrayImpl" in _refused(sgd, initial_lr=jnp.ones(2))
    assert "initial_lr is a ndarray" in _refused(sgd, initial_lr=[np.ones(2)])
    assert "initial_lr is a class (Data)" in _refused(sgd, initial_lr=type("Data", (), {}))
    gin.configurable(module="drawn")(_draw)
    gin.parse_config("LearnableSGD.initial_lr = @_draw()")
    assert "initial_lr is another with every call" in _refused(sgd)

    @register
    class Positions(_Base):
        def __init__(self, *sizes):
            pass

    @register
    class News(_Base):
        def __new__(cls, x=1):
            return object.__new__(cls)

    assert describe(Positions())["config"] == {}
    assert "argument sizes is given by position" in _refused(lambda: Positions(1))
    assert "has a __new__ of its own" in _refused(News)
    assert "_Base cannot be saved: decorate the class" in _refused(_Base)


def test_outer_training_refuses_at_its_start(tmp_path):
    base = sys.modules[PACKAGE + "base"]
    wrapped = base.wrap_learned_opt(CLASSES["LearnableSGD"](), lambda opt: opt)
    with pytest.raises(ValueError, match=r"LOpt cannot be saved: .* inside of a function"):
        outer_train(tmp_path / "run", "ImageMLP_Digits_20_Relu", wrapped, progress=False)
    assert not (tmp_path / "run").exists()


# Files name classes, and run no others.


def test_recorded_arguments_win_and_others_are_refused_by_name(register, tmp_path):
    def define(**defaults):
        parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)] + [
            inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value)
            for key, value in defaults.items()
        ]

        def __init__(self, *args, **kwargs):
            self.given = defaults | kwargs

        __init__.__signature__ = inspect.Signature(parameters)
        learned_optimizers.CLASSES.pop("Changing", None)
        return register(type("Changing", (_Base,), {"__init__": __init__}))

    path = tmp_path / "lopt.npz"
    reload(define(a=1, b=2)(), path)
    define(a=10, b=20, c=30)
    assert regularized_lopt.load(path).learned_opt.given == {"a": 1, "b": 2, "c": 30}
    define(a=1)
    with pytest.raises(serialization.FileFormatError, match=r"with the arguments b; .* takes a:"):
        regularized_lopt.load(path)
    define(c=inspect.Parameter.empty, a=1, b=2)
    with pytest.raises(serialization.FileFormatError, match="without the arguments c; "):
        regularized_lopt.load(path)


def test_nothing_else_is_imported(monkeypatch, tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    lopt = CLASSES["LearnableSGD"]()
    path = tmp_path / "lopt.npz"
    for module, name in (
        ("evil", "LOpt"),
        (PACKAGE + "..evil", "LOpt"),
        (PACKAGE + "base", "Invertable"),
        (PACKAGE + "base", "LearnedOptimizer2"),
        (PACKAGE + "rnn_mlp_lopt", "lopt_base"),
        (PACKAGE + "nowhere", "LOpt"),
        ("learned_optimization.learned_optimizers_of_others", "LOpt"),
    ):
        about = {**describe(lopt), "module": module, "learned_opt": name}
        serialization.save(path, theta_of(lopt), about)
        with pytest.raises(serialization.FileFormatError, match=f"holds a {name} of {module}, whi"):
            regularized_lopt.load(path)


def test_a_file_is_read_where_gin_is_locked_and_the_module_not_imported(tmp_path):
    path = tmp_path / "lopt.npz"
    reload(small("NNAdam"), path)
    code = (
        "import regularized_lopt\n"
        "from regularized_lopt import gin_files\n"
        "gin_files.parse_gin([], ['X = 1'])\n"
        f"print(regularized_lopt.load({str(path)!r}).learned_opt.output_scale)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.1"]


def test_gin_knows_the_names_and_the_nearest():
    code = (
        "import gin\n"
        "from regularized_lopt import gin_files\n"
        "gin_files.parse_gin([], ['AdafacMLPLOpt.hidden_size = 2', 'X = @MLPLOpt()'])\n"
        "print(gin.query_parameter('AdafacMLPLOpt.hidden_size'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2"]
    with pytest.raises(errors.UnknownNameError, match="Did you mean 'AdafacMLPLOpt'"):
        gin_files.parse_gin([], ["X = @AdafacMLPOpt()"])
    with pytest.raises(errors.UnknownNameError, match="Did you mean 'hidden_size'"):
        gin_files.parse_gin([], ["AdafacMLPLOpt.hiden_size = 3"])


# Applied: in upstream's form, in optax's, after a round through a file.

LEAVES = {
    "scalar": jnp.asarray(0.3),
    "vector": jnp.linspace(-1, 1, 3),
    "matrix": jnp.linspace(-1, 1, 6).reshape(2, 3),
    "empty": jnp.zeros((2, 0)),
    "half": jnp.ones(2, jnp.bfloat16),
    "whole": jnp.arange(2),
}


@st.composite
def trees(draw):
    names = draw(st.lists(st.sampled_from(sorted(LEAVES)), min_size=0, max_size=2))
    names = ["matrix", *names]
    made = {f"{i}{name}": LEAVES[name] for i, name in enumerate(names)}
    return draw(st.sampled_from([made, tuple(made.values()), {"a": {"b": made}}]))


def _is_trained(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def gradients(params, scale):
    def gradient(leaf):
        wave = scale * (1.5 + jnp.sin(1 + jnp.arange(leaf.size).reshape(leaf.shape)))
        return wave.astype(leaf.dtype) if _is_trained(leaf) else jnp.zeros_like(leaf)

    return jax.tree.map(gradient, params)


@SOME_ARE_SLOW
@settings(max_examples=3)
@given(params=trees(), scale=st.sampled_from([1e-2, 10.0]))
def test_a_file_and_optax_s_form_keep_the_updates(name, tmp_path_factory, params, scale):
    lopt = small(name)
    loaded = reload(lopt, tmp_path_factory.mktemp("lopt") / "lopt.npz", longest_trajectory=7)
    grads, loss = gradients(params, scale), jnp.asarray(0.5)

    def in_upstream_s_form(opt):
        # It is for floats: integers are left out of what it is given.
        only = [x for x in jax.tree.leaves(params) if _is_trained(x)]
        of_them = [g for g in jax.tree.leaves(grads) if _is_trained(g)]
        state = opt.init(only, num_steps=7, key=KEY)
        for _ in range(2):
            state = opt.update(state, of_them, loss=loss, key=KEY)
        return opt.get_params(state)

    def in_optax_s_form(params):
        tx = loaded.as_optax()
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params, value=loss, key=KEY)
            params = optax.apply_updates(params, updates)
        return params

    expected, again = (
        jax.jit(functools.partial(in_upstream_s_form, opt))()
        for opt in (lopt.opt_fn(theta_of(lopt)), loaded.opt())
    )
    if name not in NOT_FINITE:
        chex.assert_tree_all_finite(expected)
    chex.assert_trees_all_equal(expected, again)
    found = jax.jit(in_optax_s_form)(params)
    kept = [x for x in jax.tree.leaves(found) if not _is_trained(x)]
    chex.assert_trees_all_equal(kept, [x for x in jax.tree.leaves(params) if not _is_trained(x)])
    for ours, theirs in zip(
        [x for x in jax.tree.leaves(found) if _is_trained(x)], expected, strict=True
    ):
        tolerance = 2e-2 if theirs.dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (ours, theirs)),
                                   rtol=tolerance, atol=tolerance)  # fmt: skip


PARAMS = {"w": LEAVES["matrix"], "b": LEAVES["vector"]}


@ALL
def test_the_number_of_steps_and_the_loss_are_asked_for_by_name(name, tmp_path):
    lopt = small(name)
    theta = lopt.init(KEY)
    if name in ("AdafacMLPLOpt", "MLPNomLOpt", "NNAdam"):
        with pytest.raises(ValueError, match=f"{name} needs the number of steps"):
            as_optax(lopt, theta).init(PARAMS)
        with pytest.raises(ValueError, match=f"{name} needs the number of steps"):
            reload(lopt, tmp_path / "lopt.npz").opt().init(PARAMS)
    tx = as_optax(lopt, theta, num_steps=5)
    state = tx.init(PARAMS)
    step = jax.jit(lambda state: tx.update(PARAMS, state, PARAMS))
    if name == "RNNMLPLOpt":
        with pytest.raises(ValueError, match=r"RNNMLPLOpt reads the loss: call .*value=loss"):
            step(state)
    else:
        step(state)
    with pytest.raises(ValueError, match="num_steps = 0: it must be"):
        as_optax(lopt, theta, num_steps=0)
    with pytest.raises(ValueError, match="num_steps = 0: it must be"):
        reload(lopt, tmp_path / "lopt.npz").opt(num_steps=0)


def test_errors_of_an_optimizer_stay_its_own():
    class Fails(type(upstream.SGD(0.1))):
        def init(self, params, *args, **kwargs):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        regularized_lopt.zoo.optax_bridge.from_optimizer(Fails(0.1)).init(PARAMS)


@pytest.mark.skipif(upstream.GENERATION == "wheel", reason="main alone has sums")
def test_the_terms_of_a_sum_follow_the_params(tmp_path):
    base = sys.modules[PACKAGE + "base"]
    lopt = base.SumLearnedOptimizer([CLASSES["LearnableSGD"](0.5), CLASSES["LearnableSGD"](0.25)])
    tx = reload(lopt, tmp_path / "lopt.npz", lopt.init(KEY)).as_optax()
    state, params = tx.init(PARAMS), jax.tree.map(lambda x: x + 1.0, PARAMS)
    updates, _ = tx.update(PARAMS, state, params)  # Other params than `init` had.
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -0.75 * g, PARAMS), rtol=1e-5)


# Meta-trained.


def config(name, *extra):
    bound = [f"{name}.{key} = {value!r}" for key, value in SMALL.get(name, {}).items()]
    return digits_config(2, f"outer_train.learned_opt = @{name}()", *bound, *extra)


def check_a_life(name, path):
    """By gin's names alone: meta-trained, loaded, meta-tested, in a loop of one's own."""
    gin_files.parse_gin([], config(name))
    check_bindings()
    result = outer_train(path, progress=False)
    loaded = regularized_lopt.load(path)
    assert type(loaded.learned_opt) is CLASSES[name]
    assert describe(loaded.learned_opt) == describe(result.learned_opt)
    assert describe(loaded.learned_opt) == describe(small(name))  # Gin's parameters are in it.
    assert loaded.longest_trajectory == 20
    chex.assert_trees_all_equal(loaded.theta, result.theta)
    loaded.opt().init(PARAMS)
    loaded.as_optax().init(PARAMS)
    return loaded


def test_a_whole_life(tmp_path):
    loaded = check_a_life("NNAdam", tmp_path / "run")
    assert loaded.learned_opt.output_scale == 0.1
    found = meta_test(
        {"mine": loaded}, "ImageMLP_Digits_20_Relu", 1, 4, baselines=(), progress=False,
        flatness_config=FlatnessConfig(num_examples=16, headline_starts=1, num_probes=0),
    )  # fmt: skip
    assert np.isfinite(found["train_loss"].sel(optimizer="mine")).all()
    outer_train(tmp_path / "again", warm_start=tmp_path / "run", progress=False)
    gin.clear_config()
    gin_files.parse_gin([], config("NNAdam", "NNAdam.initial_beta1 = 0.5"))
    with pytest.raises(ValueError, match=r"warm_start: .* holds a NNAdam with "):
        outer_train(tmp_path / "other", warm_start=tmp_path / "run", progress=False)


@pytest.mark.slow
@ALL
def test_a_whole_life_of_each(name, tmp_path):
    check_a_life(name, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CLASSES) - NOT_FINITE))
def test_each_takes_smoothing_and_a_regularizer_in_both_spaces(name):
    estimator = make(
        TwoLayer(),
        lopt=small(name),
        unroll_length=4,
        step={"regularizer": regularizers.SAM(rho=0.1)},
        regularizer=regularizers.GSAM(),
        smoothing=regularizers.Smoothing(num_steps=1),
    )
    grads, losses, _ = run(estimator, theta_of(estimator.learned_opt))
    chex.assert_tree_all_finite((grads, losses))
    assert any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", sorted(set(regularizers.names()) - {"none"}))
def test_each_regularizer_takes_one_in_both_spaces(regularizer):
    lopt = small("MLPLOpt")
    settings = {"regularizer": regularizer}
    grads, losses, _ = run(make(TwoLayer(), lopt=lopt, unroll_length=4, step=settings, **settings),
                           theta_of(lopt))  # fmt: skip
    chex.assert_tree_all_finite((grads, losses))


# Told apart.


def test_optimizers_of_one_make_share_programs():
    def kind(lopt):
        return optimizers_lib.learned("name", lopt, theta_of(lopt)).kind

    cls = CLASSES["LearnableSGD"]
    assert kind(cls()) == kind(cls(0.01)) == kind(learned_optimizers.make(describe(cls())))
    assert kind(cls()) != kind(cls(0.02))
    assert kind(_Base()) != kind(_Base())
    # What results in files are called by.
    assert kind(regularized_lopt.LSTMLOpt(hidden_size=3)) == (
        "LSTMLOpt [('hidden_size', 3), ('inputs', ['grad']), ('num_layers', 2), "
        "('output_bound', None), ('output_scale', 0.1), ('preprocess', True), "
        "('preprocess_factor', 10.0), ('second_derivatives', False)]"
    )

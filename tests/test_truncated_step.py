"""The inner problem: tasks with a model state, and what of a task is refused by name."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, TwoLayer, flat, make, run, weights
from test_upstream_estimators import build

import regularized_lopt
from regularized_lopt import regularizers, upstream
from regularized_lopt.estimators import regularized
from regularized_lopt.outer_training import outer_train

LOPT = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
THETA = LOPT.init(KEY)


class RunningMean(upstream.Task):
    """The least that a task with a model state defines, as upstream's ResNets do."""

    datasets = None

    def init_with_state(self, key):
        return {"w": jax.random.normal(key, (3,))}, {"mean": jnp.zeros(3), "calls": jnp.zeros(())}

    def loss_with_state(self, params, state, key, data):
        del key, data
        mean = 0.5 * state["mean"] + 0.5 * params["w"]
        return jnp.sum((mean + 1.0) ** 2), {"mean": mean, "calls": state["calls"] + 1}

    def loss_with_state_and_aux(self, params, state, key, data):
        return *self.loss_with_state(params, state, key, data), {}


@pytest.mark.parametrize("spaces", [("none", "none"), ("sam", "none"), ("none", "sam")], ids=str)
def test_a_task_with_a_model_state_alone_is_meta_trained(spaces):
    """The state goes from step to step, and the passes of a regularizer leave no trace in it."""
    meta, optimizee = spaces
    estimator = make(
        RunningMean(), lopt=LOPT, step={"regularizer": optimizee}, regularizer=meta, unroll_length=5
    )
    grads, losses, state = run(estimator, THETA, num_estimates=2)
    assert np.any(flat(grads[-1]) != 0)
    assert np.all(np.isfinite(losses))
    np.testing.assert_array_equal(state.inner_opt_state.state["calls"], [10.0])


@pytest.mark.parametrize("name", ["TruncatedES", "TruncatedPES", "FullES", "TruncatedGrad"])
def test_upstream_s_estimators_train_it_as_well(name):
    family = upstream.single_task_to_family(RunningMean())
    for space in ("sam", "none"):
        estimator = regularized(
            build(name, family, LOPT, space), "none" if space == "sam" else "sam"
        )
        state = estimator.init_worker_state(weights(THETA), KEY)
        out, metrics = estimator.compute_gradient_estimate(weights(THETA), KEY, state, False)
        assert np.any(flat(out.grad) != 0)
        assert float(metrics["mean||nonfinite"]) == 0


def test_a_whole_run_trains_it(tmp_path):
    with gin.unlock_config():
        gin.parse_config(
            ["RegularizedTruncatedGrad.unroll_length = 5", "Curriculum.train_lengths = (10,)",
             "Curriculum.validation_period = 1", "Curriculum.num_validation_tasks = 1"]
        )  # fmt: skip
    result = outer_train(tmp_path, RunningMean(), LOPT, num_outer_steps=2, progress=False)
    assert np.isfinite(result.metrics[-1]["loss"])


class Mixed(TwoLayer):
    """With a leaf of another dtype."""

    def __init__(self, leaf):
        self.leaf = leaf

    def init(self, key):
        return {**super().init(key), "other": self.leaf}


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [(jnp.zeros(2, int), r"int32\[2\]"), (jnp.zeros(2, complex), r"complex64\[2\]")],
    ids=["integer", "complex"],
)
def test_params_that_are_not_trained_are_refused_by_name(leaf, kind):
    with pytest.raises(ValueError, match=rf"Mixed: the leaf \['other'\] .* {kind}; outer training"):
        make(Mixed(leaf))


class WithBatches(TwoLayer):
    """Batches of the sizes that are given, one after the other."""

    def __init__(self, sizes):
        streams = [iter([{"x": np.ones((n, 3), np.float32)} for n in sizes]) for _ in range(4)]
        example = {"x": jax.ShapeDtypeStruct((4, 3), jnp.float32)}
        self.datasets = upstream.Datasets(*streams, abstract_batch=example)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([4] * 3, "WithBatches: the iterator of its split 'train' has ended"),
        ([4, 4, 4, 4, 3], r"'train' differ in shape: \['x'\] has \(4, 3\) in one and \(3, 3\)"),
    ],
    ids=["finite", "ragged"],
)
def test_iterators_that_end_and_ragged_batches_are_refused_by_name(sizes, message):
    with pytest.raises(ValueError, match=message):
        make(WithBatches(sizes), lopt=LOPT, unroll_length=5).get_datas()


def test_a_finite_iterator_under_upstream_s_estimators_is_refused_by_name():
    family = upstream.single_task_to_family(WithBatches([4] * 8))
    estimator = regularized(build("TruncatedES", family, LOPT), "sam")
    state = estimator.init_worker_state(weights(THETA), KEY)
    with pytest.raises(ValueError, match="WithBatches: the iterator of its split 'train' has ende"):
        estimator.compute_gradient_estimate(weights(THETA), KEY, state, False)


@pytest.mark.parametrize("space", ["meta", "optimizee"])
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda loss: (loss, {}), "'mine' returned a tuple"),
        (lambda loss: None, "'mine' returned a NoneType"),
        (lambda loss: loss * jnp.ones(2), r"'mine' returned an array of shape \(2,\)"),
    ],
    ids=["tuple", "None", "array"],
)
def test_a_regularizer_that_returns_no_loss_is_refused_by_name(space, returned, message):
    def mine(loss_fn, point, *, key, step):
        return returned(loss_fn(point))

    regularizer = regularizers.Function("mine", mine)
    options = {"regularizer": regularizer} if space == "meta" else {}
    step = {} if space == "meta" else {"regularizer": regularizer}
    estimator = make(TwoLayer(), lopt=LOPT, step=step, unroll_length=5, **options)
    with pytest.raises(TypeError, match=message):
        run(estimator, THETA)


class WithImages(TwoLayer):
    """A loss that is proportional to its images, and to its labels."""

    def __init__(self, name="image"):
        stream = [{name: np.full(4, 2.0, np.float32), "label": np.ones(4, np.float32)}] * 100
        example = {key: jax.ShapeDtypeStruct((4,), jnp.float32) for key in stream[0]}
        self.datasets = upstream.Datasets(*(iter(stream) for _ in range(4)), abstract_batch=example)

    def loss(self, params, key, data):
        squares = sum(jnp.sum(leaf**2) for leaf in params.values())
        return squares * jnp.mean(data["image"]) * jnp.mean(data["label"])


OUTER_STATE = weights(THETA).outer_state
BOUND = 1.5


def problem(task=None, num_tasks=4, **options):
    step = {"num_tasks": num_tasks, **options}
    return make(task or TwoLayer(), lopt=LOPT, unroll_length=5, length=10, step=step)


def started(**options):
    """(inner problem, a trajectory of it at its start)."""
    step_lib = problem(**options).truncated_step
    return step_lib, step_lib.init_one(THETA, OUTER_STATE, KEY)


def own_params(state):
    return jax.tree.map(jnp.multiply, state.inner_opt_state.params, state.scales.params)


def test_scales_are_drawn_beside_everything_else():
    plain = problem().truncated_step.init_step_state(THETA, OUTER_STATE, KEY)
    assert plain.scales is None
    both = {"param_scale_bound": BOUND, "input_scale_bound": 0.5}
    images = problem(WithImages(), **both).truncated_step
    state = images.init_step_state(THETA, OUTER_STATE, KEY)
    np.testing.assert_allclose(
        flat(jax.vmap(own_params)(state)), flat(plain.inner_opt_state.params), 1e-6
    )
    for name in ("inner_step", "truncation_state", "task_param", "is_done", "first_loss"):
        np.testing.assert_array_equal(flat(getattr(state, name)), flat(getattr(plain, name)))
    factors = np.concatenate([*state.scales.params.values(), state.scales.inputs])
    assert len(set(factors)) == 12  # Of two tensors and the images, by task.
    for bound, factor in ((BOUND, flat(state.scales.params)), (0.5, state.scales.inputs)):
        assert 0.5 * bound < np.abs(np.log(factor)).max() < bound
    assert images.init_one(THETA, OUTER_STATE, KEY, rescaled=False).scales is None


@pytest.mark.parametrize("regularizer", ["none", "sam"])
def test_rescaled_params_start_from_the_same_function_with_other_gradients(regularizer):
    """The same loss, and flatness, of the task's own params; the gradient is s times as large."""
    (plain_lib, plain), (step_lib, state) = (
        started(regularizer=regularizer, **options)
        for options in ({}, {"param_scale_bound": BOUND})
    )
    _, plain_loss, plain_grad = plain_lib.step_one(THETA, plain, KEY, ())
    after, loss, grad = step_lib.step_one(THETA, state, KEY, ())
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-5)
    wanted = jax.tree.map(jnp.multiply, plain_grad, state.scales.params)
    np.testing.assert_allclose(flat(grad), flat(wanted), rtol=1e-4)
    assert np.abs(np.log(flat(state.scales.params))).min() > 0.1
    np.testing.assert_array_equal(flat(after.scales), flat(state.scales))
    np.testing.assert_allclose(
        step_lib.outer_loss_one(THETA, state, KEY, (), OUTER_STATE),
        plain_lib.outer_loss_one(THETA, plain, KEY, (), OUTER_STATE),
        rtol=1e-5,
    )


def test_images_alone_are_rescaled():
    batch = {"image": jnp.full(4, 2.0), "label": jnp.ones(4)}
    (plain_lib, plain), (step_lib, state) = (
        started(task=WithImages(), **options) for options in ({}, {"input_scale_bound": BOUND})
    )
    losses = [
        jnp.stack([one.step_one(THETA, at, KEY, batch)[1], *one.outer_loss_one(
            THETA, at, KEY, batch, OUTER_STATE
        )])
        for one, at in ((plain_lib, plain), (step_lib, state))
    ]  # fmt: skip
    np.testing.assert_allclose(losses[1], losses[0] * state.scales.inputs, rtol=1e-5)
    assert abs(float(jnp.log(state.scales.inputs))) > 0.1
    np.testing.assert_array_equal(
        flat(state.inner_opt_state.params), flat(plain.inner_opt_state.params)
    )


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_scales_last_for_a_trajectory(fraction):
    step = {"param_scale_bound": BOUND, "num_tasks": 2}
    estimator = make(
        TwoLayer(), 10, lopt=LOPT, step=step, unroll_length=5, coordinate_fraction=fraction
    )
    seen = [flat(run(estimator, THETA, count)[2].scales) for count in (1, 2, 3)]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.all(seen[1] != seen[2])


@pytest.mark.skipif(upstream.GENERATION == "wheel", reason="the wheel's make their own problems")
@pytest.mark.parametrize("name", ["TruncatedES", "TruncatedPES", "FullES", "TruncatedGrad"])
def test_upstream_s_estimators_meet_scales_as_well(name):
    family = upstream.single_task_to_family(TwoLayer())
    grads = []
    for bound in (0.0, BOUND):
        gin.bind_parameter("RegularizedTruncatedStep.param_scale_bound", bound)
        estimator = build(name, family, LOPT)
        state = estimator.init_worker_state(weights(THETA), KEY)
        out, _ = estimator.compute_gradient_estimate(weights(THETA), KEY, state, False)
        assert np.all(np.isfinite(flat(out.grad)))
        grads.append(flat(out.grad))
    assert np.any(grads[0] != grads[1])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (None, {"param_scale_bound": -1.0}, r"param_scale_bound = -1\.0: it must be in \[0, 10\]"),
        (None, {"input_scale_bound": 11.0}, r"input_scale_bound = 11\.0: it must be in \[0, 10\]"),
        (None, {"input_scale_bound": 1.0}, 'TwoLayer.* have no float "image"'),
        (WithImages("x"), {"input_scale_bound": 1.0}, 'WithImages.* have no float "image"'),
    ],
)
def test_bounds_out_of_range_and_tasks_without_images_are_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        problem(task, **options)

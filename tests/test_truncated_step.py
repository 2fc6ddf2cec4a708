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
from regularized_lopt.outer_training import outer_train, regularized

LOPT = regularized_lopt.LSTMLOpt(hidden_size=3)
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

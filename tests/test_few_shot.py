"""Few-shot classification as a task family, and the meta-training of Meta-LSTM on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_episodes import numbered

from regularized_lopt import regularizers, upstream
from regularized_lopt.estimators.truncated_grad import RegularizedTruncatedGrad
from regularized_lopt.estimators.truncated_step import RegularizedTruncatedStep
from regularized_lopt.learned_optimizers import MetaLSTMLOpt
from regularized_lopt.outer_training.curriculum import (
    CurriculumOuterState,
    CurriculumTruncationSchedule,
)
from regularized_lopt.tasks import episodes
from regularized_lopt.tasks.few_shot import FewShotFamily

KEY = jax.random.PRNGKey(0)
T = 3


def family(**given):
    return FewShotFamily("Digits", ways=2, shots=3, queries=4, channels=4, blocks=1, **given)


def problem(own, **smoothing):
    step = RegularizedTruncatedStep(
        own, MetaLSTMLOpt(own.param_shapes(), hidden_size=4), CurriculumTruncationSchedule()
    )
    term = regularizers.Smoothing(over_steps="sum", **smoothing) if smoothing else None
    return RegularizedTruncatedGrad(step, unroll_length=T, smoothing=term)


OUTER = CurriculumOuterState(jnp.asarray(0), jnp.asarray(T))


@functools.cache
def estimated(batch_norm="support", **smoothing):
    return estimate(problem(family(batch_norm=batch_norm), **smoothing))


def estimate(one):
    theta = one.learned_opt.init(KEY)
    state = one.init_worker_state(upstream.WorkerWeights(theta, None, OUTER), KEY)
    return jax.jit(one.estimate)(theta, state, KEY, one.get_datas(), OUTER)


def parts(own, split):
    data = own.datasets.unroll_data(split)
    return data["train"], data["outer"]


def test_support_and_query_are_those_of_the_tasks_episode():
    own = family()
    support, query = parts(own, "outer_valid")
    task = own.task_fn(KEY)
    params, state = task.init_with_state(KEY)
    episode = episodes.draw(own.datasets._of_classes["valid"], KEY, 2, 3, 4)
    logits, _ = jax.jit(own.apply, static_argnums=3)(params, state, episode.support, 6)
    wanted = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(6), episode.support_labels])
    judge = jax.jit(task.loss_with_state_and_aux)
    found, _, aux = judge(params, state, KEY, support)
    assert found == pytest.approx(float(wanted), rel=1e-5)
    hits = jnp.mean(jnp.argmax(logits, axis=1) == episode.support_labels)
    assert aux["accuracy"] == pytest.approx(float(hits))
    assert judge(params, state, KEY, query)[0] != found


def numpy_norm(x, mean, variance, scale, offset):
    shape = (-1, 1, 1, 1)
    x = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-3)
    return x * scale.reshape(shape) + offset.reshape(shape)


def first_block(own, params, images):
    """The first convolution in NumPy, [c, h, w, batch]."""
    w, b = (np.asarray(params["conv2_d"][name], np.float64) for name in ("w", "b"))
    x = np.pad(np.asarray(images, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return np.einsum("nhwcij,ijco->ohwn", windows, w) + b.reshape(-1, 1, 1, 1)


def test_running_statistics_are_pytorchs():
    own = family()
    params, state = own.init(KEY)
    images = jax.random.uniform(KEY, (6, 8, 8, 1))
    _, after = own.apply(params, state, images, 6)
    x = first_block(own, params, images).reshape(4, -1)
    found = after["batch_norm"]
    np.testing.assert_allclose(found["mean"], 0.95 * x.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(found["variance"], 0.05 + 0.95 * x.var(axis=1, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("batch_norm", ["support", "published"])
def test_whose_statistics_the_query_is_normalized_by(batch_norm):
    """At test no image of the query changes what another is taken for; published: in training."""
    own = family(batch_norm=batch_norm)
    task = own.task_fn(KEY)
    params, state = task.init_with_state(KEY)
    support, _ = parts(own, "train")
    _, state = task.loss_with_state(params, state, KEY, support)
    for split in ("train", "test"):
        _, query = parts(own, split)
        name = "train" if split == "train" else "test"
        episode = own.draw(own.datasets._of_classes[name], KEY)
        others = jnp.concatenate([episode.query[:1], jnp.zeros_like(episode.query[1:])])
        logits = [
            task._logits(params, state, query, episode._replace(query=images))[0][0]
            for images in (episode.query, others)
        ]
        alone = batch_norm == "support" or split == "test"
        assert np.allclose(*logits, atol=1e-5) == alone


def test_the_supports_statistics_are_those_of_its_images_under_the_params_at_hand():
    own = family()
    params, state = own.init(KEY)
    images = jax.random.uniform(KEY, (9, 8, 8, 1))
    both, _ = own.apply(params, state, images, 6)
    alone, _ = own.apply(params, state, images[:6], 6)
    np.testing.assert_allclose(both[:6], alone, atol=1e-5)
    stale = jax.tree.map(lambda x: x + 1, state)
    np.testing.assert_array_equal(own.apply(params, stale, images, 6)[0], both)


@pytest.mark.parametrize("batch_norm", ["support", "published"])
def test_strength_0_is_plain_to_the_bit(batch_norm):
    plain, zero = estimated(batch_norm), estimated(batch_norm, strength=0.0)
    assert np.isfinite(plain.mean_loss)
    assert plain.mean_loss == zero.mean_loss
    jax.tree.map(np.testing.assert_array_equal, plain.grad, zero.grad)
    jax.tree.map(np.testing.assert_array_equal, plain.unroll_state, zero.unroll_state)


def test_another_strength_changes_the_gradient_of_the_optimizer_alone():
    plain, other = estimated("support"), estimated("support", strength=1.0)
    jax.tree.map(np.testing.assert_array_equal, plain.unroll_state, other.unroll_state)
    for name in ("lstm_0", "linear", "memory"):
        assert any(
            (a != b).any()
            for a, b in zip(
                jax.tree.leaves(plain.grad[name]), jax.tree.leaves(other.grad[name]), strict=True
            )
        )
    # The learner's start is no part of the optimizer as a function.
    jax.tree.map(np.testing.assert_array_equal, plain.grad["initial"], other.grad["initial"])


def test_smoothing_sums_over_inner_steps():
    plain, one = estimated("support"), estimated("support", strength=1.0)
    mean = RegularizedTruncatedGrad(
        problem(family()).truncated_step,
        unroll_length=T,
        smoothing=regularizers.Smoothing(strength=T),
    )
    other = estimate(mean)
    for a, b, c in zip(*map(jax.tree.leaves, (one.grad, other.grad, plain.grad)), strict=True):
        np.testing.assert_allclose(a - c, b - c, atol=1e-6)


def test_an_unroll_stores_little_beside_the_optimizers_state():
    """Of each inner step: params, gradient, LSTM and gates, and not what led to them."""
    own = FewShotFamily("Digits", ways=2, shots=10, queries=2, channels=16, blocks=2)
    bytes_at = {}
    for length in (2, 12):
        step = RegularizedTruncatedStep(
            own, MetaLSTMLOpt(own.param_shapes(), hidden_size=4), CurriculumTruncationSchedule()
        )
        one = RegularizedTruncatedGrad(step, unroll_length=length)
        theta = one.learned_opt.init(KEY)
        outer = CurriculumOuterState(jnp.asarray(0), jnp.asarray(length))
        state = one.init_worker_state(upstream.WorkerWeights(theta, None, outer), KEY)
        compiled = jax.jit(one.estimate).lower(theta, state, KEY, one.get_datas(), outer).compile()
        bytes_at[length] = compiled.memory_analysis().temp_size_in_bytes
    coordinates = sum(x.size for x in jax.tree.leaves(theta["initial"]))
    a_step = 4 * coordinates * (1 + 1 + 2 * 4 + 2)
    assert (bytes_at[12] - bytes_at[2]) / 10 < 1.5 * a_step


def test_your_own_images_are_a_family():
    own = FewShotFamily(
        episodes.from_arrays(*numbered(12, 10), max_value=120.0),
        ways=2,
        shots=1,
        queries=2,
        channels=4,
        blocks=1,
    )
    assert own.name == "FewShot_own_2way_1shot"
    assert np.isfinite(estimate(problem(own)).mean_loss)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ways": 3}, "ways = 3: the valid split has 2 classes"),
        ({"shots": 200}, r"shots \+ queries = 200 \+ 4"),
        ({"batch_norm": "batch"}, "Unknown FewShotFamily.batch_norm 'batch'"),
        ({"channels": 0}, "FewShotFamily.channels = 0"),
        ({"dataset": "Mnits"}, "Did you mean 'Mnist'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        FewShotFamily(**{"dataset": "Digits", "ways": 2, "shots": 3, "queries": 4, **given})
    assert "\n" not in str(caught.value).partition("\n  In call to configurable")[0]

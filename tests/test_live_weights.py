"""Dead weights are those that no data reaches, whatever the architecture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import tasks
from regularized_lopt.measure import live_weights as live_lib
from regularized_lopt.measure.live_weights import live_weights
from regularized_lopt.tasks import image, networks

MLP = {
    "sigmoid": networks.mlp([6], jax.nn.sigmoid),
    "relu": networks.mlp([5, 4], jax.nn.relu),
    "tanh": networks.mlp([3], jnp.tanh),
}
CNN = {"conv": networks.conv_16x32("SAME"), "lenet": networks.lenet("SAME")}


def image_task(network, raw=None, monkeypatch=None):
    """On Digits, or on images that are given."""
    datasets = image.ImageDatasets("Digits", "meta_test", 8)
    if raw is not None:
        datasets.host_arrays = raw.__getitem__
    return tasks.ImageTask("any", network, datasets)


def images(seen, seed, rare=False):
    """Training and test images of 8 x 8 pixels that are black but where `seen`."""
    rng = np.random.default_rng(seed)
    found = {}
    for split, count in (("train", 700), ("test", 40)):
        image = rng.integers(1, 17, (count, 8, 8, 1), np.uint8) * seen[..., None]
        if rare:  # Every pixel in one image alone, the last of its split's in a batch of its own.
            keep = np.arange(64) % count if split == "test" else np.full(64, count - 1)
            image = image * (np.arange(count)[:, None] == keep).reshape(count, 8, 8, 1)
        found[split] = {"image": image.astype(np.uint8), "label": np.zeros(count, np.int32)}
    return found


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), rare=st.booleans(), name=st.sampled_from(sorted(MLP)))
def test_rows_of_black_pixels_are_dead_in_an_mlp(seed, rare, name):
    """Also where a pixel is black in all images but one."""
    seen = np.random.default_rng(seed).uniform(size=(8, 8)) < 0.7
    live = live_weights(image_task(MLP[name], images(seen, seed, rare)))
    first, *others = (live[module] for module in sorted(live))
    np.testing.assert_array_equal(
        first["w"], np.broadcast_to(seen.reshape(-1, 1), first["w"].shape)
    )
    assert first["b"].all()
    assert all(leaf.all() for leaf in jax.tree.leaves(others))


@pytest.mark.parametrize("name", CNN)
def test_nothing_is_dead_in_a_cnn(name):
    seen = np.pad(np.ones((4, 4), bool), 2)
    live = live_weights(image_task(CNN[name], images(seen, 0)))
    assert all(leaf.all() for leaf in jax.tree.leaves(live))


@pytest.mark.parametrize("name", ["ImageMLP_Digits_20_Relu", "ImageMLP_Digits_20x20_Sigmoid"])
def test_dead_weights_change_no_output_and_live_ones_do(name):
    """On all data of Digits, at params of the task's own init; see the definition."""
    task = tasks.get(name)
    live = live_weights(task)
    raw = [task.datasets.host_arrays(split) for split in ("train", "test")]
    every = task.datasets.normalize({k: np.concatenate([one[k] for one in raw]) for k in raw[0]})
    black = every["image"].reshape(len(every["label"]), -1).max(axis=0) == 0
    assert 1 <= black.sum() < 10
    assert sum(int((~leaf).sum()) for leaf in jax.tree.leaves(live)) == 20 * black.sum()

    params = task.init(jax.random.PRNGKey(0))
    moved = jax.tree.map(lambda w, of: jnp.where(of, w, w + 1e3), params, live)
    before, after = (task.logits(p, every["image"]) for p in (params, moved))
    np.testing.assert_array_equal(before, after)
    # Of some of the inits every live weight changes some logit (a ReLU may be shut in one of them).
    reached = jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), live)
    for seed in range(20):
        params = task.init(jax.random.PRNGKey(seed))
        grads = jax.grad(lambda p: jnp.sum(task.logits(p, every["image"])[:, 0]))(params)
        reached = jax.tree.map(lambda old, g: old | (np.asarray(g) != 0), reached, grads)
    first = min(live)
    np.testing.assert_array_equal(reached[first]["w"], live[first]["w"])


def test_masks_are_like_the_params_and_computed_once(monkeypatch):
    task = tasks.get("Conv_Digits_16x32")
    live = live_weights(task)
    params = task.init(jax.random.PRNGKey(0))
    assert jax.tree.map(np.shape, live) == jax.tree.map(np.shape, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(live)} == {np.dtype(bool)}
    monkeypatch.setattr(live_lib, "_computed", None)
    assert live_weights(task) is live

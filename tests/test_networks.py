"""Networks: sizes of the paper's, and Haiku's layers."""

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import tasks
from regularized_lopt.tasks import networks

KEY = jax.random.PRNGKey(0)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ImageMLP_Mnist_20_Sigmoid", 15_910),
        ("Conv_Mnist_16x32", 160 + 16 * 32 * 25 + 32 + 9 * 9 * 32 * 10 + 10),
        ("Conv_Cifar10_16x32", 448 + 16 * 32 * 25 + 32 + 11 * 11 * 32 * 10 + 10),
        ("Conv_Digits_16x32", 160 + 16 * 32 * 25 + 32 + 4 * 4 * 32 * 10 + 10),
        # The smoothing paper's: 784-32-10, 784-32-32-10, its CNN and its LeNet.
        ("ImageMLP_Mnist_32_Relu", 785 * 32 + 33 * 10),
        ("ImageMLP_Mnist_32x32_Relu", 785 * 32 + 33 * 32 + 33 * 10),
        ("TwiceStridedConv_Cifar10_32x32x32", 20_682),
        ("LeNet_Mnist_10x20x50", 260 + 10 * 20 * 25 + 20 + 321 * 50 + 51 * 10),
        ("LeNet_Mnist_10x20x50_Dropout05", 260 + 10 * 20 * 25 + 20 + 321 * 50 + 51 * 10),
    ],
)
def test_networks_have_the_papers_shapes(name, size):
    params = jax.eval_shape(tasks.get(name).init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size


@settings(max_examples=10)
@given(
    size=st.integers(1, 5),
    stride=st.integers(1, 3),
    with_bias=st.booleans(),
    padding=st.sampled_from(["VALID", "SAME"]),
    channels=st.integers(1, 3),
    pixels=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)
def test_convolutions_and_pools_are_haiku_s(size, stride, with_bias, padding, channels, pixels):
    """The same params, outputs and gradients as hk.Conv2D, hk.max_pool and hk.avg_pool."""
    x = np.random.default_rng(size).normal(size=(2, *pixels, channels)).astype(np.float32)

    def network(conv, pool):
        return hk.without_apply_rng(hk.transform(lambda x: pool(conv(x)).sum(axis=(1, 2))))

    def batch_last(layer):
        return lambda x: jnp.transpose(layer(jnp.transpose(x, (3, 1, 2, 0))), (3, 1, 2, 0))

    ours = network(
        lambda x: batch_last(networks.Conv2D(4, size, padding, stride, with_bias))(x),
        batch_last(lambda x: networks.max_pool(x, 1)),
    )
    theirs = network(
        lambda x: hk.Conv2D(4, size, stride, padding=padding, with_bias=with_bias)(x),
        lambda x: hk.max_pool(x, 1, 1, "VALID"),
    )
    window = (1, 2, 2, 1)

    @jax.jit  # All of it: one by one, operations are compiled for these shapes one by one.
    def found(x):
        params = [net.init(jax.random.PRNGKey(1), x) for net in (ours, theirs)]
        grads = [
            jax.grad(lambda p, net=net: jnp.sum(jnp.sin(net.apply(p, x))))(params[0])
            for net in (ours, theirs)
        ]
        largest = batch_last(networks.max_pool)(x), hk.max_pool(x, window, window, "VALID")
        means = batch_last(networks.avg_pool)(x), hk.avg_pool(x, window, window, "VALID")
        return params, grads, largest, means

    params, grads, largest, means = found(x)
    chex.assert_trees_all_equal(*params)
    chex.assert_trees_all_close(*grads, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(*largest)
    np.testing.assert_allclose(*means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("padding", "pixels"), [("VALID", 28), ("SAME", 8)])
@pytest.mark.parametrize(
    ("ours", "layers", "hidden_sizes", "count"),
    [
        (networks.conv_16x32, [(16, 3), "pool", (32, 5)], [], 38_922),
        (networks.conv_32x32x32, [(32, 3), "pool", (32, 3), "pool", (32, 3)], [], 21_706),
        (networks.lenet, [(6, 5), "pool", (16, 5), "pool"], [120, 84], 44_426),
        (networks.lenet_10x20x50, [(10, 5), "pool", (20, 5), "pool"], [50], 21_840),
        (
            networks.twice_strided_conv_32x32x32,
            [(32, 3, 2), (32, 3, 2), (32, 3), "mean"],
            [],
            20_106,
        ),
    ],
)
def test_cnns_are_those_of_haikus_layers(ours, layers, hidden_sizes, count, padding, pixels):
    def theirs(x):
        for layer in layers:
            if layer == "pool":
                x = hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            elif layer == "mean":
                x = hk.avg_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            else:
                x = jax.nn.relu(hk.Conv2D(*layer, padding=padding)(x))
        return hk.nets.MLP([*hidden_sizes, 10])(hk.Flatten()(x))

    x = jax.random.uniform(jax.random.PRNGKey(0), (3, pixels, pixels, 1))
    own = ours(padding)
    nets = [hk.without_apply_rng(hk.transform(f)) for f in (lambda x: own(x, True), theirs)]
    params, same = jax.jit(lambda key: [net.init(key, x) for net in nets])(jax.random.PRNGKey(1))
    leaves = jax.tree.leaves(same)
    chex.assert_trees_all_equal(jax.tree.leaves(params), leaves)
    if padding == "VALID":
        assert sum(leaf.size for leaf in leaves) == count

    @jax.jit
    def gradients(*params):
        return [
            jax.value_and_grad(lambda p, net=net: jnp.sum(jnp.sin(net.apply(p, x))))(p)
            for net, p in zip(nets, params, strict=True)
        ]

    (found, grad), (expected, theirs_grad) = gradients(params, same)
    chex.assert_trees_all_close(found, expected, rtol=1e-3)
    chex.assert_trees_all_close(
        jax.tree.leaves(grad), jax.tree.leaves(theirs_grad), rtol=1e-3, atol=1e-4
    )


def test_units_are_dropped_in_training_alone():
    """Each input of the last layer is 0 with probability 1/2, else doubled; its mean stays."""
    x = jax.random.uniform(KEY, (4, 28, 28, 1))
    plain, dropping = (hk.transform(networks.lenet_10x20x50("VALID", rate)) for rate in (0.0, 0.5))
    params, same = jax.jit(lambda x: [net.init(KEY, x, False) for net in (dropping, plain)])(x)
    chex.assert_trees_all_equal(params, same)
    wanted = plain.apply(params, None, x, True)
    np.testing.assert_array_equal(dropping.apply(params, None, x, False), wanted)
    # The output layer as the identity shows its inputs.
    shown = {**params, "linear_1": {"w": jnp.eye(50, 10), "b": jnp.zeros(10)}}
    kept = plain.apply(shown, None, x, True)
    keys = jax.random.split(KEY, 500)
    drawn = jax.jit(jax.vmap(lambda key: dropping.apply(shown, key, x, True)))(keys)
    assert np.all(np.isclose(drawn, 0) | np.isclose(drawn, 2 * kept, rtol=1e-5))
    share = np.mean(np.asarray(drawn)[:, kept > 1e-3] == 0)
    assert abs(share - 0.5) < 0.02  # Of some 8,500 draws: 3.7 standard deviations.


def test_layer_normalization_is_before_the_activation():
    """Against float64 NumPy."""
    task = tasks.get("LayerNormMLP_Cifar10_32x32_Relu")
    params = task.init(KEY)
    x = np.random.default_rng(0).random((3, 32, 32, 3))
    found = task.logits(params, jnp.asarray(x, jnp.float32))
    out = x.reshape(3, -1)
    layers, norms = (
        [params[name] for name in sorted(params) if name.startswith(kind)]
        for kind in ("linear", "layer_norm")
    )
    for layer, norm in zip(layers, [*norms, None], strict=True):
        out = out @ np.asarray(layer["w"], np.float64) + np.asarray(layer["b"])
        if norm is not None:
            centred = out - out.mean(axis=1, keepdims=True)
            out = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
            out = np.maximum(out * norm["scale"] + norm["offset"], 0)
    np.testing.assert_allclose(found, out, rtol=1e-3, atol=1e-4)

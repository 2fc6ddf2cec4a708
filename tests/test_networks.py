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
    ],
)
def test_networks_have_the_paper_s_shapes(name, size):
    params = jax.eval_shape(tasks.get(name).init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size


@settings(max_examples=10)
@given(
    size=st.integers(1, 5),
    padding=st.sampled_from(["VALID", "SAME"]),
    channels=st.integers(1, 3),
    stride=st.integers(1, 3),
    pixels=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)
def test_convolutions_and_pools_are_haiku_s(size, padding, channels, stride, pixels):
    """The same params, outputs and gradients as hk.Conv2D and hk.max_pool."""
    x = jax.random.normal(jax.random.PRNGKey(size), (2, *pixels, channels))

    def network(conv, pool):
        return hk.without_apply_rng(hk.transform(lambda x: pool(conv(x)).sum(axis=(1, 2))))

    def batch_last(layer):
        return lambda x: jnp.transpose(layer(jnp.transpose(x, (3, 1, 2, 0))), (3, 1, 2, 0))

    ours = network(
        lambda x: batch_last(networks.Conv2D(4, size, padding, stride))(x),
        batch_last(lambda x: networks.max_pool(x, 1)),
    )
    theirs = network(
        lambda x: hk.Conv2D(4, size, stride, padding=padding)(x),
        lambda x: hk.max_pool(x, 1, 1, "VALID"),
    )
    params = ours.init(jax.random.PRNGKey(1), x)
    chex.assert_trees_all_equal(params, theirs.init(jax.random.PRNGKey(1), x))
    grads = [
        jax.grad(lambda p, net=net: jnp.sum(jnp.sin(net.apply(p, x))))(params)
        for net in (ours, theirs)
    ]
    chex.assert_trees_all_close(*grads, rtol=1e-3, atol=1e-4)
    window = (1, 2, 2, 1)
    np.testing.assert_array_equal(
        batch_last(networks.max_pool)(x), hk.max_pool(x, window, window, padding="VALID")
    )


@pytest.mark.parametrize(("padding", "pixels"), [("VALID", 28), ("SAME", 8)])
@pytest.mark.parametrize(
    ("ours", "layers", "hidden_sizes", "count"),
    [
        (networks.conv_16x32, [(16, 3), "pool", (32, 5)], [], 38_922),
        (networks.conv_32x32x32, [(32, 3), "pool", (32, 3), "pool", (32, 3)], [], 21_706),
        (networks.lenet, [(6, 5), "pool", (16, 5), "pool"], [120, 84], 44_426),
    ],
)
def test_cnns_are_those_of_haikus_layers(ours, layers, hidden_sizes, count, padding, pixels):
    def theirs(x):
        for layer in layers:
            if layer == "pool":
                x = hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            else:
                x = jax.nn.relu(hk.Conv2D(*layer, padding=padding)(x))
        return hk.nets.MLP([*hidden_sizes, 10])(hk.Flatten()(x))

    x = jax.random.uniform(jax.random.PRNGKey(0), (3, pixels, pixels, 1))
    nets = [hk.without_apply_rng(hk.transform(f)) for f in (ours(padding), theirs)]
    params = nets[0].init(jax.random.PRNGKey(1), x)
    same = nets[1].init(jax.random.PRNGKey(1), x)
    leaves, structure = jax.tree.flatten(same)
    chex.assert_trees_all_equal(jax.tree.leaves(params), leaves)
    if padding == "VALID":
        assert sum(leaf.size for leaf in leaves) == count
    (found, grad), (expected, theirs_grad) = (
        jax.value_and_grad(lambda p, net=net: jnp.sum(jnp.sin(net.apply(p, x))))(p)
        for net, p in zip(nets, (params, jax.tree.unflatten(structure, leaves)), strict=True)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-3)
    chex.assert_trees_all_close(
        jax.tree.leaves(grad), jax.tree.leaves(theirs_grad), rtol=1e-3, atol=1e-4
    )

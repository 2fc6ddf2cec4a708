"""BatchNorm and ResNet-18."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regularized_lopt import tasks
from regularized_lopt.tasks import networks, resnet

KEY = jax.random.PRNGKey(0)
NAMES = ("scale", "offset")


def test_batch_norm_is_that_of_numpy(x64):
    """Outputs and running statistics of two batches, then in evaluation; eps 1e-5, decay 0.9."""
    batches = np.random.default_rng(0).normal(2.0, 3.0, (2, 3, 4, 5, 7))  # c h w batch.
    net = hk.without_apply_rng(
        hk.transform_with_state(lambda x, train: networks.BatchNorm(axis=0)(x, train))
    )
    params, state = net.init(KEY, batches[0], False)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
    scale, offset = (np.reshape(params["batch_norm"][name], (3, 1, 1, 1)) for name in NAMES)
    mean, variance = np.zeros((3, 1, 1, 1)), np.ones((3, 1, 1, 1))
    for x in batches:
        found, state = net.apply(params, state, x, True)
        at = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
        wanted = (x - at[0]) / np.sqrt(at[1] + 1e-5) * scale + offset
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
        mean = 0.9 * mean + 0.1 * at[0]
        variance = 0.9 * variance + 0.1 * x.var((1, 2, 3), keepdims=True, ddof=1)
    np.testing.assert_allclose(state["batch_norm"]["mean"], mean.ravel(), rtol=1e-12)
    np.testing.assert_allclose(state["batch_norm"]["variance"], variance.ravel(), rtol=1e-12)
    found, after = net.apply(params, state, batches[0], False)
    wanted = (batches[0] - mean) / np.sqrt(variance + 1e-5) * scale + offset
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
    assert after is state or jax.tree.all(jax.tree.map(np.array_equal, after, state))


@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (4, 1), (4, 2)])
def test_a_block_is_that_of_haiku_s_resnet(channels, stride):
    """In training, the params matched by name; where the shape stays, what passes by does."""
    project = stride != 1 or channels != 3
    x = jax.random.normal(KEY, (2, 6, 6, 3))

    def batch_last(x):
        block = resnet.Block(channels, stride)
        return jnp.transpose(block(jnp.transpose(x, (3, 1, 2, 0)), True), (3, 1, 2, 0))

    def haiku_s(x):
        norm = {"create_scale": True, "create_offset": True, "decay_rate": 0.9}
        block = hk.nets.ResNet.BlockV1(channels, stride, project, norm, bottleneck=False)
        return block(x, is_training=True, test_local_stats=False)

    ours, theirs = (hk.transform_with_state(f) for f in (batch_last, haiku_s))
    params, state = ours.init(KEY, x)
    other, other_state = theirs.init(KEY, x)
    order = [*(["shortcut"] if project else []), "0", "1"]
    matched = {}
    for place, part in enumerate(order):
        suffix = f"_{place}" if place else ""
        named = {"conv": "shortcut_conv", "norm": "shortcut_batchnorm"}
        if part != "shortcut":
            named = {"conv": f"conv_{part}", "norm": f"batchnorm_{part}"}
        matched[f"block_v1/~/{named['conv']}"] = params[f"block/conv2_d{suffix}"]
        matched[f"block_v1/~/{named['norm']}"] = {
            key: jnp.reshape(leaf, (1, 1, 1, -1))
            for key, leaf in params[f"block/batch_norm{suffix}"].items()
        }
    assert jax.tree.map(jnp.shape, matched) == jax.tree.map(jnp.shape, dict(other))
    found, _ = ours.apply(params, state, None, x)
    wanted, _ = theirs.apply(matched, other_state, None, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size"), [("ResNet18_Cifar10_64", 11_173_962), ("ResNet18_Cifar100_64", 11_220_132)]
)
def test_resnet18_has_so_many_params(name, size):
    params, state = jax.eval_shape(tasks.get(name).init_with_state, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size
    # A mean and a variance for every channel that is normalized: 1 + 16 + 3 layers.
    assert len(jax.tree.leaves(state)) == 2 * 20

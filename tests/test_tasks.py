import dataclasses
import shutil

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import needs_mnist
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_optimization import eval_training
from learned_optimization.tasks import test_utils

from regularized_lopt import tasks, upstream
from regularized_lopt.tasks import data, networks, sources

KEY = jax.random.PRNGKey(0)
OFFLINE = [name for name in tasks.names() if "Digits" in name or "Cubic" in name]


PAPERS = ("ImageMLP_{}_20_Sigmoid", "ImageMLP_{}_20_Relu", "Conv_{}_16x32")
TRANSFER = (
    *(f"ImageMLP_{{}}_{size}_{f}" for size in ("40", "20x20") for f in ("Sigmoid", "Relu")),
    "Conv_{}_32x32x32",
    "LeNet_{}",
)
REGRESSION = {"CubicRegression", "CubicRegressionFamily"}


def of(dataset, names):
    return {name.format(dataset) for name in names}


def test_names():
    expected = [of(dataset, (*PAPERS, *TRANSFER)) for dataset in sources.SPECS]
    assert set(tasks.names()) == REGRESSION.union(*expected)
    assert set(sources.SPECS) == {"Digits", "Mnist", "FashionMnist", "Cifar10"}


# Networks to transfer to on one dataset: elsewhere only the image's shape differs.
@pytest.mark.parametrize(
    "name",
    sorted(REGRESSION.union(of("Mnist", TRANSFER), *(of(name, PAPERS) for name in sources.SPECS))),
)
def test_passes_upstream_s_smoke_test(name):
    """On abstract batches: no data is read, so that all tasks run everywhere."""
    task = tasks.get(name)
    if isinstance(task, upstream.TaskFamily):
        test_utils.smoketest_task_family(task)
    else:
        test_utils.smoketest_task(task)


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


def test_runs_in_upstream_s_eval_training_with_its_baselines():
    task = tasks.get("ImageMLP_Digits_20_Relu")
    curves = eval_training.single_task_training_curves(
        task, upstream.Adam(1e-2), 60, KEY, eval_every=60, last_eval_batches=5
    )
    assert curves["eval/test/accuracy"][-1] > curves["eval/test/accuracy"][0] + 0.3
    assert curves["train/loss"][-1] < 1.5


def test_accuracy_is_counted():
    task = tasks.get("ImageMLP_Digits_20_Relu")
    batch = next(task.datasets.test)
    params = task.init(KEY)
    loss, aux = task.loss_and_aux(params, KEY, batch)
    logits = np.asarray(task.logits(params, batch["image"]), np.float64)
    assert float(aux["accuracy"]) == pytest.approx(np.mean(logits.argmax(1) == batch["label"]))
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -log_probabilities[np.arange(len(logits)), batch["label"]].mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_wrong_image_shapes_are_refused_with_the_right_one():
    task = tasks.get("ImageMLP_Mnist_20_Relu")
    batch = {"image": jnp.zeros((2, 8, 8, 1)), "label": jnp.zeros(2, jnp.int32)}
    with pytest.raises(ValueError, match=r"shape \(2, 8, 8, 1\); it takes \[batch, 28, 28, 1\]"):
        task.loss(jax.eval_shape(task.init, KEY), KEY, batch)


def test_cubic_regression_learns_the_polynomial():
    task = tasks.get("CubicRegression")
    curves = eval_training.single_task_training_curves(
        task, upstream.Adam(3e-2), 400, KEY, eval_every=400, last_eval_batches=1
    )
    assert curves["eval/train/r2"][-1] > 0.8
    cubic = task.cubic
    x = np.asarray(cubic.x, np.float64)
    powers = np.stack([x**0, x, x**2, x**3]).T @ np.asarray(cubic.coefficients, np.float64)
    residual = np.asarray(cubic.y) - powers
    assert 0.1 < residual.std() < 0.6  # The noise of 0.3, on 30 points.


def test_splits_are_disjoint_cover_the_training_set_and_are_fixed():
    splits = data.meta_splits(1000)
    joined = np.concatenate(list(splits.values()))
    np.testing.assert_array_equal(np.sort(joined), np.arange(1000))
    assert {name: len(index) for name, index in splits.items()} == {
        "meta_train": 450,
        "meta_valid": 50,
        "meta_test_train": 500,
    }
    for name, index in data.meta_splits(1000).items():
        np.testing.assert_array_equal(index, splits[name])
    assert not np.array_equal(data.meta_splits(1000, seed=1)["meta_train"], splits["meta_train"])


def test_phases_see_their_own_data_only():
    """No image of meta-training is seen at meta-test, and the test set is never trained on."""
    seen = {}
    for phase in ("meta_train", "meta_test"):
        datasets = data.ResidentDatasets("Digits", phase)
        seen[phase] = {
            split: {row.tobytes() for row in datasets.host_arrays(split)["image"]}
            for split in ("train", "outer_valid", "test")
        }
    train, test = seen["meta_train"]["train"], seen["meta_test"]["train"]
    # The digits hold a few identical images; indices are disjoint (see above), images nearly so.
    assert len(train & test) <= 2
    assert len(seen["meta_test"]["test"] & (train | test)) <= 2
    assert seen["meta_train"]["test"] == seen["meta_train"]["outer_valid"]


def test_batches_drawn_on_the_device_are_uniform_and_match_the_iterators_form():
    datasets = data.ResidentDatasets("Digits", "meta_test", batch_size=50)
    arrays = datasets.arrays("train")
    batch = jax.jit(datasets.sample)(arrays, KEY)
    host = next(datasets.train)
    for name, spec in datasets.abstract_batch.items():
        assert batch[name].shape == host[name].shape == spec.shape
        assert batch[name].dtype == host[name].dtype == spec.dtype
    assert 0.9 < float(batch["image"].max()) <= 1.0
    labels = jax.vmap(lambda key: datasets.sample(arrays, key)["label"])(jax.random.split(KEY, 200))
    counts = np.bincount(np.ravel(labels), minlength=10) / labels.size
    np.testing.assert_allclose(
        counts, np.bincount(np.asarray(arrays["label"])) / len(arrays["label"]), atol=0.02
    )


def test_a_damaged_cache_says_what_to_delete(tmp_path, monkeypatch):
    monkeypatch.setenv("REGULARIZED_LOPT_CACHE_DIR", str(tmp_path))
    sources.load_arrays("Digits")
    (directory,) = tmp_path.iterdir()
    file = directory / "train_image.npy"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(sources.DataUnavailableError, match="Delete that directory") as error:
        sources.load_arrays("Digits")
    assert str(directory) in str(error.value)


def test_preparing_is_atomic(tmp_path, monkeypatch):
    monkeypatch.setenv("REGULARIZED_LOPT_CACHE_DIR", str(tmp_path))
    saved = []

    def failing_save(path, array):
        saved.append(path)
        if len(saved) == 3:
            raise OSError("No space left on device")

    monkeypatch.setattr(sources.np, "save", failing_save)
    with pytest.raises(OSError, match="No space left"):
        sources.load_arrays("Digits")
    assert list(tmp_path.iterdir()) == []


def test_without_network_and_data_the_error_names_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("REGULARIZED_LOPT_CACHE_DIR", str(tmp_path))

    def offline(version):
        raise ConnectionError("Name or service not known")

    spec = sources.SPECS["Mnist"]
    monkeypatch.setitem(sources.SPECS, "Mnist", dataclasses.replace(spec, read=offline))
    with pytest.raises(sources.DataUnavailableError) as error:
        next(tasks.get("ImageMLP_Mnist_20_Relu").datasets.train)
    for hint in ("TFDS_DATA_DIR", "ImageMLP_Digits_20_Relu", "Name or service not known"):
        assert hint in str(error.value)


@needs_mnist
def test_mnist_is_mnist():
    arrays = sources.load_arrays("Mnist")
    assert arrays["train_image"].shape == (60_000, 28, 28, 1)
    assert arrays["test_image"].shape == (10_000, 28, 28, 1)
    assert np.bincount(arrays["test_label"]).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip
    assert isinstance(arrays["train_image"], np.memmap)
    assert arrays["train_image"].mean() == pytest.approx(33.318, abs=1e-2)


def test_refuses_unknown_datasets_phases_and_splits():
    with pytest.raises(ValueError, match="Did you mean 'Mnist'"):
        sources.load_arrays("mnist")
    with pytest.raises(ValueError, match="Did you mean 'meta_train'"):
        data.ResidentDatasets("Digits", "metatrain")
    with pytest.raises(ValueError, match="batch_size = 0"):
        data.ResidentDatasets("Digits", "meta_train", 0)
    with pytest.raises(ValueError, match="valid_fraction"):
        data.meta_splits(100, valid_fraction=1.5)


@settings(max_examples=6)
@given(
    size=st.integers(1, 5),
    padding=st.sampled_from(["VALID", "SAME"]),
    channels=st.integers(1, 3),
    pixels=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)
def test_convolutions_and_pools_are_haiku_s(size, padding, channels, pixels):
    """The same params, outputs and gradients as hk.Conv2D and hk.max_pool."""
    x = jax.random.normal(jax.random.PRNGKey(size), (2, *pixels, channels))

    def network(conv, pool):
        return hk.without_apply_rng(hk.transform(lambda x: pool(conv(x)).sum(axis=(1, 2))))

    def batch_last(layer):
        return lambda x: jnp.transpose(layer(jnp.transpose(x, (3, 1, 2, 0))), (3, 1, 2, 0))

    ours = network(
        lambda x: batch_last(networks.Conv2D(4, size, padding))(x),
        batch_last(lambda x: networks.max_pool(x, 1)),
    )
    theirs = network(
        lambda x: hk.Conv2D(4, size, padding=padding)(x), lambda x: hk.max_pool(x, 1, 1, "VALID")
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


def poisoned(**changes):
    """A reader of Digits with some arrays replaced by a function of what they are."""
    read = sources.SPECS["Digits"].read

    def poisoned_read(version):
        arrays = read(version)
        return {**arrays, **{key: change(arrays[key]) for key, change in changes.items()}}

    return dataclasses.replace(sources.SPECS["Digits"], read=poisoned_read)


def with_nan(images):
    images = images.astype(np.float32)
    images[3, 0, 0] = np.nan
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_image": with_nan}, "train images are float32, 1 of them not finite; .* uint8"),
        ({"test_label": lambda x: x.astype(np.int64)}, "test labels are int64; .* uint8"),
        ({"train_label": lambda x: x + 1}, r"train labels have a 10; they go from 0 to 9\."),
        ({"test_image": lambda x: x * 15}, r"test images have a pixel of 240; .* up to 16\."),
        (
            {"train_label": lambda x: x[:5]},
            r"train .* \(1438, 8, 8, 1\) and .* 5 labels",
        ),
        ({"test_image": lambda x: x[..., 0]}, r"test .* \(359, 8, 8\) .* takes \[n, 8, 8, 1\]"),
        (
            {"test_image": lambda x: x[:0], "test_label": lambda x: x[:0]},
            "test images have shape .* and n > 0",
        ),
    ],
)
def test_poisoned_data_are_refused_and_leave_no_cache(tmp_path, monkeypatch, changes, message):
    monkeypatch.setenv("REGULARIZED_LOPT_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(sources.SPECS, "Digits", poisoned(**changes))
    with pytest.raises(sources.BadDataError, match=f"Digits's {message}"):
        sources.load_arrays("Digits")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_image": lambda x: x * 0 + 3}, "train images are all the same: .* is 3"),
        ({"train_label": lambda x: x * 0 + 7}, "train labels are all 7: there is nothing to learn"),
    ],
)
def test_data_without_anything_to_learn_are_flagged(tmp_path, monkeypatch, changes, message):
    monkeypatch.setenv("REGULARIZED_LOPT_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(sources.SPECS, "Digits", poisoned(**changes))
    with pytest.warns(UserWarning, match=f"Digits's {message}"):
        sources.load_arrays("Digits")


def test_a_cache_with_a_flipped_label_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("REGULARIZED_LOPT_CACHE_DIR", str(tmp_path))
    labels = np.array(sources.load_arrays("Digits")["train_label"])
    labels[0] = 200
    np.save(next(tmp_path.iterdir()) / "train_label.npy", labels)
    with pytest.raises(sources.DataUnavailableError, match=r"have a 200; .* Delete that directory"):
        sources.load_arrays("Digits")


def test_a_run_that_has_begun_needs_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REGULARIZED_LOPT_CACHE_DIR", str(tmp_path))
    datasets = data.ResidentDatasets("Digits", "meta_train")
    datasets.arrays("train")
    shutil.rmtree(tmp_path)
    assert len(datasets.arrays("outer_valid")["label"]) > 0
    assert datasets.arrays("outer_valid") is datasets.arrays("test")
    assert not tmp_path.exists()

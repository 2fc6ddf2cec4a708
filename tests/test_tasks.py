"""Names of tasks, and each as upstream takes it."""

import ast
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import needs_tfds
from learned_optimization import eval_training
from learned_optimization.tasks import test_utils

from regularized_lopt import tasks, upstream
from regularized_lopt.tasks import sources

KEY = jax.random.PRNGKey(0)


TEN_CLASSES = ("Digits", "Mnist", "FashionMnist", "Cifar10", "FashionMnist8")
HUNDRED_CLASSES = {
    f"{name}_Cifar100_{size}"
    for name, size in (("TwiceStridedConv", "32x32x32"), ("ResNet18", "8"), ("ResNet18", "64"))
}
PAPERS = ("ImageMLP_{}_20_Sigmoid", "ImageMLP_{}_20_Relu", "Conv_{}_16x32")
TRANSFER = (
    *(f"ImageMLP_{{}}_{size}_{f}" for size in ("40", "20x20") for f in ("Sigmoid", "Relu")),
    "Conv_{}_32x32x32",
    "LeNet_{}",
    "ImageMLP_{}_32_Relu",
    "ImageMLP_{}_32x32_Relu",
    "TwiceStridedConv_{}_32x32x32",
    "LeNet_{}_10x20x50",
    "LeNet_{}_10x20x50_Dropout05",
)
STATEFUL = ("ImageMLP_{}_20_BatchNorm_Relu", "ResNet18_{}_8", "ResNet18_{}_64")
STARS = {
    "ImageMLP_FashionMnist8_32_Relu",
    "ImageMLP_FashionMnist_128x128_Relu",
    "StridedConv_Cifar10_32x64x64",
}
OTHERS = {
    *(f"LayerNormMLP_Cifar10_{sizes}_Relu" for sizes in ("32x32", "128x128x128")),
    *(f"ImageAE_{name}_32x8x32_Relu" for name in ("Digits", "FashionMnist8")),
    *(f"ImageAE_{name}_128x32x128_Relu" for name in ("FashionMnist", "Cifar10")),
    *(f"ESWrapped_{pairs}pair_ImageMLP_Digits_20_Relu" for pairs in (1, 8)),
    *(f"ESWrapped_{pairs}pair_ImageMLP_FashionMnist8_32_Relu" for pairs in (1, 8)),
    "LSTM_Python_32",
    "Transformer_Python_32x32",
}
PAIRS = {
    name.format(dataset)
    for name in ("ImageMLP_{}Pairs_32_Relu", "TwiceStridedConv_{}Pairs_32x32x32")
    for dataset in ("Digits", "Mnist", "FashionMnist", "Cifar10")
}
REGRESSION = {"CubicRegression", "CubicRegressionFamily"}


def of(dataset, names):
    return {name.format(dataset) for name in names}


def test_names():
    expected = [of(dataset, (*PAPERS, *TRANSFER, *STATEFUL)) for dataset in TEN_CLASSES]
    assert set(tasks.names()) == REGRESSION.union(STARS, HUNDRED_CLASSES, OTHERS, PAIRS, *expected)
    assert set(sources.SPECS) == {*TEN_CLASSES, "Cifar100"}


def test_no_name_is_one_of_upstream_s():
    """Else neither could be called by it in gin; by their text, for some need other packages."""
    from learned_optimization.tasks import fixed

    (directory,) = map(pathlib.Path, fixed.__path__)
    theirs = {
        node.name
        for file in directory.glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert "ImageMLP_FashionMnist8_Relu32" in theirs
    assert not theirs & set(tasks.names())


# Networks to transfer to on one dataset: elsewhere only the image's shape differs.
@pytest.mark.parametrize(
    "name",
    sorted(
        REGRESSION.union(
            STARS, OTHERS, of("Mnist", TRANSFER), *(of(name, PAPERS) for name in TEN_CLASSES)
        )
    ),
)
def test_passes_upstream_s_smoke_test(name):
    """On abstract batches: no data is read, so that all tasks run everywhere."""
    task = tasks.get(name)
    if isinstance(task, upstream.TaskFamily):
        test_utils.smoketest_task_family(task)
    else:
        test_utils.smoketest_task(task)


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


@needs_tfds
@pytest.mark.parametrize(
    ("ours", "theirs", "dataset"),
    [
        ("ImageMLP_FashionMnist8_32_Relu", "ImageMLP_FashionMnist8_Relu32", "image_mlp"),
        ("ImageMLP_FashionMnist_128x128_Relu", "ImageMLP_FashionMnist_Relu128x128", "image_mlp"),
        ("StridedConv_Cifar10_32x64x64", "Conv_Cifar10_32x64x64", "conv"),
    ],
)
def test_star_s_tasks_are_upstream_s_functions(ours, theirs, dataset):
    """The same inits, losses and gradients, leaf by leaf, on a batch of either's shape."""
    importlib.import_module(f"learned_optimization.tasks.fixed.{dataset}")
    ours, theirs = tasks.get(ours), tasks.get(theirs)
    params, same = ours.init(KEY), theirs.init(KEY)
    leaves = jax.tree.leaves(same)
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [leaf.shape for leaf in leaves]
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.random((8, *ours.datasets.image_shape), np.float32),
        "label": rng.integers(0, 10, 8).astype(np.int32),
    }
    expected, grad = jax.value_and_grad(theirs.loss)(same, KEY, batch)
    same = jax.tree.unflatten(jax.tree.structure(params), leaves)
    loss, own_grad = jax.value_and_grad(ours.loss)(same, KEY, batch)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(jax.tree.leaves(own_grad), jax.tree.leaves(grad), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    assert ours.normalizer(jnp.inf) == pytest.approx(float(theirs.normalizer(1e9)))


def test_dropout_is_part_of_the_training_loss_alone():
    task = tasks.get("LeNet_Digits_10x20x50_Dropout05")
    params, batch = task.init(KEY), next(task.datasets.test)
    first, again, other = (
        float(task.loss(params, jax.random.PRNGKey(k), batch)) for k in (1, 1, 2)
    )
    assert first == again != other
    plain = tasks.get("LeNet_Digits_10x20x50")
    np.testing.assert_array_equal(
        task.logits(params, batch["image"]), plain.logits(params, batch["image"])
    )
    assert plain.loss(params, KEY, batch) == plain.loss(params, jax.random.PRNGKey(1), batch)

"""Names of tasks, and each as upstream takes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learned_optimization import eval_training
from learned_optimization.tasks import test_utils

from regularized_lopt import tasks, upstream
from regularized_lopt.tasks import sources

KEY = jax.random.PRNGKey(0)


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

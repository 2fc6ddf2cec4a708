"""Tasks that have a loss and no accuracy, from a loss per example to a page."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regularized_lopt import tasks, upstream
from regularized_lopt.measure import programs, selections
from regularized_lopt.measure.flatness import FlatnessConfig
from regularized_lopt.measure.results import StudyResults
from regularized_lopt.report import markdown, write
from regularized_lopt.study import meta_test, train

KEY = jax.random.PRNGKey(0)
NAME, CLASSIFIER = "ImageAE_Digits_32x8x32_Relu", "ImageMLP_Digits_20_Relu"
SMALL = FlatnessConfig(radii=(0.01,), num_examples=16, num_steps=1, headline_starts=1, num_probes=0)


def page(directory, *found):
    """In Markdown."""
    markdown.write(write.write(StudyResults("Any", "", found), directory), directory / "page.md")
    return (directory / "page.md").read_text()


def test_a_whole_split_is_the_mean_over_all_of_its_examples():
    for name in (NAME, CLASSIFIER):
        task = tasks.get(name)
        params, raw = task.init(KEY), task.datasets.host_arrays("train")
        found = jax.jit(programs.whole_split, static_argnums=0)(task, params, raw)
        each = task.per_example(params, task.datasets.normalize(raw))
        assert set(found) == set(each)
        for what, values in each.items():
            expected = np.mean(np.asarray(values, np.float64))
            assert float(found[what]) == pytest.approx(expected, rel=1e-5)


def test_a_page_of_a_task_without_accuracy_shows_its_losses(tmp_path):
    opts = {"slow": upstream.SGD(0.1), "fast": upstream.SGD(1.0)}
    arguments = {"num_runs": 2, "num_steps": 12, "progress": False}
    found = meta_test(opts, NAME, baselines=(), flatness_config=SMALL, **arguments)
    assert "test_accuracy" not in found
    assert selections.quality_label(found) == "test loss"
    ends = selections.quality(selections.optimizer(found, "fast"))
    np.testing.assert_array_equal(ends, found["test_loss"].sel(optimizer="fast").values[..., -1])
    assert np.all(ends < selections.quality(selections.optimizer(found, "slow")))
    text = page(tmp_path, found)
    assert "Test loss at completion" in text
    assert "accuracy" not in text.lower()
    assert not (tmp_path / "table.csv").exists()
    (slow, fast) = csv.DictReader((tmp_path / "loss_table.csv").open())
    assert fast["test loss"].startswith(f"{ends.mean():.4g}"[:5])
    assert slow["vs slow (95%)"] == "" != fast["vs slow (95%)"]
    both = [train(opts, CLASSIFIER, **arguments), train(opts, NAME, **arguments)]
    text = page(tmp_path, *both)
    assert "Test loss in detail" in text
    assert "Test accuracy in detail" in text


def test_live_weights_of_a_task_without_images_are_refused_before_anything_runs():
    scales = FlatnessConfig(scales=("absolute", "relative", "live"))
    with pytest.raises(ValueError, match=r"FlatnessConfig\.scales = .* LSTM_Python_32 is none"):
        meta_test({"sgd": upstream.SGD(1.0)}, "LSTM_Python_32", flatness_config=scales)


def test_another_task_needs_a_loss_per_example_alone():
    class Means(tasks.ResidentTask):
        def init(self, key):
            return {"mean": jnp.zeros(())}

        def per_example(self, params, batch, key=None):
            return {"loss": (batch["image"].mean(axis=(1, 2, 3)) - params["mean"]) ** 2}

    task = Means("means", tasks.get(CLASSIFIER).datasets)
    assert not task.has_accuracy
    batch = next(task.datasets.train)
    loss, aux = task.loss_and_aux(task.init(KEY), KEY, batch)
    expected = np.mean(np.asarray(batch["image"], np.float64).mean(axis=(1, 2, 3)) ** 2)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert aux == {}

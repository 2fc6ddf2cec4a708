"""Splits, phases and batches of the image tasks."""

import shutil

import gin
import jax
import numpy as np
import pytest
from conftest import needs_tfds

from regularized_lopt.tasks import data, image, sources

KEY = jax.random.PRNGKey(0)


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
        datasets = image.ImageDatasets("Digits", phase)
        seen[phase] = {
            split: {row.tobytes() for row in datasets.host_arrays(split)["image"]}
            for split in ("train", "outer_valid", "test")
        }
    train, test = seen["meta_train"]["train"], seen["meta_test"]["train"]
    # The digits hold a few identical images; indices are disjoint (see above), images nearly so.
    assert len(train & test) <= 2
    assert len(seen["meta_test"]["test"] & (train | test)) <= 2
    assert seen["meta_train"]["test"] == seen["meta_train"]["outer_valid"]


def test_upstream_s_scheme_has_its_splits_and_keeps_the_test_set_for_meta_test():
    gin.parse_config("meta_splits.scheme = 'upstream'")
    everything = sources.load_arrays("Digits")
    count = len(everything["train_label"])
    first, second = round(0.8 * count), round(0.9 * count)
    ends = {"train": (0, first), "inner_valid": (first, second), "outer_valid": (second, count)}
    for phase in ("meta_train", "meta_test"):
        datasets = image.ImageDatasets("Digits", phase)
        for split, (begin, end) in ends.items():
            for name in ("image", "label"):
                expected = everything[f"train_{name}"][begin:end]
                np.testing.assert_array_equal(datasets.arrays(split)[name], expected)
        held_out = {
            "meta_train": everything["train_image"][second:],
            "meta_test": everything["test_image"],
        }
        np.testing.assert_array_equal(datasets.host_arrays("test")["image"], held_out[phase])


@needs_tfds
@pytest.mark.parametrize(
    ("dataset", "size", "splits"),
    [
        ("FashionMnist8", 8, {"train": 48_000, "inner_valid": 6_000, "test": 10_000}),
        ("FashionMnist", 28, {"outer_valid": 6_000}),
    ],
)
def test_upstream_s_splits_and_sizes_are_upstream_s_image_by_image(dataset, size, splits):
    """A batch as large as the split, from upstream's iterators: the same images and labels."""
    from learned_optimization.tasks.datasets import image as upstreams

    gin.parse_config("meta_splits.scheme = 'upstream'")

    def rows(batch):
        images, labels = np.asarray(batch["image"]), np.asarray(batch["label"])
        return sorted(zip(labels.tolist(), map(bytes, images), strict=True))

    ours = image.ImageDatasets(dataset, "meta_test")
    for split, count in splits.items():
        theirs = upstreams.fashion_mnist_datasets(
            count, image_size=(size, size), prefetch_batches=1
        )
        own = rows(ours.normalize(ours.host_arrays(split)))
        assert len(own) == count
        assert own == rows(next(theirs.split(split)))


def test_batches_drawn_on_the_device_are_uniform_and_match_the_iterators_form():
    datasets = image.ImageDatasets("Digits", "meta_test", batch_size=50)
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


def test_refuses_unknown_datasets_phases_and_splits():
    with pytest.raises(ValueError, match="Did you mean 'Mnist'"):
        sources.load_arrays("mnist")
    with pytest.raises(ValueError, match="Did you mean 'meta_train'"):
        image.ImageDatasets("Digits", "metatrain")
    with pytest.raises(ValueError, match="batch_size = 0"):
        image.ImageDatasets("Digits", "meta_train", 0)
    with pytest.raises(ValueError, match="valid_fraction"):
        data.meta_splits(100, valid_fraction=1.5)
    with pytest.raises(ValueError, match=r"Unknown meta_splits\.scheme 'half'\. .* 'halves'"):
        data.meta_splits(100, scheme="half")
    with pytest.raises(ValueError, match=r"not read where meta_splits\.scheme"):
        data.meta_splits(100, seed=1, scheme="upstream")


def test_a_run_that_has_begun_needs_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REGULARIZED_LOPT_CACHE_DIR", str(tmp_path))
    datasets = image.ImageDatasets("Digits", "meta_train")
    datasets.arrays("train")
    shutil.rmtree(tmp_path)
    assert len(datasets.arrays("outer_valid")["label"]) > 0
    assert datasets.arrays("outer_valid") is datasets.arrays("test")
    assert not tmp_path.exists()

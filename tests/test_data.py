"""Splits, phases and batches of the image tasks."""

import shutil

import jax
import numpy as np
import pytest

from regularized_lopt.tasks import data, sources

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


def test_refuses_unknown_datasets_phases_and_splits():
    with pytest.raises(ValueError, match="Did you mean 'Mnist'"):
        sources.load_arrays("mnist")
    with pytest.raises(ValueError, match="Did you mean 'meta_train'"):
        data.ResidentDatasets("Digits", "metatrain")
    with pytest.raises(ValueError, match="batch_size = 0"):
        data.ResidentDatasets("Digits", "meta_train", 0)
    with pytest.raises(ValueError, match="valid_fraction"):
        data.meta_splits(100, valid_fraction=1.5)


def test_a_run_that_has_begun_needs_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("REGULARIZED_LOPT_CACHE_DIR", str(tmp_path))
    datasets = data.ResidentDatasets("Digits", "meta_train")
    datasets.arrays("train")
    shutil.rmtree(tmp_path)
    assert len(datasets.arrays("outer_valid")["label"]) > 0
    assert datasets.arrays("outer_valid") is datasets.arrays("test")
    assert not tmp_path.exists()

"""Datasets as arrays: what is read, refused and kept."""

import dataclasses

import numpy as np
import pytest
from conftest import needs_cifar100, needs_mnist

from regularized_lopt import tasks
from regularized_lopt.tasks import sources


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


def test_a_resized_dataset_lies_between_its_source_s_pixels(tmp_path, monkeypatch):
    """Digits at half their size: at a pixel's centre the mean of four (the centres' distance)."""
    monkeypatch.setenv("REGULARIZED_LOPT_CACHE_DIR", str(tmp_path))
    spec = sources._resized("Digits", sources.SPECS["Digits"], 4)
    monkeypatch.setitem(sources.SPECS, "Digits4", spec)
    small, large = sources.load_arrays("Digits4"), sources.load_arrays("Digits")
    images = np.asarray(large["test_image"], np.float64)
    expected = images.reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    np.testing.assert_array_equal(small["test_image"], expected)
    np.testing.assert_array_equal(small["train_label"], large["train_label"])
    images = np.array(small["train_image"])
    images[5, 0, 0] = np.nan
    np.save(tmp_path / "Digits4-1" / "train_image.npy", images)
    with pytest.raises(sources.DataUnavailableError, match="float32, 1 of them not finite"):
        sources.load_arrays("Digits4")


@needs_cifar100
def test_cifar100_has_a_hundred_classes():
    arrays = sources.load_arrays("Cifar100")
    assert arrays["train_image"].shape == (50_000, 32, 32, 3)
    assert np.bincount(arrays["train_label"]).tolist() == [500] * 100
    assert np.bincount(arrays["test_label"]).tolist() == [100] * 100


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

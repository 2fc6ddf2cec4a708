"""Where images come from: TFDS or scikit-learn once, then memory-mapped arrays in a cache."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping

import jax
import numpy as np

from regularized_lopt import errors

_ARRAYS = ("train_image", "train_label", "test_image", "test_label")


class BadDataError(ValueError):
    """A dataset holds what no training can make sense of; the message says what and where."""


class DataUnavailableError(RuntimeError):
    """A dataset is neither cached nor readable; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What is known of a dataset before it is read.

    Attributes:
      version: of the source; part of the cache's key.
      image_shape: (height, width, channels).
      max_value: the raw value that stands for 1.0.
      read: returns the arrays of `_ARRAYS`, raw; labels are uint8.
      num_classes: labels are 0 to num_classes - 1.
      dtype: of images.
    """

    version: str
    image_shape: tuple[int, int, int]
    max_value: int
    read: Callable[[str], dict[str, np.ndarray]]
    num_classes: int = 10
    dtype: type[np.generic] = np.uint8


def _read_digits(version: str) -> dict[str, np.ndarray]:
    """scikit-learn's bundled handwritten digits (1,797 images of 8 x 8): real, and offline."""
    del version
    from sklearn import datasets as sklearn_datasets

    bunch = sklearn_datasets.load_digits()
    images = np.asarray(bunch.images, np.uint8)[..., None]
    labels = np.asarray(bunch.target, np.uint8)
    # The set comes without a test set; a fifth of it becomes one, the same everywhere.
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[: len(images) // 5], order[len(images) // 5 :]
    return dict(
        zip(_ARRAYS, (images[train], labels[train], images[test], labels[test]), strict=True)
    )


def _tfds_reader(name: str) -> Callable[[str], dict[str, np.ndarray]]:
    def read(version: str) -> dict[str, np.ndarray]:
        import tensorflow_datasets as tfds

        arrays = {}
        for split in ("train", "test"):
            data = tfds.as_numpy(tfds.load(f"{name}:{version}", split=split, batch_size=-1))
            arrays[f"{split}_image"] = np.asarray(data["image"], np.uint8)
            arrays[f"{split}_label"] = np.asarray(data["label"], np.uint8)
        return arrays

    return read


def _resized(name: str, spec: DatasetSpec, size: int) -> DatasetSpec:
    """Square images of `size` pixels, interpolated between the nearest four of the source's.

    As upstream does it (`tf.image.resize`): pixels' centres are aligned, and nothing is smoothed
    beforehand. Values lie between the source's, so that they are float32.
    """

    def read(version: str) -> dict[str, np.ndarray]:
        del version
        arrays = load_arrays(name)
        resized = {
            key: np.asarray(
                jax.image.resize(
                    arrays[key].astype(np.float32),
                    (len(arrays[key]), size, size, spec.image_shape[-1]),
                    "linear",
                    antialias=False,
                )
            )
            for key in ("train_image", "test_image")
        }
        return {**arrays, **resized}

    shape = (size, size, spec.image_shape[-1])
    return dataclasses.replace(spec, image_shape=shape, read=read, dtype=np.float32)


_SOURCES: Mapping[str, DatasetSpec] = {
    "Digits": DatasetSpec("1", (8, 8, 1), 16, _read_digits),
    "Mnist": DatasetSpec("3.0.1", (28, 28, 1), 255, _tfds_reader("mnist")),
    "FashionMnist": DatasetSpec("3.0.1", (28, 28, 1), 255, _tfds_reader("fashion_mnist")),
    "Cifar10": DatasetSpec("3.0.2", (32, 32, 3), 255, _tfds_reader("cifar10")),
    "Cifar100": DatasetSpec("3.0.2", (32, 32, 3), 255, _tfds_reader("cifar100"), 100),
}
SPECS: Mapping[str, DatasetSpec] = {
    **_SOURCES,
    "FashionMnist8": _resized("FashionMnist", _SOURCES["FashionMnist"], 8),
}


def cache_dir() -> pathlib.Path:
    """Where prepared arrays are kept: $REGULARIZED_LOPT_CACHE_DIR, else the user's cache."""
    if "REGULARIZED_LOPT_CACHE_DIR" in os.environ:
        return pathlib.Path(os.environ["REGULARIZED_LOPT_CACHE_DIR"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "regularized_lopt"


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """Memory-mapped raw arrays of a dataset, prepared on first use.

    Args:
      name: a key of `SPECS`.

    Returns:
      A dict of train_image and test_image, [n, height, width, channels], uint8 or of resized
      datasets float32, and of train_label and test_label, uint8 [n].

    Raises:
      DataUnavailableError: the dataset is neither cached nor readable, or the cache is damaged.
      BadDataError: it holds pixels or labels out of range, or splits without examples. A split of
        constant images or a single class is a warning: it can be trained on.
    """
    spec = SPECS[errors.check_name("dataset", name, SPECS)]
    directory = cache_dir() / f"{name}-{spec.version}"
    if not directory.is_dir():
        _prepare(name, spec, directory)
    try:
        arrays = {key: np.load(directory / f"{key}.npy", mmap_mode="r") for key in _ARRAYS}
    except (OSError, ValueError, EOFError) as error:
        raise DataUnavailableError(
            f"The prepared copy of {name} in {directory} cannot be read ({error}). Delete that "
            "directory; it is prepared again on the next run."
        ) from error
    try:
        check_arrays(name, spec, arrays)
    except BadDataError as error:  # It was in order when it was prepared.
        raise DataUnavailableError(
            f"The prepared copy of {name} in {directory} is damaged: {error} Delete that "
            "directory; it is prepared again on the next run."
        ) from error
    return arrays


def check_arrays(name: str, spec: DatasetSpec, arrays: Mapping[str, np.ndarray]) -> None:
    """Looks through a dataset's raw arrays; see `load_arrays` for errors and warnings."""
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_image"], arrays[f"{split}_label"]
        for kind, array, dtype in (("images", images, spec.dtype), ("labels", labels, np.uint8)):
            bad = int(np.sum(~np.isfinite(array))) if array.dtype.kind == "f" else 0
            if array.dtype != dtype or bad:
                raise BadDataError(
                    f"{name}'s {split} {kind} are {array.dtype}"
                    + (f", {bad} of them not finite" if bad else "")
                    + f"; they must be {np.dtype(dtype)}"
                    + (", all of them finite." if dtype != np.uint8 else ".")
                )
        if not len(labels) or images.shape != (len(labels), *spec.image_shape):
            raise BadDataError(
                f"{name}'s {split} images have shape {images.shape} and there are {len(labels)} "
                f"labels; it takes [n, {', '.join(map(str, spec.image_shape))}] and n > 0."
            )
        lowest, highest = images.min(), images.max()
        if highest > spec.max_value:
            raise BadDataError(
                f"{name}'s {split} images have a pixel of {highest}; they go up to "
                f"{spec.max_value}."
            )
        classes = np.unique(labels)
        if classes[-1] >= spec.num_classes:
            raise BadDataError(
                f"{name}'s {split} labels have a {classes[-1]}; they go from 0 to "
                f"{spec.num_classes - 1}."
            )
        if lowest == highest:
            warnings.warn(
                f"{name}'s {split} images are all the same: every pixel is {lowest}.", stacklevel=3
            )
        if len(classes) == 1:
            warnings.warn(
                f"{name}'s {split} labels are all {classes[0]}: there is nothing to learn.",
                stacklevel=3,
            )


def _prepare(name: str, spec: DatasetSpec, directory: pathlib.Path) -> None:
    try:
        arrays = spec.read(spec.version)
    except DataUnavailableError:  # Of the source of a resized dataset.
        raise
    except (
        Exception
    ) as error:  # TFDS raises many kinds: no network, no TensorFlow, bad checksums, ...
        raise DataUnavailableError(
            f"{name} is not in {directory.parent} and could not be read from TensorFlow Datasets "
            f"({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Either set "
            "TFDS_DATA_DIR to a directory that holds it, or connect to the network (and install "
            "tensorflow and tensorflow-datasets) once, or use the offline tasks, e.g. "
            "ImageMLP_Digits_20_Relu."
        ) from error
    check_arrays(name, spec, arrays)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: another process never sees half a cache.
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        for key in _ARRAYS:
            np.save(scratch / f"{key}.npy", arrays[key])
        try:
            scratch.rename(directory)
        except OSError:
            if not directory.is_dir():  # Not merely prepared by another process in the meantime.
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

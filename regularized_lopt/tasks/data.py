"""Image datasets: TFDS once, then memory-mapped uint8 arrays that live on the device.

The four splits of the paper's protocol (arXiv 2510.08968) are disjoint and fixed by a seed::

  meta_train       the first half of the training set, less `meta_valid`
  meta_valid       a tenth of that half, held out: it decides the curriculum of outer training
  meta_test_train  the second half of the training set: what a trained optimizer trains on
  meta_test_test   the test set: what the trained network is judged on

A task is either in phase "meta_train" or "meta_test". Upstream's four splits then mean::

  phase        train            inner_valid  outer_valid  test
  meta_train   meta_train       meta_valid   meta_valid   meta_valid
  meta_test    meta_test_train  meta_valid   meta_valid   meta_test_test
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable

Batch = dict[str, jax.Array]

_PHASES: dict[str, dict[str, str]] = {
    "meta_train": {
        "train": "meta_train",
        "inner_valid": "meta_valid",
        "outer_valid": "meta_valid",
        "test": "meta_valid",
    },
    "meta_test": {
        "train": "meta_test_train",
        "inner_valid": "meta_valid",
        "outer_valid": "meta_valid",
        "test": "meta_test_test",
    },
}
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
      read: returns the arrays of `_ARRAYS`, raw, uint8.
      num_classes: labels are 0 to num_classes - 1.
    """

    version: str
    image_shape: tuple[int, int, int]
    max_value: int
    read: Callable[[str], dict[str, np.ndarray]]
    num_classes: int = 10


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


SPECS: Mapping[str, DatasetSpec] = {
    "Digits": DatasetSpec("1", (8, 8, 1), 16, _read_digits),
    "Mnist": DatasetSpec("3.0.1", (28, 28, 1), 255, _tfds_reader("mnist")),
    "FashionMnist": DatasetSpec("3.0.1", (28, 28, 1), 255, _tfds_reader("fashion_mnist")),
    "Cifar10": DatasetSpec("3.0.2", (32, 32, 3), 255, _tfds_reader("cifar10")),
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
      A dict of train_image and test_image, uint8 [n, height, width, channels], and of train_label
      and test_label, uint8 [n].

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
        for kind, array in (("images", images), ("labels", labels)):
            if array.dtype != np.uint8:
                bad = int(np.sum(~np.isfinite(array))) if array.dtype.kind == "f" else 0
                raise BadDataError(
                    f"{name}'s {split} {kind} are {array.dtype}"
                    + (f", {bad} of them not finite" if bad else "")
                    + "; they must be uint8."
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


@configurable()
def meta_splits(
    num_train: int, seed: int = 0, valid_fraction: float = 0.1
) -> dict[str, np.ndarray]:
    """Partition of the training set's indices: `meta_train`, `meta_valid`, `meta_test_train`.

    Args:
      num_train: size of the training set, at least 4.
      seed: fixes the shuffle, 0 to 2^32 - 1.
      valid_fraction: share of the meta-train half that is held out for validation, in (0, 1).

    Raises:
      ValueError: an argument is out of its range.
    """
    errors.check_count("meta_splits.num_train", num_train, least=4)
    errors.check_seed("meta_splits.seed", seed)
    errors.check_in("meta_splits.valid_fraction", valid_fraction, "(0, 1)")
    order = np.random.default_rng(seed).permutation(num_train)
    half = num_train // 2
    num_valid = max(1, int(half * valid_fraction))
    return {
        "meta_train": np.sort(order[num_valid:half]),
        "meta_valid": np.sort(order[:num_valid]),
        "meta_test_train": np.sort(order[half:]),
    }


class ResidentDatasets(upstream.Datasets):
    """Upstream's `Datasets` (four iterators) whose splits can also live on the device.

    The iterators serve upstream's tools. Our own estimators call `arrays(split)` once, pass the
    result into their jitted step and draw batches there with `sample`.

    Attributes:
      dataset: name of the dataset, a key of `SPECS`.
      phase: "meta_train" or "meta_test".
      batch_size: examples per batch.
      image_shape: (height, width, channels).
    """

    def __init__(self, dataset: str, phase: str, batch_size: int = 128, seed: int = 0):
        """Initializer; no data is read yet.

        Args:
          dataset: a key of `SPECS`.
          phase: "meta_train" or "meta_test", see the module's docstring.
          batch_size: examples per batch, > 0.
          seed: of the iterators' shuffling (the splits themselves are fixed by `meta_splits.seed`).
        """
        spec = SPECS[errors.check_name("dataset", dataset, SPECS)]
        errors.check_name("phase", phase, _PHASES)
        errors.check_count("batch_size", batch_size)
        self.dataset = dataset
        self.phase = phase
        self.batch_size = batch_size
        self.image_shape = spec.image_shape
        self._spec = spec
        self._on_device: dict[str, Batch] = {}
        iterators = {
            split: upstream.datasets_base.ThreadSafeIterator(
                upstream.datasets_base.LazyIterator(
                    functools.partial(self._iterate, split, (seed, index))
                )
            )
            for index, split in enumerate(_PHASES[phase])
        }
        super().__init__(
            **iterators,
            extra_info={"num_classes": spec.num_classes},
            abstract_batch={
                "image": jax.ShapeDtypeStruct((batch_size, *spec.image_shape), jnp.float32),
                "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            },
        )

    def host_arrays(self, split: str) -> dict[str, np.ndarray]:
        """Raw examples of one of upstream's splits: image uint8 [n, h, w, c], label int32 [n]."""
        source = _PHASES[self.phase][errors.check_name("split", split, _PHASES[self.phase])]
        arrays = load_arrays(self.dataset)
        if source == "meta_test_test":
            return {
                "image": np.asarray(arrays["test_image"]),
                "label": arrays["test_label"].astype(np.int32),
            }
        index = meta_splits(len(arrays["train_label"]))[source]
        return {
            "image": arrays["train_image"][index],
            "label": arrays["train_label"][index].astype(np.int32),
        }

    def arrays(self, split: str) -> Batch:
        """The same, on the device. Pass it INTO jitted functions: closed over it is a constant.

        The first call reads all splits of the phase, so that a run that has begun no longer needs
        the files.
        """
        sources = _PHASES[self.phase]
        if not self._on_device:
            splits = {source: split for split, source in sources.items()}
            self._on_device = {
                source: jax.device_put(self.host_arrays(split)) for source, split in splits.items()
            }
        return self._on_device[sources[errors.check_name("split", split, sources)]]

    def sample(self, arrays: Batch, key: jax.Array) -> Batch:
        """Draws a batch, with replacement, inside a jitted function; its form: `normalize`."""
        index = jax.random.randint(key, (self.batch_size,), 0, arrays["label"].shape[0])
        return self.normalize(
            {name: jnp.take(value, index, axis=0) for name, value in arrays.items()}
        )

    def normalize(self, raw: Batch) -> dict[str, Any]:
        """Raw examples as tasks take them: images in [0, 1] float32, labels int32."""
        images: Float[Array, "batch h w c"] = raw["image"].astype(np.float32) / np.float32(
            self._spec.max_value
        )
        labels: Int[Array, batch] = raw["label"]
        return {"image": images, "label": labels}

    def _iterate(self, split: str, seed: tuple[int, int]) -> Iterator[dict[str, np.ndarray]]:
        arrays = self.host_arrays(split)
        rng = np.random.default_rng(seed)
        while True:
            index = rng.integers(0, len(arrays["label"]), self.batch_size)
            yield self.normalize({name: value[index] for name, value in arrays.items()})  # type: ignore[arg-type]


def pull(datasets: upstream.Datasets, split: str, count: int, task: str) -> list[Any]:
    """The next batches of a task's own iterator.

    Args:
      datasets: upstream's.
      split: upstream's name of the split.
      count: how many, >= 1.
      task: what messages call the task.

    Raises:
      BadDataError: the iterator ends, or the batches differ in structure or shape.
    """
    iterator = datasets.split(split)
    try:
        batches = [next(iterator) for _ in range(count)]
    except StopIteration:
        raise BadDataError(
            f"{task}: the iterator of its split {split!r} has ended. Give one that goes on for "
            "ever (tf.data: repeat())."
        ) from None
    first, *rest = map(_shapes, batches)
    for shapes in rest:
        for path in first | shapes:
            if first.get(path) != shapes.get(path):
                raise BadDataError(
                    f"{task}: batches of its split {split!r} differ in shape: {path} has "
                    f"{first.get(path)} in one and {shapes.get(path)} in another. Give all of them "
                    "one shape (tf.data: batch(..., drop_remainder=True))."
                )
    return batches


def _shapes(batch: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}

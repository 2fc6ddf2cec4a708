"""Two-class tasks whose classes are new at meta-test, as in Figure 5 of the smoothing paper.

The classes of a dataset are split in three (`class_split`). An optimizer is meta-trained on pairs
of the first part, drawn anew for every trajectory; validated on pairs of the second; and judged on
the pair that is the third.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.tasks import image, networks, sources

_PARTS = ("meta_train", "meta_valid", "meta_test")


@configurable()
def class_split(
    meta_train: Sequence[int] = (0, 1, 2, 3, 4, 5),
    meta_valid: Sequence[int] = (6, 7),
    meta_test: Sequence[int] = (8, 9),
) -> dict[str, tuple[int, ...]]:
    """The classes of each part; the paper has 6, 2 and 2 of CIFAR-10's, and does not say which.

    Args:
      meta_train: two classes or more, each >= 0.
      meta_valid: likewise.
      meta_test: two classes.

    Raises:
      ValueError: a part has too few classes, or a class is there twice.
    """
    parts = dict(zip(_PARTS, map(tuple, (meta_train, meta_valid, meta_test)), strict=True))
    home: dict[int, str] = {}
    for name, classes in parts.items():
        owner = f"class_split.{name}"
        if len(classes) < 2 or (name == "meta_test" and len(classes) > 2):
            few = "two" if name == "meta_test" else "two or more"
            raise ValueError(f"{owner} = {classes}: give {few} classes, a task is to tell two.")
        for one in classes:
            errors.check_count(owner, one, least=0)
            if one in home:
                raise ValueError(
                    f"{owner} = {classes}: class {one} is in class_split.{home[one]} already. "
                    "Give each class once."
                )
            home[int(one)] = name
    return parts


def _of_classes(
    dataset: str, classes: Sequence[int], split: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(images of a source's "train" or "test" split, indices of those of each class)."""
    arrays = sources.load_arrays(dataset)
    labels = np.asarray(arrays[f"{split}_label"])
    return arrays[f"{split}_image"], [np.flatnonzero(labels == one) for one in classes]


class _PairDatasets(image.ImageDatasets):
    """Of two classes; upstream's "train" is all of the training set, the others the test set."""

    def __init__(self, dataset: str, phase: str, batch_size: int):
        super().__init__(dataset, phase, batch_size)
        self._classes = _checked_split(dataset)["meta_test"]
        self.extra_info = {"num_classes": 2}

    def host_arrays(self, split: str) -> dict[str, np.ndarray]:
        part = "train" if split == "train" else "test"
        images, by_class = _of_classes(self.dataset, self._classes, part)
        labels = [np.full(len(index), rank, np.int32) for rank, index in enumerate(by_class)]
        return {
            "image": np.asarray(images[np.concatenate(by_class)]),
            "label": np.concatenate(labels),
        }

    def _source(self, split: str) -> str:
        return split


class ClassPairDatasets(image.ImageDatasets):
    """Half a batch of each class, [classes, batch_size / 2, h, w, c], of which a task takes two.

    Of upstream's splits "train" has the training images of the classes of `class_split.meta_train`,
    "inner_valid" their test images, "outer_valid" and "test" the training images of those of
    `class_split.meta_valid`.

    Attributes:
      validates_apart: its "outer_valid" is to be trained on in validation, for the classes of
        "train" are not in it.
    """

    validates_apart = True

    def __init__(self, dataset: str, batch_size: int):
        """Initializer; arguments as of `ImageDatasets`.

        Raises:
          ValueError: the batch size is odd, or a class of `class_split` is none of the dataset's.
        """
        super().__init__(dataset, "meta_train", batch_size)
        if batch_size % 2:
            raise ValueError(f"batch_size = {batch_size}: give an even one, half of it per class.")
        self._parts = _checked_split(dataset)
        self.extra_info = {"num_classes": 2}
        shape = (len(self._parts["meta_train"]), batch_size // 2, *self.image_shape)
        self.abstract_batch = {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def host_arrays(self, split: str) -> dict[str, np.ndarray]:
        """Images sorted by class; the first index of each class, and how many it has."""
        own = split in ("train", "inner_valid")
        classes = self._parts["meta_train" if own else "meta_valid"]
        part = "test" if split == "inner_valid" else "train"
        images, by_class = _of_classes(self.dataset, classes, part)
        counts = np.array([len(index) for index in by_class], np.int32)
        return {
            "image": np.asarray(images[np.concatenate(by_class)]),
            "first": (np.cumsum(counts) - counts).astype(np.int32),
            "count": counts,
        }

    def _source(self, split: str) -> str:
        return split

    def unroll_data(self, outer_split: str) -> dict[str, Any]:
        """See `ResidentDatasets.unroll_data`; validation trains on its own classes."""
        train = outer_split if outer_split == "outer_valid" else "train"
        return {"train": self.arrays(train), "outer": self.arrays(outer_split)}

    def sample(self, arrays: Any, key: jax.Array) -> dict[str, jax.Array]:
        """See `ResidentDatasets.sample`."""
        first, count = arrays["first"][:, None], arrays["count"][:, None]
        shape = (len(arrays["count"]), self.batch_size // 2)
        index = first + jax.random.randint(key, shape, 0, count)
        return self.normalize({"image": jnp.take(arrays["image"], index, axis=0)})

    def normalize(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Images in [0, 1] float32; labels are made by a task."""
        labels = np.zeros(0, np.int32)
        return {"image": super().normalize({**raw, "label": labels})["image"]}

    def _iterate(self, split: str, seed: tuple[int, int]) -> Any:
        arrays = self.host_arrays(split)
        rng = np.random.default_rng(seed)
        shape = (len(arrays["count"]), self.batch_size // 2)
        while True:
            index = arrays["first"][:, None] + rng.integers(0, arrays["count"][:, None], shape)
            yield self.normalize({"image": arrays["image"][index]})


def _checked_split(dataset: str) -> dict[str, tuple[int, ...]]:
    parts = class_split()
    most = sources.SPECS[errors.check_name("dataset", dataset, sources.SPECS)].num_classes - 1
    for name, classes in parts.items():
        for one in classes:
            errors.check_count(f"class_split.{name}, of {dataset},", one, 0, most)
    return parts


class _PairTask(upstream.Task):
    """Tells two classes of a batch, by an image task on those two."""

    def __init__(self, of_two: image.ImageTask, datasets: ClassPairDatasets, draws: jax.Array):
        self.datasets = datasets
        self._of_two = of_two
        self._draws = draws
        self.init = of_two.init
        self.init_with_state = of_two.init_with_state
        self.normalizer = of_two.normalizer

    @property
    def name(self) -> str:
        return self._of_two.name

    def batch(self, data: Any) -> dict[str, jax.Array]:
        """The half batches of the pair, labelled 0 and 1; any ordered pair is as likely."""
        images = data["image"]
        classes, half = images.shape[:2]
        one = jnp.minimum(jnp.floor(self._draws[0] * classes), classes - 1).astype(jnp.int32)
        steps = jnp.minimum(jnp.floor(self._draws[1] * (classes - 1)), classes - 2)
        other = (one + 1 + steps.astype(jnp.int32)) % classes
        pair = jnp.take(images, jnp.stack([one, other]), axis=0)
        labels = jnp.repeat(jnp.arange(2, dtype=jnp.int32), half, total_repeat_length=2 * half)
        return {"image": pair.reshape(2 * half, *images.shape[2:]), "label": labels}

    def loss(self, params: Any, key: jax.Array, data: Any) -> jax.Array:
        return self._of_two.loss(params, key, self.batch(data))

    def loss_and_aux(self, params: Any, key: jax.Array, data: Any) -> Any:
        return self._of_two.loss_and_aux(params, key, self.batch(data))

    def loss_with_state(self, params: Any, state: Any, key: jax.Array, data: Any) -> Any:
        return self._of_two.loss_with_state(params, state, key, self.batch(data))

    def loss_with_state_and_aux(self, params: Any, state: Any, key: jax.Array, data: Any) -> Any:
        return self._of_two.loss_with_state_and_aux(params, state, key, self.batch(data))


class ClassPairFamily(upstream.TaskFamily):
    """Tasks that tell two classes, drawn by two numbers in [0, 1)."""

    datasets: ClassPairDatasets

    def __init__(self, of_two: image.ImageTask, datasets: ClassPairDatasets):
        """Initializer.

        Args:
          of_two: the task of any pair.
          datasets: where pairs come from.
        """
        super().__init__()
        self._of_two = of_two
        self._name = of_two.name
        self.datasets = datasets

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (2,))

    def task_fn(self, cfg: jax.Array) -> upstream.Task:
        return _PairTask(self._of_two, self.datasets, cfg)

    def eval_task_fn(self, cfg: jax.Array) -> upstream.Task:
        return self.task_fn(cfg)


FACTORIES: dict[str, Callable[..., image.ImageTask | ClassPairFamily]] = {}
"""By name, (phase, batch_size) -> the family of pairs, or at meta-test the task of the last two."""


def _register(name: str, dataset: str, network: networks.Network, *facts: str) -> None:
    def factory(
        phase: str = "meta_test", batch_size: int = 128
    ) -> image.ImageTask | ClassPairFamily:
        of_two = image.ImageTask(name, network, _PairDatasets(dataset, phase, batch_size), *facts)
        if phase == "meta_test":
            return of_two
        return ClassPairFamily(of_two, ClassPairDatasets(dataset, batch_size))

    factory.__name__ = factory.__qualname__ = name
    factory.__doc__ = (
        f"{name}: a family of pairs where `phase` is 'meta_train', else the last pair."
    )
    FACTORIES[name] = configurable(name, module="regularized_lopt.tasks")(factory)


for _dataset in ("Digits", "Mnist", "FashionMnist", "Cifar10"):
    _padding = "SAME" if _dataset == "Digits" else "VALID"
    _register(
        f"ImageMLP_{_dataset}Pairs_32_Relu",
        _dataset,
        networks.mlp([32], jax.nn.relu, num_classes=2),
        *("MLP", "32", "Relu"),
    )
    _register(
        f"TwiceStridedConv_{_dataset}Pairs_32x32x32",
        _dataset,
        networks.twice_strided_conv_32x32x32(_padding, num_classes=2),
        *("TwiceStridedConv", "32x32x32", "Relu"),
    )

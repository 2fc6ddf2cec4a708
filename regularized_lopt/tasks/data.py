"""Datasets that live on the device, and their splits.

The four splits of the paper's protocol (arXiv 2510.08968) are disjoint and fixed by a seed::

  meta_train       the first half of the training set, less `meta_valid`
  meta_valid       a tenth of that half, held out: it decides the curriculum of outer training
  meta_test_train  the second half of the training set: what a trained optimizer trains on
  meta_test_test   the test set: what the trained network is judged on

A task is either in phase "meta_train" or "meta_test". Upstream's four splits then mean::

  phase        train            inner_valid  outer_valid  test
  meta_train   meta_train       meta_valid   meta_valid   meta_valid
  meta_test    meta_test_train  meta_valid   meta_valid   meta_test_test

Under `meta_splits.scheme = "upstream"` they are upstream's own: train is the first 80% of the
training set in both phases, inner_valid the next tenth, outer_valid the last (`meta_valid` above).
The test set is seen at meta-test alone, as ever.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.tasks import sources

Batch = dict[str, jax.Array]

_PHASES: dict[str, dict[str, str]] = {
    "meta_train": {
        "train": "meta_train",
        "inner_valid": "inner_valid",
        "outer_valid": "meta_valid",
        "test": "meta_valid",
    },
    "meta_test": {
        "train": "meta_test_train",
        "inner_valid": "inner_valid",
        "outer_valid": "meta_valid",
        "test": "meta_test_test",
    },
}


_SCHEMES = ("halves", "upstream")


@configurable()
def meta_splits(
    num_train: int, seed: int = 0, valid_fraction: float = 0.1, scheme: str = "halves"
) -> dict[str, np.ndarray]:
    """Indices into the training set: `meta_train`, `meta_valid`, `meta_test_train`.

    Args:
      num_train: size of the training set, at least 4, of upstream's 10.
      seed: fixes the shuffle, 0 to 2^32 - 1.
      valid_fraction: share of the meta-train half that is held out for validation, in (0, 1).
      scheme: "halves": a partition, the paper's; "upstream": that of upstream's image datasets,
        where both phases train on the first 80%; `meta_valid` is the last tenth and there is an
        `inner_valid` beside it. Nothing is shuffled, and `seed` and `valid_fraction` are not read.

    Raises:
      ValueError: an argument is out of its range, or given to a scheme that does not read it.
    """
    is_upstreams = errors.check_name("meta_splits.scheme", scheme, _SCHEMES) == "upstream"
    errors.check_count("meta_splits.num_train", num_train, least=10 if is_upstreams else 4)
    errors.check_seed("meta_splits.seed", seed)
    errors.check_in("meta_splits.valid_fraction", valid_fraction, "(0, 1)")
    if is_upstreams:
        if (seed, valid_fraction) != (0, 0.1):
            raise ValueError(
                "meta_splits.seed and meta_splits.valid_fraction are not read where "
                'meta_splits.scheme = "upstream": leave them out.'
            )
        # As TFDS rounds train[0:80%], train[80%:90%], train[90%:].
        ends = [round(num_train * share / 100) for share in (80, 90)]
        train, inner_valid, outer_valid = np.split(np.arange(num_train), ends)
        return {
            "meta_train": train,
            "inner_valid": inner_valid,
            "meta_valid": outer_valid,
            "meta_test_train": train,
        }
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

    One of your own has `num_train`, `read`, and a `normalize` unless raw examples are a batch.

    Attributes:
      dataset: its name.
      phase: "meta_train" or "meta_test".
      batch_size: examples per batch.
    """

    def __init__(
        self,
        dataset: str,
        phase: str,
        batch_size: int,
        seed: int,
        example: Mapping[str, jax.ShapeDtypeStruct],
        extra_info: Mapping[str, Any] | None = None,
    ):
        """Initializer; no data is read yet.

        Args:
          dataset: its name.
          phase: "meta_train" or "meta_test", see the module's docstring.
          batch_size: examples per batch, > 0.
          seed: of the iterators' shuffling (the splits themselves are fixed by `meta_splits.seed`).
          example: shapes and dtypes of one example of a batch.
          extra_info: see upstream's.
        """
        errors.check_name("phase", phase, _PHASES)
        errors.check_count("batch_size", batch_size)
        errors.check_seed("seed", seed)
        self.dataset = dataset
        self.phase = phase
        self.batch_size = batch_size
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
            extra_info=extra_info,
            abstract_batch={
                name: jax.ShapeDtypeStruct((batch_size, *of.shape), of.dtype)
                for name, of in example.items()
            },
        )

    def num_train(self) -> int:
        """How many parts the training set has that `meta_splits` divides."""
        raise NotImplementedError

    def read(self, index: np.ndarray | None) -> dict[str, np.ndarray]:
        """Raw examples, arrays with one leading axis.

        Args:
          index: which parts of the training set; None: the test set.
        """
        raise NotImplementedError

    def normalize(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Raw examples, NumPy's or JAX's, as tasks take them."""
        return dict(raw)

    def host_arrays(self, split: str) -> dict[str, np.ndarray]:
        """Raw examples of one of upstream's splits, see `read`."""
        source = self._source(split)
        if source == "meta_test_test":
            return self.read(None)
        return self.read(meta_splits(self.num_train())[source])

    def arrays(self, split: str) -> Batch:
        """The same, on the device. Pass it INTO jitted functions: closed over it is a constant.

        The first call reads all splits of the phase, so that a run that has begun no longer needs
        the files.
        """
        if not self._on_device:
            by_source: dict[str, Batch] = {}
            sources = {name: self._source(name) for name in _PHASES[self.phase]}
            for name, source in sources.items():
                if source not in by_source:
                    by_source[source] = jax.device_put(self.host_arrays(name))
            # At once: programs that run side by side may ask meanwhile.
            self._on_device = {name: by_source[source] for name, source in sources.items()}
        return self._on_device[errors.check_name("split", split, self._on_device)]

    def _source(self, split: str) -> str:
        """Of `meta_splits`, or "meta_test_test"; most schemes validate on one split alone."""
        source = _PHASES[self.phase][errors.check_name("split", split, _PHASES[self.phase])]
        if source == "inner_valid" and source not in meta_splits(self.num_train()):
            return "meta_valid"
        return source

    def unroll_data(self, outer_split: str) -> dict[str, Any]:
        """What trajectories of training draw from, and their outer losses, on the device."""
        return {"train": self.arrays("train"), "outer": self.arrays(outer_split)}

    def sample(self, arrays: Batch, key: jax.Array) -> Batch:
        """Draws a batch, with replacement, inside a jitted function; its form: `normalize`."""
        index = jax.random.randint(key, (self.batch_size,), 0, num_examples(arrays))
        return self.normalize(
            {name: jnp.take(value, index, axis=0) for name, value in arrays.items()}
        )

    def _iterate(self, split: str, seed: tuple[int, int]) -> Iterator[dict[str, np.ndarray]]:
        arrays = self.host_arrays(split)
        rng = np.random.default_rng(seed)
        while True:
            index = rng.integers(0, num_examples(arrays), self.batch_size)
            yield self.normalize({name: value[index] for name, value in arrays.items()})


def num_examples(arrays: Mapping[str, Any]) -> int:
    """How many examples there are in the arrays of a split or of a batch."""
    return int(next(iter(arrays.values())).shape[0])


def validates_apart(task_family: upstream.TaskFamily) -> bool:
    """Whether its "outer_valid" has other classes than "train": validation trains on it, too."""
    return getattr(task_family.datasets, "validates_apart", False)


def check_outer_split(task_family: upstream.TaskFamily, split: str) -> None:
    """Raises ValueError if networks would be judged on classes that they are not trained on."""
    if split == "outer_valid" and validates_apart(task_family):
        raise ValueError(
            f"outer_data_split = 'outer_valid': {task_family.name} has other classes there than "
            "those that networks are trained on. Use 'train' or 'inner_valid'."
        )


def pull(datasets: upstream.Datasets, split: str, count: int, task: str) -> list[Any]:
    """The next batches of a task's own iterator.

    Args:
      datasets: upstream's.
      split: upstream's name of the split.
      count: how many, >= 1.
      task: what messages call the task.

    Raises:
      sources.BadDataError: the iterator ends, or the batches differ in structure or shape.
    """
    iterator = datasets.split(split)
    try:
        batches = [next(iterator) for _ in range(count)]
    except StopIteration:
        raise sources.BadDataError(
            f"{task}: the iterator of its split {split!r} has ended. Give one that goes on for "
            "ever (tf.data: repeat())."
        ) from None
    first, *rest = map(_shapes, batches)
    for shapes in rest:
        for path in first | shapes:
            if first.get(path) != shapes.get(path):
                raise sources.BadDataError(
                    f"{task}: batches of its split {split!r} differ in shape: {path} has "
                    f"{first.get(path)} in one and {shapes.get(path)} in another. Give all of them "
                    "one shape (tf.data: batch(..., drop_remainder=True))."
                )
    return batches


def _shapes(batch: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}

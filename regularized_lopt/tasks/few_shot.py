"""Few-shot classification as a task family: a task is an episode.

A trajectory learns from the support of its episode, all of it at every inner step, and the outer
loss is that on the query. So what outer training does with any family it does with this one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import flax
import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.tasks import classification, conv4, data, episodes

Params = Any
BATCH_NORMS = ("support", "published")
_CLASSES = {"train": "train", "inner_valid": "valid", "outer_valid": "valid", "test": "test"}
"""Upstream's splits of data, and ours of classes."""


@flax.struct.dataclass
class Part:
    """A part of the episode that a task is: what a loss is taken on, for want of a batch.

    Attributes:
      split: what the episode is drawn from.
      of: "support" or "query".
      judged: whether the classes are held out: the network is as at meta-test.
    """

    split: episodes.Split
    of: str = flax.struct.field(pytree_node=False)
    judged: bool = flax.struct.field(pytree_node=False)


class EpisodeDatasets(data.ResidentDatasets):
    """Splits of classes on the device, in the place of splits of a dataset."""

    def __init__(self, splits: Mapping[str, episodes.Split], dataset: str):
        """Initializer; nothing is put on the device yet.

        Args:
          splits: by name, see `episodes.NAMES`.
          dataset: what they are called.
        """
        self.dataset = dataset
        self.image_shape = splits["train"].image_shape
        self._of_classes = splits
        self._placed: dict[str, episodes.Split] = {}
        part = Part(splits["train"], "support", judged=False)
        upstream.Datasets.__init__(
            self,
            **{split: self._iterate(split) for split in _CLASSES},
            abstract_batch=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), part),
        )

    def arrays(self, split: str) -> Any:
        """The support of episodes of one of upstream's splits."""
        return self._part(split, "support")

    def unroll_data(self, outer_split: str) -> dict[str, Any]:
        """See `ResidentDatasets.unroll_data`: here support and query are of the same classes."""
        return {
            "train": self._part(outer_split, "support"),
            "outer": self._part(outer_split, "query"),
        }

    def sample(self, arrays: Any, key: jax.Array) -> Any:
        """The same: the episode is the task's."""
        del key
        return arrays

    def _part(self, split: str, of: str) -> Part:
        name = _CLASSES[errors.check_name("split", split, _CLASSES)]
        if not self._placed:  # All of them, as `ResidentDatasets` does.
            self._placed = {one: jax.device_put(self._of_classes[one]) for one in episodes.NAMES}
        return Part(self._placed[name], of, judged=name != "train")

    def _iterate(self, split: str) -> Any:  # type: ignore[override]
        return (self.arrays(split) for _ in itertools.count())


@configurable()
class FewShotFamily(upstream.TaskFamily):
    """N-way K-shot episodes for a `conv4`; a task is the key of its episode.

    Batch normalization of the query, named by `batch_norm`:

    * "support": by the statistics of the support under the params at hand, in meta-training and at
      test: an image is classified by itself, and by the network that was judged in training.
    * "published" (the code of Ravi & Larochelle's method in PyTorch, and Xiong & Hsieh 2022, who
      build on it): in meta-training by the statistics of all query images together, at test by
      running averages over the inner steps, of params that have moved since.
    """

    def __init__(
        self,
        dataset: str | Mapping[str, episodes.Split] = "DoubleMnist",
        ways: int = 5,
        shots: int = 5,
        queries: int = 15,
        channels: int = 32,
        blocks: int = 4,
        batch_norm: str = "support",
        seed: int = 0,
    ):
        """Initializer.

        Args:
          dataset: a name in `episodes.DATASETS`, or splits of your own, of `episodes.from_arrays`.
          ways: N, classes of an episode, >= 2.
          shots: K, images of each in the support, > 0.
          queries: images of each in the query, > 0.
          channels, blocks: of the learner, > 0.
          batch_norm: "support" or "published".
          seed: of the split of a named dataset's classes, 0 to 2^32 - 1.

        Raises:
          ValueError: an argument is out of its range, or the dataset has too few classes or images.
        """
        errors.check_count("FewShotFamily.channels", channels)
        errors.check_count("FewShotFamily.blocks", blocks)
        errors.check_name("FewShotFamily.batch_norm", batch_norm, BATCH_NORMS)
        named = isinstance(dataset, str)
        splits = episodes.load(dataset, seed=seed) if isinstance(dataset, str) else dataset
        episodes.check(splits, ways, shots, queries)
        self.ways, self.shots, self.queries = ways, shots, queries
        self.batch_norm = batch_norm
        self.datasets = EpisodeDatasets(splits, str(dataset) if named else "own")
        self._name = f"FewShot_{self.datasets.dataset}_{ways}way_{shots}shot"
        self._channels, self._blocks = channels, blocks
        self._network = self.network(ways)

    def sample(self, key: jax.Array) -> jax.Array:
        """The episode's key."""
        return key

    def task_fn(self, cfg: jax.Array) -> FewShotTask:
        """The episode."""
        return FewShotTask(self, cfg)

    def network(self, num_classes: int) -> hk.TransformedWithState:
        """The learner, of (images, count), see `conv4`; with another last layer if need be."""

        def network(images: jax.Array, count: int | None) -> jax.Array:
            return conv4.conv4(images, count, num_classes, self._channels, self._blocks)

        return hk.without_apply_rng(hk.transform_with_state(network))

    def init(self, key: jax.Array) -> tuple[Params, Any]:
        """Params and running statistics of the learner, drawn."""
        return self._network.init(key, jnp.zeros((2, *self.datasets.image_shape)), 2)

    def param_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Of the learner, by module and name; see `MetaLSTMLOpt`."""
        params, _ = jax.eval_shape(self.init, jax.random.PRNGKey(0))
        return {
            module: {name: tuple(leaf.shape) for name, leaf in of.items()}
            for module, of in params.items()
        }

    def apply(
        self, params: Params, state: Any, images: Float[Array, "batch h w c"], count: int | None
    ) -> tuple[Float[Array, "batch classes"], Any]:
        """(logits, running statistics); `count`: see `conv4`."""
        return self._network.apply(params, state, images, count)

    def draw(self, split: episodes.Split, key: jax.Array) -> episodes.Episode:
        """See `episodes.draw`."""
        return episodes.draw(split, key, self.ways, self.shots, self.queries)


class FewShotTask(upstream.Task):
    """One episode; a batch is a `Part` of it."""

    def __init__(self, family: FewShotFamily, key: jax.Array):
        """Initializer.

        Args:
          family: it is of.
          key: of the episode.
        """
        self._family = family
        self._key = key
        self.datasets = family.datasets

    @property
    def name(self) -> str:
        return self._family.name

    def init_with_state(self, key: jax.Array) -> tuple[Params, Any]:
        return self._family.init(key)

    def loss_with_state(
        self, params: Params, state: Any, key: jax.Array, data: Part
    ) -> tuple[Float[Array, ""], Any]:
        return self.loss_with_state_and_aux(params, state, key, data)[:2]

    def loss_with_state_and_aux(
        self, params: Params, state: Any, key: jax.Array, data: Part
    ) -> tuple[Float[Array, ""], Any, Mapping[str, Float[Array, ""]]]:
        """Mean cross-entropy in nats, running statistics, {"accuracy": ...}; `key` is not used."""
        del key
        episode = self._family.draw(data.split, self._key)
        labels = episode.query_labels if data.of == "query" else episode.support_labels
        logits, state = self._logits(params, state, data, episode)
        loss = jnp.mean(classification.cross_entropy(logits, labels))
        return loss, state, {"accuracy": jnp.mean(classification.is_correct(logits, labels))}

    def _logits(
        self, params: Params, state: Any, part: Part, episode: episodes.Episode
    ) -> tuple[jax.Array, Any]:
        apply, support, query = self._family.apply, episode.support, episode.query
        if part.of == "support":
            return apply(params, state, support, len(support))
        if self._family.batch_norm == "support":
            both = jnp.concatenate([support, query])
            return apply(params, state, both, len(support))[0][len(support) :], state
        return apply(params, state, query, None if part.judged else len(query))

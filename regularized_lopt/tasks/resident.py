"""Tasks whose data live on the device: what meta-training and meta-test ask of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.tasks import data

Params = Any


class ResidentTask(upstream.Task):
    """A mean over examples, of data on the device.

    One of your own has `init` and `per_example`, and a `normalizer` where upstream's, which does
    nothing, will not do.

    Attributes:
      datasets: what it is trained and tested on.
      facts: what a reader of results may group tasks by, in words: "dataset", and of the networks
        "architecture", "sizes" and "activation".
    """

    def __init__(
        self,
        name: str,
        datasets: data.ResidentDatasets,
        architecture: str = "",
        sizes: str = "",
        activation: str = "",
    ):
        """Initializer.

        Args:
          name: of the task.
          datasets: what it is trained and tested on.
          architecture, sizes, activation: see `facts`; "": not known.
        """
        self._name = name
        self.datasets: data.ResidentDatasets = datasets
        self.facts: Mapping[str, str] = {
            "dataset": datasets.dataset,
            "architecture": architecture,
            "sizes": sizes,
            "activation": activation,
        }

    @property
    def name(self) -> str:
        return self._name

    def per_example(
        self, params: Params, batch: Any, key: jax.Array | None = None
    ) -> Mapping[str, Float[Array, batch]]:
        """What is measured of each example of a batch.

        Args:
          params: of the network.
          batch: as `datasets.normalize` gives it.
          key: of what is drawn in training, such as dropout; None: the trained network is judged.

        Returns:
          A dict of "loss", and of classifiers "accuracy", 1.0 where it is right, else 0.0.
        """
        raise NotImplementedError

    def judged(
        self, params: Params, model_state: Any, batch: Any
    ) -> Mapping[str, Float[Array, batch]]:
        """`per_example` of the trained network; a task with a model state reads it here.

        Args:
          params: of the network.
          model_state: of it, see upstream's `init_with_state`; None: it has none.
          batch: as `datasets.normalize` gives it.
        """
        del model_state
        return self.per_example(params, batch)

    @functools.cached_property
    def has_accuracy(self) -> bool:
        """Whether `per_example` knows it."""
        found = jax.eval_shape(
            lambda key: self.per_example(
                self.init(key),
                jax.tree.map(
                    lambda of: jnp.zeros(of.shape, of.dtype), self.datasets.abstract_batch
                ),
            ),
            jax.random.PRNGKey(0),
        )
        return "accuracy" in found

    @functools.cached_property
    def has_model_state(self) -> bool:
        """Whether there is something beside the params, see upstream's `init_with_state`."""
        return jax.eval_shape(self.init_with_state, jax.random.PRNGKey(0))[1] is not None

    def loss(self, params: Params, key: jax.Array, data: Any) -> Float[Array, ""]:
        """Mean loss of the batch in training; `key` draws what is drawn there."""
        return self.loss_and_aux(params, key, data)[0]

    def loss_and_aux(
        self, params: Params, key: jax.Array, data: Any
    ) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
        """Means over the batch of the loss and of what else `per_example` has, in training."""
        means = {name: jnp.mean(of) for name, of in self.per_example(params, data, key).items()}
        return means.pop("loss"), means


FACTORIES: dict[str, Callable[..., ResidentTask]] = {}
"""By name, (phase, batch_size) -> task."""


def register(name: str, make: Callable[[str, int], ResidentTask], batch_size: int = 128) -> None:
    """Makes a task known by a name, to gin and to `tasks.get`.

    Args:
      name: of the task.
      make: (phase, batch_size) -> task.
      batch_size: by default.
    """

    def factory(phase: str = "meta_test", batch_size: int = batch_size) -> ResidentTask:
        return make(phase, batch_size)

    factory.__name__ = factory.__qualname__ = name
    factory.__doc__ = (
        f"{name} in phase `phase`: 'meta_train' or 'meta_test', see `tasks.data`; `batch_size` > 0."
    )
    FACTORIES[name] = configurable(name, module="regularized_lopt.tasks")(factory)

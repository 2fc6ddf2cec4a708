"""Autoencoders of images: tasks that have a loss and no accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt.tasks import image, networks, resident

Params = Any


class ImageAutoencoder(resident.ResidentTask):
    """Images from themselves, through a narrow MLP with ReLU.

    The loss is the mean squared error of the pixels, which the network gives through a sigmoid.
    """

    datasets: image.ImageDatasets

    def __init__(self, name: str, hidden_sizes: list[int], datasets: image.ImageDatasets):
        """Initializer.

        Args:
          name: of the task.
          hidden_sizes: of the MLP, the code's among them.
          datasets: whose images it is trained and tested on; labels are not used.
        """
        super().__init__(name, datasets, "Autoencoder", "x".join(map(str, hidden_sizes)), "Relu")
        height, width, channels = datasets.image_shape
        network = networks.mlp(hidden_sizes, jax.nn.relu, height * width * channels)
        self._network = hk.without_apply_rng(hk.transform(network))

    def init(self, key: jax.Array) -> Params:
        return self._network.init(key, jnp.zeros((1, *self.datasets.image_shape)), False)

    def per_example(
        self, params: Params, batch: Any, key: jax.Array | None = None
    ) -> Mapping[str, Float[Array, batch]]:
        """Mean squared error over an image's pixels."""
        del key
        images = batch["image"]
        pixels = images.reshape(len(images), -1)
        found = jax.nn.sigmoid(self._network.apply(params, images, False))
        return {"loss": jnp.mean((found - pixels) ** 2, axis=1)}

    def normalizer(self, loss: jax.Array) -> jax.Array:
        """Clips the loss to [0, 1], where it is; NaN: 1."""
        return jnp.nan_to_num(jnp.clip(loss, 0, 1), nan=1.0)


def _register(dataset: str, hidden_sizes: list[int]) -> None:
    name = f"ImageAE_{dataset}_{'x'.join(map(str, hidden_sizes))}_Relu"

    def make(phase: str, batch_size: int) -> ImageAutoencoder:
        return ImageAutoencoder(name, hidden_sizes, image.ImageDatasets(dataset, phase, batch_size))

    resident.register(name, make)


for _dataset in ("Digits", "FashionMnist8"):
    _register(_dataset, [32, 8, 32])
for _dataset in ("FashionMnist", "Cifar10"):
    _register(_dataset, [128, 32, 128])

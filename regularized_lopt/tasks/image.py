"""Image classification tasks, named as upstream's: <Network>_<Data>_<sizes>_<Activation>."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.tasks import classification, data, networks, sources

Params = Any


class ImageTask(upstream.Task):
    """Softmax classification of images by a Haiku network.

    Batches are dicts of image, float32 [batch, h, w, c] in [0, 1], and label, int32 [batch].

    Attributes:
      facts: what a reader of results may group tasks by, in words: "dataset", and of the networks
        "architecture", "sizes" and "activation".
    """

    def __init__(
        self,
        name: str,
        network: networks.Network,
        datasets: data.ResidentDatasets,
        architecture: str = "",
        sizes: str = "",
        activation: str = "",
    ):
        """Initializer.

        Args:
          name: of the task.
          network: (images, is_training) -> logits.
          datasets: what it is trained and tested on.
          architecture, sizes, activation: see `facts`; "": not known.
        """
        self._name = name
        self.facts: Mapping[str, str] = {
            "dataset": datasets.dataset,
            "architecture": architecture,
            "sizes": sizes,
            "activation": activation,
        }
        self._network = hk.transform(network)
        self.datasets: data.ResidentDatasets = datasets

    @property
    def name(self) -> str:
        return self._name

    def init(self, key: jax.Array) -> Params:
        return self._network.init(key, jnp.zeros((1, *self.datasets.image_shape)), False)

    def logits(
        self, params: Params, images: Float[Array, "batch h w c"]
    ) -> Float[Array, "batch classes"]:
        """The outputs of the trained network: nothing is dropped.

        Raises:
          ValueError: the images do not have the dataset's shape.
        """
        return self._outputs(params, None, images, is_training=False)

    def _outputs(
        self, params: Params, key: jax.Array | None, images: jax.Array, is_training: bool
    ) -> jax.Array:
        expected = self.datasets.image_shape
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"{self.name} was given images of shape {tuple(images.shape)}; it takes [batch, "
                f"{', '.join(map(str, expected))}], as in {self.datasets.dataset}."
            )
        return self._network.apply(params, key, images, is_training)

    def loss(self, params: Params, key: jax.Array, data: Any) -> Float[Array, ""]:
        """Mean cross-entropy of the batch in nats; `key` draws what is dropped."""
        return self.loss_and_aux(params, key, data)[0]

    def loss_and_aux(
        self, params: Params, key: jax.Array, data: Any
    ) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
        """Mean cross-entropy in nats, and {"accuracy": share of the batch classified correctly}.

        Both are of the network in training.
        """
        logits = self._outputs(params, key, data["image"], is_training=True)
        loss = jnp.mean(classification.cross_entropy(logits, data["label"]))
        return loss, {"accuracy": jnp.mean(classification.is_correct(logits, data["label"]))}

    def normalizer(self, loss: jax.Array) -> jax.Array:
        """Clips the loss to [0, 1.5 log(classes)] as upstream's tasks do; NaN: the upper end."""
        top = 1.5 * jnp.log(float(self.datasets.extra_info["num_classes"]))
        return jnp.nan_to_num(jnp.clip(loss, 0, top), nan=top, posinf=top, neginf=top)


TaskFactory = Callable[..., ImageTask]
FACTORIES: dict[str, TaskFactory] = {}


def _register(name: str, dataset: str, network: networks.Network, *facts: str) -> None:
    def factory(phase: str = "meta_test", batch_size: int = 128) -> ImageTask:
        return ImageTask(name, network, data.ResidentDatasets(dataset, phase, batch_size), *facts)

    factory.__name__ = factory.__qualname__ = name
    factory.__doc__ = (
        f"{name} in phase `phase`: 'meta_train' or 'meta_test', see `tasks.data`; `batch_size` > 0."
    )
    FACTORIES[name] = configurable(name, module="regularized_lopt.tasks")(factory)


def _register_mlp(dataset: str, hidden: Sequence[int], activation: str) -> None:
    sizes = "x".join(map(str, hidden))
    network = networks.mlp(hidden, _ACTIVATIONS[activation])
    name = f"ImageMLP_{dataset}_{sizes}_{activation}"
    _register(name, dataset, network, "MLP", sizes, activation)


_ACTIVATIONS = {"Sigmoid": jax.nn.sigmoid, "Relu": jax.nn.relu}
for _dataset, _spec in sources.SPECS.items():
    # The paper's 20 units; twice as wide; twice as deep.
    for _hidden in ([20], [40], [20, 20]):
        for _activation in _ACTIVATIONS:
            _register_mlp(_dataset, _hidden, _activation)
    # The smoothing paper's, which are ReLU networks all.
    for _hidden in ([32], [32, 32]):
        _register_mlp(_dataset, _hidden, "Relu")
    # Later convolutions do not fit what is left of an 8x8 image.
    _padding = "SAME" if _spec.image_shape[0] < 12 else "VALID"
    for _name, _sizes, _network in (
        ("Conv", "16x32", networks.conv_16x32),
        ("Conv", "32x32x32", networks.conv_32x32x32),
        ("TwiceStridedConv", "32x32x32", networks.twice_strided_conv_32x32x32),
        ("LeNet", "", networks.lenet),
        ("LeNet", "10x20x50", networks.lenet_10x20x50),
        (
            *("LeNet", "10x20x50_Dropout05"),
            functools.partial(networks.lenet_10x20x50, dropout_rate=0.5),
        ),
    ):
        _register(
            f"{_name}_{_dataset}" + (f"_{_sizes}" if _sizes else ""),
            _dataset,
            _network(_padding),
            *(_name, _sizes, "Relu"),
        )

# STAR's, beside ImageMLP_FashionMnist8_32_Relu. Upstream has the same by names that it alone may
# have: ImageMLP_FashionMnist8_Relu32, ImageMLP_FashionMnist_Relu128x128, Conv_Cifar10_32x64x64.
_register_mlp("FashionMnist", [128, 128], "Relu")
_register(
    "StridedConv_Cifar10_32x64x64",
    "Cifar10",
    networks.strided_cnn([32, 64, 64]),
    *("StridedConv", "32x64x64", "Relu"),
)

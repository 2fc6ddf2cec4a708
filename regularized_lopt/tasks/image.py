"""Image classification tasks, named as upstream's: <Network>_<Data>_<sizes>_<Activation>."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regularized_lopt import errors
from regularized_lopt.tasks import classification, data, networks, resident, resnet, sources

Params = Any
ModelState = Any
"""What a network keeps beside its params: BatchNorm's running statistics."""


class ImageDatasets(data.ResidentDatasets):
    """Images and their labels.

    Raw images are uint8 [n, h, w, c], of resized datasets float32, and labels int32 [n]. In batches
    images are float32 in [0, 1].

    Attributes:
      image_shape: (height, width, channels).
    """

    def __init__(self, dataset: str, phase: str, batch_size: int = 128, seed: int = 0):
        """Initializer; no data is read yet.

        Args:
          dataset: a key of `sources.SPECS`.
          phase: "meta_train" or "meta_test", see `data`.
          batch_size: examples per batch, > 0.
          seed: of the iterators' shuffling.
        """
        self._spec = sources.SPECS[errors.check_name("dataset", dataset, sources.SPECS)]
        self.image_shape = self._spec.image_shape
        example = {
            "image": jax.ShapeDtypeStruct(self.image_shape, jnp.float32),
            "label": jax.ShapeDtypeStruct((), jnp.int32),
        }
        info = {"num_classes": self._spec.num_classes}
        super().__init__(dataset, phase, batch_size, seed, example, info)

    def num_train(self) -> int:
        return len(sources.load_arrays(self.dataset)["train_label"])

    def read(self, index: np.ndarray | None) -> dict[str, np.ndarray]:
        arrays = sources.load_arrays(self.dataset)
        split, chosen = ("test", slice(None)) if index is None else ("train", index)
        return {
            "image": np.asarray(arrays[f"{split}_image"][chosen]),
            "label": arrays[f"{split}_label"][chosen].astype(np.int32),
        }

    def normalize(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Images in [0, 1] float32, labels int32."""
        images: Float[Array, "batch h w c"] = raw["image"].astype(np.float32) / np.float32(
            self._spec.max_value
        )
        labels: Int[Array, batch] = raw["label"]
        return {"image": images, "label": labels}


class ImageTask(resident.ResidentTask):
    """Softmax classification of images by a Haiku network.

    Batches are dicts of image, float32 [batch, h, w, c] in [0, 1], and label, int32 [batch]. The
    loss is the cross-entropy in nats.
    """

    datasets: ImageDatasets

    def __init__(self, name: str, network: networks.Network, datasets: ImageDatasets, *facts: str):
        """Initializer.

        Args:
          name: of the task.
          network: (images, is_training) -> logits.
          datasets: what it is trained and tested on.
          *facts: architecture, sizes, activation, see `ResidentTask`.
        """
        super().__init__(name, datasets, *facts)
        self._network = hk.transform_with_state(network)

    def init(self, key: jax.Array) -> Params:
        return self.init_with_state(key)[0]

    def init_with_state(self, key: jax.Array) -> tuple[Params, ModelState]:
        """(params, model state); the latter is None where the network has none."""
        images = jnp.zeros((1, *self.datasets.image_shape))
        params, model_state = self._network.init(key, images, False)
        return params, model_state or None

    def logits(
        self,
        params: Params,
        images: Float[Array, "batch h w c"],
        model_state: ModelState = None,
    ) -> Float[Array, "batch classes"]:
        """The outputs of the trained network: nothing is dropped, statistics are the running ones.

        Raises:
          ValueError: the images do not have the dataset's shape.
        """
        return self._outputs(params, model_state, None, images, is_training=False)[0]

    def _outputs(
        self,
        params: Params,
        model_state: ModelState,
        key: jax.Array | None,
        images: jax.Array,
        is_training: bool,
    ) -> tuple[jax.Array, ModelState]:
        expected = self.datasets.image_shape
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"{self.name} was given images of shape {tuple(images.shape)}; it takes [batch, "
                f"{', '.join(map(str, expected))}], as in {self.datasets.dataset}."
            )
        given = {} if model_state is None else model_state
        logits, after = self._network.apply(params, given, key, images, is_training)
        return logits, None if model_state is None else after

    def per_example(
        self, params: Params, batch: Any, key: jax.Array | None = None
    ) -> Mapping[str, Float[Array, batch]]:
        """Cross-entropy in nats, and whether the label has the largest logit."""
        return self._measured(params, None, key, batch)[0]

    def judged(
        self, params: Params, model_state: ModelState, batch: Any
    ) -> Mapping[str, Float[Array, batch]]:
        """See `ResidentTask.judged`: statistics are the running ones."""
        return self._measured(params, model_state, None, batch)[0]

    def loss_with_state(
        self, params: Params, state: ModelState, key: jax.Array, data: Any
    ) -> tuple[Float[Array, ""], ModelState]:
        """(loss, next model state)."""
        return self.loss_with_state_and_aux(params, state, key, data)[:2]

    def loss_with_state_and_aux(
        self, params: Params, state: ModelState, key: jax.Array, data: Any
    ) -> tuple[Float[Array, ""], ModelState, Mapping[str, Float[Array, ""]]]:
        """(loss, next model state, aux), all of the network in training.

        There, statistics are those of the batch: the loss does not depend on the state, which may
        be left out.
        """
        found, state = self._measured(params, state, key, data)
        means = {name: jnp.mean(of) for name, of in found.items()}
        return means.pop("loss"), state, means

    def _measured(
        self, params: Params, model_state: ModelState, key: jax.Array | None, batch: Any
    ) -> tuple[dict[str, jax.Array], ModelState]:
        is_training = key is not None
        logits, state = self._outputs(params, model_state, key, batch["image"], is_training)
        correct = classification.is_correct(logits, batch["label"])
        return {
            "loss": classification.cross_entropy(logits, batch["label"]),
            "accuracy": correct.astype(jnp.float32),
        }, state

    def normalizer(self, loss: jax.Array) -> jax.Array:
        """Clips the loss to [0, 1.5 log(classes)] as upstream's tasks do; NaN: the upper end."""
        top = 1.5 * jnp.log(float(self.datasets.extra_info["num_classes"]))
        return jnp.nan_to_num(jnp.clip(loss, 0, top), nan=top, posinf=top, neginf=top)


def _register(name: str, dataset: str, network: networks.Network, *facts: str) -> None:
    def make(phase: str, batch_size: int) -> ImageTask:
        return ImageTask(name, network, ImageDatasets(dataset, phase, batch_size), *facts)

    resident.register(name, make)


def _register_mlp(dataset: str, hidden: Sequence[int], activation: str) -> None:
    sizes = "x".join(map(str, hidden))
    network = networks.mlp(hidden, _ACTIVATIONS[activation])
    name = f"ImageMLP_{dataset}_{sizes}_{activation}"
    _register(name, dataset, network, "MLP", sizes, activation)


_ACTIVATIONS = {"Sigmoid": jax.nn.sigmoid, "Relu": jax.nn.relu}
for _dataset, _spec in sources.SPECS.items():
    if _spec.num_classes != 10:
        continue
    # The paper's 20 units; twice as wide; twice as deep.
    for _hidden in ([20], [40], [20, 20]):
        for _activation in _ACTIVATIONS:
            _register_mlp(_dataset, _hidden, _activation)
    # The smoothing paper's, which are ReLU networks all.
    for _hidden in ([32], [32, 32]):
        _register_mlp(_dataset, _hidden, "Relu")
    # With a model state, BatchNorm's.
    _register(
        f"ImageMLP_{_dataset}_20_BatchNorm_Relu",
        _dataset,
        networks.normalized_mlp([20], jax.nn.relu),
        *("MLP", "20_BatchNorm", "Relu"),
    )
    for _width in (8, 64):
        _register(
            f"ResNet18_{_dataset}_{_width}",
            _dataset,
            resnet.resnet18(_width),
            *("ResNet18", str(_width), "Relu"),
        )
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

# The smoothing paper's on CIFAR-100.
for _name, _sizes, _made in (
    ("TwiceStridedConv", "32x32x32", networks.twice_strided_conv_32x32x32("VALID", 100)),
    ("ResNet18", "8", resnet.resnet18(8, 100)),
    ("ResNet18", "64", resnet.resnet18(64, 100)),
):
    _register(f"{_name}_Cifar100_{_sizes}", "Cifar100", _made, _name, _sizes, "Relu")

# STAR's, beside ImageMLP_FashionMnist8_32_Relu. Upstream has the same by names that it alone may
# have: ImageMLP_FashionMnist8_Relu32, ImageMLP_FashionMnist_Relu128x128, Conv_Cifar10_32x64x64.
_register_mlp("FashionMnist", [128, 128], "Relu")
_register(
    "StridedConv_Cifar10_32x64x64",
    "Cifar10",
    networks.strided_cnn([32, 64, 64]),
    *("StridedConv", "32x64x64", "Relu"),
)
# Unlike the networks above; the larger is upstream's ImageMLP_Cifar10_128x128x128_LayerNorm_Relu.
for _hidden in ([32, 32], [128, 128, 128]):
    _sizes = "x".join(map(str, _hidden))
    _register(
        f"LayerNormMLP_Cifar10_{_sizes}_Relu",
        "Cifar10",
        networks.layer_norm_mlp(_hidden, jax.nn.relu),
        *("LayerNormMLP", _sizes, "Relu"),
    )

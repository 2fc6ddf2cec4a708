"""Language models of bytes, on text that every machine has: Python's own standard library."""

from __future__ import annotations

import functools
import pathlib
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regularized_lopt import errors
from regularized_lopt.tasks import classification, data, resident, sources

Params = Any
Network = Callable[[Int[Array, "batch length"]], Float[Array, "batch length bytes"]]

NUM_BYTES = 256
MOST_TESTED = 4096
"""Pieces of the test set: all of them would take as long as hundreds of inner steps."""
# Not of the library itself, or not there everywhere.
_LEFT_OUT = frozenset(
    ("__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3")
)


class TextDatasets(data.ResidentDatasets):
    """Pieces of the standard library's sources, each of `length` + 1 bytes.

    A file is in one split alone: a fifth of all are the test set, the same everywhere for a version
    of Python, and `meta_splits` divides the others. Pieces of a file follow each other, with the
    last byte of one the first of the next; what is left at its end is dropped. Of the test set at
    most `MOST_TESTED` are taken, evenly spaced.

    Batches are dicts of text, int32 [batch, length + 1].

    Attributes:
      length: bytes that are predicted from those before.
    """

    def __init__(self, phase: str, batch_size: int = 32, length: int = 32, seed: int = 0):
        """Initializer; no file is read yet.

        Args:
          phase: "meta_train" or "meta_test", see `data`.
          batch_size: pieces per batch, > 0.
          length: see the attribute, > 0.
          seed: of the iterators' shuffling.
        """
        errors.check_count("length", length)
        self.length = length
        example = {"text": jax.ShapeDtypeStruct((length + 1,), jnp.int32)}
        name = f"Python{sys.version_info.major}.{sys.version_info.minor}"
        super().__init__(name, phase, batch_size, seed, example, {"vocab_size": NUM_BYTES})

    def num_train(self) -> int:
        return len(_files()[0])

    def read(self, index: np.ndarray | None) -> dict[str, np.ndarray]:
        train, test = _files()
        chosen = test if index is None else [train[place] for place in index]
        stride, width = self.length, self.length + 1
        pieces = [
            np.lib.stride_tricks.sliding_window_view(text, width)[::stride]
            for text in chosen
            if len(text) >= width
        ]
        if not pieces:
            raise sources.BadDataError(
                f"{self.dataset}'s files of a split are all shorter than {width} bytes: take a "
                "shorter length."
            )
        found = np.concatenate(pieces)
        if index is None and len(found) > MOST_TESTED:
            found = found[np.linspace(0, len(found) - 1, MOST_TESTED).round().astype(int)]
        return {"text": found}

    def normalize(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Bytes as int32."""
        return {"text": raw["text"].astype(np.int32)}


@functools.cache
def _files() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Contents of the library's files, uint8: of the training set, and of the test set."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(
        (
            path
            for path in root.rglob("*.py")
            if not _LEFT_OUT.intersection(path.relative_to(root).parts)
            and not path.name.startswith("_sysconfigdata")  # Of the machine.
        ),
        key=lambda path: path.relative_to(root).as_posix(),
    )
    if len(paths) < 50:
        raise sources.DataUnavailableError(
            f"{root} has only {len(paths)} source files of Python's standard library: language "
            "tasks read them. Use a Python that comes with its sources."
        )
    order = np.random.default_rng(0).permutation(len(paths))
    texts = [np.frombuffer(paths[place].read_bytes(), np.uint8) for place in order]
    num_test = len(paths) // 5
    return texts[num_test:], texts[:num_test]


class TextTask(resident.ResidentTask):
    """Prediction of every byte from those before it; the loss is in nats per byte."""

    datasets: TextDatasets

    def __init__(self, name: str, network: Network, datasets: TextDatasets, *facts: str):
        """Initializer.

        Args:
          name: of the task.
          network: bytes -> logits of the byte after each.
          datasets: what it is trained and tested on.
          *facts: architecture, sizes, activation, see `ResidentTask`.
        """
        super().__init__(name, datasets, *facts)
        self._network = hk.without_apply_rng(hk.transform(network))

    def init(self, key: jax.Array) -> Params:
        return self._network.init(key, jnp.zeros((1, self.datasets.length), jnp.int32))

    def logits(
        self, params: Params, text: Int[Array, "batch length"]
    ) -> Float[Array, "batch length bytes"]:
        """Of the byte after each."""
        return self._network.apply(params, text)

    def per_example(
        self, params: Params, batch: Any, key: jax.Array | None = None
    ) -> Mapping[str, Float[Array, batch]]:
        """Cross-entropy, the mean over the bytes of a piece."""
        del key
        text = batch["text"]
        logits = self.logits(params, text[:, :-1])
        return {"loss": jnp.mean(classification.cross_entropy(logits, text[:, 1:]), axis=1)}

    def normalizer(self, loss: jax.Array) -> jax.Array:
        """Clips the loss to [0, 1.5 log 256]; NaN: the upper end."""
        top = 1.5 * float(np.log(NUM_BYTES))
        return jnp.nan_to_num(jnp.clip(loss, 0, top), nan=top)


def lstm(hidden_size: int, embedding_size: int = 16) -> Network:
    """An LSTM on embedded bytes, and a dense layer."""

    def network(text: jax.Array) -> jax.Array:
        embedded = hk.Embed(NUM_BYTES, embedding_size)(text)
        core = hk.LSTM(hidden_size)
        out, _ = hk.dynamic_unroll(
            core, embedded, core.initial_state(text.shape[0]), time_major=False
        )
        return hk.Linear(NUM_BYTES)(out)

    return network


def transformer(sizes: Sequence[int], num_heads: int = 4) -> Network:
    """A causal transformer with learned positions, normalized before every block.

    Args:
      sizes: of its layers, all alike.
      num_heads: of each, which divides the size.

    Raises:
      ValueError: there is no layer, sizes differ, or the number of heads does not divide them.
    """
    errors.check_count("num_heads", num_heads)
    for size in sizes:
        errors.check_count("sizes: one", size)
    if len(set(sizes)) != 1 or sizes[0] % num_heads:
        raise ValueError(
            f"sizes = {sizes!r}: one or more are needed, all alike, that {num_heads} heads divide."
        )

    def network(text: jax.Array) -> jax.Array:
        size, length = sizes[0], text.shape[1]
        positions = hk.get_parameter(
            "positions", (length, size), init=hk.initializers.TruncatedNormal(0.02)
        )
        x = hk.Embed(NUM_BYTES, size)(text) + positions
        causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
        scale = hk.initializers.VarianceScaling(1.0)
        for _ in sizes:
            attention = hk.MultiHeadAttention(num_heads, size // num_heads, w_init=scale)
            normed = _layer_norm(x)
            x = x + attention(normed, normed, normed, mask=causal)
            wide = jax.nn.gelu(hk.Linear(4 * size)(_layer_norm(x)))
            x = x + hk.Linear(size)(wide)
        return hk.Linear(NUM_BYTES)(_layer_norm(x))

    return network


def _layer_norm(x: jax.Array) -> jax.Array:
    return hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)


def _register(name: str, network: Network, *facts: str) -> None:
    def make(phase: str, batch_size: int) -> TextTask:
        return TextTask(name, network, TextDatasets(phase, batch_size), *facts)

    resident.register(name, make, batch_size=32)


_register("LSTM_Python_32", lstm(32), "LSTM", "32")
_register("Transformer_Python_32x32", transformer([32, 32]), "Transformer", "32x32")

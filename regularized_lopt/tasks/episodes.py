"""Episodes of few-shot classification, drawn inside the jit from arrays on the device.

An N-way K-shot episode has K images of each of N classes to learn from, its support, and others of
the same classes to be judged on, its query. The classes of a dataset are split in three, so that
those that a learner is tested on are new to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regularized_lopt import errors
from regularized_lopt.tasks import sources

NAMES = ("train", "valid", "test")
"""Of the splits."""
_SHARES = (0.64, 0.16, 0.2)


@flax.struct.dataclass
class Split:
    """Classes of one split, and the images that they are made of.

    A class is a source class, or a pair of them: its images are then pairs of theirs, one to the
    left of the other, put together as they are drawn.

    Attributes:
      images: uint8 or float32 [images, h, w, c].
      members: int32 [sources, most]: which images a source class has, in its first `counts`.
      counts: int32 [sources].
      classes: int32 [classes, 1 or 2]: source classes.
      max_value: the value that stands for 1.
    """

    images: Any
    members: Any
    counts: Any
    classes: Any
    max_value: float = flax.struct.field(pytree_node=False, default=255.0)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels


class Episode(NamedTuple):
    """N classes, in an order of its own, which their labels count.

    Attributes:
      support, support_labels: float32 [N K, h, w, c] in [0, 1] and int32 [N K], class by class.
      query, query_labels: the same of the images to be judged on, [N Q, ...].
      classes: int32 [N], which of the split's they are.
    """

    support: Float[Array, "nk h w c"]
    support_labels: Int[Array, nk]
    query: Float[Array, "nq h w c"]
    query_labels: Int[Array, nq]
    classes: Int[Array, n]


def draw(split: Split, key: jax.Array, ways: int, shots: int, queries: int) -> Episode:
    """An episode; the same key gives the same one on every machine.

    Args:
      split: what it is drawn from.
      key: all of its randomness.
      ways: N, classes.
      shots: K, images of each to learn from.
      queries: images of each to be judged on.
    """
    split = jax.tree.map(jnp.asarray, split)  # NumPy arrays take no traced indices.
    class_key, image_key, place_key = jax.random.split(key, 3)
    own = _distinct(class_key, jnp.asarray(len(split.classes)), ways)
    sources = split.classes[own]
    place = _distinct(image_key, split.counts[sources], shots + queries)
    index = jnp.take_along_axis(split.members[sources], place, axis=-1)
    # By image, so that the two parts can be made one without the other.
    index = jnp.moveaxis(index, -1, 1)
    height = split.images.shape[1]
    # Of pairs, where the half-sized parts begin.
    rows = _below(place_key, jnp.full(index.shape, height - height // 2 + 1))

    def part(of: slice, count: int) -> tuple[jax.Array, jax.Array]:
        chosen = index[:, of].reshape(ways * count, index.shape[-1])
        images = split.images[chosen].astype(jnp.float32)
        images = jax.vmap(_composed)(images, rows[:, of].reshape(chosen.shape))
        labels = jnp.repeat(jnp.arange(ways), count, total_repeat_length=ways * count)
        # Divided last: until then all numbers are exact.
        return images / split.max_value, labels

    return Episode(*part(slice(shots), shots), *part(slice(shots, None), queries), own)


def _distinct(key: jax.Array, counts: Int[Array, "*batch"], k: int) -> Int[Array, "*batch k"]:
    """k different numbers below each count, in random order.

    The first k steps of a Fisher-Yates shuffle, without its array: of that only what was moved is
    kept, so that time and memory do not grow with the counts, and nothing is sorted.
    """
    steps = jnp.arange(k)
    # At step i the entry at i changes places with one that is not before it.
    places = steps + _below(key, counts[..., None] - steps)

    def step(i: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chosen, moved = carry

        def entry(at: jax.Array) -> jax.Array:
            """What the last move to `at` left there; at first, `at` itself."""
            hits = (places == at[..., None]) & (steps < i)
            last = jnp.max(jnp.where(hits, steps, -1), axis=-1, keepdims=True)
            found = jnp.take_along_axis(moved, jnp.maximum(last, 0), axis=-1)
            return jnp.where(last < 0, at[..., None], found)[..., 0]

        here = entry(jnp.broadcast_to(i, places.shape[:-1]))
        return chosen.at[..., i].set(entry(places[..., i])), moved.at[..., i].set(here)

    return jax.lax.fori_loop(0, k, step, (jnp.zeros_like(places), jnp.zeros_like(places)))[0]


def _below(key: jax.Array, counts: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
    """A whole number from 0 to count - 1 for each count, all equally likely but for 2^-23 count.

    `jax.random.randint` is exact and takes three times as many instructions to compile.
    """
    drawn = jnp.floor(jax.random.uniform(key, counts.shape) * counts).astype(counts.dtype)
    return jnp.minimum(drawn, counts - 1)  # The product may be rounded up.


def _composed(parts: Float[Array, "parts h w c"], rows: Int[Array, parts]) -> Float[Array, "h w c"]:
    """One image of one part, or of two: each at half its size, in its half, from its row on."""
    count, height, width, channels = parts.shape
    if count == 1:
        return parts[0]
    small = parts.reshape(count, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    canvas = jnp.zeros((count, height, width // 2, channels))
    place = jax.vmap(lambda onto, what, row: jax.lax.dynamic_update_slice(onto, what, (row, 0, 0)))
    return jnp.concatenate(list(place(canvas, small, rows)), axis=1)


def from_arrays(
    images: Any,
    labels: Any,
    shares: Sequence[float] = _SHARES,
    seed: int = 0,
    max_value: float | None = None,
) -> dict[str, Split]:
    """Splits of your own images: no class is in two of them.

    Args:
      images: uint8 [n, h, w, c], or floats.
      labels: integers [n].
      shares: of the classes, by split: train, valid, test; each > 0, their sum 1.
      seed: fixes which class is where, 0 to 2^32 - 1.
      max_value: the value that stands for 1, > 0; default: 255 for integers, else 1.

    Raises:
      ValueError: the arrays do not fit each other, floats are above 1 without max_value, or a
        split has no class.
    """
    images, labels = _checked(images, labels)
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    value = _max_value(images, max_value)
    found = {}
    for name, classes in _shared_out(len(by_class), shares, seed, "classes").items():
        own = [by_class[index] for index in classes]
        # The images of the split's own classes, and no others.
        found[name] = _split(
            images[np.concatenate(own)],
            [len(one) for one in own],
            np.arange(len(own))[:, None],
            value,
        )
    return found


def pairs_from_arrays(
    images: Any,
    labels: Any,
    shares: Sequence[float] = _SHARES,
    seed: int = 0,
    max_value: float | None = None,
) -> dict[str, Split]:
    """The same of pairs: of n classes n^2 new ones, which are split; the images are split, too.

    So that a test has not even seen the parts of its images. But each of the n classes is a part of
    pairs in every split, and about half of the test's have their mirror, (b, a) for (a, b), in
    training. Arguments as in `from_arrays`; height and width must be even.
    """
    images, labels = _checked(images, labels)
    height, width = images.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(
            f"images are of {height} x {width} pixels: pairs are made of halves, so both must be "
            "even."
        )
    value = _max_value(images, max_value)
    sources = np.unique(labels)
    pairs = np.stack(np.divmod(np.arange(len(sources) ** 2), len(sources)), axis=1)
    of_classes = _shared_out(len(pairs), shares, seed, "classes")
    own: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for place, label in enumerate(sources):
        index = np.flatnonzero(labels == label)
        what = f"images of class {label}"
        for name, chosen in _shared_out(len(index), shares, (seed, place), what).items():
            own[name].append(index[chosen])
    return {
        name: _split(
            images[np.concatenate(own[name])],
            [len(one) for one in own[name]],
            pairs[classes],
            value,
        )
        for name, classes in of_classes.items()
    }


def load(dataset: str, shares: Sequence[float] = _SHARES, seed: int = 0) -> dict[str, Split]:
    """Splits of a dataset: "Digits", "FashionMnist", ..., or its pairs: "DoubleMnist", ...

    Training and test images together, since it is classes that are split. "DoubleMnist" stands in
    for MultiDigitMNIST (Sun 2019), whose images are larger and whose split is another.

    Raises:
      errors.UnknownNameError: there is no such dataset.
      ValueError: see `from_arrays`.
    """
    errors.check_name("few-shot dataset", dataset, DATASETS)
    doubled = dataset.startswith(_DOUBLE)
    name = dataset.removeprefix(_DOUBLE)
    arrays: Mapping[str, np.ndarray] = sources.load_arrays(name)
    images, labels = (
        np.concatenate([arrays[f"{part}_{kind}"] for part in ("train", "test")])
        for kind in ("image", "label")
    )
    make = pairs_from_arrays if doubled else from_arrays
    return make(images, labels, shares, seed, sources.SPECS[name].max_value)


_DOUBLE = "Double"
DATASETS = (*sources.SPECS, *(f"{_DOUBLE}{name}" for name in sources.SPECS))


def check(splits: Mapping[str, Split], ways: int, shots: int, queries: int) -> None:
    """Refuses episodes that the splits cannot give.

    Raises:
      ValueError: too many ways or images, or splits of images of different sizes; in one line.
    """
    errors.check_count("ways", ways, least=2)
    errors.check_count("shots", shots)
    errors.check_count("queries", queries)
    for name in NAMES:
        if name not in splits:
            raise ValueError(f"The dataset has no split {name!r}: give {', '.join(NAMES)}.")
        split = splits[name]
        if split.image_shape != splits[NAMES[0]].image_shape:
            raise ValueError(
                f"The {name} split has images of {split.image_shape}, the {NAMES[0]} split of "
                f"{splits[NAMES[0]].image_shape}: give all of them one size."
            )
        classes, fewest = len(split.classes), int(np.min(split.counts))
        if ways > classes:
            raise ValueError(
                f"ways = {ways}: the {name} split has {classes} classes. Give {classes} or fewer, "
                "or splits of other shares."
            )
        if shots + queries > fewest:
            raise ValueError(
                f"shots + queries = {shots} + {queries}: the smallest class of the {name} split "
                f"has {fewest} images. Give fewer."
            )


def _split(
    images: np.ndarray, counts: Sequence[int], classes: np.ndarray, max_value: float
) -> Split:
    """Of images that are sorted by source class."""
    first = np.cumsum([0, *counts[:-1]])
    # Beyond its own, a source class has its last image again, which is never drawn.
    place = np.minimum(np.arange(max(counts)), np.asarray(counts)[:, None] - 1)
    return Split(
        images=images,
        members=(first[:, None] + place).astype(np.int32),
        counts=np.asarray(counts, np.int32),
        classes=classes.astype(np.int32),
        max_value=max_value,
    )


def _shared_out(
    count: int, shares: Sequence[float], seed: int | tuple[int, int], what: str
) -> dict[str, np.ndarray]:
    """The numbers below `count`, shuffled, by split."""
    if len(shares) != len(NAMES):
        raise ValueError(f"shares = {tuple(shares)}: give three, of {', '.join(NAMES)}.")
    for share in shares:
        errors.check_positive("shares", share)
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares = {tuple(shares)}: their sum must be 1.")
    errors.check_seed("seed", seed if isinstance(seed, int) else seed[0])
    ends = [round(count * end) for end in np.cumsum(shares)[:-1]]
    parts = np.split(np.random.default_rng(seed).permutation(count), ends)
    for name, part in zip(NAMES, parts, strict=True):
        if not len(part):
            raise ValueError(
                f"The {name} split is empty: {count} {what} and shares of {tuple(shares)}. Give "
                "more of them, or other shares."
            )
    return dict(zip(NAMES, map(np.sort, parts), strict=True))


def _checked(images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(
            f"images have shape {images.shape} and labels {labels.shape}: give [n, height, width, "
            "channels] and [n], n > 0."
        )
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype}: give integers.")
    if images.dtype.kind == "f":
        if not np.isfinite(images).all():
            raise ValueError("images have values that are not finite.")
        return images.astype(np.float32), labels
    if images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype}: give uint8, or floats.")
    return images, labels


def _max_value(images: np.ndarray, given: float | None) -> float:
    if given is not None:
        errors.check_positive("max_value", given)
        return float(given)
    if images.dtype != np.uint8 and (highest := images.max()) > 1:
        raise ValueError(
            f"images are floats with a pixel of {highest:g}: give max_value, the value for 1."
        )
    return 255.0 if images.dtype == np.uint8 else 1.0

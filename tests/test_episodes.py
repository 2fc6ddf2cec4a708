"""Episodes: no class in two splits, no image twice, and the same for the same key."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import errors
from regularized_lopt.tasks import episodes

SIZES = ((2, 1, 1), (2, 5, 3), (3, 2, 4))  # Ways, shots, queries.
SEEDS = st.integers(0, 2**32 - 1)
DRAWN = settings(max_examples=15, deadline=None, derandomize=True)


def numbered(num_classes, per_class, size=4):
    """Images that say which they are: all pixels are the number of the image, from 1."""
    count = num_classes * per_class
    images = np.broadcast_to(np.arange(1, count + 1)[:, None, None, None], (count, size, size, 1))
    labels = np.arange(count) % num_classes  # Not sorted by class.
    return images.astype(np.float32), labels


@functools.cache
def splits_of(paired, seed=0):
    make = episodes.pairs_from_arrays if paired else episodes.from_arrays
    arrays = numbered(4 if paired else 12, 60)
    return make(*arrays, shares=(0.5, 0.25, 0.25), seed=seed, max_value=1.0)


draw = jax.jit(episodes.draw, static_argnums=(2, 3, 4))


def numbers(images):
    """Of images, or of the two that each is made of: [n, 1 or 2]."""
    width = images.shape[2]
    halves = np.split(np.asarray(images), 2, axis=2)
    by_half = np.stack([half.max(axis=(1, 2, 3)) for half in halves], axis=1)
    assert width == 4
    return np.round(by_half).astype(int)


@pytest.mark.parametrize("paired", [False, True])
@given(seed=SEEDS)
@DRAWN
def test_no_class_is_in_two_splits_whatever_the_seed(paired, seed):
    splits = (episodes.pairs_from_arrays if paired else episodes.from_arrays)(
        *numbered(4 if paired else 12, 8), shares=(0.5, 0.25, 0.25), seed=seed, max_value=1.0
    )
    images, classes = [], []
    for split in splits.values():
        own = np.unique(split.images)
        images += own.tolist()
        # A source class is known by its images: those are numbered round the classes.
        sources = [
            {int(split.images[index, 0, 0, 0] - 1) % (4 if paired else 12) for index in row}
            for row in split.members
        ]
        assert all(len(one) == 1 for one in sources)
        sources = [one.pop() for one in sources]
        classes += [tuple(sources[part] for part in row) for row in split.classes]
        assert split.members.max() < len(split.images)
    assert len(images) == len(set(images)) == (32 if paired else 96)
    assert len(classes) == len(set(classes)) == (16 if paired else 12)


@pytest.mark.parametrize("paired", [False, True])
@given(seed=SEEDS, size=st.sampled_from(SIZES), name=st.sampled_from(episodes.NAMES))
@DRAWN
def test_an_episode_has_no_image_twice_and_labels_its_own_classes(paired, seed, size, name):
    ways, shots, queries = size
    split = splits_of(paired)[name]
    found = draw(split, jax.random.PRNGKey(seed), ways, shots, queries)
    assert found.support.shape == (ways * shots, 4, 4, 1)
    assert found.query.shape == (ways * queries, 4, 4, 1)
    assert np.bincount(found.support_labels).tolist() == [shots] * ways
    assert np.bincount(found.query_labels).tolist() == [queries] * ways
    own = np.concatenate([numbers(found.support), numbers(found.query)])
    assert len({tuple(one) for one in own}) == ways * (shots + queries)
    labels = np.concatenate([found.support_labels, found.query_labels])
    classes = {
        label: {tuple((one - 1) % (4 if paired else 12)) for one in own[labels == label]}
        for label in range(ways)
    }
    assert all(len(of) == 1 for of in classes.values())
    assert len({next(iter(of)) for of in classes.values()}) == ways


def test_the_same_key_gives_the_same_episode_jitted_or_not_and_another_key_another():
    split = splits_of(True)["train"]
    key = jax.random.PRNGKey(3)
    once, again = draw(split, key, 2, 5, 3), episodes.draw(split, key, 2, 5, 3)
    jax.tree.map(np.testing.assert_array_equal, once, again)
    other = draw(split, jax.random.PRNGKey(4), 2, 5, 3)
    assert not np.array_equal(once.support, other.support)
    # Which of its images, on any machine: these are integers.
    assert numbers(once.support)[:3].tolist() == [[1, 221], [109, 137], [97, 65]]


def test_splits_of_arrays_are_drawn_from_inside_a_jit_as_they_are():
    split, key = splits_of(True)["train"], jax.random.PRNGKey(4)
    assert isinstance(split.images, np.ndarray)
    jitted = jax.jit(lambda key: episodes.draw(split, key, 2, 1, 1))(key)
    np.testing.assert_array_equal(jitted.query, episodes.draw(split, key, 2, 1, 1).query)


def test_a_class_has_any_label_in_one_episode_or_another():
    split = splits_of(False)["test"]  # Three classes.
    seen = set()
    for seed in range(20):
        found = draw(split, jax.random.PRNGKey(seed), 3, 2, 4)
        seen |= {
            (int(n[0] - 1) % 12, int(label))
            for n, label in zip(numbers(found.support), found.support_labels, strict=True)
        }
    assert len(seen) == 9


def test_each_image_of_a_class_is_drawn_equally_often():
    counts = np.array([7, 4])
    drawn = jax.vmap(lambda key: episodes._distinct(key, counts, 3))(
        jax.random.split(jax.random.PRNGKey(0), 6000)
    )
    for row, count in enumerate(counts):
        for place in range(3):  # In support or query, wherever.
            often = np.bincount(drawn[:, row, place], minlength=count)
            assert len(often) == count
            assert np.abs(often / 6000 - 1 / count).max() < 5 * np.sqrt(1 / count / 6000)


def test_a_pair_stands_side_by_side_at_half_its_size_and_any_height():
    images = np.stack([np.full((8, 8, 1), 1.0), np.full((8, 8, 1), 2.0)]).astype(np.float32)
    found = np.asarray(episodes._composed(images, np.array([0, 4])))[..., 0]
    wanted = np.zeros((8, 8))
    wanted[:4, :4], wanted[4:, 4:] = 1, 2
    np.testing.assert_array_equal(found, wanted)
    arrays = numbered(4, 60, 8)
    split = episodes.pairs_from_arrays(*arrays, shares=(0.5, 0.25, 0.25), max_value=1.0)["train"]
    drawn = np.asarray(draw(split, jax.random.PRNGKey(0), 8, 9, 1).support)[..., 0]
    rows = np.argmax(drawn > 0, axis=1)[:, [0, 4]]  # The first that is lit, left and right.
    assert set(np.ravel(rows)) == set(range(5))


def test_digits_are_split_by_class_and_their_pairs_as_multidigitmnist_is():
    digits = episodes.load("Digits")
    assert [len(split.classes) for split in digits.values()] == [6, 2, 2]
    assert sum(len(split.images) for split in digits.values()) == 1797
    doubled = episodes.load("DoubleDigits")
    assert [len(split.classes) for split in doubled.values()] == [64, 16, 20]
    assert sum(len(split.images) for split in doubled.values()) == 1797
    found = draw(doubled["train"], jax.random.PRNGKey(0), 5, 2, 3)
    assert found.support.min() >= 0
    assert 0.5 < found.support.max() <= 1


NUMBERED, LABELS = numbered(12, 10)
IMAGES = NUMBERED / NUMBERED.max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: episodes.from_arrays(IMAGES, LABELS[:-1]), "labels"),
        (lambda: episodes.from_arrays(IMAGES[..., 0], LABELS), r"\[n, height, width"),
        (lambda: episodes.from_arrays(IMAGES, LABELS + 0.5), "give integers"),
        (lambda: episodes.from_arrays(IMAGES * np.nan, LABELS), "not finite"),
        (lambda: episodes.from_arrays(255 * IMAGES, LABELS), "pixel of 255: give max_value"),
        (
            lambda: episodes.from_arrays(IMAGES, LABELS, shares=(0.9, 0.02, 0.08)),
            "The valid split is empty",
        ),
        (lambda: episodes.from_arrays(IMAGES, LABELS, shares=(1.0, 0.0, 0.0)), "greater than 0"),
        (lambda: episodes.from_arrays(IMAGES, LABELS, shares=(0.5, 0.5)), "give three"),
        (lambda: episodes.from_arrays(IMAGES, LABELS, shares=(0.5, 0.5, 0.5)), "must be 1"),
        (lambda: episodes.from_arrays(IMAGES, LABELS, seed=-1), "seed = -1"),
        (lambda: episodes.pairs_from_arrays(IMAGES[:, :3], LABELS), "both must be even"),
        (lambda: episodes.load("DoubleMnits"), "Did you mean 'DoubleMnist'"),
        (
            lambda: episodes.check(splits_of(False), 4, 1, 1),
            "ways = 4: the valid split has 3 classes",
        ),
        (lambda: episodes.check(splits_of(False), 1, 1, 1), "ways = 1"),
        (lambda: episodes.check(splits_of(False), 2, 50, 11), "the smallest class of the train "),
        (lambda: episodes.check(splits_of(False), 2, 0, 1), "shots = 0"),
        (
            lambda: episodes.check(
                {**splits_of(False), "test": episodes.from_arrays(IMAGES[:, :3], LABELS)["test"]},
                2,
                1,
                1,
            ),
            "give all of them one size",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, message):
    with pytest.raises((ValueError, errors.UnknownNameError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)

"""Two-class tasks: who sees which classes."""

import collections

import gin
import jax
import numpy as np
import pytest
from helpers import CONSTANT, KEY, weights
from learned_optimization.tasks import test_utils

from regularized_lopt import LSTMLOpt, tasks
from regularized_lopt.estimators import RegularizedTruncatedGrad, RegularizedTruncatedStep
from regularized_lopt.tasks import sources

NAME = "ImageMLP_DigitsPairs_32_Relu"


def rows(images):
    return {np.asarray(image, np.uint8).tobytes() for image in images}


def of_classes(classes, part):
    arrays = sources.load_arrays("Digits")
    return rows(arrays[f"{part}_image"][np.isin(arrays[f"{part}_label"], classes)])


def test_each_part_sees_its_own_classes_only():
    family, last = tasks.get(NAME, "meta_train"), tasks.get(NAME)
    seen = {
        split: rows(family.datasets.host_arrays(split)["image"])
        for split in ("train", "inner_valid", "outer_valid")
    }
    assert seen["train"] == of_classes(range(6), "train")
    assert seen["inner_valid"] == of_classes(range(6), "test")
    assert seen["outer_valid"] == of_classes((6, 7), "train")
    assert rows(last.datasets.host_arrays("train")["image"]) == of_classes((8, 9), "train")
    assert rows(last.datasets.host_arrays("test")["image"]) == of_classes((8, 9), "test")
    assert np.bincount(last.datasets.host_arrays("test")["label"]).min() > 20


def test_a_pair_is_any_two_classes_and_stays_that_for_a_trajectory():
    family = tasks.get(NAME, "meta_train")
    by_image = {}
    arrays = sources.load_arrays("Digits")
    for image, label in zip(arrays["train_image"], arrays["train_label"], strict=True):
        by_image[np.asarray(image, np.uint8).tobytes()] = int(label)

    @jax.jit
    def drawn(key, batch_key):
        data = family.datasets.sample(family.datasets.arrays("train"), batch_key)
        return family.sample_task(key).batch(data)

    counted = collections.Counter()
    for trial in range(60):
        pairs = set()
        for batch_key in jax.random.split(KEY):
            batch = drawn(jax.random.PRNGKey(trial), batch_key)
            raw = np.rint(16 * np.asarray(batch["image"])).astype(np.uint8)
            labels = [by_image[image.tobytes()] for image in raw]
            assert len(labels) == 128
            by_rank = [
                {of for of, rank in zip(labels, batch["label"], strict=True) if rank == wanted}
                for wanted in (0, 1)
            ]
            assert all(len(of) == 1 for of in by_rank)
            pairs.add((*by_rank[0], *by_rank[1]))
        ((one, other),) = pairs
        assert one != other
        counted[one] += 1
        counted[other] += 1
    assert set(counted) == set(range(6))
    assert max(counted.values()) < 4 * min(counted.values())


def test_it_is_meta_trained_and_validated_on_classes_of_its_own():
    family = tasks.get(NAME, "meta_train")
    test_utils.smoketest_task_family(family)
    lopt = LSTMLOpt(hidden_size=2, num_layers=1)
    step = RegularizedTruncatedStep(family, lopt, CONSTANT(4))
    held_out = step.unroll_data(4, "outer_valid")
    assert held_out["train"] is held_out["outer"] is family.datasets.arrays("outer_valid")
    assert step.unroll_data(4)["train"] is family.datasets.arrays("train")
    estimator = RegularizedTruncatedGrad(step, unroll_length=2)
    theta = lopt.init(KEY)
    state = estimator.init_worker_state(weights(theta), KEY)
    out, _ = estimator.compute_gradient_estimate(weights(theta), KEY, state, with_summary=False)
    assert 0.3 < out.mean_loss < 3
    with pytest.raises(ValueError, match="outer_data_split = 'outer_valid': ImageMLP_DigitsPairs"):
        RegularizedTruncatedStep(family, lopt, CONSTANT(4), outer_data_split="outer_valid")


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("meta_train", (), r"class_split\.meta_train = \(\): give two or more classes"),
        ("meta_valid", (6,), r"class_split\.meta_valid = \(6,\): give two or more classes"),
        ("meta_test", (7, 8, 9), r"class_split\.meta_test = \(7, 8, 9\): give two classes"),
        ("meta_valid", (5, 6), "class 5 is in class_split.meta_train already"),
        ("meta_train", (0, 1, 1), "class 1 is in class_split.meta_train already"),
        ("meta_test", (8, 12), "class_split.meta_test, of Digits, = 12: .* from 0 to 9"),
    ],
)
@pytest.mark.parametrize("phase", ["meta_train", "meta_test"])
def test_a_split_that_is_empty_or_overlaps_is_refused_in_one_line(name, classes, message, phase):
    gin.bind_parameter(f"class_split.{name}", classes)
    with pytest.raises(ValueError, match=message) as error:
        tasks.get(NAME, phase)
    assert "\n" not in str(error.value).partition("\n  In call to configurable")[0]

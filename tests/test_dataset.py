"""A task's dataset: what is put in is selected again, however ragged; facts are attributes."""

import dataclasses
import itertools

import chex
import numpy as np
import pytest
from helpers_results import measured_task, optimizer, trained
from helpers_study import RELU
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import errors, regularizers, serialization, tasks
from regularized_lopt.measure import FlatnessConfig, optimizers, selections
from regularized_lopt.measure.flatness import SCALES, Flatness
from regularized_lopt.measure.loss_slices import LossSlices
from regularized_lopt.measure.results import POINTS
from regularized_lopt.regularizers import registry
from regularized_lopt.tasks import image, networks

LOSSES = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=25)
@given(seeds=st.lists(st.lists(LOSSES, min_size=1, max_size=4), min_size=1, max_size=4))
def test_what_seeds_have_found_is_selected_without_the_padding(seeds):
    """Of optimizers with different numbers of seeds."""
    losses = {f"o{i}": np.array(of) for i, of in enumerate(seeds)}
    found = {key: optimizer(of, of + 1, relative=of + 2) for key, of in losses.items()}
    task = measured_task(RELU, none=optimizer([0.0], [1.0]), **found)
    assert selections.keys(task) == ["none", *found]
    for one in selections.others(task):
        loss = losses[one["optimizer"].item()][:, None]
        assert (one.sizes["seed"], one.sizes["pair"]) == (len(loss), len(loss))
        assert selections.accuracy(one).shape == loss.shape
        assert np.isfinite(selections.accuracy(one)).all()
        for name, centre in (("sam", 0), ("gsam", loss)):
            last = selections.last(one, name).sel(point="poc", radius=0.01)
            np.testing.assert_array_equal(last.sel(scale="absolute"), loss + 1 - centre)
            np.testing.assert_array_equal(last.sel(scale="relative"), loss + 2 - centre)
        assert selections.networks(last).shape == (len(loss), 2)


def test_what_was_measured_is_selected_by_point_scale_and_radius():
    """Two runs, of which there are random ascents of four steps at three radii."""
    rng = np.random.default_rng(0)
    config = FlatnessConfig(radii=(0.1, 0.01, 0.001), num_steps=4)

    def ascents():
        return {scale: rng.normal(size=(2, 3, 5)) for scale in SCALES}

    def measured(**more):
        at = {
            point: [Flatness(*rng.normal(size=(2, 2)), ascents(), ascents(), *np.zeros((2, 2)))]
            for point in POINTS
        }
        return dataclasses.replace(trained([0.9]), at=at, **more)

    plane = rng.normal(size=(5, 5))
    sam = measured(slices=LossSlices(np.linspace(-1, 1, 5), plane[:, 2], plane))
    task = measured_task(RELU, config=config, none=measured(), sam=sam)
    assert selections.is_measured(task)
    assert selections.flatness_config(task) == config
    assert selections.headline(task) == 0.01
    one = selections.optimizer(task, "sam")
    for point, scale in itertools.product(POINTS, SCALES):
        (of,), at = sam.at[point], {"point": point, "scale": scale}
        loss, steepness = of.loss_ascent[scale], of.grad_norm_ascent[scale]
        rise = steepness - of.grad_norm[:, None, None]
        for part, name, wanted in (
            (selections.last, "sam", loss[..., -1]),
            (selections.last, "gam", rise[..., -1]),
            (selections.best, "sam", np.maximum(of.loss[:, None], loss.max(axis=-1))),
            (selections.best, "gam", np.maximum(0, rise.max(axis=-1))),
            (selections.ascent, "gam", rise[:, 1]),
        ):
            np.testing.assert_array_equal(part(one, name).sel(at)[0], wanted)
        last = selections.last(one, "gsam").sel(**at, radius=0.001)[0]
        np.testing.assert_array_equal(last, loss[:, 2, -1] - of.loss)
    ((name, slices),) = selections.slices(task).items()
    assert name == "sam"
    chex.assert_trees_all_equal(*map(serialization.fields, (slices, sam.slices)))
    with pytest.raises(errors.UnknownNameError, match="Unknown property 'asam'"):
        selections.last(one, "asam")
    with pytest.raises(errors.UnknownNameError, match="Known: none, sam"):
        selections.optimizer(task, "gam")


def test_facts_of_a_task_are_its_own_whatever_it_is_called():
    datasets = image.ImageDatasets("Digits", "meta_test", 8)
    task = tasks.ImageTask("Conv_Mnist_Sigmoid", networks.lenet("SAME"), datasets, "LeNet")
    assert task.facts == {
        "dataset": "Digits", "architecture": "LeNet", "sizes": "", "activation": ""
    }  # fmt: skip
    assert tasks.get("ImageMLP_Digits_20x20_Relu").facts == {
        "dataset": "Digits", "architecture": "MLP", "sizes": "20x20", "activation": "Relu"
    }  # fmt: skip
    found = measured_task(RELU, facts=task.facts, none=optimizer([0.0], [1.0]))
    assert found.attrs["architecture"] == "LeNet"


def test_what_an_optimizer_was_trained_with_is_read_from_theta_s_metadata():
    of = optimizers.TrainedWith.of
    none = {"name": "none", "weight": 1.0}
    sam = {"name": "sam", "weight": 0.5, "rho": "a schedule"}
    assert of({}) == of({"regularizer_meta_space": none, "smoothing": None}).__class__()
    assert of({"regularizer_meta_space": sam}) == optimizers.TrainedWith("sam", "meta", 0.5)
    both = {"regularizer_meta_space": sam, "regularizer_optimizee_space": {**sam, "name": "gam"}}
    assert of(both) == optimizers.TrainedWith("gam", "optimizee", 0.5)
    strong = {"name": "gam", "weight": 0.5, "strength": 3.0, "rho": 2}
    assert of({"regularizer_meta_space": strong}) == optimizers.TrainedWith("gam", "meta", 1.5, 2.0)
    terms = [(0.5, registry.get("sam")), (1.0, registry.get("gam"))]
    summed = {"regularizer_meta_space": regularizers.Sum(terms).describe()}
    assert of(summed) == optimizers.TrainedWith("sam", "meta", 1.0, registry.get("sam").rho)
    smoothing = {"regularizer_meta_space": none, "smoothing": {"strength": "linear_schedule"}}
    assert of(smoothing) == optimizers.TrainedWith("smoothing", "update", None)


def test_labels_are_made_of_facts():
    labels = {
        "ImageMLP_Mnist_20_Relu": "Mnist, Relu",
        "ImageMLP_Digits_20x20_Sigmoid": "Digits, 20x20, Sigmoid",
        "Conv_Cifar10_16x32": "Conv, Cifar10",
        "Conv_Mnist_32x32x32": "Conv, Mnist, 32x32x32",
        "LeNet_FashionMnist": "LeNet, FashionMnist",
        "LeNet_Mnist_10x20x50": "LeNet, Mnist, 10x20x50",
    }
    for name, label in labels.items():
        task = measured_task("any", tasks.get(name).facts, none=optimizer([0.0], [1.0]))
        assert selections.label(task) == label
    unknown = task.assign_attrs(dict.fromkeys(tasks.get(name).facts, ""))
    assert selections.label(unknown) == "any"

"""A task's dataset: what is put in comes out, however ragged; facts are attributes."""

import dataclasses

import chex
import numpy as np
from helpers_results import measured_task, optimizer
from helpers_study import RELU, SAM, make_study
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import regularizers, tasks
from regularized_lopt.measure import dataset, optimizers
from regularized_lopt.regularizers import registry
from regularized_lopt.report import export, tables
from regularized_lopt.tasks import data, networks

LOSSES = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=25)
@given(seeds=st.lists(st.lists(LOSSES, min_size=1, max_size=4), min_size=1, max_size=4))
def test_what_seeds_have_found_comes_back_without_the_padding(seeds):
    """Of optimizers with different numbers of seeds."""
    named = {f"o{i}": optimizer(of, [loss + 1 for loss in of]) for i, of in enumerate(seeds)}
    task = measured_task(RELU, none=optimizer([0.0], [1.0]), **named)
    found = dataset.task_result(dataset.of_task(task))
    assert list(found.optimizers) == ["none", *named]
    for key, one in named.items():
        again = found.optimizers[key]
        for scale in ("absolute", "relative"):
            for values in (again, one):
                assert values.last("gsam", "poc", 0, scale).shape == (len(one.curves), 1)
            np.testing.assert_array_equal(
                again.last("gsam", "poc", 0, scale), one.last("gsam", "poc", 0, scale)
            )
        assert len(again.matched) == len(one.matched)
        np.testing.assert_array_equal(again.accuracy(), one.accuracy())
        assert (again.own_property, again.regularizer) == (one.own_property, one.regularizer)


def test_tables_of_what_was_kept_are_those_of_what_was_found(tmp_path):
    """Really trained and measured, properties on the first of two runs."""
    study = make_study(tmp_path, who=SAM, plan={"measured_runs": 1}, baselines=("SGD",))
    (result,) = study.run()
    (again,) = [dataset.task_result(dataset.of_task(result))]
    assert again.flatness_config == result.flatness_config
    assert again.facts == result.facts
    for of in (tables.accuracy_table, tables.failures, export.run_rows, export.property_rows):
        one, other = (of([each]) for each in (result, again))
        assert repr(list(one)) == repr(list(other))
    for key, one in result.optimizers.items():
        kept = again.optimizers[key]
        for name in ("loss_ascent", "grad_norm_highest", "loss_last"):
            chex.assert_trees_all_equal(
                getattr(kept.at["poc"][0], name), getattr(one.at["poc"][0], name)
            )
        assert (kept.slices is None) == (one.slices is None)
        assert kept.learning_rate == one.learning_rate


def test_facts_of_a_task_are_its_own_whatever_it_is_called():
    datasets = data.ResidentDatasets("Digits", "meta_test", 8)
    task = tasks.ImageTask("Conv_Mnist_Sigmoid", networks.lenet("SAME"), datasets, "LeNet")
    assert task.facts == {
        "dataset": "Digits", "architecture": "LeNet", "sizes": "", "activation": ""
    }  # fmt: skip
    assert tasks.get("ImageMLP_Digits_20x20_Relu").facts == {
        "dataset": "Digits", "architecture": "MLP", "sizes": "20x20", "activation": "Relu"
    }  # fmt: skip
    result = dataclasses.replace(
        measured_task(RELU, none=optimizer([0.0], [1.0])), facts=task.facts
    )
    assert dataset.of_task(result).attrs["architecture"] == "LeNet"


def test_what_an_optimizer_was_trained_with_is_read_from_theta_s_metadata():
    of = optimizers.TrainedWith.of
    none = {"name": "none", "weight": 1.0}
    sam = {"name": "sam", "weight": 0.5, "rho": "a schedule"}
    assert of({}) == of({"regularizer_meta_space": none, "smoothing": None}).__class__()
    assert of({"regularizer_meta_space": sam}) == optimizers.TrainedWith("sam", "meta", 0.5)
    both = {"regularizer_meta_space": sam, "regularizer_optimizee_space": {**sam, "name": "gam"}}
    assert of(both) == optimizers.TrainedWith("gam", "optimizee", 0.5)
    terms = [(0.5, registry.get("sam")), (1.0, registry.get("gam"))]
    summed = {"regularizer_meta_space": regularizers.Sum(terms).describe()}
    assert of(summed) == optimizers.TrainedWith("sam", "meta", 1.0)
    smoothing = {"regularizer_meta_space": none, "smoothing": {"strength": "linear_schedule"}}
    assert of(smoothing) == optimizers.TrainedWith("smoothing", "update", None)


def test_labels_are_made_of_facts():
    labels = {
        "ImageMLP_Mnist_20_Relu": "Mnist, Relu",
        "ImageMLP_Digits_20x20_Sigmoid": "Digits, 20x20, Sigmoid",
        "Conv_Cifar10_16x32": "Conv, Cifar10",
        "Conv_Mnist_32x32x32": "Conv, Mnist, 32x32x32",
        "LeNet_FashionMnist": "LeNet, FashionMnist",
    }
    for name, label in labels.items():
        plain = measured_task(RELU, none=optimizer([0.0], [1.0]))
        task = dataclasses.replace(plain, task="any", facts=tasks.get(name).facts)
        assert dataset.task_result(dataset.of_task(task)).label == label
    assert dataclasses.replace(task, facts={}).label == "any"

"""A study as a whole: cached results, restarts, verdicts, and a planted difference."""

import csv
import dataclasses
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

import chex
import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import REPOSITORY

import regularized_lopt
from regularized_lopt import gin_files, run_files, serialization, statistics, tasks, upstream, zoo
from regularized_lopt.measure import FlatnessConfig, cubic_regression, flatness
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.measure.results import POINTS
from regularized_lopt.report import (
    export,
    figures,
    optimizer_tables,
    paper_claims,
    plot_style,
    tables,
    verdicts,
)
from regularized_lopt.study import Experiment, Study, dry_run
from regularized_lopt.study import cache as cache_lib
from regularized_lopt.study.cache_keys import identity
from regularized_lopt.study.experiment import GIVEN
from regularized_lopt.study.meta_training import MetaTrainedOptimizers
from regularized_lopt.study_report import publish

RELU, SIGMOID = "ImageMLP_Digits_20_Relu", "ImageMLP_Digits_20_Sigmoid"
QUICK = FlatnessConfig(radii=(0.01, 0.05), num_examples=64, headline_starts=1, num_probes=0)


def given(**others):
    """SGD under the name of the reference, and others beside it."""
    return {"none": optimizers_lib.baseline("SGD", 0.5), **others}


def experiment(names, **kwargs):
    settings = {
        "tasks": (RELU,),
        "baselines": (),
        "num_runs": 2,
        "num_steps": 30,
        "parallelism": (1, 1),
    }
    return Experiment(optimizers=dict.fromkeys(names, GIVEN), **{**settings, **kwargs})


SAM = given(sam=optimizers_lib.baseline("SGD+SAM", 0.5))


def table(out_dir):
    return {
        name: (pathlib.Path(out_dir) / name).read_bytes()
        for name in ("table.csv", "properties.csv", "verdicts.csv", "runs.csv")
    }


def lab(out_dir, flatness_config=QUICK, who=SAM, **kwargs):
    return Study(experiment(who, **kwargs), out_dir, flatness_config, given=who, progress=False)


def test_results_are_computed_once_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """Stopped after each number of results: the files of an undisturbed run, byte for byte."""
    undisturbed = lab(tmp_path / "a", baselines=("Adam",))
    planned = dry_run.plan(undisturbed)
    assert not any(line.cached for line in planned[2:])
    publish(undisturbed, "")
    assert all(line.cached for line in dry_run.plan(undisturbed))
    assert len(dry_run.plan(undisturbed)) == len(planned)

    class Killed(BaseException):
        pass

    save = cache_lib.ResultCache.save

    def saves_until(limit):
        left = [limit]

        def saving(self, key, tree):
            if not left[0]:
                raise Killed
            left[0] -= 1
            save(self, key, tree)

        return saving

    for limit in (1, 3, 4):
        monkeypatch.setattr(cache_lib.ResultCache, "save", saves_until(limit))
        with pytest.raises(Killed):
            lab(tmp_path / "b", baselines=("Adam",)).run()
    monkeypatch.setattr(cache_lib.ResultCache, "save", save)
    publish(lab(tmp_path / "b", baselines=("Adam",)), "")
    assert table(tmp_path / "b") == table(tmp_path / "a")

    monkeypatch.setattr(trainer_lib.Trainer, "train", None)  # Nothing is trained again.
    publish(lab(tmp_path / "a", baselines=("Adam",)), "")
    assert table(tmp_path / "b") == table(tmp_path / "a")


def test_a_changed_configuration_reruns_only_what_it_affects(tmp_path):
    lab(tmp_path).run()

    def missing(changed):
        return {line.stage for line in dry_run.plan(changed) if not line.cached}

    assert missing(lab(tmp_path)) == set()
    wider = dataclasses.replace(QUICK, radii=(0.01, 0.1))
    assert missing(lab(tmp_path, wider)) == {"measure"}
    starts = dataclasses.replace(QUICK, headline_starts=2)
    assert missing(lab(tmp_path, starts)) == {"measure", "match"}
    assert missing(lab(tmp_path, num_steps=31)) == {"train", "measure", "match", "slice"}
    more = dry_run.plan(lab(tmp_path, tasks=(RELU, SIGMOID)))
    assert all(line.cached == (RELU in line.label) for line in more if line.stage != "meta-train")
    other = given(sam=optimizers_lib.baseline("SGD+SAM", 0.4))
    to_do = [line.label for line in dry_run.plan(lab(tmp_path, who=other)) if not line.cached]
    assert to_do
    assert all(", sam" in label for label in to_do)
    gin.parse_config("meta_splits.seed = 1")
    assert missing(lab(tmp_path)) == {"train", "measure", "match", "slice"}


def test_properties_can_be_measured_on_the_first_runs_alone(tmp_path):
    (every,) = lab(tmp_path).run()
    fewer = lab(tmp_path, property_runs={RELU: 1})
    assert {line.stage for line in dry_run.plan(fewer) if not line.cached} == {"measure", "match"}
    (first,) = fewer.run()
    for point in POINTS:
        all_runs, one_run = (r.optimizers["sam"].last("gam", point, 0) for r in (every, first))
        np.testing.assert_array_equal(one_run, all_runs[:, :1])
    assert first.optimizers["sam"].accuracy().shape == (1, 2)
    rows = list(export.run_rows([first]))
    assert [row["held_out_loss"] != "" for row in rows] == [True, False] * 4


def test_a_task_may_have_fewer_runs_and_fewer_images(tmp_path):
    both = (RELU, SIGMOID)
    less = lab(tmp_path, tasks=both, task_runs={SIGMOID: 1}, property_examples={SIGMOID: 32})
    first, second = less.run()
    assert [r.optimizers["sam"].accuracy().shape for r in (first, second)] == [(1, 2), (1, 1)]
    assert [r.flatness_config.num_examples for r in (first, second)] == [64, 32]
    # It is the first of the runs that there would have been, and the other task is what it was.
    as_ever = lab(tmp_path, tasks=both).run()
    for result, other in zip((first, second), as_ever, strict=True):
        accuracy = other.optimizers["sam"].accuracy()
        found = result.optimizers["sam"].accuracy()
        np.testing.assert_allclose(found, accuracy[:, : found.shape[1]])
    same = (RELU, "sam", identity(SAM["sam"]))
    fewer, every = less.keys, lab(tmp_path, tasks=both).keys
    assert fewer.training_curves(*same) == every.training_curves(*same)


def test_a_task_may_have_other_optimizers(tmp_path):
    both = (RELU, SIGMOID)
    what = {"tuning_runs": 1, "num_runs": 1, "num_steps": 5, "baselines": ("SGD", "Adam")}
    study = lab(tmp_path, tasks=both, **what, task_optimizers={RELU: ("none", "SGD+SAM")})
    first, second = study.run()
    assert list(first.optimizers) == ["none", "SGD+SAM"]
    assert list(second.optimizers) == ["none", "sam", "SGD", "Adam"]
    assert all(line.cached for line in dry_run.plan(study))
    _, rows = tables.table_1([first, second])
    missing = {row[0]: row[1:].count("") for row in rows}
    assert missing == {"none": 0, "SGD+SAM": 1, "sam": 1, "SGD": 1, "Adam": 1}
    # The same colour wherever it is drawn, and in the legend though the first task has it not.
    figure = figures.property_by_radius([first, second], "sam", ["none", "sam"])
    assert [len(axis.lines) for axis in figure.axes] == [1, 2, 1, 2]
    names = [text.get_text().split(" ")[0] for text in figure.legends[0].get_texts()]
    assert names == ["none", "sam"]
    rows_of_points = figures.seeds([first, second]).axes[1].lines
    colors = plot_style.palette([first, second])
    assert [line.get_color() for line in rows_of_points] == [
        colors[key] for key in second.optimizers
    ]
    publish(study, "Two tasks.")
    assert "SGD+SAM" in (tmp_path / "RESULTS.md").read_text()


def test_a_task_may_tune_its_baselines_by_shorter_runs(tmp_path, monkeypatch):
    lengths = []
    tune = trainer_lib.tune

    def noted(name, trainer, num_steps, *args):
        lengths.append(num_steps)
        return tune(name, trainer, num_steps, *args)

    monkeypatch.setattr(trainer_lib, "tune", noted)
    what = {"baselines": ("SGD",), "tuning_runs": 1, "num_runs": 1}
    (short,) = lab(tmp_path, **what, tuning_steps={RELU: 5}).run()
    (long,) = lab(tmp_path, **what).run()  # Not the same key.
    assert lengths == [5, 30]
    # In five steps a lower rate gets nowhere.
    assert short.optimizers["SGD"].learning_rate >= long.optimizers["SGD"].learning_rate
    assert short.num_steps == long.num_steps == 30


def test_optimizers_of_one_kind_side_by_side_are_what_they_are_alone(tmp_path):
    """A batch with room for several, as an accelerator's may be: the same curves."""
    both = given(slow=optimizers_lib.baseline("SGD", 0.1))
    alone, beside = (
        lab(tmp_path / str(batch), who=both, parallelism=(batch, 1)).run()[0] for batch in (2, 4)
    )
    for name in both:
        np.testing.assert_allclose(
            beside.optimizers[name].curves[0].train_loss,
            alone.optimizers[name].curves[0].train_loss,
            rtol=1e-4,
        )


def files_of(out_dir, kind):
    return sorted((out_dir / "cells" / kind).iterdir())


def numbers_of(study):
    """Numbers of all optimizers, enough to tell one from another."""
    (result,) = study.run()
    numbers = [
        (one.curves[0].train_loss, one.at["poc"][0].loss) for one in result.optimizers.values()
    ]
    return np.concatenate([np.ravel(array) for pair in numbers for array in pair])


def test_a_damaged_file_is_named_and_computed_again(tmp_path):
    before = numbers_of(lab(tmp_path))
    for kind in ("runs", "surroundings"):
        file = files_of(tmp_path, kind)[0]
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.warns(UserWarning, match=f"{re.escape(file.name)} is truncated.* as missing"):
            np.testing.assert_array_equal(numbers_of(lab(tmp_path)), before)


@pytest.mark.parametrize("kind", ["runs", "surroundings", "tune"])
def test_exchanged_files_are_not_taken_for_each_other(tmp_path, kind):
    """As after a bad restore: each file is intact, under the name of the other."""
    settings = {"baselines": ("SGD", "Adam"), "tuning_runs": 1, "num_steps": 5}
    before = numbers_of(lab(tmp_path, **settings))
    a, b = files_of(tmp_path, kind)[:2]
    contents = a.read_bytes(), b.read_bytes()
    b.write_bytes(contents[0])
    a.write_bytes(contents[1])
    with pytest.warns(UserWarning, match="holds another result than its name says"):
        missing = [line for line in dry_run.plan(lab(tmp_path, **settings)) if not line.cached]
    assert missing
    with pytest.warns(UserWarning, match="holds another result than its name says"):
        np.testing.assert_array_equal(numbers_of(lab(tmp_path, **settings)), before)
    assert all(line.cached for line in dry_run.plan(lab(tmp_path, **settings)))


def test_what_has_no_name_of_its_own_is_computed_in_every_process(tmp_path):
    """Its address is not one: another object may have it tomorrow."""
    learned_opt = regularized_lopt.LSTMLOpt(hidden_size=2)
    theta = learned_opt.init(jax.random.PRNGKey(0))
    odd = regularized_lopt.LSTMLOpt(hidden_size=2)
    odd.config = {**odd.config, "schedule": lambda step: step}
    who = {
        "none": optimizers_lib.learned("none", learned_opt, theta),
        "odd": optimizers_lib.learned("odd", odd, theta),
        "fixed": optimizers_lib.fixed("fixed", upstream.SGD(0.1)),
    }
    first = lab(tmp_path, who=who, num_steps=5)
    first.run()
    files = [path.name for path in (tmp_path / "cells").rglob("*.npz")]
    assert {name for name in who if any(f"Relu_{name}" in file for file in files)} == {"none"}
    assert all(line.cached for line in dry_run.plan(first))

    def to_do(study):
        return {line.label.split(", ")[1] for line in dry_run.plan(study) if not line.cached}

    assert to_do(lab(tmp_path, who=who, num_steps=5)) == {"odd", "fixed"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """SGD against SGD+SAM (rho 0.1) and SGD on other batches, all at the same learning rate.

    Long enough to fit the training set: before that, no regularizer has much to choose from.
    """
    out_dir = tmp_path_factory.mktemp("planted")
    flatness_config = FlatnessConfig(
        radii=(0.01,), num_examples=512, headline_starts=1, num_probes=0
    )
    settings = {"num_runs": 24, "num_steps": 1500, "parallelism": (24, 1)}
    plain = {"none": optimizers_lib.baseline("SGD", 0.3)}
    both = {**plain, "sam": optimizers_lib.baseline("SGD+SAM", 0.3)}
    (result,) = lab(out_dir, flatness_config, both, **settings).run()
    (others,) = lab(out_dir, flatness_config, plain, seed=1, **settings).run()
    return result, others


def test_sgd_with_sam_comes_out_flatter(planted):
    result, _ = planted
    judged = verdicts.judge([result], primary=("sam", "sam"))
    found = {(v.property, v.point): v for v in judged}
    declared = found["sam", "completion"]
    assert declared.decision is not None
    assert declared.declared() == verdicts.HOLDS
    assert declared.absolute.high < 0
    assert found["gsam", "completion"].absolute.high < 0


@pytest.mark.parametrize("name", ["sam", "gsam", "gam"])
def test_other_batches_alone_seldom_make_a_verdict(planted, name):
    """400 pairings of 10 stored runs of SGD with 10 of SGD on other inits and batches."""
    result, others = planted
    pools = [
        r.reference_result.last(name, "completion", r.flatness_config.headline)[0]
        for r in (result, others)
    ]
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(400):
        a, b = (rng.choice(pool, 10, replace=False) for pool in pools)
        decided += statistics.decide({"null": a - b})["null"].sign != 0
    assert decided <= 0.075 * 400


def test_several_meta_training_seeds_are_the_unit(tmp_path):
    """Runs of one trained optimizer are no independent evidence on a regularizer."""
    values = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(verdicts.units(values), [0.5, 2.5, 4.5])
    np.testing.assert_array_equal(verdicts.units(values[:1]), values[0])
    # A baseline, which has one "seed", is compared with each.
    difference = verdicts.compare(values, np.ones((1, 2)))
    assert difference.count == 3
    assert difference.mean == pytest.approx(1.5)
    # Of unequal numbers of seeds, those that both have are compared.
    difference = verdicts.compare(values, np.ones((2, 2)))
    assert difference.count == 2
    assert difference.mean == pytest.approx(0.5)


def test_the_seed_that_validation_chose_is_shown_alone(tmp_path, monkeypatch):
    """Three copies of an optimizer of the zoo that claim other validation losses."""
    what = {"none": "none.gin", "other": GIVEN}
    optimizers = MetaTrainedOptimizers(
        Experiment(optimizers=what, tasks=(RELU,), meta_training_seeds=(0, 1, 2)),
        tmp_path, {}, False, lambda *_: None,
    )  # fmt: skip
    monkeypatch.setattr(
        MetaTrainedOptimizers,
        "directory_of",
        lambda self, name, source, seed: tmp_path / str(seed) if source != GIVEN else None,
    )
    tree, metadata = serialization.load_flat(zoo.ENTRIES / zoo.names()[0] / run_files.THETA_FILE)
    for seed, loss in enumerate((0.5, 0.2, 0.3)):
        metadata["stage"]["best_loss"] = loss
        serialization.save(tmp_path / str(seed) / run_files.THETA_FILE, tree, metadata)
    assert optimizers.chosen() == {"none": 1}

    (found,) = lab(tmp_path / "lab").run()
    curves = found.optimizers["none"].curves[0]
    better = dataclasses.replace(curves, test_accuracy=np.ones_like(curves.test_accuracy))
    several = dataclasses.replace(found.optimizers["none"], curves=[curves, better, curves])
    both = dataclasses.replace(found, optimizers={**found.optimizers, "none": several})
    _, rows = tables.table_1([both], {"none": 1})
    assert rows[0] == ["none", "100 ± 0"]
    assert rows[1:] == tables.table_1([both])[1][1:]
    assert tables.table_1([both])[1][0] != rows[0]


def test_what_has_no_regularizer_is_no_evidence_for_regularizers(tmp_path):
    (found,) = lab(tmp_path).run()
    none = dataclasses.replace(found.optimizers["none"], learning_rate=None)
    more = {"none_momentum": none, "sam_optimizee": none}
    accuracy = paper_claims.check_claims(
        [dataclasses.replace(found, optimizers={**found.optimizers, **more})], []
    )[0]
    told = [line.split(":")[0] for line in accuracy.evidence[:-1]]
    assert f"{RELU}, sam_optimizee" in told
    assert not [line for line in told if "none" in line]


def test_a_radius_reads_best_where_it_leads_over_optimizers_beyond_chance(tmp_path):
    """Four optimizers whose differences at the radii are given, in standard deviations."""
    radii = flatness.FlatnessConfig().radii
    (found,) = lab(tmp_path).run()
    base = found.optimizers["none"]

    def at(means):
        """Three seeds, one run each, with the given values at the radii and deviation 1."""
        values = np.asarray(means) + np.array([-1.0, 0.0, 1.0])[:, None]
        return {
            "completion": [
                flatness.Flatness(
                    np.zeros(1), np.zeros(1), {"absolute": row[None, :, None]}, {}, None, None
                )
                for row in values
            ]
        }

    def radius(*effects):
        learned = {
            str(i): dataclasses.replace(base, learning_rate=None, at=at(means))
            for i, means in enumerate(effects)
        }
        reference = dataclasses.replace(
            base, at={"completion": at(np.zeros(5))["completion"][1:2] * 3}
        )
        task = dataclasses.replace(
            found,
            flatness_config=flatness.FlatnessConfig(),
            optimizers={"none": reference, **learned},
        )
        return paper_claims.check_claims([task], [])[5]

    assert radii[2] == 0.01
    shared = [np.array([0.1, 0.2, 0.9, 0.3, 0.2]) * scale for scale in (1, 1.1, 0.9, 1.4)]
    claim = radius(*shared)
    assert claim.verdict == verdicts.HOLDS
    assert claim.evidence[2] == (
        "Radius 0.01: differences are 0.99 standard deviations, on average."
    )
    assert "short of the best" in claim.evidence[3]
    assert radius(*(np.roll(each, -1) for each in shared)).verdict == "0.005 reads best here"
    # The highest mean, but not for every optimizer.
    mixed = [[0.1, 0.1, 0.9, 0.1, 0.1], [0.1, 0.8, 0.2, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1]]
    assert radius(*mixed).verdict == verdicts.UNDECIDED
    assert radius(shared[0]).verdict == verdicts.UNDECIDED  # A single optimizer.


def test_accuracy_alone_measures_nothing_and_reports_what_it_has(tmp_path):
    who = {**SAM, "b": optimizers_lib.baseline("SGD", 0.1)}
    tasks_ = {"tasks": (RELU, SIGMOID), "measured": False, "baselines": ("Adam",)}
    alone = lab(tmp_path, who=who, **tasks_)
    planned = dry_run.plan(alone)
    assert {line.stage for line in planned} == {"meta-train", "tune", "train"}
    publish(alone, "")
    assert all(line.cached for line in dry_run.plan(alone))
    assert {path.name for path in (tmp_path / "cells").iterdir()} == {"runs", "tune"}
    written = {path.name for path in tmp_path.iterdir()}
    assert {"table.csv", "runs.csv", "results.json", "report.html", "RESULTS.md"} <= written
    assert not {"properties.csv", "verdicts.csv"} & written
    page = (tmp_path / "RESULTS.md").read_text()
    assert "Test accuracy in detail" in page
    assert f"{RELU}/training_curves.png" in page
    for word in ("property", "radius", "ascent"):
        assert word not in page.replace("negative in a radius: flatter than that", "")
    header = (tmp_path / "runs.csv").read_text().splitlines()[0]
    assert "test_accuracy" in header
    assert "hessian" not in header
    # The same runs as those of a study that measures.
    lab(tmp_path / "measuring", who=who, **tasks_ | {"measured": True}).run()
    for path in sorted((tmp_path / "cells/runs").iterdir()):
        same, _ = serialization.load_flat(tmp_path / "measuring/cells/runs" / path.name)
        chex.assert_trees_all_equal(same, serialization.load_flat(path)[0])


def test_tasks_that_are_measured_stand_beside_others_with_their_accuracy_alone(tmp_path):
    learned = dataclasses.replace(optimizers_lib.baseline("SGD", 0.1), learning_rate=None)
    who = {**SAM, "b": learned}
    mixed = lab(
        tmp_path,
        who=who,
        tasks=(SIGMOID, RELU),
        measured=(RELU,),
        primary=("b", "sam"),
        baselines=("SGD+SAM",),
    )
    publish(mixed, "")
    assert all(line.cached for line in dry_run.plan(mixed))
    by_task = {
        name: {row["task"] for row in csv.DictReader((tmp_path / f"{name}.csv").open())}
        for name in ("properties", "verdicts", "runs", "table")
    }
    assert by_task["properties"] == by_task["verdicts"] == {RELU}
    assert by_task["runs"] == by_task["table"] == {RELU, SIGMOID}
    found = mixed.run()
    judged = verdicts.judge(found, mixed.experiment.primary)
    assert [v.task for v in judged if v.decision is not None] == [RELU]
    page = (tmp_path / "RESULTS.md").read_text()
    (header,) = (line for line in page.splitlines() if "| baseline |" in line)
    against = [line for line in page.splitlines() if line.startswith(f"| {SIGMOID} | b |")]
    assert "absolute radius" in header
    assert any(line.endswith("|  |  |  |") for line in against)
    # Nothing but the accuracies of the other task is on its way to a claim.
    (accuracy, *others) = paper_claims.check_claims(found, judged)
    assert any(SIGMOID in line for line in accuracy.evidence)
    assert not any(SIGMOID in line for claim in others for line in claim.evidence)


def test_seeds_are_compared_over_all_tasks_of_a_kind(tmp_path):
    """Accuracies are given: [tasks, seeds]; one optimizer has not been on the second CNN."""
    (found,) = lab(tmp_path, measured=False).run()
    none = found.optimizers["none"]
    accuracy = {
        "none": [[0.9, 0.8, 0.7], [0.5, 0.4, 0.6], [0.9, 0.9, 0.2]],
        "sam": [[0.9, 0.9, 0.9], [0.7, 0.6, 0.9], [0.9, 0.9, 0.9]],
        "gam": [[0.1, 0.2], None, [0.3, 0.2]],
    }

    def trained(row):
        curves = [
            dataclasses.replace(one, test_accuracy=np.full_like(one.test_accuracy, value))
            for one, value in zip(none.curves * len(row), row, strict=True)
        ]
        return dataclasses.replace(none, curves=curves)

    results_ = [
        dataclasses.replace(
            found,
            task=task,
            optimizers={k: trained(rows[i]) for k, rows in accuracy.items() if rows[i]},
        )
        for i, task in enumerate(("Conv_A", "Conv_B", "ImageMLP_A"))
    ]
    header, rows = tables.over_tasks(results_)
    # A single MLP is no more than its own column.
    columns = ("tasks", "accuracy (%)", "fail", "vs none (points, 95%)")
    assert header == ["optimizer", *(f"CNNs: {column}" for column in columns)]
    by_name = {name: others for name, *others in rows}
    means = {k: 100 * np.mean(v[:2], axis=0) for k, v in accuracy.items() if k != "gam"}
    difference = statistics.paired_difference(means["sam"], means["none"])
    assert by_name["none"] == ["2", str(statistics.summarize(means["none"])), "4 of 6", ""]
    assert by_name["sam"] == [
        "2", str(statistics.summarize(means["sam"])), "2 of 6", str(difference)
    ]  # fmt: skip
    assert by_name["gam"] == [""] * 4
    assert tables.over_tasks(results_[:1])[1] == []


def test_lines_of_panels_are_of_one_length_or_nearly():
    for count, wanted in {1: (1, 1), 5: (1, 5), 6: (2, 3), 7: (2, 4), 11: (3, 4)}.items():
        figure, axes = plot_style.panels(count, 5, 1.0)
        assert len(axes) == count
        assert axes[0].get_subplotspec().get_gridspec().get_geometry() == wanted
        assert sum(axis.axison for axis in figure.axes) == count


def test_every_meta_training_seed_is_drawn_and_the_lowest_is_told(tmp_path):
    (found,) = lab(tmp_path).run()
    none = found.optimizers["none"]
    accuracies = (0.9, 0.6, np.nan)
    one_each = [
        dataclasses.replace(one, test_accuracy=np.full_like(one.test_accuracy, accuracy))
        for one, accuracy in zip(none.curves * 3, accuracies, strict=True)
    ]
    several = dataclasses.replace(
        none, curves=one_each, at={point: list(of) * 3 for point, of in none.at.items()}
    )
    both = dataclasses.replace(found, optimizers={**found.optimizers, "none": several})
    figure = figures.seeds([both, found])
    assert [len(axis.lines) for axis in figure.axes] == [2, 2]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), (10, 40, 100), rtol=1e-5)
    assert [len(line.get_xdata()) for line in figure.axes[1].lines] == [1, 1]
    # The seed that diverged is the worst, not left out.
    losses = {"none": (0.2, 0.3, 0.4)}
    assert optimizer_tables.validation_table([both], losses)[1] == [[RELU, "3", "-1.00", "0"]]
    assert optimizer_tables.validation_table([both], {"none": (0.2, 0.4, 0.3)})[1][0][2] == "-0.50"
    assert optimizer_tables.validation_table([found], {"none": (0.2,)})[1] == []
    (dots,) = figures.validation([both], losses).axes[0].lines
    np.testing.assert_allclose(dots.get_ydata(), (10, 40, 100), rtol=1e-5)
    header, rows = tables.accuracy_table([both])
    assert rows[0][header.index("lowest")] == "60.00"
    lowest_run = both.optimizers["sam"].accuracy().min()
    assert float(rows[1][header.index("lowest")]) == pytest.approx(lowest_run, abs=0.005)
    # The best is the seed with 90%: the one with 60% fails, and so does the one that diverged.
    assert tables.failures([both, found])[1] == [["none", "2 of 3", "0 of 1"]]
    assert tables.failures([found])[1] == []


def test_optimizers_may_have_different_numbers_of_seeds():
    gin_file = "gin_configs/digits_mlp_none.gin"
    what = {"optimizers": {"none": gin_file, "sam": gin_file}, "tasks": (RELU,)}
    one = Experiment(**what, meta_training_seeds={"none": (0, 1, 2), "sam": (0, 1)})
    assert [one.seeds_of(name) for name in ("none", "sam")] == [(0, 1, 2), (0, 1)]
    with pytest.raises(ValueError, match=r"of 'sam' = \(1,\): .* first of \(0, 1, 2\)"):
        Experiment(**what, meta_training_seeds={"none": (0, 1, 2), "sam": (1,)})


def test_only_optimizers_of_a_property_speak_for_it():
    names = ("none", "smoothing", "sam_optimizee", "gam", "mine")
    what = dict.fromkeys(names, "gin_configs/digits_mlp_none.gin")
    one = Experiment(optimizers=what, tasks=(RELU,), properties={"mine": "gsam"})
    assert [one.is_targeted(name) for name in names] == [False, False, True, True, True]
    assert [one.property_of(name) for name in names] == ["sam", "sam", "sam", "gam", "gsam"]


def test_results_without_the_params_of_runs_are_complete_until_more_is_measured(tmp_path):
    """What is kept of an experiment is small: the params are most of it."""
    lab(tmp_path).run()
    before = table_of(lab(tmp_path))
    for file in (tmp_path / "cells" / "ends").iterdir():
        file.unlink()
    assert table_of(lab(tmp_path)) == before
    with pytest.raises(FileNotFoundError, match=r"not their params.*delete cells/runs/"):
        lab(tmp_path, dataclasses.replace(QUICK, seed=1)).run()


def table_of(study):
    return tables.accuracy_table(study.run()), list(export.property_rows(study.run()))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"reference": "non"}, "Unknown Experiment.reference 'non'. Did you mean 'none'"),
        (
            {"primary": ("sams", "sam")},
            "Unknown optimizer of Experiment.primary 'sams'. Did you mean 'sam'",
        ),
        (
            {"primary": ("sam", "sma")},
            "Unknown property of Experiment.primary 'sma'. Did you mean 'sam'",
        ),
        ({"primary": ("sam", "sam"), "tasks": (RELU,) * 10}, "more than 9 cannot be decided"),
        ({"primary": ("sam", "sam"), "measured": False}, "has none measured: set one of them"),
        ({"primary": ("sam", "sam"), "measured": ()}, "has none measured: set one of them"),
        ({"measured": (SIGMOID,)}, "Unknown task of Experiment.measured"),
        ({"baselines": ("Adma",)}, "Unknown Experiment.baselines 'Adma'. Did you mean 'Adam'"),
        ({"num_runs": 0}, "Experiment.num_runs = 0"),
        ({"tasks": ()}, "must name at least one each"),
        ({"property_runs": {SIGMOID: 1}}, "Unknown task of Experiment.property_runs"),
        ({"property_runs": {RELU: 0}}, "Experiment.property_runs"),
        ({"task_runs": {SIGMOID: 1}}, "Unknown task of Experiment.task_runs"),
        ({"task_optimizers": {SIGMOID: ()}}, "Unknown task of Experiment.task_optimizers"),
        ({"task_optimizers": {RELU: ("none", "SDG")}}, "'SDG'. Did you mean 'SGD'"),
        ({"task_optimizers": {RELU: ("sam",)}}, "lacks 'none', the reference"),
        ({"tuning_steps": {RELU: 0}}, "Experiment.tuning_steps"),
        ({"property_examples": {RELU: 0}}, "Experiment.property_examples"),
    ],
)
def test_refuses_bad_experiments(parameters, message):
    with pytest.raises(ValueError, match=message):
        experiment(SAM, **parameters)


TINY = [
    "Experiment.optimizers = {'none': 'gin_configs/digits_mlp_none.gin',"
    " 'sam': 'gin_configs/digits_mlp_sam.gin'}",
    "Experiment.num_runs = 2",
    "Experiment.num_steps = 25",
    f"Experiment.tasks = ('{RELU}',)",
    "Experiment.baselines = ('SGD',)",
    "Experiment.parallelism = (1, 1)",
    "Experiment.bindings = ('outer_train.num_outer_steps = 2', 'LSTMLOpt.hidden_size = 3',"
    " 'Curriculum.train_lengths = (20,)', 'Curriculum.validation_period = 2',"
    " 'Curriculum.num_validation_tasks = 1')",
    "FlatnessConfig.num_examples = 64",
    "Experiment.early_evidence = {}",
]


def command(name, *arguments):
    return [sys.executable, "-m", f"regularized_lopt.{name}", *arguments]


def run_module(name, *arguments):
    done = subprocess.run(
        command(name, *arguments), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def reproduction(out_dir):
    return [
        "--config_file=gin_configs/reproduce_digits.gin",
        f"--out_dir={out_dir}",
        *(f"--gin_bindings={line}" for line in TINY),
    ]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A directory of `reproduce`, and what its plan was beforehand and afterwards."""
    out_dir = tmp_path_factory.mktemp("reproduced")
    before = run_module("reproduce", *reproduction(out_dir), "--dry_run", "--measure")
    run_module("reproduce", *reproduction(out_dir))
    return out_dir, before, run_module("reproduce", *reproduction(out_dir), "--dry_run")


def test_the_launcher_plans_meta_trains_meta_tests_and_reports(reproduced):
    out_dir, before, after = reproduced
    assert "0 cached" in before
    assert "unknown" not in before  # Every cost is estimated from a rate measured here.
    assert re.search(r"(\d+) cells, \1 cached\.", after)
    page = (out_dir / "report.html").read_text()
    for text in (
        "none, sam and tuned baselines on 1 task: 2 paired runs of 25 steps",
        "meta-trained with 1 seed.",
        "Declared tests",
        "claims",
        "undecided",
        "Regularized learned optimizers beat",
        "Meta-training",
        "drawn anew",
    ):
        assert text in page


def test_results_are_remade_from_what_is_kept(reproduced, tmp_path):
    """Without params and checkpoints, and beside notes, which are not touched: the same bytes."""
    out_dir = tmp_path / "kept"
    ignored = shutil.ignore_patterns("ends", "checkpoints", "events*", "locks", "*.lock")
    shutil.copytree(reproduced[0], out_dir, ignore=ignored)
    files = [path.relative_to(out_dir) for path in out_dir.rglob("*") if path.is_file()]
    (out_dir / "NOTES.md").write_text("What to make of it.\n")
    run_module("reproduce", *reproduction(out_dir), "--rewrite")
    text = (out_dir / "RESULTS.md").read_text()
    assert text.split("\n\n")[2] == "What to make of it."
    assert len(re.findall(r"^\| none \|", text, re.MULTILINE)) >= 2
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (out_dir / link).is_file()
    (out_dir / "RESULTS.md").write_text(text.replace("What to make of it.\n\n", ""))
    (out_dir / "NOTES.md").unlink()
    for path in files:
        assert (out_dir / path).read_bytes() == (reproduced[0] / path).read_bytes(), path
    assert sorted(files) == sorted(
        path.relative_to(out_dir)
        for path in out_dir.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


def test_rewriting_computes_nothing(reproduced, tmp_path):
    (tmp_path / "cells").mkdir()
    shared = f"--optimizers_dir={reproduced[0] / 'optimizers'}"
    done = subprocess.run(
        command("reproduce", *reproduction(tmp_path), shared, "--rewrite"),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(r"lacks \d+ of the \d+ cells .* 'tune ImageMLP_Digits", done.stderr)
    assert not list((tmp_path / "cells").iterdir())


def test_a_report_on_borrowed_optimizers_leaves_out_how_they_were_made(reproduced, tmp_path):
    shutil.copytree(reproduced[0] / "cells", tmp_path / "cells")
    shared = f"--optimizers_dir={reproduced[0] / 'optimizers'}"
    without = "--gin_bindings=Experiment.baselines = ()"
    run_module("reproduce", *reproduction(tmp_path), without, shared, "--rewrite")
    assert "\nnone, sam on 1 task: 2 paired" in (tmp_path / "RESULTS.md").read_text()
    run_module("reproduce", *reproduction(tmp_path), shared, "--rewrite")
    pages = [(path / "RESULTS.md").read_text() for path in (reproduced[0], tmp_path)]
    assert ["## Meta-training" in page for page in pages] == [True, False]
    assert (tmp_path / "table_1.csv").read_bytes() == (reproduced[0] / "table_1.csv").read_bytes()


def test_exchanged_optimizers_are_named(reproduced, tmp_path):
    """Whole directories, or theta alone."""
    shutil.copytree(reproduced[0] / "optimizers", tmp_path / "optimizers")
    none, sam = sorted((tmp_path / "optimizers").iterdir())
    theta = none / run_files.THETA_FILE
    kept = theta.read_bytes()
    shutil.copyfile(sam / run_files.THETA_FILE, theta)
    with pytest.raises(serialization.FileFormatError, match="is of another run than"):
        zoo.load(none)
    with pytest.raises(serialization.FileFormatError, match="is of another run than"):
        zoo.validation_loss(none)
    theta.write_bytes(kept)
    zoo.load(none)

    none.rename(tmp_path / "aside")
    sam.rename(none)
    (tmp_path / "aside").rename(sam)
    gin_files.parse_gin(["gin_configs/reproduce_digits.gin"], TINY)
    finder = MetaTrainedOptimizers(
        Experiment(), tmp_path / "optimizers", {}, False, lambda *_: None
    )
    for name, source in finder.experiment.optimizers.items():
        with pytest.raises(serialization.FileFormatError, match="another meta-training than its"):
            finder.trained(name, source, 0)


def test_two_trained_optimizers_are_compared(reproduced, tmp_path):
    trained = sorted((reproduced[0] / "optimizers").iterdir())
    assert [path.name.split("-")[0] for path in trained] == ["none", "sam"]
    run_module(
        "compare", *map(str, trained), "--num_runs=2", "--num_steps=20", f"--out_dir={tmp_path}"
    )
    assert (tmp_path / "report.html").stat().st_size > 50_000


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_table(reproduced, tmp_path):
    """SIGKILL after each of three numbers of files, at a random moment of the next one."""
    rng = random.Random(0)

    def files():
        return sum(path.is_file() for path in tmp_path.rglob("*.npz"))

    for limit in (1, 4, 7):
        running = subprocess.Popen(
            command("reproduce", *reproduction(tmp_path)),
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while files() < limit and running.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1))
        assert running.poll() is None, "It ended before it could be killed."
        running.kill()
        running.wait()
        assert not (tmp_path / "table.csv").exists()
    run_module("reproduce", *reproduction(tmp_path))
    assert table(tmp_path) == table(reproduced[0])


def test_cubics_are_fitted_as_a_plain_loop_does():
    """SGD with weight decay, patience and all."""
    family = tasks.CubicRegressionFamily()
    optimizer = cubic_regression.sgd(0.1, 0.3)
    fits = cubic_regression.fit(optimizer, family, 2, num_steps=60, patience=5, seed=4)
    for i in range(2):
        key = jax.random.fold_in(jax.random.PRNGKey(4), i)
        cubic_key, init_key = jax.random.split(key)
        cubic = family.sample(cubic_key)
        task = family.task_fn(cubic)
        params = best = task.init(init_key)
        lowest, at = np.inf, 0
        for t in range(60):
            loss, grad = jax.value_and_grad(task.loss)(params, key)
            if loss < lowest and t - at <= 5:
                lowest, at, best = float(loss), t, params
            params = jax.tree.map(lambda p, g: p - 0.3 * (g + 0.1 * p), params, grad)
        assert fits.train_loss[i] == pytest.approx(lowest, rel=1e-4)
        assert fits.stopped[i] == at
        assert fits.norm[i] == pytest.approx(float(optax.tree.norm(best)), rel=1e-4)
        truth = np.asarray(cubic.value(jnp.asarray(fits.grid)))
        residual = np.mean((fits.fit[i] - truth) ** 2)
        assert fits.r2[i] == pytest.approx(1 - residual / np.var(truth), rel=1e-3)


def test_weight_decay_makes_smaller_params():
    found = cubic_regression.early_evidence({}, num_polynomials=12, num_steps=300)
    plain, decayed = found.fits.values()
    difference = statistics.paired_difference(decayed.norm, plain.norm)
    assert difference.high < 0
    header, rows = optimizer_tables.early_evidence_table(found)
    assert [len(row) for row in rows] == [len(header)] * 2

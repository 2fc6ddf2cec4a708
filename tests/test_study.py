"""A study as a whole: what is asked for is computed, once, also where it was stopped."""

import csv
import dataclasses

import chex
import gin
import numpy as np
import pytest
import xarray as xr
from helpers_study import QUICK, RELU, SAM, SIGMOID, experiment, given, make_study, table

from regularized_lopt import gin_files, serialization
from regularized_lopt.measure import FlatnessConfig, results_file, selections
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.measure.flatness import NORMS, SCALES
from regularized_lopt.measure.results import POINTS
from regularized_lopt.report import (
    export,
    figures,
    paper_claims,
    plot_style,
    tables,
    verdicts,
)
from regularized_lopt.study import cache as cache_lib
from regularized_lopt.study import dry_run
from regularized_lopt.study.cache_keys import CacheKeys, Identity, identity
from regularized_lopt.study.experiment import TaskPlan
from regularized_lopt.study_report import publish


def test_results_are_computed_once_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """Stopped after each number of results: the files of an undisturbed run, byte for byte."""
    undisturbed = make_study(tmp_path / "a", baselines=("Adam",))
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

    # Pages are compared by their tables.
    monkeypatch.setattr(plot_style, "to_png", lambda figure: b"")
    for limit in (1, 3, 4):
        monkeypatch.setattr(cache_lib.ResultCache, "save", saves_until(limit))
        with pytest.raises(Killed):
            make_study(tmp_path / "b", baselines=("Adam",)).run()
    monkeypatch.setattr(cache_lib.ResultCache, "save", save)
    publish(make_study(tmp_path / "b", baselines=("Adam",)), "")
    assert table(tmp_path / "b") == table(tmp_path / "a")

    monkeypatch.setattr(trainer_lib.Trainer, "train", None)  # Nothing is trained again.
    publish(make_study(tmp_path / "a", baselines=("Adam",)), "")
    assert table(tmp_path / "b") == table(tmp_path / "a")


def test_a_changed_configuration_reruns_only_what_it_affects(tmp_path):
    make_study(tmp_path).run()

    def missing(changed):
        return {line.stage for line in dry_run.plan(changed) if not line.cached}

    assert missing(make_study(tmp_path)) == set()
    wider = dataclasses.replace(QUICK, radii=(0.01, 0.1))
    assert missing(make_study(tmp_path, wider)) == {"measure"}
    starts = dataclasses.replace(QUICK, headline_starts=2)
    assert missing(make_study(tmp_path, starts)) == {"measure", "match"}
    assert missing(make_study(tmp_path, num_steps=31)) == {"train", "measure", "match", "slice"}
    more = dry_run.plan(make_study(tmp_path, tasks=(RELU, SIGMOID)))
    assert all(line.cached == (RELU in line.label) for line in more if line.stage != "meta-train")
    other = given(sam=optimizers_lib.baseline("SGD+SAM", 0.4))
    to_do = [
        line.label for line in dry_run.plan(make_study(tmp_path, who=other)) if not line.cached
    ]
    assert to_do
    assert all(", sam" in label for label in to_do)
    scales = dataclasses.replace(QUICK, scales=(*SCALES, "live"))
    assert missing(make_study(tmp_path, scales)) == {"measure", "match"}
    hessian = dataclasses.replace(QUICK, num_probes=1)
    assert missing(make_study(tmp_path, hessian)) == {"measure"}
    hessian = dataclasses.replace(hessian, hessian_at_matched=True)
    assert missing(make_study(tmp_path, hessian)) == {"measure", "match"}
    gin.parse_config("meta_splits.seed = 1")
    assert missing(make_study(tmp_path)) == {"train", "measure", "match", "slice"}


def test_keys_are_those_of_the_results_that_are_kept():
    """Digests as they were before there were `FlatnessConfig.scales`."""
    plan = TaskPlan(RELU, 2, examples=64)
    names = experiment(["none"], (plan,), num_steps=2000)
    keys = CacheKeys(names, FlatnessConfig(radii=(0.01, 0.05)))
    sgd = Identity("SGD 0", lasting=True)
    assert keys.flatness(RELU, "none", sgd, "poc").digest == "036e1369f9dd0e7b"
    assert keys.matched(RELU, "none", sgd, sgd).digest == "eb8800a03ca64d15"


def test_all_scales_norms_and_the_hessian_are_measured_at_matched_loss(tmp_path):
    """Once more from the files, which have no order of scales."""
    config = dataclasses.replace(
        QUICK, scales=("l2", *SCALES, "live"), num_probes=2, hessian_at_matched=True
    )
    (found,) = make_study(tmp_path, config).run()
    publish(make_study(tmp_path, config), "")
    (again,) = results_file.load(tmp_path / results_file.FILE).tasks
    xr.testing.assert_identical(found, again)
    one = selections.optimizer(found, "sam")
    rise = selections.matched(one, "gsam")
    assert list(rise["scale"].values) == ["l2", "absolute", "relative", "live"]
    for name in ("trace", "top", *NORMS):
        assert np.isfinite(one[f"matched_{name}"]).all()
        assert one[f"matched_{name}"].dims == ("side", "pair", "measured_run")
    norms = {name: one[f"around_{name}"].sel(point="completion").values[0] for name in NORMS}
    np.testing.assert_allclose(
        norms["norm"] ** 2, norms["live_norm"] ** 2 + norms["dead_norm"] ** 2, rtol=1e-5
    )
    np.testing.assert_allclose(norms["norm"], selections.final(one, "param_norm")[0], rtol=1e-5)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "at matched loss: ratio to none (95%)" in page
    assert (tmp_path / "log_ratios.csv").exists()
    (plain,) = make_study(tmp_path).run()
    assert {"matched_norm", "around_norm", "matched_trace"} & set(plain.variables) == set()


def test_properties_can_be_measured_on_the_first_runs_alone(tmp_path):
    (every,) = make_study(tmp_path).run()
    fewer = make_study(tmp_path, plan={"measured_runs": 1})
    assert {line.stage for line in dry_run.plan(fewer) if not line.cached} == {"measure", "match"}
    (first,) = fewer.run()
    for point in POINTS:
        all_runs, one_run = (
            selections.last(selections.optimizer(task, "sam"), "gam").sel(point=point)
            for task in (every, first)
        )
        np.testing.assert_array_equal(one_run, all_runs[:, :1])
    assert (first.sizes["run"], first.sizes["measured_run"]) == (2, 1)
    rows = list(export.run_rows([first]))
    assert [row["held_out_loss"] != "" for row in rows] == [True, False] * 4


def test_a_task_may_have_fewer_runs_and_fewer_images(tmp_path):
    both = (RELU, SIGMOID)
    less = make_study(tmp_path, tasks=(RELU, TaskPlan(SIGMOID, 1, examples=32)))
    first, second = less.run()
    assert [task.sizes["run"] for task in (first, second)] == [2, 1]
    examples = [selections.flatness_config(task).num_examples for task in (first, second)]
    assert examples == [64, 32]
    # It is the first of the runs that there would have been, and the other task is what it was.
    as_ever = make_study(tmp_path, tasks=both).run()
    for task, other in zip((first, second), as_ever, strict=True):
        same = other["test_accuracy"].isel(run=slice(task.sizes["run"]))
        np.testing.assert_allclose(task["test_accuracy"], same)
    same = (RELU, "sam", identity(SAM["sam"]))
    fewer, every = less.keys, make_study(tmp_path, tasks=both).keys
    assert fewer.training_curves(*same) == every.training_curves(*same)


def test_a_task_may_have_other_optimizers(tmp_path):
    both = (TaskPlan(RELU, 1, optimizers=("none", "SGD+SAM")), TaskPlan(SIGMOID, 1))
    what = {"tuning_runs": 1, "num_steps": 5, "baselines": ("SGD", "Adam")}
    study = make_study(tmp_path, tasks=both, **what)
    first, second = study.run()
    assert selections.keys(first) == ["none", "SGD+SAM"]
    assert selections.keys(second) == ["none", "sam", "SGD", "Adam"]
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
        colors[key] for key in selections.keys(second)
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
    what = {"baselines": ("SGD",), "tuning_runs": 1}
    (short,) = make_study(tmp_path, **what, plan={"runs": 1, "tuning_steps": 5}).run()
    (long,) = make_study(tmp_path, **what, plan={"runs": 1}).run()  # Not the same key.
    assert lengths == [5, 30]
    # In five steps a lower rate gets nowhere.
    rates = [task["learning_rate"].sel(optimizer="SGD") for task in (short, long)]
    assert rates[0] >= rates[1]
    assert short.attrs["num_steps"] == long.attrs["num_steps"] == 30


def test_equal_gradients_rerun_two_per_step_alone(tmp_path):
    """Beside results at equal steps, in one directory, and with rates of their own."""
    what = {"baselines": ("SGD", "SGD+SAM 0.5"), "tuning_runs": 1, "num_steps": 20}
    (steps,) = make_study(tmp_path, **what).run()
    study = make_study(tmp_path, **what, budget="gradients")
    to_do = {(line.stage, line.label) for line in dry_run.plan(study) if not line.cached}
    names = {label.split(", ")[1] for _, label in to_do}
    assert names == {"sam", "SGD+SAM 0.5"}
    assert ("tune", f"{RELU}, SGD+SAM 0.5") in to_do
    (gradients,) = study.run()
    assert [task.attrs["budget"] for task in (steps, gradients)] == ["steps", "gradients"]
    sgd, sam = (gradients["poc_step"].sel(optimizer=name) for name in ("SGD", "SGD+SAM 0.5"))
    assert (sgd == 19).all()
    assert (sam == 9).all()
    xr.testing.assert_equal(
        gradients.sel(optimizer="SGD")["test_accuracy"], steps.sel(optimizer="SGD")["test_accuracy"]
    )
    # The doses are there for a figure to draw.
    assert gradients.sel(optimizer="SGD+SAM 0.5")["rho"] == 0.5


def test_optimizers_of_one_kind_side_by_side_are_what_they_are_alone(tmp_path):
    """A batch with room for several, as an accelerator's may be: the same curves."""
    both = given(slow=optimizers_lib.baseline("SGD", 0.1))
    alone, beside = (
        make_study(tmp_path / str(batch), who=both, parallelism=(batch, 1)).run()[0]
        for batch in (2, 4)
    )
    np.testing.assert_allclose(beside["train_loss"], alone["train_loss"], rtol=1e-4)


def test_accuracy_alone_measures_nothing_and_reports_what_it_has(tmp_path):
    who = {**SAM, "b": optimizers_lib.baseline("SGD", 0.1)}
    what = {"who": who, "tasks": (RELU, SIGMOID), "baselines": ("Adam",)}
    alone = make_study(tmp_path, **what, plan={"measured_runs": 0})
    planned = dry_run.plan(alone)
    assert {line.stage for line in planned} == {"tune", "train"}
    publish(alone, "")
    assert all(line.cached for line in dry_run.plan(alone))
    assert {path.name for path in (tmp_path / "cells").iterdir()} == {"runs", "tune"}
    written = {path.name for path in tmp_path.iterdir()}
    assert {"table.csv", "runs.csv", "results.nc.xz", "report.html", "RESULTS.md"} <= written
    assert not {"properties.csv", "verdicts.csv"} & written
    page = (tmp_path / "RESULTS.md").read_text()
    assert "Test accuracy in detail" in page
    assert "seeds.png" not in page  # There is one of each.
    assert (tmp_path / RELU / "training_curves.png").is_file()
    for word in ("property", "radius", "ascent"):
        assert word not in page.replace("negative in a radius: flatter than that", "")
    header = (tmp_path / "runs.csv").read_text().splitlines()[0]
    assert "test_accuracy" in header
    assert "hessian" not in header
    # The same runs as those of a study that measures.
    make_study(tmp_path / "measuring", **what).run()
    for path in sorted((tmp_path / "cells/runs").iterdir()):
        same, _ = serialization.load_flat(tmp_path / "measuring/cells/runs" / path.name)
        chex.assert_trees_all_equal(same, serialization.load_flat(path)[0])


def test_tasks_that_are_measured_stand_beside_others_with_their_accuracy_alone(tmp_path):
    learned = dataclasses.replace(
        optimizers_lib.baseline("SGD", 0.1),
        learning_rate=None,
        trained_with=optimizers_lib.TrainedWith("sam", "meta"),
    )
    who = {**SAM, "b": learned}
    mixed = make_study(
        tmp_path,
        who=who,
        tasks=(TaskPlan(SIGMOID, 2, measured_runs=0), RELU),
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


def test_results_without_the_params_of_runs_are_complete_until_more_is_measured(tmp_path):
    """What is kept of an experiment is small: the params are most of it."""
    make_study(tmp_path).run()
    before = table_of(make_study(tmp_path))
    for file in (tmp_path / "cells" / "ends").iterdir():
        file.unlink()
    assert table_of(make_study(tmp_path)) == before
    with pytest.raises(FileNotFoundError, match=r"not their params.*delete cells/runs/"):
        make_study(tmp_path, dataclasses.replace(QUICK, seed=1)).run()


def table_of(study):
    return tables.quality_table(study.run()), list(export.property_rows(study.run()))


def test_a_check_reads_which_settings_of_a_baseline_are_tried(tmp_path):
    """So that a binding of the command line is not taken for one that nothing reads."""
    gin.parse_config("nadamw_trials.num_trials = 3")
    study = make_study(tmp_path, baselines=("NAdamW",))
    assert [one.configurable for one in gin_files.unread()] == ["nadamw_trials"]
    study.check()
    assert not gin_files.unread()

"""Meta-test in one call, and its launcher."""

import base64
import csv
import subprocess
import sys

import gin
import pytest
import xarray as xr
from conftest import REPOSITORY

from regularized_lopt import tasks, upstream
from regularized_lopt.measure import flatness, results_file, selections
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.study import meta_test, train

DIGITS = "ImageMLP_Digits_20_Relu"


def test_the_launcher_writes_results_figures_and_a_report(lopt_file, tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "regularized_lopt.meta_test",
            f"--lopt=a={lopt_file}",
            f"--lopt=b={lopt_file}",
            f"--task={DIGITS}",
            "--num_runs=2",
            "--num_steps=25",
            "--baselines=SGD",
            f"--out_dir={tmp_path}",
        ],
        check=True,
        cwd=REPOSITORY,
        capture_output=True,
    )
    (task,) = results_file.load(tmp_path / results_file.FILE).tasks
    assert (task.attrs["task"], selections.keys(task)) == (DIGITS, ["a", "b", "SGD"])
    # The same optimizer under two names, the same inits and batches: no difference at all.
    own = [name for name in task if not name.startswith("matched_")]
    a, b = (task[own].sel(optimizer=key).reset_coords(drop=True) for key in "ab")
    xr.testing.assert_equal(a, b)
    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert len(rows) == 3 * 2 * 2
    table = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert table[1]["vs a (points, 95%)"] == "+0 [+0, +0]"
    verdicts = list(csv.DictReader((tmp_path / "verdicts.csv").open()))
    judged = {row["by its interval, each measure"] for row in verdicts if row["optimizer"] == "b"}
    assert judged == {"undecided: absolute, relative, matched"}
    assert len(list(csv.DictReader((tmp_path / "properties.csv").open()))) == 3 * 2 * 3 * 2 * 5
    page = (tmp_path / "report.html").read_text()
    for name in (f"{DIGITS}/differences", f"{DIGITS}/training_curves", f"{DIGITS}/ascent_curves",
                 f"{DIGITS}/loss_slices", "smoothness", "sam_by_relative_radius"):  # fmt: skip
        png = (tmp_path / f"{name}.png").read_bytes()
        assert len(png) > 10_000
        assert f'src="data:image/png;base64,{base64.b64encode(png).decode()}"' in page
    assert page.count("<img") == 7
    assert "prefers-color-scheme: dark" in page
    for outside in ("http://", "https://", "<script", "<link"):
        assert outside not in page, f"the report is not self-contained: {outside}"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: meta_test({}, DIGITS), ValueError, "opts is empty: give at least one optimizer"),
        (lambda: train({}, DIGITS), ValueError, "opts is empty: give at least one optimizer"),
        (lambda: meta_test({"s": upstream.SGD(1.0)}, DIGITS, baselines=("SDG",)), ValueError,
         "Did you mean 'SGD'"),
        (lambda: meta_test({"s": upstream.SGD(1.0)}, "ImageMLP_Digit"), ValueError, "Did you mean"),
        (lambda: meta_test({"s": upstream.SGD(1.0)}, "CubicRegression"), TypeError,
         "'CubicRegression' cannot be meta-tested: its data"),
        (lambda: trainer_lib.Trainer(tasks.get(DIGITS), 0, 1), ValueError, "num_runs = 0"),
        (lambda: flatness.FlatnessConfig(radii=(-1.0,)), ValueError, "FlatnessConfig.radii = -1"),
        (lambda: flatness.FlatnessConfig(direction="up"), ValueError, "Unknown direction 'up'"),
    ],
)  # fmt: skip
def test_refuses_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_what_gin_says_of_a_studys_optimizers_is_not_about_those_given():
    """And what was not measured is not looked up in vain."""
    gin.parse_config(
        f"""
        Experiment.primary = ("sam", "sam")
        Experiment.properties = {{"sam": "gam"}}
        Experiment.early_evidence = {{"sam": "nowhere.gin"}}
        Experiment.phase = "meta_train"
        Experiment.budget = "gradients"
        {DIGITS}/TaskPlan.optimizers = ("none", "SGD")
        """
    )
    short = {"num_runs": 1, "num_steps": 2, "baselines": (), "progress": False}
    found = meta_test({"a": upstream.SGD(0.1)}, DIGITS, measured=False, **short)
    assert selections.keys(found) == ["a"]
    gin.clear_config()
    again = meta_test({"a": upstream.SGD(0.1)}, DIGITS, measured=False, **short)
    xr.testing.assert_equal(found, again)
    for select in (selections.last, selections.best, selections.ascent):
        with pytest.raises(ValueError, match=f"On {DIGITS} there is no .*not measured around"):
            select(selections.reference(found), "sam")
    with pytest.raises(ValueError, match="not measured at matched training loss"):
        selections.matched(selections.reference(found), "sam")

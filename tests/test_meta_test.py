import csv
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

import regularized_lopt
from regularized_lopt import serialization, tasks, upstream, zoo
from regularized_lopt.evaluation import (
    baselines,
    convergence,
    figures,
    meta_test,
    report,
    results,
    sharpness,
    statistics,
)
from regularized_lopt.evaluation.meta_test import eval_grid, train_runs, tune_baseline

KEY = jax.random.PRNGKey(0)
DIGITS = "ImageMLP_Digits_20_Relu"


def reference_poc(losses):
    """method: the trailing 20-step mean has not improved for 100 steps; plain Python."""
    best, best_step = np.inf, 0
    for t in range(len(losses)):
        mean = np.mean(losses[t - 19 : t + 1]) if t >= 19 else np.inf
        if mean < best:
            best, best_step = mean, t
        if t - best_step >= 100:
            return t, best_step, True
    return len(losses) - 1, best_step, False


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    slope=st.sampled_from([0.0, 1e-3, 1e-2]),
    noise=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_convergence_is_found_online_where_a_second_look_finds_it(seed, slope, noise):
    rng = np.random.default_rng(seed)
    losses = (2 - slope * np.arange(260) + noise * rng.normal(size=260)).astype(np.float32)

    def step(state, inputs):
        t, loss = inputs
        return convergence.update(state, t, loss, t.astype(jnp.float32)), None

    state, _ = jax.lax.scan(
        step, convergence.start(jnp.asarray(-1.0)), (jnp.arange(260), jnp.asarray(losses))
    )
    # Means of equal losses differ in the last bit between orders of summation.
    if noise > 0:
        at, best_step, declared = reference_poc(losses.astype(np.float64))
        assert bool(state.declared) == declared
        assert int(state.step) == at
        assert int(state.best_step) == best_step
    assert float(state.params) == float(state.step)  # The params of that very step.


def test_ascent_reaches_the_maximum_of_a_quadratic_over_the_box():
    """L = sum a (x - c)^2 / 2 is largest at a corner: each coordinate on the side away from c."""
    with jax.enable_x64(True):
        a, c = np.array([1.0, 3.0, 0.5]), np.array([0.02, -0.03, 0.01])

        def objective(x):
            return 0.5 * jnp.sum(a * (x - c) ** 2)

        radius = 0.005  # Smaller than |c|: the maximum is unique, and the gradient never turns.
        ascent = sharpness.ascend(objective, jnp.zeros(3), KEY, radius, num_steps=10)
        maximum = 0.5 * np.sum(a * (radius + np.abs(c)) ** 2)
        assert float(ascent.last) == pytest.approx(maximum, rel=1e-12)
        assert float(ascent.best) == pytest.approx(maximum, rel=1e-12)
        assert float(ascent.centre) == pytest.approx(0.5 * np.sum(a * c**2))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), radius=st.sampled_from([1e-3, 0.1, 1.0]))
def test_more_ascent_never_lowers_the_best_and_never_leaves_the_ball(seed, radius):
    rng = np.random.default_rng(seed)
    w = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    farthest = []

    def objective(x):
        jax.debug.callback(lambda d: farthest.append(float(d)), jnp.max(jnp.abs(x["a"] - centre)))
        return jnp.sum(jnp.sin(w @ x["a"]) * x["a"])

    centre = jnp.asarray(rng.normal(size=4), jnp.float32)
    short, long = (
        sharpness.ascend(objective, {"a": centre}, jax.random.PRNGKey(seed), radius, steps)
        for steps in (4, 10)
    )
    jax.effects_barrier()
    np.testing.assert_allclose(long.values[:5], short.values, rtol=1e-5, atol=1e-6)
    assert float(long.best) >= float(short.best) - 1e-6
    assert float(short.best) >= float(short.centre)
    assert max(farthest) <= radius * (1 + 1e-3) + 1e-6


def test_paired_difference_is_a_bootstrap_interval():
    rng = np.random.default_rng(0)
    common = 10 * rng.normal(size=30)
    shift = 0.5 + 0.1 * rng.normal(size=30)
    difference = statistics.paired_difference(common + shift, common)
    assert difference.low < shift.mean() < difference.high
    # Common noise cancels: the interval is that of the shift, about +-2 * 0.1 / sqrt(30).
    assert difference.high - difference.low == pytest.approx(4 * 0.1 / np.sqrt(30), rel=0.3)
    same = statistics.paired_difference(common, common)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="Paired runs are needed: got 30 and 3"):
        statistics.paired_difference(common, common[:3])
    assert statistics.summarize(np.array([2.0])).std == 0.0


def test_runs_are_what_a_plain_loop_gives():
    """Vmapped, chunked and jitted, a run is the same as upstream's optimizer in a Python loop."""
    task = tasks.get(DIGITS)
    runs = train_runs(
        lambda _: upstream.SGD(0.1), task, 2, 12, seed=3, eval_steps=[5, 12], progress=False
    )
    arrays = task.datasets.arrays("train")
    for run in range(2):
        key = jax.random.fold_in(jax.random.PRNGKey(3), run)
        opt = upstream.SGD(0.1)
        state = opt.init(task.init(jax.random.fold_in(key, 0)))
        for t in range(12):
            batch_key = jax.random.fold_in(jax.random.fold_in(key, 1), t)
            batch = task.datasets.sample(arrays, batch_key)
            loss, grad = jax.value_and_grad(task.loss)(opt.get_params(state), key, batch)
            assert float(loss) == pytest.approx(float(runs.train_loss[run, t]), rel=1e-4)
            state = opt.update(state, grad, loss=loss)
        test = task.datasets.host_arrays("test")
        batch = task.datasets.normalize(test)
        loss, aux = task.loss_and_aux(opt.get_params(state), key, batch)
        assert float(loss) == pytest.approx(float(runs.test_loss[run, -1]), rel=1e-4)
        assert float(aux["accuracy"]) == pytest.approx(float(runs.test_accuracy[run, -1]), abs=1e-6)


def test_all_optimizers_start_from_the_same_params_and_batches():
    task = tasks.get(DIGITS)
    a, b = (
        train_runs(lambda _, r=rate: upstream.SGD(r), task, 2, 2, eval_steps=[0], progress=False)
        for rate in (0.0, 1.0)
    )
    np.testing.assert_array_equal(a.test_loss[:, 0], b.test_loss[:, 0])
    np.testing.assert_array_equal(a.train_loss[:, 0], b.train_loss[:, 0])


def test_tuning_picks_the_rate_that_trains_best(monkeypatch):
    rates = jnp.asarray([1e-4, 0.5, 1e3])  # Too slow, good, divergent.
    monkeypatch.setitem(baselines.LEARNING_RATES, "SGD", rates)
    assert tune_baseline("SGD", tasks.get(DIGITS), 30, progress=False) == 0.5


def test_eval_grid_has_start_quarter_and_end():
    grid = eval_grid(2000)
    assert {0, 1, 500, 2000} <= set(grid.tolist())
    assert (np.diff(grid) > 0).all()
    assert eval_grid(1).tolist() == [0, 1]


@pytest.fixture(scope="module")
def lopt_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("lopt") / "untrained.npz"
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3)
    zoo.save(path, lopt, lopt.init(KEY), {"note": "untrained"})
    return path


def test_zoo_round_trip(lopt_file):
    loaded = regularized_lopt.load(lopt_file)
    expected = regularized_lopt.LSTMLOpt(hidden_size=3).init(KEY)
    for a, b in zip(*map(jax.tree.leaves, (loaded.theta, expected)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loaded.metadata["note"] == "untrained"
    assert loaded.learned_opt.config["hidden_size"] == 3


def test_zoo_refuses_what_is_no_optimizer(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no theta.npz"):
        regularized_lopt.load(tmp_path)
    serialization.save(tmp_path / "other.npz", {"a": np.zeros(3)})
    with pytest.raises(serialization.FileFormatError, match="holds no learned optimizer"):
        regularized_lopt.load(tmp_path / "other.npz")


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
            "--num_steps=15",
            "--baselines=SGD",
            f"--out_dir={tmp_path}",
        ],
        check=True,
        cwd=REPOSITORY,
        capture_output=True,
    )
    out = tmp_path / DIGITS
    content = json.loads((out / "results.json").read_text())
    assert set(content["runs"]) == {"a", "b", "SGD"}
    # The same optimizer under two names, the same inits and batches: no difference at all.
    assert content["runs"]["a"]["train_loss"] == content["runs"]["b"]["train_loss"]
    assert content["sharpness_at_poc"]["a"] == content["sharpness_at_poc"]["b"]
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert len(rows) == 3 * 2 * 2
    table = list(csv.DictReader((out / "table.csv").open()))
    assert table[1]["vs a (points, 95%)"] == "+0 [+0, +0]"
    for name in ("training_curves", "sharpness_by_radius", "ascent_curves"):
        assert (out / f"{name}.png").stat().st_size > 10_000
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page
    for outside in ("http://", "https://", "<script", "<link"):
        links = [x for x in page.split(outside)[1:] if "w3.org" not in x[:40]]
        assert not links, f"the report is not self-contained: {outside}{links[0][:60]}"


def test_results_have_one_row_per_run_and_point(lopt_file):
    opt = regularized_lopt.load(lopt_file).opt()
    result = meta_test({"lo": opt}, DIGITS, 2, 10, baselines=(), radii=(0.01, 0.1), progress=False)
    rows = results.run_rows(result)
    assert len(rows) == 4
    completion = rows[-1]
    assert completion["point"] == "completion"
    rise = results.rise(result.at_completion["lo"], 0)
    assert completion["max_loss_r0.01"] == pytest.approx(completion["held_out_loss"] + rise[1])
    header, (row,) = results.table(result)
    assert len(header) == len(row)
    assert set(figures.meta_test_figures(result)) == set(report._CAPTIONS)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: meta_test({}, DIGITS, baselines=("SDG",)), ValueError, "Did you mean 'SGD'"),
        (lambda: meta_test({}, "ImageMLP_Digit"), ValueError, "Did you mean"),
        (lambda: meta_test({}, "CubicRegression"), TypeError, "needs an image task"),
        (lambda: train_runs(lambda _: upstream.SGD(1.0), tasks.get(DIGITS), 0, 1), ValueError,
         "num_runs = 0"),
        (lambda: meta_test({"s": upstream.SGD(1.0)}, DIGITS, 1, 1, baselines=(), radii=(-1.0,),
                           progress=False), ValueError, "radius = -1"),
    ],
)  # fmt: skip
def test_refuses_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

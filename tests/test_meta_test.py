import csv
import dataclasses
import json
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

import regularized_lopt
from regularized_lopt import serialization, tasks, upstream, zoo
from regularized_lopt.measure import ascent as ascent_lib
from regularized_lopt.measure import (
    convergence,
    flatness,
    loss_slices,
    matched_loss,
    training_curves,
)
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.study import meta_test

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


@settings(max_examples=30)
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


@pytest.mark.parametrize(("loss", "declared"), [(2.3, True), (np.nan, False), (np.inf, False)])
def test_convergence_is_declared_on_a_constant_loss_and_not_on_none(loss, declared):
    state, _ = jax.lax.scan(
        lambda state, t: (convergence.update(state, t, jnp.float32(loss), 0.0), None),
        convergence.start(jnp.asarray(0.0)),
        jnp.arange(150),
    )
    assert bool(state.declared) == declared
    assert int(state.step) == (119 if declared else 149)


@pytest.mark.parametrize(
    ("centre", "radius", "measured"),
    [
        ([1e3, 0.0], 0.01, True),
        ([1e9, 0.0], 0.01, False),  # Spaced by 64: one coordinate alone would climb.
        ([0.0, 0.0], 0.01, True),
        ([1e9, 1.0], [[1e7], [0.01]], True),  # In its own units it moves.
        ([1.0, 0.0], [[0.01], [0.0]], True),  # A filter of zeros has a radius of zero.
        ([0.0, 0.0], [[0.0], [0.0]], False),  # All are: a dead network looks flat.
    ],
)
def test_a_ball_without_room_among_the_floats_is_not_measured(centre, radius, measured):
    centre = {"a": jnp.asarray(centre[:1]), "b": jnp.asarray(centre[1:])}
    if isinstance(radius, list):
        radius = dict(zip(centre, map(jnp.asarray, radius), strict=True))
    ascent = ascent_lib.ascend(lambda p: p["a"][0] + p["b"][0], centre, KEY, radius)
    assert np.all(np.isfinite(ascent.values) == measured)
    assert np.isfinite(ascent.centre)
    assert np.isnan(ascent.best) != measured


def test_ascent_reaches_the_maximum_of_a_quadratic_over_the_box():
    """L = sum a (x - c)^2 / 2 is largest at a corner: each coordinate on the side away from c."""
    with jax.enable_x64(True):
        a, c = np.array([1.0, 3.0, 0.5]), np.array([0.02, -0.03, 0.01])

        def objective(x):
            return 0.5 * jnp.sum(a * (x - c) ** 2)

        radius = 0.005  # Smaller than |c|: the maximum is unique, and the gradient never turns.
        ascent = ascent_lib.ascend(objective, jnp.zeros(3), KEY, radius, num_steps=10)
        maximum = 0.5 * np.sum(a * (radius + np.abs(c)) ** 2)
        assert float(ascent.last) == pytest.approx(maximum, rel=1e-12)
        assert float(ascent.best) == pytest.approx(maximum, rel=1e-12)
        assert float(ascent.centre) == pytest.approx(0.5 * np.sum(a * c**2))


@settings(max_examples=25)
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
        ascent_lib.ascend(objective, {"a": centre}, jax.random.PRNGKey(seed), radius, steps)
        for steps in (4, 10)
    )
    jax.effects_barrier()
    np.testing.assert_allclose(long.values[:5], short.values, rtol=1e-5, atol=1e-6)
    assert float(long.best) >= float(short.best) - 1e-6
    assert float(short.best) >= float(short.centre)
    assert max(farthest) <= radius * (1 + 1e-3) + 1e-6


def test_relative_radii_are_shares_of_each_filters_rms():
    params = {"w": jnp.asarray([[3.0, 0.0], [4.0, 0.0]]), "b": jnp.asarray([1.0, -1.0])}
    radii = ascent_lib.filter_radii(params, 0.1)
    np.testing.assert_allclose(radii["w"], [[0.1 * np.sqrt(12.5), 0.0]], rtol=1e-6)
    np.testing.assert_allclose(radii["b"], [0.1], rtol=1e-6)
    # A filter scaled up has the same ball relative to it, so a scale-free loss rises the same.

    def loss(p):
        return jnp.sum((p["w"][:, 0] / jnp.linalg.norm(p["w"][:, 0])) * jnp.asarray([1.0, 2.0]))

    larger = {"w": 10 * params["w"], "b": params["b"]}
    a, b = (
        ascent_lib.ascend(loss, p, KEY, ascent_lib.filter_radii(p, 0.1)) for p in (params, larger)
    )
    np.testing.assert_allclose(a.values, b.values, rtol=1e-4)


def test_gradient_over_its_maximum_is_another_direction_of_ascent():
    a = jnp.asarray([1.0, 0.5])
    ascent = ascent_lib.ascend(
        lambda x: jnp.sum(a * x), jnp.zeros(2), KEY, 1.0, num_steps=1, direction="max"
    )
    # Linear: a step of 1/4 along (1, 1/2) unless the ball's side is in the way.
    start = np.clip(0.5 * jax.random.normal(jax.random.split(KEY, 1)[0], (2,)), -1, 1)
    end = np.clip(start + 0.25 * np.array([1.0, 0.5]), -1, 1)
    assert float(ascent.last) == pytest.approx(float(np.sum(np.asarray(a) * end)), rel=1e-5)


def test_runs_are_what_a_plain_loop_gives():
    """Chunked, jitted, on threads or side by side, a run is that of a plain Python loop."""
    task = tasks.get(DIGITS)
    optimizer = optimizers_lib.fixed("SGD", upstream.SGD(0.1))
    parallelisms = [trainer_lib.Parallelism(*each) for each in ((1, 1), (1, 2), (2, 1))]
    plain, threads, wide = (
        trainer_lib.Trainer(
            task, 2, 40, seed=3, eval_steps=[5, 40], parallelism=parallelism, progress=False
        ).train([optimizer])["SGD"]
        for parallelism in parallelisms
    )
    np.testing.assert_array_equal(plain.train_loss, threads.train_loss)
    np.testing.assert_allclose(plain.train_loss, wide.train_loss, rtol=1e-4)
    arrays = task.datasets.arrays("train")
    for run in range(2):
        key = jax.random.fold_in(jax.random.PRNGKey(3), run)
        opt = upstream.SGD(0.1)
        state = opt.init(task.init(jax.random.fold_in(key, 0)))
        reached, losses = {}, []
        for t in range(40):
            batch_key = jax.random.fold_in(jax.random.fold_in(key, 1), t)
            batch = task.datasets.sample(arrays, batch_key)
            loss, grad = jax.value_and_grad(task.loss)(opt.get_params(state), key, batch)
            losses.append(float(loss))
            trailing = np.mean(losses[-20:])
            assert plain.train_loss[run, t] == pytest.approx(trailing, rel=1e-4)
            before = opt.get_params(state)
            state = opt.update(state, grad, loss=loss)
            if t >= 19:
                level = int(np.floor(-np.log(trailing) / np.log(training_curves.LEVEL_RATIO)))
                reached.setdefault(level, (t, opt.get_params(state)))
        test = task.datasets.host_arrays("test")
        batch = task.datasets.normalize(test)
        loss, aux = task.loss_and_aux(opt.get_params(state), key, batch)
        assert float(loss) == pytest.approx(float(plain.test_loss[run, -1]), rel=1e-4)
        assert float(aux["accuracy"]) == pytest.approx(
            float(plain.test_accuracy[run, -1]), abs=1e-6
        )
        update = jax.tree.map(jnp.subtract, opt.get_params(state), before)
        assert float(plain.update_norm[run, -1]) == pytest.approx(
            float(optax.tree.norm(update)), rel=1e-3
        )
        # Params at the first step that reached a training loss.
        lowest = max(reached)
        params, steps = matched_loss.params_at_level(plain, plain.saved_params, np.full(2, lowest))
        assert plain.level[run].max() == lowest
        assert steps[run] == reached[lowest][0]
        for found, expected in zip(
            *map(jax.tree.leaves, (params, reached[lowest][1])), strict=True
        ):
            np.testing.assert_allclose(found[run], expected, rtol=1e-4, atol=1e-6)


def test_all_optimizers_start_from_the_same_params_and_batches():
    task = tasks.get(DIGITS)
    trainer = trainer_lib.Trainer(task, 2, 2, eval_steps=[0], progress=False)
    rates = (1e-9, 1.0)
    runs = trainer.train(
        [
            dataclasses.replace(optimizers_lib.baseline("SGD", rate), name=str(rate))
            for rate in rates
        ]
    )
    a, b = (runs[str(rate)] for rate in rates)
    np.testing.assert_array_equal(a.test_loss[:, 0], b.test_loss[:, 0])
    np.testing.assert_array_equal(a.train_loss[:, 0], b.train_loss[:, 0])
    assert not np.array_equal(a.train_loss[:, 1], b.train_loss[:, 1])


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), slope=st.floats(0.0, 0.3), noise=st.floats(0.0, 0.5))
def test_levels_keep_the_first_step_that_reached_them(seed, slope, noise):
    rng = np.random.default_rng(seed)
    losses = (np.exp(1 - slope * np.arange(80)) * np.exp(noise * rng.normal(size=80))).astype("f4")

    def step(carry, inputs):
        (poc, levels), (t, loss) = carry, inputs
        params = t.astype(jnp.float32)
        poc = convergence.update(poc, t, loss, params)
        return (poc, levels.update(t, poc.trailing_mean, params)), None

    start = jnp.asarray(-1.0)
    (_, state), _ = jax.lax.scan(
        step,
        (convergence.start(start), training_curves.LossLevels.start(start)),
        (jnp.arange(80), jnp.asarray(losses)),
    )
    means = np.array([losses[t - 19 : t + 1].mean() for t in range(19, 80)])
    for number, at in zip(np.asarray(state.level), np.asarray(state.step), strict=True):
        if at >= 0:
            bound = training_curves.LEVEL_RATIO ** -float(number)
            first = 19 + int(np.argmax(means <= bound * (1 + 1e-5)))
            assert abs(first - at) <= 1 or means[at - 19] <= bound * (1 + 1e-4)
            assert not np.any(means[: at - 19] < bound * (1 - 1e-4))
    kept = np.asarray(state.step) >= 0
    assert kept.any()
    # The params of a slot are those of its step, or of a lower level that was reached with it.
    lowest = int(np.argmax(np.where(kept, state.level, -(10**9))))
    assert float(state.params[lowest]) == float(state.step[lowest])


def test_tuning_picks_the_rate_that_trains_best(monkeypatch):
    rates = np.array([1e-4, 0.5, 1e3])  # Too slow, good, divergent.
    found = dataclasses.replace(optimizers_lib.BASELINES["SGD"], learning_rates=rates)
    monkeypatch.setattr(optimizers_lib, "BASELINES", {"SGD": found})
    tuned = trainer_lib.tune("SGD", trainer_lib.Trainer(tasks.get(DIGITS), 1, 30, progress=False))
    assert tuned.learning_rate == 0.5


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adam", "SGD+SAM", "Adam+SAM"])
def test_baselines_are_optax_s(name):
    """Two steps on a quadratic, against optax driven by hand; SAM's ascent written out."""
    a = jnp.asarray([1.0, 4.0])
    grad_fn = jax.grad(lambda p: 0.5 * jnp.sum(a * p**2))
    base = {
        "SGD": optax.sgd(0.1),
        "Momentum": optax.sgd(0.1, momentum=0.9),
        "Adam": optax.adam(0.1),
    }[name.removesuffix("+SAM")]
    params = expected = jnp.asarray([1.0, -1.0])
    optimizer = optimizers_lib.baseline(name, 0.1)
    opt = optimizer.make(optimizer.hyper)
    state, by_hand = opt.init(params), base.init(params)
    for _ in range(2):
        at = opt.get_params(state)
        state = opt.update(state, grad_fn(at), loss=0.0, grad_fn=grad_fn)
        g = grad_fn(expected)
        if name.endswith("SAM"):
            g = grad_fn(expected + optimizers_lib.SAM_RHO * g / jnp.linalg.norm(g))
        updates, by_hand = base.update(g, by_hand, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(opt.get_params(state), expected, rtol=1e-5)
    assert optimizer.gradients_per_step == (2 if name.endswith("SAM") else 1)


def test_eval_grid_has_start_quarter_and_end():
    grid = training_curves.eval_grid(2000)
    assert {0, 1, 500, 2000} <= set(grid.tolist())
    assert (np.diff(grid) > 0).all()
    assert training_curves.eval_grid(1).tolist() == [0, 1]


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
            "--num_steps=25",
            "--baselines=SGD",
            f"--out_dir={tmp_path}",
        ],
        check=True,
        cwd=REPOSITORY,
        capture_output=True,
    )
    content = json.loads((tmp_path / "results.json").read_text())
    found = content["tasks"][DIGITS]["contestants"]
    assert set(found) == {"a", "b", "SGD"}
    # The same optimizer under two names, the same inits and batches: no difference at all.
    assert found["a"]["runs"] == found["b"]["runs"]
    assert found["a"]["at"] == found["b"]["at"]
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
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert (tmp_path / f"{name}.svg").read_text().startswith("<svg")
    assert page.count("<svg") == 7
    named = set(re.findall(r'id="(.*?)"', page))
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', page)) <= named
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page
    for outside in ("http://", "https://", "<script", "<link"):
        links = [x for x in page.split(outside)[1:] if "w3.org" not in x[:40]]
        assert not links, f"the report is not self-contained: {outside}{links[0][:60]}"


def test_properties_are_measured_around_the_params_of_each_run(lopt_file):
    """Against the ascents called one by one, and the Hessian written out."""
    task = tasks.get(DIGITS)
    what = flatness.FlatnessConfig(
        radii=(0.01, 0.1), num_examples=64, headline_starts=1, num_probes=2000, num_iterations=200
    )
    loaded = regularized_lopt.load(lopt_file)
    result = meta_test(
        {"lo": loaded}, DIGITS, 1, 25, baselines=(), flatness_config=what,
        progress=False,
    )  # fmt: skip
    (one,) = result.optimizers.values()
    lo = optimizers_lib.learned("lo", loaded.learned_opt, loaded.theta)
    curves = trainer_lib.Trainer(task, 1, 25, progress=False).train([lo])["lo"]
    around = one.at["completion"][0]
    params = jax.tree.map(lambda x: x[0], curves.saved_params.final)
    raw = task.datasets.host_arrays("test")
    chosen = np.random.default_rng(0).permutation(len(raw["label"]))[:64]
    batch = task.datasets.normalize({name: jnp.asarray(v[chosen]) for name, v in raw.items()})

    def loss(p):
        return task.loss(p, KEY, batch)

    assert around.loss[0] == pytest.approx(float(loss(params)), rel=1e-5)
    for scale in flatness.SCALES:
        for index, radius in enumerate(what.radii):
            ball = ascent_lib.filter_radii(params, radius) if scale == "relative" else radius
            key = jax.random.fold_in(jax.random.PRNGKey(0), 0)
            steep = ascent_lib.gradient_norm(loss)
            a, b = (ascent_lib.ascend(f, params, key, ball) for f in (loss, steep))
            assert around.last("sam", scale)[0, index] == pytest.approx(float(a.last), rel=1e-3)
            assert around.last("gsam", scale)[0, index] == pytest.approx(
                float(a.last - a.centre), rel=1e-2, abs=1e-4
            )
            assert around.last("gam", scale)[0, index] == pytest.approx(
                float(b.last - b.centre), rel=1e-2, abs=1e-4
            )
            assert around.best("sam", scale)[0, index] >= around.last("sam", scale)[0, index]
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.hessian(lambda p: loss(unravel(p)))(flat), np.float64)
    eigenvalues = np.linalg.eigvalsh(hessian)
    assert around.top[0] == pytest.approx(eigenvalues[np.argmax(np.abs(eigenvalues))], rel=0.01)
    deviation = np.sqrt(2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2)) / 2000)
    assert abs(around.trace[0] - np.trace(hessian)) < 4 * deviation


def test_runs_are_measured_side_by_side_where_there_is_an_accelerator(monkeypatch):
    task = tasks.get(DIGITS)
    params = jax.vmap(task.init)(jax.random.split(KEY, 3))
    what = flatness.FlatnessConfig(radii=(0.01, 0.1), num_examples=64, num_probes=3)
    one_by_one = flatness.measure(task, params, what)
    batched = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "vmap", lambda f, vmap=jax.vmap: batched.append(f) or vmap(f))
    jax.clear_caches()
    chex.assert_trees_all_close(
        dataclasses.asdict(flatness.measure(task, params, what)),
        dataclasses.asdict(one_by_one),
        rtol=1e-3,
    )
    assert batched
    jax.clear_caches()  # Of what was traced for another device.


def test_slices_are_normalized_by_filter(lopt_file):
    task = tasks.get(DIGITS)
    params = task.init(KEY)
    direction = loss_slices.filter_direction(params, KEY)
    for d, p in zip(*map(jax.tree.leaves, (direction, params)), strict=True):
        axes = tuple(range(p.ndim - 1)) if p.ndim > 1 else None
        np.testing.assert_allclose(
            np.sum(np.square(d), axis=axes), np.sum(np.square(p), axis=axes), rtol=1e-4
        )
    slices = loss_slices.loss_slices(task, params, num_points=5, num_examples=64)
    raw = task.datasets.host_arrays("test")
    chosen = np.random.default_rng(0).permutation(len(raw["label"]))[:64]
    batch = task.datasets.normalize({name: jnp.asarray(v[chosen]) for name, v in raw.items()})
    assert slices.line[2] == pytest.approx(float(task.loss(params, KEY, batch)), rel=1e-5)
    np.testing.assert_array_equal(slices.plane[:, 2], slices.line)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: meta_test({}, DIGITS), ValueError, "must name at least one each"),
        (lambda: meta_test({"s": upstream.SGD(1.0)}, DIGITS, baselines=("SDG",)), ValueError,
         "Did you mean 'SGD'"),
        (lambda: meta_test({"s": upstream.SGD(1.0)}, "ImageMLP_Digit"), ValueError, "Did you mean"),
        (lambda: meta_test({"s": upstream.SGD(1.0)}, "CubicRegression"), TypeError,
         "Only image tasks"),
        (lambda: trainer_lib.Trainer(tasks.get(DIGITS), 0, 1), ValueError, "num_runs = 0"),
        (lambda: flatness.FlatnessConfig(radii=(-1.0,)), ValueError, "FlatnessConfig.radii = -1"),
        (lambda: flatness.FlatnessConfig(direction="up"), ValueError, "Unknown direction 'up'"),
    ],
)  # fmt: skip
def test_refuses_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

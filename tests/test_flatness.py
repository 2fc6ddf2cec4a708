"""Properties around the params at which runs arrive."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regularized_lopt
from regularized_lopt import tasks
from regularized_lopt.measure import ascent as ascent_lib
from regularized_lopt.measure import flatness, selections
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.study import meta_test

KEY = jax.random.PRNGKey(0)
DIGITS = "ImageMLP_Digits_20_Relu"


def test_properties_are_measured_around_the_params_of_each_run(lopt_file):
    """Against the ascents called one by one, and the Hessian written out."""
    task = tasks.get(DIGITS)
    what = flatness.FlatnessConfig(
        radii=(0.01, 0.1), num_examples=64, headline_starts=1, num_probes=2000, num_iterations=200
    )
    loaded = regularized_lopt.load(lopt_file)
    found = meta_test(
        {"lo": loaded}, DIGITS, 1, 25, baselines=(), flatness_config=what,
        progress=False,
    )  # fmt: skip
    one = selections.reference(found)
    lo = optimizers_lib.learned("lo", loaded.learned_opt, loaded.theta)
    curves = trainer_lib.Trainer(task, 1, 25, progress=False).train([lo])["lo"]
    around = {
        name: selections.last(one, name).isel(seed=0, measured_run=0).sel(point="completion")
        for name in flatness.PROPERTIES
    }
    params = jax.tree.map(lambda x: x[0], curves.saved_params.final)
    raw = task.datasets.host_arrays("test")
    chosen = np.random.default_rng(0).permutation(len(raw["label"]))[:64]
    batch = task.datasets.normalize({name: jnp.asarray(v[chosen]) for name, v in raw.items()})

    def loss(p):
        return task.loss(p, KEY, batch)

    centre = one["around_loss"].sel(point="completion").item()
    assert centre == pytest.approx(float(loss(params)), rel=1e-5)
    for scale in flatness.SCALES:
        for radius in what.radii:
            at = {"scale": scale, "radius": radius}
            ball = ascent_lib.filter_radii(params, radius) if scale == "relative" else radius
            key = jax.random.fold_in(jax.random.PRNGKey(0), 0)
            steep = ascent_lib.gradient_norm(loss)
            a, b = (ascent_lib.ascend(f, params, key, ball) for f in (loss, steep))
            assert around["sam"].sel(at).item() == pytest.approx(float(a.last), rel=1e-3)
            assert around["gsam"].sel(at).item() == pytest.approx(
                float(a.last - a.centre), rel=1e-2, abs=1e-4
            )
            assert around["gam"].sel(at).item() == pytest.approx(
                float(b.last - b.centre), rel=1e-2, abs=1e-4
            )
            best = selections.best(one, "sam").sel(point="completion", **at)
            assert best.item() >= around["sam"].sel(at).item()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.hessian(lambda p: loss(unravel(p)))(flat), np.float64)
    eigenvalues = np.linalg.eigvalsh(hessian)
    trace, top = (one[f"around_{name}"].sel(point="completion").item() for name in ("trace", "top"))
    assert top == pytest.approx(eigenvalues[np.argmax(np.abs(eigenvalues))], rel=0.01)
    deviation = np.sqrt(2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2)) / 2000)
    assert abs(trace - np.trace(hessian)) < 4 * deviation


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

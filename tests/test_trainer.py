"""Networks are trained as by a plain loop, and baselines are tuned."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regularized_lopt import tasks, upstream
from regularized_lopt.devices import Parallelism
from regularized_lopt.measure import (
    matched_loss,
    training_curves,
)
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.measure.programs import Programs

DIGITS = "ImageMLP_Digits_20_Relu"


def test_runs_are_what_a_plain_loop_gives():
    """Chunked, jitted, on threads or side by side, a run is that of a plain Python loop."""
    task = tasks.get(DIGITS)
    optimizer = optimizers_lib.fixed("SGD", upstream.SGD(0.1))
    parallelisms = [Parallelism(*each) for each in ((1, 1), (1, 2), (2, 1))]
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


def by_hand(name, task, run_key, num_steps, rate):
    """The params to evaluate and the losses at them, of a plain loop with two gradients per step.

    One of them is at the point that the optimizer trains at.
    """
    arrays = task.datasets.arrays("train")
    grad = jax.grad(task.loss)
    shown = trained = task.init(jax.random.fold_in(run_key, 0))
    v = jax.tree.map(jnp.zeros_like, trained)
    past, losses = [], []
    for t in range(num_steps):
        batch_key = jax.random.fold_in(jax.random.fold_in(run_key, 1), t)
        batch = task.datasets.sample(arrays, batch_key)
        losses.append(float(task.loss(shown, run_key, batch)))
        if name == "Momentum+MSAM 1.0":
            norm = max(float(optax.tree.norm(v)), 1e-30)
            at = jax.tree.map(lambda p, m, norm=norm: p - m / norm, trained, v)
            v = jax.tree.map(lambda m, g: 0.9 * m + g, v, grad(at, run_key, batch))
            shown = trained = jax.tree.map(lambda p, m: p - rate * m, trained, v)
        else:
            g = grad(trained, run_key, batch)
            trained = jax.tree.map(lambda p, m: p - rate * m, trained, g)
            past.append(trained)
            weights = 0.99 ** np.arange(t, -1, -1.0)
            weights /= weights.sum()
            shown = jax.tree.map(
                lambda *ps, w=weights: sum(a * p for a, p in zip(w, ps, strict=True)), *past
            )
    return shown, losses


@pytest.mark.parametrize("name", ["Momentum+MSAM 1.0", "SGD+EMA"])
def test_what_is_evaluated_and_kept_is_unperturbed_or_averaged(name):
    """The params around which flatness is measured, and the losses that convergence goes by."""
    task = tasks.get(DIGITS)
    trainer = trainer_lib.Trainer(task, 1, 25, seed=3, eval_steps=[25], progress=False)
    found = trainer.train([optimizers_lib.baseline(name, 0.1)])[name]
    key = jax.random.fold_in(jax.random.PRNGKey(3), 0)
    shown, losses = by_hand(name, task, key, 25, 0.1)
    for kept, expected in zip(
        *map(jax.tree.leaves, (found.saved_params.final, shown)), strict=True
    ):
        np.testing.assert_allclose(kept[0], expected, rtol=1e-4, atol=1e-5)
    assert found.final_train_loss[0] == pytest.approx(np.mean(losses[-20:]), rel=1e-4)
    loss, _ = task.loss_and_aux(
        shown, key, task.datasets.normalize(task.datasets.host_arrays("test"))
    )
    assert float(found.test_loss[0, -1]) == pytest.approx(float(loss), rel=1e-4)


def test_a_gradient_that_nothing_uses_is_not_computed():
    """MSAM and averages add a loss to a step, where SAM adds a loss and its gradient."""
    task = tasks.get(DIGITS)
    train = task.datasets.arrays("train")

    def flops(name):
        one = optimizers_lib.baseline(name, 0.1)
        program = Programs(task).of(one)
        key = jax.random.PRNGKey(0)
        hyper, keys = one.hyper[None], key[None]
        start = jax.tree.map(lambda leaf: leaf[None], task.init_with_state(key))
        carry = jax.tree.map(lambda leaf: leaf[0], program._start(hyper, keys, start, 2))
        step = jax.jit(lambda carry: program._step(one.hyper, key, 0, carry, train))
        return step.lower(carry).compile().cost_analysis()["flops"]

    one, two = flops("Momentum"), flops("SGD+SAM")
    for name in ("Momentum+MSAM 1.0", "SGD+EMA"):
        assert one < flops(name) < (one + two) / 2


def test_a_budget_of_gradients_ends_two_per_step_half_way():
    """What it is then, in params and in curves, is what it is after half of the steps."""
    task = tasks.get(DIGITS)
    steps, grid = 41, [0, 5, 20, 30, 41]
    trainer = trainer_lib.Trainer(task, 1, steps, eval_steps=grid, progress=False)
    equal = trainer.like(eval_steps=grid, budget="gradients")
    sam, sgd = (optimizers_lib.baseline(name, 0.3) for name in ("SGD+SAM", "SGD"))
    assert [equal.steps_of(one) for one in (sam, sgd)] == [20, 41]
    half = trainer.like(num_steps=20, eval_steps=[0, 5, 20]).train([sam])["SGD+SAM"]
    found = equal.train([sam])["SGD+SAM"]
    chex.assert_trees_all_equal(found.saved_params.final, half.saved_params.final)
    assert found.eval_steps.tolist() == grid
    np.testing.assert_array_equal(found.test_loss, half.test_loss[:, [0, 1, 2, 2, 2]])
    np.testing.assert_array_equal(found.final_train_loss, half.final_train_loss)
    assert found.loss_steps[-1] == 40
    np.testing.assert_array_equal(
        found.train_loss[:, found.loss_steps == 30], half.train_loss[:, -1:]
    )
    assert found.poc_step[0] == half.poc_step[0] == 19
    # The other takes all of its steps.
    whole, same = (one.train([sgd])["SGD"] for one in (trainer, equal))
    chex.assert_trees_all_equal(same.saved_params.final, whole.saved_params.final)
    np.testing.assert_array_equal(same.train_loss, whole.train_loss)
    assert whole.poc_step[0] == 40


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


def test_tuning_picks_the_rate_that_trains_best(monkeypatch):
    rates = np.array([1e-4, 0.5, 1e3])  # Too slow, good, divergent.
    found = dataclasses.replace(
        optimizers_lib.BASELINES["SGD"], settings=lambda: {"learning_rate": rates}
    )
    monkeypatch.setattr(optimizers_lib, "BASELINES", {"SGD": found})
    tuned = trainer_lib.tune("SGD", trainer_lib.Trainer(tasks.get(DIGITS), 1, 30, progress=False))
    assert tuned.learning_rate == 0.5

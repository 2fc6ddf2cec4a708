"""Randomness of losses and optimizers: fresh at every step, and never the same for two uses."""

import jax
import jax.numpy as jnp
import pytest

from regularized_lopt import tasks, upstream
from regularized_lopt.measure import cubic_regression, flatness, loss_slices, update_curves
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib

STEPS = 5
DIGITS = "ImageMLP_Digits_20_Relu"
KEY = jax.random.PRNGKey(0)


class Recorder:
    """Notes the keys that it is shown, by use, from inside jitted code."""

    def __init__(self):
        self.keys = {}

    def see(self, use, key):
        jax.debug.callback(lambda bits: self.keys.setdefault(use, []).append(bits.tolist()), key)

    def of(self, use):
        jax.effects_barrier()
        return [tuple(bits) for bits in self.keys.get(use, [])]

    def seeing(self, function, use, place):
        """`function`, which notes its argument `key`."""

        def noting(*args, **kwargs):
            self.see(use, kwargs["key"] if "key" in kwargs else args[place])
            return function(*args, **kwargs)

        return noting

    def optimizer(self):
        opt = upstream.SGD(0.1)
        opt.init = self.seeing(opt.init, "init", None)
        opt.update = self.seeing(opt.update, "update", None)
        return opt


@pytest.fixture
def recorder():
    return Recorder()


def assert_all_differ(recorder, *uses):
    """Of all uses together."""
    seen = [key for use in uses for key in recorder.of(use)]
    assert len(set(seen)) == len(seen)


def test_a_meta_test_gives_every_step_fresh_keys(recorder, monkeypatch):
    task = tasks.get(DIGITS)
    noting = recorder.seeing(task.loss_with_state, "loss", 2)
    monkeypatch.setattr(task, "loss_with_state", noting)
    monkeypatch.setattr(task.datasets, "sample", recorder.seeing(task.datasets.sample, "batch", 1))
    trainer = trainer_lib.Trainer(task, 2, STEPS, eval_steps=[STEPS], progress=False)
    trainer.train([optimizers_lib.fixed("SGD", recorder.optimizer())])
    uses = ("init", "loss", "update", "batch")
    assert [len(recorder.of(use)) for use in uses] == [2, 2 * STEPS, 2 * STEPS, 2 * STEPS]
    assert_all_differ(recorder, *uses)


def test_sam_takes_both_gradients_with_one_key(recorder, monkeypatch):
    task = tasks.get(DIGITS)
    noting = recorder.seeing(task.loss_with_state, "loss", 2)
    monkeypatch.setattr(task, "loss_with_state", noting)
    trainer = trainer_lib.Trainer(task, 1, STEPS, eval_steps=[STEPS], progress=False)
    trainer.train([optimizers_lib.baseline("SGD+SAM", 0.1)])
    seen = recorder.of("loss")
    assert len(seen) == 2 * STEPS
    assert len(set(seen)) == STEPS


def test_early_evidence_gives_every_step_fresh_keys(recorder, monkeypatch):
    family = tasks.CubicRegressionFamily()
    task_fn = family.task_fn

    def recording(param):
        task = task_fn(param)
        task.loss = recorder.seeing(task.loss, "loss", 1)
        return task

    monkeypatch.setattr(family, "task_fn", recording)
    optimizer = optimizers_lib.fixed("SGD", recorder.optimizer())
    cubic_regression.fit(optimizer, family, 1, num_steps=STEPS)
    assert len(recorder.of("update")) == STEPS
    assert len(set(recorder.of("loss"))) >= STEPS  # The last one judges.
    assert not set(recorder.of("loss")) & set(recorder.of("update"))
    assert_all_differ(recorder, "init", "update")


def test_a_measured_loss_is_one_function_and_shares_no_key(recorder, monkeypatch):
    task = tasks.get(DIGITS)
    monkeypatch.setattr(task, "loss", recorder.seeing(task.loss, "loss", 1))
    params = task.init(KEY)
    several = jax.tree.map(lambda leaf: leaf[None], params)
    what = flatness.FlatnessConfig(
        radii=(0.01,), num_steps=1, num_examples=8, num_probes=1, num_iterations=1
    )
    flatness.measure(task, several, what)
    starts = [jax.random.fold_in(KEY, start) for start in range(what.headline_starts)]
    (measured,) = set(recorder.of("loss"))
    assert measured not in {tuple(key.tolist()) for key in (KEY, *starts)}

    recorder.keys.clear()
    loss_slices.loss_slices(task, params, num_points=3, num_examples=8)
    (sliced,) = set(recorder.of("loss"))
    assert sliced not in {tuple(key.tolist()) for key in (KEY, *jax.random.split(KEY))}


def test_update_curves_give_every_update_fresh_keys(recorder):
    update_curves.updates_after(recorder.optimizer(), jnp.ones((STEPS, 2)), jnp.ones(2))
    assert len(recorder.of("update")) == STEPS + 1
    assert_all_differ(recorder, "init", "update")

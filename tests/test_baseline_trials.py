"""Baselines whose settings are searched at random."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regularized_lopt import tasks
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.measure.baseline_trials import nadamw_trials

RANGES = {
    "learning_rate": (1e-5, 0.1),
    "b1": (0.0, 0.999),
    "b2": (0.9, 1 - 1e-5),
    "eps": (1e-10, 1e-2),
}


def test_trials_are_fixed_in_their_ranges_and_fewer_are_the_first():
    many, few = nadamw_trials(2000), nadamw_trials(10)
    for name, (low, high) in RANGES.items():
        assert many[name].min() >= low
        assert many[name].max() <= high
        assert len(np.unique(many[name])) == 2000
    # Uniform in the logarithm: half of the rates are below the geometric mean of the ends.
    assert np.mean(many["learning_rate"] < 1e-3) == pytest.approx(0.5, abs=0.05)
    assert np.mean(many["weight_decay"] == 0) == pytest.approx(0.5, abs=0.05)
    assert np.all(many["weight_decay"][many["weight_decay"] > 0] >= 1e-5)
    for name, values in few.items():
        np.testing.assert_array_equal(values, many[name][:10])
    assert not np.array_equal(nadamw_trials(10, seed=1)["b1"], few["b1"])


def test_steps_are_those_of_nadam_with_decoupled_decay():
    """Dozat 2016 with the decay of Loshchilov & Hutter 2019, in float64 NumPy."""
    gin.parse_config("nadamw_trials.num_trials = 7")
    settings = {name: of[3] for name, of in nadamw_trials().items()}
    one = optimizers_lib.baseline("NAdamW", settings["learning_rate"])
    assert one.trials == 7
    opt = jax.jit(lambda hyper, state, grad: one.make(hyper).update(state, grad))
    grads = np.random.default_rng(0).normal(size=(5, 3))
    params = expected = np.array([1.0, -2.0, 0.5])
    state = one.make(one.hyper).init({"w": jnp.asarray(params, jnp.float32)})
    rate, b1, b2, eps, decay = (
        settings[name] for name in ("learning_rate", "b1", "b2", "eps", "weight_decay")
    )
    m = v = np.zeros(3)
    for t, grad in enumerate(grads, 1):
        state = opt(one.hyper, state, {"w": jnp.asarray(grad, jnp.float32)})
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        mean = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * grad / (1 - b1**t)
        step = mean / (np.sqrt(v / (1 - b2**t)) + eps)
        expected = expected - rate * (step + decay * expected)
    moved = np.asarray(state.params["w"], np.float64) - params
    np.testing.assert_allclose(moved, expected - params, rtol=2e-2, atol=1e-7)


def test_the_trial_with_the_lowest_training_loss_wins():
    gin.parse_config("nadamw_trials.num_trials = 4")
    trainer = trainer_lib.Trainer(tasks.get("ImageMLP_Digits_20_Relu"), 1, 25, progress=False)
    tuned = trainer_lib.tune("NAdamW", trainer, num_runs=1)
    rates = nadamw_trials()["learning_rate"]
    assert tuned.learning_rate in rates
    every = [optimizers_lib.baseline("NAdamW", rate) for rate in rates]
    again = trainer.like(seed=1_000_000, num_runs=1, eval_steps=[])
    final = [float(again.train([one])["NAdamW"].final_train_loss[0]) for one in every]
    assert tuned.learning_rate == rates[int(np.argmin(final))]


def test_refuses_no_trials_and_rates_that_were_not_drawn():
    with pytest.raises(ValueError, match=r"nadamw_trials\.num_trials = 0"):
        nadamw_trials(0)
    with pytest.raises(ValueError, match=r"NAdamW has no trial with learning rate 0\.1"):
        optimizers_lib.baseline("NAdamW", 0.1)


def test_adam_by_half_decades():
    rates = optimizers_lib.BASELINES["Adam by half decades"].learning_rates
    np.testing.assert_allclose(np.diff(np.log10(rates)), 0.5)
    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] == 1

"""Baselines behind the interface of a meta-test."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regularized_lopt.measure import optimizers as optimizers_lib

SAM_RHOS = {
    "SGD+SAM": 0.1,
    "SGD+SAM 0.05": 0.05,
    "SGD+SAM 1.0": 1.0,
    "Adam+SAM": 0.1,
    "Adam+SAM 0.5": 0.5,
}


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adam", "AMSGrad", "RMSProp", *SAM_RHOS])
def test_baselines_are_optax_s(name):
    """Two steps on a quadratic, against optax driven by hand; SAM's ascent written out."""
    a = jnp.asarray([1.0, 4.0])
    grad_fn = jax.grad(lambda p: 0.5 * jnp.sum(a * p**2))
    base = {
        "SGD": optax.sgd(0.1),
        "Momentum": optax.sgd(0.1, momentum=0.9),
        "Adam": optax.adam(0.1),
        "AMSGrad": optax.amsgrad(0.1),
        "RMSProp": optax.rmsprop(0.1, decay=0.99, eps_in_sqrt=False),
    }[name.partition("+")[0]]
    rho = SAM_RHOS.get(name)
    params = expected = jnp.asarray([1.0, -1.0])
    optimizer = optimizers_lib.baseline(name, 0.1)
    opt = optimizer.make(optimizer.hyper)
    state, by_hand = opt.init(params), base.init(params)
    for _ in range(2):
        at = opt.get_params(state)
        state = opt.update(state, grad_fn(at), loss=0.0, grad_fn=grad_fn)
        g = grad_fn(expected)
        if rho is not None:
            g = grad_fn(expected + rho * g / jnp.linalg.norm(g))
        updates, by_hand = base.update(g, by_hand, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(opt.get_params(state), expected, rtol=1e-5)
    assert optimizer.gradients_per_step == (1 if rho is None else 2)
    assert optimizer.trained_with.rho == rho


def test_rmsprop_is_pytorch_s():
    """v <- 0.99 v + 0.01 g^2 from 0, params <- params - rate g / (sqrt(v) + 1e-8)."""
    optimizer = optimizers_lib.baseline("RMSProp", 0.1)
    opt, v, p = optimizer.make(optimizer.hyper), np.zeros(2), np.zeros(2)
    state = opt.init(jnp.zeros(2))
    for g in np.array([[1.0, -4.0], [0.5, 1e-3], [0.0, 2.0]]):
        state = opt.update(state, jnp.asarray(g), loss=0.0)
        v = 0.99 * v + 0.01 * g**2
        p = p - 0.1 * g / (np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(opt.get_params(state), p, rtol=1e-5)


def test_rates_are_on_a_logarithmic_grid():
    for name, one in optimizers_lib.BASELINES.items():
        if name in ("Adam by half decades", "NAdamW"):
            continue
        ratios = np.diff(np.log(one.learning_rates))
        np.testing.assert_allclose(ratios, ratios[0])
        assert len(one.learning_rates) == 10
        assert one.learning_rates[-1] / one.learning_rates[0] == pytest.approx(1000)


def test_doses_are_facts_and_complete():
    """What a figure of doses draws, of each regularizer and optimizer."""
    doses = {}
    for name, one in optimizers_lib.BASELINES.items():
        known = one.trained_with
        key = (known.regularizer, name.partition("+")[0])
        doses.setdefault(key, []).append(known.strength if known.rho is None else known.rho)
    assert {key: sorted(of) for key, of in doses.items() if key[0] != "none"} == {
        ("sam", "SGD"): [0.05, 0.1, 0.2, 0.5, 1.0],
        ("sam", "Adam"): [0.05, 0.1, 0.2, 0.5, 1.0],
        ("msam", "Momentum"): [0.1, 0.3, 1.0, 3.0],
        ("msam", "Adam"): [0.1, 0.3, 1.0, 3.0],
        ("ema", "SGD"): [0.99],
        ("ema", "Adam"): [0.99],
    }
    kinds = [one.kind for one in optimizers_lib.BASELINES.values()]
    assert len(set(kinds)) == len(kinds)  # None shares another's program, or stored results.


@pytest.mark.parametrize(("budget", "steps"), [("steps", (7, 7)), ("gradients", (7, 3))])
def test_two_gradients_per_step_halve_the_steps_of_a_budget_of_gradients(budget, steps):
    found = [optimizers_lib.steps_within(budget, 7, per_step) for per_step in (1, 2)]
    assert tuple(found) == steps
    with pytest.raises(ValueError, match=r"Unknown budget 'gradient'.* Did you mean 'gradients'"):
        optimizers_lib.steps_within("gradient", 7, 1)

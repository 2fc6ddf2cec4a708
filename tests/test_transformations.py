"""MSAM and averages of params, against the same written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regularized_lopt.measure import transformations

A = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.3]])
START = np.array([1.0, -2.0, 0.5])
STEPS = 50
RATE, MOMENTUM = 0.1, 0.9


def tree(p):
    """The params in two leaves: norms are over both."""
    return {"a": p[:1], "b": p[1:]}


def flat(params):
    return np.concatenate([params["a"], params["b"]])


def grad_fn(params, _=0):
    p = jnp.concatenate([params["a"], params["b"]])
    return tree(jnp.asarray(A, p.dtype) @ p)


def path(optimizer):
    """[STEPS, 3], the params after each step."""
    update = jax.jit(
        lambda state, params: optimizer.update(grad_fn(params), state, params, grad_fn=grad_fn)
    )
    params = tree(jnp.asarray(START))
    state, found = optimizer.init(params), []
    for _ in range(STEPS):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
        found.append(flat(params))
    return np.stack(found)


def ascent(v, rho):
    norm = np.linalg.norm(v)
    return rho * v / norm if norm else 0 * v


def sgd_by_hand(rho):
    """The paper's own order, with params that are perturbed between steps."""
    perturbed, v, found = START, np.zeros(3), []
    for _ in range(STEPS):
        gradient = A @ perturbed
        p = perturbed + ascent(v, rho)
        v = MOMENTUM * v + gradient
        p = p - RATE * v
        perturbed = p - ascent(v, rho)
        found.append(p)
    return np.stack(found)


def adam_by_hand(rho):
    p, mu, nu, found = START, np.zeros(3), np.zeros(3), []
    for t in range(1, STEPS + 1):
        gradient = A @ (p - ascent(mu, rho))
        mu, nu = 0.9 * mu + 0.1 * gradient, 0.999 * nu + 0.001 * gradient**2
        p = p - RATE * (mu / (1 - 0.9**t)) / (np.sqrt(nu / (1 - 0.999**t)) + 1e-8)
        found.append(p)
    return np.stack(found)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("base", "buffer", "by_hand"),
    [
        (optax.sgd(RATE, momentum=MOMENTUM), "trace", sgd_by_hand),
        (optax.adam(RATE), "mu", adam_by_hand),
    ],
)
def test_msam_is_the_paper_s(base, buffer, by_hand):
    found = path(transformations.msam(base, buffer, 0.3))
    np.testing.assert_allclose(found, by_hand(0.3), rtol=1e-6)
    # The radius matters: 0 and 0.3 are not mistaken for each other.
    assert np.abs(found - by_hand(0.0)).max() > 0.1


@pytest.mark.parametrize(
    ("base", "buffer"),
    [(optax.sgd(RATE, momentum=MOMENTUM), "trace"), (optax.adam(RATE), "mu")],
)
def test_msam_of_no_radius_is_its_optimizer_to_the_bit(base, buffer):
    """In float32; a gradient of 0 at first leaves no momentum to divide by."""
    of_none = path(transformations.msam(base, buffer, 0.0))
    np.testing.assert_array_equal(of_none, path(optax.with_extra_args_support(base)))
    msam = transformations.msam(base, buffer, 0.3)
    still = tree(jnp.zeros(3))
    updates, _ = msam.update(still, msam.init(still), still, grad_fn=grad_fn)
    np.testing.assert_array_equal(flat(updates), 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("base", [optax.sgd(RATE), optax.adam(RATE)])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_an_average_is_that_of_the_params_that_are_trained(base, decay):
    trained = path(optax.with_extra_args_support(base))
    weights = [decay ** np.arange(t, -1, -1.0) for t in range(STEPS)]
    expected = np.stack([w @ trained[: len(w)] / w.sum() for w in weights])
    found = path(transformations.averaged(base, decay))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transformations.msam(optax.adam(1.0), "mu", -0.1), r"msam.rho = -0.1: .* 0 or gr"),
        (lambda: transformations.msam(optax.adam(1.0), "mu", np.inf), "msam.rho = inf"),
        (
            lambda: transformations.msam(optax.sgd(1.0), "trace", 0.1).init(START),
            "msam.buffer = 'trace': the optimizer's state has none",
        ),
        (lambda: transformations.sam(optax.sgd(1.0), 0.0), "sam.rho = 0.0"),
        (lambda: transformations.averaged(optax.sgd(1.0), 1.0), r"averaged.decay = 1.0.*\[0, 1\)"),
        (lambda: one_step_without_grad_fn("msam"), "msam takes its gradient elsewhere .* grad_fn"),
        (lambda: one_step_without_grad_fn("averaged"), "averaged takes its gradient elsewhere"),
    ],
)
def test_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def one_step_without_grad_fn(name):
    optimizer = {
        "msam": transformations.msam(optax.adam(RATE), "mu", 0.1),
        "averaged": transformations.averaged(optax.adam(RATE), 0.9),
    }[name]
    params = tree(jnp.asarray(START))
    optimizer.update(grad_fn(params), optimizer.init(params), params)

"""Optimizers linearized on the noisy quadratic problem."""

import math
import types

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regularized_lopt import LSTMLOpt, upstream, zoo
from regularized_lopt import noisy_quadratic as launcher
from regularized_lopt.measure import noisy_quadratic as nq
from regularized_lopt.measure.optimizers import OptaxBaseline

pytestmark = pytest.mark.usefixtures("x64")
PROBLEM = nq.NoisyQuadratic()
WHAT = nq.Linearization(warmup=20, num_states=2, num_draws=400, horizon=5)


def linearized(transformation, what=WHAT):
    return nq.linearize(OptaxBaseline("mine", transformation), PROBLEM, what)


def test_of_a_linear_optimizer_without_a_state_it_is_the_papers():
    black_box = jnp.array([[0.1, -0.3], [0.05, 0.4]])

    def update(grad, state, params=None):
        return -(0.2 * grad + black_box @ grad), state

    found = linearized(optax.GradientTransformation(lambda params: optax.EmptyState(), update))
    expected = PROBLEM.dynamics(0.2, black_box)
    for one in found.params:
        np.testing.assert_allclose(one, expected, atol=1e-12)
    by_size = sorted(np.linalg.eigvals(expected), key=abs, reverse=True)
    np.testing.assert_allclose(found.joint, [by_size] * 2, atol=1e-12)
    np.testing.assert_allclose(
        found.measured, [np.linalg.matrix_power(expected, 5)] * 2, atol=1e-12
    )
    np.testing.assert_allclose(found.disagreement, 0, atol=1e-12)


def test_momentum_is_part_of_the_joint_map():
    """v' = beta v + H p, p' = p - rate v'."""
    rate, beta = 0.1, 0.9
    shown = []
    opt = OptaxBaseline("mine", optax.sgd(rate, momentum=beta))
    found = nq.linearize(opt, PROBLEM, WHAT, lambda: shown.append(1))
    assert len(shown) == 2
    eye, hessian = np.eye(2), PROBLEM.H
    joint = np.block([[eye - rate * hessian, -rate * beta * eye], [hessian, beta * eye]])
    expected = np.linalg.eigvals(joint)
    for one in found.joint:
        np.testing.assert_allclose(np.sort_complex(one), np.sort_complex(expected), atol=1e-10)
    np.testing.assert_allclose(found.params[0], eye - rate * hessian, atol=1e-12)
    np.testing.assert_allclose(found.joint_radius, np.abs(expected).max())
    np.testing.assert_allclose(found.disagreement, 0, atol=1e-12)


def test_an_update_by_signs_has_the_slope_of_its_expectation():
    """Its derivative is zero; E sign(g) is erf(m / (s sqrt 2)) where g is N(m, s^2)."""
    rate = 0.1
    chain = optax.chain(optax.scale_by_sign(), optax.scale(-rate))
    what = nq.Linearization(warmup=2, num_states=1, num_draws=20_000, horizon=1)
    found = linearized(chain, what)
    spread = np.linalg.norm(PROBLEM.H, axis=1)
    slope = np.vectorize(math.erf)(what.offset * PROBLEM.H / spread[:, None] / math.sqrt(2))
    expected = np.eye(2) - rate * slope / what.offset
    np.testing.assert_allclose(found.params[0], expected, atol=4 * found.error[0])
    assert found.error[0] < 0.01


def test_what_is_carried_along_is_no_instability():
    found = linearized(optax.inject_hyperparams(optax.sgd)(learning_rate=0.3))
    assert found.joint.shape == (2, 2)
    np.testing.assert_allclose(found.joint_radius, found.params_radius)
    assert found.joint_radius.max() < 1


def test_a_learned_optimizer_has_one(lopt_file):
    opt = zoo.load(lopt_file).opt()
    what = nq.Linearization(warmup=5, num_states=1, num_draws=8, horizon=3)
    nq.check(opt, PROBLEM, what)
    found = nq.linearize(opt, PROBLEM, what)
    assert found.params.shape == found.measured.shape == (1, 2, 2)
    assert found.joint.shape[1] > 2  # And its hidden state.
    assert np.isfinite(found.joint).all()
    assert found.disagreement.max() < 0.2


def test_one_whose_state_has_no_params_is_refused_before_anything_is_compiled():
    class Bare(upstream.Optimizer):
        def init(self, params, *args, **kwargs):
            return (params,)

        def update(self, opt_state, grad, *args, **kwargs):
            return (opt_state[0] - grad,)

        def get_params(self, state):
            return state[0]

    with pytest.raises(TypeError, match="a tuple as its state"):
        nq.check(Bare(), PROBLEM, WHAT)
    assert jax.config.jax_enable_x64


@pytest.mark.parametrize("opt", [optax.sgd(0.1), LSTMLOpt(hidden_size=2), "mnist_star_none", None])
def test_what_is_no_optimizer_is_refused(opt):
    for function in (nq.check, nq.linearize):
        with pytest.raises(TypeError, match="is no Optimizer of upstream's: give "):
            function(opt, PROBLEM, WHAT)


def test_one_that_diverges_is_named(tmp_path, monkeypatch):
    what = nq.Linearization(warmup=60, num_states=1, num_draws=2, horizon=1)
    with pytest.raises(ValueError, match="after 60 steps the optimizer's state"):
        linearized(optax.sgd(1e8, momentum=0.9), what)
    diverging = {"mine": OptaxBaseline("mine", optax.sgd(1e8, momentum=0.9))}
    monkeypatch.setattr(launcher, "_optimizers", lambda problem, given: diverging)
    monkeypatch.setattr(launcher.launch, "check_read", lambda: None)
    monkeypatch.setattr(launcher.flags, "FLAGS", types.SimpleNamespace(optimizer=[]))
    gin.parse_config("Linearization.warmup = 60\nLinearization.num_draws = 2")
    with pytest.raises(ValueError, match="mine: There is nothing to linearize"):
        launcher._main(tmp_path / "page")


def test_a_configuration_and_a_directory_that_cannot_be_are_refused_first(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"is a configuration, not .*outer_train --config_file"):
        launcher._optimizers(PROBLEM, ["mine=gin_configs/digits_star_pes.gin"])
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(launcher.launch, "check_read", lambda: None)
    monkeypatch.setattr(launcher.flags, "FLAGS", types.SimpleNamespace(optimizer=[]))
    with pytest.raises(OSError, match=r"^.*file/x cannot be written to .* another --out_dir\.$"):
        launcher._main(tmp_path / "file/x")

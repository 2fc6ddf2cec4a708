"""A small deterministic inner problem, estimators on it, and a signal to a run."""

import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regularized_lopt
from regularized_lopt import regularizers, tasks, upstream
from regularized_lopt.estimators import RegularizedTruncatedGrad, RegularizedTruncatedStep
from regularized_lopt.outer_training.loop import Loop

KEY = jax.random.PRNGKey(0)
ROOT = jax.random.PRNGKey(7)
CONSTANT = upstream.truncation_schedule.ConstantTruncationSchedule


class TwoLayer(upstream.Task):
    """A two-layer network on eight fixed points, full batch: everything is deterministic."""

    datasets = None
    x = np.random.default_rng(1).normal(size=(8, 3))
    y = np.random.default_rng(2).normal(size=(8, 1))

    def init(self, key):
        del key
        rng = np.random.default_rng(3)
        return {
            "w1": jnp.asarray(rng.normal(size=(3, 4))),
            "w2": jnp.asarray(rng.normal(size=(4, 1))),
        }

    def loss(self, params, key, data):
        del key, data
        x, y = (jnp.asarray(a, params["w1"].dtype) for a in (self.x, self.y))
        return jnp.mean((jnp.tanh(x @ params["w1"]) @ params["w2"] - y) ** 2)


class Ascent(regularizers.Regularizer):
    """The direction of ascent, in place of the gradient."""

    def gradient(self, query):
        return query.ascent


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def make(task, length=20, *, lopt=None, step=None, **kwargs):
    lopt = lopt or regularized_lopt.LSTMLOpt()
    family = tasks.as_family(task)
    truncated_step = RegularizedTruncatedStep(family, lopt, CONSTANT(length), **(step or {}))
    return RegularizedTruncatedGrad(truncated_step, **kwargs)


def weights(theta, step=0):
    return upstream.WorkerWeights(theta, None, upstream.OuterState(jnp.asarray(step)))


def run(estimator, theta, num_estimates=1):
    """Estimates in a row: (gradients, losses, last state)."""
    state = estimator.init_worker_state(weights(theta), KEY)
    grads, losses = [], []
    for i in range(num_estimates):
        out, _ = estimator.compute_gradient_estimate(
            weights(theta), jax.random.fold_in(ROOT, i), state, with_summary=True
        )
        state = out.unroll_state
        grads.append(out.grad)
        losses.append(out.mean_loss)
    return grads, losses, state


@functools.partial(jax.jit, static_argnums=(0, 4))
def follow(lopt, theta, params, grads, is_training=False):
    """Params after each of some inner gradients, [steps, ...]."""
    opt = lopt.opt_fn(theta, is_training=is_training)

    def step(state, grad):
        state = opt.update(state, grad, loss=jnp.zeros(()), key=KEY)
        return state, opt.get_params(state)

    state = opt.init(params, num_steps=100, key=KEY)
    return jax.lax.scan(step, jax.tree.map(jnp.asarray, state), grads)[1]


def follow_optax(tx, params, grads):
    """The same of a gradient transformation."""

    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def stop_at(monkeypatch, outer_step):
    """This process is told to stop, by SIGTERM, when a run of outer training is so far."""
    step = Loop.step

    def told_to_stop(self, state, stage):
        if int(state.outer_iteration) == outer_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, state, stage)

    monkeypatch.setattr(Loop, "step", told_to_stop)

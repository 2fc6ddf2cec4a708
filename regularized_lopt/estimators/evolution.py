"""Evolution strategies on truncated unrolls: ES, and PES, which has no truncation bias.

A pair of antithetic particles unrolls the same inner problem from the same init, on the same
batches, with theta + xi and theta - xi, where xi ~ N(0, sigma^2 I) is drawn anew for every unroll.
With L+ and L- the outer losses of the unroll, a pair's estimate of theta's gradient is::

  g = (L+ - L-) / (2 sigma^2) * e,   e = xi                                    ES
                                     e = sum of xi since the trajectory began  PES

and the estimate is its mean over pairs. Nothing is differentiated, so that long and chaotic unrolls
only add variance: the objective is that of theta smoothed by the noise. ES takes the state that an
unroll begins with for a constant; PES' sum is the score of all that led to it (Vicol, Metz &
Sohl-Dickstein 2021, arXiv 2112.13835, eqs. 8 to 10).

Conventions are those of upstream's `TruncatedES` and `TruncatedPES`: a pair per task, losses
averaged over the steps of an unroll, a sum that begins anew with a trajectory, and ES going on from
the positive particle. Unlike there, unrolls tile trajectories, so that none ends within an unroll;
L has a fresh batch after each step; and pairs may begin evenly spread over their trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from regularized_lopt import errors, regularizers, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.estimators import checks
from regularized_lopt.estimators import unroll as unroll_lib
from regularized_lopt.estimators.base import (
    Estimate,
    Problem,
    TruncatedEstimator,
    gradient_correction,
)
from regularized_lopt.estimators.states import PairState, UnrollState
from regularized_lopt.estimators.truncated_step import (
    RegularizedTruncatedStep as TruncatedStep,
)
from regularized_lopt.regularizers import tree


class EvolutionStrategy(TruncatedEstimator):
    """ES and PES but for what a pair carries from one unroll to the next; see this module."""

    def __init__(
        self,
        truncated_step: TruncatedStep | Sequence[TruncatedStep] | upstream.TaskFamily,
        learned_opt: upstream.LearnedOptimizer | None = None,
        *,
        unroll_length: int = 50,
        std: float = 0.01,
        loss: str = "mean",
        regularizer: str | regularizers.Regularizer = "none",
        shared_noise: bool = False,
        smoothing: regularizers.Smoothing | None = None,
        staggered: bool = True,
        task_weights: Sequence[float] | None = None,
        mesh: Mesh | None = None,
    ):
        """Initializer; its first arguments are those that upstream's builder passes.

        The number of pairs is `RegularizedTruncatedStep.num_tasks`.

        Args:
          truncated_step: a `RegularizedTruncatedStep` (upstream main), or several, or the
            `TaskFamily` that one is made of with gin's parameters (the wheel, which passes
            `(task_family, learned_opt)`).
          learned_opt: the learned optimizer, in the last form.
          unroll_length: inner steps per estimate, the truncation, > 0; must divide the length of
            trajectories.
          std: sigma, the standard deviation of perturbations in units of theta, > 0; float32 must
              have its square.
          loss: outer loss from L(params_1..T), see `RegularizedTruncatedGrad`; with "mean" PES
            estimates the gradient of the mean loss of whole trajectories.
          regularizer: name or object of the regularizer in meta space; must do with gradients
            alone (`first_order`). It asks for the estimate at another theta from the same state,
            on the same batches, with the same perturbations.
          shared_noise: take directions of ascent from the plain estimate itself; one pass less, but
            then G - g is mostly a multiple of g. Else they are an estimate by ES from the positive
            particles, with perturbations of its own: PES' sum would be the same noise again.
          smoothing: a smoothing term on the learned optimizer, see `RegularizedTruncatedGrad`; its
            gradient is taken at the perturbed thetas.
          staggered: spread the pairs evenly over their first trajectory, which is so much shorter,
            so that every update of theta sees all of its phases.
          task_weights: weight of each truncated step's loss, >= 0; scaled to sum to 1. Default:
            equal.
          mesh: devices that share the pairs, see `devices.make_mesh`; None: one device.

        Raises:
          ValueError: a parameter is out of range, the regularizer takes derivatives, or a task's
            loss is not finite where inner training starts.
        """
        name = type(self).__name__
        errors.check_std(f"{name}.std", std)
        self.std = float(std)
        self.shared_noise = bool(shared_noise)
        self.staggered = bool(staggered)
        super().__init__(
            truncated_step,
            learned_opt,
            unroll_length,
            loss,
            regularizer,
            smoothing,
            task_weights,
            mesh,
            differentiable=False,
        )
        checks.check_first_order(name, self.regularizer)
        for step_lib in self.truncated_steps:
            checks.check_starts_finite(name, step_lib)

    def describe(self) -> dict[str, Any]:
        """See `TruncatedEstimator.describe`."""
        own = {name: getattr(self, name) for name in ("std", "staggered", "shared_noise")}
        return {**super().describe(), **own}

    def start(self, step_lib: TruncatedStep) -> Any:
        """See `TruncatedEstimator.start`."""

        def init(theta: Any, outer_state: Any, key: jax.Array) -> Any:
            state = step_lib.init_step_state(theta, outer_state, key)
            length = getattr(state.truncation_state, "length", None)
            if self.staggered and length is not None:
                pair, unrolls = jnp.arange(step_lib.num_tasks), length // self.unroll_length
                inner_step = pair * unrolls // step_lib.num_tasks * self.unroll_length
                state = state.replace(inner_step=inner_step.astype(jnp.int32))  # type: ignore[attr-defined]
            return self.first_state(theta, state)

        return init

    def init_worker_state(self, worker_weights: Any, key: jax.Array) -> Any:
        """See `TruncatedEstimator.init_worker_state`.

        Raises:
          ValueError: theta has a leaf of integers, or is so large that float32 loses the noise.
        """
        checks.check_perturbed(type(self).__name__, worker_weights.theta, self.std)
        return super().init_worker_state(worker_weights, key)

    def first_state(self, theta: Any, state: UnrollState) -> Any:
        """What pairs carry at first, given a trajectory of each, [num_tasks]."""
        raise NotImplementedError

    def begin(self, state: Any, xi: Any) -> tuple[UnrollState, Any]:
        """(particles [2], e), given what one pair carries and the perturbation of this unroll."""
        raise NotImplementedError

    def positive(self, state: Any) -> UnrollState:
        """Where the positive particle is, given what one pair carries."""
        raise NotImplementedError

    def carry(self, particles: UnrollState, e: Any) -> Any:
        """What one pair carries on, given its particles [2] after the unroll."""
        raise NotImplementedError

    def estimate(
        self, theta: Any, state: Any, key: jax.Array, data: Any, outer_state: Any
    ) -> Estimate:
        """See `TruncatedEstimator.estimate`."""
        unroll_key, regularizer_key = jax.random.split(key)
        problems = self._problems(state, unroll_key, data, outer_state)

        def gradient(theta: Any, noise: int = 0) -> tuple[Any, Any]:
            found = [self._of_pairs(problem, theta, noise) for problem in problems]
            auxes, grads = zip(*found, strict=True)
            return self._weighted_sum(grads), auxes

        grad, auxes = gradient(theta)
        finite = jnp.isfinite(tree.norm(grad))

        def regularized() -> Any:
            query = regularizers.Query(
                regularizers.Objective(lambda at: gradient(at)[0], finite=finite),
                theta,
                grad,
                key=regularizer_key,
                step=outer_state.outer_iteration,
                other_grad=None if self.shared_noise else gradient(theta, noise=1)[0],
            )
            return self.regularizer.regularized_gradient(query)

        regularized_grad = grad
        if not self.regularizer.is_plain:
            regularized_grad = jax.lax.cond(finite, regularized, lambda: grad)
        correction = gradient_correction(regularized_grad, grad)
        states = self._tuple(state)
        return self._estimate(
            regularized_grad, correction, auxes, states, outer_state.outer_iteration
        )

    def _of_pairs(self, problem: Problem, theta: Any, noise: int) -> tuple[Any, Any]:
        """(aux of every pair, mean gradient).

        `noise` counts independent perturbations. All but the first (0) know nothing of those of
        earlier unrolls: they are ES'.
        """
        unroll, inputs = problem

        def pair(theta: Any, state: Any, key: jax.Array, data: Any) -> tuple[Any, Any]:
            # A key beside the four that the unroll splits off, so that all noise meets its batches.
            xi = _normal(jax.random.fold_in(key, 4 + noise), theta, self.std)
            if noise == 0:
                particles, e = self.begin(state, xi)
            else:
                particles, e = _both_at(self.positive(state), xi)
            thetas = jax.tree.map(lambda t, x: jnp.stack([t + x, t - x]), theta, xi)
            (plus, minus), aux = jax.vmap(unroll.__call__, in_axes=(0, 0, None, None, None))(
                thetas, particles, key, data, inputs.outer_state
            )
            slope = (plus - minus) / (2 * self.std**2)
            return self._of_pair(aux, e), jax.tree.map(lambda leaf: slope * leaf, e)

        aux, grads = unroll_lib.over_tasks(
            unroll.step_lib,
            pair,
            theta,
            inputs.state,
            inputs.keys,
            inputs.data,
            mesh=self.mesh,
        )
        return aux, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads)

    def _of_pair(self, aux: unroll_lib.UnrollAux, e: Any) -> unroll_lib.UnrollAux:
        """Of the two particles' [2]: means; the pair ends where one of them does."""

        def mean(leaves: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), leaves)

        return unroll_lib.UnrollAux(
            loss=mean(aux.loss),
            loss_correction=mean(aux.loss_correction),
            state=self.carry(aux.state, e),
            inner_loss=mean(aux.inner_loss),
            iteration=aux.iteration[0],
            exploded=jnp.any(aux.exploded),
            smoothness=mean(aux.smoothness),
        )


@configurable()
class RegularizedTruncatedES(EvolutionStrategy):
    """Theta's gradient by truncated antithetic evolution strategies; its state is `UnrollState`.

    g = (L+ - L-) / (2 sigma^2) xi. Both particles begin where the positive one ended: the gradient
    lacks what earlier unrolls did to that state (truncation bias, as in truncated backpropagation).
    """

    def first_state(self, theta: Any, state: UnrollState) -> UnrollState:
        """See `EvolutionStrategy`."""
        del theta
        return state

    def begin(self, state: UnrollState, xi: Any) -> tuple[UnrollState, Any]:
        """See `EvolutionStrategy`."""
        return _both_at(state, xi)

    def positive(self, state: UnrollState) -> UnrollState:
        """See `EvolutionStrategy`."""
        return state

    def carry(self, particles: UnrollState, e: Any) -> UnrollState:
        """See `EvolutionStrategy`."""
        del e
        return jax.tree.map(lambda leaf: leaf[0], particles)  # type: ignore[no-any-return]


@configurable()
class RegularizedTruncatedPES(EvolutionStrategy):
    """Theta's gradient by persistent evolution strategies; its state is `PairState`.

    g = (L+ - L-) / (2 sigma^2) e, with e the sum of the perturbations since the trajectory began
    (Vicol, Metz & Sohl-Dickstein 2021, arXiv 2112.13835). Summed over the unrolls of a trajectory,
    its mean is the gradient of the sum of their losses under that noise, without truncation bias;
    its variance grows with the number of unrolls.
    """

    def first_state(self, theta: Any, state: UnrollState) -> PairState:
        """See `EvolutionStrategy`."""
        num_tasks = state.is_done.shape[0]
        return PairState(
            particles=jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], axis=1), state),
            accumulated=jax.tree.map(lambda t: jnp.zeros((num_tasks, *t.shape), t.dtype), theta),
        )

    def begin(self, state: PairState, xi: Any) -> tuple[UnrollState, Any]:
        """See `EvolutionStrategy`."""
        e = jax.tree.map(
            lambda sum_, x: jnp.where(state.is_done, x, sum_ + x), state.accumulated, xi
        )
        return state.particles, e

    def positive(self, state: PairState) -> UnrollState:
        """See `EvolutionStrategy`."""
        return jax.tree.map(lambda leaf: leaf[0], state.particles)  # type: ignore[no-any-return]

    def carry(self, particles: UnrollState, e: Any) -> PairState:
        """See `EvolutionStrategy`."""
        return PairState(particles, e)


def _both_at(state: UnrollState, xi: Any) -> tuple[UnrollState, Any]:
    """ES' (particles [2], e)."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state), xi


def _normal(key: jax.Array, like: Any, std: float) -> Any:
    """N(0, std^2), leaf by leaf."""
    return optax.tree.scale(std, optax.tree.random_like(key, like, jax.random.normal))

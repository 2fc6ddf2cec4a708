"""The properties that regularized optimizers should have learned, measured around what they found.

For each regularizer of the paper the quantity that it is meant to keep low, after an ascent in an
l_inf ball (arXiv 2510.08968, Figures 3-6)::

  sam   max L            the worst loss nearby
  gsam  max L - L        how much worse that is (the surrogate gap)
  gam   max ‖∇L‖ - ‖∇L‖  how much steeper it gets

each in an absolute radius and in one relative to the size of every filter (`filter_radii`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import errors, regularizers, tasks
from regularized_lopt.configurable import configurable
from regularized_lopt.measure import ascent

LABELS = {"sam": "max L", "gsam": "max L − L", "gam": "max ‖∇L‖ − ‖∇L‖"}
PROPERTIES = tuple(LABELS)
SCALES = ("absolute", "relative")
HEADLINE_RADIUS = 0.01
_LOSS = 2**31  # The key is folded with it for a stochastic loss; with 0, 1, ... for the starts.


@configurable()
@dataclasses.dataclass(frozen=True)
class FlatnessConfig:
    """What is measured around the params of a run.

    Attributes:
      radii: of the balls, each > 0; absolute in units of the params, relative as a share of each
        filter's root mean square.
      num_steps: ascent steps, > 0.
      direction: of a step, see `ascent.ascend`.
      num_examples: size of the fixed subset of the test set that the loss is taken on,
        > 0.
      headline_starts: random starts at `HEADLINE_RADIUS`, averaged, > 0; one at the others.
      num_probes: random vectors for the Hessian's trace (0: neither trace nor top eigenvalue).
      num_iterations: power iterations for its top eigenvalue, > 0.
      seed: of starts and probes, 0 to 2^32 - 1.
    """

    radii: tuple[float, ...] = ascent.RADII
    num_steps: int = ascent.NUM_STEPS
    direction: str = "sign"
    num_examples: int = 2048
    headline_starts: int = 3
    num_probes: int = 10
    num_iterations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.radii:
            raise ValueError("FlatnessConfig.radii is empty: give at least one.")
        for radius in self.radii:
            errors.check_positive("FlatnessConfig.radii", radius)
        for name in ("num_steps", "num_examples", "headline_starts", "num_iterations"):
            errors.check_count(f"FlatnessConfig.{name}", getattr(self, name))
        errors.check_count("FlatnessConfig.num_probes", self.num_probes, least=0)
        errors.check_seed("FlatnessConfig.seed", self.seed)
        errors.check_name("direction", self.direction, ascent.DIRECTIONS)

    @property
    def headline(self) -> int:
        """Index of the radius that is closest to `HEADLINE_RADIUS`."""
        return int(np.argmin(np.abs(np.log(np.asarray(self.radii) / HEADLINE_RADIUS))))

    def headline_alone(self) -> FlatnessConfig:
        """For runs at matched training loss: one radius, no Hessian."""
        return dataclasses.replace(self, radii=(self.radii[self.headline],), num_probes=0)


@dataclasses.dataclass(frozen=True)
class Flatness:
    """What was measured around the params of every run; leading axis: runs.

    Attributes:
      loss, grad_norm: [runs], at the params.
      loss_ascent: per scale, [runs, radii, ascent steps + 1], the loss while climbing it.
      grad_norm_ascent: the same for the gradient's norm.
      trace, top: [runs], of the Hessian: trace (Hutchinson), eigenvalue of largest magnitude (power
        iteration); NaN where not measured.
    """

    loss: np.ndarray
    grad_norm: np.ndarray
    loss_ascent: dict[str, np.ndarray]
    grad_norm_ascent: dict[str, np.ndarray]
    trace: np.ndarray
    top: np.ndarray


def held_out(task: tasks.ImageTask, num_examples: int) -> dict[str, jax.Array]:
    """A subset of the test set, raw, the same everywhere: what properties are measured on."""
    raw = task.datasets.host_arrays("test")
    chosen = np.random.default_rng(0).permutation(len(raw["label"]))[:num_examples]
    return {name: jnp.asarray(value[chosen]) for name, value in raw.items()}


def measure(task: tasks.ImageTask, params: Any, what: FlatnessConfig) -> Flatness:
    """Measures around the params of every run, on the held-out loss.

    Args:
      task: an image task in phase "meta_test".
      params: leading axis [runs].
      what: to measure.
    """
    examples = held_out(task, what.num_examples)
    key = jax.random.PRNGKey(what.seed)
    found = []
    for index, radius in enumerate(what.radii):
        starts = what.headline_starts if index == what.headline else 1
        found.append(
            jax.tree.map(
                np.asarray,
                _ascend(
                    task, what.num_steps, what.direction, params, radius, starts, key, examples
                ),
            )
        )
    loss, grad_norm = found[0][0]
    loss_ascent, grad_norm_ascent = jax.tree.map(
        lambda *radii: np.stack(radii, axis=1), *(curves for _, curves in found)
    )
    trace = top = np.full_like(loss, np.nan)
    if what.num_probes:
        trace, top = jax.tree.map(
            np.asarray,
            _curvature(task, what.num_probes, what.num_iterations, params, key, examples),
        )
    return Flatness(loss, grad_norm, loss_ascent, grad_norm_ascent, trace, top)


# Jitted at module level: one compilation serves all optimizers, points and radii of a task.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _ascend(
    task: tasks.ImageTask,
    num_steps: int,
    direction: str,
    params: Any,
    radius: jax.Array,
    starts: jax.Array,
    key: jax.Array,
    examples: Any,
) -> tuple[Any, Any]:
    """At one radius, run by run: ((loss, gradient norm), (loss, gradient norm) along ascents)."""
    loss_fn = _held_out_loss(task, key, examples)
    objectives = (loss_fn, ascent.gradient_norm(loss_fn))

    def one_run(params: Any) -> tuple[Any, Any]:
        # Both balls in one array per leaf, so that an ascent is compiled once.
        balls = jax.tree.map(
            lambda relative: jnp.stack([jnp.full_like(relative, radius), relative]),
            ascent.filter_radii(params, radius),
        )

        def one_start(start: jax.Array, total: Any) -> Any:
            start_key = jax.random.fold_in(key, start)

            def values(objective: ascent.Objective) -> jax.Array:
                return jax.lax.map(
                    lambda ball: (
                        ascent.ascend(
                            objective, params, start_key, ball, num_steps, direction
                        ).values
                    ),
                    balls,
                )

            return jax.tree.map(jnp.add, total, tuple(map(values, objectives)))

        nothing = (jnp.zeros((len(SCALES), num_steps + 1)),) * len(objectives)
        total = jax.lax.fori_loop(0, starts, one_start, nothing)
        centre = tuple(objective(params) for objective in objectives)
        return centre, tuple(dict(zip(SCALES, t / starts, strict=True)) for t in total)

    return _over_runs(one_run, params)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _curvature(
    task: tasks.ImageTask,
    num_probes: int,
    num_iterations: int,
    params: Any,
    key: jax.Array,
    examples: Any,
) -> tuple[jax.Array, jax.Array]:
    """Trace and top eigenvalue of the Hessian, run by run."""
    objective = regularizers.Objective.of(_held_out_loss(task, key, examples))
    trace = regularizers.HessianTrace(num_probes=num_probes)
    top = regularizers.HessianTop(num_iterations=num_iterations)
    return _over_runs(
        lambda p: (trace.curvature(objective, p, key), top.curvature(objective, p, key)), params
    )


def _held_out_loss(task: tasks.ImageTask, key: jax.Array, examples: Any) -> ascent.Objective:
    """A fixed function of the params: a stochastic loss draws the same wherever it is taken."""
    batch, loss_key = task.datasets.normalize(examples), jax.random.fold_in(key, _LOSS)
    return lambda params: task.loss(params, loss_key, batch)


def _over_runs(function: Callable[[Any], Any], params: Any) -> Any:
    """One run after the other on CPU, where side by side only moves more memory."""
    one_by_one = jax.default_backend() == "cpu"
    return jax.lax.map(function, params) if one_by_one else jax.vmap(function)(params)

"""The properties that regularized optimizers should have learned, measured around what they found.

For each regularizer of the paper the quantity that it is meant to keep low, after an ascent in an
l_inf ball (arXiv 2510.08968, Figures 3-6)::

  sam   max L            the worst loss nearby
  gsam  max L - L        how much worse that is (the surrogate gap)
  gam   max ‖∇L‖ - ‖∇L‖  how much steeper it gets

each in balls of several scales, which say what a radius of 0.01 is::

  absolute  0.01 in every weight
  relative  0.01 of the size of the weight's filter (`filter_radii`)
  live      the same, with the size of the filter's live weights; dead weights stay (`live_weights`)
  l2        an l2 ball over the live weights, 0.01 of their l2 norm
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import errors, regularizers, tasks
from regularized_lopt.configurable import configurable
from regularized_lopt.measure import ascent, points
from regularized_lopt.measure.live_weights import live_weights
from regularized_lopt.tasks import data

LABELS = {"sam": "max L", "gsam": "max L − L", "gam": "max ‖∇L‖ − ‖∇L‖"}
PROPERTIES = tuple(LABELS)
SCALES = ("absolute", "relative")
"""Of the balls that are always measured."""
LIVE_SCALES = ("live", "l2")
"""Of those that may be measured, too, and tell live weights from dead ones."""
NORMS = ("norm", "live_norm", "dead_norm")
HEADLINE_RADIUS = 0.01
_LOSS = 2**31  # The key is folded with it for a stochastic loss; with 0, 1, ... for the starts.


@configurable()
@dataclasses.dataclass(frozen=True)
class FlatnessConfig:
    """What is measured around the params of a run.

    Attributes:
      radii: of the balls, each > 0; absolute in units of the params, else as a share, see the
        module.
      num_steps: ascent steps, > 0.
      direction: of a step, see `ascent.ascend`.
      num_examples: size of the fixed subset of the test set that the loss is taken on,
        > 0.
      headline_starts: random starts at `HEADLINE_RADIUS`, averaged, > 0; one at the others.
      num_probes: random vectors for the Hessian's trace (0: neither trace nor top eigenvalue).
      num_iterations: power iterations for its top eigenvalue, > 0.
      seed: of starts and probes, 0 to 2^32 - 1.
      scales: of the balls: all of `SCALES`, and of `LIVE_SCALES` what is wanted. With one of the
        latter the norms of the params are measured, too.
      hessian_at_matched: trace and top eigenvalue at matched training loss, too.
    """

    radii: tuple[float, ...] = ascent.RADII
    num_steps: int = ascent.NUM_STEPS
    direction: str = "sign"
    num_examples: int = 2048
    headline_starts: int = 3
    num_probes: int = 10
    num_iterations: int = 20
    seed: int = 0
    scales: tuple[str, ...] = SCALES
    hessian_at_matched: bool = False

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
        object.__setattr__(self, "scales", tuple(self.scales))  # Gin may have given a list.
        for scale in self.scales:
            errors.check_name("FlatnessConfig.scales", scale, SCALES + LIVE_SCALES)
        if missing := [scale for scale in SCALES if scale not in self.scales]:
            raise ValueError(
                f"FlatnessConfig.scales = {self.scales} lacks {missing}, which pages are about: "
                "add to them, do not replace them."
            )

    @property
    def has_norms(self) -> bool:
        """Whether live weights are told from dead ones, and the norms of both measured."""
        return bool(set(self.scales) & set(LIVE_SCALES))

    @property
    def headline(self) -> int:
        """Index of the radius that is closest to `HEADLINE_RADIUS`."""
        return int(np.argmin(np.abs(np.log(np.asarray(self.radii) / HEADLINE_RADIUS))))

    def at_ends(self) -> FlatnessConfig:
        """For runs at the PoC and at completion."""
        return dataclasses.replace(self, hessian_at_matched=False)

    def headline_alone(self) -> FlatnessConfig:
        """For runs at matched training loss: one radius, and no Hessian if it is not asked for."""
        return dataclasses.replace(
            self,
            radii=(self.radii[self.headline],),
            num_probes=self.num_probes if self.hessian_at_matched else 0,
            hessian_at_matched=False,
        )

    def record(self) -> dict[str, Any]:
        """Its fields, to be stored. Those of `_LATER` are left out at their defaults.

        So what was stored before they were there still goes by the same name.
        """
        record = dataclasses.asdict(self)
        return {name: of for name, of in record.items() if of != _LATER.get(name, _NO_DEFAULT)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> FlatnessConfig:
        """The inverse of `record`, whatever gin says; lists serve for tuples."""
        given = {**_LATER, **record}
        tuples = {name: tuple(of) for name, of in given.items() if isinstance(of, list)}
        return cls(**{**given, **tuples})


_LATER: Mapping[str, Any] = {"scales": SCALES, "hessian_at_matched": False}
_NO_DEFAULT = object()


@dataclasses.dataclass(frozen=True)
class Flatness:
    """What was measured around the params of every run; leading axis: runs.

    Attributes:
      loss, grad_norm: [runs], at the params.
      loss_ascent: per scale, [runs, radii, ascent steps + 1], the loss while climbing it.
      grad_norm_ascent: the same for the gradient's norm.
      trace, top: [runs], of the Hessian: trace (Hutchinson), eigenvalue of largest magnitude (power
        iteration); NaN where not measured.
      norms: by name in `NORMS`, [runs], the l2 norm of all weights, of live and of dead ones; empty
        where not measured.
    """

    loss: np.ndarray
    grad_norm: np.ndarray
    loss_ascent: dict[str, np.ndarray]
    grad_norm_ascent: dict[str, np.ndarray]
    trace: np.ndarray
    top: np.ndarray
    norms: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def held_out(task: tasks.ResidentTask, num_examples: int) -> dict[str, jax.Array]:
    """A subset of the test set, raw, the same everywhere: what properties are measured on."""
    raw = task.datasets.host_arrays("test")
    chosen = np.random.default_rng(0).permutation(data.num_examples(raw))[:num_examples]
    return {name: jnp.asarray(value[chosen]) for name, value in raw.items()}


def check_task(task: tasks.ResidentTask, what: FlatnessConfig) -> None:
    """Refuses to tell live weights of tasks other than image tasks; see `measure`."""
    if what.has_norms and not isinstance(task, tasks.ImageTask):
        raise ValueError(
            f"FlatnessConfig.scales = {what.scales!r}: live weights are known of image tasks "
            f'alone, and {task.name} is none. Use "absolute" and "relative".'
        )


def measure(task: tasks.ResidentTask, point: Any, what: FlatnessConfig) -> Flatness:
    """Measures around the params of every run, on the held-out loss.

    Args:
      task: in phase "meta_test".
      point: params, of a task with a model state with it, see `points`; leading axis [runs].
      what: to measure.
    """
    check_task(task, what)
    params, model_state = points.parted(task, point)
    examples = held_out(task, what.num_examples)
    key = jax.random.PRNGKey(what.seed)
    live = live_weights(task) if isinstance(task, tasks.ImageTask) and what.has_norms else None
    static = (task, what.scales, what.num_steps, what.direction)
    found = []
    for index, radius in enumerate(what.radii):
        starts = what.headline_starts if index == what.headline else 1
        found.append(
            jax.tree.map(
                np.asarray,
                _ascend(*static, params, model_state, live, radius, starts, key, examples),
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
            _curvature(
                task, what.num_probes, what.num_iterations, params, model_state, key, examples
            ),
        )
    norms = {} if live is None else _norms(params, live)
    return Flatness(loss, grad_norm, loss_ascent, grad_norm_ascent, trace, top, norms)


def _norms(params: Any, live: Any) -> dict[str, np.ndarray]:
    """By name in `NORMS`, [runs]."""

    def norm(mask: Any) -> np.ndarray:
        """Over the weights of a mask."""
        chosen = jax.tree.map(
            lambda leaf, of: np.where(of, np.asarray(leaf, np.float64), 0), params, mask
        )
        squares = [np.sum(leaf.reshape(len(leaf), -1) ** 2, 1) for leaf in jax.tree.leaves(chosen)]
        return np.sqrt(np.sum(squares, axis=0)).astype(np.float32)

    masks = (jax.tree.map(np.ones_like, live), live, jax.tree.map(np.logical_not, live))
    return dict(zip(NORMS, map(norm, masks), strict=True))


# Jitted at module level: one compilation serves all optimizers, points and radii of a task.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _ascend(
    task: tasks.ResidentTask,
    scales: tuple[str, ...],
    num_steps: int,
    direction: str,
    params: Any,
    model_state: Any,
    live: Any,
    radius: jax.Array,
    starts: jax.Array,
    key: jax.Array,
    examples: Any,
) -> tuple[Any, Any]:
    """At one radius, run by run: ((loss, gradient norm), (loss, gradient norm) along ascents)."""
    loss_with = _held_out_loss(task, key, examples)
    by_norm = {
        norm: tuple(scale for scale in scales if (scale == "l2") == (norm == "l2"))
        for norm in ascent.NORMS
    }
    order = [scale for of in by_norm.values() for scale in of]

    def one_run(params: Any, model_state: Any) -> tuple[Any, Any]:
        loss_fn = loss_with(model_state)
        objectives = (loss_fn, ascent.gradient_norm(loss_fn))
        # All balls of a norm in one array per leaf, so that an ascent is compiled once.
        balls = {
            norm: jax.tree.map(
                lambda *radii: jnp.stack(jnp.broadcast_arrays(*radii)),
                *(_radii(scale, params, radius, live) for scale in of),
            )
            for norm, of in by_norm.items()
            if of
        }

        def one_start(start: jax.Array, total: Any) -> Any:
            start_key = jax.random.fold_in(key, start)

            def in_balls(objective: ascent.Objective, norm: str) -> jax.Array:
                return jax.lax.map(
                    lambda ball: (
                        ascent.ascend(
                            objective, params, start_key, ball, num_steps, direction, norm
                        ).values
                    ),
                    balls[norm],
                )

            values = tuple(
                jnp.concatenate([in_balls(objective, norm) for norm in balls])
                for objective in objectives
            )
            return jax.tree.map(jnp.add, total, values)

        nothing = (jnp.zeros((len(scales), num_steps + 1)),) * len(objectives)
        total = jax.lax.fori_loop(0, starts, one_start, nothing)
        centre = tuple(objective(params) for objective in objectives)
        return centre, tuple(dict(zip(order, t / starts, strict=True)) for t in total)

    return _over_runs(one_run, params, model_state)


def _radii(scale: str, params: Any, radius: jax.Array, live: Any) -> Any:
    """Of a ball around params, by weight: a tree that broadcasts against them."""
    if scale == "absolute":
        return jax.tree.map(
            lambda size: jnp.full_like(size, radius), ascent.filter_radii(params, radius)
        )
    if scale == "l2":
        return ascent.l2_radii(params, radius, live)
    return ascent.filter_radii(params, radius, live if scale == "live" else None)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _curvature(
    task: tasks.ResidentTask,
    num_probes: int,
    num_iterations: int,
    params: Any,
    model_state: Any,
    key: jax.Array,
    examples: Any,
) -> tuple[jax.Array, jax.Array]:
    """Trace and top eigenvalue of the Hessian, run by run."""
    loss_with = _held_out_loss(task, key, examples)
    trace = regularizers.HessianTrace(num_probes=num_probes)
    top = regularizers.HessianTop(num_iterations=num_iterations)

    def one_run(params: Any, model_state: Any) -> tuple[jax.Array, jax.Array]:
        objective = regularizers.Objective.of(loss_with(model_state))
        return trace.curvature(objective, params, key), top.curvature(objective, params, key)

    return _over_runs(one_run, params, model_state)


def _held_out_loss(
    task: tasks.ResidentTask, key: jax.Array, examples: Any
) -> Callable[[Any], ascent.Objective]:
    """Model state -> `points.loss_around`."""
    batch, loss_key = task.datasets.normalize(examples), jax.random.fold_in(key, _LOSS)
    return lambda model_state: points.loss_around(task, model_state, loss_key, batch)


def _over_runs(function: Callable[[Any, Any], Any], params: Any, model_state: Any) -> Any:
    """One run after the other on CPU, where side by side only moves more memory."""
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda of: function(*of), (params, model_state))
    return jax.vmap(function)(params, model_state)

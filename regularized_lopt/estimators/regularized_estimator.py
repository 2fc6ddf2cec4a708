"""Regularizers in meta space around any of upstream's gradient estimators (ES, PES, ...)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gin
import jax
import jax.numpy as jnp

from regularized_lopt import errors, regularizers, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.estimators import checks
from regularized_lopt.regularizers import tree
from regularized_lopt.tasks import data


class RegularizedEstimator(upstream.GradientEstimator):
    """Calls an estimator again at perturbed theta, from the same state, on the same batches.

    State (PES's accumulator included), loss and unroll info are those of the unperturbed call.
    Batches that the estimator pulls from its own datasets are recorded at that call and replayed at
    the others, so the streams advance once. Attributes that are not found here are the wrapped
    estimator's.

    Estimates of evolution strategies are noisy. A direction of ascent from the very estimate that
    is corrected shares its noise, and the correction G - g is then dominated by a multiple of g,
    which only rescales it. The direction therefore comes from another call with an independent key,
    unless `shared_noise`. Around PES that call is ES', from the positive particles: the accumulator
    is most of PES' noise.

    Where loss or gradient is not finite, the gradient is 0, the unroll state stays what it was with
    its trajectories marked done, and "mean||nonfinite" counts it.
    """

    def __init__(
        self,
        estimator: upstream.GradientEstimator,
        regularizer: str | regularizers.Regularizer = "none",
        shared_noise: bool = False,
    ):
        """Initializer.

        Args:
          estimator: one of upstream's, or any with its interface.
          regularizer: name or object; must do with gradients alone (`first_order`).
          shared_noise: take directions of ascent from the plain estimate itself; one call less, and
            right for estimators without noise (BPTT).

        Raises:
          ValueError: the regularizer needs values or derivatives of the gradient.
        """
        self.estimator = estimator
        self.regularizer = regularizers.get(regularizer)
        self.shared_noise = shared_noise
        checks.check_first_order(type(estimator).__name__, self.regularizer)

    def __getattr__(self, name: str) -> Any:
        if name == "estimator":  # Not set yet: being copied or unpickled.
            raise AttributeError(name)
        return getattr(self.estimator, name)

    # Main's base class has these, so that `__getattr__` does not see them.

    def task_name(self) -> str:
        return self.estimator.task_name()

    def cfg_name(self) -> str:
        return self.estimator.cfg_name()

    def get_datas(self) -> Any:
        return self.estimator.get_datas()

    def init_worker_state(self, worker_weights: Any, key: jax.Array) -> Any:
        """The wrapped estimator's."""
        return self.estimator.init_worker_state(worker_weights, key)

    def compute_gradient_estimate(
        self,
        worker_weights: Any,
        key: jax.Array,
        state: Any,
        with_summary: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Mapping[str, jax.Array]]:
        """The wrapped estimator's, with the regularized gradient."""
        with _recorded_datasets(self.estimator) as rewind:

            def estimate(theta: Any, key: jax.Array, with_summary: bool, state: Any = state) -> Any:
                rewind()
                return self.estimator.compute_gradient_estimate(
                    worker_weights.replace(theta=theta), key, state, with_summary, **kwargs
                )

            theta = worker_weights.theta
            out, metrics = estimate(theta, key, with_summary)
            grad = out.grad
            if not self.regularizer.is_plain:
                ascent_key, regularizer_key = jax.random.split(jax.random.fold_in(key, 1))
                other = None
                if not self.shared_noise:
                    other = estimate(theta, ascent_key, False, _forgetful(state))[0].grad
                query = regularizers.Query(
                    regularizers.Objective(lambda at: estimate(at, key, False)[0].grad),
                    theta,
                    grad,
                    key=regularizer_key,
                    step=worker_weights.outer_state.outer_iteration,
                    other_grad=other,
                )
                grad = self.regularizer.regularized_gradient(query)
        finite = jnp.isfinite(out.mean_loss) & jnp.isfinite(tree.norm(grad))
        out = out.replace(
            grad=jax.tree.map(lambda g: jnp.where(finite, g, 0), grad),
            unroll_state=jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), out.unroll_state, _redrawn(state)
            ),
        )
        return out, {**metrics, "mean||nonfinite": 1.0 - finite.astype(jnp.float32)}


def regularized(
    estimator: upstream.GradientEstimator,
    regularizer: str | regularizers.Regularizer = "none",
    shared_noise: bool = False,
) -> RegularizedEstimator:
    """`RegularizedEstimator`, as a function."""
    return RegularizedEstimator(estimator, regularizer, shared_noise)


@configurable()
def regularized_estimator(
    *args: Any,
    estimator_fn: Callable[..., upstream.GradientEstimator] = gin.REQUIRED,
    regularizer: str | regularizers.Regularizer = "none",
    shared_noise: bool = False,
) -> RegularizedEstimator:
    """`regularized` for gin: what upstream's builder passes goes to `estimator_fn`.

    build_gradient_estimators.gradient_estimator_fn = @regularized_estimator
    regularized_estimator.estimator_fn = @TruncatedPES
    regularized_estimator.regularizer = "sam"
    """
    estimator = errors.call_checked(
        "regularized_estimator.estimator_fn", estimator_fn, upstream.GradientEstimator, *args
    )
    return regularized(estimator, regularizer, shared_noise)


def _forgetful(state: Any) -> Any:
    """The state without PES' earlier perturbations; that of another estimator as it is."""
    if not isinstance(state, upstream.PESWorkerState):
        return state
    nothing = jax.tree.map(jnp.zeros_like, state.accumulator)
    return state.replace(neg_state=state.pos_state, accumulator=nothing)


def _redrawn(state: Any) -> Any:
    """The state, with every `is_done` in it set."""

    def leaf(path: Any, value: jax.Array) -> jax.Array:
        last = path[-1] if path else None
        done = getattr(last, "name", getattr(last, "key", None)) == "is_done"
        return jnp.ones_like(value) if done else value

    return jax.tree_util.tree_map_with_path(leaf, state)


class _Tape:
    """Datasets that remember the batches drawn from them, to be drawn again after `rewind`."""

    def __init__(self, datasets: Any, task: str):
        self._datasets = datasets
        self._task = task
        self._batches: dict[str, list[Any]] = {}
        self._position: dict[str, int] = {}

    def rewind(self) -> None:
        self._position.clear()

    def split(self, name: str) -> Iterator[Any]:
        """As upstream's `Datasets.split`."""
        batches = self._batches.setdefault(name, [])
        while True:
            position = self._position.get(name, 0)
            if position == len(batches):
                batches += data.pull(self._datasets, name, 1, self._task)
            self._position[name] = position + 1
            yield batches[position]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._datasets, name)


@contextlib.contextmanager
def _recorded_datasets(estimator: Any) -> Iterator[Callable[[], None]]:
    """Puts a tape in the place of the datasets that the estimator pulls from; yields rewind()."""
    step = getattr(estimator, "truncated_step", None)
    family = getattr(estimator, "task_family", None) or getattr(step, "task_family", None)
    if family is None or family.datasets is None:
        yield lambda: None
        return
    datasets = family.datasets
    tape = _Tape(datasets, family.name)
    family.datasets = tape
    try:
        yield tape.rewind
    finally:
        family.datasets = datasets

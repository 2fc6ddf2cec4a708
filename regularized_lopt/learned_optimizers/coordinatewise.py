"""Learned optimizers that treat every coordinate by itself, with one network for all."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import upstream
from regularized_lopt.learned_optimizers import leaves, spectral

Theta = Any
Params = Any
Hidden = Any
"""A pytree of arrays [.., n]."""


@flax.struct.dataclass
class CoordinateWiseState:
    """State of a coordinate-wise optimizer: what a training loop carries from step to step.

    Attributes:
      params: the optimizee's weights, any pytree.
      state: the optimizee's non-trained state (`ModelState` upstream), or None.
      hidden: arrays [.., n]; n counts all coordinates of `params` that are trained.
      iteration: inner steps taken, int32 scalar.
    """

    params: Params
    state: Any
    hidden: Hidden
    iteration: jax.Array


class CoordinateWiseLOpt(upstream.LearnedOptimizer):
    """Base class: the update of a coordinate depends on its own gradients and param alone.

    So theta's gradient can be taken through a sample of the coordinates (`coordinates`), and hidden
    states can be kept leaf by leaf or updated in chunks (`as_optax`); unless the optimizer reads
    features of whole tensors (`reads_tensors`), too. One factor on all gradients may be made of all
    of them (`gradient_scale`).

    All coordinates are laid side by side on the LAST axis (features x coordinates), so that matmuls
    and gates run over long contiguous rows.

    Attributes:
      config: the constructor's arguments as a JSON-serializable dict, of which the class makes the
        same optimizer.
      second_derivatives: differentiate through the gradients, too.
      spectral_norm: matrices of theta that are divided by their largest singular value, see
        `spectral`.
    """

    config: dict[str, Any]
    second_derivatives = False
    spectral_norm: tuple[str, ...] = ()

    @property
    def needs_params(self) -> bool:
        """Whether the params are among the inputs."""
        return False

    @property
    def reads_tensors(self) -> bool:
        """Whether features of whole tensors are among the inputs."""
        return False

    def gradient_scale(self, gradient: Float[Array, n]) -> Float[Array, ""] | None:
        """The factor on all gradients, given those of ALL coordinates; None: there is none."""
        del gradient
        return None

    def scaled(self, gradient: Float[Array, n]) -> Float[Array, n]:
        """The gradient of all coordinates as `network`, and what it calls, are to be given it."""
        scale = self.gradient_scale(gradient)
        return gradient if scale is None else gradient * scale

    def prepared(self, theta: Theta) -> tuple[CoordinateWiseLOpt, Theta]:
        """An optimizer and weights that do the same, and have no more to compute of theta alone.

        Theta is the same along an unroll: what is made of it is made once, not at every inner step.
        """
        if not self.spectral_norm:
            return self, theta
        plain = copy.copy(self)
        plain.spectral_norm = ()
        return plain, spectral.normalized(theta, self.spectral_norm)

    @abc.abstractmethod
    def initial_hidden(self, num_coordinates: int, dtype: Any) -> Hidden:
        """The hidden state before the first step, in `dtype`, averages not narrower than float32.

        Each array is one of its own, so that a training loop may donate them.
        """

    @abc.abstractmethod
    def with_gradient(self, hidden: Hidden, gradient: Float[Array, n]) -> Hidden:
        """The hidden state with the gradient taken into its running averages."""

    @abc.abstractmethod
    def features(
        self, hidden: Hidden, gradient: Float[Array, n], params: Float[Array, n]
    ) -> Float[Array, "features n"]:
        """What the network reads; averages in `hidden` have the gradient in them."""

    @abc.abstractmethod
    def updates(
        self, theta: Theta, hidden: Hidden, features: Float[Array, "features n"]
    ) -> tuple[Float[Array, n], Hidden]:
        """(what is added to the params, next hidden state); theta is `prepared`."""

    def with_tensors(self, hidden: Hidden, params: Float[Array, n], sizes: Sequence[int]) -> Hidden:
        """The hidden state with what `reads_tensors` asks for, of tensors of these sizes."""
        del params, sizes
        return hidden

    def network(
        self,
        theta: Theta,
        hidden: Hidden,
        gradient: Float[Array, n],
        params: Float[Array, n],
        sizes: Sequence[int] | None = None,
    ) -> tuple[Float[Array, n], Hidden]:
        """One step on n coordinates: (what is added to the params, next hidden state).

        Args:
          theta: weights of the optimizer, `prepared`.
          hidden: see `initial_hidden`.
          gradient: of the coordinates, see `scaled`.
          params: of the coordinates.
          sizes: of the tensors whose coordinates these are, in order; default: one tensor.
        """
        hidden = self.with_tensors(hidden, params, [params.size] if sizes is None else sizes)
        hidden = self.with_gradient(hidden, gradient)
        return self.updates(theta, hidden, self.features(hidden, gradient, params))

    def check_hidden(self, hidden: Hidden, num_coordinates: int) -> None:
        """Raises ValueError if a hidden state is of another number of coordinates."""
        check_hidden(hidden, (num_coordinates,), "the params have")

    def opt_fn(self, theta: Theta, is_training: bool = False) -> _CoordinateWiseOptimizer:
        """Returns the `Optimizer` that `theta` parameterizes."""
        return _CoordinateWiseOptimizer(*self.prepared(theta))

    def update_fn(
        self,
        theta: Theta,
        opt_state: CoordinateWiseState,
        grad: Params,
        *,
        key: jax.Array,
        loss: jax.Array | None = None,
        fraction: float = 1.0,
        space: str = "gradient",
    ) -> tuple[Callable[[jax.Array], Float[Array, n]], jax.Array, Float[Array, ""]]:
        """The optimizer as a function of its input alone, its state held fixed.

        Args:
          theta: weights of the optimizer.
          opt_state: where it stands.
          grad: the gradient it would read next, shaped like the params.
          key: draws the coordinates.
          loss: the inner loss, which coordinate-wise optimizers do not read.
          fraction: share of the coordinates to take, drawn with replacement unless 1.
          space: "gradient": the input is the gradient [n], see `scaled`; "preprocessed": its
            features [f, n].

        Returns:
          (update_fn, its input here, the unit to measure the input in). The unit is the root mean
          square of the whole gradient, or 1 for features.
        """
        del loss
        own, theta = self.prepared(theta)
        gradient = self.scaled(leaves.flatten(grad))
        params = leaves.flatten(opt_state.params)
        hidden = self.with_tensors(opt_state.hidden, params, leaves.sizes(opt_state.params))
        unit = jnp.sqrt(jnp.mean(gradient**2))
        arrays = (gradient, params, hidden)
        gradient, params, hidden = leaves.drawn(arrays, gradient.size, fraction, key)
        if space == "preprocessed":
            hidden = self.with_gradient(hidden, gradient)
            features = self.features(hidden, gradient, params)
            return lambda x: own.updates(theta, hidden, x)[0], features, jnp.ones_like(unit)

        def update(gradient: jax.Array) -> Float[Array, n]:
            after = self.with_gradient(hidden, gradient)
            return own.updates(theta, after, self.features(after, gradient, params))[0]

        return update, gradient, unit


def check_hidden(hidden: Hidden, shape: tuple[int, ...], whose: str) -> None:
    """Refuses hidden states of other coordinates.

    Args:
      hidden: see `CoordinateWiseState`.
      shape: of the coordinates, [n], or that of a leaf.
      whose: what the message calls them, e.g. "the params have".

    Raises:
      ValueError: they are of another shape.
    """
    for array in jax.tree.leaves(hidden):
        if array.shape[1:] != shape:
            raise ValueError(
                f"The state is of coordinates {list(array.shape[1:])}, {whose} {list(shape)}: make "
                "a new one, by init with these params."
            )


class _CoordinateWiseOptimizer(upstream.Optimizer):
    """A `CoordinateWiseLOpt` with its weights: the interface of upstream's optimizers."""

    def __init__(self, lopt: CoordinateWiseLOpt, theta: Theta):
        self._lopt = lopt
        self._theta = theta

    @property
    def name(self) -> str:
        return self._lopt.name

    def init(
        self,
        params: Params,
        model_state: Any = None,
        num_steps: int | None = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> CoordinateWiseState:
        """Starts a run: fresh hidden state. `num_steps` and `key` are accepted and not needed.

        Raises:
          ValueError: a leaf of the params could not be trained, see `leaves.check`.
        """
        del num_steps, key, kwargs
        leaves.check(params)
        return CoordinateWiseState(
            params=params,
            state=model_state,
            hidden=self._lopt.initial_hidden(leaves.size(params), leaves.common_dtype(params)),
            iteration=jnp.asarray(0, jnp.int32),
        )

    def set_params(self, state: CoordinateWiseState, params: Params) -> CoordinateWiseState:
        return state.replace(params=params)  # type: ignore[attr-defined]

    def update(
        self,
        opt_state: CoordinateWiseState,
        grad: Params,
        loss: jax.Array | None = None,
        model_state: Any = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> CoordinateWiseState:
        """One inner step: params <- params + network(grad); `grad` is shaped like the params.

        Raises:
          ValueError: it is not, or the state is of other params.
        """
        del loss, key, kwargs
        leaves.check_gradients(grad, opt_state.params)
        flat = leaves.flatten(opt_state.params)
        self._lopt.check_hidden(opt_state.hidden, flat.size)
        if flat.size == 0:
            updates, hidden = flat, opt_state.hidden
        else:
            trained = leaves.trained_gradients(grad, opt_state.params)
            gradient = leaves.flatten(trained).astype(flat.dtype)
            if not self._lopt.second_derivatives:
                gradient = jax.lax.stop_gradient(gradient)
            gradient = self._lopt.scaled(gradient)
            updates, hidden = self._lopt.network(
                self._theta, opt_state.hidden, gradient, flat, leaves.sizes(opt_state.params)
            )
        return CoordinateWiseState(
            params=leaves.add_flat(opt_state.params, updates),
            state=model_state,
            hidden=hidden,
            iteration=opt_state.iteration + 1,
        )

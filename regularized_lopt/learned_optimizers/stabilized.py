"""Any learned optimizer with STAR's pieces around it: a nominal term, magnitudes, normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.learned_optimizers import averages, leaves
from regularized_lopt.learned_optimizers import nominal as nominal_lib

Theta = dict[str, Any]
Params = Any

CONTROLLERS = ("none", "scalar", "coordinate")


@flax.struct.dataclass
class StabilizedState:
    """State of the optimizer: what a training loop carries from step to step.

    Attributes:
      params: the optimizee's weights, any pytree.
      state: the optimizee's non-trained state (`ModelState` upstream), or None.
      learned: state of the wrapped optimizer, its params left out.
      moments: of the gradients of all n trained coordinates side by side.
      iteration: inner steps taken, int32 scalar.
    """

    params: Params
    state: Any
    learned: Any
    moments: averages.Moments
    iteration: jax.Array


@configurable()
class Stabilized(upstream.LearnedOptimizer):
    """params <- params + c u - f_nominal, where u is another learned optimizer's own update::

      f_nominal = nominal_step e^n a          a: see `nominal.direction`
      c         = blackbox_scale e^m [/ sqrt(v + epsilon)]

    m and n, from a small head of the wrapper's own, are meta-trained together with the wrapped
    optimizer; they begin at 0. `as_optax(nominal=)` adds the same term to one that is trained
    already. Averages are corrected for their start at 0 by the steps since a coordinate's first
    gradient.

    By default gradients are measured in units of their root mean square over all coordinates, a
    running one, so that a constant factor on the loss changes nothing; and a coordinate that has
    never had a gradient does not move. A gradient whose square float32 does not hold, below about
    1e-17, counts as none. The wrapper's state is 20 bytes per coordinate in float32.

    Source: Harrison, Metz & Sohl-Dickstein 2022 (arXiv 2209.11208), eqs. 20 to 22, where m, n and u
    are heads of one network.

    Attributes:
      learned_opt: the optimizer that is wrapped.
    """

    def __init__(
        self,
        learned_opt: upstream.LearnedOptimizer,
        nominal: str = "adam_aggmo",
        nominal_step: float = 1e-3,
        controller: str = "scalar",
        hidden_size: int = 0,
        precondition: bool = False,
        blackbox_scale: float | None = None,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_moment_decay: float = 0.999,
        epsilon: float = 1e-6,
        scale_free: bool = True,
        hold_unseen: bool = True,
        second_derivatives: bool = False,
    ):
        """Initializer.

        Args:
          learned_opt: any learned optimizer whose state is a dataclass or a namedtuple with a field
            params.
          nominal: one of `learned_optimizers.nominal.DIRECTIONS`.
          nominal_step: see above, >= 0.
          controller: where m and n come from. "none": they are 0; "scalar": two weights;
            "coordinate": a head that reads g / sqrt(v) and every m_k / sqrt(v).
          hidden_size: units of the hidden layer of that head, >= 0; 0: it is linear.
          precondition: whether u is divided by sqrt(v + epsilon).
          blackbox_scale: see above, >= 0. Default: 1e-3 with `precondition`, else 1.
          momentum_decays: each in (0, 1); at least one.
          second_moment_decay: in (0, 1).
          epsilon: added to v under a root, > 0; with `scale_free` in units of v's mean.
          scale_free: measure gradients, also those that the wrapped optimizer reads, in units of
            their root mean square. A loss, if it reads that, is as it comes.
          hold_unseen: leave coordinates where they are as long as all their gradients were 0.
          second_derivatives: differentiate through the gradients, too; so must the wrapped
            optimizer.

        Raises:
          ValueError: an argument is out of its range; the message names the range.
        """
        owner = "Stabilized"
        nominal_lib.check(owner, nominal)
        errors.check_name(f"{owner}.controller", controller, CONTROLLERS)
        errors.check_count(f"{owner}.hidden_size", hidden_size, least=0)
        if hidden_size and controller != "coordinate":
            raise ValueError(
                f"{owner}.hidden_size = {hidden_size} is of a head by coordinate: give controller "
                f'= "coordinate", or leave it out with controller = {controller!r}.'
            )
        momentum_decays = averages.check_decays(f"{owner}.momentum_decays", momentum_decays)
        averages.check_decays(f"{owner}.second_moment_decay", [second_moment_decay])
        if blackbox_scale is None:
            blackbox_scale = 1e-3 if precondition else 1.0
        errors.check_not_negative(f"{owner}.nominal_step", nominal_step)
        errors.check_not_negative(f"{owner}.blackbox_scale", blackbox_scale)
        errors.check_positive(f"{owner}.epsilon", epsilon)
        self.learned_opt = learned_opt
        # One that stops them of itself passes none on.
        self.second_derivatives = second_derivatives and getattr(
            learned_opt, "second_derivatives", True
        )
        self.scale_free = scale_free
        self.hold_unseen = hold_unseen
        self._nominal = nominal
        self._nominal_step = nominal_step
        self._controller = controller
        self._hidden_size = hidden_size
        self._precondition = precondition
        self._blackbox_scale = blackbox_scale
        self._decays = (momentum_decays, second_moment_decay)
        self._epsilon = epsilon

    @property
    def name(self) -> str:
        return f"Stabilized_{type(self.learned_opt).__name__}_{self._nominal}"

    def init(self, rng: jax.Array) -> Theta:
        """Draws theta, that of the wrapped optimizer and the head's: m = n = 0, float32.

        A hidden layer's weights are [inputs, outputs], truncated normal with deviation
        1 / sqrt(inputs).
        """
        learned_key, head_key = jax.random.split(rng)
        return {"learned_opt": self.learned_opt.init(learned_key), "head": self._head(head_key)}

    def opt_fn(self, theta: Theta, is_training: bool = False) -> _StabilizedOptimizer:
        """Returns the `Optimizer` that `theta` parameterizes."""
        wrapped = self.learned_opt.opt_fn(theta["learned_opt"], is_training=is_training)
        return _StabilizedOptimizer(self, theta["head"], wrapped)

    def initial_moments(self, num_coordinates: int, dtype: Any) -> averages.Moments:
        """Zeros, float32 or wider."""
        return averages.zeros_moments((num_coordinates,), len(self._decays[0]), dtype)

    def with_gradient(
        self, moments: averages.Moments, gradient: Float[Array, n]
    ) -> averages.Moments:
        """The averages with the gradient taken into them."""
        return averages.update_moments(moments, gradient, *self._decays)

    def unit(self, moments: averages.Moments) -> Float[Array, ""]:
        """1 over what gradients are measured in: the root mean square over all coordinates."""
        if not self.scale_free:
            return jnp.ones((), moments.second.dtype)
        mean = jnp.mean(averages.corrected(moments, *self._decays)[1])
        return jnp.where(mean > 0, averages.inverse_root(mean), 1)

    def stabilized(
        self,
        head: Theta,
        moments: averages.Moments,
        gradient: Float[Array, n],
        before: Float[Array, n],
        after: Float[Array, n],
    ) -> Float[Array, n]:
        """Params after the step, where the wrapped optimizer moves them from `before` to `after`.

        Args:
          head: of theta.
          moments: with the gradient in them.
          gradient: as it came.
          before: params.
          after: the same where the wrapped optimizer leaves them; returned, bit by bit, if there is
            nothing to add.
        """
        momenta, second = averages.corrected(moments, *self._decays)
        inverse_rms = averages.inverse_root(second[0])
        m, n = self._magnitudes(head, jnp.concatenate([gradient[None], momenta]) * inverse_rms)
        unit, new = self.unit(moments), after
        if self._precondition or self._controller != "none" or self._blackbox_scale != 1:
            factor = self._blackbox_scale * jnp.exp(m)
            if self._precondition:
                factor = factor * jax.lax.rsqrt(unit**2 * second[0] + self._epsilon)
            new = new + (factor - 1) * (after - before)
        if self._nominal != "none":
            ascent = nominal_lib.direction(
                self._nominal, unit * gradient, list(unit * momenta), inverse_rms / unit
            )
            new = new - self._nominal_step * jnp.exp(n) * ascent
        return jnp.where(second[0] > 0, new, before) if self.hold_unseen else new

    def _head(self, key: jax.Array) -> Theta:
        outputs = 1 if self._nominal == "none" else 2  # m, and n where it is read.
        if self._controller == "none":
            return {}
        if self._controller == "scalar":
            return {"magnitudes": jnp.zeros(outputs)}
        sizes = [1 + len(self._decays[0]), *([self._hidden_size] if self._hidden_size else [])]
        last = {"w": jnp.zeros((sizes[-1], outputs)), "b": jnp.zeros(outputs)}
        if not self._hidden_size:
            return {"output": last}
        weights = jax.random.truncated_normal(key, -2.0, 2.0, sizes) / jnp.sqrt(sizes[0])
        return {"hidden": {"w": weights, "b": jnp.zeros(sizes[1])}, "output": last}

    def _magnitudes(self, head: Theta, features: Float[Array, "features n"]) -> Any:
        """(m, n), scalars or [n]."""
        head = jax.tree.map(lambda leaf: leaf.astype(features.dtype), head)
        if self._controller == "none":
            return 0.0, 0.0
        if self._controller == "scalar":
            outputs = head["magnitudes"]
        else:
            if "hidden" in head:
                features = jax.nn.relu(_linear(head["hidden"], features))
            outputs = _linear(head["output"], features)
        return outputs[0], outputs[-1]


class _StabilizedOptimizer(upstream.Optimizer):
    """`Stabilized` with its weights: the interface of upstream's optimizers."""

    def __init__(self, lopt: Stabilized, head: Theta, wrapped: upstream.Optimizer):
        self._lopt = lopt
        self._head = head
        self._wrapped = wrapped

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
    ) -> StabilizedState:
        """Starts a run; the wrapped optimizer is given whatever is given here but the model state.

        Raises:
          ValueError: a leaf of the params could not be trained, see `leaves.check`.
          TypeError: the wrapped optimizer keeps its params elsewhere than in a field params.
        """
        leaves.check(params)
        own = leaves.trained(params, params)
        learned = self._wrapped.init(own, num_steps=num_steps, key=key, **kwargs)
        self._check(learned)
        return StabilizedState(
            params=params,
            state=model_state,
            learned=jax.tree.map(jnp.asarray, upstream.with_params(learned, ())),
            moments=self._lopt.initial_moments(leaves.size(params), leaves.common_dtype(params)),
            iteration=jnp.asarray(0, jnp.int32),
        )

    def set_params(self, state: StabilizedState, params: Params) -> StabilizedState:
        return state.replace(params=params)  # type: ignore[attr-defined]

    def update(
        self,
        opt_state: StabilizedState,
        grad: Params,
        loss: jax.Array | None = None,
        model_state: Any = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> StabilizedState:
        """One inner step; `grad` is shaped like the params.

        Raises:
          ValueError: it is not.
        """
        lopt, params = self._lopt, opt_state.params
        leaves.check_gradients(grad, params)
        own, before = leaves.trained(params, params), leaves.flatten(params)
        grads = leaves.trained_gradients(grad, params)
        if not lopt.second_derivatives:
            grads = jax.lax.stop_gradient(grads)
        gradient = leaves.flatten(grads).astype(before.dtype)
        moments = lopt.with_gradient(opt_state.moments, gradient)
        if lopt.scale_free:
            grads = jax.tree.leaves(leaves.replace_flat(grads, lopt.unit(moments) * gradient))
        learned = self._wrapped.update(
            upstream.with_params(opt_state.learned, own),
            jax.tree.unflatten(jax.tree.structure(own), grads),
            loss=loss,
            key=key,
            **kwargs,
        )
        after = leaves.flatten(self._wrapped.get_params(learned)).astype(before.dtype)
        new = lopt.stabilized(self._head, moments, gradient, before, after)
        return StabilizedState(
            params=leaves.replace_flat(params, new),
            state=model_state,
            learned=upstream.with_params(learned, ()),
            moments=moments,
            iteration=opt_state.iteration + 1,
        )

    def _check(self, learned: Any) -> None:
        """Refuses a state whose field params is not where the optimizer's params are."""
        marker = object()
        if self._wrapped.get_params(upstream.with_params(learned, marker)) is not marker:
            raise TypeError(
                f"Stabilized cannot wrap {type(self._lopt.learned_opt).__name__}: its params are "
                f"not in the field params of its {type(learned).__name__}."
            )


def _linear(layer: Theta, inputs: Float[Array, "inputs n"]) -> Float[Array, "outputs n"]:
    return layer["w"].T @ inputs + layer["b"][:, None]

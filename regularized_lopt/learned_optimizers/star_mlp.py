"""STAR's learned optimizer: a tiny MLP per coordinate, a nominal term, a preconditioned output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.learned_optimizers import averages, leaves, star_network
from regularized_lopt.learned_optimizers import nominal as nominal_lib
from regularized_lopt.learned_optimizers import star_features as features
from regularized_lopt.learned_optimizers.star_features import Averages
from regularized_lopt.learned_optimizers.star_mlp_optimizer import StarMLPOptimizer, Theta

_SMALL = 2048  # Coordinates; smaller tensors are updated side by side: see `update`.
_STEEPEST = 10.0  # Bound of the nominal direction, which is of the order of 1 where all is well.
_HEADS = ("direction", "magnitude", "nominal_magnitude")

PAPER_FORM = {
    "nominal_step": 1e-3,
    "blackbox_scale": 1e-3,
    "magnitude_scale": 1e-3,
    "epsilon": 1e-6,
    "tensor_features": False,
    "bounded": False,
    "scale_free": False,
    "bias_correction": False,
    "hold_unseen": False,
}
"""Arguments with which `StarMLPLOpt` is the optimizer of the paper."""


@configurable()
class StarMLPLOpt(upstream.LearnedOptimizer):
    """params <- params - (f_nominal + f_blackbox), with everything from a 2 x 4 MLP by coordinate.

    The MLP reads the gradient, the param, running averages of both moments, factored ones, their
    ratios (28 features, each divided by its root mean square over the tensor) and the step, and
    has three heads, d, m and n::

      f_nominal  = nominal_step e^(magnitude_scale n) a       a: see `nominal.direction`
      f_blackbox = blackbox_scale d e^(magnitude_scale m) / sqrt(v + epsilon)

    Source: Harrison, Metz & Sohl-Dickstein 2022, eqs. 20 to 22; the features are those of Metz et
    al. 2022 (arXiv 2203.11860). 219 weights by default, 16 bytes of state per coordinate.

    The paper's own form is `StarMLPLOpt(**star_mlp.PAPER_FORM)`. By default it has more to
    rely on: gradients are measured in units of their own tensor's root mean square, so that a
    constant factor on the loss changes nothing; averages are corrected for their start at 0; the
    heads are bounded; and a coordinate that has never had a gradient does not move.

    Attributes:
      config: the constructor's arguments as a JSON-serializable dict; `StarMLPLOpt(**config)` is
        the same optimizer.
    """

    def __init__(
        self,
        hidden_size: int = 4,
        num_layers: int = 2,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_moment_decay: float = 0.999,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        nominal: str = "adam_aggmo",
        nominal_step: float = 1e-3,
        controller: bool = True,
        precondition: bool = True,
        blackbox_scale: float = 1e-4,
        magnitude_scale: float = 2.0,
        epsilon: float = 1e-2,
        head_scale: float = 1.0,
        tensor_features: bool = True,
        bounded: bool = True,
        scale_free: bool = True,
        bias_correction: bool = True,
        hold_unseen: bool = True,
        second_derivatives: bool = False,
    ):
        """Initializer.

        Args:
          hidden_size: units per hidden layer, > 0.
          num_layers: hidden layers, 1 to 100.
          momentum_decays: of the averages of gradients, each in (0, 1); at least one. They are
            where theta's decays start.
          second_moment_decay: of the average of squared gradients, in (0, 1).
          factored_decays: of its factored form, each in (0, 1); at least one.
          nominal: one of `learned_optimizers.nominal.DIRECTIONS`.
          nominal_step: see above, >= 0.
          controller: whether the MLP scales the nominal term.
          precondition: whether the black box's output is divided by sqrt(v + epsilon).
          blackbox_scale: see above, >= 0.
          magnitude_scale: see above, >= 0.
          epsilon: added to v under a root, > 0; with `scale_free` in units of v's mean.
          head_scale: factor on the heads' weights at init, >= 0.
          tensor_features: whether the MLP reads logarithms of the root mean squares over the tensor
            of the params and of every m / sqrt(v), which the division of each feature by its own
            takes away. They tell how much of the gradients is noise.
          bounded: bound d, m and n to (-1, 1) by `jax.nn.soft_sign`, and a to [-10, 10], so that
            on no network the black box takes more than blackbox_scale e^magnitude_scale /
            sqrt(epsilon) at a step. Where the gradient falls by orders of magnitude, m / sqrt(v)
            grows as sqrt(v) forgets sooner than m, as it does after most meta-trainings.
          scale_free: measure gradients in units of their tensor's root mean square.
          bias_correction: correct averages for their start at 0, as Adam does.
          hold_unseen: leave coordinates where they are as long as all their gradients were 0, and
            a tensor, with its averages, at every step at which all of its gradient is 0.
          second_derivatives: differentiate through the gradients, too.

        Raises:
          ValueError: an argument is out of its range; the message names the range.
        """
        momentum_decays = averages.check_decays("StarMLPLOpt.momentum_decays", momentum_decays)
        factored_decays = averages.check_decays("StarMLPLOpt.factored_decays", factored_decays)
        self.config: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "momentum_decays": list(momentum_decays),
            "second_moment_decay": second_moment_decay,
            "factored_decays": list(factored_decays),
            "nominal": nominal,
            "nominal_step": nominal_step,
            "controller": controller,
            "precondition": precondition,
            "blackbox_scale": blackbox_scale,
            "magnitude_scale": magnitude_scale,
            "epsilon": epsilon,
            "head_scale": head_scale,
            "tensor_features": tensor_features,
            "bounded": bounded,
            "scale_free": scale_free,
            "bias_correction": bias_correction,
            "hold_unseen": hold_unseen,
            "second_derivatives": second_derivatives,
        }
        _check(self.config)
        self._sizes = [hidden_size] * num_layers
        self._momentum_decays = momentum_decays
        self._second_moment_decay = second_moment_decay
        self._factored_decays = factored_decays
        self._nominal = nominal
        self._nominal_step = nominal_step
        self._controller = controller
        self._precondition = precondition
        self._blackbox_scale = blackbox_scale
        self._magnitude_scale = magnitude_scale
        self._form = features.Form(scale_free, bias_correction, epsilon, hold_unseen)
        self._tensor_features = tensor_features
        self._bounded = bounded
        self.second_derivatives = second_derivatives

    @property
    def name(self) -> str:
        return "StarMLPLOpt_" + "x".join(map(str, self._sizes))

    def init(self, rng: jax.Array) -> Theta:
        """Draws theta, float32.

        The MLP's weights are [inputs, outputs], truncated normal with deviation 1 / sqrt(inputs),
        its biases 0, as are the offsets of the decays and of the nominal step.
        """
        heads = len(_HEADS) if self._controller else len(_HEADS) - 1
        num_decays = len(self._momentum_decays)
        num_inputs = features.count(num_decays)
        num_inputs += features.count_of_tensor(num_decays) if self._tensor_features else 0
        sizes = [num_inputs, *self._sizes, heads]
        return {
            "network": star_network.init(rng, sizes, self.config["head_scale"]),
            "decays": {
                "momentum": jnp.zeros(len(self._momentum_decays)),
                "second_moment": jnp.zeros(1),
                "factored": jnp.zeros(len(self._factored_decays)),
            },
            "nominal_scale": jnp.zeros(()),
        }

    def opt_fn(self, theta: Theta, is_training: bool = False) -> StarMLPOptimizer:
        """Returns the `Optimizer` that `theta` parameterizes."""
        return StarMLPOptimizer(self, theta, is_training)

    def initial_averages(self, leaf: Any) -> Averages:
        """Zeros, each an array of its own, so that a training loop may donate them."""
        shape, dtype = jnp.shape(leaf), leaves.common_dtype(leaf)
        return Averages(
            momenta=tuple(jnp.zeros(shape, dtype) for _ in self._momentum_decays),
            second=jnp.zeros(shape, dtype),
            mean_second=jnp.zeros((), dtype),
            factored=averages.zeros_factored(shape, len(self._factored_decays), dtype),
        )

    def update(
        self,
        theta: Theta,
        olds: Sequence[Averages],
        gradients: Sequence[jax.Array],
        params: Sequence[jax.Array],
        step: jax.Array,
    ) -> list[tuple[jax.Array, Averages]]:
        """One step of all tensors: (what is added, next averages) of each.

        Large ones by `update_tensor`, which is the cheapest to run; small ones, such as biases, by
        `update_tensors`: a program of its own for each of them would take a second to compile.
        """
        found: dict[int, tuple[jax.Array, Averages]] = {}
        small = [index for index, gradient in enumerate(gradients) if gradient.size < _SMALL]
        if len(small) > 1:
            updated = self.update_tensors(
                theta,
                [olds[index] for index in small],
                [gradients[index] for index in small],
                [params[index] for index in small],
                step,
            )
            found = dict(zip(small, updated, strict=True))
        for index, tensor in enumerate(zip(olds, gradients, params, strict=True)):
            if index not in found:
                found[index] = self.update_tensor(theta, *tensor, step)
        return [found[index] for index in range(len(gradients))]

    def update_tensor(
        self, theta: Theta, old: Averages, gradient: jax.Array, param: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Averages]:
        """One step of a tensor: (what is added to it, next averages), in the averages' dtype.

        Two passes over the coordinates: the first moves the averages and sums the features'
        squares, the second computes the update. Nothing else of the tensor's size is kept between
        them. To be differentiated through, take `update_tensors`.
        """
        theta, gradient, param = _as(old.second.dtype, (theta, gradient, param))
        decays = self._decays(theta)
        new, moves = features.averaged(old, gradient, decays, self._form)
        given = features.inputs(new, gradient, param, decays, step, self._form, moves)
        scales = features.inverse_rms(features.features(given))
        # The barrier keeps the two passes apart: what both use is computed twice, which costs less
        # than to write and to read it.
        new, gradient, param, scales, moves = jax.lax.optimization_barrier(
            (new, gradient, param, scales, moves)
        )
        given = features.inputs(new, gradient, param, decays, step, self._form, moves)
        rows, context = features.features(given), self._context(scales)
        heads = star_network.unit_by_unit(theta["network"], rows, scales, step, context)
        return jnp.broadcast_to(self._update(theta, heads, given), gradient.shape), new

    def update_tensors(
        self,
        theta: Theta,
        olds: Sequence[Averages],
        gradients: Sequence[jax.Array],
        params: Sequence[jax.Array],
        step: jax.Array,
    ) -> list[tuple[jax.Array, Averages]]:
        """The same of several tensors side by side: quick to differentiate, and to compile."""
        dtype = jnp.result_type(*(old.second for old in olds))
        theta, wide, at = _as(dtype, (theta, list(gradients), list(params)))
        decays = self._decays(theta)
        olds_wide = [_as(dtype, old) for old in olds]
        news, given = features.side_by_side(olds_wide, wide, at, decays, step, self._form)
        flat = leaves.SideBySide([(gradient.size,) for gradient in wide])
        rows, scales = features.normalized(features.features(given), flat)
        context = self._context(scales)
        heads = star_network.as_matrices(theta["network"], rows, flat, step, context)
        updates = self._update(theta, heads, given._replace(momenta=tuple(given.momenta[0])))
        return [
            _as(old.second.dtype, (part.reshape(gradient.shape), new))
            for part, gradient, new, old in zip(flat.split(updates), wide, news, olds, strict=True)
        ]

    def _context(self, scales: jax.Array) -> jax.Array:
        if not self._tensor_features:
            return scales[:0]
        return features.of_tensor(scales, len(self._momentum_decays))

    def _decays(self, theta: Theta) -> features.Decays:
        offsets = theta["decays"]
        return features.Decays(
            averages.learned_decays(self._momentum_decays, offsets["momentum"]),
            averages.learned_decays([self._second_moment_decay], offsets["second_moment"]),
            averages.learned_decays(self._factored_decays, offsets["factored"]),
        )

    def _update(
        self, theta: Theta, heads: Sequence[jax.Array] | jax.Array, given: features.Inputs
    ) -> jax.Array:
        if self._bounded:
            heads = [jax.nn.soft_sign(head) for head in heads]
        blackbox = heads[0] * jnp.exp(self._magnitude_scale * heads[1]) * self._blackbox_scale
        if self._precondition:
            blackbox = blackbox * given.inverse_root
        update = -blackbox
        if self._nominal != "none" and self._nominal_step:
            ascent = nominal_lib.direction(
                self._nominal, given.gradient, given.momenta, given.inverse_root
            )
            size = self._nominal_step * jnp.exp(theta["nominal_scale"])
            if self._controller:
                size = size * jnp.exp(self._magnitude_scale * heads[2])
            if self._bounded:
                ascent = jnp.clip(ascent, -_STEEPEST, _STEEPEST)
            update = update - size * ascent
        if self._form.hold_unseen:
            update = jnp.where(given.moves & (given.second > 0), update, 0.0)
        return update


def _as(dtype: Any, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _check(config: dict[str, Any]) -> None:
    """Raises ValueError where an argument is out of its range."""
    name = "StarMLPLOpt"
    errors.check_count(f"{name}.hidden_size", config["hidden_size"])
    errors.check_count(f"{name}.num_layers", config["num_layers"], most=100)
    momenta, factored = len(config["momentum_decays"]), len(config["factored_decays"])
    if momenta != factored:
        raise ValueError(
            f"{name} has {momenta} momentum_decays and {factored} factored_decays: momenta are "
            "divided by factored second moments one by one, so give as many of both."
        )
    averages.check_decays(f"{name}.second_moment_decay", [config["second_moment_decay"]])
    nominal_lib.check(name, config["nominal"])
    for key in ("nominal_step", "blackbox_scale", "magnitude_scale", "head_scale"):
        errors.check_not_negative(f"{name}.{key}", config[key])
    errors.check_positive(f"{name}.epsilon", config["epsilon"])

"""Tasks whose gradients are estimated by evolution strategies: right on average, and noisy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from regularized_lopt import errors
from regularized_lopt.tasks import resident

Params = Any


class ESTask(resident.ResidentTask):
    """Another task, with the same losses and noisy gradients; see `evolution_gradient`.

    The noise is drawn from the key that the loss is given. Only losses' gradients with respect to
    params are known, and none of theirs in forward mode: no Hessian can be taken.
    """

    def __init__(self, name: str, task: resident.ResidentTask, num_pairs: int, std: float = 0.01):
        """Initializer.

        Args:
          name: of the task.
          task: the other.
          num_pairs: antithetic pairs, > 0.
          std: of the perturbations, > 0.
        """
        errors.check_count("ESTask.num_pairs", num_pairs)
        errors.check_std("ESTask.std", std)
        if not isinstance(task, resident.ResidentTask):
            raise TypeError(f"ESTask.task = {task!r}: it must be a ResidentTask, see tasks.get.")
        facts = task.facts
        architecture = f"ES{num_pairs} {facts['architecture']}"
        super().__init__(name, task.datasets, architecture, facts["sizes"], facts["activation"])
        self._task = task
        self._loss_and_aux = evolution_gradient(task.loss_and_aux, num_pairs, std)

    def init(self, key: jax.Array) -> Params:
        return self._task.init(key)

    def per_example(
        self, params: Params, batch: Any, key: jax.Array | None = None
    ) -> Mapping[str, Float[Array, batch]]:
        """The other task's."""
        return self._task.per_example(params, batch, key)

    def loss_and_aux(
        self, params: Params, key: jax.Array, data: Any
    ) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
        """The other task's, with the noise of `key` in the gradient."""
        return self._loss_and_aux(params, key, data)

    def normalizer(self, loss: jax.Array) -> jax.Array:
        return self._task.normalizer(loss)


def evolution_gradient(
    loss_and_aux: Callable[[Params, jax.Array, Any], tuple[jax.Array, Any]],
    num_pairs: int,
    std: float,
) -> Callable[[Params, jax.Array, Any], tuple[jax.Array, Any]]:
    """A function with the same values whose gradient with respect to params is estimated.

    It is the mean over pairs of e (L(params + e) - L(params - e)) / (2 std^2), e ~ N(0, std^2),
    drawn from the function's key: of a quadratic, on average the gradient itself.

    Args:
      loss_and_aux: (params, key, batch) -> (loss, aux).
      num_pairs: antithetic pairs, > 0.
      std: of the perturbations, > 0.
    """

    def forward(params: Params, key: jax.Array, batch: Any) -> tuple[Any, Any]:
        return loss_and_aux(params, key, batch), (params, key, batch)

    def backward(kept: tuple[Params, jax.Array, Any], cotangent: Any) -> tuple[Params, None, None]:
        params, key, batch = kept

        def of_pair(pair_key: jax.Array) -> Params:
            noise = optax.tree.scale(
                std, optax.tree.random_like(pair_key, params, jax.random.normal)
            )

            def at(sign: float) -> jax.Array:
                moved = jax.tree.map(lambda leaf, e: leaf + sign * e, params, noise)
                return loss_and_aux(moved, key, batch)[0]

            slope = cotangent[0] * (at(1.0) - at(-1.0)) / (2 * std**2)
            return jax.tree.map(lambda e: slope * e, noise)

        pairs = jax.vmap(of_pair)(jax.random.split(key, num_pairs))
        return jax.tree.map(lambda of: jnp.mean(of, axis=0), pairs), None, None

    estimated = jax.custom_vjp(loss_and_aux)
    estimated.defvjp(forward, backward)
    return estimated


def _register(of: str, num_pairs: int) -> None:
    name = f"ESWrapped_{num_pairs}pair_{of}"

    def make(phase: str, batch_size: int) -> ESTask:
        return ESTask(name, resident.FACTORIES[of](phase, batch_size), num_pairs)

    resident.register(name, make)


for _num_pairs in (1, 8):
    _register("ImageMLP_Digits_20_Relu", _num_pairs)
    _register("ImageMLP_FashionMnist8_32_Relu", _num_pairs)

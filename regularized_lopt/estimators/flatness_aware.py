"""Optimizee space for the wheel's estimators, which take the outer loss from the task."""

from __future__ import annotations

from typing import Any

import jax

from regularized_lopt import regularizers, upstream
from regularized_lopt.configurable import configurable

REGULARIZED_LOSS = "regularized_loss"


@configurable()
class FlatnessAwareFamily(upstream.TaskFamily):
    """A task family whose OUTER loss is flatness-aware; what the optimizer sees is unchanged.

    On upstream main, give the regularizer to `RegularizedTruncatedStep` instead.

    * `TruncatedES`, `TruncatedPES`, `TruncatedGrad` of the wheel with `train_and_meta=True` take
      their outer loss from `loss_with_state_and_aux`: it alone returns the flatness-aware loss.
    * The wheel's `FullES` differentiates that method for the INNER gradient. With `as_aux=True` it
      returns the plain loss, and the flatness-aware one among its aux values: set
      `FullES.meta_loss_with_aux_key = "regularized_loss"`.

    Such a task does not know the outer step: schedules are read at step 0.
    """

    def __init__(
        self,
        task_family: upstream.TaskFamily,
        regularizer: str | regularizers.Regularizer = "none",
        as_aux: bool = False,
    ):
        """Initializer.

        Args:
          task_family: the inner problems.
          regularizer: name or object of the regularizer in optimizee space.
          as_aux: see above.
        """
        super().__init__()
        self._family = task_family
        self._regularizer = regularizers.get(regularizer)
        self._as_aux = as_aux
        self.datasets = task_family.datasets

    def sample(self, key: jax.Array) -> Any:
        """Draws a task's parameters."""
        return self._family.sample(key)

    def task_fn(self, task_param: Any) -> upstream.Task:
        """The task with these parameters."""
        return _FlatnessAwareTask(self._family.task_fn(task_param), self._regularizer, self._as_aux)

    @property
    def name(self) -> str:
        return self._family.name


class _FlatnessAwareTask(upstream.Task):
    """A task, but for `loss_with_state_and_aux`."""

    def __init__(self, task: upstream.Task, regularizer: regularizers.Regularizer, as_aux: bool):
        self._task = task
        self._regularizer = regularizer
        self._as_aux = as_aux
        self.datasets = task.datasets

    def loss_with_state_and_aux(
        self, params: Any, state: Any, key: jax.Array, data: Any
    ) -> tuple[jax.Array, Any, dict[str, Any]]:
        loss, next_state, aux = self._task.loss_with_state_and_aux(params, state, key, data)

        def plain(at: Any) -> jax.Array:
            return self._task.loss_with_state_and_aux(at, state, key, data)[0]

        regularized = self._regularizer.value(plain, params, key=jax.random.fold_in(key, 1), step=0)
        if self._as_aux:
            return loss, next_state, {**aux, REGULARIZED_LOSS: regularized}
        return regularized, next_state, aux

    def init(self, key: jax.Array) -> Any:
        return self._task.init(key)

    def init_with_state(self, key: jax.Array) -> Any:
        return self._task.init_with_state(key)

    def loss(self, params: Any, key: jax.Array, data: Any) -> jax.Array:
        return self._task.loss(params, key, data)

    def loss_with_state(self, params: Any, state: Any, key: jax.Array, data: Any) -> Any:
        return self._task.loss_with_state(params, state, key, data)

    def loss_and_aux(self, params: Any, key: jax.Array, data: Any) -> Any:
        return self._task.loss_and_aux(params, key, data)

    def normalizer(self, loss: jax.Array) -> jax.Array:
        return self._task.normalizer(loss)

    @property
    def name(self) -> str:
        return self._task.name

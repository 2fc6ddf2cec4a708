"""What learners do with few images: learned optimizers, Adam and centroids on the same episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.measure.optimizers import OptaxBaseline
from regularized_lopt.tasks import classification, episodes
from regularized_lopt.tasks.few_shot import FewShotFamily

_TOGETHER = 10
"""Episodes side by side."""


class Judge:
    """The share of the query that a learner gets right after it has learned from the support.

    Called with (weights, keys): of what it learns by, and of the episodes; and with `split`,
    upstream's name of a split of classes, and `params` to begin with, less the last layer, which is
    drawn anew (None: all are drawn; a `MetaLSTMLOpt` begins with its own). One program serves all.
    """

    def __init__(
        self,
        family: FewShotFamily,
        opt_fn: Callable[[Any], upstream.Optimizer],
        num_steps: int,
    ):
        """Initializer.

        Args:
          family: of the episodes.
          opt_fn: what it learns by, given weights.
          num_steps: inner steps.
        """
        self._family = family

        def judged(weights: Any, keys: jax.Array, data: Any, params: Any) -> jax.Array:
            def one(key: jax.Array) -> jax.Array:
                return _learn(family, opt_fn(weights), num_steps, key, data, params)

            return jax.lax.map(one, keys, batch_size=min(_TOGETHER, len(keys)))

        self._judged = jax.jit(judged)

    def __call__(
        self, weights: Any, keys: jax.Array, split: str = "test", params: Any = None
    ) -> Float[np.ndarray, " episodes"]:
        """See above."""
        data = self._family.datasets.unroll_data(split)
        return np.asarray(self._judged(weights, keys, data, params))


def _learn(
    family: FewShotFamily,
    opt: upstream.Optimizer,
    num_steps: int,
    key: jax.Array,
    data: Any,
    params: Any,
) -> jax.Array:
    task, (init_key, loop_key) = family.task_fn(key), jax.random.split(key)
    drawn, model_state = task.init_with_state(init_key)
    start = drawn if params is None else {**params, _HEAD: drawn[_HEAD]}

    def step(t: jax.Array, state: Any) -> Any:
        params, model_state = opt.get_params_state(state)
        loss_key, opt_key = jax.random.split(jax.random.fold_in(loop_key, t))
        (loss, model_state), grad = jax.value_and_grad(task.loss_with_state, has_aux=True)(
            params, model_state, loss_key, data["train"]
        )
        return opt.update(state, grad, loss=loss, model_state=model_state, key=opt_key)

    state = opt.init(start, model_state, num_steps=num_steps, key=loop_key)
    state = jax.lax.fori_loop(0, num_steps, step, jax.tree.map(jnp.asarray, state))
    params, model_state = opt.get_params_state(state)
    aux = task.loss_with_state_and_aux(params, model_state, loop_key, data["outer"])[2]
    return aux["accuracy"]


_HEAD = "linear"


def centroid_accuracies(
    family: FewShotFamily, keys: jax.Array, split: str = "test"
) -> Float[np.ndarray, " episodes"]:
    """The same of the nearest centroid of raw pixels: no learning at all."""
    part = family.datasets.unroll_data(split)["train"]

    @jax.jit
    def judged(keys: jax.Array, of: episodes.Split) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            episode = family.draw(of, key)
            support = episode.support.reshape(family.ways, family.shots, -1)
            query = episode.query.reshape(len(episode.query), -1)
            distances = jnp.sum((query[:, None] - support.mean(axis=1)) ** 2, axis=-1)
            return jnp.mean(classification.is_correct(-distances, episode.query_labels))

        return jax.lax.map(one, keys)

    return np.asarray(judged(keys, part.split))


@configurable()
@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Adam on a learner that was trained to tell all classes of the training split apart.

    Attributes:
      pretraining_steps: of Adam on those, >= 0; 0: the learner is drawn.
      images_per_class: in each of their batches, which has all classes, > 0.
      pretraining_rate: learning rate, > 0.
      num_steps: on the support, > 0; the last layer is drawn anew.
      learning_rates: on the support, > 0; that is taken which is best on validation classes.
      num_validation_episodes: that decide it, > 0.
    """

    pretraining_steps: int = 1000
    images_per_class: int = 2
    pretraining_rate: float = 1e-3
    num_steps: int = 30
    learning_rates: Sequence[float] = (1e-3, 3e-3, 1e-2)
    num_validation_episodes: int = 50

    def __post_init__(self) -> None:
        errors.check_count("FineTuning.pretraining_steps", self.pretraining_steps, least=0)
        errors.check_count("FineTuning.images_per_class", self.images_per_class)
        errors.check_positive("FineTuning.pretraining_rate", self.pretraining_rate)
        errors.check_count("FineTuning.num_steps", self.num_steps)
        errors.check_count("FineTuning.num_validation_episodes", self.num_validation_episodes)
        if not self.learning_rates:
            raise ValueError("FineTuning.learning_rates is empty: give at least one.")
        for rate in self.learning_rates:
            errors.check_positive("FineTuning.learning_rates", rate)

    def accuracies(
        self, family: FewShotFamily, keys: jax.Array, seed: int
    ) -> tuple[Float[np.ndarray, " episodes"], float]:
        """(accuracies on test episodes, the learning rate that was chosen).

        Args:
          family: of the episodes.
          keys: of the episodes.
          seed: of the pretraining, and of the validation episodes.
        """
        key, validation_key = jax.random.split(jax.random.PRNGKey(seed))
        params = self._pretrained(family, key)
        held_out = jax.random.split(validation_key, self.num_validation_episodes)

        judge = Judge(family, lambda rate: OptaxBaseline("Adam", optax.adam(rate)), self.num_steps)
        found = [
            judge(rate, held_out, "outer_valid", params).mean() for rate in self.learning_rates
        ]
        best = self.learning_rates[int(np.argmax(found))]
        return judge(best, keys, "test", params), best

    def _pretrained(self, family: FewShotFamily, key: jax.Array) -> Any:
        if not self.pretraining_steps:
            return None
        split = family.datasets.unroll_data("train")["train"].split
        ways = len(split.classes)
        network, opt = family.network(ways), optax.adam(self.pretraining_rate)
        init_key, loop_key = jax.random.split(key)
        params, state = network.init(init_key, jnp.zeros((2, *split.image_shape)), 2)

        def loss(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
            logits, state = network.apply(params, state, images, len(images))
            return jnp.mean(classification.cross_entropy(logits, labels)), state

        @jax.jit
        def trained(params: Any, state: Any, split: episodes.Split) -> Any:
            def step(t: jax.Array, carry: Any) -> Any:
                params, state, opt_state = carry
                at = jax.random.fold_in(loop_key, t)
                episode = episodes.draw(split, at, ways, self.images_per_class, 0)
                labels = episode.classes[episode.support_labels]
                grads, state = jax.grad(loss, has_aux=True)(params, state, episode.support, labels)
                updates, opt_state = opt.update(grads, opt_state, params)
                return optax.apply_updates(params, updates), state, opt_state

            carry = (params, state, opt.init(params))
            return jax.lax.fori_loop(0, self.pretraining_steps, step, carry)[0]

        return trained(params, state, split)

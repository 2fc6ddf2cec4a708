"""Optimizers that want to know how long a run will be."""

from __future__ import annotations

from typing import Any

import jax

from regularized_lopt import errors, upstream


class WithNumSteps(upstream.Optimizer):
    """An `Optimizer`, but `init` without `num_steps` takes those given here.

    `init` says so, by name, where the optimizer needs `num_steps` and has none from anywhere.
    """

    def __init__(self, opt: upstream.Optimizer, num_steps: int | None, name: str):
        """Initializer.

        Args:
          opt: any optimizer.
          num_steps: inner steps of a run, > 0; None: not known.
          name: the optimizer's.

        Raises:
          ValueError: num_steps is out of its range.
        """
        if num_steps is not None:
            errors.check_count("num_steps", num_steps)
        self._opt = opt
        self._num_steps = num_steps
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def init(
        self, params: Any, model_state: Any = None, num_steps: Any = None, **kwargs: Any
    ) -> Any:
        """See upstream's `Optimizer.init`."""
        if num_steps is None:
            num_steps = self._num_steps
        try:
            return self._opt.init(params, model_state, num_steps=num_steps, **kwargs)
        except Exception as error:
            if num_steps is None and works(
                lambda: self._opt.init(params, model_state, num_steps=1, **kwargs)
            ):
                raise ValueError(
                    f"{self.name} needs the number of steps to come: give num_steps to init, "
                    "opt or as_optax."
                ) from error
            raise

    def update(self, opt_state: Any, grad: Any, *args: Any, **kwargs: Any) -> Any:
        return self._opt.update(opt_state, grad, *args, **kwargs)

    def get_params(self, state: Any) -> Any:
        return self._opt.get_params(state)

    def get_state(self, state: Any) -> Any:
        return self._opt.get_state(state)

    def set_params(self, state: Any, params: Any) -> Any:
        return self._opt.set_params(state, params)


def name_of(learned_opt: upstream.LearnedOptimizer) -> str:
    """Its own name, which those of upstream's have none of, or its class's."""
    return getattr(learned_opt, "name", None) or type(learned_opt).__name__


def works(function: Any) -> bool:
    """Whether a function of no arguments can be traced."""
    try:
        jax.eval_shape(function)
    except Exception:  # Upstream's optimizers raise of many kinds.
        return False
    return True

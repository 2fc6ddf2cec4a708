"""Any of upstream's optimizers as a gradient transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from regularized_lopt import upstream
from regularized_lopt.learned_optimizers import leaves
from regularized_lopt.learned_optimizers.num_steps import WithNumSteps, works


def from_optimizer(
    opt: upstream.Optimizer, num_steps: int | None = None, name: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """Any of upstream's `Optimizer`s whose state is a dataclass or a namedtuple with `params`.

    The update is the difference of its params, rounded as such. `update` needs the params; `value`
    (the loss) and `key`, where given, are passed on.

    Args:
      opt: the optimizer.
      num_steps: what `opt.init` is told, > 0.
      name: what messages call it; default: its own.

    Raises:
      ValueError: num_steps is out of its range; by `init`, where the optimizer needs it; by
        `update`, where it needs the params or the loss; the message says which.
    """
    name = opt.name if name is None else name
    told = WithNumSteps(opt, num_steps, name)

    def init(params: Any) -> Any:
        params = jax.tree.map(
            lambda leaf: jnp.zeros_like(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
            params,
        )
        state = told.init(params, key=jax.random.PRNGKey(0))
        return _strongly_typed(upstream.with_params(state, ()))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        value: Any = None,
        key: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del extra_args
        if params is None:
            raise ValueError(f"{name} needs the params: call update(grads, state, params).")
        leaves.check_state(state, jax.eval_shape(init, params))
        new = _advance(opt, name, upstream.with_params(state, params), updates, value, key)
        moved = jax.tree.map(
            lambda after, at, u: jnp.subtract(after, at).astype(jnp.result_type(u)),
            opt.get_params(new),
            params,
            updates,
        )
        return moved, _strongly_typed(upstream.with_params(new, ()))

    return optax.GradientTransformationExtraArgs(init, update)


def _advance(
    opt: upstream.Optimizer, name: str, state: Any, grads: Any, value: Any, key: Any
) -> Any:
    """The optimizer's next state; one that fails for want of the loss says so."""
    loss = None if value is None else jnp.asarray(value)
    try:
        return opt.update(state, grads, loss=loss, key=key)
    except Exception as error:
        if loss is None and works(lambda: opt.update(state, grads, loss=jnp.zeros(()), key=key)):
            raise ValueError(
                f"{name} reads the loss: call update(grads, state, params, value=loss)."
            ) from error
        raise


def _strongly_typed(state: Any) -> Any:
    """Without weak types, as of Python numbers: they would compile a step twice."""
    arrays = jax.tree.map(jnp.asarray, state)
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), arrays)

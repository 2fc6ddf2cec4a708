"""What estimators refuse; `owner` is what messages call them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import errors, regularizers, upstream
from regularized_lopt.estimators.inner_problem import InnerProblem
from regularized_lopt.learned_optimizers import CoordinateWiseLOpt


def normalized(owner: str, weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights of `count` truncated steps, which sum to 1."""
    weights = (1.0,) * count if weights is None else tuple(weights)
    name = f"{owner}.task_weights"
    for weight in weights:
        errors.check_not_negative(name, weight)
    if len(weights) != count or not sum(weights) > 0:
        raise ValueError(f"{name} = {weights}: give {count} numbers, not all zero.")
    return tuple(weight / sum(weights) for weight in weights)


def check_smoothing(
    owner: str,
    smoothing: regularizers.Smoothing | None,
    learned_opt: upstream.LearnedOptimizer,
) -> None:
    """Refuses to smooth an optimizer that cannot be differentiated so."""
    if smoothing is None or hasattr(learned_opt, "update_fn"):
        return
    name = type(learned_opt).__name__
    if not getattr(learned_opt, "second_derivatives", True):
        raise ValueError(
            f"{owner}.smoothing climbs through the gradients that {name} reads, "
            f"which it does not differentiate through: give it {name}.second_derivatives = True "
            "(and what it wraps), or smooth an LSTMLOpt or StarLSTMLOpt."
        )
    if smoothing.fraction < 1 or smoothing.space != "gradient":
        raise ValueError(
            f"Smoothing.fraction = {smoothing.fraction} and space = {smoothing.space!r}: "
            f"{name} is smoothed as a whole, on its gradients. Use fraction "
            '= 1 and space = "gradient", or an LSTMLOpt.'
        )


def check_fraction(
    fraction: float,
    learned_opt: upstream.LearnedOptimizer,
    regularizer: regularizers.Regularizer,
) -> None:
    """Refuses a sample of the coordinates where all of them are needed."""
    errors.check_in("RegularizedTruncatedGrad.coordinate_fraction", fraction, "(0, 1]")
    if fraction == 1:
        return
    given = f"RegularizedTruncatedGrad.coordinate_fraction = {fraction}"
    if not isinstance(learned_opt, CoordinateWiseLOpt) or learned_opt.second_derivatives:
        raise ValueError(
            f"{given}: {type(learned_opt).__name__} is not known to treat each coordinate by "
            "itself. Use 1, or an LSTMLOpt or StarLSTMLOpt with second_derivatives = False."
        )
    if learned_opt.reads_tensors:
        raise ValueError(
            f"{given}: {learned_opt.name} reads features of whole tensors, which a sample of the "
            "coordinates does not have. Use 1, or StarLSTMLOpt.tensor_features = False."
        )
    if not regularizer.first_order:
        raise ValueError(
            f"{given}: {regularizer.name} in meta space takes second derivatives, which a sample "
            "of the coordinates does not have. Use 1, or a regularizer of first order (GAM has "
            'GAM.form = "difference").'
        )


def check_divides(owner: str, unroll_length: int, schedule: upstream.TruncationSchedule) -> None:
    """Trajectories end between unrolls, so unrolls must tile them."""
    if isinstance(schedule, upstream.truncation_schedule.ConstantTruncationSchedule):
        length = int(schedule.init(jax.random.PRNGKey(0), None).length)
        if length % unroll_length:
            raise ValueError(
                f"{owner}.unroll_length = {unroll_length} does not divide the "
                f"trajectory of {length} inner steps. Choose a trajectory of "
                f"{max(1, round(length / unroll_length)) * unroll_length}, or an unroll_length "
                "that divides it."
            )


def check_first_order(owner: str, regularizer: regularizers.Regularizer) -> None:
    """Refuses a regularizer in meta space that gradients alone are too little for."""
    if regularizer.first_order:
        return
    usable = [name for name in regularizers.names() if regularizers.get(name).first_order]
    raise ValueError(
        f"{regularizer.name!r} differentiates the loss, of which {owner} only estimates the "
        f'gradient. Choose one of {", ".join(usable)} (GAM in the form "difference"), or the '
        "regularizer in optimizee space, or RegularizedTruncatedGrad."
    )


def check_perturbed(owner: str, theta: Any, std: float) -> None:
    """Refuses a theta that noise cannot be added to, or that would stay as it is.

    Traced values are not looked at, their types are.
    """
    leaves = jax.tree_util.tree_leaves_with_path(theta)
    if not leaves:
        return
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"{owner} adds noise to theta, and theta{jax.tree_util.keystr(path)} is "
                f"{jnp.result_type(leaf)}: make it a float, or keep it out of theta."
            )
    if any(errors.is_traced(leaf) for _, leaf in leaves):
        return
    values = np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for _, leaf in leaves])
    rms = float(np.sqrt(np.mean(values**2)))
    dtype = jnp.result_type(*(leaf for _, leaf in leaves))
    least = float(jnp.finfo(dtype).eps) * rms
    if std < least:
        raise ValueError(
            f"{owner}.std = {std:g}: theta's root mean square is {rms:.2g}, to which {dtype} "
            f"cannot add so little: the gradient would be 0. Give at least {least:.1g}, better "
            "0.01."
        )


def check_starts_finite(owner: str, step_lib: InnerProblem) -> None:
    """Refuses a task whose loss is no number, or not finite, where inner training starts.

    Of one task, drawn with its params and its batch by a fixed key. A task's own iterators move on
    by that batch.
    """
    family = step_lib.task_family
    task_key, init_key, batch_key, loss_key = jax.random.split(jax.random.PRNGKey(0), 4)
    task = family.task_fn(family.sample(task_key))
    params, model_state = task.init_with_state(init_key)
    data = step_lib.unroll_data(1)["train"]
    if step_lib.data_axis is not None:
        data = jax.tree.map(lambda leaf: leaf[:, 0], data)
    batch = step_lib.batch_one(data, jnp.asarray(0), batch_key)
    loss = task.loss_with_state(params, model_state, loss_key, batch)[0]
    is_array = isinstance(loss, jax.Array | np.ndarray | np.generic | float)
    if not is_array or np.shape(loss) or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        kind = f"{jnp.result_type(loss)}{list(np.shape(loss))}" if is_array else type(loss).__name__
        raise ValueError(
            f"{owner}: the loss of {family.name} is {kind}: it must be one real number, a float."
        )
    if not math.isfinite(loss):
        raise ValueError(
            f"{owner}: the loss of {family.name} is {loss} where inner training starts, so that "
            "nothing could be learned. See that its data and its initial params are finite."
        )

"""Spectral normalization of a learned optimizer's weights (Miyato et al. 2018, arXiv 1802.05957).

A matrix W of theta is used as W / sigma(W), sigma(W) being its largest singular value, so that the
layer stretches no input. Theta itself is kept as it is, and sigma is differentiated through. Here
sigma is exact, by a singular value decomposition at each unroll; Miyato et al. approximate it by
one step of power iteration per update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from regularized_lopt import errors

Theta = dict[str, dict[str, jax.Array]]


def check(name: str, weights: Sequence[str], init: Callable[[jax.Array], Theta]) -> tuple[str, ...]:
    """Returns names of weights, which must be matrices.

    Args:
      name: of the parameter, for messages.
      weights: given, each "<layer>/<weight>".
      init: draws theta, of which the shapes alone are looked at.

    Raises:
      ValueError: theta has no such weight, or it is no matrix.
    """
    if not weights:
        return ()
    shapes = {
        f"{layer}/{weight}": leaf.shape
        for layer, of in jax.eval_shape(init, jax.random.PRNGKey(0)).items()
        for weight, leaf in of.items()
    }
    for weight in weights:
        shape = shapes[errors.check_name(f"weight in {name}", weight, shapes)]
        if len(shape) != 2:
            matrices = ", ".join(one for one, of in shapes.items() if len(of) == 2)
            raise ValueError(
                f"{name} = {tuple(weights)}: {weight!r} has the shape {shape}, and matrices alone "
                f"have a spectral norm. Choose of {matrices}."
            )
    return tuple(weights)


def normalized(theta: Theta, weights: Sequence[str]) -> Theta:
    """Theta with the named matrices divided by their largest singular values; zeros stay zeros."""
    layers = {layer: dict(of) for layer, of in theta.items()}
    for name in weights:
        layer, weight = name.split("/")
        matrix = theta[layer][weight]
        norm = jnp.linalg.norm(matrix, ord=2)
        layers[layer][weight] = matrix / jnp.where(norm > 0, norm, 1)
    return layers

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regularized_lopt import errors, regularizers, tasks


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda: tasks.get("ImageMLP_Mnist_20_Relo"), "'ImageMLP_Mnist_20_Relu'"),
        (lambda: tasks.get("conv_mnist"), "'Conv_Mnist_16x32'"),
        (lambda: regularizers.get("samm"), "'sam'"),
    ],
)
def test_unknown_names_get_the_nearest_one_on_one_line(call, nearest):
    with pytest.raises(errors.UnknownNameError, match=nearest) as error:
        call()
    assert "\n" not in str(error.value)


def test_get_refuses_what_is_neither_name_nor_regularizer():
    with pytest.raises(TypeError, match="is a name"):
        regularizers.get(3)


@pytest.mark.parametrize("make", [regularizers.SAM, regularizers.ASAM, regularizers.GAM])
def test_ranges_are_not_asked_of_traced_numbers(make):
    """Radius and weight as arguments of a compiled program: the same value and gradient."""

    def both(rho, weight):
        regularizer = make(rho=rho, weight=weight)
        point = jnp.arange(1.0, 4.0)
        _, grad = regularizer.value_and_grad(lambda w: jnp.sum(w**4), point)
        return regularizer.value(lambda w: jnp.sum(w**4), point), grad

    for found, expected in zip(jax.jit(both)(0.1, 0.5), both(0.1, 0.5), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_counts_that_are_traced_are_refused():
    with pytest.raises(ValueError, match=r"n is traced.*static_args"):
        jax.jit(lambda n: errors.check_count("n", n))(3)

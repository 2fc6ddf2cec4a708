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


@pytest.mark.parametrize("value", [2.5, "3", None, float("nan"), np.float32(3.0), [3]])
def test_a_count_is_whole(value):
    with pytest.raises(ValueError, match=r"n = .*: it must be a whole number from 1 to"):
        errors.check_count("n", value)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), jnp.asarray(3)])
def test_integers_of_any_kind_are_counts(value):
    errors.check_count("n", value, 3, 3)


@pytest.mark.parametrize("value", ["1", None, [1.0], np.ones(2), 1j])
@pytest.mark.parametrize(
    "check",
    [
        errors.check_positive,
        errors.check_not_negative,
        errors.check_std,
        lambda name, value: errors.check_in(name, value, "[0, 2]"),
    ],
)
def test_what_is_no_number_is_in_no_range(check, value):
    with pytest.raises(ValueError, match=r"x = .*: it must be"):
        check("x", value)


@pytest.mark.parametrize("std", [1e-30, 1e-20, 1e20, 1e38])
def test_a_deviation_whose_square_is_lost_in_float32_is_refused(std):
    with np.errstate(over="ignore", under="ignore"):
        square = 2 * np.float32(std) ** 2
    assert not np.finfo(np.float32).tiny <= square < np.inf
    with pytest.raises(ValueError, match=r"so that float32 has its square"):
        errors.check_std("std", std)
    errors.check_std("std", 1e-18)
    errors.check_std("std", 1e18)

"""All regularizers: off, on, and as a user adds one."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_regularizers import ANISOTROPIC, POINT, assert_trees, quadratic, wiggly

from regularized_lopt import regularizers

pytestmark = pytest.mark.usefixtures("x64")


def test_none_is_plain():
    none = regularizers.get("none")
    value, grad = none.value_and_grad(quadratic, jnp.asarray(POINT))
    np.testing.assert_array_equal(grad, jax.grad(quadratic)(jnp.asarray(POINT)))
    assert float(none.value(quadratic, jnp.asarray(POINT))) == float(value)


# The whole set. `PLAIN` are parameters at which each is no regularizer at all.

KEY = jax.random.PRNGKey(3)
PLAIN = {
    "sam": {"rho": 0.0},
    "asam": {"rho": 0.0},
    "gsam": {"rho": 0.0},
    "gam": {"rho": 0.0, "r": 0.0},
    "hessian_trace": {"strength": 0.0},
    "hessian_top": {"strength": 0.0},
    "hessian_frobenius": {"strength": 0.0},
    "l2": {"strength": 0.0},
    "orthogonal": {"strength": 0.0},
}
ALL = sorted(PLAIN)


def tree_of(dtype):
    return {
        "w": jnp.asarray([[1.0, -0.5], [0.25, 2.0]], dtype),
        "b": jnp.asarray(0.5, dtype),
        "empty": jnp.zeros((0,), dtype),
    }


def smooth(tree):
    """A loss on `tree_of`, not quadratic."""
    return jnp.sum(jnp.sin(tree["w"]) ** 2 * tree["b"]) + tree["b"] ** 4 + jnp.sum(tree["empty"])


def test_the_set_is_complete():
    assert set(regularizers.names()) >= {"none", *ALL}


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_plain_where_it_should_be(name, dtype):
    point = tree_of(dtype)
    value, grad = jax.value_and_grad(smooth)(point)
    for off in ({"weight": 0.0}, PLAIN[name]):
        regularizer = regularizers.get(name, **off)
        ours, our_grad = regularizer.value_and_grad(smooth, point, key=KEY)
        assert_trees((ours, our_grad), (value, grad))
        assert_trees(regularizer.value(smooth, point, key=KEY), value)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_scheduled_to_zero_is_plain_too(name, dtype):
    """Where 0 is only known as the program runs: the same numbers, up to rounding."""
    tolerance = {jnp.float64: 1e-12, jnp.float32: 1e-5, jnp.bfloat16: 2e-2}[dtype]
    point = tree_of(dtype)
    zero = {parameter: lambda step: 0.0 * step for parameter in PLAIN[name]}
    _, grad = jax.jit(
        lambda point, step: regularizers.get(name, **zero).value_and_grad(
            smooth, point, key=KEY, step=step
        )
    )(point, jnp.asarray(3.0))
    assert_trees(grad, jax.grad(smooth)(point), rtol=tolerance, atol=tolerance)
    _, grad = regularizers.get(name, weight=lambda step: 0.0 * step).value_and_grad(
        smooth, point, key=KEY, step=jnp.asarray(3.0)
    )
    assert_trees(grad, jax.grad(smooth)(point))


@pytest.mark.smoke
@pytest.mark.parametrize("name", ALL)
def test_acts_and_keeps_structure_and_dtypes(name):
    for dtype in (jnp.float64, jnp.float32, jnp.bfloat16):
        point = tree_of(dtype)
        regularizer = regularizers.get(name)
        _, grad = regularizer.value_and_grad(smooth, point, key=KEY)
        plain = jax.grad(smooth)(point)
        assert jax.tree.structure(grad) == jax.tree.structure(point)
        assert jax.tree.map(jnp.shape, grad) == jax.tree.map(jnp.shape, point)
        assert [x.dtype for x in jax.tree.leaves(grad)] == [dtype] * 3
        assert all(np.all(np.isfinite(np.asarray(x, float))) for x in jax.tree.leaves(grad))
        if dtype == jnp.float64:
            assert not np.allclose(grad["w"], plain["w"], rtol=1e-7)
            assert float(regularizer.value(smooth, point, key=KEY)) != float(smooth(point))


@pytest.mark.parametrize(
    "name", ["sam", "asam", "hessian_trace", "hessian_top", "l2", "orthogonal"]
)
def test_the_gradient_is_that_of_the_value(name):
    """Where the two forms are the same objective, autodiff of one gives the other."""
    point = tree_of(jnp.float64)
    regularizer = regularizers.get(name)
    _, grad = regularizer.value_and_grad(smooth, point, key=KEY)
    assert_trees(grad, jax.grad(lambda p: regularizer.value(smooth, p, key=KEY))(point), rtol=1e-9)


def test_the_frobenius_gradient_is_that_of_the_value():
    point = tree_of(jnp.float64)
    regularizer = regularizers.HessianFrobenius(0.3)
    _, grad = regularizer.value_and_grad(smooth, point, key=KEY)
    assert_trees(grad, jax.grad(lambda p: regularizer.value(smooth, p, key=KEY))(point), rtol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_zero_gradients_and_non_finite_losses(name):
    """A stationary point: finite. A loss that is NaN: the gradient says so, nothing hides it."""
    regularizer = regularizers.get(name)
    _, grad = regularizer.value_and_grad(
        lambda p: jnp.sum(p["w"] ** 4), {"w": jnp.zeros(3)}, key=KEY
    )
    assert np.all(np.isfinite(grad["w"]))
    _, grad = regularizer.value_and_grad(
        lambda p: jnp.sum(jnp.sqrt(p["w"])), {"w": -jnp.ones(3)}, key=KEY
    )
    assert not np.any(np.isfinite(grad["w"]))


def test_a_user_s_function_is_a_regularizer_in_both_spaces():
    @regularizers.register("ball_mean")
    def ball_mean(loss_fn, point, *, key, step, deviation=0.1):
        del step
        noise = deviation * jax.random.normal(key, point["w"].shape)
        return loss_fn({**point, "w": point["w"] + noise})

    gin.clear_config()
    gin.parse_config("ball_mean.deviation = 0.3")
    point = jax.tree.map(jnp.asarray, ANISOTROPIC)
    mine = regularizers.get("ball_mean")
    noisy = {**point, "w": point["w"] + 0.3 * jax.random.normal(KEY, (3,))}
    (value, aux), grad = mine.value_and_grad(
        lambda p: (wiggly(p), p["b"]), point, key=KEY, has_aux=True
    )
    assert_trees(grad, jax.grad(wiggly)(noisy), rtol=1e-12)
    assert float(value) == float(wiggly(point))
    assert float(aux) == 0.7
    np.testing.assert_allclose(mine.value(wiggly, point, key=KEY), wiggly(noisy), rtol=1e-12)
    total = regularizers.Sum([(1.0, "ball_mean"), (1.0, "l2")])
    assert np.all(np.isfinite(total.value_and_grad(wiggly, point, key=KEY)[1]["w"]))
    with pytest.raises(ValueError, match="'sam' is a regularizer of regularized_lopt"):
        regularizers.register("sam")
    with pytest.raises(ValueError, match=r"a function of \(loss_fn, point, \*, key, step\)"):
        regularizers.register("wrong")(lambda loss_fn: loss_fn)


@pytest.mark.parametrize("name", ["hessian_trace", "hessian_top", "hessian_frobenius"])
def test_regularizers_that_sample_need_a_key(name):
    with pytest.raises(ValueError, match="pass key="):
        regularizers.get(name).value(quadratic, jnp.asarray(POINT))


def test_refusals_name_the_parameter_and_its_range():
    for make, message in (
        (lambda: regularizers.GAM(form="hpv"), "Did you mean 'hvp'"),
        (lambda: regularizers.GAM(beta_0=2), r"GAM.beta_0 = 2: it must be in \[0, 1\]"),
        (lambda: regularizers.ASAM(eta=0), r"ASAM.eta = 0"),
        (lambda: regularizers.HessianTrace(num_probes=0), r"HessianTrace.num_probes = 0"),
        (lambda: regularizers.Sum([]), r"Sum.terms is empty"),
        (lambda: regularizers.Sum([(-1, "sam")]), r"Sum.terms = -1"),
        (lambda: regularizers.get("hesian_trace"), "Did you mean 'hessian_trace'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import regularizers

A = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])
POINT = np.array([1.0, -2.0, 0.5])
ANISOTROPIC = {"w": POINT, "b": np.array(0.7)}


def quadratic(x):
    return 0.5 * x @ A @ x


def wiggly(tree):
    """Not quadratic, several leaves."""
    return jnp.sum(jnp.sin(tree["w"]) ** 2) + jnp.exp(tree["b"]) * jnp.sum(tree["w"] ** 3)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.smoke
def test_sam_on_a_quadratic_is_its_closed_form():
    rho = 0.3
    g = A @ POINT
    value, grad = regularizers.SAM(rho).value_and_grad(quadratic, jnp.asarray(POINT))
    np.testing.assert_allclose(grad, A @ (POINT + rho * g / np.linalg.norm(g)), rtol=1e-12)
    np.testing.assert_allclose(value, 0.5 * POINT @ A @ POINT, rtol=1e-12)  # The PLAIN value.
    perturbed = POINT + rho * g / np.linalg.norm(g)
    np.testing.assert_allclose(
        regularizers.SAM(rho).value(quadratic, jnp.asarray(POINT)),
        0.5 * perturbed @ A @ perturbed,
        rtol=1e-12,
    )


@pytest.mark.smoke
def test_sam_agrees_with_optax():
    rho, rate = 0.1, 0.5
    transformation = optax.contrib.sam(
        optax.sgd(rate),
        optax.chain(optax.contrib.normalize(), optax.sgd(rho)),
        sync_period=2,
        opaque_mode=True,
    )
    params = jax.tree.map(jnp.asarray, ANISOTROPIC)
    state = transformation.init(params)
    grad_fn = jax.grad(wiggly)
    updates, _ = transformation.update(
        grad_fn(params), state, params, grad_fn=lambda p, _: grad_fn(p)
    )
    _, ours = regularizers.SAM(rho).value_and_grad(wiggly, params)
    for theirs, mine in zip(jax.tree.leaves(updates), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(theirs, -rate * mine, rtol=1e-10)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, 2.5])
def test_weight_scales_the_correction(weight):
    point = jax.tree.map(jnp.asarray, ANISOTROPIC)
    plain = jax.grad(wiggly)(point)
    _, full = regularizers.SAM(0.2).value_and_grad(wiggly, point)
    _, mixed = regularizers.SAM(0.2, weight=weight).value_and_grad(wiggly, point)
    for g, r, m in zip(*map(jax.tree.leaves, (plain, full, mixed)), strict=True):
        np.testing.assert_allclose(m, g + weight * (r - g), rtol=1e-12)
        if weight == 0:
            np.testing.assert_array_equal(m, g)
        if weight == 1:
            np.testing.assert_array_equal(m, r)


@pytest.mark.parametrize("weight", [0.4, 1.0])
def test_the_value_s_derivative_is_that_at_a_fixed_perturbation(weight):
    """In optimizee space autodiff carries the value to theta; e is a constant in it."""
    sam = regularizers.SAM(0.2, weight=weight)
    base = jax.tree.map(jnp.asarray, ANISOTROPIC)

    def through(scale):
        return sam.value(wiggly, jax.tree.map(lambda leaf: scale * leaf, base))

    g = jax.grad(wiggly)(base)
    norm = float(optax.tree.norm(g))
    e = jax.tree.map(lambda leaf: 0.2 * leaf / norm, g)

    def frozen(scale):
        at = jax.tree.map(lambda leaf: scale * leaf, base)
        shifted = jax.tree.map(jnp.add, at, e)
        return (1 - weight) * wiggly(at) + weight * wiggly(shifted)

    h = 1e-6
    finite_difference = (frozen(1 + h) - frozen(1 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(through)(1.0), finite_difference, rtol=1e-7)


def test_a_zero_gradient_gives_no_perturbation_and_no_nan():
    value, grad = regularizers.SAM(0.1).value_and_grad(quadratic, jnp.zeros(3))
    np.testing.assert_array_equal(grad, np.zeros(3))
    assert float(regularizers.SAM(0.1).value(quadratic, jnp.zeros(3))) == value == 0.0


def test_aux_is_that_of_the_unperturbed_pass():
    def with_aux(x):
        return quadratic(x), x

    (value, aux), _ = regularizers.SAM(0.1).value_and_grad(
        with_aux, jnp.asarray(POINT), has_aux=True
    )
    np.testing.assert_array_equal(aux, POINT)
    assert float(value) == pytest.approx(0.5 * POINT @ A @ POINT)


@settings(max_examples=40)
@given(
    st.floats(0, 3),
    st.lists(st.floats(-5, 5), min_size=1, max_size=6).filter(lambda x: np.linalg.norm(x) > 1e-3),
)
def test_the_perturbation_has_norm_rho(rho, coordinates):
    point = jnp.asarray(np.array(coordinates))
    seen = []

    def grad_fn(at):
        seen.append(np.asarray(at))
        return at

    query = regularizers.Query(regularizers.Objective(grad_fn), point, point)
    regularizers.SAM(rho).gradient(query)
    if rho == 0:
        assert not seen  # rho = 0 is plain, and costs no second gradient.
    else:
        assert np.linalg.norm(seen[0] - np.asarray(point)) == pytest.approx(rho, rel=1e-9)


def test_none_is_plain():
    none = regularizers.get("none")
    value, grad = none.value_and_grad(quadratic, jnp.asarray(POINT))
    np.testing.assert_array_equal(grad, jax.grad(quadratic)(jnp.asarray(POINT)))
    assert float(none.value(quadratic, jnp.asarray(POINT))) == float(value)


def test_refuses_negative_parameters():
    with pytest.raises(ValueError, match=r"SAM.rho = -0.1: it must be 0 or greater"):
        regularizers.SAM(-0.1)
    with pytest.raises(ValueError, match=r"SAM.weight = -1"):
        regularizers.SAM(weight=-1)


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


def assert_trees(ours, theirs, **kwargs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), **(kwargs or {"rtol": 0})
        )


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


@pytest.mark.parametrize("name", ["sam", "asam", "hessian_trace", "hessian_top", "l2"])
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


@settings(max_examples=25)
@given(st.floats(0, 2), st.integers(0, 2**31 - 1))
def test_asam_against_numpy(rho, seed):
    rng = np.random.default_rng(seed)
    m = rng.normal(size=(4, 4))
    a, w = m @ m.T, rng.normal(size=4)
    t = np.abs(w) + 0.01
    g = a @ w
    e = rho * t**2 * g / np.linalg.norm(t * g)
    _, grad = regularizers.ASAM(rho).value_and_grad(lambda x: 0.5 * x @ a @ x, jnp.asarray(w))
    np.testing.assert_allclose(grad, a @ (w + e), rtol=1e-9, atol=1e-12)


@settings(max_examples=25)
@given(st.floats(0.01, 2), st.floats(0, 2), st.integers(0, 2**31 - 1))
def test_gsam_adds_only_what_is_orthogonal_to_g_p(rho, alpha, seed):
    rng = np.random.default_rng(seed)
    m = rng.normal(size=(4, 4))
    a, w = m @ m.T, rng.normal(size=4)

    def loss(x):
        return 0.5 * x @ a @ x

    g = a @ w
    g_p = a @ (w + rho * g / np.linalg.norm(g))
    _, grad = regularizers.GSAM(rho, alpha).value_and_grad(loss, jnp.asarray(w))
    added = np.asarray(grad) - g_p
    assert abs(added @ g_p) <= 1e-6 * np.linalg.norm(g_p) * np.linalg.norm(g)
    # What is removed lies in the plane of g and g_p: alpha of g's part across g_p.
    np.testing.assert_allclose(
        added, -alpha * (g - (g @ g_p) / (g_p @ g_p) * g_p), rtol=1e-7, atol=1e-9
    )


def test_the_surrogate_gap_to_second_order():
    """On a quadratic, L(w + e) - L(w) = rho ||g|| + rho^2 / 2 g'Ag / ||g||^2 exactly."""
    rho, alpha, w = 0.2, 0.7, jnp.asarray(POINT)
    g = A @ POINT
    gap = rho * np.linalg.norm(g) + rho**2 / 2 * (g @ A @ g) / (g @ g)
    value = regularizers.GSAM(rho, alpha).value(quadratic, w)
    np.testing.assert_allclose(value, quadratic(w) + (1 + alpha) * gap, rtol=1e-10)


def test_a_sum_is_the_sum_of_the_corrections_and_evaluates_the_gradient_once():
    point = jax.tree.map(jnp.asarray, ANISOTROPIC)
    calls = []

    def counted(at):
        jax.debug.callback(lambda: calls.append(0))
        return wiggly(at)

    terms = [(0.5, "sam"), (2.0, regularizers.L2(0.1)), (1.0, regularizers.ASAM(0.3))]
    _, total = regularizers.Sum(terms).value_and_grad(counted, point)
    jax.block_until_ready(total)
    jax.effects_barrier()
    assert len(calls) == 3  # At the point, and once each for SAM and ASAM.
    plain = jax.grad(wiggly)(point)
    expected = plain
    for weight, term in terms:
        _, grad = regularizers.get(term).value_and_grad(wiggly, point)
        expected = jax.tree.map(lambda e, g, p, w=weight: e + w * (g - p), expected, grad, plain)
    assert_trees(total, expected, rtol=1e-12)
    value = regularizers.Sum(terms).value(wiggly, point)
    parts = [w * (regularizers.get(t).value(wiggly, point) - wiggly(point)) for w, t in terms]
    np.testing.assert_allclose(value, wiggly(point) + sum(parts), rtol=1e-12)


def test_additive_sums_are_eq_21_read_literally():
    point = jax.tree.map(jnp.asarray, ANISOTROPIC)
    (plain, plain_grad), (sam, sam_grad) = (
        (r.value(wiggly, point), r.value_and_grad(wiggly, point)[1])
        for r in (regularizers.get("none"), regularizers.get("sam"))
    )
    total = regularizers.Sum([(0.3, "sam")], mode="additive")
    np.testing.assert_allclose(total.value(wiggly, point), plain + 0.3 * sam, rtol=1e-12)
    expected = jax.tree.map(lambda g, r: g + 0.3 * r, plain_grad, sam_grad)
    assert_trees(total.value_and_grad(wiggly, point)[1], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="Did you mean 'additive'"):
        regularizers.Sum([(1.0, "sam")], mode="addition")


def test_schedules_are_read_at_the_outer_step():
    point = jax.tree.map(jnp.asarray, ANISOTROPIC)
    sam = regularizers.SAM(optax.linear_schedule(0.1, 0.3, 10))
    _, scheduled = jax.jit(lambda s: sam.value_and_grad(wiggly, point, step=s))(jnp.asarray(5))
    _, constant = regularizers.SAM(0.2).value_and_grad(wiggly, point)
    assert_trees(scheduled, constant, rtol=1e-6)  # optax computes in float32.
    rate = optax.cosine_decay_schedule(1e-3, 100, 0.1)
    rho = regularizers.proportional_schedule(0.05, 0.25, rate, 100)
    np.testing.assert_allclose([rho(0), rho(100)], [0.25, 0.05], rtol=1e-5)
    share = (rate(30) - rate(100)) / (rate(0) - rate(100))
    np.testing.assert_allclose(rho(30), 0.05 + 0.2 * share, rtol=1e-5)
    constant = regularizers.proportional_schedule(0.1, 0.4, optax.constant_schedule(1.0), 10)
    assert constant(3) == 0.4  # As the authors have it: the maximum.


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

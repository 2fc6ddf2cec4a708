"""The noisy quadratic problem: closed forms, the theorem and the lemmas, Figures 1 and 2."""

import csv
import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt.measure import noisy_quadratic as nq
from regularized_lopt.measure.noisy_quadratic import meta_training, stability
from regularized_lopt.measure.noisy_quadratic.meta_gradient import Variance, draw
from regularized_lopt.measure.noisy_quadratic.problem import spectral_radius
from regularized_lopt.measure.optimizers import OptaxBaseline
from regularized_lopt.report import markdown
from regularized_lopt.report import noisy_quadratic as report
from regularized_lopt.report.noisy_quadratic import claims
from regularized_lopt.report.sections import Claims

pytestmark = pytest.mark.usefixtures("x64")
PROBLEM = nq.NoisyQuadratic()
NOMINAL, P = 0.2, np.array([[0.1, -0.3], [0.05, 0.4]])
KEY = jax.random.PRNGKey(3)


def test_the_losses_are_those_of_a_loop_that_takes_gradients():
    (start,), (noise,) = draw(PROBLEM, KEY, 1, 5)

    def loss(params, xi):
        return (params - xi) @ PROBLEM.H @ (params - xi) / 2

    params, expected = start, []
    for before, now in itertools.pairwise(noise):
        grad = jax.grad(loss)(params, before)
        params = params - (NOMINAL * grad + P @ grad)
        expected.append(loss(params, now))
    found = PROBLEM.sampled_losses(PROBLEM.dynamics(NOMINAL, P), start, noise)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("start", [None, np.array([2.0, -3.0])])
def test_the_closed_form_is_the_mean_of_trajectories_and_not_twice_that(start):
    dynamics, count = PROBLEM.dynamics(NOMINAL, P), 20_000
    starts, noise = draw(PROBLEM, KEY, count, 6)
    starts = starts if start is None else jnp.broadcast_to(start, starts.shape)
    losses = jax.jit(jax.vmap(PROBLEM.sampled_losses, (None, 0, 0)))(dynamics, starts, noise)
    error = losses.std(axis=0) / math.sqrt(count)
    closed = PROBLEM.expected_losses(dynamics, 6, start)
    assert np.all(np.abs(losses.mean(axis=0) - closed) < 4 * error)
    assert np.all(np.abs(losses.mean(axis=0) - 2 * closed) > 40 * error)


def test_gradients_are_those_of_finite_differences():
    (start,), (noise,) = draw(PROBLEM, KEY, 1, 8)

    def sampled(black_box):
        dynamics = PROBLEM.dynamics(NOMINAL, black_box)
        return PROBLEM.sampled_losses(dynamics, start, noise).mean()

    for loss in (sampled, lambda black_box: PROBLEM.meta_loss(NOMINAL, black_box, 8)):
        steps = 1e-5 * np.eye(4).reshape(4, 2, 2)
        differences = [(loss(P + step) - loss(P - step)) / 2e-5 for step in steps]
        np.testing.assert_allclose(jax.grad(loss)(P).ravel(), differences, rtol=1e-7)


def test_a_nominal_step_is_a_shift_of_the_black_box():
    shifted = P + NOMINAL * np.eye(2)
    np.testing.assert_allclose(
        PROBLEM.meta_loss(NOMINAL, P, 20), PROBLEM.meta_loss(0.0, shifted, 20), rtol=1e-12
    )


@st.composite
def problems(draw_):
    """Of 1 to 4 params, with eigenvalues of H between 0.01 and 100."""
    n = draw_(st.integers(1, 4))
    rng = np.random.default_rng(draw_(st.integers(0, 2**32 - 1)))
    hessian = stability.with_eigenvalues(rng, np.exp(rng.uniform(-4.6, 4.6, n)), "orthogonal")
    return nq.NoisyQuadratic(((hessian + hessian.T) / 2).tolist()), rng


def eigenvalues_between(rng, low, high, n):
    """Some at the ends, where the statements are tight."""
    return np.clip(rng.uniform(1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low, n), low, high)


@settings(max_examples=60)
@given(problems(), st.floats(0, 1), st.booleans())
def test_a_symmetric_black_box_within_the_bounds_is_stable(drawn, share, preconditioned):
    """Theorem 1, and with the preconditioner Lemma 2."""
    problem, rng = drawn
    nominal = stability.nominal_step(problem, share, preconditioned)
    ends = stability.bounds(problem, nominal, preconditioned)
    values = eigenvalues_between(rng, *ends, problem.size)
    black_box = stability.with_eigenvalues(rng, values, "orthogonal")
    dynamics = problem.dynamics(nominal, black_box, preconditioned)
    assert spectral_radius(dynamics) <= 1 + 1e-7


@settings(max_examples=60)
@given(problems(), st.floats(0.01, 0.99), st.floats(0.1, 10), st.integers(0, 4))
def test_commuting_symmetric_factors_within_the_bounds_are_stable(drawn, share, largest, split):
    """Lemma 3: P~ is made of symmetric blocks, on each of which D is a constant."""
    problem, rng = drawn
    nominal = stability.nominal_step(problem, share)
    ends = stability.bounds(problem, nominal, scale=largest)
    n, split = problem.size, min(split, problem.size)
    inner, factor = np.zeros((n, n)), np.zeros((n, n))
    for block in (slice(0, split), slice(split, n)):
        size = block.stop - block.start
        values = eigenvalues_between(rng, *ends, size)
        inner[block, block] = stability.with_eigenvalues(rng, values, "orthogonal")
        factor[block, block] = largest * (1 - rng.random()) * np.eye(size)
    np.testing.assert_allclose(factor @ inner, inner @ factor, atol=1e-12)
    assert spectral_radius(problem.dynamics(nominal, factor @ inner)) <= 1 + 1e-7


def test_commuting_factors_are_not_enough_without_symmetry():
    """A counterexample to Lemma 3: D = 2 I is diagonal together with any P~ that can be."""
    nominal, largest = stability.nominal_step(PROBLEM, 0.5), 2.0
    factor, inner = largest * np.eye(2), np.array([[0.0, 1.5], [0.0, 0.05]])
    np.testing.assert_array_equal(factor @ inner, inner @ factor)
    low, high = stability.bounds(PROBLEM, nominal, scale=largest)
    assert np.all((low < np.array([0.0, 0.05])) & (np.array([0.0, 0.05]) < high))
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(inner)), [0.0, 0.05])
    found = spectral_radius(PROBLEM.dynamics(nominal, factor @ inner))
    assert found == pytest.approx(1.888, abs=1e-3)


def test_factors_are_what_their_kinds_say():
    rng, kinds = np.random.default_rng(0), {}
    values = rng.uniform(-1, 1, (100, 3))
    for kind, ways in stability.FACTORS.items():
        scales, inner = stability.factors(rng, values, 2.0, ways)
        assert 0 < scales.min() < scales.max() <= 2
        np.testing.assert_allclose(
            np.sort(np.linalg.eigvals(inner)), np.sort(values), rtol=1e-6, atol=1e-6
        )
        other, constant = inner.swapaxes(-1, -2), np.ptp(scales, axis=-1) == 0
        diagonal = np.all(inner * (1 - np.eye(3)) == 0, axis=(-2, -1))
        symmetric = np.isclose(inner, other, rtol=0, atol=1e-9).all(axis=(-2, -1))
        forth, back = scales[..., None] * inner, inner * scales[:, None]
        commuting = np.isclose(forth, back, rtol=0, atol=1e-9).all(axis=(-2, -1))
        shares = (commuting, symmetric, constant, diagonal)
        kinds[kind] = [float(share.mean()) for share in shares]
    assert list(kinds) == [
        "commuting D and symmetric P~",
        "D = d I, other P~, eigenvalues real",
        "symmetric P~, not commuting",
        "other P~, not commuting, eigenvalues real",
    ]
    assert list(kinds.values()) == [[1, 1, 0.5, 0.5], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_elsewhere_the_statements_fail_and_the_examples_show_it():
    what = nq.Stability(num_samples=10_000)
    tried = nq.try_statements(PROBLEM, what)
    assert [one.unstable > 0 for one in tried] == [not one.claimed for one in tried]
    lemma_3 = {one.kind: one for one in tried if one.statement == "Lemma 3"}
    assert [kind for kind, one in lemma_3.items() if one.claimed] == [stability.COMMUTING]
    assert lemma_3["D = d I, other P~, eigenvalues real"].unstable > 0.05
    for one in tried:
        if one.example is None:
            continue
        root = one.statement == "Lemma 2"
        found = spectral_radius(PROBLEM.dynamics(one.nominal, one.example, root))
        assert found == pytest.approx(one.example_radius)
        assert found > 1
        if one.statement != "Lemma 3":  # Its bounds are of a factor of P.
            values = np.linalg.eigvals(one.example)
            low, high = stability.bounds(PROBLEM, one.nominal, root)
            assert np.isrealobj(values)
            assert low <= values.min()
            assert values.max() <= high


def test_the_preconditioner_may_stand_on_either_side():
    inverse = np.linalg.inv(PROBLEM.root)
    before = np.eye(2) - inverse @ (NOMINAL * np.eye(2) + P) @ PROBLEM.H
    after = PROBLEM.dynamics(NOMINAL, P, preconditioned=True)
    np.testing.assert_allclose(
        np.sort_complex(np.linalg.eigvals(before)), np.sort_complex(np.linalg.eigvals(after))
    )


def test_maps_differ_as_the_changes_say():
    what = nq.Stability(num_samples=50, decay=0.25)
    maps = nq.eigenvalue_maps(PROBLEM, what)
    nothing = np.sort_complex(1 - maps["nothing"])  # Of P H.
    np.testing.assert_allclose(np.sort_complex(1 - maps["decay"]), 0.25 * nothing)
    still = nq.eigenvalue_maps(PROBLEM, nq.Stability(num_samples=3, decay=0.0))["all three"]
    nominal = 0.5 * 2 / PROBLEM.largest(preconditioned=True)
    expected = 1 - nominal * np.sqrt(np.linalg.eigvalsh(PROBLEM.H))[::-1]
    np.testing.assert_allclose(np.sort(still.real)[0], expected, rtol=1e-12)


def test_the_variance_is_that_of_one_gradient_after_the_other():
    what = nq.GradientVariance(num_nominals=2, horizons=(1, 4), num_seeds=3, seed=5)
    shown = []
    found = nq.gradient_variance(PROBLEM, what, lambda: shown.append(1))
    assert len(shown) == 2
    np.testing.assert_allclose(found.nominals, [0, 2 / PROBLEM.largest()])
    starts, noise = draw(PROBLEM, jax.random.PRNGKey(5), 3, 4)
    origin = jnp.zeros((2, 2))
    for j, horizon in enumerate((1, 4)):

        @jax.jit
        @jax.grad
        def sampled(black_box, nominal, start, xi):
            return PROBLEM.sampled_losses(PROBLEM.dynamics(nominal, black_box), start, xi).mean()

        expected = jax.jit(jax.grad(lambda P, a, T=horizon: PROBLEM.meta_loss(a, P, T)))
        for i, nominal in enumerate(found.nominals):
            each = [sampled(origin, nominal, starts[k], noise[k, : horizon + 1]) for k in range(3)]
            assert found.trace[i, j] == pytest.approx(np.var(each, axis=0, ddof=1).sum())
            assert found.signal[i, j] == pytest.approx(np.sum(expected(origin, nominal) ** 2))


def test_no_black_box_is_better_than_the_best():
    step, lowest = meta_training.best(PROBLEM, 10)
    grad = jax.grad(lambda M: PROBLEM.meta_loss(0.0, M, 10))(step)
    assert np.abs(grad).max() < 1e-4
    near = step + 0.1 * np.random.default_rng(0).standard_normal((50, 2, 2))
    assert jax.vmap(lambda M: PROBLEM.meta_loss(0.0, M, 10))(near).min() > lowest


SMALL = nq.MetaTraining(
    nominals=(0.0, 0.4), horizon=10, num_seeds=3, num_steps=60, learning_rate=0.03, ema=0.5
)


@pytest.fixture(scope="module")
def trained():
    with jax.enable_x64(True):
        return nq.meta_train(PROBLEM, SMALL)


def test_meta_training_lowers_the_meta_loss(trained):
    assert trained.nominals[1] == pytest.approx(0.4 * PROBLEM.largest() / 2)
    start, end = trained.expected[0, :, 0], trained.expected[0, :, -1]
    assert np.all(end < start)
    assert np.all(trained.expected >= trained.optimum)
    np.testing.assert_allclose(np.abs(trained.eigenvalues).max(axis=-1), trained.radius)


def test_a_shift_of_the_start_is_all_that_a_nominal_step_does(trained):
    """The same noise meets the same P + aI, so that runs differ by where they start."""
    again = nq.meta_train(PROBLEM, nq.MetaTraining(**{**vars(SMALL), "nominals": (0.4,)}))
    np.testing.assert_allclose(again.expected[0], trained.expected[1], rtol=1e-9)
    assert again.optimum == trained.optimum


def test_the_average_has_no_bias_towards_zero():
    found = meta_training._average(jnp.array([2.0, 2.0, 8.0]), 0.5)
    np.testing.assert_allclose(found, [2, 2, 2 * 3 / 7 + 8 * 4 / 7])


def test_the_page_has_what_was_found(trained, tmp_path):
    variance = nq.GradientVariance(num_nominals=5, horizons=(1, 10, 50), num_seeds=20)
    what = nq.Stability(num_samples=10_000)
    linearization = nq.Linearization(warmup=3, num_states=1, num_draws=4, horizon=2)
    sgd = nq.linearize(OptaxBaseline("SGD", optax.sgd(0.1)), PROBLEM, linearization)
    found = report.Results(
        PROBLEM,
        nq.eigenvalue_maps(PROBLEM, what),
        nq.try_statements(PROBLEM, what),
        nq.gradient_variance(PROBLEM, variance),
        trained,
        linearization,
        {"mine": sgd},
    )
    page = report.write(found, tmp_path)
    (checked,) = (part.claims for part in page.parts if isinstance(part, Claims))
    assert checked[0].verdict == "holds for symmetric P alone (10000 of each kind)"
    assert checked[2].verdict.startswith("holds for commuting D and symmetric P~ alone (10000")
    assert "0.00% of 10000 have a spectral radius above 1 (95%: at most 0.03%)" in str(checked[0])
    markdown.write(page, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "Theorem 1, other P, eigenvalues real: P = [" in text
    for name in ("eigenvalues.png", "meta_learning.png", "optimizers.png"):
        assert f"]({name})" in text
        assert (tmp_path / name).stat().st_size > 1000
    with (tmp_path / "variance.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5 * 3
    slow = 1 - 0.1 * np.linalg.eigvalsh(PROBLEM.H)[0]
    assert f"| mine | {slow:.5f} | {slow:.5f} | {slow**2:.5f} | {slow**2:.5f} | 0.0% |" in text


@pytest.mark.parametrize(
    ("trace", "verdict"),
    [
        ([[1e3, 1e4], [1.0, 1.0], [1e3, 1e4]], "holds"),
        ([[10.0, 80.0], [1.0, 1.0], [1e3, 1e4]], "does not hold"),  # Less than a factor of 100.
        ([[10.0, 105.0], [1.0, 1.0], [1e3, 1e4]], "undecided"),  # Within the errors of it.
        ([[10.0, 90.0], [1.0, 1.0], [1e3, 1e4]], "undecided"),
        ([[1e4, 1e3], [1.0, 1.0], [1e3, 1e4]], "does not hold"),  # Falls with the horizon.
        ([[1e3, 1e4], [1.0, 1.0], [1e4, 1e3]], "does not hold"),
        ([[0.5, 1.0], [10.0, 1e3], [1e3, 1e4]], "does not hold"),  # The lowest is at an edge.
        ([[1e3], [1.0], [1e3]], "undecided"),
    ],
)
def test_the_variance_claim_is_about_orders_of_magnitude(trace, verdict):
    trace = np.array(trace)[:, ::-1]  # The longest horizon comes first.
    horizons = np.array([5, 2])[: trace.shape[1]]
    error = np.full_like(trace, 0.05)
    variance = Variance(np.array([0.0, 0.5, 1.25]), horizons, trace, error, trace)
    claim = claims._variance(variance)
    assert claim.verdict == verdict
    first, second = claim.evidence
    assert first.startswith("T = 5: the lowest trace is 1, at a = ")
    low, high = trace[0, -1], trace[0, 0]
    assert f" it goes from {low:.3g} to {high:.3g} at a = 0, and from " in second


def tried(unstable, of, claimed):
    radius = np.where(np.arange(of) < unstable, 1.5, 0.5)
    kind = "symmetric P" if claimed else "other P"
    return stability.Tried("Theorem 1", kind, claimed, 0.7, radius, None, np.nan)


@pytest.mark.parametrize(
    ("true", "other", "of", "verdict"),
    [
        (0, 1, 20_000, "holds for symmetric P alone (20000 of each kind)"),
        (0, 0, 20_000, "holds (20000 of each kind)"),
        (1, 1, 20_000, "does not hold (20000 of each kind)"),
        (0, 0, 500, "undecided (500 of each kind)"),
        (0, 9, 500, "does not hold for other P; undecided for symmetric P (500 of each kind)"),
    ],
)
def test_none_of_a_few_is_no_proof(true, other, of, verdict):
    claim = claims._statement("Theorem 1", [tried(true, of, True), tried(other, of, False)])
    assert claim.verdict == verdict


def test_a_change_is_judged_by_those_that_it_moves():
    """Exact McNemar: 6 of 6 are fewer than 2.5% of the binomial leaves, 5 of 5 are not."""
    before = np.full((20, 1), 1.5)
    maps = {"nothing": before}
    for count in (5, 6):
        maps[str(count)] = np.where(np.arange(20)[:, None] < count, 0.5, before)
    claim = claims._changes(maps)
    assert claim.verdict == "holds for 6; undecided for 5 (20 black boxes)"
    worse = claims._changes({"nothing": maps["6"], "change": before})
    assert worse.verdict == "does not hold (20 black boxes)"
    same = claims._changes({"nothing": before, "change": before})
    assert same.verdict == "undecided (20 black boxes)"


def test_a_hessian_of_another_form_is_refused_with_an_example():
    with pytest.raises(TypeError, match=r"hessian = 3: .* For example \(\(1.11, 0.596\)"):
        nq.NoisyQuadratic(hessian=3)


@pytest.mark.parametrize(
    ("unstable", "verdict"), [(0, "holds"), (1, "does not hold"), (None, "undecided")]
)
def test_meta_training_that_is_once_unstable_is_not_called_stable(trained, unstable, verdict):
    radius = np.full_like(trained.radius, 0.9)
    radius[0] = 1.1
    if unstable is None:
        kept = {name: getattr(trained, name)[:1] for name in ("nominals", "expected")}
        trained = dataclasses.replace(trained, radius=radius[:1], **kept)
    else:
        radius[1].flat[:unstable] = 1.1
        trained = dataclasses.replace(trained, radius=radius)
    assert claims._meta_training(trained).verdict.startswith(f"stability: {verdict};")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nq.NoisyQuadratic(((1.0, 2.0), (2.0, 1.0))), "must be positive definite"),
        (lambda: nq.NoisyQuadratic(((1.0, 0.5), (0.0, 1.0))), "must be symmetric"),
        (lambda: nq.NoisyQuadratic(((1.0, 0.5),)), "must be a square matrix"),
        (lambda: nq.MetaTraining(num_seeds=0), r"num_seeds = 0: it must be a whole number from 2"),
        (lambda: nq.MetaTraining(horizon=0), "MetaTraining.horizon = 0"),
        (lambda: nq.GradientVariance(num_seeds=0), "GradientVariance.num_seeds = 0"),
        (lambda: nq.GradientVariance(horizons=(5, 0)), "horizons: one = 0"),
        (lambda: nq.MetaTraining(sigma=1e-300), "sigma = 1e-300: .* float64 has its square"),
        (lambda: nq.Stability(num_samples=0), "Stability.num_samples = 0"),
        (lambda: PROBLEM.dynamics(0.1, np.eye(3)), r"P is of shape \(3, 3\)"),
        (lambda: nq.NoisyQuadratic(((1e39, 0.0), (0.0, 1.0))), "finite in float32"),
        (lambda: PROBLEM.dynamics(np.ones(3), P), r"a is of shape \(3,\) and P of shape \(2, 2\)"),
        (lambda: PROBLEM.sampled_losses(np.ones(2), np.ones(2), np.ones((4, 2))), r"A is of sha"),
        (lambda: PROBLEM.expected_losses(np.ones(2), 3), r"A is of shape \(2,\): it must be \(2,"),
        (lambda: PROBLEM.meta_loss(np.ones(3), np.ones((3, 2, 2)), 3), r"A is of shape \(3, 2, 2"),
        (lambda: PROBLEM.expected_losses(np.eye(2), 2.5), "horizon = 2.5: it must be a whole"),
        (lambda: PROBLEM.meta_loss(0.1, P, 0), "horizon = 0"),
        (lambda: PROBLEM.expected_losses(np.eye(2), 3, np.ones(3)), r"start is of shape \(3,\)"),
        (
            lambda: PROBLEM.sampled_losses(np.eye(2), np.ones(2), np.ones((4, 3))),
            r"noise of shape \(4, 3\)",
        ),
        (
            lambda: PROBLEM.sampled_losses(np.eye(2), np.ones(2), np.ones((1, 2))),
            "T, the rows of noise less one, = 0",
        ),
    ],
)
def test_what_is_wrong_is_said_on_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    text, _, _ = str(error.value).partition("\n  In call to configurable")  # Gin's, see `launch`.
    assert "\n" not in text

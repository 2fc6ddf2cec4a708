"""What a regularizer is: a correction to a plain gradient, or to a plain value.

A regularizer measures flatness of a loss around a point and pulls the gradient (or the value)
towards flat regions. It knows neither optimizers nor tasks; the same object serves in both spaces:

* meta space: the point is theta and the loss is a whole unroll. `value_and_grad` returns the
  regularized gradient next to the PLAIN value and aux, which come from the unperturbed pass.
* optimizee space: the point is the optimizee's params. `value` returns a flatness-aware loss, which
  is differentiable; perturbations are constants in it.

With D = G_reg - g (or L_reg - L), `weight` w gives g + w D: w = 1 is exactly the regularizer's own
gradient, w = 0 exactly the plain one. Any weight, strength or radius may be a schedule of the outer
step, see `schedules`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from regularized_lopt.regularizers import tree
from regularized_lopt.regularizers.schedules import Scheduled, check, is_one, is_zero, value_at

Point = Any
Scalar = Float[Array, ""]
LossFn = Callable[[Point], Scalar]
GradFn = Callable[[Point], Point]


class Objective(NamedTuple):
    """A loss as a `Query` has it.

    Attributes:
      gradient: the plain gradient at any point.
      value: the loss at any point, or None where only estimates of its gradient exist (ES, PES).
      finite: where False, further passes are skipped and yield zeros. Given one, every pass is a
        computation of its own: only then does XLA let it reuse the memory of the others.
    """

    gradient: GradFn
    value: LossFn | None = None
    finite: jax.Array | None = None

    @classmethod
    def of(cls, loss_fn: LossFn, finite: jax.Array | None = None) -> Objective:
        """The objective of an ordinary differentiable loss."""
        return cls(_skippable(jax.grad(loss_fn), finite), loss_fn, finite)

    def derivative(self, point: Point, *directions: Point) -> Scalar:
        """D^k L(point)[v_1, ..., v_k], by forward mode; needs `value`."""
        assert self.value is not None
        function = self.value
        for v in directions:
            function = _along(function, v)
        return function(point)

    def gradient_of_derivative(self, point: Point, *directions: Point) -> Point:
        """grad_w D^k L(w)[v_1, ..., v_k] at `point`, the directions held fixed; needs `value`.

        Reverse mode over forward: the one reverse pass is then over the fewest operations.
        """
        gradient = jax.grad(lambda where: self.derivative(where, *directions))
        return _skippable(gradient, self.finite)(point)

    def hessian_vector_product(self, point: Point, v: Point) -> Point:
        """H(point) v; needs `value`."""
        return self.gradient_of_derivative(point, v)


@dataclasses.dataclass(frozen=True)
class Query:
    """What a regularizer's gradient is asked for.

    Attributes:
      objective: the plain loss.
      point: where to take it, a pytree.
      grad: the plain gradient there.
      key: randomness for regularizers that sample.
      step: outer step, for schedules.
      other_grad: another estimate of the plain gradient, where gradients are noisy.
    """

    objective: Objective
    point: Point
    grad: Point
    key: Any = None
    step: Any = 0
    other_grad: Point | None = None

    @property
    def ascent(self) -> Point:
        """The gradient that directions of ascent are taken from."""
        return self.grad if self.other_grad is None else self.other_grad


class Regularizer:
    """Base class: no regularizer at all. Subclasses define `gradient` and `regularized_value`."""

    name = "none"

    #: Whether `gradient` does no more than evaluate the plain gradient at other points, so that it
    #: works with estimates of it; otherwise it differentiates `Objective.gradient` or its value.
    first_order = True

    _scope = ""

    def __init__(self, weight: Scheduled = 1.0):
        """Initializer.

        Args:
          weight: w in g + w (G_reg - g), >= 0.
        """
        self.weight = self._not_negative("weight", weight)
        self._scope = gin.current_scope_str()

    @property
    def is_plain(self) -> bool:
        """Whether it is no regularizer at all."""
        return type(self) is Regularizer

    @property
    def scope(self) -> str:
        """Gin's scope that its parameters were read in; "" for none."""
        return self._scope

    def gradient(self, query: Query) -> Point:
        """G_reg, the regularizer's own gradient."""
        return query.grad

    def regularized_value(self, loss_fn: LossFn, point: Point, *, key: Any, step: Any) -> Scalar:
        """L_reg, the flatness-aware loss at `point`."""
        del key, step
        return loss_fn(point)

    def regularized_gradient(self, query: Query) -> Point:
        """g + w (G_reg - g)."""
        if is_zero(self.weight):
            return query.grad
        return mix(query.grad, self.gradient(query), value_at(self.weight, query.step))

    def value_and_grad(
        self,
        loss_fn: Callable[[Point], Any],
        point: Point,
        *,
        key: Any = None,
        step: Any = 0,
        has_aux: bool = False,
    ) -> tuple[Any, Point]:
        """Like `jax.value_and_grad`: the PLAIN value (and aux), but the regularized gradient."""
        value, _, regularized = self.value_and_gradients(
            loss_fn, point, key=key, step=step, has_aux=has_aux
        )
        return value, regularized

    def value_and_gradients(
        self,
        loss_fn: Callable[[Point], Any],
        point: Point,
        *,
        key: Any = None,
        step: Any = 0,
        has_aux: bool = False,
    ) -> tuple[Any, Point, Point]:
        """(PLAIN value (and aux), plain gradient, regularized gradient)."""
        value, grad = jax.value_and_grad(loss_fn, has_aux=has_aux)(point)

        def scalar(where: Point) -> Scalar:
            return loss_fn(where)[0] if has_aux else loss_fn(where)

        finite = jnp.isfinite(tree.norm(grad))

        def regularized() -> Point:
            query = Query(Objective.of(scalar, finite), point, grad, key, step)
            return self.regularized_gradient(query)

        return value, grad, jax.lax.cond(finite, regularized, lambda: grad)

    def value(self, loss_fn: LossFn, point: Point, *, key: Any = None, step: Any = 0) -> Scalar:
        """L + w (L_reg - L); differentiable in `point` and in what `loss_fn` closes over."""
        if is_zero(self.weight):
            return loss_fn(point)
        regularized = self.regularized_value(loss_fn, point, key=key, step=step)
        if is_one(self.weight):
            return regularized
        return mix(loss_fn(point), regularized, value_at(self.weight, step))

    def describe(self) -> dict[str, Any]:
        """Name and parameters, for records of experiments (JSON-serializable)."""
        return {"name": self.name, **describe(vars(self))}

    def _not_negative(self, name: str, value: Scheduled) -> Scheduled:
        return check(f"{type(self).__name__}.{name}", value)

    def _need_key(self, key: Any) -> jax.Array:
        if key is None:
            raise ValueError(f"{type(self).__name__} draws random vectors: pass key=...")
        return key


class Function(Regularizer):
    """A user's regularizer: a function that returns the flatness-aware loss at a point.

    Its gradient in meta space is that of the function, by autodiff.
    """

    first_order = False

    def __init__(self, name: str, function: Callable[..., Scalar], weight: Scheduled = 1.0):
        """Initializer.

        Args:
          name: what messages and results call it.
          function: `(loss_fn, point, *, key, step) -> scalar`; differentiable in `point`.
          weight: w in L + w (L_reg - L), >= 0.
        """
        super().__init__(weight)
        self.name = name
        self.function = function

    def gradient(self, query: Query) -> Point:
        assert query.objective.value is not None
        loss_fn = query.objective.value
        return jax.grad(lambda where: self._call(loss_fn, where, query.key, query.step))(
            query.point
        )

    def regularized_value(self, loss_fn: LossFn, point: Point, *, key: Any, step: Any) -> Scalar:
        return self._call(loss_fn, point, key, step)

    def _call(self, loss_fn: LossFn, point: Point, key: Any, step: Any) -> Scalar:
        value = self.function(loss_fn, point, key=key, step=step)
        is_number = isinstance(value, float | np.ndarray | np.generic | jax.Array)
        if not is_number or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise self._returned(f"a {type(value).__name__}")
        if np.shape(value):
            raise self._returned(f"an array of shape {np.shape(value)}")
        return value

    def _returned(self, what: str) -> TypeError:
        return TypeError(
            f"The regularizer {self.name!r} returned {what}: it must return the flatness-aware "
            "loss alone, a float."
        )


def perturbed_loss(
    loss_fn: LossFn, point: Point, perturbation: Callable[[Point, Point], Point]
) -> Scalar:
    """L(w + e), differentiable in w; e = perturbation(w, g) is a constant."""
    fixed = jax.lax.stop_gradient(point)
    # `loss_fn` may close over traced values (a batch, theta): cut the perturbation off from all of
    # them.
    e = jax.lax.stop_gradient(perturbation(fixed, jax.grad(loss_fn)(fixed)))
    return loss_fn(tree.add(point, e))


def describe(value: Any) -> Any:
    """Numbers, strings, and containers of them; functions by their names."""
    if isinstance(value, Regularizer):
        return value.describe()
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items() if not key.startswith("_")}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return value


def plus(plain: Any, term: Any) -> Any:
    """plain + term, in the dtype of the plain value."""
    return (plain + term).astype(plain.dtype)


def mix(plain: Any, regularized: Any, weight: Any) -> Any:
    """plain + weight * (regularized - plain) leaf by leaf, exact at weights 0 and 1."""
    if is_zero(weight):
        return plain
    if is_one(weight):
        return regularized

    def leaf(g: jax.Array, r: jax.Array) -> jax.Array:
        mixed = (g + weight * (r - g)).astype(g.dtype)
        return jnp.where(weight == 1, r, jnp.where(weight == 0, g, mixed))

    return jax.tree.map(leaf, plain, regularized)


def mix_difference(plain: Any, regularized: Any, weight: Any) -> Any:
    """weight * (regularized - plain) leaf by leaf; exactly 0 at weight 0."""
    return jax.tree.map(
        lambda g, r: jnp.where(weight == 0, 0, weight * (r - g)).astype(jnp.result_type(g)),
        plain,
        regularized,
    )


def _skippable(grad_fn: GradFn, wanted: jax.Array | None) -> GradFn:
    """The function as a computation of its own, zeros where it is not wanted."""
    if wanted is None:
        return grad_fn

    def zeros(point: Point) -> Point:
        return jax.tree.map(jnp.zeros_like, point)

    return lambda point: jax.lax.cond(wanted, grad_fn, zeros, point)


def _along(function: LossFn, v: Point) -> LossFn:
    """The function's derivative along v."""
    return lambda point: jax.jvp(function, (point,), (v,))[1]

"""What a meta-test compares: learned optimizers and tuned baselines behind one interface."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from regularized_lopt import errors, learned_optimizers, upstream
from regularized_lopt.measure import baseline_trials, transformations
from regularized_lopt.measure.baseline_trials import Settings

SAM_RHO = 0.1
"""Radius of SGD+SAM and Adam+SAM, fixed beforehand: only their learning rate is tuned."""
OTHER_SAM_RHOS = (0.05, 0.2, 0.5, 1.0)
"""Radii of the baselines that complete SAM's range of doses."""
MSAM_RHOS = (0.1, 0.3, 1.0, 3.0)
"""Radii of the MSAM baselines."""
EMA_DECAY = 0.99
"""Of the averages of params: over the last 100 steps or so."""

BUDGETS = ("steps", "gradients")
"""What all optimizers have equally many of."""


def steps_within(budget: str, num_steps: int, gradients_per_step: int) -> int:
    """The steps that an optimizer takes where others take `num_steps`, at least one.

    Args:
      budget: "steps": as many; "gradients": as many gradients in all, rounded down.
      num_steps: of an optimizer with one gradient per step.
      gradients_per_step: of the optimizer in question.
    """
    errors.check_name("budget", budget, BUDGETS)
    return num_steps if budget == "steps" else max(1, num_steps // gradients_per_step)


@dataclasses.dataclass(frozen=True)
class TrainedWith:
    """The regularizer of an optimizer's training.

    Attributes:
      regularizer: "none", its name, or that of the first of several; of a baseline "sam", "msam" or
        "ema".
      space: "meta", "optimizee", "update" (smoothing), or "params" (of a baseline); "none".
      strength: its factor in the objective; of a baseline the decay of the average; None: there
        is none, or a schedule.
      rho: its radius; None: likewise.
    """

    regularizer: str = "none"
    space: str = "none"
    strength: float | None = None
    rho: float | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> TrainedWith:
        """From theta's metadata, as `serialization.load_flat` has it."""
        for space in ("optimizee", "meta"):
            found = metadata.get(f"regularizer_{space}_space") or {}
            while "terms" in found:  # Of a sum the first.
                found = found["terms"][0][1]
            if found.get("name", "none") != "none":
                factor = _product(found.get("weight"), found.get("strength", 1.0))
                return cls(found["name"], space, factor, _product(found.get("rho")))
        if smoothing := metadata.get("smoothing"):
            return cls("smoothing", "update", _product(smoothing.get("strength")))
        return cls()


def _product(*factors: Any) -> float | None:
    """None where one is a schedule, of which metadata has the name alone, or is not there."""
    known = all(isinstance(value, int | float) for value in factors)
    return float(math.prod(factors)) if known else None


@dataclasses.dataclass(frozen=True)
class EvaluatedOptimizer:
    """An optimizer as a pure function of what tells it from others of its kind.

    Those of the same `kind` share compiled programs and may run side by side.

    Attributes:
      name: in tables and figures.
      kind: of optimizer; with the same kind, `make` is the same function.
      make: hyper -> `Optimizer`.
      hyper: pytree of arrays: theta of a learned optimizer, the learning rate of a baseline.
      gradients_per_step: gradients of the loss that a step takes.
      learning_rate: of a baseline, else None.
      lasting: `kind` says the same in another process, which may then read results stored here.
      trained_with: what it was trained with.
      trials: of a baseline, how many settings are tried to tune it; else 0.
    """

    name: str
    kind: str
    make: Callable[[Any], upstream.Optimizer]
    hyper: Any
    gradients_per_step: int = 1
    learning_rate: float | None = None
    lasting: bool = True
    trained_with: TrainedWith = TrainedWith()
    trials: int = 0

    @property
    def label(self) -> str:
        """The name, with the learning rate where there is one."""
        rate = self.learning_rate
        return self.name if rate is None else f"{self.name} (lr {rate:.2g})"


def learned(
    name: str,
    learned_opt: upstream.LearnedOptimizer,
    theta: Any,
    metadata: Mapping[str, Any] | None = None,
) -> EvaluatedOptimizer:
    """A learned optimizer with its weights; results of one that cannot be saved are not stored.

    Args:
      name: in tables and figures.
      learned_opt: the optimizer.
      theta: its weights.
      metadata: how it was trained, as its file has it; default: nothing is known of that.
    """
    try:
        described = learned_optimizers.describe(learned_opt)
    except ValueError:
        kind, lasting = f"{type(learned_opt).__qualname__} {id(learned_opt)}", False
    else:
        module = f"{described['module']}." if "module" in described else ""
        kind = f"{module}{described['learned_opt']} {sorted(described['config'].items())}"
        lasting = True
    hyper = jax.tree.map(jnp.asarray, theta)
    trained_with = TrainedWith.of(metadata or {})
    return EvaluatedOptimizer(
        name, kind, learned_opt.opt_fn, hyper, lasting=lasting, trained_with=trained_with
    )


def fixed(name: str, opt: upstream.Optimizer) -> EvaluatedOptimizer:
    """Any other optimizer of upstream's interface, as it is; its results are not stored."""
    return EvaluatedOptimizer(
        name, f"{name} {id(opt)}", lambda _: opt, jnp.zeros(()), lasting=False
    )


@flax.struct.dataclass
class OptaxState:
    """Params, the optimizee's non-trained state, and optax's own state."""

    params: Any
    state: Any
    optax_state: Any


class OptaxBaseline(upstream.Optimizer):
    """An optax optimizer behind upstream's interface, whose learning rate may be a traced array.

    Upstream's own wrapper is jitted with the learning rate baked in; here a whole grid of rates is
    one program.
    """

    def __init__(self, name: str, transformation: optax.GradientTransformation):
        self._name = name
        self._transformation = optax.with_extra_args_support(transformation)

    @property
    def name(self) -> str:
        return self._name

    def init(
        self,
        params: Any,
        model_state: Any = None,
        num_steps: Any = None,
        key: Any = None,
        **kwargs: Any,
    ) -> OptaxState:
        del num_steps, key, kwargs
        return OptaxState(params, model_state, self._transformation.init(params))

    def update(
        self,
        opt_state: OptaxState,
        grad: Any,
        loss: Any = None,
        model_state: Any = None,
        key: Any = None,
        grad_fn: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> OptaxState:
        """One step; `grad_fn(params)`, the gradient on this batch: see `transformations`."""
        del loss, key, kwargs
        updates, optax_state = self._transformation.update(
            grad,
            opt_state.optax_state,
            opt_state.params,
            grad_fn=None if grad_fn is None else (lambda params, _: grad_fn(params)),
        )
        return OptaxState(optax.apply_updates(opt_state.params, updates), model_state, optax_state)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """An optax optimizer with a learning rate to tune, and what else is searched with it.

    Attributes:
      kind: see `EvaluatedOptimizer`.
      make: learning rate -> transformation; where more is searched, a dict of all settings.
      settings: what is tried: "learning_rate", no two alike, and what else is searched.
      gradients_per_step: gradients of the loss that a step takes.
      trained_with: see `EvaluatedOptimizer`.
    """

    kind: str
    make: Callable[[Any], optax.GradientTransformation]
    settings: Callable[[], Settings]
    gradients_per_step: int = 1
    trained_with: TrainedWith = TrainedWith()

    @property
    def learning_rates(self) -> np.ndarray:
        """[trials], those that are tried."""
        return self.settings()["learning_rate"]

    def hyper(self, learning_rate: float) -> Any:
        """What `make` takes; ValueError: more is searched, and no trial has this learning rate."""
        settings = self.settings()
        if len(settings) == 1:
            return jnp.asarray(learning_rate, jnp.float32)
        if not len(at := np.flatnonzero(settings["learning_rate"] == learning_rate)):
            raise ValueError(
                f"{self.kind} has no trial with learning rate {learning_rate!r}: its settings were "
                "drawn together. Take one of its learning_rates."
            )
        return {name: jnp.asarray(of[at[0]], jnp.float32) for name, of in settings.items()}


def _grid(rates: np.ndarray) -> Callable[[], Settings]:
    return lambda: {"learning_rate": rates}


_SGD_RATES = np.geomspace(0.01, 10.0, 10)
_ADAM_RATES = np.geomspace(1e-4, 0.1, 10)
_HALF_DECADES = 10.0 ** (np.arange(-12, 1) / 2)


def _rmsprop(rate: Any) -> optax.GradientTransformation:
    """With PyTorch's defaults."""
    return optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False)


_PLAIN: Mapping[str, Baseline] = {
    "SGD": Baseline("SGD", optax.sgd, _grid(_SGD_RATES)),
    "Momentum": Baseline(
        "Momentum", lambda rate: optax.sgd(rate, momentum=0.9), _grid(_SGD_RATES / 10)
    ),
    "Adam": Baseline("Adam", optax.adam, _grid(_ADAM_RATES)),
    "AMSGrad": Baseline("AMSGrad", optax.amsgrad, _grid(_ADAM_RATES)),
    "RMSProp": Baseline("RMSProp", _rmsprop, _grid(_ADAM_RATES)),
    # STAR's baselines.
    "Adam by half decades": Baseline("Adam by half decades", optax.adam, _grid(_HALF_DECADES)),
    "NAdamW": Baseline(
        "NAdamW", lambda settings: optax.nadamw(**settings), baseline_trials.nadamw_trials
    ),
}
_MOMENTUM_BUFFERS = {"Momentum": "trace", "Adam": "mu"}


def _with_sam(base: str, rho: float) -> Baseline:
    plain = _PLAIN[base]
    return Baseline(
        f"{base}+SAM, rho {rho}",
        lambda rate: transformations.sam(plain.make(rate), rho),
        plain.settings,
        2,
        TrainedWith("sam", "params", rho=rho),
    )


def _with_msam(base: str, rho: float) -> Baseline:
    plain = _PLAIN[base]
    return Baseline(
        f"{base}+MSAM, rho {rho}",
        lambda rate: transformations.msam(plain.make(rate), _MOMENTUM_BUFFERS[base], rho),
        plain.settings,
        trained_with=TrainedWith("msam", "params", rho=rho),
    )


def _with_ema(base: str) -> Baseline:
    plain = _PLAIN[base]
    return Baseline(
        f"{base}+EMA, decay {EMA_DECAY}",
        lambda rate: transformations.averaged(plain.make(rate), EMA_DECAY),
        plain.settings,
        trained_with=TrainedWith("ema", "params", EMA_DECAY),
    )


BASELINES: Mapping[str, Baseline] = {
    **_PLAIN,
    **{f"{base}+SAM": _with_sam(base, SAM_RHO) for base in ("SGD", "Adam")},
    **{
        f"{base}+SAM {rho}": _with_sam(base, rho)
        for base in ("SGD", "Adam")
        for rho in OTHER_SAM_RHOS
    },
    **{
        f"{base}+MSAM {rho}": _with_msam(base, rho)
        for base in _MOMENTUM_BUFFERS
        for rho in MSAM_RHOS
    },
    **{f"{base}+EMA": _with_ema(base) for base in ("SGD", "Adam")},
}
"""Baselines by name, each with what is tried: mostly a grid of ten rates over three decades."""
DEFAULT_BASELINES = ("SGD", "Momentum", "Adam", "SGD+SAM", "Adam+SAM")
"""Those of a study that does not say which."""


def baseline(name: str, learning_rate: float) -> EvaluatedOptimizer:
    """A baseline at one learning rate; where more is searched, with all of that trial's settings.

    Raises:
      errors.UnknownNameError: it is none of `BASELINES`.
      ValueError: see `Baseline.hyper`.
    """
    found = BASELINES[errors.check_name("baseline", name, BASELINES)]
    return EvaluatedOptimizer(
        name,
        found.kind,
        lambda hyper: OptaxBaseline(name, found.make(hyper)),
        found.hyper(learning_rate),
        found.gradients_per_step,
        float(learning_rate),
        trials=len(found.learning_rates),
        trained_with=found.trained_with,
    )

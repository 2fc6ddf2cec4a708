"""The one module that knows which `learned_optimization` is installed.

Two generations are in use: the wheel 0.0.1 on PyPI (March 2022) and upstream's main branch.
Everything else in this package imports upstream through here, so that a difference between the two
is written down once. Three things happen on import, in this order:

1. A missing `learned_optimization` is reported with the command that installs it.
2. On the wheel, the few names it uses that a current JAX no longer has are put back (`_patch_jax`).
3. Upstream is imported with TensorFlow deferred: upstream imports TensorFlow for its own sake
   (summaries, file access, dataset iterators), which takes seconds and fails where only JAX is
   installed. It gets a stand-in that imports the real module when an attribute is first used, or
   says what is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import gin
import jax
from absl import logging

INSTALL_COMMAND = "pip install --no-deps learned_optimization==0.0.1"

# Modules that upstream imports at import time but needs only when logging, reading TFDS or running
# distributed.
_DEFERRED = (
    "tensorflow",
    "tensorflow.compat",
    "tensorflow.compat.v1",
    "tensorflow.compat.v2",
    "tensorflow_datasets",
    "flax.io",
    "flax.metrics.tensorboard",
)


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # A parent is missing, or an import hook blocks the name.
        return False


class _DeferredModule(types.ModuleType):
    """Stands in for a module until one of its attributes is used."""

    def __init__(self, name: str, attributes: dict[str, Any] | None = None):
        super().__init__(name, doc=f"Deferred import of {name}.")
        self.__path__: list[str] = []  # Lets `import a.b` find a deferred `a.b`.
        self.__dict__.update(attributes or {})

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return _resolve(self.__name__, attribute)


def _resolve(module: str, attribute: str) -> Any:
    """Imports the real `module` and returns its attribute, or says what to install."""
    try:
        real = importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise ImportError(
            f"learned_optimization used {module}.{attribute}, which needs {missing} ({error}). "
            "regularized_lopt trains, meta-tests and loads without it; for this feature of "
            f"upstream, install {missing}."
        ) from error
    if isinstance(real, _DeferredModule):
        raise ImportError(
            f"{module}.{attribute} was used while learned_optimization was being imported."
        )
    return getattr(real, attribute)


@contextlib.contextmanager
def _deferred_imports() -> Iterator[None]:
    """Defers `_DEFERRED` for imports in this context; what is already imported stays as it is."""
    # What upstream touches at import: a switch that TensorFlow 2 has on, and an alias of a class.
    enable = {"enable_v2_behavior": lambda: None}
    attributes: dict[str, dict[str, Any]] = {
        "tensorflow": enable,
        "tensorflow.compat.v2": enable,
        "flax.metrics.tensorboard": {
            "SummaryWriter": lambda *args, **kwargs: _resolve(
                "flax.metrics.tensorboard", "SummaryWriter"
            )(*args, **kwargs)
        },
    }
    missing = [name for name in _DEFERRED if name not in sys.modules]
    for name in missing:
        sys.modules[name] = _DeferredModule(name, attributes.get(name))
        parent, _, child = name.rpartition(".")
        if isinstance(sys.modules.get(parent), _DeferredModule):
            setattr(
                sys.modules[parent], child, sys.modules[name]
            )  # `import a.b as c` reads a's attribute.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(
        logging.FATAL
    )  # Upstream logs an error when the optional oryx is missing.
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        # Other libraries probe for TensorFlow: they must see the truth again.
        for name in missing:
            if isinstance(sys.modules.get(name), _DeferredModule):
                del sys.modules[name]
            parent, _, child = name.rpartition(".")
            if parent in sys.modules and isinstance(
                vars(sys.modules[parent]).get(child), _DeferredModule
            ):
                delattr(sys.modules[parent], child)


def _patch_jax() -> None:
    """Puts back what the 2022 wheel uses and JAX has since moved or removed."""
    for name in ("leaves", "flatten", "unflatten", "structure", "reduce", "all", "transpose"):
        _set_default(jax, f"tree_{name}", getattr(jax.tree_util, f"tree_{name}"))
    _set_default(jax, "tree_map", jax.tree_util.tree_map)
    _set_default(jax, "tree_multimap", jax.tree_util.tree_map)
    _set_default(jax, "ShapedArray", jax.core.ShapedArray)
    _set_default(jax.random, "KeyArray", jax.Array)
    lib = importlib.import_module("jax.lib")
    _set_default(lib, "xla_client", types.SimpleNamespace(Device=jax.Device))
    if not _importable(
        "courier"
    ):  # Only distributed training calls it; annotations name its classes.
        sys.modules["courier"] = _DeferredModule(
            "courier", {"Server": _no_courier, "Client": _no_courier}
        )


def _no_courier(*unused_args: Any, **unused_kwargs: Any) -> None:
    raise ImportError(
        "Distributed training of the 2022 wheel needs `courier` (dm-launchpad), which is not "
        "installed."
    )


def _set_default(module: types.ModuleType, name: str, value: Any) -> None:
    try:
        getattr(module, name)
    except AttributeError:
        setattr(module, name, value)


def _locate() -> pathlib.Path:
    spec = (
        importlib.util.find_spec("learned_optimization")
        if _importable("learned_optimization")
        else None
    )
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "regularized_lopt is a plugin for Google's learned_optimization, which is not "
            "installed. "
            f"Type:\n\n    {INSTALL_COMMAND}\n\n"
            "(--no-deps, because the pins of that 2022 release cannot be met today; what it needs "
            "comes with regularized_lopt). Upstream's main branch, from its Git repository, works "
            "as well."
        )
    return pathlib.Path(spec.submodule_search_locations[0])


_ROOT = _locate()
GENERATION: str = "main" if (_ROOT / "outer_trainers" / "truncated_step.py").exists() else "wheel"
"""Which generation is installed: "wheel" (0.0.1, 2022) or "main"."""

if GENERATION == "wheel":
    _patch_jax()

with _deferred_imports():
    from learned_optimization import eval_training as eval_training
    from learned_optimization.learned_optimizers import base as lopt_base
    from learned_optimization.optimizers import base as opt_base
    from learned_optimization.outer_trainers import gradient_learner as gradient_learner
    from learned_optimization.outer_trainers import truncation_schedule as truncation_schedule
    from learned_optimization.outer_trainers.truncated_pes import PESWorkerState as PESWorkerState
    from learned_optimization.tasks import base as tasks_base
    from learned_optimization.tasks.datasets import base as datasets_base

    if GENERATION == "main":
        from learned_optimization.optimizers import optax_opts
        from learned_optimization.outer_trainers import truncated_step as _truncated_step
    else:
        optax_opts = opt_base

LearnedOptimizer = lopt_base.LearnedOptimizer
Optimizer = opt_base.Optimizer
Task = tasks_base.Task
TaskFamily = tasks_base.TaskFamily
Datasets = datasets_base.Datasets
GradientEstimator = gradient_learner.GradientEstimator
GradientEstimatorOut = gradient_learner.GradientEstimatorOut
UnrollInfo = gradient_learner.UnrollInfo
WorkerWeights = gradient_learner.WorkerWeights
OuterState = gradient_learner.OuterState
TruncationSchedule = truncation_schedule.TruncationSchedule
single_task_to_family = tasks_base.single_task_to_family
SGD = optax_opts.SGD
SGDM = optax_opts.SGDM
Adam = optax_opts.Adam

if GENERATION == "main":
    TruncatedStep = _truncated_step.TruncatedStep
    VectorizedTruncatedStep = _truncated_step.VectorizedTruncatedStep
    TruncatedUnrollOut = _truncated_step.TruncatedUnrollOut
else:
    import flax

    class TruncatedStep:  # type: ignore[no-redef]
        """Main's interface to an inner problem; the wheel has none, so the base class is ours."""

    class VectorizedTruncatedStep(TruncatedStep):  # type: ignore[no-redef,valid-type,misc]
        """Main's interface to a batch of inner problems."""

    @flax.struct.dataclass
    class TruncatedUnrollOut:  # type: ignore[no-redef]
        """What one inner step reports (the fields of upstream main's class of this name)."""

        loss: jax.Array
        is_done: jax.Array
        task_param: Any
        iteration: jax.Array
        mask: jax.Array


def with_params(state: Any, params: Any) -> Any:
    """The state of an `Optimizer`, a dataclass or a namedtuple with `params`, with other params.

    Those of optimizers within it, such as the terms of a sum, are replaced as well. The wheel's
    `set_params` knows namedtuples alone, main's dataclasses.

    Raises:
      TypeError: it is neither.
    """
    if not _has_params(state):
        raise TypeError(
            f"An optimizer has a {type(state).__name__} as its state: it must be a dataclass or a "
            "namedtuple with a field params."
        )
    is_dataclass = dataclasses.is_dataclass(state)
    names = [one.name for one in dataclasses.fields(state)] if is_dataclass else state._fields
    new = {
        name: jax.tree.map(
            lambda node: with_params(node, params) if _has_params(node) else node,
            getattr(state, name),
            is_leaf=_has_params,
        )
        for name in names
    }
    new["params"] = params
    return dataclasses.replace(state, **new) if is_dataclass else state._replace(**new)


def _has_params(node: Any) -> bool:
    is_record = dataclasses.is_dataclass(node) or hasattr(node, "_replace")
    return is_record and not isinstance(node, type) and hasattr(node, "params")


_LOPT_PACKAGES = ("learned_optimization.learned_optimizers.", "learned_optimization.research.")
_LOPT_MODULES = ("adafac_mlp_lopt", "adafac_nominal", "mlp_lopt", "nn_adam", "rnn_mlp_lopt")


def import_learned_optimizers() -> None:
    """Imports the modules of upstream's learned optimizers, whose names gin knows from then on."""
    for module in _LOPT_MODULES:
        if _importable(f"{_LOPT_PACKAGES[0]}{module}"):  # Main has more of them.
            _import_of_upstream(f"{_LOPT_PACKAGES[0]}{module}")


def find_class(module: str, name: str) -> type | None:
    """A class that a module of upstream's learned optimizers defines; None: there is none."""
    parts = module.split(".")
    if not module.startswith(_LOPT_PACKAGES) or not all(part.isidentifier() for part in parts):
        return None
    if not _importable(module):
        return None
    found = vars(_import_of_upstream(module)).get(name)
    return found if inspect.isclass(found) and found.__module__ == module else None


def _import_of_upstream(module: str) -> types.ModuleType:
    # What it registers with gin binds nothing, so that gin may be locked.
    with gin.unlock_config(), _deferred_imports():
        return importlib.import_module(module)

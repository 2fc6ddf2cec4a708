"""What applying a learned optimizer costs in a training loop, against SAM's second gradient.

An update is what follows the gradient: the optimizer, and the addition to the params, on donated
buffers. With SAM the second gradient is part of it. All are timed in turns, round by round, in one
process; medians over the rounds, of ratios within a round, are printed. Memory is per coordinate:
what the arrays of the state hold, and what XLA sets aside during an update.

`StarMLPLOpt` goes through its coordinates twice. The bytes that this moves, over the bandwidth of a
copy that is measured beside it, bound its time from below; the last lines have the ratio.

Images are random and theta is untrained: the cost depends on neither. PyTorch is timed where it is
installed, with the same network and theta; its updates are compared with its own gradients.

    python benchmarks/apply.py [--rounds=5] [--models mlp cnn mlp_1m] [--smallest]
"""

import argparse
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table

import regularized_lopt
from regularized_lopt import launch, learned_optimizers, tasks, upstream
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.optax_bridge import as_optax
from regularized_lopt.tasks import image, networks

try:
    import torch
except ImportError:
    torch = None

BATCH_SIZES = (128, 512, 2048, 8192)
CHUNK_SIZE = 16_384
LSTM = "LSTMLOpt"
STAR = "StarMLPLOpt"
SMALL = "StarLSTMLOpt, 1 x 8"
TORCH = "LSTMLOpt, PyTorch nn.LSTM"
COMPARED_WITH_SAM = (LSTM, SMALL, STAR)
# First pass: gradient, params, three momenta and v are read, the averages written. Second pass: the
# same six are read, the params written.
STAR_BYTES = 4 * (6 + 4 + 6 + 1)
COPIED = 5_000_000  # Floats: as many bytes as a million coordinates have averages and gradients.

K = TypeVar("K", bound=Hashable)
Run = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Model:
    """A network for MNIST.

    Attributes:
      title: in tables.
      task: ours; its data are not read.
      layers: sizes of an MLP's layers; None: the CNN.
    """

    title: str
    task: tasks.ImageTask
    layers: Sequence[int] | None


def models() -> dict[str, Model]:
    """The networks, by the names that `--models` takes."""
    large = tasks.ImageTask(
        "ImageMLP_Mnist_1024x200_Relu",
        networks.mlp([1024, 200], jax.nn.relu),
        image.ImageDatasets("Mnist", "meta_test"),
    )
    return {
        "mlp": Model("MLP 784-20-10", tasks.get("ImageMLP_Mnist_20_Relu"), (784, 20, 10)),
        "cnn": Model("CNN 16x32", tasks.get("Conv_Mnist_16x32"), None),
        "mlp_1m": Model("MLP 784-1024-200-10", large, (784, 1024, 200, 10)),
    }


def optimizers(
    lopt: regularized_lopt.LSTMLOpt, theta: Any, coordinates: int
) -> dict[str, optax.GradientTransformation]:
    """What is compared; chunks only where there is more than one."""
    chosen = {
        "Adam": optax.adam(1e-3),
        "SGD+SAM": optimizers_lib.BASELINES["SGD+SAM"].make(0.1),
        LSTM: as_optax(lopt, theta),
        "LSTMLOpt, bfloat16 states": as_optax(lopt, theta, state_dtype=jnp.bfloat16),
        "LSTMLOpt, leaf by leaf": as_optax(lopt, theta, per_leaf=True),
    }
    if coordinates > CHUNK_SIZE:
        chunks = functools.partial(as_optax, lopt, theta, chunk_size=CHUNK_SIZE)
        chosen[f"LSTMLOpt, chunks of {CHUNK_SIZE:,}"] = chunks()
        chosen["LSTMLOpt, the same, bfloat16 states"] = chunks(state_dtype=jnp.bfloat16)
    for name, other in others().items():
        chosen[name] = as_optax(other, other.init(jax.random.PRNGKey(0)), num_steps=1000)
    return chosen


def others() -> dict[str, upstream.LearnedOptimizer]:
    """Learned optimizers besides the LSTM, upstream's own among them."""
    # After regularized_lopt: on the wheel, it is what makes this import work on a current JAX.
    from learned_optimization.learned_optimizers import adafac_mlp_lopt

    found = {
        SMALL: learned_optimizers.StarLSTMLOpt(hidden_size=8, num_layers=1),
        STAR: learned_optimizers.StarMLPLOpt(),
        "AdafacMLPLOpt, upstream's": adafac_mlp_lopt.AdafacMLPLOpt(),
    }
    if upstream.GENERATION != "wheel":
        from learned_optimization.learned_optimizers import adafac_nominal

        found["MLPNomLOpt, upstream's"] = adafac_nominal.MLPNomLOpt(
            nominal_stepsize=1e-3, nominal_controller=True, normalize_blackbox=True
        )
    return found


def random_batch(size: int) -> dict[str, np.ndarray]:
    """Images and labels as the tasks take them."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.random((size, 28, 28, 1), np.float32),
        "label": rng.integers(0, 10, size, np.int32),
    }


def timed(advance: Callable[[Any], Any], carry: Any, at_least: float) -> Run:
    """Seconds of one call, over as many in a row as take about `at_least` seconds.

    `carry` goes from call to call, so that each waits for the one before it, as training steps do.
    """
    count = 1

    def run() -> float:
        nonlocal carry
        start = time.perf_counter()
        for _ in range(count):
            carry = advance(carry)
        jax.block_until_ready(carry)
        return (time.perf_counter() - start) / count

    run()
    count = max(1, math.ceil(at_least / run()))
    return run


def in_turns(runs: dict[K, Run], rounds: int) -> dict[K, np.ndarray]:
    """Seconds of each run in every round."""
    times: dict[K, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(0.1)  # PyTorch's threads spin for a while after their work.
            times[name].append(run())
    return {name: np.array(values) for name, values in times.items()}


def gradient(task: upstream.Task, params: Any, batch: Any) -> Any:
    """The gradient of a task of ours, whose losses need no key."""
    return jax.grad(task.loss)(params, jax.random.PRNGKey(0), batch)


def gradients(
    task: upstream.Task, params: Any, batch_size: int, at_least: float
) -> tuple[Run, Any]:
    """A run that takes one gradient, and that gradient."""

    def one(params: Any, batch: Any) -> tuple[Any, Any]:
        return params, gradient(task, params, batch)

    params, batch = jax.tree.map(jnp.copy, params), jax.device_put(random_batch(batch_size))
    compiled = jax.jit(one, donate_argnums=0).lower(params, batch).compile()
    params, grads = compiled(params, batch)
    return timed(lambda params: compiled(params, batch)[0], params, at_least), grads


def updates(
    tx: optax.GradientTransformation, task: upstream.Task, params: Any, grads: Any, at_least: float
) -> tuple[Run, Run, int, int]:
    """An optax optimizer: its update, a whole step, bytes of its state, temporary bytes."""
    tx = optax.with_extra_args_support(tx)

    def update(carry: Any, grads: Any, batch: Any) -> Any:
        params, state = carry
        # SAM alone asks for grad_fn: the gradient at other params, on the same batch.
        extra = {"grad_fn": lambda at, _: gradient(task, at, batch)}
        changes, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, changes), state

    def step(carry: Any, batch: Any) -> Any:
        return update(carry, gradient(task, carry[0], batch), batch)

    batch = jax.device_put(random_batch(BATCH_SIZES[0]))
    carry, other = (jax.tree.map(jnp.copy, (params, tx.init(params))) for _ in range(2))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(carry[1]))
    updated = jax.jit(update, donate_argnums=0).lower(carry, grads, batch).compile()
    stepped = jax.jit(step, donate_argnums=0).lower(carry, batch).compile()
    analysis = updated.memory_analysis()
    assert analysis is not None
    return (
        timed(lambda carry: updated(carry, grads, batch), carry, at_least),
        timed(lambda carry: stepped(carry, batch), other, at_least),
        held,
        analysis.temp_size_in_bytes,
    )


class TorchLOpt:
    """`LSTMLOpt` in PyTorch: nn.LSTM on a batch of coordinates, with sequences of length 1."""

    def __init__(self, lopt: regularized_lopt.LSTMLOpt, theta: Any):
        """Copies theta.

        Args:
          lopt: its inputs are those of the default, and its outputs are not bounded.
          theta: its weights.
        """
        self._config = lopt.config
        units, layers = lopt.config["hidden_size"], lopt.config["num_layers"]
        self._lstm, self._linear = torch.nn.LSTM(2, units, layers), torch.nn.Linear(units, 1)
        weights = {}
        for layer in range(layers):
            # PyTorch's gates are i, f, g, o, ours i, g, f, o; its second bias has nothing to add.
            i, g, f, o = np.split(_columns(theta[f"lstm_{layer}"]), 4)
            w_x, w_h, b = np.split(np.concatenate([i, f, g, o]), [-units - 1, -1], axis=1)
            weights[f"weight_ih_l{layer}"], weights[f"weight_hh_l{layer}"] = w_x, w_h
            weights[f"bias_ih_l{layer}"], weights[f"bias_hh_l{layer}"] = b[:, 0], 0 * b[:, 0]
        self._lstm.load_state_dict({name: torch.tensor(w) for name, w in weights.items()})
        w, b = np.split(_columns(theta["linear"]), [-1], axis=1)
        self._linear.load_state_dict({"weight": torch.tensor(w), "bias": torch.tensor(b[0])})

    def init(self, coordinates: int) -> tuple["torch.Tensor", "torch.Tensor"]:
        """The hidden state at the start: h and c, zeros."""
        shape = (self._config["num_layers"], coordinates, self._config["hidden_size"])
        return torch.zeros(shape), torch.zeros(shape)

    def update(
        self, grad: "torch.Tensor", hidden: tuple["torch.Tensor", "torch.Tensor"]
    ) -> tuple["torch.Tensor", tuple["torch.Tensor", "torch.Tensor"]]:
        """Updates and next hidden state for a vector of gradients."""
        factor, magnitude = self._config["preprocess_factor"], grad.abs()
        large = magnitude >= math.exp(-factor)
        first = torch.where(large, magnitude.log() / factor, -1.0)
        features = torch.stack([first, torch.where(large, grad.sign(), math.exp(factor) * grad)], 1)
        with torch.no_grad():
            output, hidden = self._lstm(features[None], hidden)
            return self._config["output_scale"] * self._linear(output)[0, :, 0], hidden


def _columns(layer: dict[str, jax.Array]) -> np.ndarray:
    """Weights, and the bias as their last column."""
    return np.concatenate([layer["w"], layer["b"][:, None]], axis=1)


def torch_network(layers: Sequence[int] | None) -> "torch.nn.Module":
    """The network of a `Model`, on images whose channels come first."""
    nn = torch.nn
    if layers is None:
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 9 * 9, 10)),
        )
    dense = [(nn.Linear(*sizes), nn.ReLU()) for sizes in itertools.pairwise(layers)]
    return nn.Sequential(nn.Flatten(), *sum(dense, ())[:-1])


def torch_updates(model: Model, lopt: TorchLOpt, at_least: float) -> tuple[Run, Run, Run, int]:
    """`LSTMLOpt` in PyTorch: a gradient, its update, a whole step, bytes of its state."""
    batch = random_batch(BATCH_SIZES[0])
    images, labels = torch.tensor(batch["image"]), torch.tensor(batch["label"]).long()
    images = images.movedim(3, 1)
    network = torch_network(model.layers)
    params = list(network.parameters())
    sizes = [param.numel() for param in params]

    def grad() -> tuple["torch.Tensor", ...]:
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        return torch.autograd.grad(loss, params)

    def update(hidden: Any, grads: Sequence["torch.Tensor"]) -> Any:
        changes, hidden = lopt.update(torch.cat([g.flatten() for g in grads]), hidden)
        with torch.no_grad():
            for param, change in zip(params, changes.split(sizes), strict=True):
                param.add_(change.view_as(param))
        return hidden

    hidden, grads = lopt.init(sum(sizes)), grad()
    return (
        timed(lambda _: grad(), None, at_least),
        timed(lambda hidden: update(hidden, grads), hidden, at_least),
        timed(lambda hidden: update(hidden, grad()), hidden, at_least),
        sum(array.numel() * array.element_size() for array in hidden),
    )


def copies(at_least: float) -> Run:
    """A run that reads and writes `COPIED` floats."""
    double = jax.jit(lambda x: 2 * x, donate_argnums=0)
    return timed(double, jnp.ones(COPIED), at_least)


def compare(
    model: Model, rounds: int, at_least: float, sizes: Sequence[int]
) -> tuple[rich.table.Table, list[list[str]], str]:
    """The table of a model; rows on batch sizes, up to the first below SAM; STAR's bound."""
    lopt = regularized_lopt.LSTMLOpt()
    theta = lopt.init(jax.random.PRNGKey(0))
    params = model.task.init(jax.random.PRNGKey(0))
    coordinates = sum(leaf.size for leaf in jax.tree.leaves(params))
    one, grads = gradients(model.task, params, sizes[0], at_least)
    runs: dict[tuple[str, str], Run] = {("gradient", LSTM): one, ("copy", ""): copies(at_least)}
    memory: dict[str, tuple[int, int | None]] = {}
    for name, tx in optimizers(lopt, theta, coordinates).items():
        *found, held, temporary = updates(tx, model.task, params, grads, at_least)
        runs["update", name], runs["step", name] = found
        memory[name] = held, temporary
    if torch is not None:
        *found, held = torch_updates(model, TorchLOpt(lopt, theta), at_least)
        runs["gradient", TORCH], runs["update", TORCH], runs["step", TORCH] = found
        memory[TORCH] = held, None
    seconds = in_turns(runs, rounds)

    table = rich.table.Table(
        title=f"{model.title}: {coordinates:,} coordinates, batch {sizes[0]}, median of {rounds}"
    )
    for column in (
        *("", "step,\nms", "update,\nns/coordinate", "update /\ngradient", "LSTMLOpt /\nthis"),
        *("state,\nB/coordinate", "temporary,\nB/coordinate"),
    ):
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for name, (held, scratch) in memory.items():
        update = seconds["update", name]
        table.add_row(
            name,
            f"{1e3 * np.median(seconds['step', name]):.2f}",
            f"{1e9 * np.median(update) / coordinates:.1f}",
            f"{np.median(update / seconds['gradient', TORCH if name == TORCH else LSTM]):.2f}",
            f"{np.median(seconds['update', LSTM] / update):.2f}",
            f"{held / coordinates:.1f}",
            "n/a" if scratch is None else f"{scratch / coordinates:.1f}",
        )
    bandwidth = 8 * COPIED / seconds["copy", ""]
    bound = STAR_BYTES * coordinates / bandwidth
    bounded = (
        f"{model.title}: a copy moves {np.median(bandwidth) / 1e9:.1f} GB/s, at which the "
        f"{STAR_BYTES} bytes per coordinate of {STAR} take {1e3 * np.median(bound):.3f} ms; it "
        f"takes {np.median(seconds['update', STAR] / bound):.2f} times that."
    )
    return table, against_sam(model, runs, rounds, at_least, sizes), bounded


def against_sam(
    model: Model,
    runs: dict[tuple[str, str], Run],
    rounds: int,
    at_least: float,
    sizes: Sequence[int],
) -> list[list[str]]:
    """A row for each optimizer and batch size, up to the first below a gradient."""
    params = model.task.init(jax.random.PRNGKey(0))
    rows, left = [], list(COMPARED_WITH_SAM)
    one = runs["gradient", LSTM]  # At sizes[0].
    for size in sizes:
        if not left:
            break
        if size != sizes[0]:
            one, _ = gradients(model.task, params, size, at_least)
        again = {"gradient": one, **{name: runs["update", name] for name in left}}
        seconds = in_turns(again, rounds)
        for name in tuple(left):
            ratio = np.median(seconds[name] / seconds["gradient"])
            times = [f"{1e3 * np.median(seconds[key]):.2f}" for key in ("gradient", name)]
            verdict = "below" if ratio < 1 else "above"
            rows.append([model.title, name, f"{size:,}", *times, f"{ratio:.2f}", verdict])
            if ratio < 1:
                left.remove(name)
    return sorted(rows, key=lambda row: COMPARED_WITH_SAM.index(row[1]))


def main() -> None:
    """Prints a table per model, and from which batch size on an update costs less than SAM's."""
    known = models()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=list(known), default=list(known))
    parser.add_argument("--smallest", action="store_true", help="to see that everything runs")
    args = parser.parse_args()
    launch.reuse_freed_memory()
    names, rounds, at_least = args.models, args.rounds, 0.2
    sizes: tuple[int, ...] = BATCH_SIZES
    if args.smallest:
        names, rounds, at_least, sizes = ["mlp"], 1, 0.0, BATCH_SIZES[:1]
    console = rich.console.Console(width=120)
    if torch is None:
        console.print("PyTorch is not installed: its rows are left out.")
    costs = rich.table.Table(title="An update against the second gradient that SAM costs")
    for column in ("", "", "batch", "gradient, ms", "update, ms", "update / gradient", "it is"):
        text = column in ("", "it is")
        costs.add_column(column, justify="left" if text else "right", no_wrap=text)
    bounds = []
    for name in names:
        table, rows, bounded = compare(known[name], rounds, at_least, sizes)
        bounds.append(bounded)
        console.print(table)
        for row in rows:
            costs.add_row(*row, end_section=row is rows[-1])
    console.print(costs)
    for bounded in bounds:
        console.print(bounded)


if __name__ == "__main__":
    main()

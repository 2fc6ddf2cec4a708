"""Time and memory of one outer step: ours, upstream's TruncatedGrad, PyTorch's nn.LSTM.

All run the same work: an MLP-20 optimizee, an unroll of 20 inner steps at batch 128, the gradient
of the outer loss w.r.t. the 5,141 weights of the LSTM. They are timed in turn, round by round, in
one process, so that a slow moment of the machine hits all of them; the medians and their ratios are
printed. PyTorch is timed where it is installed. All keep freed memory, as the launchers do.

The last two do that work for an MLP by coordinate: `StarMLPLOpt` in ours, and upstream's
`AdafacMLPLOpt`, which has the same features and no nominal term, in upstream's.

    python benchmarks/outer_step.py [--rounds=7] [--dataset=Mnist]
"""

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

import regularized_lopt
from regularized_lopt import launch, learned_optimizers, tasks, upstream
from regularized_lopt.estimators import RegularizedTruncatedGrad, RegularizedTruncatedStep

K = TypeVar("K")
UNROLL = 20
TRAJECTORY = 100


def ours(
    task: upstream.Task,
    meta: str = "none",
    optimizee: str = "none",
    lopt: upstream.LearnedOptimizer | None = None,
) -> tuple[Callable[[], None], int]:
    """One estimate of ours, and the bytes XLA sets aside for it."""
    lopt = lopt or regularized_lopt.LSTMLOpt()
    step = RegularizedTruncatedStep(
        upstream.single_task_to_family(task),
        lopt,
        upstream.truncation_schedule.ConstantTruncationSchedule(TRAJECTORY),
        regularizer=optimizee,
    )
    estimator = RegularizedTruncatedGrad(step, unroll_length=UNROLL, regularizer=meta)
    weights, run = stepper(estimator, lopt)
    state = estimator.init_worker_state(weights, jax.random.PRNGKey(1))
    lowered = estimator._jitted_estimate.lower(  # What `run` calls: it is traced once.
        weights.theta, state, jax.random.PRNGKey(2), estimator.get_datas(), weights.outer_state
    )
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None
    return run, analysis.temp_size_in_bytes


def upstreams(
    task: upstream.Task, lopt: upstream.LearnedOptimizer | None = None
) -> Callable[[], None]:
    """One estimate of upstream's TruncatedGrad with its defaults, on the task's own iterators."""
    # After regularized_lopt: on the wheel, it is what makes this import work on a current JAX.
    from learned_optimization.outer_trainers import truncated_grad

    lopt = lopt or regularized_lopt.LSTMLOpt()
    family = upstream.single_task_to_family(task)
    schedule = upstream.truncation_schedule.ConstantTruncationSchedule(TRAJECTORY)
    if upstream.GENERATION == "wheel":
        estimator = truncated_grad.TruncatedGrad(family, lopt, schedule, 1, unroll_length=UNROLL)
    else:
        from learned_optimization.outer_trainers import lopt_truncated_step

        step = lopt_truncated_step.VectorizedLOptTruncatedStep(family, lopt, schedule, 1)
        estimator = truncated_grad.TruncatedGrad(step, unroll_length=UNROLL)
    return stepper(estimator, lopt)[1]


def stepper(
    estimator: upstream.GradientEstimator, lopt: upstream.LearnedOptimizer
) -> tuple[upstream.WorkerWeights, Callable[[], None]]:
    """Weights, and a function that takes one estimate and goes on from its state."""
    theta = lopt.init(jax.random.PRNGKey(0))
    weights = upstream.WorkerWeights(theta, None, upstream.OuterState(jnp.asarray(0)))
    state = estimator.init_worker_state(weights, jax.random.PRNGKey(1))

    def run() -> None:
        nonlocal state
        out, _ = estimator.compute_gradient_estimate(
            weights, jax.random.PRNGKey(2), state, with_summary=False
        )
        state = jax.block_until_ready(out.unroll_state)
        jax.block_until_ready(out.grad)

    return weights, run


def pytorchs(task: tasks.ImageTask) -> Callable[[], None] | None:
    """The same in PyTorch: nn.LSTM over the coordinates, autograd through the unroll."""
    try:
        import torch
    except ImportError:
        return None
    arrays = task.datasets.host_arrays("train")
    images = torch.tensor(arrays["image"]).flatten(1).float() / arrays["image"].max()
    labels = torch.tensor(arrays["label"]).long()
    shapes = [(images.shape[1], 20), (20,), (20, 10), (10,)]
    sizes = [math.prod(shape) for shape in shapes]
    lstm, linear = torch.nn.LSTM(2, 20, 2), torch.nn.Linear(20, 1)
    weights = [*lstm.parameters(), *linear.parameters()]
    initial = 0.05 * torch.randn(sum(sizes))

    def loss(params: "torch.Tensor") -> "torch.Tensor":
        index = torch.randint(len(labels), (task.datasets.batch_size,))
        w1, b1, w2, b2 = (
            part.view(shape) for part, shape in zip(params.split(sizes), shapes, strict=True)
        )
        logits = torch.sigmoid(images[index] @ w1 + b1) @ w2 + b2
        return torch.nn.functional.cross_entropy(logits, labels[index])

    def features(grad: "torch.Tensor") -> "torch.Tensor":
        large = grad.abs() >= math.exp(-10)
        magnitude = torch.where(large, grad.abs(), torch.ones_like(grad)).log() / 10
        first = torch.where(large, magnitude, -torch.ones_like(grad))
        return torch.stack([first, torch.where(large, grad.sign(), math.exp(10) * grad)], -1)

    def run() -> None:
        params = initial
        hidden = tuple(torch.zeros(2, initial.numel(), 20) for _ in range(2))
        for _ in range(UNROLL):
            at = params.detach().requires_grad_()
            (grad,) = torch.autograd.grad(loss(at), at)
            output, hidden = lstm(features(grad)[None], hidden)
            params = params + 0.1 * linear(output)[0, :, 0]
        torch.autograd.grad(loss(params), weights)

    return run


def measure(runs: dict[K, Callable[[], None]], rounds: int) -> dict[K, float]:
    """Median seconds of each, taken in turn after one warm-up.

    Of two calls in a row the second is timed: what runs before an outer step is an outer step.
    """
    times: dict[K, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(0.3)  # PyTorch's threads spin for a while after their work.
            run()
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Prints one table per dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dataset", action="append", choices=["Digits", "Mnist"])
    args = parser.parse_args()
    launch.reuse_freed_memory()
    for dataset in args.dataset or ["Digits", "Mnist"]:
        task = tasks.get(f"ImageMLP_{dataset}_20_Sigmoid", "meta_train")
        coordinates = sum(x.size for x in jax.tree.leaves(task.init(jax.random.PRNGKey(0))))
        states = coordinates * 80 * 4 * UNROLL  # Two layers of h and c, 20 units, float32.
        memory: dict[str, int] = {}
        runs: dict[str, Callable[[], None]] = {}
        for name, kwargs in {
            "ours, no regularizer": {},
            "ours, SAM in meta space": {"meta": "sam"},
            "ours, SAM in optimizee space": {"optimizee": "sam"},
        }.items():
            runs[name], memory[name] = ours(task, **kwargs)
        runs[f"upstream ({upstream.GENERATION}) TruncatedGrad"] = upstreams(task)
        from learned_optimization.learned_optimizers import adafac_mlp_lopt

        star, theirs = learned_optimizers.StarMLPLOpt(), adafac_mlp_lopt.AdafacMLPLOpt()
        runs["ours, StarMLPLOpt"], memory["ours, StarMLPLOpt"] = ours(task, lopt=star)
        runs["upstream TruncatedGrad, AdafacMLPLOpt"] = upstreams(task, theirs)
        if (torch_run := pytorchs(task)) is not None:
            runs["PyTorch nn.LSTM"] = torch_run
        seconds = measure(runs, args.rounds)
        base = seconds["ours, no regularizer"]
        table = rich.table.Table(
            title=f"{dataset}: {coordinates} coordinates, T = {UNROLL}, median of {args.rounds}"
        )
        for column in ("", "ms", "ours / this", "this / ours", "temporary MB", "/ (states x T)"):
            table.add_column(column, justify="right" if column else "left")
        for name, value in seconds.items():
            temp = memory.get(name)
            table.add_row(
                name,
                f"{1e3 * value:.1f}",
                f"{base / value:.2f}",
                f"{value / base:.2f}",
                "" if temp is None else f"{temp / 1e6:.1f}",
                "" if temp is None else f"{temp / states:.2f}",
            )
        rich.console.Console(width=110).print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"Peak resident memory of the whole process: {peak:.0f} MB; jax {jax.__version__}, "
        f"numpy {np.__version__}, learned_optimization: {upstream.GENERATION}"
    )


if __name__ == "__main__":
    main()

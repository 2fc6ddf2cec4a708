"""A trained optimizer in learned_optimization's own tools, beside its Adam.

    python examples/upstream_tools.py --lopt=mnist_star_lstm_none

`load(...).opt()` is an `Optimizer` of upstream's and `load(...).learned_opt` a `LearnedOptimizer`:
whatever takes one of those takes ours. The last two tools exist on upstream's main branch only.
"""

import argparse
import importlib.util
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regularized_lopt  # Before learned_optimization: it makes the wheel run on a current JAX.

from learned_optimization import eval_training  # isort: skip
from learned_optimization.baselines import run_trainer, utils  # isort: skip
from learned_optimization.learned_optimizers import base as lopt_base  # isort: skip


def main() -> None:
    """Trains the same network with each and prints its loss on the test set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lopt", default="mnist_star_lstm_none", help="trained optimizer: name or path"
    )
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()

    task = regularized_lopt.tasks.get("ImageMLP_Digits_20_Relu")
    trained = regularized_lopt.load(args.lopt)
    opts = {"ours": trained.opt(), "upstream's Adam, 3e-3": regularized_lopt.upstream.Adam(3e-3)}
    on_main = hasattr(lopt_base, "SumLearnedOptimizer")
    if on_main:  # Two learned optimizers, one of them ours, whose updates are added.
        lopt = lopt_base.SumLearnedOptimizer([trained.learned_opt, lopt_base.LearnableSGD(0.1)])
        theta = lopt.init(jax.random.PRNGKey(0))
        theta["inner_lopt_theta_0"] = trained.theta
        opts["SumLearnedOptimizer of ours and SGD"] = lopt.opt_fn(theta)

    print("eval_training.single_task_training_curves, from the same init:")
    evaluations = {"eval_every": args.steps, "eval_batches": 1, "last_eval_batches": 2}
    for name, opt in opts.items():
        curves = eval_training.single_task_training_curves(
            task, opt, args.steps, jax.random.PRNGKey(0), **evaluations
        )
        print(f"  {name}: test loss {float(np.asarray(curves['eval/test/loss'])[-1]):.4f}")

    with tempfile.TemporaryDirectory() as directory:
        os.environ["LOPT_BASELINE_DIR"] = directory
        run_trainer.inner_train_task(task, trained.opt(), args.steps, **evaluations)
        kept = utils.load_baseline_results(
            task.name, trained.opt().name, args.steps, output_type="curves", **evaluations
        )
        print(f"baselines.run_trainer: curves kept for {len(kept)} run")

    if on_main and importlib.util.find_spec("learned_optimization.optimizers.opt_to_optax"):
        from learned_optimization.optimizers.opt_to_optax import opt_to_optax_opt

        tx = opt_to_optax_opt(trained.opt(), num_steps=args.steps)
        params = {"w": jnp.ones(3)}
        updates, _ = tx.update({"w": jnp.ones(3)}, tx.init(params), params)
        print("opt_to_optax: ones become", optax.apply_updates(params, updates)["w"])
    else:
        print("SumLearnedOptimizer and opt_to_optax are on upstream's main branch only.")


if __name__ == "__main__":
    main()

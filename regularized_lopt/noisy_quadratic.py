"""Launcher: python -m regularized_lopt.noisy_quadratic --out_dir=... [--optimizer=[NAME=]PATH]"""

import pathlib

import jax
import optax
from absl import flags

from regularized_lopt import launch, upstream, zoo
from regularized_lopt.measure import noisy_quadratic as nq
from regularized_lopt.measure.optimizers import OptaxBaseline
from regularized_lopt.report import noisy_quadratic as report
from regularized_lopt.report import pages

_ADAM_RATE = 0.01


def main() -> None:
    """Computes all figures in float64 and writes the page."""
    with jax.enable_x64(True):
        _main(pathlib.Path(flags.FLAGS.out_dir))


def _main(out_dir: pathlib.Path) -> None:
    problem, stability = nq.NoisyQuadratic(), nq.Stability()
    variance, meta_training = nq.GradientVariance(), nq.MetaTraining()
    linearization = nq.Linearization()
    optimizers = _optimizers(problem, flags.FLAGS.optimizer)
    launch.check_read()
    for opt in optimizers.values():
        nq.check(opt, problem, linearization)
    out_dir.mkdir(parents=True, exist_ok=True)
    # First, because one that diverges ends it all.
    linearized = {
        name: _linearized(name, opt, problem, linearization) for name, opt in optimizers.items()
    }
    found = report.Results(
        problem,
        nq.eigenvalue_maps(problem, stability),
        nq.try_statements(problem, stability),
        nq.gradient_variance(problem, variance),
        nq.meta_train(problem, meta_training),
        linearization,
        linearized,
    )
    pages.write(report.write(found, out_dir), out_dir)
    print(f"Figures, tables and report: {out_dir / pages.REPORT}")


def _linearized(
    name: str, opt: upstream.Optimizer, problem: nq.NoisyQuadratic, what: nq.Linearization
) -> nq.Linearized:
    try:
        return nq.linearize(opt, problem, what)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _optimizers(problem: nq.NoisyQuadratic, given: list[str]) -> dict[str, upstream.Optimizer]:
    """Two that everyone knows, and those that were asked for."""
    rate = 1 / problem.largest()
    known = {f"SGD {rate:.2g}": optax.sgd(rate), f"Adam {_ADAM_RATE:g}": optax.adam(_ADAM_RATE)}
    named = launch.named_paths(given)
    return {
        **{name: OptaxBaseline(name, of) for name, of in known.items()},
        **{name: zoo.load(path).opt() for name, path in named.items()},
    }


def define_flags() -> None:
    """Those of this launcher."""
    flags.DEFINE_string("out_dir", "runs/noisy_quadratic", "Where tables, figures and page go.")
    flags.DEFINE_multi_string(
        "optimizer",
        [],
        "A trained optimizer to linearize: an entry of the zoo, a file or a directory of outer "
        "training, named as in NAME=PATH. Repeat it for several.",
    )


if __name__ == "__main__":
    launch.run(main, define_flags)

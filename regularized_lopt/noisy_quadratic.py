"""Launcher: python -m regularized_lopt.noisy_quadratic --out_dir=... [--optimizer=[NAME=]PATH]"""

import itertools
import pathlib
from collections.abc import Callable

import jax
import optax
import tqdm
from absl import flags

from regularized_lopt import interruption, launch, progress, serialization, upstream, zoo
from regularized_lopt.measure import noisy_quadratic as nq
from regularized_lopt.measure.optimizers import OptaxBaseline
from regularized_lopt.report import noisy_quadratic as report
from regularized_lopt.report import pages

_ADAM_RATE = 0.01


def main() -> None:
    """Computes all figures in float64 and writes the page."""
    nothing_kept = "Nothing is written before all is computed: the same command begins anew."
    with interruption.stops_at_once(nothing_kept), jax.enable_x64(True):
        _main(pathlib.Path(flags.FLAGS.out_dir))


def _main(out_dir: pathlib.Path) -> None:
    problem, stability = nq.NoisyQuadratic(), nq.Stability()
    variance, meta_training = nq.GradientVariance(), nq.MetaTraining()
    linearization = nq.Linearization()
    optimizers = _optimizers(problem, flags.FLAGS.optimizer)
    launch.check_read()
    for opt in optimizers.values():
        nq.check(opt, problem, linearization)
    serialization.make_writable(out_dir, "Choose another --out_dir.")
    place, parts = itertools.count(1), len(optimizers) + 3

    def bar(total: int, label: str) -> tqdm.tqdm:
        return progress.bar(total, f"({next(place)} of {parts}) {label}", True)

    # First, because one that diverges ends it all.
    linearized = {}
    for name, opt in optimizers.items():
        with bar(linearization.num_states, f"linearizing {name}") as shown:
            one = _linearized(name, opt, problem, linearization, shown.update)
            radii = f"{one.joint_radius.min():.5f} to {one.joint_radius.max():.5f}"
            shown.set_postfix(spectral_radius=radii, refresh=False)
        linearized[name] = one
    with bar(2, "random black boxes") as shown:
        maps = nq.eigenvalue_maps(problem, stability)
        shown.update()
        tried = nq.try_statements(problem, stability)
        shown.update()
    with bar(variance.num_nominals, "variance of the meta-gradient") as shown:
        variances = nq.gradient_variance(problem, variance, shown.update)
    with bar(1, "meta-training") as shown:
        trained = nq.meta_train(problem, meta_training)
        shown.update()
    found = report.Results(problem, maps, tried, variances, trained, linearization, linearized)
    pages.write(report.write(found, out_dir), out_dir)
    print(f"Figures, tables and report: {out_dir / pages.REPORT}")


def _linearized(
    name: str,
    opt: upstream.Optimizer,
    problem: nq.NoisyQuadratic,
    what: nq.Linearization,
    done: Callable[[], object],
) -> nq.Linearized:
    try:
        return nq.linearize(opt, problem, what, done)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _optimizers(problem: nq.NoisyQuadratic, given: list[str]) -> dict[str, upstream.Optimizer]:
    """Two that everyone knows, and those that were asked for."""
    rate = 1 / problem.largest()
    known = {f"SGD {rate:.2g}": optax.sgd(rate), f"Adam {_ADAM_RATE:g}": optax.adam(_ADAM_RATE)}
    named = launch.trained_paths(given)
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

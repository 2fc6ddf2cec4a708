"""Launcher: from gin files to results, or from an optimizer of the zoo to what its card says.

python -m regularized_lopt.reproduce --config_file=... --out_dir=DIR [--optimizer NAME=WHAT ...]
    [--dry_run [--measure]]
python -m regularized_lopt.reproduce --rewrite --out_dir=DIR
python -m regularized_lopt.reproduce --verify ZOO_NAME [--task=TASK ...]
"""

import functools
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from absl import flags

from regularized_lopt import errors, gin_files, launch, zoo
from regularized_lopt.report.terminal import print_table
from regularized_lopt.study import Experiment, Study
from regularized_lopt.study import verify as verify_lib
from regularized_lopt.study.dry_run import PlannedResult, plan
from regularized_lopt.study.experiment import is_configuration
from regularized_lopt.study.meta_training import ARCHIVED, unpack
from regularized_lopt.study_report import publish, rewrite


def _verify(name: str, only: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        checks = verify_lib.verify(zoo.card(name), pathlib.Path(scratch), only)
    print_table(name, verify_lib.HEADER, [check.row() for check in checks])
    if not all(check.holds for check in checks):
        sys.exit(f"{name} was not reproduced: see NO in the table.")


def _print_plan(planned: list[PlannedResult]) -> None:
    def cost(one: PlannedResult) -> str:
        return "unknown" if one.seconds is None else f"{one.seconds:.0f} s"

    rows = [
        [one.stage, one.label, "cached" if one.cached else "to do", cost(one)] for one in planned
    ]
    print_table("Cells", ["stage", "cell", "", "took, or is estimated"], rows)
    missing = [one for one in planned if not one.cached]
    known = [one.seconds for one in missing if one.seconds is not None]
    unknown = len(missing) - len(known)
    said = [f"{len(planned)} cells", f"{len(planned) - len(missing)} cached"]
    if known:
        said.append(f"{len(known)} that take about {sum(known) / 60:.1f} minutes")
    if unknown:
        said.append(f"{unknown} of unknown cost: --measure times them")
    print(f"{', '.join(said)}.")


def main() -> None:
    """Runs what is missing and writes the report, or verifies an optimizer of the zoo."""
    given = flags.FLAGS
    if given.measure and not given.dry_run:
        raise ValueError("--measure says what a dry run would cost: add --dry_run.")
    if given.verify:
        _check_alone("--verify", "cards have none")
        _verify(given.verify, given.task)
        return
    if given.rewrite:
        _check_alone("--rewrite", "results have all")
        rewrite(pathlib.Path(given.out_dir))
        return
    experiment = Experiment(joining=launch.named_paths(given.optimizer))
    study = Study(experiment, given.out_dir, optimizers_dir=given.optimizers_dir)
    study.check()
    launch.check_read(functools.partial(_advice, experiment))
    if given.optimizers_dir is None:
        _bring_optimizers(given.config_file, study.optimizers.directory)
    if given.dry_run:
        _print_plan(plan(study, measure_rates=given.measure))
        return
    publish(study, _lead(study))


def _check_alone(flag: str, because: str) -> None:
    """Raises ValueError if there is anything of an experiment beside the flag."""
    given = flags.FLAGS
    if given.config_file or given.gin_bindings or given.optimizer:
        raise ValueError(
            f"{flag} takes no --config_file, --gin_bindings or --optimizer: {because}."
        )


def _bring_optimizers(config_files: Sequence[str], directory: pathlib.Path) -> None:
    """Those that lie in an archive beside the experiment's configuration are not made again."""
    for file in config_files:
        archive = gin_files.path_of(file).with_name(f"{directory.name}{ARCHIVED}")
        if archive.is_file() and not directory.exists():
            unpack(archive, directory)
            print(f"Learned optimizers of {archive} are in {directory} now.")


def _advice(experiment: Experiment, binding: gin_files.Binding) -> str | None:
    """On a binding that nothing reads."""
    if binding.configurable == "TaskPlan" and binding.scope not in ("", *experiment.plans):
        return f"Experiment.tasks has no {binding.scope!r}. " + errors.nearest(
            binding.scope, experiment.plans
        )
    return launch.of_meta_training("Experiment.bindings")(binding)


def _lead(study: Study) -> str:
    """What is compared on what, in a sentence."""
    experiment = study.experiment
    plans = experiment.plans
    baselines = " and tuned baselines" if any(map(experiment.baselines_on, plans)) else ""
    made = [name for name, source in experiment.optimizers.items() if is_configuration(source)]
    trained = [name for name in experiment.optimizers if name not in made]
    seeds = {len(study.optimizers.seeds(name)) for name in made}
    how = f", meta-trained with {_count(seeds, 'seed')}" if made else ""
    lead = (
        f"{', '.join(experiment.optimizers)}{baselines} on {_count({len(plans)}, 'task')}: "
        f"{_count({plan.runs for plan in plans.values()}, 'paired run')} of "
        f"{experiment.num_steps} steps{how}."
    )
    return lead + (f" {_of_trained(trained, experiment.reference, made)}" if trained else "")


def _of_trained(trained: Sequence[str], reference: str, made: Sequence[str]) -> str:
    """What comparisons with optimizers that were trained beforehand do not know."""
    with_all = f", compared with every meta-training seed of {reference}"
    return (
        f"Trained beforehand: {', '.join(trained)}. Each is a single optimizer"
        f"{with_all if reference in made else ''}; no interval tells how another training of it "
        "would have come out."
    )


def _count(numbers: set[int], noun: str) -> str:
    """{2, 10}, "run": "2 or 10 runs"."""
    return f"{' or '.join(map(str, sorted(numbers)))} {noun}{'' if numbers == {1} else 's'}"


def define_flags() -> None:
    """Those of this launcher."""
    flags.DEFINE_string("out_dir", "runs/reproduce", "Where cells and report go.")
    flags.DEFINE_string(
        "optimizers_dir",
        None,
        "Where learned optimizers are meta-trained, for several experiments to share; default: "
        "optimizers/ in --out_dir, filled from optimizers.tar.xz beside the --config_file.",
    )
    flags.DEFINE_multi_string(
        "optimizer",
        [],
        "[NAME=]WHAT joins the experiment's optimizers on all its tasks: a trained one (a file, a "
        "directory of outer training, or a name in the zoo), or a gin file to meta-train it from. "
        "Repeat it for several.",
    )
    flags.DEFINE_boolean(
        "dry_run", False, "Print what would be computed, what is there, and what it would cost."
    )
    flags.DEFINE_boolean(
        "measure", False, "With --dry_run: time a few steps of what has not been run here; minutes."
    )
    flags.DEFINE_boolean(
        "rewrite",
        False,
        "Write tables, figures and report anew from the results that --out_dir has kept.",
    )
    flags.DEFINE_string(
        "verify", None, "Name in the zoo: meta-test it again and compare with its card."
    )
    flags.DEFINE_multi_string("task", [], "With --verify: only on these of the card's tasks.")


if __name__ == "__main__":
    launch.run(main, define_flags)

"""Starts every command of README.md, CONTRIBUTING.md and docs/, each in its smallest form.

    python .ci/readme.py [--list]

In the root of a checkout, for what is not in `CI`, which .ci/run runs as it is written, and not in
`TESTED`. A command that `FORMS` does not have is an error, as is a form that no command has any
more. `make quickstart` comes first:
`python` and `pip` are those of .venv, but for commands that install, which get an environment of
their own. As in the tests, XLA compiles without optimizing, and each program once, but for what
computes for long: `make quickstart` and the documentation are what runs as it does for a user.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CI = {f"make {goal}" for goal in ("quickstart", "lint", "docs", "results", "test", "coverage")}
CI.add(".ci/run")
"""What .ci/run runs itself, where coverage is the tests, and itself."""
TESTED = ("python benchmarks/", "make stress", "python -m regularized_lopt.zoo.publish")
"""Beginnings of commands that are measurements or publish results; tests/ starts their code."""

MAIN = "upstream's main branch is not installed"
MNIST = "MNIST is not here (TFDS_DATA_DIR)"
SHORT = (
    "outer_train.num_outer_steps = 2",
    "RegularizedTruncatedGrad.unroll_length = 5",
    "Curriculum.train_lengths = (5, 10)",
    "Curriculum.validation_period = 1",
    "Curriculum.num_validation_tasks = 1",
    "ObjectiveCheck.num_trajectories = 0",
)
TWO_STEPS = tuple(f"--gin_bindings={one}" for one in SHORT)
SMALL_EXPERIMENT = (
    "--gin_bindings=TaskPlan.runs = 2",
    "--gin_bindings=Experiment.num_steps = 20",
    "--gin_bindings=Experiment.tasks = ('ImageMLP_Digits_20_Relu',)",
    "--gin_bindings=Experiment.baselines = ()",
    "--gin_bindings=Experiment.early_evidence = {}",
    "--gin_bindings=Experiment.parallelism = (1, 1)",
    f"--gin_bindings=Experiment.bindings = {SHORT}",
)
SMALL_SEARCH = (
    "--gin_bindings=Search.variants = {'none': 'gin_configs/mnist_mlp_none.gin'}",
    "--gin_bindings=Search.trials = {'none': (('theta_learning_rate.learning_rate = 1e-3',),)}",
    f"--gin_bindings=Search.bindings = {SHORT}",
    "--gin_bindings=Search.num_runs = 2",
    "--gin_bindings=Search.num_steps = 20",
)
SMALL_QUADRATIC = (
    "--gin_bindings=Stability.num_samples = 50",
    "--gin_bindings=GradientVariance.horizons = (1, 10)",
    "--gin_bindings=GradientVariance.num_seeds = 10",
    "--gin_bindings=MetaTraining.num_steps = 20",
    "--gin_bindings=Linearization.num_states = 1",
    "--gin_bindings=Linearization.num_draws = 10",
)
SMALL_FEW_SHOT = (
    "--gin_bindings=FewShotFamily.channels = 4",
    "--gin_bindings=few_shot.seeds = (0,)",
    "--gin_bindings=few_shot.num_episodes = 10",
    "--gin_bindings=outer_train.num_outer_steps = 2",
    "--gin_bindings=Curriculum.validation_period = 2",
    "--gin_bindings=Curriculum.num_validation_tasks = 2",
    "--gin_bindings=FineTuning.pretraining_steps = 2",
    "--gin_bindings=FineTuning.num_steps = 2",
    "--gin_bindings=FineTuning.num_validation_episodes = 2",
)


@dataclasses.dataclass(frozen=True)
class Form:
    """How commands that have `part` in them are started.

    Attributes:
      part: of the command; the first form that fits is taken.
      extra: arguments after the page's own, which win over these.
      filled: what stands for a placeholder.
      lacks: why it cannot be started where `there` says so.
      installs: in the environment of a user of the library.
      as_for_users: without `quickly`: it computes for minutes, for which optimized machine code
        is worth its time, or brings JAX in versions of its own.
    """

    part: str
    extra: tuple[str, ...] = ()
    filled: tuple[tuple[str, str], ...] = ()
    lacks: str = ""
    installs: bool = False
    as_for_users: bool = False


FORMS = (
    Form(
        "--coordinator_address",
        (*TWO_STEPS, "--num_processes=1", "--train_log_dir=runs/job"),
        (("...", "--config_file=gin_configs/digits_mlp_none.gin"), ("HOST:PORT", "localhost:8476")),
    ),
    Form(
        "regularized_lopt.outer_train --config_file=gin_configs/digits_star_pes",
        tuple(one.replace("TruncatedGrad", "TruncatedPES") for one in TWO_STEPS),
    ),
    Form("regularized_lopt.outer_train --config_file=gin_configs/digits", TWO_STEPS),
    Form("regularized_lopt.outer_train --config_file=gin_configs/mnist", TWO_STEPS, lacks=MNIST),
    Form(
        "regularized_lopt.meta_test --lopt=runs/mine",
        ("--num_runs=2", "--num_steps=20", "--baselines="),
    ),
    Form(
        "regularized_lopt.meta_test",
        ("--num_runs=2", "--num_steps=20", "--baselines="),
        lacks=MNIST,
    ),
    Form("regularized_lopt.reproduce --config_file=gin_configs/reproduce_digits", SMALL_EXPERIMENT),
    Form(
        "regularized_lopt.reproduce --config_file=experiments/flatness_pilot",
        (
            "--gin_bindings=Experiment.num_steps = 20",
            "--gin_bindings=Experiment.baselines = ()",
            "--gin_bindings=TaskPlan.measured_runs = 0",
        ),
    ),
    Form(
        "regularized_lopt.reproduce --verify",
        ("--task=ImageMLP_Mnist_20_Sigmoid",),
        lacks=MNIST,
        as_for_users=True,
    ),
    Form("regularized_lopt.search", SMALL_SEARCH, lacks=MNIST),
    Form(
        "regularized_lopt.compare",
        ("--num_runs=2", "--num_steps=20"),
        (
            (" A B ", " mnist_mlp_none mnist_mlp_sam "),
            ("--task=...", "--task=ImageMLP_Digits_20_Relu"),
        ),
    ),
    Form("regularized_lopt.noisy_quadratic", SMALL_QUADRATIC),
    Form("regularized_lopt.few_shot --config_file=gin_configs/few_shot_digits", SMALL_FEW_SHOT),
    Form("regularized_lopt.few_shot", SMALL_FEW_SHOT, lacks=MNIST),
    Form("regularized_lopt.zoo"),
    Form(
        "learned_optimization.run_outer_train_single",
        ("--gin_bindings=run_train.num_steps = 2",),
        (("=DIR", "=runs/upstream"),),
        lacks=MAIN,
    ),
    Form("pip install", installs=True),
    Form("python -c"),
    Form("-m pytest", ("--collect-only", "--quiet")),
    Form(
        "make matrix",
        # The oldest with constraints is what the tests run in.
        filled=(("make matrix", "python .ci/matrix.py --cells newest"),),
        as_for_users=True,
    ),
)
COMMAND = re.compile(r"(make|pip|python|\.venv/bin/python|\.ci/run)(?= |$)")
LISTING = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def pages() -> str:
    """The text of all pages but those of studies, README.md first."""
    paths = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")]
    return "\n".join(path.read_text() for path in [*paths, *sorted(REPOSITORY.glob("docs/*.md"))])


def commands(text: str) -> list[str]:
    """Every command in it, in order, once; a bare name of one that is there in full is none."""
    listings = [listing for language, listing in LISTING.findall(text) if not language]
    spans = [" ".join(span.split()) for span in INLINE.findall(LISTING.sub("", text))]
    lines = [re.split(r"\s+#", line)[0] for one in listings for line in one.splitlines()]
    found = list(dict.fromkeys(one for one in [*lines, *spans] if COMMAND.match(one)))
    whole = [one.removeprefix(".venv/bin/") for one in found]
    return [one for one in found if not any(other.startswith(f"{one} ") for other in whole)]


def started(text: str) -> list[str]:
    """Those in it that are started here."""
    return [one for one in commands(text) if one not in CI and not one.startswith(TESTED)]


def form_of(command: str) -> Form:
    """The first that fits.

    Raises:
      LookupError: none does.
    """
    for form in FORMS:
        if form.part in command:
            return form
    raise LookupError(f"A page has {command!r}, which FORMS in .ci/readme.py has no form of.")


def smallest(command: str) -> str:
    """For the shell."""
    form = form_of(command)
    for placeholder, value in form.filled:
        command = command.replace(placeholder, value)
    return " ".join([command, *map(shlex.quote, form.extra)])


def there(lacks: str, python: pathlib.Path) -> bool:
    """Whether what a form needs is here."""
    if lacks == MNIST:
        return "TFDS_DATA_DIR" in os.environ
    if lacks == MAIN:
        asks = "from regularized_lopt import upstream; exit(upstream.GENERATION != 'main')"
        return subprocess.run([python, "-c", asks], check=False).returncode == 0
    return True


def quickly(python: pathlib.Path, compiled: pathlib.Path) -> dict[str, str]:
    """Variables by which XLA takes little time over a program, and none over one in `compiled`."""
    flags = runpy.run_path(str(REPOSITORY / "tests/helpers_xla.py"))["flags"]
    return {
        "XLA_FLAGS": flags(python),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(command: str, environment: pathlib.Path, variables: dict[str, str]) -> None:
    """Runs it; ends the whole with its output if it fails."""
    print(f"$ {command}", flush=True)
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=REPOSITORY,
        env={
            **os.environ,
            **variables,
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-5000:]}\nexit status {done.returncode}: {command}")
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Starts them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print them, and start none")
    args = parser.parse_args()
    found = started(pages())
    if idle := set(FORMS) - set(map(form_of, found)):
        sys.exit(f"No page has a command for these forms: {sorted(one.part for one in idle)}.")
    if args.list:
        print(*map(smallest, found), sep="\n")
        return
    own = REPOSITORY / ".venv"
    with tempfile.TemporaryDirectory() as scratch:
        library = pathlib.Path(scratch, "library")
        variables = quickly(own / "bin/python", pathlib.Path(scratch, "compiled"))
        for command in found:
            form = form_of(command)
            if not there(form.lacks, own / "bin/python"):
                print(f"skipped, {form.lacks}: {command}", flush=True)
                continue
            if form.installs and not library.exists():
                subprocess.run([own / "bin/python", "-m", "venv", library], check=True)
            environment = library if form.installs else own
            start(smallest(command), environment, {} if form.as_for_users else variables)
        use = "import regularized_lopt; regularized_lopt.load('mnist_mlp_sam')"
        start(f"cd {scratch} && python -c {shlex.quote(use)}", library, variables)


if __name__ == "__main__":
    main()

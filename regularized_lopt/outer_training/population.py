"""A population: members that differ in seed and doses, whose steps are computed together."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from regularized_lopt import devices, errors, run_files, serialization
from regularized_lopt import progress as progress_lib
from regularized_lopt.devices import Parallelism
from regularized_lopt.interruption import Interrupted, StopRequest
from regularized_lopt.outer_training import doses as doses_lib
from regularized_lopt.outer_training import parallelism as parallelism_lib
from regularized_lopt.outer_training import run_dir as run_dir_lib
from regularized_lopt.outer_training.loop import Asking, Request
from regularized_lopt.outer_training.programs import Programs
from regularized_lopt.outer_training.requests import Check, OuterStep, Validation
from regularized_lopt.outer_training.run_dir import OtherExperimentError
from regularized_lopt.outer_training.session import DivergedError, Session

_LONGEST_NAME = 200


@dataclasses.dataclass(frozen=True)
class Member:
    """What sets one run apart from the others.

    Attributes:
      name: of its directory.
      seed: of theta, tasks, params and batches.
      doses: its values, by gin name.
    """

    name: str
    seed: int
    doses: Mapping[str, float]


def members(
    seeds: Sequence[int] | None, doses: Mapping[str, Sequence[float]] | None = None
) -> tuple[Member, ...]:
    """The members with these seeds and doses.

    Args:
      seeds: one per member, each 0 to 2^32 - 1; None: this is no population, and has no members.
      doses: by gin name, one number per member.

    Raises:
      ValueError: there are none, or two that are the same, or doses for another number of them.
    """
    doses = doses or {}
    if seeds is None:
        if doses:
            raise ValueError("outer_train.doses needs outer_train.seeds: one seed per value.")
        return ()
    if not seeds:
        raise ValueError("outer_train.seeds is empty: give one per member.")
    for seed in seeds:
        errors.check_seed("outer_train.seeds", seed)
    doses_lib.check(doses, len(seeds))
    found: dict[str, Member] = {}
    for place, seed in enumerate(int(seed) for seed in seeds):
        # Plus 0.0: there is no dose of -0.0.
        own = {name: float(values[place]) + 0.0 for name, values in doses.items()}
        if (member := Member(_name(seed, own), seed, own)).name in found:
            raise ValueError(
                f"outer_train.seeds: seed {seed} is there twice"
                + (" with the same doses" if doses else "")
                + ": two members would be the same run. Leave one of them out."
            )
        found[member.name] = member
    return tuple(found.values())


def _name(seed: int, doses: Mapping[str, float]) -> str:
    """Of a member's directory, another one for every seed and doses."""
    parts = [f"{name.replace('/', '_')}={_digits(value)}" for name, value in doses.items()]
    name = ",".join([f"seed{seed}", *parts])
    if len(name) > _LONGEST_NAME:
        raise ValueError(
            f"outer_train.doses: the directory of a member would be called {name[:60]}..., which "
            f"is longer than {_LONGEST_NAME} characters. Give shorter scopes, or fewer doses."
        )
    return name


def _digits(value: float) -> str:
    """As few as tell the number."""
    return short if float(short := f"{value:g}") == value else repr(value)


@contextlib.contextmanager
def claimed(path: pathlib.Path, given: Sequence[Member], overwrite: bool) -> Iterator[None]:
    """The directory of a population, for one process at a time; it says who its members are.

    Args:
      path: created if needed.
      given: the members.
      overwrite: delete other members instead of refusing.

    Raises:
      OtherExperimentError: it has other members, or holds something else; nothing was written.
      InUseError: another process holds its lock.
      FileFormatError: population.json is damaged.
      OSError: it cannot be written to.
    """
    if not devices.is_writer():
        yield
        return
    with run_dir_lib.claimed(path, functools.partial(_take, path, given, overwrite)):
        yield


def _take(path: pathlib.Path, given: Sequence[Member], overwrite: bool) -> None:
    file = path / run_files.POPULATION_FILE
    description = json.dumps([dataclasses.asdict(one) for one in given], indent=1).encode()
    if not file.is_file():
        run_dir_lib.check_empty(path, "population", run_files.POPULATION_FILE)
    elif (found := file.read_bytes()) == description:
        _say_who_begins_anew(path, given)
        return
    else:
        others = _names(file, found)
        if not overwrite:
            raise OtherExperimentError(
                f"{path} holds a population with other members ({', '.join(others)}); nothing was "
                "written. Give the same outer_train.seeds and outer_train.doses to resume it, or "
                "choose another --train_log_dir."
            )
        (path / run_files.PARALLELISM_FILE).unlink(missing_ok=True)
        for name in set(others) - {one.name for one in given}:
            if (path / name / run_files.EXPERIMENT_FILE).is_file():
                shutil.rmtree(path / name)
    serialization.write_atomically(file, description)


def _say_who_begins_anew(path: pathlib.Path, given: Sequence[Member]) -> None:
    """Where some members of a population have begun, and others are not there."""
    missing = [
        one.name for one in given if not (path / one.name / run_files.EXPERIMENT_FILE).is_file()
    ]
    if 0 < len(missing) < len(given):
        progress_lib.say(
            f"Nothing is in {path} of {', '.join(missing)}: begun anew, where the others go on."
        )


def _names(file: pathlib.Path, content: bytes) -> list[str]:
    """Of the members that a population.json lists."""
    try:
        return [str(one["name"]) for one in json.loads(content)]
    except (ValueError, TypeError, KeyError) as error:
        raise serialization.FileFormatError(
            f"{file} is damaged ({errors.reason(error)}): restore it, or delete the directory to "
            "begin anew."
        ) from error


class Population:
    """Computes what members ask for, as many of them together as it is told to."""

    def __init__(self, programs: Programs, parallelism: Parallelism):
        """Initializer.

        Args:
          programs: that compute it.
          parallelism: see there.
        """
        self._programs = programs
        self._parallelism = parallelism

    def run(
        self, asking: Mapping[str, Asking[Any]]
    ) -> tuple[dict[str, Any], dict[str, DivergedError | Interrupted]]:
        """Until every member is done, or has failed; none of them stops another.

        Args:
          asking: what members do, by name.

        Returns:
          By name, what they found, and how the others ended.
        """
        asked: dict[str, Request] = {}
        found: dict[str, Any] = {}
        failed: dict[str, DivergedError | Interrupted] = {}

        def go_on(name: str, answer: Any = None) -> None:
            asked.pop(name, None)
            try:
                asked[name] = asking[name].send(answer)
            except StopIteration as done:
                found[name] = done.value
            except (DivergedError, Interrupted) as error:
                failed[name] = error

        for name in asking:
            go_on(name)
        with concurrent.futures.ThreadPoolExecutor(self._parallelism.threads) as pool:
            while asked:
                due = _due(asked)
                for name, answer in zip(due, self._answers(list(due.values()), pool), strict=True):
                    go_on(name, answer)
        return found, failed

    def seconds(self, asked: Sequence[OuterStep], rounds: int = 2) -> float:
        """Of one outer step of all members, after one that compiles it."""
        with concurrent.futures.ThreadPoolExecutor(self._parallelism.threads) as pool:
            jax.block_until_ready(self._answers(asked[: self._parallelism.batch], pool))
            began = time.perf_counter()
            for _ in range(rounds):
                jax.block_until_ready(self._answers(asked, pool))
        return (time.perf_counter() - began) / rounds

    def _answers(
        self, asked: Sequence[Any], pool: concurrent.futures.ThreadPoolExecutor
    ) -> list[Any]:
        """To requests of one kind."""
        size = self._parallelism.batch
        groups = [asked[i : i + size] for i in range(0, len(asked), size)]
        compute: Callable[[Any], Sequence[Any]]
        if isinstance(asked[0], Validation):
            compute = self._programs.judgements
        elif isinstance(asked[0], Check):
            compute = self._programs.checks
        else:
            # Once: all members take their batches from the same data, as each would alone.
            data = self._programs.estimator.get_datas()

            def compute(group: Any) -> Sequence[Any]:
                found = self._programs.outer_steps(group, data)
                # A thread does its own work; one alone goes on, as long as no one needs results.
                return jax.block_until_ready(found) if self._parallelism.threads > 1 else found

        def of_group(group: Sequence[Any]) -> Sequence[Any]:
            # Filled up, so that nothing is compiled anew when members are fewer.
            filled = [*group, *[group[0]] * (size - len(group))]
            return compute(filled)[: len(group)]

        found = (
            pool.map(of_group, groups) if self._parallelism.threads > 1 else map(of_group, groups)
        )
        return [answer for of in found for answer in of]


def _due(asked: Mapping[str, Request]) -> dict[str, Request]:
    """Those that can be computed together; steps when nothing else is asked for."""
    kinds = {name: _kind(one) for name, one in asked.items()}
    first = min(kinds.values())
    return {name: one for name, one in asked.items() if kinds[name] == first}


def _kind(one: Request) -> tuple[int, int]:
    """Validations of one length, checks of one length, steps."""
    if isinstance(one, OuterStep):
        return 2, 0
    return (0 if isinstance(one, Validation) else 1), one.length


def choose(programs: Programs, asked: Sequence[OuterStep]) -> Parallelism:
    """The fastest of the `ways` to take a step of all members, by trying each.

    Where several devices share the members, all are in one program.
    """
    if programs.mesh is not None:
        return Parallelism(len(asked), 1)
    progress_lib.say("Trying a few ways to compute the members' steps; each is compiled first.")
    return min(
        parallelism_lib.ways(len(asked)), key=lambda way: Population(programs, way).seconds(asked)
    )


def train(
    programs: Programs,
    sessions: Mapping[str, Session],
    stop: StopRequest,
    path: pathlib.Path,
    parallelism: tuple[int, int] | None,
) -> dict[str, Any]:
    """The best theta of every run.

    Args:
      programs: of all of them.
      sessions: by name.
      stop: hears of signals.
      path: of the population.
      parallelism: see `outer_train`.

    Raises:
      DivergedError, Interrupted: a run ended so; of several, when the others are done.
    """
    if parallelism is not None:
        way = Parallelism(*parallelism)
    elif len(sessions) == 1:
        way = Parallelism(1, 1)
    else:
        steps = [one.next_step() for one in sessions.values()]
        platform = f"{programs.num_devices} x {jax.devices()[0].device_kind}"
        way = parallelism_lib.kept(path, functools.partial(choose, programs, steps), platform)
    asking = {name: one.run(stop) for name, one in sessions.items()}
    found, failed = Population(programs, way).run(asking)
    if not failed:
        return found
    interrupted = [error for error in failed.values() if isinstance(error, Interrupted)]
    if interrupted or len(sessions) == 1:
        raise next(iter(interrupted or failed.values()))
    raise DivergedError(
        f"{len(failed)} of {len(sessions)} members diverged, the others are done. "
        + " ".join(f"{name}: {error}" for name, error in failed.items())
    )

"""Several devices and hosts: the tasks of an outer step are shared out over a mesh.

Theta is on every device; each unrolls its share of the trajectories and differentiates through
them, and one sum of theta's gradient over the mesh follows. Nothing else crosses it but the means
that are logged. Only the first process writes; all read the same directory.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "tasks"
SHARED = PartitionSpec(AXIS)
REPLICATED = PartitionSpec()
# Seconds without a sign of life after which a process counts as dead, and for which the others
# wait for it when they end.
_HEARTBEAT_TIMEOUT = 20
_SHUTDOWN_TIMEOUT = 10


def initialize(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of one job; before anything else is done with JAX.

    Args:
      coordinator_address: HOST:PORT of the first process; None: a single process, nothing to join
        (on clusters that JAX knows, "auto" finds all three).
      num_processes: in the job, > 0.
      process_id: of this one, from 0.

    Raises:
      ValueError: the three do not fit together.
      RuntimeError: the others did not come.
    """
    if coordinator_address is None:
        if num_processes is not None or process_id is not None:
            raise ValueError(
                f"--num_processes={num_processes} --process_id={process_id}: also give "
                "--coordinator_address=HOST:PORT, the same to every process."
            )
        return
    if coordinator_address == "auto":
        coordinator_address = None
    elif num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise ValueError(
            f"--coordinator_address={coordinator_address} needs --num_processes=N > 0 and "
            f"--process_id from 0 to N - 1, got {num_processes} and {process_id}."
        )
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
    )


def is_writer() -> bool:
    """Whether this process writes files and shows progress."""
    return jax.process_index() == 0


class Parallelism(NamedTuple):
    """How runs, or members of a population, share one device; results are the same to rounding.

    Attributes:
      batch: of them side by side in one program (vmap), > 0.
      threads: programs at work at a time, > 0.
    """

    batch: int = 1
    threads: int = 1


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_mesh(num_devices: int | None, num_tasks: Sequence[int]) -> Mesh | None:
    """The devices that share the tasks; None: one device, no mesh.

    Args:
      num_devices: how many; None: as many of all processes' devices as divide every task count.
      num_tasks: trajectories of each truncated step.

    Raises:
      ValueError: there are not so many, they do not divide the tasks evenly, or some of a job's
        processes would have nothing to do.
    """
    found = jax.devices()
    divides = [
        count
        for count in range(1, len(found) + 1)
        if all(tasks % count == 0 for tasks in num_tasks)
    ]
    count = max(divides) if num_devices is None else num_devices
    several = jax.process_count() > 1
    if count not in divides or (several and count != len(found)):
        raise ValueError(
            f"outer_train.num_devices = {num_devices}: there are {len(found)} devices in "
            f"{jax.process_count()} processes, and RegularizedTruncatedStep.num_tasks is "
            f"{', '.join(str(tasks) for tasks in num_tasks)}. The devices must divide the tasks "
            f"evenly ({', '.join(str(each) for each in divides)} do)"
            + ("; with several processes all devices take part." if several else ".")
        )
    return Mesh(np.asarray(found[:count]), (AXIS,)) if count > 1 else None


def place(tree: Any, mesh: Mesh | None, spec: PartitionSpec) -> Any:
    """The same arrays, laid out over the mesh by `spec`; every process has to call it."""
    if mesh is None:
        return tree
    return _identity(NamedSharding(mesh, spec))(tree)


@functools.lru_cache(maxsize=8)
def _identity(sharding: NamedSharding) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def share(
    function: Callable[..., Any], mesh: Mesh, in_specs: Sequence[PartitionSpec]
) -> Callable[..., Any]:
    """`function` on each device's share of its arguments; its results lead with [num_tasks]."""
    return jax.shard_map(
        function, mesh=mesh, in_specs=tuple(in_specs), out_specs=SHARED, check_vma=False
    )


def agree(value: int) -> int:
    """The largest of all processes' values; every process has to call it."""
    return int(np.max(multihost_utils.process_allgather(np.asarray(value))))


def meet(where: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)

"""How steps of a population's members are computed: which ways there are, and which was chosen."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import jax

from regularized_lopt import devices, errors, run_files, serialization
from regularized_lopt.devices import Parallelism


def ways(num_members: int) -> list[Parallelism]:
    """Those that are worth a try: one by one, all in one program, and shares of the CPU's cores."""
    cores = min(devices.cores(), num_members) if jax.default_backend() == "cpu" else 1
    found = {
        Parallelism(1, 1),
        Parallelism(1, cores),
        Parallelism(-(-num_members // cores), cores),
        Parallelism(num_members, 1),
    }
    return sorted(found)


def kept(path: pathlib.Path, find: Callable[[], Parallelism], platform: str) -> Parallelism:
    """The choice that was made in a population's directory for such devices, or is made now."""
    file = path / run_files.PARALLELISM_FILE
    try:
        chosen = dict(json.loads(file.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):  # None was made, or it is damaged: no loss.
        chosen = {}
    try:
        way = Parallelism(**chosen[platform])
        for count in way:
            errors.check_count(run_files.PARALLELISM_FILE, count)
    except (ValueError, TypeError, KeyError):
        way = find()
        if devices.is_writer():
            text = json.dumps({**chosen, platform: way._asdict()}, indent=1)
            serialization.write_atomically(file, text.encode())
    return way

"""What a result was made with: versions, device and the state of the source."""

from __future__ import annotations

import functools
import pathlib
import platform
import subprocess

import jax
import numpy as np

from regularized_lopt import upstream
from regularized_lopt._version import __version__


@functools.cache
def versions() -> dict[str, str]:
    """What a result was made with; the git state is that of the source, where it has one."""
    return {
        "regularized_lopt": __version__,
        "learned_optimization": upstream.GENERATION,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "git": _git_state(),
    }


def _git_state() -> str:
    source = pathlib.Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(source), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        # Of an installed copy the commit would be that of whatever repository surrounds it.
        if not commit or not git("ls-files", "--", str(source / "__init__.py")):
            return "not in git"
        changed = git("status", "--porcelain", "--untracked-files=no")
    except OSError:
        return "git is not installed"
    return commit + (" with changes" if changed else "")

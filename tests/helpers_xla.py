"""Flags by which XLA compiles small programs in less time, and none that it does not know."""

import os
import subprocess
import sys

# Most of the time goes into compiling small programs, half of that into optimizing machine code.
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    # Machine code that is not optimized may else differ in a last bit between two programs that
    # share a computation, by what else they hold: in how many parts they are compiled.
    "--xla_cpu_parallel_codegen_split_count=1",
)


def known(flag, python=sys.executable):
    """Tried in a process of its own, which XLA ends, without a word to its parent, if it is not."""
    tried = subprocess.run(
        [python, "-c", "import jax; jax.devices()"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag},
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0


def flags(python=sys.executable):
    """Those that the jaxlib of `python` knows, as XLA_FLAGS has them."""
    every = " ".join(FLAGS)
    return every if known(every, python) else " ".join(one for one in FLAGS if known(one, python))

"""Programs compiled ahead of their use, and soon where they do little."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax

# XLA for a CPU then takes two thirds of the time, for programs that take twice theirs
SOON = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
# entries (steps x cells x genes) of an epoch's program in all, up to which that pays:
# a second is gained, and some 20 ns an entry lost
FEW = 5e7


def ahead(
    pool: ThreadPoolExecutor, lowered: jax.stages.Lowered, n_entries: float
) -> Callable[[], jax.stages.Compiled]:
    """How to get a compiled program, on a CPU compiled while other things go on.

    Compilers for accelerators time kernels on the device, which should then be idle.

    Args:
        pool: of the threads that compile.
        lowered: the program.
        n_entries: that it will pass over in all its calls.

    Returns:
        What waits for it and returns it.
    """
    if jax.default_backend() != "cpu":
        return lowered.compile
    if n_entries > FEW:
        return pool.submit(lowered.compile).result
    return pool.submit(_soon, lowered).result


def _soon(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        return lowered.compile(compiler_options=SOON)
    except jax.errors.JaxRuntimeError:
        # a version of XLA without such options
        return lowered.compile()

"""Programs compiled ahead of their use, and with no more care than they repay."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

# what more XLA for a CPU would do takes up to an eighth of the time and gains these
# programs nothing; with vectors as wide as those of the CPU, where XLA would stop at
# 256 bits, steps take 0.82 to 0.94 of the time (benchmarks/compile_options.py)
ENOUGH = {"xla_backend_optimization_level": 1, "xla_cpu_prefer_vector_width": 512}
# so compiling takes 0.76 to 0.89 of XLA's own time, steps up to twice theirs
SOON = ENOUGH | {"xla_cpu_use_fusion_emitters": False}
# entries (steps x cells x genes) up to which that pays in the mean of families: 0.03 to
# 0.5 s a program are gained, and 3 to 17 ns an entry lost
FEW = 5e7


@contextlib.contextmanager
def compilers() -> Iterator[ThreadPoolExecutor]:
    """Two threads that compile; what they have not begun by the end they never do."""
    pool = ThreadPoolExecutor(2)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


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
    options = (SOON, ENOUGH) if n_entries <= FEW else (ENOUGH,)
    return pool.submit(_compiled, lowered, options).result


def _compiled(
    lowered: jax.stages.Lowered, options: Sequence[dict]
) -> jax.stages.Compiled:
    """With the first of the options that this version of XLA has, or none."""
    for some in options:
        try:
            return lowered.compile(compiler_options=some)
        except jax.errors.JaxRuntimeError:
            continue
    return lowered.compile()

"""The process of the command line: what is set before jax starts, and how it ends."""

import atexit
import gc
import os
import pkgutil
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

from scvae_jax.checks import InputError, InputWarning, is_lack_of_memory
from scvae_jax.files import cache_folder

# what typer returns after Ctrl-C
INTERRUPTED = 130
TOO_LARGE = (
    "found too little memory for this, expected enough, take fewer cells or genes or "
    "smaller batches"
)


def exit_code(command: Callable[[], Any]) -> int:
    """Run a command; what it raises of a user's making becomes one line.

    Args:
        command: what returns an exit code, or None for 0.

    Returns:
        Its exit code; 2 for wrong use and bad input, 1 for what else went wrong.
    """
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", InputWarning)
    warnings.showwarning = _show_warning
    _keep_compiled()
    _choose_by_rule()
    # of what imports and traces leave little is garbage, and looking takes long
    gc.set_threshold(200_000)
    atexit.register(gc.freeze)
    # what a scheduler sends at the end of its time, and a terminal that is closed: as
    # Ctrl-C, they leave nothing behind
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # not what nohup has had ignored
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        code = command()
    except (InputError, ImportError) as error:
        return _fail(str(error), 2)
    except FloatingPointError as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(
            f"found that {error.filename or 'a file'} cannot be written or read "
            f"({error.strerror or error}), expected a place that can, choose another",
            2,
        )
    except Exception as error:
        if is_lack_of_memory(error):
            return _fail(TOO_LARGE, 1)
        # what typer raises for wrong use, whichever copy of click it brings
        if not hasattr(error, "format_message"):
            raise
        return _fail(
            f"found wrong use ({' '.join(error.format_message().split())}), expected "
            "the options of the command, see --help",
            2,
        )
    if code == INTERRUPTED:
        return _fail("found an interruption, expected none, start again", code)
    return code or 0


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_warning(message, *_args, **_kwargs) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _keep_compiled() -> None:
    """Have jax keep what it compiles in the user's cache folder, for the next run."""
    try:
        folder = cache_folder()
    except RuntimeError:
        # without a home nothing is kept
        return
    if folder.is_absolute():
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
        # by default jax keeps only what took a second or longer
        least = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
        os.environ.setdefault(least, "0.1")


def _choose_by_rule() -> None:
    """Have XLA choose a GPU's kernels by rule, so that two runs agree bit for bit.

    To time them, as it does by default, takes longer than all that a run gains by it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # a flag that some version of XLA may not know ends the process: no GPU, no flag
    plugins = ("jax_cuda", "jax_rocm")
    on_gpu = any(module.name.startswith(plugins) for module in pkgutil.iter_modules())
    if on_gpu and "--xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".lstrip()

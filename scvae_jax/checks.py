"""What is said of input that cannot be used, and checks that say it. No jax."""

import math
from collections.abc import Sequence
from typing import Any


class InputError(ValueError):
    """Input that cannot be used. The message reads "found X, expected Y, do Z"."""


class InputWarning(UserWarning):
    """Input that can be used, but that its owner should know about."""


def listing(names: Any, at_most: int = 8) -> str:
    """Names for a message: the first few, and how many more there are."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:at_most]) or "none"
    more = len(names) - at_most
    return f"{shown} and {more} more" if more > 0 else shown


def one_line(error: BaseException) -> str:
    """What an error says, for a message, or what it is called if it says nothing."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python has them, and lists as tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value


def expect(condition: bool, found: str, expected: str, do: str) -> None:
    """Refuse what does not meet a condition.

    Args:
        condition: whether it does.
        found: what was found.
        expected: what was expected.
        do: what to do.

    Raises:
        InputError: if it does not.
    """
    if not condition:
        raise InputError(f"found {found}, expected {expected}, {do}")


def check_count(name: str, value: Any, at_least: int, at_most: int = 2**20) -> None:
    """Refuse what is not a whole number within bounds.

    Args:
        name: of the setting, for the message.
        value: what was given.
        at_least: the least that is allowed.
        at_most: the most.

    Raises:
        InputError: if it is anything else.
    """
    value = plain(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    expect(
        whole and at_least <= value <= at_most,
        f"{name}={value!r}",
        f"a whole number, at least {at_least}"
        + (f" and at most {at_most}" if whole and value > at_most else ""),
        f"change {name}",
    )


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an error is of the machine's or the device's memory, not of the input."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def check_pass(batch_size: Any, seed: Any) -> None:
    """Refuse sizes of batches or seeds of a pass over cells that are none.

    Args:
        batch_size: cells at a time.
        seed: of what is drawn.

    Raises:
        InputError: if one is not a whole number, or out of range.
    """
    check_count("batch_size", batch_size, 1, 2**31 - 1)
    check_count("seed", seed, 0, 2**32 - 1)


def check_range(name: str, value: Any, high: float) -> None:
    """Refuse what is not a number of at least 0 and below a bound.

    Args:
        name: of the setting, for the message.
        value: what was given.
        high: what it must stay below.

    Raises:
        InputError: if it is anything else.
    """
    number = isinstance(value, (int, float)) and math.isfinite(value)
    expect(
        number and 0.0 <= value < high,
        f"{name}={value!r}",
        f"a number of at least 0.0 and below {high}",
        f"change {name}",
    )


def check_field(name: str, value: Any) -> None:
    """Refuse what cannot be a part of a field's name in an .h5ad file.

    Args:
        name: of the argument, for the message.
        value: what was given.

    Raises:
        InputError: for a value with a slash.
    """
    expect(
        "/" not in str(value),
        f"{name}={value!r}",
        "a name without a slash, which HDF5 takes for a folder",
        f"change {name}",
    )


def check_clusters(
    n_clusters: Any, posterior: Any, mixture_weights: Any, component_covariance: Any
) -> None:
    """Refuse what no mixture can be made of.

    Args:
        n_clusters: K, a whole number of at least 1.
        posterior: "shared" or "conditional".
        mixture_weights: "uniform", "learned" or K probabilities that sum to 1.
        component_covariance: "shared", "diagonal" or "full".

    Raises:
        InputError: for anything else.
    """
    check_count("n_clusters", n_clusters, 1, 2**16)
    for name, value, known in (
        ("posterior", posterior, ("shared", "conditional")),
        ("component_covariance", component_covariance, ("shared", "diagonal", "full")),
    ):
        expect(
            value in known,
            f"{name}={value!r}",
            " or ".join(known),
            "choose one of these",
        )
    if isinstance(mixture_weights, str):
        expect(
            mixture_weights in ("uniform", "learned"),
            f"mixture_weights={mixture_weights!r}",
            "uniform, learned or a list of probabilities",
            "choose one of these",
        )
        return
    expect(
        isinstance(mixture_weights, Sequence)
        and all(isinstance(weight, (int, float)) for weight in mixture_weights),
        f"mixture_weights={mixture_weights!r}",
        "uniform, learned or a list of probabilities",
        "choose one of these",
    )
    weights = list(mixture_weights)
    expect(
        len(weights) == n_clusters,
        f"{len(weights)} mixture_weights for {n_clusters} clusters",
        "one for each cluster",
        "give as many",
    )
    expect(
        min(weights) > 0 and abs(sum(weights) - 1) < 1e-5,
        f"mixture_weights that sum to {sum(weights):.6g}, the least {min(weights):.3g}",
        "positive ones that sum to 1",
        "divide them by their sum",
    )

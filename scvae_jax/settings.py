"""Which settings each of many fits has, and what is refused before any work."""

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import optax

from scvae_jax.checks import (
    InputError,
    InputWarning,
    check_count,
    expect,
    listing,
    one_line,
)
from scvae_jax.config import OF_MIXTURES, RECIPES, ModelConfig, TrainConfig
from scvae_jax.likelihoods import SUPPORTS, Likelihood

# what may differ between fits of one program
MODEL_SETTINGS = ("thinning", "dropout_input", "dropout_hidden", "dropout_decoder")
TRAIN_SETTINGS = (
    "learning_rate",
    "weight_decay",
    "free_rate",
    "kl_weight",
    "kl_warmup",
    "free_nats",
    "free_nats_y",
)


def expect_kinds(
    config: Any, train_config: Any, likelihood: Any, optimizer: Any, kl_weight: Any
) -> None:
    """Refuse arguments of `fit` that are of another kind.

    Args:
        config: a ModelConfig or None.
        train_config: a TrainConfig or None.
        likelihood: a Likelihood or None.
        optimizer: an optax optimiser or None.
        kl_weight: an optax schedule or None.

    Raises:
        InputError: if one is not what it should be.
    """
    for name, value, kind in (
        ("config", config, ModelConfig),
        ("train_config", train_config, TrainConfig),
        ("likelihood", likelihood, Likelihood),
        ("optimizer", optimizer, optax.GradientTransformation),
    ):
        if not (value is None or isinstance(value, kind)):
            raise InputError(
                f"found {name}={value!r}, expected a {kind.__name__}, make one (named "
                "likelihoods are named in ModelConfig, rates given in TrainConfig)"
            )
    expect(
        likelihood is None or likelihood.support in SUPPORTS,
        f"a likelihood with support={getattr(likelihood, 'support', None)!r}",
        f"one of {', '.join(SUPPORTS)}",
        "change it",
    )
    try:
        hash(likelihood)
    except TypeError as error:
        raise InputError(
            f"found a likelihood with parts that cannot be hashed ({one_line(error)}), "
            "by which programs are told apart, expected tuples of plain values, make "
            "heads and free tuples"
        ) from None
    if not (kl_weight is None or callable(kl_weight)):
        raise InputError(
            f"found kl_weight={kl_weight!r}, expected an optax schedule, make one; a "
            "number, after a warm-up, is TrainConfig(kl_weight=...)"
        )


def unread_by(
    model: str, likelihood: Likelihood, own: bool, optimizer: Any, kl_weight: Any
) -> list[tuple[str, tuple[str, ...]]]:
    """What does not read which settings.

    Args:
        model: "vae" or "gmvae".
        likelihood: what is fitted.
        own: whether it is one of one's own.
        optimizer: one of one's own, or None.
        kl_weight: a schedule of one's own, or None.

    Returns:
        Each of them in words, with names of settings.
    """
    found = []
    if model == "vae":
        found.append(("a vae", (*OF_MIXTURES, "free_nats_y", "start")))
    if own:
        names = ("likelihood", "likelihood_options")
        found.append(("a likelihood of one's own", names))
    if not likelihood.free and optimizer is None:
        found.append((f"{likelihood.name} without free parameters", ("free_rate",)))
    if optimizer is not None:
        names = ("learning_rate", "weight_decay", "free_rate")
        found.append(("an optimizer of one's own", names))
    if kl_weight is not None:
        found.append(("a kl_weight of one's own", ("kl_weight", "kl_warmup")))
    return found


def expect_depth_in_use(size_factor_key: str | None, is_read: bool) -> None:
    """Refuse depths that a likelihood does not read.

    Args:
        size_factor_key: obs column with them, or None.
        is_read: whether it reads the depth of a cell.

    Raises:
        InputError: if they would change nothing.
    """
    expect(
        size_factor_key is None or is_read,
        f"size_factor_key={size_factor_key!r} for a likelihood that does not read the "
        "depth of a cell",
        "it with a library mean of counts",
        "leave it out",
    )


def expect_in_use(
    settings: dict[str, Any], unread: Sequence[tuple[str, tuple[str, ...]]]
) -> None:
    """Refuse values to try of settings that nothing reads.

    Args:
        settings: values to try by name.
        unread: from `unread_by`.

    Raises:
        InputError: if there are any.
    """
    for reader, names in unread:
        odd = [name for name in names if name in settings]
        if odd:
            raise InputError(
                f"found values for {listing(odd)} and {reader}, which does not read "
                "them, expected one of both, leave one out"
            )


def warn_of_idle(
    config: ModelConfig,
    train_config: TrainConfig,
    unread: Sequence[tuple[str, tuple[str, ...]]],
) -> None:
    """Say which settings were changed that nothing reads.

    Args:
        config: as it was given.
        train_config: as it was given.
        unread: from `unread_by`.
    """
    given, defaults = vars(config) | vars(train_config), vars(ModelConfig())
    defaults = defaults | vars(TrainConfig())
    recipe = RECIPES[config.model]
    for reader, names in unread:
        # a fit's own configuration has the recipe's numbers where nothing was given
        odd = [n for n in names if given[n] not in (defaults[n], recipe.get(n))]
        if odd:
            warnings.warn(
                f"{reader} does not read {listing(odd)}, which changes nothing",
                InputWarning,
                stacklevel=4,
            )


def values_of(
    configs: Sequence[tuple[ModelConfig, TrainConfig]], names: Iterable[str]
) -> dict[str, np.ndarray]:
    """Values of the settings that differ between fits.

    Args:
        configs: of each fit.
        names: of the settings.

    Returns:
        For each [n_fits] float32.
    """
    return {
        name: np.array(
            [getattr(pair[name in TRAIN_SETTINGS], name) for pair in configs],
            np.float32,
        )
        for name in names
    }


def configs_of(
    config: ModelConfig,
    train_config: TrainConfig,
    seeds: Sequence[int],
    settings: dict[str, Sequence[float]],
) -> list[tuple[ModelConfig, TrainConfig]]:
    """The configurations of each fit: every combination of settings with each seed.

    Args:
        config: of the model.
        train_config: of the training.
        seeds: one or more.
        settings: values to try by name.

    Returns:
        A pair for each fit; seeds turn fastest.

    Raises:
        InputError: for settings that may not differ, or seeds that repeat.
    """
    known = (*MODEL_SETTINGS, *TRAIN_SETTINGS)
    odd = [name for name in settings if name not in known]
    lists = [np.ndim(v) == 1 and np.size(v) > 0 for v in (seeds, *settings.values())]
    numbers = [np.asarray(v).dtype.kind in "fiu" for v in settings.values()]
    if odd or not all(lists + numbers):
        raise InputError(
            f"found settings {settings!r} and seeds={seeds!r}, expected a list of "
            f"seeds and lists of numbers for any of {listing(known, 20)}, change them"
        )
    for seed in seeds:
        check_count("seed", seed, 0, 2**32 - 1)
    if len(set(seeds)) < len(seeds):
        raise InputError(
            f"found seeds {listing(seeds)}, expected each once, leave out what repeats"
        )
    found = []
    for values in itertools.product(*settings.values()):
        chosen = {n: float(v) for n, v in zip(settings, values, strict=True)}
        of_model = {n: v for n, v in chosen.items() if n in MODEL_SETTINGS}
        of_train = {n: v for n, v in chosen.items() if n in TRAIN_SETTINGS}
        for seed in seeds:
            found.append(
                (
                    dataclasses.replace(config, **of_model),
                    dataclasses.replace(train_config, seed=seed, **of_train),
                )
            )
    return found

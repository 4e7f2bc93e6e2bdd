"""Settings as frozen dataclasses, to JSON and back. No jax."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from scvae_jax.checks import (
    InputError,
    check_clusters,
    check_count,
    check_range,
    expect,
    listing,
    plain,
)

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# settings of a model that a VAE does not have, in the order of `check_clusters`
OF_MIXTURES = ("n_clusters", "posterior", "mixture_weights", "component_covariance")
# what None stands for: the best on validation cells (experiments/recipe.py), of a
# mixture what parts clusters best; with a free mean of either nothing of a cell is
# hidden, as no part of it tells the total that is then to be decoded
RECIPES = {
    "vae": {
        "thinning": 0.5,
        "dropout_input": 0.0,
        "dropout_hidden": 0.0,
        "free_rate": 20.0,
    },
    "gmvae": {
        "thinning": 0.0,
        "dropout_input": 0.3,
        "dropout_hidden": 0.1,
        "free_rate": 1.0,
    },
    "free mean": {"thinning": 0.0, "dropout_input": 0.0},
}


def _plain_fields(config: Any) -> None:
    """Numbers of numpy in the fields of a dataclass as Python has them."""
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, plain(getattr(config, field.name)))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What is fitted.

    Attributes:
        model: "vae" or "gmvae".
        likelihood: a name in `scvae_jax.likelihoods.FACTORIES`.
        likelihood_options: arguments of its factory (dispersion, mean, k_max).
        n_latent: dimensions of the latent space.
        hidden_sizes: widths of the hidden layers, encoder order; the decoder mirrors.
        layer_norm: LayerNorm after each hidden layer, or none.
        thinning: largest share of a cell's counts hidden from the encoder in training;
            each time a share between 0 and it is drawn, and each count hidden with that
            probability. So the encoder learns to read cells of other depths. None: 0.5
            of a vae, 0 of a gmvae and where the mean is free (of one's own likelihood
            of counts: where it does not read the depth of a cell).
        dropout_input: share of the non-zero inputs hidden from the encoder in training.
            None: 0 of a vae and where the mean is free, 0.3 of a gmvae.
        dropout_hidden: dropout on the encoder's hidden layers. None: 0 of a vae, 0.1 of
            a gmvae.
        dropout_decoder: dropout on the decoder's hidden layers.
        precision: of the gene-wide matrix products, one of PRECISIONS: "float32"; or
            "tensorfloat32" or "bfloat16", which round operands to 10 and 7 bits and
            sum in float32. A device without "tensorfloat32" takes float32 for it.
        n_clusters: components K of a gmvae's mixture; a vae has none.
        posterior: of a gmvae, "shared" (q(z|x), one decode whatever K) or
            "conditional" (q(y|x) q(z|x,y), K decodes).
        mixture_weights: of a gmvae, "uniform", "learned", or K probabilities.
        component_covariance: of a gmvae, "shared" (one scale for all), "diagonal" or
            "full".

    Raises:
        InputError: for a value out of range.
    """

    model: str = "vae"
    likelihood: str = "negative_binomial"
    likelihood_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    n_latent: int = 10
    hidden_sizes: tuple[int, ...] = (128, 128)
    layer_norm: bool = True
    thinning: float | None = None
    dropout_input: float | None = None
    dropout_hidden: float | None = None
    dropout_decoder: float = 0.3
    precision: str = "float32"
    n_clusters: int = 10
    posterior: str = "shared"
    mixture_weights: str | tuple[float, ...] = "learned"
    component_covariance: str = "shared"

    def __post_init__(self) -> None:
        _plain_fields(self)
        expect(
            isinstance(self.hidden_sizes, tuple),
            f"hidden_sizes={self.hidden_sizes!r}",
            "a tuple of whole numbers",
            "change hidden_sizes",
        )
        expect(
            isinstance(self.likelihood, str),
            f"likelihood={self.likelihood!r}",
            "a name",
            "pass a likelihood of your own to fit(likelihood=...)",
        )
        expect(
            isinstance(self.likelihood_options, dict),
            f"likelihood_options={self.likelihood_options!r}",
            "a dict of options",
            "change likelihood_options",
        )
        expect(
            self.model in ("vae", "gmvae"),
            f"model={self.model!r}",
            "vae or gmvae",
            "choose one of these",
        )
        expect(
            self.precision in PRECISIONS,
            f"precision={self.precision!r}",
            f"one of {', '.join(PRECISIONS)}",
            "choose one of these",
        )
        check_clusters(*(getattr(self, name) for name in OF_MIXTURES))
        check_count("n_latent", self.n_latent, 1, 2**16)
        for size in self.hidden_sizes:
            check_count("hidden_sizes", size, 1, 2**16)
        check_range("dropout_decoder", self.dropout_decoder, 1.0)
        for name in ("thinning", "dropout_input", "dropout_hidden"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1.0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How it is fitted.

    Attributes:
        epochs: passes over the training cells; None: as many as make about 6,000 steps,
            between 20 and 400.
        batch_size: cells a step; clipped to the number of training cells.
        learning_rate: the peak, from which it falls along a cosine to 1 % of itself, in
            each phase anew.
        weight_decay: of AdamW, on kernels of layers alone.
        free_rate: how many times the learning rate that of parameters beside the
            weights is, such as log dispersions; None: 20 of a vae, 1 of a gmvae. More
            reaches them sooner where counts are sparse and bursty, and may part
            clusters less well.
        n_samples: importance samples S; 1 trains by the ELBO with its analytic KL, more
            by the importance-weighted bound.
        kl_weight: weight of the KL terms after the warm-up; what is reported is at 1.
        kl_warmup: share of the steps of a phase over which it rises from 0.
        free_nats: KL of z in nats per cell that costs nothing; with n_samples=1 alone.
        free_nats_y: of a gmvae, KL of y that costs nothing; with n_samples=1 alone.
        start: of a gmvae, share of the epochs that it trains as a VAE, before its
            components are placed on the latents; None: as many as make about
            1,000 steps, at least one epoch and at most half of them. That phase takes
            one sample, and 8 free nats or more.
        patience: epochs without a better validation bound, counted from when the KL
            weight has risen, before training stops.
        validation_fraction: share of cells held out where no split is given.
        test_fraction: share of cells set aside untouched where no split is given.
        seed: of everything random: split, initial weights, noise and order. Of many
            fits all but the split, whose seed is `summary["split_seed"]`.

    Raises:
        InputError: for a value out of range.
    """

    epochs: int | None = None
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    free_rate: float | None = None
    n_samples: int = 1
    kl_weight: float = 1.0
    kl_warmup: float = 0.2
    free_nats: float = 0.0
    free_nats_y: float = 0.0
    start: float | None = None
    patience: int = 40
    validation_fraction: float = 0.1
    test_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _plain_fields(self)
        if self.epochs is not None:
            check_count("epochs", self.epochs, 1)
        check_count("batch_size", self.batch_size, 1, 2**31 - 1)
        check_count("n_samples", self.n_samples, 1)
        check_count("patience", self.patience, 1)
        check_count("seed", self.seed, 0, 2**32 - 1)
        check_range("learning_rate", self.learning_rate, 10.0)
        check_range("weight_decay", self.weight_decay, 10.0)
        check_range("kl_weight", self.kl_weight, 1e3)
        check_range("kl_warmup", self.kl_warmup, 1.0)
        check_range("free_nats", self.free_nats, 1e6)
        check_range("free_nats_y", self.free_nats_y, 1e6)
        for name, high in (("free_rate", 1e3), ("start", 1.0)):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), high)
        check_range("validation_fraction", self.validation_fraction, 1.0)
        check_range("test_fraction", self.test_fraction, 1.0)
        expect(
            self.validation_fraction > 0
            and self.validation_fraction + self.test_fraction < 1,
            f"validation_fraction={self.validation_fraction} and "
            f"test_fraction={self.test_fraction}",
            "a validation part, and training cells left",
            "change the fractions",
        )
        expect(
            self.n_samples == 1 or max(self.free_nats, self.free_nats_y) == 0,
            f"free_nats={self.free_nats} and free_nats_y={self.free_nats_y} with "
            f"n_samples={self.n_samples}",
            "free nats with one sample alone",
            "set one of them back",
        )


def completed(config: Any, model: str, free_mean: bool = False) -> Any:
    """A configuration with numbers for what it leaves to the model.

    Args:
        config: a ModelConfig or TrainConfig.
        model: "vae" or "gmvae".
        free_mean: whether a likelihood of one's own does not read the depth of a cell.

    Returns:
        It, with those of `RECIPES` where it has None.
    """
    recipe = RECIPES[model]
    named = getattr(config, "likelihood_options", {})
    if free_mean or named.get("mean") == "free":
        recipe = recipe | RECIPES["free mean"]
    left = {name: v for name, v in recipe.items() if getattr(config, name, 0) is None}
    return dataclasses.replace(config, **left)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where in an AnnData object the data is; recorded in a run, reused on new data.

    Attributes:
        layer: name of a layer; None for X.
        batch_key: obs column with the batch of a cell, given to the decoder.
        size_factor_key: obs column with the depth of a cell, such as the total of all
            genes; None: the total over the genes in use, at least 1.
        genes: boolean var column of the genes to use; None for all.
        split_key: obs column with train, validation and test.
        fractional: what to do with fractional counts: "error", "round" or "allow".
        size_factor_scale: by what size factors are multiplied; a fit sets it so that
            those of the training cells add up to their counts.

    Raises:
        InputError: for an unknown `fractional`.
    """

    layer: str | None = None
    batch_key: str | None = None
    size_factor_key: str | None = None
    genes: str | None = None
    split_key: str | None = None
    fractional: str = "error"
    size_factor_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("layer", "batch_key", "size_factor_key", "genes", "split_key"):
            value = getattr(self, name)
            expect(
                value is None or isinstance(value, str),
                f"{name}={value!r}",
                "one name",
                f"change {name}",
            )
        expect(
            self.fractional in ("error", "round", "allow"),
            f"fractional={self.fractional!r}",
            "error, round or allow",
            "choose one of these",
        )


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options of a likelihood from text.

    Args:
        pairs: each NAME=VALUE; a value of up to 18 digits is a whole number.

    Returns:
        The options.

    Raises:
        InputError: for what is no pair.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(
                f"found likelihood option {pair!r}, expected NAME=VALUE, "
                "write it like dispersion=gene_cell"
            )
        # numbers of more digits need not fit 64 bits
        digits = re.fullmatch("-?[0-9]{1,18}", value)
        options[name] = int(value) if digits else value
    return options


def from_json(kind: type, values: dict[str, Any]) -> Any:
    """A settings dataclass from the dict that `dataclasses.asdict` makes.

    Args:
        kind: the dataclass.
        values: its fields.

    Returns:
        An instance of `kind`.

    Raises:
        InputError: for fields that it does not have, or misses.
    """
    fields = [field.name for field in dataclasses.fields(kind)]
    given = list(map(str, values)) if isinstance(values, dict) else []
    odd = [name for name in given if name not in fields]
    expect(
        isinstance(values, dict) and set(given) == set(fields),
        f"settings {listing(odd + sorted(set(given) - set(odd)), 20)}",
        f"those of {kind.__name__}: {listing(sorted(fields), 20)}",
        "use the version that wrote them, or fit again",
    )
    return kind(**values)

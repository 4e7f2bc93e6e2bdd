"""Settings: to JSON and back, and every value that is refused."""

import dataclasses
import json
import math

import numpy as np
import pytest

from scvae_jax.checks import InputError, listing
from scvae_jax.config import (
    RECIPES,
    DataConfig,
    ModelConfig,
    TrainConfig,
    completed,
    from_json,
)

KINDS = (ModelConfig, TrainConfig, DataConfig)
CHANGED = {
    ModelConfig: {
        "model": "gmvae",
        "likelihood": "categorised_negative_binomial",
        "likelihood_options": {"k_max": 5, "dispersion": "gene_cell"},
        "n_latent": 1,
        "hidden_sizes": (64, 32, 16),
        "layer_norm": False,
        "thinning": 0.5,
        "dropout_input": 0.0,
        "dropout_hidden": 0.5,
        "dropout_decoder": 0.25,
        "precision": "bfloat16",
        "n_clusters": 3,
        "posterior": "conditional",
        "mixture_weights": (0.5, 0.25, 0.25),
        "component_covariance": "full",
    },
    TrainConfig: {
        "epochs": 7,
        "batch_size": 1,
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "n_samples": 5,
        "kl_weight": 0.5,
        "free_rate": 0.0,
        "kl_warmup": 0.0,
        "free_nats": 0.0,
        "free_nats_y": 0.0,
        "start": 0.25,
        "patience": 1,
        "validation_fraction": 0.3,
        "test_fraction": 0.2,
        "seed": 11,
    },
    DataConfig: {
        "layer": "counts",
        "batch_key": "donor, sex",
        "size_factor_key": "Größe",
        "genes": "highly_variable",
        "split_key": "split",
        "fractional": "round",
        "size_factor_scale": 0.25,
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", [False, True])
def test_settings_survive_json(kind, changed):
    config = kind(**CHANGED[kind]) if changed else kind()
    again = from_json(kind, json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert type(again) is kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_changed_settings_above_name_every_field(kind):
    assert set(CHANGED[kind]) == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", KINDS)
def test_settings_cannot_be_changed_in_place(kind):
    config = kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(kind)[0].name, "other")


def test_hidden_sizes_become_a_tuple():
    assert ModelConfig(hidden_sizes=[8, 4]).hidden_sizes == (8, 4)
    assert ModelConfig(hidden_sizes=[8, 4]) == ModelConfig(hidden_sizes=(8, 4))


def test_numbers_of_numpy_are_taken():
    config = ModelConfig(
        n_latent=np.int64(3),
        hidden_sizes=np.array([8, 4]),
        dropout_decoder=np.float32(0.5),
        n_clusters=2,
        mixture_weights=np.array([0.5, 0.5]),
        likelihood_options={"k_max": np.int64(3)},
    )
    assert config.hidden_sizes == (8, 4) and config.mixture_weights == (0.5, 0.5)
    assert (
        from_json(ModelConfig, json.loads(json.dumps(dataclasses.asdict(config))))
        == config
    )
    assert TrainConfig(epochs=np.int64(3)) == TrainConfig(epochs=3)


@pytest.mark.parametrize("weights", [None, 0.5, {"a": 0.5}, ("half", "half")])
def test_what_are_no_weights(weights):
    with pytest.raises(InputError, match="expected uniform, learned or a list of prob"):
        ModelConfig(n_clusters=2, mixture_weights=weights)


def test_defaults_are_not_shared_between_instances():
    ModelConfig().likelihood_options["k_max"] = 3
    assert ModelConfig().likelihood_options == {}


WHOLE = "expected a whole number, at least {}"
RANGE = "expected a number of at least 0.0 and below {}"
COUNTS = [
    (ModelConfig, "n_latent", 1),
    (TrainConfig, "epochs", 1),
    (TrainConfig, "batch_size", 1),
    (TrainConfig, "n_samples", 1),
    (TrainConfig, "patience", 1),
    (TrainConfig, "seed", 0),
]
RANGES = [
    (ModelConfig, "thinning", 1.0),
    (ModelConfig, "dropout_input", 1.0),
    (ModelConfig, "dropout_hidden", 1.0),
    (ModelConfig, "dropout_decoder", 1.0),
    (TrainConfig, "learning_rate", 10.0),
    (TrainConfig, "weight_decay", 10.0),
    (TrainConfig, "free_rate", 1000.0),
    (TrainConfig, "kl_warmup", 1.0),
    (TrainConfig, "free_nats", 1e6),
    (TrainConfig, "free_nats_y", 1e6),
    (TrainConfig, "kl_weight", 1e3),
    (TrainConfig, "validation_fraction", 1.0),
    (TrainConfig, "test_fraction", 1.0),
]


@pytest.mark.parametrize("below", [1, 1000])
@pytest.mark.parametrize(("kind", "name", "least"), COUNTS)
def test_too_small_a_count(kind, name, least, below):
    value = least - below
    with pytest.raises(
        InputError,
        match=f"found {name}={value}, {WHOLE.format(least)}, change {name}$",
    ):
        kind(**{name: value})
    assert getattr(kind(**{name: least}), name) == least


@pytest.mark.parametrize("value", [1.0, 2.5, "3", True, math.nan])
@pytest.mark.parametrize(("kind", "name", "least"), COUNTS)
def test_a_count_that_is_not_a_whole_number(kind, name, least, value):
    with pytest.raises(InputError, match=f"found {name}=.*{WHOLE.format(least)}"):
        kind(**{name: value})


@pytest.mark.parametrize(("kind", "name", "high"), RANGES)
def test_only_what_differs_between_models_may_be_left_to_them(kind, name, high):
    if name in RECIPES["vae"]:
        assert kind(**{name: None}) == kind()
    else:
        message = f"found {name}=None.*{RANGE.format(high)}"
        with pytest.raises(InputError, match=message):
            kind(**{name: None})


@pytest.mark.parametrize("model", ["vae", "gmvae"])
def test_nothing_is_left_to_the_model_in_the_end(model):
    for config in (ModelConfig(dropout_input=0.25), TrainConfig()):
        found = completed(config, model)
        assert not {name for name in RECIPES[model] if getattr(found, name, 0) is None}
        assert getattr(found, "dropout_input", 0.25) == 0.25


@pytest.mark.parametrize("model", ["vae", "gmvae"])
def test_nothing_of_a_cell_is_hidden_where_its_total_is_to_be_decoded(model):
    free, library = (
        completed(ModelConfig(likelihood_options={"mean": mean}), model)
        for mean in ("free", "library")
    )
    assert free.thinning == free.dropout_input == 0
    assert library.thinning + library.dropout_input > 0
    assert free.dropout_hidden == library.dropout_hidden
    given = ModelConfig(likelihood_options={"mean": "free"}, thinning=0.25)
    assert completed(given, model).thinning == 0.25


@pytest.mark.parametrize("value", ["float16", None, 32])
def test_precision_that_is_refused(value):
    with pytest.raises(
        InputError, match="found precision=.*float32, tensorfloat32, bfloat16"
    ):
        ModelConfig(precision=value)


@pytest.mark.parametrize(
    "sizes", [(0,), (128, -1), (8, 0, 8), (1.5,), ("8",), (None,), (True,)]
)
def test_hidden_sizes_that_are_refused(sizes):
    with pytest.raises(InputError, match=f"found hidden_sizes=.*{WHOLE.format(1)}"):
        ModelConfig(hidden_sizes=sizes)


@pytest.mark.parametrize("sizes", [128, None, "128"])
def test_hidden_sizes_that_are_no_sequence(sizes):
    with pytest.raises(InputError, match="found hidden_sizes=.*expected"):
        ModelConfig(hidden_sizes=sizes)


@pytest.mark.parametrize("value", [-0.1, "above", math.nan, math.inf, "0.5"])
@pytest.mark.parametrize(("kind", "name", "high"), RANGES)
def test_a_number_out_of_range(kind, name, high, value):
    value = high if value == "above" else value
    with pytest.raises(InputError, match=f"found {name}=.*{RANGE.format(high)}"):
        kind(**{name: value})


@pytest.mark.parametrize("model", ["ae", "VAE", "", None])
def test_unknown_model(model):
    with pytest.raises(InputError, match="found model=.*, expected vae or gmvae"):
        ModelConfig(model=model)


@pytest.mark.parametrize("options", [["k_max"], "k_max=3", None])
def test_likelihood_options_that_are_no_dict(options):
    with pytest.raises(InputError, match="found likelihood_options=.*expected"):
        ModelConfig(likelihood_options=options)


@pytest.mark.parametrize(
    "fractions", [(0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.2, 0.9), (0.999, 0.001)]
)
def test_fractions_that_leave_a_part_without_cells(fractions):
    validation, test = fractions
    with pytest.raises(
        InputError,
        match=f"found validation_fraction={validation} and test_fraction={test}, "
        "expected a validation part, and training cells left, change the fractions",
    ):
        TrainConfig(validation_fraction=validation, test_fraction=test)


def test_free_nats_belong_to_one_sample():
    with pytest.raises(
        InputError,
        match="found free_nats=1.0 and free_nats_y=0.0 with n_samples=2, expected",
    ):
        TrainConfig(free_nats=1.0, n_samples=2)
    assert TrainConfig(free_nats=1.0).free_nats == 1.0


@pytest.mark.parametrize("fractional", ["maybe", "", None, True])
def test_unknown_treatment_of_fractional_counts(fractional):
    with pytest.raises(
        InputError, match="found fractional=.*, expected error, round or allow, choose"
    ):
        DataConfig(fractional=fractional)


@pytest.mark.parametrize("kind", KINDS)
def test_from_json_with_an_unknown_field(kind):
    values = dataclasses.asdict(kind()) | {"a_field_of_tomorrow": 1}
    with pytest.raises(
        InputError,
        match=f"found settings a_field_of_tomorrow.*, expected those of {kind.__name__}"
        ".*use the version that wrote them",
    ):
        from_json(kind, values)


@pytest.mark.parametrize("kind", KINDS)
def test_from_json_with_a_missing_field(kind):
    values = dataclasses.asdict(kind())
    name = sorted(values)[-1]
    del values[name]
    with pytest.raises(
        InputError,
        match=f"found settings .*, expected those of {kind.__name__}: .*{name}",
    ):
        from_json(kind, values)


def test_from_json_checks_values_too():
    with pytest.raises(InputError, match="found n_latent=0"):
        from_json(ModelConfig, dataclasses.asdict(ModelConfig()) | {"n_latent": 0})


@pytest.mark.parametrize("values", [None, 3, {1: 2, "epochs": 3}])
def test_from_json_of_something_else(values):
    with pytest.raises(InputError, match="expected those of TrainConfig"):
        from_json(TrainConfig, values)


@pytest.mark.parametrize(
    ("n_names", "at_most", "text"),
    [
        (0, 8, "none"),
        (1, 8, "0"),
        (3, 3, "0, 1, 2"),
        (4, 3, "0, 1, 2 and 1 more"),
        (100, 2, "0, 1 and 98 more"),
    ],
)
def test_names_are_listed_in_short(n_names, at_most, text):
    assert listing(range(n_names), at_most) == text


def test_a_likelihood_in_the_place_of_its_name():
    with pytest.raises(InputError, match=r"expected a name, .*fit\(likelihood="):
        ModelConfig(likelihood=("poisson", ()))

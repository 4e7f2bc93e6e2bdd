"""The train step and the fit loop."""

import dataclasses
import gc
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scvae_jax as sv
from scvae_jax import (
    batches,
    building,
    epochs,
    likelihoods,
    models,
    objectives,
    phases,
    schedule,
    selection,
    steps,
    training,
)
from scvae_jax.checks import InputError, InputWarning
from scvae_jax.config import DataConfig, TrainConfig, completed
from scvae_jax.counts import prepare
from scvae_jax.progress import Course

SMALL = sv.ModelConfig(n_latent=3, hidden_sizes=(16,))


def fit(adata, config=SMALL, likelihood=None, optimizer=None, kl_weight=None, **train):
    train = {"epochs": 2, "batch_size": 32} | train
    return sv.fit(
        adata,
        config,
        sv.TrainConfig(**train),
        likelihood=likelihood,
        optimizer=optimizer,
        kl_weight=kl_weight,
        progress=False,
    )


def same(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


@pytest.fixture(scope="module")
def setting():
    """A model, an optimiser and a batch of six cells."""
    model = models.vae(
        [models.Modality("rna", 12, likelihoods.negative_binomial())],
        n_latent=2,
        hidden_sizes=(8,),
        dropout_decoder=0.1,
    )
    optimizer = optax.adam(1e-2)
    x = np.random.default_rng(0).poisson(2.0, (6, 12))
    state = steps.init_train_state(model, optimizer, jax.random.key(0))
    return model, optimizer, batches.dense_batch(x), state


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"config": sv.TrainConfig()}, "expected a ModelConfig"),
        ({"config": {"n_latent": 2}}, "found config=.*expected a ModelConfig"),
        ({"train_config": SMALL}, "expected a TrainConfig"),
        (
            {"likelihood": "poisson"},
            "found likelihood='poisson', expected a Likelihood",
        ),
        (
            {"likelihood": likelihoods.poisson()._replace(support="count")},
            "found a likelihood with support='count', expected one of counts, integers",
        ),
    ],
)
def test_arguments_of_another_kind(small, arguments, expected):
    with pytest.raises(InputError, match=expected):
        sv.fit(small, **arguments)


@pytest.mark.parametrize(
    ("mean", "given", "expected"),
    [("free", None, 0.0), ("library", None, 0.5), ("free", 0.25, 0.25)],
)
def test_an_own_mean_that_reads_no_depth_is_a_free_one(
    small, monkeypatch, mean, given, expected
):
    own = likelihoods.poisson(mean=mean)
    monkeypatch.setattr(phases, "run", lambda plan, progress: [ValueError(plan)])
    real, configured = training.configs_of, []
    monkeypatch.setattr(
        training, "configs_of", lambda *a: configured.append(a[0]) or real(*a)
    )
    config = sv.ModelConfig(thinning=given)
    with pytest.raises(ValueError, match="Plan"):
        sv.fit(small, config, likelihood=own, progress=False)
    assert configured[-1].thinning == expected


def test_settings_of_the_model_reach_it(small, monkeypatch):
    """Those of one of many fits, which its model is built with."""

    class Planned(Exception):
        """The plan, before it is run."""

    def run(plan, progress):
        raise Planned(plan)

    built = []
    real = training.from_config
    monkeypatch.setattr(phases, "run", run)
    monkeypatch.setattr(
        training,
        "from_config",
        lambda *given, **more: built.append(more["settings"]) or real(*given, **more),
    )
    tried = {"dropout_input": [0.1, 0.2], "learning_rate": [1e-3, 2e-3]}
    with pytest.raises(Planned) as caught:
        sv.fit_many(small, seeds=(3,), settings=tried, progress=False)
    (plan,) = caught.value.args
    plan.build({"dropout_input": 0.2, "learning_rate": 2e-3})
    assert built == [{"dropout_input": 0.2}]
    assert plan.seeds == (3,) * 4
    pairs = zip(*(plan.settings[name] for name in tried), strict=True)
    assert sorted((round(float(a), 4), round(float(b), 4)) for a, b in pairs) == [
        (0.1, 0.001),
        (0.1, 0.002),
        (0.2, 0.001),
        (0.2, 0.002),
    ]


def test_a_fit_says_what_it_is(small):
    found = repr(fit(small, epochs=1))
    assert found.startswith("Fitted(vae, negative_binomial, 40 genes; cells: 108 train")
    assert len(found) < 150


@pytest.mark.slow
def test_a_fit_where_jax_has_64_bits(small):
    config = dataclasses.replace(SMALL, model="gmvae", n_clusters=1)
    with jax.enable_x64(True):
        found = fit(small, config)
    assert np.isfinite(found.summary["validation_elbo"])


def test_a_fit_starts_at_the_mean_profile_of_its_training_cells(small):
    found = fit(small, epochs=1, learning_rate=0.0)
    train = small[found.cells[found.split == "train"], found.genes].X
    mean = np.asarray(train.mean(axis=0)).ravel()
    output = found.params["decoder"]["output_0"]
    bias = np.log(mean + 0.5 / train.shape[0])
    np.testing.assert_allclose(output["bias"], bias, rtol=1e-5, atol=1e-6)
    assert not np.any(output["kernel"])


def test_same_seed_same_parameters_bit_for_bit(small):
    one, two, other = fit(small), fit(small), fit(small, seed=1)
    assert same(one.params, two.params)
    figures = [{k: v for k, v in h.items() if k != "seconds"} for h in one.history]
    again = [{k: v for k, v in h.items() if k != "seconds"} for h in two.history]
    assert figures == again
    assert not same(one.params, other.params)


def test_a_step_lowers_the_loss_and_is_pure(setting):
    model, optimizer, batch, state = setting
    step = steps.make_train_step(model, objectives.elbo(), optimizer)
    before = jax.tree.map(jnp.copy, state.params)
    step = jax.jit(step)
    first, metrics = step(state, batch)
    assert same(before, state.params)
    assert metrics.finite and int(first.step) == 1
    for _ in range(60):
        first, last = step(first, batch)
    assert last.loss < metrics.loss - 1.0


def test_the_key_of_a_step_comes_from_its_number(setting):
    model, optimizer, batch, state = setting
    step = jax.jit(steps.make_train_step(model, objectives.elbo(), optimizer))
    later = state._replace(step=jnp.int32(1))
    assert step(state, batch)[1].loss != step(later, batch)[1].loss
    assert step(later, batch)[1].loss == step(later, batch)[1].loss


def test_padding_changes_nothing(setting):
    model, optimizer, batch, state = setting
    plain = models.vae(model.modalities, n_latent=2, hidden_sizes=(8,))
    step = jax.jit(steps.make_train_step(plain, objectives.elbo(), optax.sgd(1e-2)))
    state = steps.init_train_state(plain, optax.sgd(1e-2), jax.random.key(0))

    # noise depends on the shape of a batch, so a posterior without any
    encoder = state.params["encoder"]
    encoder["Dense_1"] = jax.tree.map(jnp.zeros_like, encoder["Dense_1"])
    encoder["Dense_1"]["bias"] -= 40.0
    short = jax.tree.map(lambda leaf: leaf[:4], batch)
    weight = jnp.array([1.0, 1, 1, 1, 0, 0])
    padded, metrics = step(state, batch._replace(weight=weight))
    alone, alone_metrics = step(state, short)
    np.testing.assert_allclose(metrics.loss, alone_metrics.loss, rtol=1e-6)
    for one, two in zip(
        jax.tree.leaves(padded.params), jax.tree.leaves(alone.params), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_non_finite_steps_are_skipped_and_counted(setting, backend, monkeypatch):
    model, optimizer, batch, state = setting
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    step = jax.jit(steps.make_train_step(model, objectives.elbo(), optimizer))
    (counts,) = batch.counts
    broken = batch._replace(counts=(counts._replace(depth=counts.depth * jnp.nan),))
    after, metrics = step(state, broken)
    assert not metrics.finite
    assert same(after.params, state.params) and same(after.opt_state, state.opt_state)
    assert (int(after.step), int(after.skipped), int(after.skipped_run)) == (1, 1, 1)
    after, _ = step(after, broken)
    after, metrics = step(after, batch)
    assert metrics.finite
    assert (int(after.skipped), int(after.skipped_run), int(after.longest_run)) == (
        2,
        0,
        2,
    )


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_step_is_compiled_once(setting, backend, monkeypatch):
    _, optimizer, batch, _ = setting
    likelihood = likelihoods.from_name("zero_inflated_negative_binomial")
    n_genes = batch.counts[0].x.shape[1]
    modality = models.Modality("rna", n_genes, likelihood)
    model = models.vae([modality], n_latent=2, hidden_sizes=(8,))
    profiles = ((jnp.ones(n_genes), 100),)
    state = steps.init_train_state(model, optimizer, jax.random.key(0), profiles)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    step = jax.jit(steps.make_train_step(model, objectives.elbo(), optimizer))
    state, _ = step(state, batch)
    step(state, batch)
    assert step._cache_size() == 1


def log_normal():
    """Of positive numbers: 0 has no density, as rows of padding would have."""
    return likelihoods.gaussian()._replace(
        name="log_normal",
        heads=(likelihoods.Head("mean"),),
        link=lambda heads, free, covariates: heads,
        log_prob=lambda x, p: -0.5 * (jnp.log(x) - p["mean"]) ** 2 - jnp.log(x),
        start=None,
    )


def test_padding_has_a_density(small):
    adata = small.copy()
    adata.X = np.random.default_rng(0).lognormal(size=small.shape).astype(np.float32)
    found = fit(adata, likelihood=log_normal(), epochs=3)
    assert found.summary["n_train"] % 32 and found.summary["skipped_steps"] == 0
    assert np.isfinite(found.history[-1]["loss"])


def test_what_was_not_observed_has_a_density():
    modality = models.Modality("protein", 3, log_normal())
    x = jnp.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    batch = batches.dense_batch(x)
    counts = batch.counts[0]._replace(observed=jnp.array([0.0, 1.0, 1.0]))
    batch = batch._replace(counts=(counts,), weight=jnp.array([1.0, 1.0, 0.0]))

    def total(mean, batch):
        terms = models.log_likelihood([modality], batch, [{"mean": mean}])
        return jnp.where(batch.weight > 0, terms, 0.0).sum()

    mean = jnp.full((3, 3), 0.5)
    value, slope = jax.value_and_grad(total)(mean, batch)
    expected = log_normal().log_prob(x[1], {"mean": mean[1]}).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    expected = [[0.0] * 3, jnp.log(x[1]) - 0.5, [0.0] * 3]
    np.testing.assert_allclose(slope, np.stack(expected), rtol=1e-5)
    # nor where no cell of a batch has it
    counts = counts._replace(observed=jnp.zeros(3))
    value, slope = jax.value_and_grad(total)(mean, batch._replace(counts=(counts,)))
    assert value == 0.0 and not slope.any()


def broken():
    """A likelihood without a finite value."""
    poisson = likelihoods.poisson()
    return poisson._replace(
        name="broken",
        log_prob_zero=None,
        log_prob=lambda x, p: poisson.log_prob(x, p) / jnp.zeros(()),
    )


def test_a_likelihood_with_two_probabilities_of_zero(small):
    """Where one was replaced and the other left."""
    poisson = likelihoods.poisson()
    tempered = poisson._replace(log_prob=lambda x, p: 0.5 * poisson.log_prob(x, p))
    with pytest.raises(InputError, match="found log_prob_zero of poisson to differ"):
        fit(small, likelihood=tempered, epochs=1)


@pytest.mark.parametrize(("rate", "said"), [(9.0, r" \(it was 9\)"), (None, "")])
def test_advice_names_the_rate_of_the_fit(rate, said):
    """Which of many fits may be another than the configuration's."""
    course = Course(40, rate)
    course.end_phase()
    with pytest.raises(FloatingPointError, match=f"lower the learning rate{said} or"):
        raise course.error


def test_a_run_of_non_finite_steps_ends_with_advice(small):
    with pytest.raises(FloatingPointError, match="non-finite.*lower the learning r"):
        fit(small, likelihood=broken(), epochs=20)


def test_counts_are_not_kept_twice_while_a_model_trains(small, monkeypatch):
    kept = []

    def prepared(*arguments, **options):
        data = prepare(*arguments, **options)
        kept.append(weakref.ref(data.x))
        return data

    def run(plan, *, progress):
        gc.collect()
        assert kept[0]() is None
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "prepare", prepared)
    monkeypatch.setattr(phases, "run", run)
    with pytest.raises(KeyboardInterrupt):
        fit(small)


def test_no_finite_bound_ends_with_advice(small):
    with pytest.raises(FloatingPointError, match="found no finite validation bound"):
        fit(small, likelihood=broken(), epochs=1)


def test_the_step_is_traced_once_in_a_run(small, monkeypatch):
    traces = []
    make = schedule.make_train_step

    def counting(*args, **kwargs):
        step = make(*args, **kwargs)

        def counted(state, batch):
            traces.append(batch.weight.shape)
            return step(state, batch)

        return counted

    monkeypatch.setattr(schedule, "make_train_step", counting)
    # 108 training cells: three batches of 32 and a short one
    result = fit(small, epochs=3)
    assert traces == [(32,)]
    assert result.summary["steps"] == 3 * 4


@pytest.mark.parametrize("n_samples", [1, 3])
def test_the_step_is_exported_for_every_platform(setting, n_samples):
    model, optimizer, batch, state = setting
    objective = objectives.importance_weighted(n_samples)
    step = steps.make_train_step(model, objective, optimizer)
    exported = jax.export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(
        state, batch
    )
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    assert "stablehlo" in exported.mlir_module()


@pytest.mark.parametrize("kind", ["vae", "gmvae"])
def test_a_pass_over_sparse_cells_is_exported_for_a_gpu(small, kind, monkeypatch):
    # what is traced differs by the platform, so it is traced as there
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    data = prepare(small, sv.DataConfig())
    cells = selection.cells_to_device(data, slice(None))
    config = dataclasses.replace(SMALL, model=kind, n_clusters=2)
    likelihood = building.named_likelihood(config)
    model = building.from_config(config, likelihood, n_genes=40)
    optimizer = steps.default_optimizer(10)
    step = steps.make_train_step(model, objectives.elbo(), optimizer)
    setup = epochs.Setup(model, objectives.elbo(), step, jnp.float32(1.0), "best")
    positions, n_slots = batches.in_order(cells, 32)
    state = steps.init_train_state(model, optimizer, jax.random.key(0))
    run = jax.jit(epochs.make_pass(lambda _: setup, 40, n_slots))
    arguments = (state, (positions, {}), cells)
    exported = jax.export.export(run, platforms=("cuda",))(*arguments)
    assert exported.platforms == ("cuda",)
    # a branch is for CPUs
    assert "stablehlo.case" not in exported.mlir_module()
    assert np.isfinite(run(*arguments)[1]["loss"])


def test_weights_of_layers_decay_and_nothing_else():
    """Whatever a likelihood of one's own calls what is learned beside them."""
    params = {
        "encoder": {"hidden_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
        "prior": {"mean": jnp.ones((2, 2))},
        "free": {"rna": {"kernel": jnp.ones(3), "log_dispersion": jnp.ones(3)}},
    }
    optimizer = steps.default_optimizer(10, learning_rate=0.1, weight_decay=0.5)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    decayed = jax.tree_util.tree_leaves_with_path(updates)
    names = [jax.tree_util.keystr(path) for path, leaf in decayed if np.any(leaf)]
    assert names == ["['encoder']['hidden_0']['kernel']"]


def test_early_stopping_stops_and_returns_the_best(small):
    # a rate so high that the bound soon gets worse
    given = {"learning_rate": 0.3, "weight_decay": 0.0, "kl_warmup": 0.0}
    result = fit(small, epochs=200, patience=3, **given)
    bounds = [figures["validation_elbo"] for figures in result.history]
    assert result.summary["stopped_early"] and len(bounds) < 200
    best = int(np.argmax(bounds))
    assert len(bounds) == best + 1 + 3
    assert result.summary["best_epoch"] == best + 1
    assert result.summary["validation_elbo"] == bounds[best]
    figures = sv.evaluate(small, result, split="validation", n_samples=300)
    # another draw of the noise, but the best epoch's parameters, not the last one's
    assert abs(figures["elbo"] - bounds[best]) < 0.3 * abs(bounds[-1] - bounds[best])


def test_the_bound_beats_the_null_model(small):
    """After training, held-out cells are better explained than by the mean profile."""
    result = fit(small, epochs=150, patience=150)
    figures = sv.evaluate(small, result, split="validation", n_samples=50)
    order = {name: i for i, name in enumerate(small.obs_names)}
    rows = [order[cell] for cell in result.cells[result.split == "train"]]
    profile = np.asarray(small.X[rows].sum(0)).ravel()
    held_out = small.X[
        [order[cell] for cell in result.cells[result.split == "validation"]]
    ].toarray()
    mean = held_out.sum(1, keepdims=True) * profile / profile.sum()
    null = likelihoods.poisson().log_prob(held_out, {"log_mean": np.log(mean)})
    assert figures["importance_weighted_bound"] > float(null.sum(1).mean()) + 5
    assert figures["importance_weighted_bound"] >= figures["elbo"]


def test_importance_weighted_training_validates_by_its_bound(small):
    result = fit(small, n_samples=4)
    last = result.history[-1]
    assert last["validation_bound"] > last["validation_elbo"]


OF_MIXTURE = {"model": "gmvae", "n_clusters": 2}


@pytest.mark.parametrize(
    ("of_model", "of_train"),
    [
        (OF_MIXTURE | {"component_covariance": "diagonal"}, {}),
        (OF_MIXTURE | {"component_covariance": "full"}, {}),
        (OF_MIXTURE | {"mixture_weights": "uniform"}, {}),
        (OF_MIXTURE | {"mixture_weights": (0.25, 0.75)}, {"free_nats_y": 0.5}),
        ({}, {"free_nats": 0.5}),
        ({"likelihood": "bernoulli"}, {}),
        ({"likelihood": "gaussian"}, {}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.* clusters have fewer than 1 %")
def test_options_from_the_fit_to_the_annotation(small, tmp_path, of_model, of_train):
    adata, kind = small.copy(), of_model.get("likelihood")
    if kind == "bernoulli":
        adata.X = (adata.X > 0).astype(np.float32)
    elif kind == "gaussian":
        adata.X = adata.X.toarray() - 1.5
    config = dataclasses.replace(SMALL, **of_model)
    fitted = fit(adata, config, **of_train)
    fitted.save(tmp_path / "run")
    loaded = sv.load(tmp_path / "run")
    assert loaded.config == fitted.config == completed(config, config.model)
    assert loaded.train_config == fitted.train_config
    assert loaded.train_config.free_nats == of_train.get("free_nats", 0.0)
    if config.model == "gmvae":
        # what a component has of its own
        of_covariance = {"shared": (), "diagonal": ("departure",)}
        of_covariance["full"] = ("departure", "correlation")
        of_weights = {"learned": ("logits",), "uniform": ()}
        expected = {"mean", "log_scale", *of_covariance[config.component_covariance]}
        expected |= {*of_weights.get(config.mixture_weights, ("log_weights",))}
        assert set(fitted.params["prior"]) == expected
    else:
        names = {head.name for head in fitted.likelihood.heads}
        own = {"bernoulli": {"logit"}, "gaussian": {"mean", "log_scale"}}
        assert names == own.get(kind, {"log_mean"})
    if of_train:
        assert fitted.history[-1]["loss"] != fit(adata, config).history[-1]["loss"]
    one, other = (sv.apply(adata, f, copy=True) for f in (fitted, loaded))
    np.testing.assert_array_equal(one.obsm["X_scvae"], other.obsm["X_scvae"])
    assert np.isfinite(one.obsm["X_scvae"]).all()


def test_genes_that_never_vary_have_no_density(small):
    adata = small.copy()
    x = adata.X.toarray() - 1.5
    x[:, 1] = -1.5
    adata.X = x
    config = dataclasses.replace(SMALL, likelihood="gaussian")
    said = f"found 1 genes with one value in all training cells .{adata.var_names[1]}"
    with pytest.raises(InputError, match=said):
        fit(adata, config)
    with pytest.raises(InputError, match=f"{said}.*in data set data"):
        sv.compare(
            adata, likelihoods=["gaussian"], out="never", seeds=1, progress=False
        )


def test_a_likelihood_with_lists_is_refused_before_the_fit(small):
    mine = likelihoods.poisson()
    mine = mine._replace(name="mine", heads=list(mine.heads))
    with pytest.raises(InputError, match="expected tuples"):
        fit(small, likelihood=mine)


def test_an_optimizer_of_ones_own_is_used(small):
    still = fit(small, optimizer=optax.set_to_zero())
    kernel = still.params["decoder"]["output_0"]["kernel"]
    # the decoder starts at the mean profile
    assert np.all(kernel == 0) and not np.all(
        fit(small).params["decoder"]["output_0"]["kernel"] == 0
    )


def test_an_optimizer_that_takes_the_loss(small):
    optimizer = optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau())
    result = fit(small, optimizer=optimizer)
    assert np.isfinite(result.summary["validation_bound"])


def test_any_optimizer_and_schedule(small):
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.sgd(optax.exponential_decay(1e-3, 10, 0.9), momentum=0.9),
    )
    schedule = optax.linear_schedule(0.2, 1.0, 6)
    result = fit(small, optimizer=optimizer, kl_weight=schedule)
    # the weight of an epoch's last step, of four a epoch
    assert [round(h["kl_weight"], 4) for h in result.history] == [0.6, 1.0]
    own = {name for name in result.summary if name.startswith("own_")}
    assert own == {"own_optimizer", "own_kl_weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_weight": 0.0}, r"found kl_weight=0.0, expected an optax schedule"),
        ({"kl_weight": 0.5}, r"a number, after a warm-up, is TrainConfig\(kl_weight="),
        ({"optimizer": 1e-3}, "found optimizer=0.001, expected a GradientTransf"),
        ({"settings": {"learning_rate": 1e-3}}, "expected .* lists of numbers for any"),
        ({"settings": {"thinning": ()}}, "expected .* lists of numbers for any"),
    ],
)
def test_other_kinds_of_arguments_are_refused(small, options, message):
    with pytest.raises(InputError, match=message):
        sv.fit_many(small, SMALL, **options)


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"learning_rate": [1e-3, 1e-2]}, {"optimizer": optax.adam(1e-3)}),
        ({"thinning": [0.1], "free_rate": [1.0]}, {"optimizer": optax.adam(1e-3)}),
        ({"kl_warmup": [0.1, 0.2]}, {"kl_weight": optax.constant_schedule(1.0)}),
        ({"free_rate": [1.0, 5.0]}, {"likelihood": likelihoods.poisson()}),
    ],
)
def test_settings_that_nothing_would_read_are_refused(small, settings, given):
    with pytest.raises(InputError, match="which does not read them"):
        sv.fit_many(small, SMALL, settings=settings, **given)


@pytest.mark.parametrize("name", ["validation_fraction", "test_fraction"])
def test_fractions_are_those_of_the_configuration(small, name):
    data = prepare(small, DataConfig())
    config = TrainConfig(validation_fraction=0.3, test_fraction=0.2)
    split = selection.split_cells(data, config, None)
    parts = ("train", "validation", "test")
    assert [(split == part).sum() for part in parts] == [60, 36, 24]
    given = data._replace(split=split)
    with pytest.raises(InputError, match=f"found {name}=0.3 beside obs column 'part'"):
        selection.split_cells(given, TrainConfig(**{name: 0.3}), "part")


def test_a_kl_weight_may_be_a_number(setting):
    model, optimizer, batch, state = setting
    objective = objectives.elbo()
    step = steps.make_train_step(model, objective, optimizer, kl_weight=0.5)
    _, metrics = jax.jit(step)(state, batch)
    key = jax.random.fold_in(state.key, state.step)
    terms = model.terms(state.params, key, batch, 1, train=True)
    assert metrics.kl_weight == 0.5
    expected = objective.loss(terms, 0.5).mean()
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)


def test_what_a_fit_cannot_learn_from_is_warned_of(small):
    data = prepare(small, DataConfig(batch_key="batch"))
    split = np.full(120, "train", dtype="<U10")
    selection.warn_of_cells(data, split)
    split[data.batch == 1] = "validation"
    with pytest.warns(InputWarning, match="^1 of 2 batches have no training cell"):
        selection.warn_of_cells(data, split)
    data = data._replace(batch=0 * data.batch, batches=())
    selection.warn_of_cells(data, split)
    twice = data._replace(cells=np.array(["a", "b", "a"] * 40))
    with pytest.warns(InputWarning, match="^118 names of cells repeat.*names_make_uni"):
        selection.warn_of_cells(twice, split)


def test_kl_weight_rises_to_one_by_default(small):
    result = fit(small, epochs=20, kl_warmup=0.5, patience=20)
    weights = [figures["kl_weight"] for figures in result.history]
    assert weights[0] < 0.1 and weights[9] < 1.0 and weights[11:] == [1.0] * 9
    assert (np.diff(weights) >= 0).all()


def test_the_rate_falls_along_a_cosine_and_then_anew():
    optimizer = steps.default_optimizer(10, 30, learning_rate=0.5, weight_decay=0.0)
    params = {"body": {"bias": jnp.zeros(1)}}
    state = optimizer.init(params)
    rates = []
    for _ in range(50):
        # Adam moves a parameter by the rate where the gradient is always the same
        ones = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(ones, state, params)
        rates.append(-float(updates["body"]["bias"][0]))

    def fall(n_steps):
        cosine = 0.5 * (1.0 + np.cos(np.pi * np.arange(n_steps) / n_steps))
        return 0.5 * (0.01 + 0.99 * cosine)

    expected = [*fall(10), *fall(30), *[0.5 * 0.01] * 10]
    np.testing.assert_allclose(rates, expected, rtol=1e-4)


def test_weight_decay_spares_free_parameters(setting):
    model, _, _, state = setting
    optimizer = steps.default_optimizer(10, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    ones = jax.tree.map(jnp.ones_like, state.params)
    updates, _ = optimizer.update(zeros, optimizer.init(ones), ones)
    moved = {
        jax.tree_util.keystr(path): bool((leaf != 0).any())
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    assert {name for name, move in moved.items() if move} == {
        name for name in moved if name.endswith("['kernel']")
    }
    assert not moved["['free']['rna']['log_dispersion']"]


def test_free_parameters_may_have_a_rate_of_their_own(setting, small):
    model, _, _, state = setting
    optimizer = steps.default_optimizer(10, weight_decay=0.0, free_rate=20.0)
    ones = jax.tree.map(jnp.ones_like, state.params)
    updates, _ = optimizer.update(ones, optimizer.init(ones), ones)
    free = updates["free"]["rna"]["log_dispersion"]
    weights = updates["decoder"]["output_0"]["kernel"]
    np.testing.assert_allclose(weights, -2e-3, rtol=1e-4)
    np.testing.assert_allclose(free, -2e-3 * 20.0, rtol=1e-4)
    # none at all: they stay where they start
    result = fit(small, epochs=2, free_rate=0.0)
    assert (result.params["free"]["rna"]["log_dispersion"] == 0.0).all()


@pytest.mark.parametrize(
    ("n_epochs", "steps_per_epoch", "expected"),
    [(7, 27, 7), (None, 27, 222), (None, 5, 400), (None, 10_000, 20)],
)
def test_number_of_epochs(n_epochs, steps_per_epoch, expected):
    assert schedule.n_epochs(TrainConfig(epochs=n_epochs), steps_per_epoch) == expected


@pytest.mark.parametrize(
    ("kind", "rates", "free_rate"),
    [
        ("vae", (0.5, 0.0, 0.0), 20.0),
        pytest.param("gmvae", (0.0, 0.3, 0.1), 1.0, marks=pytest.mark.slow),
    ],
)
def test_what_is_left_to_the_model(small, kind, rates, free_rate):
    names = ("thinning", "dropout_input", "dropout_hidden")
    own = {"n_clusters": 1} if kind == "gmvae" else {}
    config = sv.ModelConfig(model=kind, n_latent=2, hidden_sizes=(8,), **own)
    found = fit(small, config)
    assert found.train_config.free_rate == free_rate
    assert tuple(getattr(found.config, name) for name in names) == rates
    # and that is what training uses
    given = dataclasses.replace(config, **dict(zip(names, rates, strict=True)))
    assert same(found.params, fit(small, given, free_rate=free_rate).params)
    other = dataclasses.replace(config, **dict.fromkeys(names, 0.2))
    assert not same(found.params, fit(small, other, free_rate=5.0).params)


def test_every_cell_once_an_epoch_and_slots_for_the_fullest_batch(small):
    cells = batches.to_device(small.X, np.ones(small.n_obs), np.zeros((small.n_obs, 1)))
    orders = epochs.Orders(seed=3, n_train=small.n_obs, batch_size=50)
    lengths = batches.ROW * -(-np.diff(small.X.indptr) // batches.ROW)
    for epoch in (1, 2):
        index, weight = orders(epoch)
        assert index.shape == weight.shape == (3, 50)
        assert sorted(index[weight > 0]) == list(range(small.n_obs))
        fullest = max(
            lengths[i[w > 0]].sum() for i, w in zip(index, weight, strict=True)
        )
        assert orders.fullest(epoch, cells) == fullest
    assert not np.array_equal(orders(1)[0], orders(2)[0])


@pytest.mark.parametrize("test_fraction", [0.0, 0.2])
def test_programs_of_one_seed_have_the_shapes_of_others(monkeypatch, test_fraction):
    """Whichever cells it sets aside, so that compiled ones can be used again."""
    adata = sv.datasets.simulate(600, 60, n_types=4, depth=200.0, seed=3)
    found, taken = set(), set()

    def seen(plan, progress):
        cells = (plan.train, plan.held_out)
        n_slots = batches.slots_to_spare(plan.length, 32)
        found.add((*jax.tree.leaves(jax.tree.map(np.shape, cells)), n_slots))
        taken.add(int(plan.train.length.sum()))
        # batches of any epoch fit
        orders = epochs.Orders(plan.seeds[0], len(plan.train.start), 32)
        assert max(orders.fullest(e, plan.train) for e in range(50)) <= n_slots
        raise FloatingPointError

    monkeypatch.setattr(training.phases, "run", seen)
    for seed in range(8):
        given = {"seed": seed, "test_fraction": test_fraction, "batch_size": 32}
        with pytest.raises(FloatingPointError):
            fit(adata, **given)
    assert len(found) == 1 and len(taken) > 1


def test_batch_larger_than_the_data_is_clipped(small):
    result = fit(small, batch_size=100_000)
    assert result.summary["steps"] == 2


def test_a_split_without_validation_cells(small):
    adata = small.copy()
    adata.obs["part"] = "train"
    with pytest.raises(InputError, match="found 120 training and 0 validation cells"):
        sv.fit(adata, SMALL, split_key="part", progress=False)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_goes_to_standard_error(small, capsys, progress):
    sv.fit(small, SMALL, sv.TrainConfig(epochs=1), progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("validation bound" in captured.err) == progress


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["pbmc4k", "worm_neurons", "kang_batches"])
@pytest.mark.parametrize(
    "likelihood",
    [
        "poisson",
        "negative_binomial",
        "zero_inflated_poisson",
        "zero_inflated_negative_binomial",
        "categorised_negative_binomial",
    ],
)
def test_real_data_trains_without_a_non_finite_step(shared, name, likelihood):
    import anndata

    adata = anndata.read_h5ad(shared / f"{name}.h5ad")
    result = sv.fit(
        adata,
        sv.ModelConfig(likelihood=likelihood),
        sv.TrainConfig(epochs=3),
        split_key="split",
        batch_key="batch" if name == "kang_batches" else None,
        progress=False,
    )
    assert result.summary["skipped_steps"] == 0
    bounds = [figures["validation_elbo"] for figures in result.history]
    assert np.isfinite(bounds).all() and bounds[-1] > bounds[0]


@pytest.mark.parametrize(
    ("model", "train", "own", "said"),
    [
        (
            {"n_clusters": 3},
            {"start": 0.2},
            {},
            "a vae does not read n_clusters, start",
        ),
        ({}, {"free_rate": 2.0}, {"optimizer": optax.sgd(1e-3)}, "not read free_rate"),
        ({}, {"kl_warmup": 0.1}, {"kl_weight": lambda _: 1.0}, "not read kl_warmup"),
        (
            {"likelihood": "poisson"},
            {"free_rate": 5.0},
            {},
            "poisson without free parameters does not read free_rate",
        ),
        (
            {"likelihood": "poisson", "likelihood_options": {"mean": "free"}},
            {},
            {"likelihood": likelihoods.negative_binomial()},
            "one's own does not read likelihood, likelihood_options",
        ),
    ],
)
def test_settings_that_nothing_reads_are_said(small, model, train, own, said):
    config = sv.ModelConfig(n_latent=2, hidden_sizes=(8,), **model)
    with pytest.warns(InputWarning, match=said):
        sv.fit(small, config, sv.TrainConfig(epochs=1, **train), progress=False, **own)


def test_the_configuration_of_a_fit_has_nothing_idle(small):
    config = sv.ModelConfig(likelihood="poisson", n_latent=2, hidden_sizes=(8,))
    first = sv.fit(small, config, sv.TrainConfig(epochs=1), progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        sv.fit(small, first.config, first.train_config, progress=False)


def test_options_of_another_likelihood_choose_no_recipe(small):
    """A free mean that is named beside a library mean of one's own."""
    config = sv.ModelConfig(
        n_latent=2, hidden_sizes=(8,), likelihood_options={"mean": "free"}
    )
    with pytest.warns(InputWarning, match="does not read likelihood_options"):
        found = sv.fit(
            small,
            config,
            sv.TrainConfig(epochs=1),
            likelihood=likelihoods.negative_binomial(),
            progress=False,
        )
    assert found.config.thinning == 0.5


def test_size_factors_that_nothing_reads_are_refused(small):
    adata = small.copy()
    adata.obs["depth"] = 100.0
    for own in (likelihoods.poisson(mean="free"), likelihoods.gaussian()):
        with pytest.raises(InputError, match="found size_factor_key='depth' for a lik"):
            sv.fit(adata, SMALL, likelihood=own, size_factor_key="depth")


def test_real_data_is_not_rounded(small):
    config = sv.ModelConfig(likelihood="gaussian", n_latent=2, hidden_sizes=(8,))
    train = sv.TrainConfig(epochs=1)
    with pytest.warns(InputWarning, match="real data is not rounded: fractional='rou"):
        sv.fit(small, config, train, fractional="round", progress=False)


def test_values_that_a_vae_does_not_read(small):
    with pytest.raises(InputError, match="for free_nats_y and a vae, which does not"):
        sv.fit_many(small, settings={"free_nats_y": [0, 1]})

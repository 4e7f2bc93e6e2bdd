"""Phases of a mixture, and many fits in one program."""

import dataclasses
from types import SimpleNamespace

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import scvae_jax as sv
from scvae_jax import (
    batches,
    building,
    clusters,
    epochs,
    likelihoods,
    objectives,
    phases,
    placing,
    plots,
    schedule,
    selection,
    steps,
    sweep,
)
from scvae_jax.checks import InputError, InputWarning
from scvae_jax.counts import prepare
from scvae_jax.evaluation import prepare_as
from scvae_jax.phases import Result
from scvae_jax.placing import cluster_codes
from scvae_jax.scores import rand_index
from scvae_jax.selection import random_split
from scvae_jax.settings import MODEL_SETTINGS

SMALL = {"n_latent": 3, "hidden_sizes": (32,), "dropout_input": 0.1}
SMALL |= {"dropout_hidden": 0.0, "dropout_decoder": 0.0}
MIXTURE = sv.ModelConfig(model="gmvae", n_clusters=3, **SMALL)


def fit_many(adata, config=MIXTURE, *, seeds=(0, 1), settings=None, **train):
    train = {"epochs": 6, "batch_size": 32, "learning_rate": 5e-3} | train
    return sv.fit_many(
        adata,
        config,
        sv.TrainConfig(**train),
        seeds=seeds,
        settings=settings,
        progress=False,
    )


def same(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


@pytest.fixture(scope="module")
def types():
    """Three well separated types."""
    adata = sv.datasets.simulate(
        300, 60, n_types=3, depth=2000.0, type_scale=3.0, fraction_marker=0.4, seed=2
    )
    del adata.layers["true_mean"]
    return adata


@pytest.fixture(scope="module")
def fits(types):
    """The best of two fits to the three types, and the other one."""
    return fit_many(types, epochs=60, patience=60)


def test_phases_follow_each_other(fits):
    names = [row["phase"] for row in fits.history]
    assert names == ["vae"] * 30 + ["gmvae"] * 30
    assert [row["epoch"] for row in fits.history] == list(range(1, 61))
    # a best state of the VAE phase must not win
    assert fits.summary["best_epoch"] > 30
    weights = [row["kl_weight"] for row in fits.history]
    # warmed up anew in the second phase
    assert weights[0] < 1 and weights[29] == 1 and weights[30] < 1 and weights[-1] == 1
    assert "clusters_used" not in fits.history[0]
    assert fits.history[-1]["clusters_used"] == 3
    assert 1 < fits.history[-1]["effective_clusters"] <= 3


@pytest.mark.parametrize(
    ("start", "n_epochs", "steps_per_epoch", "expected"),
    [
        (None, 222, 27, 37),
        (None, 20, 7_800, 1),
        (None, 60, 8, 30),
        (None, 1, 8, 0),
        (0.25, 40, 8, 10),
        (0.0, 40, 8, 0),
        (0.99, 40, 8, 39),
    ],
)
def test_epochs_of_a_mixture_as_a_vae(start, n_epochs, steps_per_epoch, expected):
    """Some 1,000 steps unless a share is given, and always one epoch as a mixture."""
    model = building.from_config(
        MIXTURE, building.named_likelihood(MIXTURE), n_genes=60
    )
    config = sv.TrainConfig(start=start)
    found = schedule.phases_of(model, config, n_epochs, steps_per_epoch)
    assert sum(p.epochs for p in found if p.name == "vae") == expected
    assert sum(p.epochs for p in found) == n_epochs


def test_each_phase_has_a_schedule_of_its_own(types, monkeypatch):
    """The KL weight rises and the learning rate falls anew."""
    asked = []

    def optimizer(*n_steps, **rates):
        asked.append(n_steps)
        return steps.default_optimizer(*n_steps, **rates)

    monkeypatch.setattr(schedule, "default_optimizer", optimizer)
    result = fit_many(types, seeds=(0,), epochs=20, start=0.2, kl_warmup=0.5)
    steps_per_epoch = result.summary["steps"] // 20
    assert set(asked[1:]) == {(4 * steps_per_epoch, 16 * steps_per_epoch)}
    weights = np.array([row["kl_weight"] for row in result.history])
    risen = np.flatnonzero(weights == 1.0) + 1
    np.testing.assert_array_equal(risen, [3, 4, *range(13, 21)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* clusters have fewer than 1 %")
def test_latents_of_few_counts_are_in_use_when_components_are_placed(monkeypatch):
    """Free nats keep what the weight of the KL would take from them."""
    few = sv.datasets.simulate(300, 60, n_types=3, depth=20.0, type_scale=3.0, seed=2)
    del few.layers["true_mean"]
    told = []

    def place(model, params, cells, seed):
        mean, variance = placing.encode_cells(model, params, cells)
        kl = 0.5 * (mean**2 + variance - 1.0 - np.log(variance)).sum(axis=1)
        told.append(float(kl.mean()))
        return placing.place_clusters(model, params, cells, seed)

    monkeypatch.setattr(phases, "place_clusters", place)
    for free_nats in (schedule.START_FREE_NATS, 0.0):
        monkeypatch.setattr(schedule, "START_FREE_NATS", free_nats)
        fit_many(few, seeds=(0,), epochs=40, start=0.5, kl_weight=4.0)
    assert told[0] > 4.0 and told[1] < 1.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* clusters have fewer than 1 %")
def test_the_first_phase_takes_one_sample(types):
    """The second one takes as many as are asked for."""
    given = {"seeds": (0,), "epochs": 4, "start": 0.5}
    (one, more) = (fit_many(types, n_samples=n, **given).history for n in (1, 3))
    assert [row["loss"] for row in one[:2]] == [row["loss"] for row in more[:2]]
    for rows, differ in ((one, False), (more, True)):
        for row in rows[2:]:
            assert (row["validation_bound"] > row["validation_elbo"]) is differ


@pytest.mark.parametrize(
    ("keep", "expected"), [("best", 0), ("best risen", 2), ("last", 4)]
)
def test_what_a_phase_leaves(types, keep, expected):
    """Of a model that gets worse with each epoch, and whose KL weight rises over 3."""
    data = prepare(types, sv.DataConfig())
    cells = selection.cells_to_device(data, slice(None))
    config = sv.ModelConfig(**SMALL)
    model = building.from_config(config, building.named_likelihood(config), n_genes=60)
    # uphill
    optimizer = optax.sgd(-1e-4)
    order = epochs.Orders(0, 300, 300)
    in_order, n_slots = batches.in_order(cells, 300)

    def setup(settings):
        objective = objectives.elbo()
        step = steps.make_train_step(
            model, objective, optimizer, kl_weight=lambda step: (step + 1.0) / 3.0
        )
        return epochs.Setup(model, objective, step, 1.0, keep)

    train = jax.jit(epochs.make_pass(setup, 60, n_slots))
    look = jax.jit(epochs.make_look(setup, 60, n_slots))
    state = steps.init_train_state(model, optimizer, jax.random.key(0))
    best = epochs.first_best(state.params)
    states, bounds = [], []
    for number in range(1, 6):
        state, figures = train(state, (order(number), {}), cells)
        of_fit = (state.params, state.key, figures["risen"], {})
        best, figures = look(best, of_fit, (cells, in_order))
        states.append(state.params)
        bounds.append(float(figures["validation_bound"]))
    assert bounds == sorted(bounds, reverse=True)
    assert same(best.params, states[expected])
    assert float(best.bound) == bounds[expected]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vae", "gmvae"])
def test_only_of_a_vae_may_a_state_of_the_warm_up_be_the_best(types, kind):
    """Patience begins after it; of a mixture the best does too, in its own phase."""
    own = {"n_clusters": 1} if kind == "gmvae" else {}
    config = sv.ModelConfig(model=kind, **own, **SMALL)
    # so high a weight that the bound is best on the way there
    given = {"learning_rate": 2e-2, "kl_weight": 20.0, "kl_warmup": 0.5}
    result = fit_many(types, config, seeds=(0,), epochs=40, patience=3, **given)
    rows = [row for row in result.history if row["phase"] == kind]
    bounds = [row["validation_bound"] for row in rows]
    risen = next(i for i, row in enumerate(rows) if row["kl_weight"] == 20.0)
    highest = int(np.argmax(bounds))
    assert highest + 3 < risen
    best = highest
    if kind == "gmvae":
        best = risen + int(np.argmax(bounds[risen:]))
        # its first phase has no best state to wait for
        assert len(result.history) - len(rows) == 20
    assert len(rows) == (risen + 3 if kind == "vae" else best + 1 + 3)
    assert result.summary["best_epoch"] == rows[best]["epoch"]
    assert result.summary["validation_bound"] == bounds[best]
    figures = sv.evaluate(types, result, split="validation", n_samples=100)
    assert figures["elbo"] == pytest.approx(bounds[best], abs=4.0)


@pytest.fixture(scope="module")
def conditional(types):
    """A fit with the conditional posterior."""
    config = sv.ModelConfig(
        model="gmvae", n_clusters=3, posterior="conditional", **SMALL
    )
    return fit_many(types, config, epochs=60, patience=60, seeds=(0,))


@pytest.mark.parametrize("posterior", ["fits", "conditional"])
def test_clusters_are_the_types(types, posterior, request):
    found = request.getfixturevalue(posterior)
    figures = sv.evaluate(types, found, split="all", n_samples=5, score_key="cell_type")
    assert figures["ari"] > 0.95 and figures["oracle_k"] is False
    assert figures["clusters_used"] == figures["n_clusters"] == 3
    total = figures["log_likelihood"] - figures["kl_z"] - figures["kl_y"]
    assert figures["elbo"] == pytest.approx(total, rel=1e-6)
    sizes = found.summary["cluster_sizes"]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) == 270


def test_many_fits_are_those_of_each_seed_alone(types, fits):
    alone = fit_many(types, epochs=60, patience=60, seeds=(1,))
    (one,) = (f for f in (fits, *fits.alternatives) if f.train_config.seed == 1)
    assert same(one.params, alone.params)
    strip = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in f.history]
        for f in (one, alone)
    ]
    assert strip[0] == strip[1]
    every = (fits, *fits.alternatives)
    # the speed is that of all fits together
    epochs = sum(f.summary["epochs"] for f in every)
    for f in every:
        took = f.summary["n_train"] * epochs / f.summary["cells_per_second"]
        assert took == pytest.approx(f.summary["seconds"], rel=1e-2)
    bounds = [f.summary["validation_bound"] for f in every]
    assert bounds == sorted(bounds, reverse=True)
    assert fits.summary["n_fits"] == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("thinning", 0.6),
        ("dropout_input", 0.4),
        ("dropout_hidden", 0.3),
        ("dropout_decoder", 0.2),
        ("learning_rate", 0.02),
        ("weight_decay", 0.3),
        ("free_rate", 7.0),
        ("kl_weight", 2.0),
        ("kl_warmup", 0.9),
        ("free_nats", 50.0),
        ("free_nats_y", 5.0),
    ],
)
def test_what_differs_between_fits_is_what_a_configuration_says(small, name, value):
    """A setting of one of many fits, which is traced, against the same of all."""
    config = dataclasses.replace(MIXTURE, thinning=0.2, dropout_hidden=0.1)
    config = dataclasses.replace(config, dropout_decoder=0.1)
    train = sv.TrainConfig(epochs=8, free_rate=1.0)
    of_model = name in MODEL_SETTINGS
    batch = batches.dense_batch(small.X.toarray())

    def figures(config, train, settings):
        def build(chosen):
            return building.from_config(
                config,
                building.named_likelihood(config),
                n_genes=small.n_vars,
                n_batches=0,
                settings={n: v for n, v in chosen.items() if of_model},
            )

        model = build({})
        plan = schedule.Plan(build, train, (0,), {}, None, (), None, None)
        of = schedule.phases_of(model, train, 8, 5)
        setup = schedule.setup_of(plan, of, of[-1], 5)(settings)
        optimizer = steps.default_optimizer(1)
        state = steps.init_train_state(model, optimizer, jax.random.key(0))
        # past half of the warm-up of the second phase
        state = state._replace(step=jnp.int32(of[-1].before * 5 + 3))
        opt_state = jax.tree.map(
            lambda leaf: state.step if leaf.dtype == jnp.int32 else leaf,
            state.opt_state,
        )
        state, metrics = setup.step(state._replace(opt_state=opt_state), batch)
        return [*jax.tree.leaves(state.params), metrics.kl_weight, setup.full_weight]

    one, other = config, train
    if of_model:
        one = dataclasses.replace(config, **{name: value})
    else:
        other = dataclasses.replace(train, **{name: value})
    plain = figures(config, train, {})
    expected = figures(one, other, {})
    found = figures(config, train, {name: jnp.float32(value)})
    assert not all(map(np.array_equal, plain, expected))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_what_the_phases_of_a_mixture_train():
    """First the ELBO of the VAE with free nats, then the bound that is asked for."""
    train = sv.TrainConfig(epochs=8, n_samples=3, kl_weight=0.5, start=0.5)

    def build(_):
        likelihood = building.named_likelihood(MIXTURE)
        return building.from_config(MIXTURE, likelihood, n_genes=60)

    def setups(train):
        plan = schedule.Plan(build, train, (0,), {}, None, (), None, None)
        of = schedule.phases_of(build({}), train, 8, 5)
        return [schedule.setup_of(plan, of, phase, 5)({}) for phase in of]

    first, second = setups(train)
    assert (first.keep, second.keep) == ("last", "best risen")
    assert not first.model.n_clusters and second.model.n_clusters == 3
    assert float(first.full_weight) == float(second.full_weight) == 0.5
    assert (first.objective.n_samples, second.objective.n_samples) == (1, 3)
    zeros = jnp.zeros((1, 2))
    terms = objectives.Terms(zeros[..., None], zeros - 9.0, zeros, zeros, zeros + 1.0)
    for more, free in ((0.0, schedule.START_FREE_NATS), (50.0, 50.0)):
        config = dataclasses.replace(train, n_samples=1, free_nats=more)
        loss = setups(config)[0].objective.loss(terms, 1.0)
        np.testing.assert_allclose(loss, 9.0 + free)


def test_clusters_have_the_numbers_of_those_of_the_best_fit(types, fits):
    (other,) = fits.alternatives
    cells = selection.cells_to_device(prepare_as(types, fits), slice(None))
    one, two = (cluster_codes(fits.model, f.params, cells) for f in (fits, other))
    assert (one == two).mean() > 0.95
    training = np.bincount(two[fits.split == "train"], minlength=3)
    assert other.summary["cluster_sizes"] == training.tolist()
    # an alternative numbered otherwise is numbered so again
    results = [
        Result(f.params, [], f.summary, codes)
        for f, codes in ((fits, one), (other, two))
    ]
    odd = phases._numbered(results[1], np.array([2, 0, 1]))
    assert not same(odd.params, other.params)
    first, again = phases.numbered_alike([results[0], odd])
    assert first is results[0] and same(again.params, other.params)
    assert again.summary == other.summary
    np.testing.assert_array_equal(again.codes, two)


def test_the_split_is_one_for_all_fits(types, fits):
    (other,) = fits.alternatives
    np.testing.assert_array_equal(fits.split, other.split)
    part = random_split(types.n_obs, 0.1, 0.0, fits.summary["split_seed"])
    np.testing.assert_array_equal(fits.split, part)


@pytest.mark.slow
def test_settings_side_by_side(types):
    found = fit_many(
        types,
        sv.ModelConfig(**SMALL),
        settings={"learning_rate": [1e-3, 5e-3], "dropout_input": [0.2, 0.4]},
        seeds=(3,),
    )
    fits = (found, *found.alternatives)
    tried = {(f.train_config.learning_rate, f.config.dropout_input) for f in fits}
    assert tried == {(1e-3, 0.2), (1e-3, 0.4), (5e-3, 0.2), (5e-3, 0.4)}
    assert len({f.history[-1]["loss"] for f in fits}) == 4
    # each is the fit that the same settings give on their own
    (one,) = (
        f
        for f in fits
        if (f.train_config.learning_rate, f.config.dropout_input) == (1e-3, 0.4)
    )
    alone = fit_many(
        types,
        sv.ModelConfig(**SMALL | {"dropout_input": 0.4}),
        seeds=(3,),
        learning_rate=1e-3,
    )
    np.testing.assert_allclose(
        [row["validation_bound"] for row in one.history],
        [row["validation_bound"] for row in alone.history],
        rtol=1e-4,
    )


def test_where_every_fit_failed_no_phase_follows(types, monkeypatch):
    placed = []
    poisson = likelihoods.poisson()
    broken = poisson._replace(
        name="broken",
        log_prob_zero=None,
        log_prob=lambda x, p: poisson.log_prob(x, p) / jnp.zeros(()),
    )
    monkeypatch.setattr(phases, "_place", lambda *a: placed.append(a))
    with pytest.raises(FloatingPointError, match="found no finite validation bound"):
        sv.fit(
            types,
            MIXTURE,
            sv.TrainConfig(epochs=2, batch_size=128, start=0.5),
            likelihood=broken,
            progress=False,
        )
    assert not placed


@pytest.mark.parametrize("posterior", ["shared", "conditional"])
def test_responsibilities_are_fitted_to_every_so_many_cells(
    types, monkeypatch, posterior
):
    """As the first ones may be of one kind; a shared posterior needs none."""
    seen, fit_logits = [], clusters.fit_logits

    def noted(layer, hidden, target):
        jax.debug.callback(lambda *arrays: seen.append(arrays), hidden, target)
        return fit_logits(layer, hidden, target)

    monkeypatch.setattr(clusters, "fit_logits", noted)
    monkeypatch.setattr(clusters, "MOST_CELLS", 100)
    config = dataclasses.replace(MIXTURE, posterior=posterior)
    likelihood = building.named_likelihood(config)
    model = building.from_config(config, likelihood, n_genes=60)
    cells = selection.cells_to_device(prepare(types, sv.DataConfig()), slice(None))
    before = model.init(jax.random.key(0))
    params = placing.place_clusters(model, before, cells, 0)
    jax.effects_barrier()
    mean, variance = map(np.asarray, placing.encode_cells(model, before, cells))
    placed = clusters.place(before["prior"], mean, variance, 0)
    assert same(params["prior"], placed) and not same(params["prior"], before["prior"])
    if posterior == "shared":
        assert not seen
        return
    ((hidden, target),) = seen
    q, expected = model.hidden(params, batches.dense_batch(types.X.toarray()[::3]))
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-5)
    inferred = np.exp(model.infer(params, q.mean()))
    np.testing.assert_allclose(target, inferred, rtol=1e-4, atol=1e-5)
    # and the network gives what it was fitted to
    fitted = model.encode(params, batches.dense_batch(types.X.toarray()[::3]))
    codes = fitted.mixture_distribution.logits.argmax(axis=1)
    assert (codes == target.argmax(axis=1)).mean() > 0.95


def test_figures_of_a_sweep(types, monkeypatch):
    asked = []

    def one(bound, used, code, others=()):
        return SimpleNamespace(
            model=None,
            params=code,
            alternatives=others,
            split=np.array(["train"] * 4),
            summary={"validation_bound": bound, "clusters_used": used},
        )

    def fit_many(_, config, *__, **given):
        asked.append(given)
        return one(-1.0, 2, [0, 0, 1, 1], (one(-3.0, 1, [0, 1, 1, 1]),))

    monkeypatch.setattr(sweep, "fit_many", fit_many)
    monkeypatch.setattr(sweep, "prepare_as", lambda *_: None)
    monkeypatch.setattr(sweep, "cells_to_device", lambda *_: "cells")
    monkeypatch.setattr(sweep, "cluster_codes", lambda m, params, c: np.array(params))
    given = {"seeds": (4, 9), "batch_key": "b"}
    table = sv.sweep_clusters(types, MIXTURE, n_clusters=(2,), **given)
    row = table.iloc[0]
    assert asked == [given]
    assert (row["validation_bound"], row["clusters_used"]) == (-2.0, 1.5)
    assert row["validation_bound_sd"] == pytest.approx(2**0.5)
    ari = rand_index(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    assert row["stability"] == pytest.approx(ari)
    with pytest.raises(
        InputError, match="found settings=.*as stability is that between seeds"
    ):
        sv.sweep_clusters(
            types, MIXTURE, n_clusters=(2,), settings={"dropout_input": [0.1, 0.2]}
        )


def test_kl_weight_is_where_the_warm_up_ends(types):
    found = fit_many(types, sv.ModelConfig(**SMALL), seeds=(0,), kl_weight=0.25)
    assert found.history[-1]["kl_weight"] == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "gmvae"])
def test_eight_seeds_by_vmap_agree_with_each_alone(types, name):
    """The first hundred steps of a phase, from one state."""
    n_seeds, n_steps = 8, 100
    data = prepare(types, sv.DataConfig())
    cells = selection.cells_to_device(data, slice(None))
    model = building.from_config(
        MIXTURE, building.named_likelihood(MIXTURE), n_genes=60
    )
    trained = model.start if name == "vae" else model
    optimizer = steps.default_optimizer(1000)
    order = epochs.Orders(0, 300, 32)
    n_slots = batches.slots_for(max(order.fullest(e, cells) for e in range(1, 11)))
    positions = [order(number) for number in range(1, 11)]
    index, weight = (np.concatenate(parts) for parts in zip(*positions, strict=True))
    step = steps.make_train_step(trained, objectives.elbo(), optimizer)

    def first(seed):
        state = steps.init_train_state(model, optimizer, jax.random.key(seed))
        if name == "vae":
            return state
        params = placing.place_clusters(model, state.params, cells, seed)
        return state._replace(params=params)

    def run(state):
        def one(state, position):
            batch = batches.cut(cells, *position, 60, n_slots)
            state, metrics = step(state, batch)
            return state, metrics.loss

        return jax.lax.scan(one, state, (index[:n_steps], weight[:n_steps]))[1]

    states = [first(seed) for seed in range(n_seeds)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *map(unkeyed, states))
    together = jax.jit(jax.vmap(lambda s: run(keyed(s))))(stacked)
    alone = jax.jit(run)
    for seed, state in enumerate(states):
        np.testing.assert_allclose(together[seed], alone(state), rtol=1e-5)


def unkeyed(state):
    return state._replace(key=jax.random.key_data(state.key))


def keyed(state):
    return state._replace(key=jax.random.wrap_key_data(state.key))


def test_fits_that_have_stopped_are_left_alone(types):
    found = fit_many(
        types,
        sv.ModelConfig(**SMALL),
        # at a rate of 0 nothing gets better
        settings={"learning_rate": [2e-3, 0.0]},
        epochs=20,
        patience=4,
        seeds=(0,),
    )
    fits = (found, *found.alternatives)
    assert [len(f.history) for f in fits] == [20, 8]
    assert [f.summary["stopped_early"] for f in fits] == [False, True]
    for f in fits:
        bounds = [row["validation_bound"] for row in f.history]
        assert f.summary["validation_bound"] == max(bounds)


def test_a_fit_that_fails_is_left_out(types):
    with pytest.warns(InputWarning, match="1 of 2 fits ended early and are left out"):
        found = fit_many(
            types,
            sv.ModelConfig(**SMALL),
            settings={"learning_rate": [1e-3, 9.0], "weight_decay": [9.0]},
            epochs=30,
            seeds=(0,),
        )
    assert found.alternatives == () and found.train_config.learning_rate == 1e-3


def test_dead_clusters_are_reported(types):
    with pytest.warns(InputWarning, match=r"of 60 clusters have fewer than 1 %"):
        config = sv.ModelConfig(model="gmvae", n_clusters=60, **SMALL)
        found = fit_many(types, config, seeds=(0,), epochs=2)
    assert found.summary["clusters_used"] < 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"seeds": ()},
            r"and seeds=\(\), expected a list of seeds and lists",
        ),
        ({"seeds": 3}, "and seeds=3, expected a list of seeds"),
        ({"seeds": (1, 1)}, "found seeds 1, 1, expected each once"),
        ({"seeds": (-1,)}, "found seed=-1, expected a whole number"),
        (
            {"settings": {"n_latent": [2]}},
            r"settings {'n_latent': \[2\]} and seeds=\(0, 1\)",
        ),
        ({"settings": {"dropout_input": [None, 0.3]}}, "and lists of numbers for any"),
        ({"settings": {"learning_rate": ["fast"]}}, "and lists of numbers for any of"),
        ({"settings": {"learning_rate": []}}, "expected a list of seeds and lists of"),
        ({"settings": {"learning_rate": 0.1}}, "expected a list of seeds and lists of"),
        ({"settings": {"dropout_input": [1.5]}}, "found dropout_input=1.5, expected"),
    ],
)
def test_errors(types, options, message):
    with pytest.raises(InputError, match=message):
        fit_many(types, **options)


def test_more_clusters_than_cells(types):
    config = sv.ModelConfig(model="gmvae", n_clusters=271, **SMALL)
    with pytest.raises(InputError, match="found n_clusters=271 for 270 training cells"):
        fit_many(types, config)


def test_alternatives_are_saved_and_loaded(types, fits, tmp_path):
    fits.save(tmp_path / "run")
    loaded = sv.load(tmp_path / "run")
    assert same(fits.params, loaded.params)
    (one,), (other,) = fits.alternatives, loaded.alternatives
    assert same(one.params, other.params)
    assert one.train_config == other.train_config
    # damage to an alternative is noticed
    (path,) = (tmp_path / "run" / "alternatives").glob("*")
    (path / "history.json").write_text("[]")
    with pytest.raises(
        InputError,
        match=r"found history.json damaged or changed in .*alternatives.0001",
    ):
        sv.load(tmp_path / "run")


def test_apply_writes_clusters(types, fits, tmp_path):
    adata = sv.apply(types, fits, copy=True)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad")
    r = adata.obsm["scvae_cluster_probabilities"]
    assert r.shape == (300, 3)
    np.testing.assert_allclose(r.sum(1), 1.0, rtol=1e-5)
    cluster = adata.obs["scvae_cluster"]
    np.testing.assert_array_equal(cluster.astype(int), r.argmax(1))
    entropy = -(r * np.log(np.maximum(r, 1e-30))).sum(1)
    np.testing.assert_allclose(adata.obs["scvae_cluster_entropy"], entropy, atol=1e-5)
    confidence = adata.obs["scvae_cluster_confidence"]
    assert set(confidence) <= {0.5, 1.0} and confidence.mean() > 0.95
    # it is that of a cell, whatever cells are beside it
    few = types[:40].copy()
    sv.apply(few, fits)
    np.testing.assert_array_equal(few.obs["scvae_cluster_confidence"], confidence[:40])
    found = adata.uns["scvae"]
    sizes = cluster.value_counts().sort_index().to_numpy()
    np.testing.assert_array_equal(found["cluster_sizes"], sizes)
    prototypes = found["cluster_prototypes"]
    assert list(prototypes.index) == list(types.var_names)
    assert list(prototypes.columns) == ["0", "1", "2"]
    depth = np.median(np.asarray(types.X.sum(1)))
    np.testing.assert_allclose(prototypes.sum(axis=0), depth, rtol=1e-3)
    # the prototype is near the mean profile of the cluster's cells
    for k in range(3):
        mine = types.X[(cluster == str(k)).to_numpy()]
        profile = np.asarray(mine.sum(0)).ravel()
        near = np.corrcoef(prototypes[str(k)], profile)[0, 1]
        assert near > 0.95
        # and the genes that set it apart are expressed more in it than elsewhere
        rest = types.X[(cluster != str(k)).to_numpy()]
        rest = np.asarray(rest.sum(0)).ravel()
        top = types.var_names.get_indexer(found["cluster_genes"][str(k)][:5])
        assert (profile / profile.sum() > rest / rest.sum())[top].all()


def test_denoise(types, fits):
    adata = types[:50, ::-1].copy()
    sv.denoise(adata, fits, batch_size=32)
    denoised = adata.layers["scvae_denoised"]
    depth = np.asarray(adata.X.sum(1)).ravel()
    np.testing.assert_allclose(denoised.sum(1), depth, rtol=1e-3)
    near = np.corrcoef(denoised.ravel(), adata.X.toarray().ravel())[0, 1]
    assert near > 0.9
    # genes that the model does not know are not made up
    x = types.X.toarray()[:5, [0, *range(60)]]
    wider = anndata.AnnData(x, var={"gene": ["new", *types.var_names]})
    wider.var_names = wider.var["gene"]
    with pytest.warns(InputWarning, match="^1 of 61 genes are not in the model"):
        sv.denoise(wider, fits)
    assert np.isnan(wider.layers["scvae_denoised"][:, 0]).all()
    assert np.isfinite(wider.layers["scvae_denoised"][:, 1:]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 of 2 clusters have fewer")
def test_denoise_as_of_another_batch(small):
    fitted = sv.fit(
        small,
        sv.ModelConfig(model="gmvae", n_clusters=2, posterior="conditional", **SMALL),
        sv.TrainConfig(epochs=12, batch_size=32, learning_rate=1e-2),
        batch_key="batch",
        progress=False,
    )
    own = sv.denoise(small, fitted, copy=True).layers["scvae_denoised"]
    first, second = fitted.batches
    swapped = sv.denoise(small, fitted, batch=first, copy=True)
    swapped = swapped.layers["scvae_denoised"]
    of_first = (small.obs["batch"] == first).to_numpy()
    np.testing.assert_allclose(own[of_first], swapped[of_first], rtol=1e-5)
    assert np.abs(own[~of_first] / swapped[~of_first] - 1).mean() > 0.01
    with pytest.raises(InputError, match="found batch='other', expected one of"):
        sv.denoise(small, fitted, batch="other")


@pytest.mark.parametrize(
    ("numbers", "stability", "bounds", "expected"),
    [
        # the bound gains less than seeds differ, and seeds disagree
        ((2, 4, 6, 8), (0.3, 0.99, 0.9, 0.87), (-9, -4.04, -3.93, -3.91), 4),
        ((8, 6, 4, 2), (0.87, 0.9, 0.99, 0.3), (-3.91, -3.93, -4.04, -9), 4),
        # it gains more
        ((2, 4, 6, 8), (0.95, 0.92, 0.84, 0.84), (-7.5, -7.25, -7.1, -6.8), 8),
        # few are always stable
        ((2, 3, 4, 5), (1.0, 0.99, 0.98, 0.97), (1, 2, 3, 4), 5),
        # one cluster has no stability, a number whose fits failed neither, nor one seed
        ((1, 2, 3), (np.nan, 0.9, 0.9), (9, 2, 3), 3),
        ((2, 3, 4), (0.7, np.nan, 0.6), (3, np.nan, 2), 2),
        ((2, 3), (np.nan, np.nan), (1, 2), None),
    ],
)
def test_which_number_of_clusters_is_recommended(numbers, stability, bounds, expected):
    columns = ("n_clusters", "stability", "validation_bound")
    values = (numbers, stability, bounds)
    table = pd.DataFrame(dict(zip(columns, values, strict=True)))
    table["validation_bound_sd"] = np.where(np.isnan(bounds), np.nan, 0.1)
    found = table["n_clusters"][sweep.recommended(table)]
    assert list(found) == ([] if expected is None else [expected])


def test_the_deviation_of_a_sweep_is_that_of_all_numbers():
    """The root of the mean square: neither the least nor the largest."""
    table = pd.DataFrame(
        {
            "n_clusters": [2, 3],
            "stability": [1.0, 0.9],
            "validation_bound": [0.0, 0.0],
            "validation_bound_sd": [0.1, 0.7],
        }
    )
    # 0.1 of stability is two units of 0.05, as two deviations of 0.5
    for gain, expected in ((0.9, [True, False]), (1.1, [False, True])):
        bounds = [0.0, gain]
        found = sweep.recommended(table.assign(validation_bound=bounds))
        assert list(found) == expected


def test_seeds_without_a_deviation_leave_the_bound():
    table = pd.DataFrame(
        {"n_clusters": [2, 3], "stability": [1.0, 0.9], "validation_bound": [1, 2]}
    )
    chosen = sweep.recommended(table.assign(validation_bound_sd=0.0))
    assert list(chosen) == [False, True]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (8, "n_clusters=8, expected a ModelConfig of model='gmvae' and numbers to try"),
        ((), "numbers to try, pass them"),
        (range(2, 0, -1), None),
        ((4, 0), "found n_clusters=0, expected a whole number"),
    ],
)
def test_a_sweep_is_checked_before_the_first_fit(types, numbers, message, monkeypatch):
    class Fitted(Exception):
        """The first fit has begun."""

    def fit_many(*_, **__):
        raise Fitted

    monkeypatch.setattr(sweep, "fit_many", fit_many)
    with pytest.raises(InputError if message else Fitted, match=message):
        sv.sweep_clusters(types, MIXTURE, n_clusters=numbers)


def test_a_sweep_with_more_clusters_than_cells_ends_at_its_start(types, monkeypatch):
    tried = []

    def fit_many(adata, config, *rest, **options):
        tried.append(config.n_clusters)
        return sv.fit_many(adata, config, *rest, **options)

    monkeypatch.setattr(sweep, "fit_many", fit_many)
    with pytest.raises(InputError, match=r"n_clusters=500 for \d+ training cells"):
        sv.sweep_clusters(types, MIXTURE, n_clusters=(2, 500), seeds=(0,))
    assert tried == [500]


def test_a_sweep_keeps_its_rows_where_a_number_fails(types, monkeypatch):
    def fit_many(_, config, *__, **___):
        if config.n_clusters in failing:
            raise FloatingPointError("found non-finite gradients")
        summary = {"validation_bound": -1.0, "clusters_used": config.n_clusters}
        return SimpleNamespace(
            model=None,
            params=None,
            alternatives=(),
            summary=summary,
            split=np.array(["train", "test"]),
        )

    monkeypatch.setattr(sweep, "fit_many", fit_many)
    monkeypatch.setattr(sweep, "prepare_as", lambda *_: None)
    monkeypatch.setattr(sweep, "cells_to_device", lambda *_: "cells")
    monkeypatch.setattr(sweep, "cluster_codes", lambda *_: np.arange(2))
    failing = {3}
    with pytest.warns(InputWarning, match="3 clusters: found non-finite gradients"):
        table = sv.sweep_clusters(types, MIXTURE, n_clusters=(3, 2), seeds=(0,))
    assert list(table["n_clusters"]) == [3, 2]
    assert list(table["validation_bound"].isna()) == [True, False]
    failing = {2, 3}
    with (
        pytest.warns(InputWarning),
        pytest.raises(FloatingPointError, match="all fits of 2, 3 clusters ended"),
    ):
        sv.sweep_clusters(types, MIXTURE, n_clusters=(2, 3), seeds=(0,))


def test_a_sweep_does_not_look_at_test_cells(types, monkeypatch):
    seen = []

    def cells_to_device(data, where):
        seen.append(data.cells[where])
        return selection.cells_to_device(data, where)

    monkeypatch.setattr(sweep, "cells_to_device", cells_to_device)
    train = sv.TrainConfig(epochs=2, test_fraction=0.2)
    with pytest.warns(InputWarning):
        sv.sweep_clusters(
            types, MIXTURE, train, n_clusters=(2,), seeds=(0,), progress=False
        )
    assert [len(cells) for cells in seen] == [240]


@pytest.mark.parametrize(("posterior", "times"), [("shared", 1), ("conditional", 3)])
def test_decodes_count_where_compilers_are_chosen(types, monkeypatch, posterior, times):
    asked = []

    class Stop(Exception):
        """Enough is known."""

    def ahead(_, lowered, n_entries):
        asked.append(n_entries)
        if len(asked) == 2:
            raise Stop
        return lowered.compile

    monkeypatch.setattr(phases, "ahead", ahead)
    config = sv.ModelConfig(model="gmvae", n_clusters=3, posterior=posterior, **SMALL)
    with pytest.raises(Stop):
        fit_many(types, config)
    assert asked[1] == 6 * 270 * 60 * times


@pytest.mark.slow
def test_a_sweep_over_the_number_of_clusters(types, tmp_path):
    table = sv.sweep_clusters(
        types,
        MIXTURE,
        sv.TrainConfig(epochs=60, batch_size=32, learning_rate=5e-3),
        n_clusters=(1, 3),
        seeds=(0, 1),
        progress=False,
    )
    assert list(table["n_clusters"]) == [1, 3]
    # one cluster agrees on nothing
    assert list(table["stability"] > 0.8) == [False, True]
    assert list(table["clusters_used"]) == [1, 3]
    assert list(table["recommended"]) == [False, True]
    plots.cluster_sweep(table, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="expected a ModelConfig of model='gmvae'"):
        sv.sweep_clusters(types, sv.ModelConfig(), n_clusters=(2,))

"""The two programs of an epoch: every cell counts once, padding not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scvae_jax as sv
from scvae_jax import (
    batches,
    epochs,
    likelihoods,
    models,
    objectives,
    selection,
    steps,
)
from scvae_jax.config import DataConfig
from scvae_jax.counts import prepare

N_OBS, N_GENES, BATCH_SIZE = 50, 12, 16


@pytest.fixture(scope="module")
def cells():
    """Cells of very different depths, so that a wrong weight shows."""
    adata = sv.datasets.simulate(N_OBS, N_GENES, depth=100.0, seed=3)
    x = adata.X.toarray()
    x[::7] *= 9
    adata.X = x
    return selection.cells_to_device(prepare(adata, DataConfig()), slice(None))


def setup_of(n_samples=1, learning_rate=0.0, n_clusters=0):
    modalities = [models.Modality("rna", N_GENES, likelihoods.poisson())]
    sizes = {"n_latent": 2, "hidden_sizes": (8,)}
    if n_clusters:
        model = models.gmvae(modalities, n_clusters=n_clusters, **sizes)
    else:
        model = models.vae(modalities, **sizes)
    objective = objectives.importance_weighted(n_samples)
    if n_samples == 1:
        objective = objectives.elbo()
    optimizer = optax.sgd(learning_rate)
    step = steps.make_train_step(model, objective, optimizer)
    full = epochs.Setup(model, objective, step, jnp.float32(1.0), "best")
    return lambda settings: full, steps.init_train_state(
        model, optimizer, jax.random.key(0)
    )


@pytest.mark.parametrize(
    ("n_samples", "n_clusters"),
    [(1, 3), pytest.param(4, 0, marks=pytest.mark.slow)],
)
def test_a_look_is_the_mean_over_cells(cells, n_samples, n_clusters):
    setup, state = setup_of(n_samples, n_clusters=n_clusters)
    model = setup({}).model
    in_order, n_slots = batches.in_order(cells, BATCH_SIZE)
    # the last batch has two cells
    assert in_order[0].shape == (4, BATCH_SIZE)
    look = jax.jit(epochs.make_look(setup, N_GENES, n_slots))
    of_fit = (state.params, state.key, True, {})
    best = epochs.first_best(state.params)
    best, figures = look(best, of_fit, (cells, in_order))
    elbos, bounds, r, kl_y = [], [], [], []
    key = jax.random.fold_in(state.key, 2**32 - 1)

    @jax.jit
    def terms_of(number, index, weight):
        batch = batches.cut(cells, index, weight, N_GENES, n_slots)
        key_batch = jax.random.fold_in(key, number)
        return model.terms(state.params, key_batch, batch, n_samples)

    for number, position in enumerate(zip(*in_order, strict=True)):
        terms = terms_of(number, *position)
        real = position[1] > 0
        parts = objectives.elbo_parts(terms)
        elbos.append((parts.log_likelihood - parts.kl_z - parts.kl_y)[real])
        bounds.append(objectives.importance_weighted_bound(terms)[real])
        kl_y.append(parts.kl_y[real])
        r.append(np.exp(objectives.log_responsibilities(terms)).mean(axis=0)[real])
    elbo, bound = np.concatenate(elbos), np.concatenate(bounds)
    assert len(elbo) == N_OBS
    assert figures["validation_elbo"] == pytest.approx(elbo.mean(), rel=1e-5)
    expected = (bound if n_samples > 1 else elbo).mean()
    assert figures["validation_bound"] == pytest.approx(expected, rel=1e-5)
    assert best.bound == figures["validation_bound"] and figures["better"]
    if n_clusters:
        share = np.concatenate(r).mean(axis=0)
        effective = np.exp(-(share * np.log(share)).sum())
        assert figures["effective_clusters"] == pytest.approx(effective, rel=1e-4)
        expected = np.concatenate(kl_y).mean()
        assert figures["validation_kl_y"] == pytest.approx(expected, rel=1e-4)


def test_a_look_at_many_cells_keeps_its_digits(cells):
    """Of which a running sum of 32 bits would lose some."""
    setup, state = setup_of()
    value, times = np.float32(-5000.37), 2000

    def terms(params, key, batch, n_samples):
        same = jnp.full((n_samples, BATCH_SIZE), value)
        zeros = jnp.zeros_like(same)
        return objectives.Terms(zeros[..., None], same, zeros, zeros, zeros)

    of_all = setup({})._replace(model=setup({}).model._replace(terms=terms))
    (index, weight), n_slots = batches.in_order(cells, BATCH_SIZE)
    in_order = np.tile(index, (times, 1)), np.tile(weight, (times, 1))
    look = jax.jit(epochs.make_look(lambda _: of_all, N_GENES, n_slots))
    of_fit = (state.params, state.key, True, {})
    _, figures = look(epochs.first_best(state.params), of_fit, (cells, in_order))
    assert figures["validation_elbo"] / times == pytest.approx(value, rel=3e-7)
    sums = np.full(4 * times, value * N_OBS / 4, np.float32)
    assert abs(np.cumsum(sums)[-1] / sums.sum(dtype=float) - 1) > 2e-6


def test_the_loss_of_a_pass_is_the_mean_over_cells(cells):
    setup, state = setup_of()
    order = epochs.Orders(0, N_OBS, BATCH_SIZE)
    positions = order(1)
    n_slots = batches.slots_for(order.fullest(1, cells))
    train = jax.jit(epochs.make_pass(setup, N_GENES, n_slots))
    after, figures = train(state, (positions, {}), cells)
    # nothing is learned at a rate of 0
    for one, other in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    model, objective = setup({}).model, setup({}).objective

    @jax.jit
    def loss_of(number, index, weight):
        batch = batches.cut(cells, index, weight, N_GENES, n_slots)
        key = jax.random.fold_in(state.key, number)
        return objective.loss(model.terms(state.params, key, batch, 1, True), 1.0)

    losses = [
        np.asarray(loss_of(number, *position))[position[1] > 0]
        for number, position in enumerate(zip(*positions, strict=True))
    ]
    assert sum(map(len, losses)) == N_OBS
    assert figures["loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)
    assert figures["skipped_steps"] == 0 and figures["risen"]


def test_a_pass_of_skipped_steps_has_no_loss(cells):
    setup, state = setup_of(learning_rate=0.1)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)
    order = epochs.Orders(0, N_OBS, BATCH_SIZE)
    n_slots = batches.slots_for(order.fullest(1, cells))
    train = jax.jit(epochs.make_pass(setup, N_GENES, n_slots))
    _, figures = train(state._replace(params=broken), (order(1), {}), cells)
    assert np.isnan(figures["loss"])
    assert figures["skipped_steps"] == figures["longest_skipped_run"] == 4


@pytest.mark.parametrize(
    "one_by_one", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_fits_that_have_stopped_stay_as_they_are(cells, one_by_one):
    """Both forms of many fits are what each fit is alone."""
    setup, first = setup_of(learning_rate=1e-3)
    second = setup_of(learning_rate=1e-3)[1]._replace(key=jax.random.key(7))
    order = epochs.Orders(0, N_OBS, BATCH_SIZE)
    n_slots = batches.slots_for(order.fullest(1, cells))
    function = epochs.make_pass(setup, N_GENES, n_slots)
    alone = jax.jit(function)(second, (order(1), {}), cells)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    positions = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), order(1))
    program = jax.jit(epochs.over_fits(function, one_by_one=one_by_one))
    active = np.array([False, True])
    after, figures = program(states, (positions, {}), active, cells)
    for one, other in zip(
        jax.tree.leaves(first.params), jax.tree.leaves(after.params), strict=True
    ):
        np.testing.assert_array_equal(one, other[0])
    for one, other in zip(
        jax.tree.leaves(alone[0].params), jax.tree.leaves(after.params), strict=True
    ):
        np.testing.assert_allclose(one, other[1], rtol=1e-4, atol=1e-6)
    assert figures["loss"][0] == 0.0
    assert figures["loss"][1] == pytest.approx(float(alone[1]["loss"]), rel=1e-5)

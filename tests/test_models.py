"""The VAE: shapes, covariates, dropout, modalities, sparse against dense input."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scvae_jax import (
    batches,
    building,
    datasets,
    likelihoods,
    models,
    networks,
    reading,
    selection,
)
from scvae_jax.checks import InputError
from scvae_jax.config import DataConfig, ModelConfig
from scvae_jax.counts import prepare
from scvae_jax.objectives import importance_weighted, importance_weighted_bound

KEY = jax.random.key(0)
NAMES = sorted(set(likelihoods.FACTORIES) - {"bernoulli", "gaussian"})


@pytest.fixture(scope="module")
def wide_batch():
    """Cells of which few of 400 genes are seen: the encoder's product is sparse."""
    adata = datasets.simulate(10, 400, n_batches=2, depth=12.0, seed=0)
    data = prepare(adata, DataConfig(batch_key="batch"))
    cells = selection.cells_to_device(data, slice(None))
    (index, weight), n_slots = batches.in_order(cells, 10)
    assert batches.SPARSE_BELOW * n_slots <= 10 * 400
    return batches.cut(cells, index[0], weight[0], 400, n_slots)


@pytest.fixture(scope="module")
def sparse_batch(small):
    """Eight cells of `small` with slots to spare and two cells of padding."""
    data = prepare(small, DataConfig(batch_key="batch"))
    cells = selection.cells_to_device(data, slice(None))
    index, weight = batches.pad_to_batches(np.arange(8, dtype=np.int32), 10)
    return batches.cut(cells, index[0], weight[0], small.n_vars, 512)


def dense(batch):
    (counts,) = batch.counts
    return batch._replace(counts=(counts._replace(nonzero=None),))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_few_entries_are_encoded_as_a_dense_array_would_be(wide_batch, dropout):
    model = model_of("negative_binomial", n_genes=400, dropout_input=dropout)
    params = model.init(KEY)

    def loss(params, batch):
        mean = model.encode(params, batch, KEY if dropout else None).mean()
        return (mean**2).sum()

    found = jax.value_and_grad(loss)(params, wide_batch)
    batch = wide_batch
    if dropout:
        # the mask is drawn for entries, so the dense array is that of the entries kept
        counts = batch.counts[0]
        (keep, *_) = networks.keep_masks(KEY, [counts.nonzero[2].shape], [dropout])
        kept = networks.drop(jnp.log1p(counts.nonzero[2]), keep, dropout)
        x = batches.lay_out(counts.nonzero, jnp.expm1(kept), counts.x.shape)
        batch = batch._replace(counts=(counts._replace(x=x),))
    model = model_of("negative_binomial", n_genes=400)
    dropout = 0.0
    expected = jax.value_and_grad(loss)(params, dense(batch))
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_slots_to_spare_change_nothing():
    """Or a fit would depend on those that are made beside it."""
    adata = datasets.simulate(10, 400, n_batches=2, depth=12.0, seed=0)
    data = prepare(adata, DataConfig(batch_key="batch"))
    cells = selection.cells_to_device(data, slice(None))
    (index, weight), n_slots = batches.in_order(cells, 10)
    model = models.vae(
        [models.Modality("rna", 400, likelihoods.poisson())],
        hidden_sizes=(8, 7),
        thinning=0.5,
        dropout_input=0.3,
        dropout_hidden=0.2,
        dropout_decoder=0.1,
    )
    params = model.init(KEY)
    found = []
    for n in (n_slots, n_slots + 128):
        batch = batches.cut(cells, index[0], weight[0], 400, n)
        assert batch.counts[0].nonzero is not None
        terms = model.terms(params, KEY, batch, 2, train=True)
        found.append(jax.tree.leaves(terms))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_decodes_one_by_one_have_the_gradients_of_a_loop(sparse_batch, monkeypatch):
    """Kept or computed once more."""
    model = model_of("negative_binomial")
    params = model.init(KEY)

    def loss(params):
        terms = model.terms(params, KEY, sparse_batch, 4, train=True)
        return importance_weighted(4).loss(terms, 1.0).sum()

    expected = jax.grad(loss)(params)
    for names in (("UNROLLED",), ("UNROLLED", "KEPT"), ("KEPT",)):
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(models, name, 1)
            found = jax.grad(loss)(params)
        for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_an_encoder_in_training_sees_cells_thinned(sparse_batch, form):
    batch = sparse_batch if form == "sparse" else dense(sparse_batch)
    (counts,) = batch.counts
    whole = np.asarray(counts.x.sum(axis=-1))[:8]

    @jax.jit
    def share_seen(key):
        entries = reading.entries_of(counts, True, key, 0.5)
        seen = jnp.expm1(reading.laid_out(entries, counts)).sum(axis=-1)
        return seen[:8] / whole

    keys = jax.vmap(lambda number: jax.random.fold_in(KEY, number))(jnp.arange(300))
    shares = np.asarray(jax.lax.map(share_seen, keys))
    # between a half and all, and noise about it; of each cell another
    assert shares.mean() == pytest.approx(0.75, abs=0.02)
    assert 0.4 < np.percentile(shares, 1) < 0.55
    assert 0.95 < np.percentile(shares, 99) <= 1.0 + 1e-5
    assert np.abs(np.corrcoef(shares.T) - np.eye(8)).max() < 0.3
    model, plain = (model_of("negative_binomial", thinning=t) for t in (0.5, 0.0))
    params = model.init(KEY)
    means = [m.encode(params, batch).mean() for m in (model, plain)]
    np.testing.assert_array_equal(*means)
    assert np.abs(model.encode(params, batch, KEY).mean() - means[0]).max() > 1e-3


def test_what_is_no_count_is_seen_whole_or_not_at_all(sparse_batch):
    counts = dense(sparse_batch).counts[0]
    x = counts.x + 0.25
    seen = reading.entries_of(counts._replace(x=x), False, KEY, 0.9)
    hidden = np.asarray(seen) == 0
    np.testing.assert_array_equal(seen, np.where(hidden, 0.0, x))
    assert 0.2 < hidden.mean() < 0.7


@pytest.mark.parametrize(
    "posterior",
    ["vae", "shared", pytest.param("conditional", marks=pytest.mark.slow)],
)
def test_precision_of_products(sparse_batch, posterior):
    """A device may round what a product takes, unless told not to."""

    def bound(precision):
        likelihood = likelihoods.negative_binomial()
        modalities = [models.Modality("rna", 40, likelihood)]
        options = {"n_latent": 3, "n_categories": (2,), "precision": precision}
        if posterior == "vae":
            model = models.vae(modalities, **options)
        else:
            options |= {"n_clusters": 3, "posterior": posterior}
            model = models.gmvae(modalities, **options)
        params = model.init(KEY)

        def log_px(params):
            return model.terms(params, KEY, sparse_batch).log_px.mean()

        both = jax.value_and_grad(log_px)
        text = str(jax.make_jaxpr(both)(params))
        asked = re.findall(r"precision=\((\S+),", text)
        left = text.count("dot_general[") - len(asked)
        return both(params), set(asked) | {"none"} if left else set(asked), text

    (full, _), asked, full_text = bound("float32")
    assert asked == {"Precision.HIGHEST"} and "bf16" not in full_text
    (low, _), asked, _ = bound("tensorfloat32")
    assert asked == {"Precision.HIGHEST", "Precision.HIGH"}
    assert abs(float(full - low)) < 0.5
    # operands in bfloat16 have no precision to be asked for
    (low, slopes), asked, low_text = bound("bfloat16")
    assert asked == {"Precision.HIGHEST", "none"} and "bf16" in low_text
    assert 0 < abs(float(full - low)) < 0.5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
    "likelihood",
    [
        likelihoods.from_name("zero_inflated_negative_binomial"),
        likelihoods.from_name("negative_binomial", dispersion="gene_batch"),
        likelihoods.from_name("categorised_poisson"),
    ],
    ids=lambda likelihood: likelihood.name,
)
def test_a_gpu_is_left_no_order_of_sums(sparse_batch, monkeypatch, likelihood):
    """Sums that meet at one address come out otherwise each time on a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    modalities = [models.Modality("rna", 40, likelihood)]
    model = models.gmvae(modalities, n_clusters=3, n_latent=3, n_categories=(2,))

    def loss(params):
        return model.terms(params, KEY, sparse_batch, train=True).log_px.sum()

    text = str(jax.make_jaxpr(jax.value_and_grad(loss))(model.init(KEY)))
    scatters = re.findall(r"scatter-add\[(.*?)\] ", text, re.DOTALL)
    # of values at the entries, and of the gradient of each parameter there
    assert len(scatters) >= 3
    assert all("unique_indices=True" in scatter for scatter in scatters)


def model_of(name, n_genes=40, **options):
    config = ModelConfig(
        likelihood=name,
        n_latent=3,
        hidden_sizes=(16, 8),
        thinning=options.pop("thinning", 0.0),
        dropout_input=options.pop("dropout_input", 0.0),
        dropout_hidden=0.0,
        dropout_decoder=options.pop("dropout_decoder", 0.0),
        likelihood_options=options,
    )
    likelihood = building.named_likelihood(config)
    return building.from_config(config, likelihood, n_genes=n_genes, n_batches=2)


def test_a_configuration_reaches_the_networks(sparse_batch):
    def of(**given):
        config = ModelConfig(n_latent=3, hidden_sizes=(8,), **given)
        likelihood = building.named_likelihood(config)
        model = building.from_config(config, likelihood, n_genes=40, n_batches=2)
        params = model.init(KEY)
        terms = jax.make_jaxpr(lambda p: model.terms(p, KEY, sparse_batch).log_px)
        return str(jax.tree.structure(params)), str(terms(params))

    (names, code), (without, _) = of(), of(layer_norm=False)
    assert "LayerNorm" in names and "LayerNorm" not in without
    assert "bf16" in of(precision="bfloat16")[1] and "bf16" not in code


@pytest.mark.parametrize("name", NAMES)
def test_terms_of_sparse_and_dense_batches_agree(name, sparse_batch):
    model = model_of(name)
    params = model.init(KEY)

    @jax.jit
    @jax.value_and_grad
    def loss(params, batch):
        return model.terms(params, KEY, batch, 2).log_px.mean()

    ours, slopes = loss(params, sparse_batch)
    plain, plain_slopes = loss(params, dense(sparse_batch))
    np.testing.assert_allclose(ours, plain, rtol=1e-5)
    for one, other in zip(
        jax.tree.leaves(slopes), jax.tree.leaves(plain_slopes), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_decoding_in_halves_for_many_z_of_a_cell(sparse_batch):
    model = model_of("negative_binomial", dropout_decoder=0.4)
    params = model.init(KEY)
    z = jax.random.normal(KEY, (4, 10, 3))
    # one dropout mask of a cell, whatever the z
    h = model.expand(params, z, sparse_batch, KEY)
    assert h.shape[:2] == (4, 10)
    for one, last in zip(z, h, strict=True):
        (whole,) = model.decode(params, one, sparse_batch, KEY)
        (halves,) = model.emit(params, last, sparse_batch)
        for name, value in whole.items():
            np.testing.assert_allclose(halves[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mean", ["library", "free"])
@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_starts_at_the_mean_profile(name, mean, sparse_batch):
    model = model_of(name, mean=mean)
    profile = np.random.default_rng(0).gamma(1.0, 2.0, 40).astype(np.float32)
    profile[3] = 0.0
    params = model.init(KEY, [(profile, 50)])
    z = 3.0 * jax.random.normal(KEY, (10, 3))
    (decoded,) = model.decode(params, z, sparse_batch)
    expected = profile + 0.5 / 50
    if mean == "library":
        depth = np.asarray(sparse_batch.counts[0].depth)
        expected = depth[:, None] * expected / expected.sum()
    expected = np.broadcast_to(expected, (10, 40))
    np.testing.assert_allclose(np.exp(decoded["log_mean"]), expected, rtol=1e-4)
    # the weights before the outputs stay random, so that there is something to learn
    slopes = jax.grad(lambda p: model.terms(p, KEY, sparse_batch, 1).log_px.sum())(
        params
    )
    assert np.abs(slopes["decoder"]["output_0"]["kernel"]).max() > 0


@pytest.mark.parametrize("posterior", ["shared", "conditional"])
def test_a_mixture_starts_at_the_mean_profile(posterior, sparse_batch):
    model = models.gmvae(
        [models.Modality("rna", 40, likelihoods.poisson(mean="free"))],
        n_clusters=3,
        posterior=posterior,
        n_latent=3,
    )
    profile = np.random.default_rng(0).gamma(1.0, 2.0, 40).astype(np.float32)
    params = model.init(KEY, [(profile, 50)])
    (decoded,) = model.decode(params, jax.random.normal(KEY, (10, 3)), sparse_batch)
    expected = np.broadcast_to(profile + 0.5 / 50, (10, 40))
    np.testing.assert_allclose(np.exp(decoded["log_mean"]), expected, rtol=1e-4)


def test_given_weights_are_not_trained(sparse_batch):
    given = {"n_clusters": 2, "n_latent": 3, "mixture_weights": (0.25, 0.75)}
    rna = models.Modality("rna", 40, likelihoods.poisson())
    model = models.gmvae([rna], **given)
    slopes = jax.grad(
        lambda p: importance_weighted_bound(model.terms(p, KEY, sparse_batch, 1)).sum()
    )(model.init(KEY))
    assert not np.any(slopes["prior"]["log_weights"])
    assert np.any(slopes["prior"]["mean"])


def test_every_covariate_is_decoded():
    model = models.vae(
        [models.Modality("rna", 6, likelihoods.poisson())],
        n_latent=2,
        hidden_sizes=(8,),
        n_categories=(3, 2),
    )
    params = model.init(KEY)
    codes = jnp.array([[2, 0], [2, 1], [0, 0]])
    batch = batches.dense_batch(jnp.ones((3, 6)), categorical=codes)
    h = model.expand(params, jnp.zeros((3, 2)), batch)
    assert not np.allclose(h[0], h[1]) and not np.allclose(h[0], h[2])


def test_other_data_starts_at_its_mean_too():
    mean = np.array([0.0, 0.2, 1.0, 0.7], np.float32)
    for likelihood in (likelihoods.bernoulli(), likelihoods.gaussian()):
        modality = models.Modality("x", 4, likelihood)
        model = models.vae([modality], n_latent=2, hidden_sizes=(5,))
        params = model.init(KEY, [(mean, 1000)])
        batch = batches.dense_batch(np.zeros((3, 4)))
        (decoded,) = model.decode(params, jnp.ones((3, 2)), batch)
        np.testing.assert_allclose(likelihood.mean(decoded)[0], mean, atol=1e-3)


def test_a_likelihood_without_a_start_starts_at_zero(sparse_batch):
    own = likelihoods.poisson(mean="free")._replace(start=None)
    model = models.vae([models.Modality("rna", 40, own)], n_latent=3, n_categories=(2,))
    params = model.init(KEY, [(np.ones(40, np.float32), 50)])
    (decoded,) = model.decode(params, jnp.ones((10, 3)), sparse_batch)
    np.testing.assert_array_equal(decoded["log_mean"], 0.0)


def test_shapes(sparse_batch):
    model = model_of("negative_binomial")
    terms = model.terms(model.init(KEY), KEY, sparse_batch, 4)
    assert terms.z.shape == (4, 10, 3)
    assert {t.shape for t in terms[1:5]} == {(4, 10)}
    assert terms.log_py is None and terms.log_qy is None
    np.testing.assert_array_equal(terms.kl_z[0], terms.kl_z[1])
    assert np.ptp(np.asarray(terms.log_px), axis=0).min() > 0


@pytest.mark.parametrize("hidden_sizes", [(), (7,), (9, 8, 7)])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_networks_of_any_depth(hidden_sizes, layer_norm):
    model = models.vae(
        [models.Modality("rna", 5, likelihoods.poisson())],
        n_latent=2,
        hidden_sizes=hidden_sizes,
        layer_norm=layer_norm,
    )
    params = model.init(KEY)
    has_norm = "LayerNorm" in str(jax.tree.structure(params))
    assert has_norm == (layer_norm and bool(hidden_sizes))
    shapes = [
        leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params["decoder"])
        if path[-1].key == "kernel"
    ]
    widths = [2, *reversed(hidden_sizes), 5]
    assert sorted(shapes) == sorted(zip(widths[:-1], widths[1:], strict=True))


@pytest.mark.parametrize(
    ("name", "options", "n_heads"),
    [
        ("poisson", {}, 1),
        ("negative_binomial", {}, 1),
        ("negative_binomial", {"dispersion": "gene_cell"}, 2),
        ("zero_inflated_negative_binomial", {}, 2),
        ("categorised_poisson", {"k_max": 2}, 1 + 3),
    ],
)
def test_no_head_is_computed_that_the_likelihood_does_not_need(name, options, n_heads):
    model = model_of(name, **options)
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            model.init(KEY)["decoder"]
        )
        if path[-1].key == "kernel" and "output" in str(path)
    ]
    # the mirrored decoder ends with 16 units
    assert sum(kernel.size for kernel in kernels) == 16 * 40 * n_heads


def test_batches_reach_the_decoder_and_the_dispersion(sparse_batch):
    model = model_of("negative_binomial", dispersion="gene_batch")
    params = model.init(KEY)
    assert params["free"]["rna"]["log_dispersion"].shape == (2, 40)
    params["free"]["rna"]["log_dispersion"] = jnp.array([[1.0] * 40, [2.0] * 40])
    z = jnp.zeros((10, 3))
    (ours,) = model.decode(params, z, sparse_batch)
    codes = np.asarray(sparse_batch.categorical[:, 0])
    assert set(codes[:8]) == {0, 1}
    np.testing.assert_array_equal(ours["log_dispersion"][:, 0], codes + 1.0)
    swapped = sparse_batch._replace(categorical=1 - sparse_batch.categorical)
    (theirs,) = model.decode(params, z, swapped)
    assert not np.allclose(ours["log_mean"], theirs["log_mean"])


def test_means_of_cells_sum_to_their_depth(sparse_batch):
    model = model_of("poisson")
    (params,) = model.decode(model.init(KEY), jnp.ones((10, 3)), sparse_batch)
    depth = sparse_batch.counts[0].depth
    np.testing.assert_allclose(jnp.exp(params["log_mean"]).sum(1), depth, rtol=1e-5)


def test_one_dropout_mask_for_all_samples(sparse_batch):
    model = model_of("poisson", dropout_decoder=0.5)
    params = model.init(KEY)
    terms_of = jax.jit(model.terms, static_argnums=(3, 4))
    # a posterior without spread draws the same z each time, so only masks could differ
    params["encoder"]["Dense_1"] = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, 0.0), params["encoder"]["Dense_1"]
    )
    params["encoder"]["Dense_1"]["bias"] -= 40.0
    terms = terms_of(params, KEY, sparse_batch, 3, True)
    np.testing.assert_array_equal(terms.log_px[0], terms.log_px[1])
    other = terms_of(params, jax.random.key(1), sparse_batch, 3, True)
    plain = terms_of(params, KEY, sparse_batch, 3, False)
    assert not np.allclose(terms.log_px[0], other.log_px[0])
    assert not np.allclose(terms.log_px[0], plain.log_px[0])
    # a mask per cell: two copies of one cell differ under dropout, not without
    twin = jax.tree.map(
        lambda leaf: jnp.stack([leaf[0]] * 10) if leaf.shape[:1] == (10,) else leaf,
        dense(sparse_batch),
    )
    dropped = terms_of(params, KEY, twin, 1, True).log_px[0]
    assert len(np.unique(dropped)) > 1
    assert np.ptp(terms_of(params, KEY, twin, 1, False).log_px[0]) < 1e-3


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_input_dropout_hides_its_share_and_keeps_the_mean(sparse_batch, form):
    batch = sparse_batch if form == "sparse" else dense(sparse_batch)
    # an encoder that passes its input on: the posterior's mean is what it reads
    model = models.vae(
        [models.Modality("rna", 40, likelihoods.poisson())],
        n_latent=40,
        hidden_sizes=(),
        n_categories=(2,),
        dropout_input=0.3,
    )
    params = model.init(KEY)
    params["encoder"]["Dense_0"]["kernel"] = jnp.eye(40)
    plain = np.asarray(model.encode(params, batch).mean())
    np.testing.assert_allclose(plain, np.log1p(batch.counts[0].x), rtol=1e-6)
    keys = jax.random.split(KEY, 400)
    encode = jax.jit(jax.vmap(lambda key: model.encode(params, batch, key).mean()))
    dropped = np.asarray(encode(keys))
    kept = dropped[:, plain > 0]
    assert abs((kept == 0).mean() - 0.3) < 0.01
    np.testing.assert_allclose(kept.mean(), plain[plain > 0].mean(), rtol=0.02)
    assert (dropped[:, plain == 0] == 0).all()


@pytest.mark.parametrize("make", [likelihoods.bernoulli, likelihoods.poisson])
def test_two_modalities_one_of_them_unobserved(make):
    model = models.vae(
        [
            models.Modality("rna", 6, likelihoods.negative_binomial()),
            models.Modality("accessible", 4, make()),
        ],
        n_latent=2,
        hidden_sizes=(8,),
    )
    params = model.init(KEY)
    random = np.random.default_rng(0)
    rna = batches.dense_batch(random.poisson(2.0, (3, 6)))
    observed = jnp.array([1.0, 0.0, 1.0])
    accessible = batches.Counts(
        x=jnp.asarray(random.integers(0, 2, (3, 4)), jnp.float32),
        nonzero=None,
        depth=jnp.ones(3),
        observed=observed,
    )
    batch = rna._replace(counts=(*rna.counts, accessible))
    terms = model.terms(params, KEY, batch, 1)
    changed = accessible._replace(x=1.0 - accessible.x)
    other = model.terms(params, KEY, batch._replace(counts=(*rna.counts, changed)), 1)
    same = np.asarray(terms.log_px[0] == other.log_px[0])
    np.testing.assert_array_equal(same, observed == 0)
    # whatever stands where nothing was measured, sparse or not
    nothing = jnp.where(observed[:, None] > 0, accessible.x, jnp.nan)
    depth = jnp.where(observed > 0, 1.0, jnp.nan)
    gene = jnp.tile(jnp.arange(4), (3, 1))
    for nonzero in (None, (jnp.arange(3), gene, nothing)):
        left_out = accessible._replace(x=nothing, depth=depth, nonzero=nonzero)
        given = batch._replace(counts=(*rna.counts, left_out))

        def loss(params, given=given):
            return model.terms(params, KEY, given, 1).log_px.sum()

        value, slopes = jax.value_and_grad(loss)(params)
        assert value == pytest.approx(float(terms.log_px.sum()), rel=1e-6)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_covariates_that_are_too_few():
    model = models.vae(
        [models.Modality("rna", 6, likelihoods.poisson())],
        n_latent=2,
        hidden_sizes=(8,),
        n_categories=(3, 2),
    )
    codes = jnp.zeros((3, 1), jnp.int32)
    batch = batches.dense_batch(jnp.ones((3, 6)), categorical=codes)
    with pytest.raises(ValueError, match="found 1 categorical covariates, expected 2"):
        model.terms(model.init(KEY), KEY, batch, 1)


def test_the_decoder_reads_continuous_covariates():
    modality = models.Modality("rna", 6, likelihoods.poisson())
    model = models.vae([modality], n_latent=2, hidden_sizes=(4,), n_continuous=2)
    plain = models.vae([modality], n_latent=2, hidden_sizes=(4,))
    first, other = (
        m.init(KEY)["decoder"]["body"]["Dense_0"]["kernel"] for m in (model, plain)
    )
    assert len(first) == len(other) + 2
    batch = batches.dense_batch(jnp.ones((3, 6)))
    params = model.init(KEY)
    # of weights that are not those of the start, which read nothing
    params["decoder"]["output_0"]["kernel"] = jnp.ones((4, 1)) * jnp.arange(6.0)[None]

    def log_px(covariates):
        given = batch._replace(continuous=jnp.full((3, 2), covariates))
        return model.terms(params, KEY, given).log_px

    assert not np.allclose(log_px(0.0), log_px(1.0))
    with pytest.raises(ValueError, match="found 0 continuous covariates, expected 2"):
        model.terms(params, KEY, batch)


@pytest.mark.parametrize("posterior", ["shared", "conditional"])
def test_an_empty_batch(posterior):
    model = models.gmvae(
        [models.Modality("rna", 6, likelihoods.poisson())],
        n_clusters=3,
        posterior=posterior,
        n_latent=2,
        hidden_sizes=(4,),
    )
    batch = batches.dense_batch(jnp.ones((0, 6)))
    terms = model.terms(model.init(KEY), KEY, batch, 2)
    assert importance_weighted_bound(terms).shape == (0,)


def test_two_modalities_of_one_name():
    one = models.Modality("rna", 6, likelihoods.poisson())
    with pytest.raises(ValueError, match="found modalities named rna, rna, expected a"):
        models.vae([one, one])


def test_a_loss_of_ones_own_meets_z_itself():
    model = models.vae(
        [models.Modality("rna", 6, likelihoods.poisson())],
        n_latent=2,
        hidden_sizes=(8,),
    )
    batch = batches.dense_batch(jnp.ones((3, 6)))
    params = model.init(KEY)

    def slope(gradient):
        def loss(params):
            terms = model.terms(params, KEY, batch, 5, train=True)
            bound = importance_weighted(5, gradient=gradient).loss(terms, 1.0).mean()
            return bound + 1e6 * jnp.square(terms.z).mean()

        return jax.grad(loss)(params)["encoder"]["Dense_0"]["kernel"]

    np.testing.assert_allclose(slope("path"), slope("total"), rtol=1e-3, atol=1.0)


def test_a_likelihood_per_batch_needs_batches():
    config = ModelConfig(likelihood_options={"dispersion": "gene_batch"})
    likelihood = building.named_likelihood(config)
    with pytest.raises(InputError, match="parameters per batch and no batches"):
        building.from_config(config, likelihood, n_genes=4)


def test_an_unknown_likelihood_lists_the_known_ones():
    with pytest.raises(InputError, match="found likelihood 'zinb', expected one of po"):
        building.named_likelihood(ModelConfig(likelihood="zinb"))


@pytest.mark.parametrize(
    "given",
    [
        {"thinning": 1.5},
        {"dropout_input": -0.5},
        {"dropout_hidden": 1.0},
        {"dropout_decoder": 2},
        {"dropout_hidden": np.float32(1.0)},
        {"dropout_input": jnp.float32(1.5)},
        {"n_latent": 0},
        {"hidden_sizes": (8, 0)},
    ],
)
def test_sizes_and_rates_out_of_range(given):
    one = models.Modality("rna", 5, likelihoods.poisson())
    name = next(iter(given)).split("_")[0].replace("hidden", "n_latent or hidden")
    expected = "thinning or dropout" if name in ("thinning", "dropout") else "n_latent"
    with pytest.raises(InputError, match=f"found {expected}"):
        models.vae([one], **given)

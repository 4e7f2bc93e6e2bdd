"""Masks and initial weights, each from one draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scvae_jax import networks
from scvae_jax.likelihoods import Head

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "dtypes",
    [("float32", "float32"), ("float64", "float64"), ("float32", "bfloat16")],
    ids="-".join,
)
def test_rounded_products_keep_the_type_of_their_operands(dtypes):
    with jax.enable_x64("float64" in dtypes):
        a, b = (jnp.ones((2, 3), dtype) for dtype in dtypes)
        product, back = jax.vjp(networks.matmul_of("bfloat16"), a, b.T)
        assert product.dtype == jnp.result_type(a, b)
        assert tuple(slope.dtype.name for slope in back(product)) == dtypes


def test_masks_have_their_shapes_and_shares():
    shapes, rates = [(50, 40), (7,), (300, 20)], [0.3, 0.0, 0.8]
    masks = networks.keep_masks(KEY, shapes, rates)
    assert masks[1] is None
    for mask, shape, rate in zip(masks, shapes, rates, strict=True):
        if mask is not None:
            assert mask.shape == shape
            error = np.sqrt(rate * (1 - rate) / mask.size)
            assert abs(float(mask.mean()) - (1 - rate)) < 4 * error
    again = networks.keep_masks(KEY, shapes, rates)
    np.testing.assert_array_equal(masks[0], again[0])
    assert networks.keep_masks(None, shapes, rates) == [None] * 3


def test_drop_keeps_the_mean():
    (keep,) = networks.keep_masks(KEY, [(20_000,)], [0.25])
    h = networks.drop(jnp.full(20_000, 3.0), keep, 0.25)
    assert set(np.unique(h)) == {0.0, 4.0}
    assert abs(float(h.mean()) - 3.0) < 0.06


def test_lower_precision_rounds_operands_and_sums_in_float32():
    key_a, key_b, key_slope = jax.random.split(KEY, 3)
    a = jax.random.normal(key_a, (9, 300))
    b = jax.random.normal(key_b, (300, 5))
    slope = jax.random.normal(key_slope, (9, 5))

    def rounded(value):
        return np.asarray(value.astype(jnp.bfloat16).astype(jnp.float32), np.float64)

    product, back = jax.vjp(networks.matmul_of("bfloat16"), a, b)
    found = (product, *back(slope))
    expected = (
        rounded(a) @ rounded(b),
        rounded(slope) @ rounded(b).T,
        rounded(a).T @ rounded(slope),
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    # what is rounded is not what is given
    assert np.abs(np.asarray(product) - a @ b).max() > 1e-2
    with pytest.raises(ValueError, match="found precision='float16', expected one of"):
        networks.matmul_of("float16")


@pytest.mark.parametrize("layer_norm", [True, False])
def test_initial_weights(layer_norm):
    encoder = networks.Encoder(4, (300, 200), layer_norm, 0.0)
    heads = ((500, (Head("log_mean"), Head("class_logits", (3,)))),)
    decoder = networks.Decoder(heads, (100,), layer_norm, 0.0)
    modules = {
        "encoder": (encoder, ((1, 500),)),
        "decoder": (decoder, ((1, 4), (1, 2))),
    }
    params = networks.init_params(KEY, modules)
    plain = encoder.init(KEY, jnp.zeros((1, 500)))["params"]
    assert jax.tree.structure(params["encoder"]) == jax.tree.structure(plain)
    seen = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        if name == "kernel":
            # N(0, 1/inputs) cut at two sigma of the normal that is cut
            scale = 1 / np.sqrt(leaf.shape[0])
            assert abs(float(leaf.std()) / scale - 1) < 5 / np.sqrt(2 * leaf.size)
            assert float(jnp.abs(leaf).max()) <= 2 * scale / networks.TRUNCATED_SCALE
            seen.append(np.asarray(leaf).ravel()[:50])
        else:
            assert (leaf == (1.0 if name == "scale" else 0.0)).all()
    assert len(np.unique(np.concatenate(seen))) == sum(map(len, seen))
    other = networks.init_params(jax.random.key(1), modules)
    one, two = (p["encoder"]["Dense_0"]["kernel"] for p in (params, other))
    assert (one != two).all()

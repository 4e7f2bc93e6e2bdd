"""Encoder and decoder (Flax linen). The only import of flax.

Random numbers are drawn in one call for all weights, and in one for all masks of a
network: XLA compiles a generator for each call, which would be most of the wait before
training starts.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scvae_jax.config import PRECISIONS
from scvae_jax.likelihoods import Head

Array = jax.Array
Masks = Sequence[Array | None]
# what Flax calls in the place of `jax.lax.dot_general`
Product = Callable[..., Array]

# standard deviation of a standard normal cut off at two of its own
TRUNCATED_SCALE = 0.87962566103423978


def is_off(rate: float | Array) -> bool:
    """Whether a rate is known to be 0; fits of one program may differ in it, traced."""
    return isinstance(rate, (int, float)) and rate == 0


def drop(h: Array, keep: Array | None, rate: float | Array) -> Array:
    """Dropout: zero where `keep` is false, scaled so that the mean stays.

    Args:
        h: of any shape.
        keep: of the same shape, from `keep_masks`; None: all is kept.
        rate: share that is dropped.

    Returns:
        Like h.
    """
    return h if keep is None else jnp.where(keep, h / (1.0 - rate), 0.0)


def keep_masks(
    key: Array | None, shapes: Sequence[tuple[int, ...]], rates: Sequence[float | Array]
) -> Masks:
    """Dropout masks, all from one draw.

    Args:
        key: None for no dropout.
        shapes: of the masks.
        rates: the share of entries that each hides.

    Returns:
        For each a boolean array, true with probability 1 - rate, or None where nothing
        is to be hidden.
    """
    sizes = [
        0 if is_off(rate) else math.prod(shape)
        for shape, rate in zip(shapes, rates, strict=True)
    ]
    if key is None or sum(sizes) == 0:
        return [None] * len(sizes)
    uniform = jax.random.uniform(key, (sum(sizes),))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        (uniform[start : start + size] >= rate).reshape(shape) if size else None
        for start, size, shape, rate in zip(starts, sizes, shapes, rates, strict=True)
    ]


@jax.custom_vjp
def _rounded(a: Array, b: Array) -> Array:
    """A product of operands in bfloat16, summed in float32; its gradients likewise."""
    dtype = jnp.result_type(a, b)
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(dtype)


def _slopes_of_rounded(kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    a, b = kept
    # each of the type of its operand, where these differ
    return (
        _rounded(slope, b.T).astype(a.dtype),
        _rounded(a.T, slope).astype(b.dtype),
    )


_rounded.defvjp(lambda a, b: (_rounded(a, b), (a, b)), _slopes_of_rounded)


def matmul_of(precision: str) -> Callable[[Array, Array], Array]:
    """The matrix product of gene-wide layers.

    Args:
        precision: one of PRECISIONS.

    Returns:
        (a, b) -> a @ b; of bfloat16 rounded operands, summed in float32.

    Raises:
        ValueError: for another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"found precision={precision!r}, expected one of {', '.join(PRECISIONS)}, "
            "choose one of these"
        )
    if precision == "bfloat16":
        return _rounded
    return partial(jnp.matmul, precision=precision)


# on a GPU or TPU the default of a product is not float32
Dense = partial(nn.Dense, precision="float32")


class Output(nn.Module):
    """A dense layer to many features."""

    shape: tuple[int, ...]
    precision: str = "float32"

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """[B, n] -> [B, *shape]."""
        size = math.prod(self.shape)
        kernel_init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", kernel_init, (h.shape[-1], size))
        bias = self.param("bias", nn.initializers.zeros, (size,))
        # the bias as a product: its transpose, a sum over cells, is then one too, ten
        # times faster on a CPU than XLA's own sum
        y = matmul_of(self.precision)(h, kernel)
        ones = jnp.ones((h.shape[0], 1))
        y += jnp.matmul(ones, bias[None], precision="float32")
        return y.reshape(h.shape[0], *self.shape)


class Hidden(nn.Module):
    """Dense layers, each followed by LayerNorm (or none), ReLU and dropout."""

    sizes: Sequence[int]
    layer_norm: bool
    dropout: float

    @nn.compact
    def __call__(
        self, h: Array, keep: Masks | None = None, product: Product | None = None
    ) -> Array:
        """[B, n] -> [B, sizes[-1]]; `keep` has a mask [B, size] for each layer."""
        for i, size in enumerate(self.sizes):
            h = Dense(size, dot_general=product if i == 0 else None)(h)
            if self.layer_norm:
                h = nn.LayerNorm()(h)
            h = drop(nn.relu(h), keep[i] if keep else None, self.dropout)
        return h


class Encoder(nn.Module):
    """x -> mean and log standard deviation of q(z|x), and the last hidden layer."""

    n_latent: int
    hidden_sizes: Sequence[int]
    layer_norm: bool
    dropout: float

    @nn.compact
    def __call__(
        self, x: Array, keep: Masks | None = None, product: Product | None = None
    ) -> tuple[Array, Array, Array]:
        """[B, G] -> [B, L], [B, L], [B, hidden_sizes[-1]].

        `product` takes x and the first kernel, for a faster product than x @ kernel.
        """
        h = Hidden(self.hidden_sizes, self.layer_norm, self.dropout)(x, keep, product)
        return Dense(self.n_latent)(h), Dense(self.n_latent)(h), h


class ClusterEncoder(nn.Module):
    """Hidden layer of the encoder -> q(y|x); q(z|x) -> how q(z|x,y) departs from it.

    The condition on y enters here, after all that the encoder does once for each cell.
    Were q(z|x) exact under a flat prior, q(z|x,y) would be its product with p(z|y): a
    function of its mean, its scale and y. The departure starts at zero, whatever y.

    Attributes:
        n_clusters: K.
        n_latent: L.
    """

    n_clusters: int
    n_latent: int

    @nn.compact
    def __call__(self, h: Array, moments: Array) -> tuple[Array, Array]:
        """Logits [B, K], and shifts [B, K, 2 L] of mean and log scale.

        `h` [B, n] is the hidden layer, `moments` [B, 2 L] mean and scale of q(z|x).
        """
        logits = Dense(self.n_clusters, name="logits")(h)
        if self.n_clusters == 1:
            # the heads of the encoder give whatever q(z|x) can be
            return logits, jnp.zeros((h.shape[0], 1, 2 * self.n_latent))
        # twice what it reads: at 128, of the hidden layer, it cost a tenth of a step
        size = 4 * self.n_latent
        of_cell = Dense(size, use_bias=False, name="cell")(moments)
        kernel_init = nn.initializers.lecun_normal()
        of_cluster = self.param("kernel", kernel_init, (self.n_clusters, size))
        h = nn.relu(of_cell[:, None] + of_cluster[None])
        shape = (size, 2 * self.n_latent)
        departure = self.param("departure", nn.initializers.zeros, shape)
        return logits, jnp.matmul(h, departure, precision="float32")


class Decoder(nn.Module):
    """z and covariates -> the heads that each modality's likelihood asks for.

    Attributes:
        heads: for each modality its number of features and its heads.
    """

    heads: Sequence[tuple[int, Sequence[Head]]]
    hidden_sizes: Sequence[int]
    layer_norm: bool
    dropout: float
    precision: str = "float32"

    def setup(self) -> None:
        """The layers; those of each modality and head in one list."""
        self.body = Hidden(self.hidden_sizes, self.layer_norm, self.dropout)
        self.output = [
            Output((n_features, *head.shape), self.precision)
            for n_features, heads in self.heads
            for head in heads
        ]

    def __call__(self, z: Array, covariates: Array) -> tuple[dict[str, Array], ...]:
        """[B, L], [B, n] -> a dict of arrays [B, G, *shape] for each modality."""
        return self.emit(self.expand(z, covariates))

    def expand(self, z: Array, covariates: Array, keep: Masks | None = None) -> Array:
        """[..., B, L], [B, n] -> the last hidden layer [..., B, hidden_sizes[-1]]."""
        # flat: products over two leading axes are slower, with their gradients
        times = (math.prod(z.shape[:-2]), 1)
        inputs = [z.reshape(-1, z.shape[-1]), jnp.tile(covariates, times)]
        keep = [k if k is None else jnp.tile(k, times) for k in keep or ()]
        h = self.body(jnp.concatenate(inputs, axis=-1), keep)
        return h.reshape(*z.shape[:-1], h.shape[-1])

    def emit(self, h: Array) -> tuple[dict[str, Array], ...]:
        """[B, n] -> a dict of arrays [B, G, *shape] for each modality."""
        outputs = iter(self.output)
        return tuple(
            {head.name: next(outputs)(h) for head in heads} for _, heads in self.heads
        )

    def constant(
        self, params: dict[str, Any], values: Sequence[dict[str, Array]]
    ) -> dict[str, Any]:
        """Params whose heads do not depend on z.

        Args:
            params: of the decoder.
            values: for each modality the heads' [G, *shape], 0 where left out.

        Returns:
            The params, with outputs of no weights and these biases.
        """
        heads = [
            value.get(head.name, 0.0)
            for (_, heads), value in zip(self.heads, values, strict=True)
            for head in heads
        ]
        outputs = {}
        for i, value in enumerate(heads):
            old = params[f"output_{i}"]
            bias = jnp.ravel(value).astype(old["bias"].dtype)
            bias = jnp.broadcast_to(bias, old["bias"].shape)
            outputs[f"output_{i}"] = {
                "kernel": jnp.zeros_like(old["kernel"]),
                "bias": bias,
            }
        return params | outputs


def init_params(key: Array, modules: dict[str, tuple[nn.Module, tuple]]) -> Any:
    """Initial weights: kernels N(0, 1/inputs) cut at two sigma, all from one draw.

    Args:
        key: of the draw.
        modules: for each name a module and the shapes of its inputs.

    Returns:
        For each name the params of its module.

    References:
        LeCun et al., Efficient BackProp, 1998; the default of flax.
    """
    params = {
        name: jax.eval_shape(module.init, key, *map(jnp.zeros, shapes))["params"]
        for name, (module, shapes) in modules.items()
    }
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    kinds = [path[-1].key for path, _ in leaves]
    sizes = [
        leaf.size if kind == "kernel" else 0
        for kind, (_, leaf) in zip(kinds, leaves, strict=True)
    ]
    noise = jax.random.truncated_normal(key, -2.0, 2.0, (sum(sizes),))
    filled = []
    for i, (kind, (_, leaf)) in enumerate(zip(kinds, leaves, strict=True)):
        if kind == "kernel":
            start = sum(sizes[:i])
            scale = 1.0 / (TRUNCATED_SCALE * math.sqrt(leaf.shape[0]))
            part = noise[start : start + sizes[i]]
            filled.append(scale * part.reshape(leaf.shape))
        else:
            # of a named type: what is weak would have a step traced twice
            filled.append(jnp.full(leaf.shape, kind == "scale", float))
    return jax.tree.unflatten(tree, filled)

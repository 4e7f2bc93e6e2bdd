"""Encoder and decoder (Flax linen). The only import of flax."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from scvae_jax.likelihoods import Head

Array = jax.Array


class Hidden(nn.Module):
    """Dense layers, each followed by LayerNorm (or none), ReLU and dropout."""

    sizes: Sequence[int]
    layer_norm: bool
    dropout: float

    @nn.compact
    def __call__(self, h: Array, train: bool) -> Array:
        """[B, n] -> [B, sizes[-1]]."""
        for size in self.sizes:
            h = nn.Dense(size)(h)
            if self.layer_norm:
                h = nn.LayerNorm()(h)
            h = nn.relu(h)
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return h


class Encoder(nn.Module):
    """x -> mean and log standard deviation of q(z|x)."""

    n_latent: int
    hidden_sizes: Sequence[int]
    layer_norm: bool
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """[B, G] -> [B, L], [B, L]."""
        h = Hidden(self.hidden_sizes, self.layer_norm, self.dropout)(x, train)
        return nn.Dense(self.n_latent)(h), nn.Dense(self.n_latent)(h)


class Decoder(nn.Module):
    """z and covariates -> the heads that each modality's likelihood asks for.

    Attributes:
        heads: for each modality its number of features and its heads.
    """

    heads: Sequence[tuple[int, Sequence[Head]]]
    hidden_sizes: Sequence[int]
    layer_norm: bool
    dropout: float

    @nn.compact
    def __call__(
        self, z: Array, covariates: Array, train: bool = False
    ) -> tuple[dict[str, Array], ...]:
        """[B, L], [B, n] -> a dict of arrays [B, G, *shape] for each modality."""
        h = jnp.concatenate([z, covariates], axis=-1)
        h = Hidden(self.hidden_sizes, self.layer_norm, self.dropout)(h, train)
        return tuple(
            {head.name: nn.DenseGeneral((n_features, *head.shape))(h) for head in heads}
            for n_features, heads in self.heads
        )

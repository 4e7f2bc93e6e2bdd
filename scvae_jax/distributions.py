"""Likelihoods as distrax distributions, so that they compose with distrax's own.

components = Counts(negative_binomial(mean="free"), {"log_mean": ..., ...})
mixture = distrax.MixtureSameFamily(distrax.Categorical(logits), components)
"""

import jax
import jax.numpy as jnp
from distrax import Distribution

from scvae_jax.likelihoods import Likelihood, Params

Array = jax.Array


class Counts(Distribution):
    """A likelihood with its params, as a distribution of scalars."""

    def __init__(self, likelihood: Likelihood, params: Params):
        """Wrap a likelihood.

        Args:
            likelihood: from `scvae_jax.likelihoods`.
            params: its params, arrays that broadcast against the batch shape; class
                logits have a trailing axis more.

        Raises:
            ValueError: where params do not broadcast against each other.
        """
        super().__init__()
        self._likelihood = likelihood
        n_trailing = {n: len(likelihood.trailing.get(n, ())) for n in params}
        shapes = {n: jnp.shape(p) for n, p in params.items()}
        own = {n: s[: len(s) - n_trailing[n]] for n, s in shapes.items()}
        batch_shape = jnp.broadcast_shapes(*own.values())
        self._params = {
            n: jnp.broadcast_to(p, batch_shape + shapes[n][len(own[n]) :])
            for n, p in params.items()
        }
        # its rank tells the batch shape, also where `jax.vmap` takes an axis away
        self._of_rank = min(own, key=n_trailing.get)
        self._n_trailing = n_trailing[self._of_rank]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Scalars."""
        return ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape against which the params broadcast."""
        shape = self._params[self._of_rank].shape
        return shape[: len(shape) - self._n_trailing]

    def log_prob(self, value: Array) -> Array:
        """Nats, elementwise."""
        return self._likelihood.log_prob(value, self._params)

    def mean(self) -> Array:
        """E[x]."""
        return self._likelihood.mean(self._params)

    def variance(self) -> Array:
        """Var[x]."""
        return self._likelihood.variance(self._params)

    def _sample_n(self, key: Array, n: int) -> Array:
        keys = jax.random.split(key, n)
        return jax.vmap(self._likelihood.sample, (0, None))(keys, self._params)

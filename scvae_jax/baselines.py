"""What bounds are held against: a model without latents, and the cells' totals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy  # its parts are loaded where they are used

from scvae_jax import batches
from scvae_jax.batches import Batch, CellData
from scvae_jax.counts import CountData
from scvae_jax.likelihoods import Covariates, Likelihood
from scvae_jax.models import Modality, initial_free, log_likelihood
from scvae_jax.selection import cells_to_device, mean_profile

Array = jax.Array

# steps of the fit of dispersions and the like; each is of all training cells
N_STEPS = 80
# standard deviation of the weak prior that keeps what cells leave open finite
PRIOR_SCALE = 3.0
# training cells that a batch needs for a distribution of totals of its own
FEWEST_OF_BATCH = 20


def null_log_prob(
    likelihood: Likelihood, data: CountData, train: np.ndarray, held_out: np.ndarray
) -> np.ndarray:
    """Log-probability of cells under a family that knows nothing but the mean profile.

    The mean (of a zero-inflated or categorised family that of its base) is depth x the
    mean profile of the training cells, or the profile alone where it does not read the
    depth. All else that the family has, such as dispersions
    and shares of zeros, is one value per gene (and batch, if so declared), fitted to
    the training cells by maximum likelihood, under a prior so weak (normal, standard
    deviation 3) that it matters only where the cells say nothing, as for a gene that
    was never seen.

    Args:
        likelihood: the family.
        data: validated cells.
        train: [n] which of them are for training.
        held_out: [n] which of them to look at.

    Returns:
        [n_held_out] nats.
    """
    n_genes = len(data.genes)
    modality = Modality("rna", n_genes, likelihood)
    mean, n_train = mean_profile(data.x, train)
    known = likelihood.start(jnp.asarray(mean), n_train)
    unknown = {
        head.name: jnp.zeros((n_genes, *head.shape))
        for head in likelihood.heads
        if head.name not in known
    } | initial_free(modality, max(1, len(data.batches)))

    def log_prob(known: Any, unknown: Any, batch: Batch) -> Array:
        values = known | unknown
        heads = {head.name: values[head.name][None] for head in likelihood.heads}
        covariates = Covariates(batch.counts[0].depth, batch.categorical[:, 0])
        params = likelihood.link(heads, unknown, covariates)
        return log_likelihood((modality,), batch, (params,))

    if unknown:
        unknown = _fit(log_prob, known, unknown, cells_to_device(data, train), n_genes)
    cells = cells_to_device(data, held_out)
    positions, n_slots = batches.in_order(cells, 128)

    @jax.jit
    def of_cells(known: Any, unknown: Any, cells: CellData, positions: Any) -> Array:
        return jax.lax.map(
            lambda position: log_prob(
                known, unknown, batches.cut(cells, *position, n_genes, n_slots)
            ),
            positions,
        )

    found = of_cells(known, unknown, cells, positions)
    return batches.of_cells(np.array(found), int(held_out.sum()))


def _fit(log_prob, known: Any, unknown: Any, cells: CellData, n_genes: int) -> Any:
    """The unknown values of highest likelihood."""
    positions, n_slots = batches.in_order(cells, 128)
    # genes do not depend on each other, so that each value has a step size of its own
    optimizer = optax.rprop(0.5, eta_plus=1.2, min_step_size=1e-5, max_step_size=1.0)

    def loss(unknown: Any, known: Any, batch: Batch) -> Array:
        return -(batch.weight * log_prob(known, unknown, batch)).sum()

    @jax.jit
    def fit(unknown: Any, known: Any, cells: CellData, positions: Any) -> Any:
        def slope(unknown: Any) -> Any:
            def add(total: Any, position: tuple[Array, Array]) -> tuple[Any, None]:
                batch = batches.cut(cells, *position, n_genes, n_slots)
                new = jax.grad(loss)(unknown, known, batch)
                return jax.tree.map(jnp.add, total, new), None

            prior = jax.tree.map(lambda value: value / PRIOR_SCALE**2, unknown)
            return jax.lax.scan(add, prior, positions)[0]

        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            unknown, state = carry
            updates, state = optimizer.update(slope(unknown), state)
            unknown = optax.apply_updates(unknown, updates)
            # what training cells leave open may run away
            return (
                jax.tree.map(lambda value: jnp.clip(value, -20.0, 20.0), unknown),
                state,
            ), None

        carry = (unknown, optimizer.init(unknown))
        return jax.lax.scan(step, carry, None, length=N_STEPS)[0][0]

    return fit(unknown, known, cells, positions)


def totals_log_prob(
    data: CountData, train: np.ndarray, held_out: np.ndarray
) -> np.ndarray:
    """Log-probability of the totals of cells: what a library mean is not asked for.

    A library bound is one on log p(x | total); added to it, this makes a bound on
    log p(x), which a free mean is to be compared with. (A cautious one: the library
    side does not gain from knowing that its counts add up to the total.) A negative
    binomial, fitted to the totals of the training cells by maximum likelihood; one for
    each batch, where models are told the batch and it has 20 training cells or more.

    Args:
        data: validated cells, counts.
        train: [n] which of them are for training.
        held_out: [n] which of them to look at.

    Returns:
        [n_held_out] nats.
    """
    total = np.asarray(data.x.sum(axis=1, dtype=np.float64)).ravel()
    totals, batch = total[held_out], data.batch[held_out]
    found = np.empty(len(totals))
    for code in np.unique(batch):
        of_batch = train & (data.batch == code)
        enough = of_batch.sum() >= FEWEST_OF_BATCH
        mean, theta = _fit_totals(total[of_batch if enough else train])
        mine = batch == code
        found[mine] = negative_binomial_log_prob(totals[mine], mean, theta)
    return found


def _fit_totals(totals: np.ndarray) -> tuple[float, float]:
    """Mean and inverse dispersion of highest likelihood."""
    # whatever the dispersion, the best mean is that of the totals
    mean = max(float(totals.mean()), 0.5 / len(totals))

    def loss(log_theta: float) -> float:
        return -negative_binomial_log_prob(totals, mean, np.exp(log_theta)).mean()

    best = scipy.optimize.minimize_scalar(loss, bounds=(-7.0, 16.0), method="bounded")
    return mean, float(np.exp(best.x))


def negative_binomial_log_prob(x: np.ndarray, mean: float, theta: float) -> np.ndarray:
    """Log-probability of counts, in float64.

    Args:
        x: [n] counts.
        mean: of the distribution.
        theta: inverse dispersion; the variance is mean + mean^2 / theta.

    Returns:
        [n] nats.
    """
    gammaln, log1p = scipy.special.gammaln, np.log1p
    return (
        gammaln(x + theta)
        - gammaln(theta)
        - gammaln(x + 1.0)
        - theta * log1p(mean / theta)
        - x * log1p(theta / mean)
    )

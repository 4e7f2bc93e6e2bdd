"""What all tests share: strict JAX, small data, and where the real data is."""

import atexit
import dataclasses
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# a [G] array that meets a [B, G] one by accident is an error
jax.config.update("jax_numpy_rank_promotion", "raise")


# most of the time of tests is the compiler's: what one of them has compiled is there
# for all, and for programs that run for milliseconds it takes no pains
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory()
    atexit.register(compiled.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_disable_most_optimizations", True)


def pytest_configure(config):
    np.set_printoptions(linewidth=88)


def pytest_collection_modifyitems(config, items):
    chosen = config.getoption("-m")
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs ../shared/data"))
        if item.get_closest_marker("slow") and "slow" not in chosen:
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with -m slow"))


@pytest.fixture(scope="session")
def small():
    """Simulated counts: 120 cells, 40 genes, 3 types, 2 batches."""
    from scvae_jax import datasets

    adata = datasets.simulate(
        120, 40, n_types=3, n_batches=2, depth=300.0, type_scale=2.0, seed=1
    )
    del adata.layers["true_mean"]
    return adata


@pytest.fixture(scope="session")
def fitted(small):
    """A model fitted to `small` for two epochs, with its batches."""
    import scvae_jax as sv

    return sv.fit(
        small,
        sv.ModelConfig(n_latent=3, hidden_sizes=(16,)),
        sv.TrainConfig(epochs=2, batch_size=32),
        batch_key="batch",
        progress=False,
    )


@pytest.fixture(scope="session")
def untrained(small, fitted):
    """By its posterior a mixture of three with weights as drawn, else as `fitted`."""
    import scvae_jax as sv
    from scvae_jax import building

    def make(posterior):
        config = sv.ModelConfig(
            model="gmvae", n_clusters=3, posterior=posterior, n_latent=3
        )
        sizes = {"n_genes": small.n_vars, "n_batches": len(fitted.batches)}
        model = building.from_config(config, fitted.likelihood, **sizes)
        params = model.init(jax.random.key(1))
        # drawn weights, from which nothing departs, and centres far enough apart
        params = jax.tree.map(
            lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(2), leaf.shape),
            params,
        )
        return dataclasses.replace(
            fitted, model=model, params=params, config=config, alternatives=()
        )

    return make


@pytest.fixture(scope="session")
def shared():
    """The folder with the real data sets."""
    return SHARED

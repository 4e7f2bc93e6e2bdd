"""Programs compiled ahead of their use."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scvae_jax import compiling


@pytest.fixture(scope="module")
def lowered():
    return jax.jit(lambda x: jnp.exp(x).sum()).lower(jnp.ones(3))


@pytest.mark.parametrize("n_entries", [0, compiling.FEW, 2 * compiling.FEW])
def test_the_program_is_the_same(lowered, n_entries):
    with ThreadPoolExecutor(1) as pool:
        program = compiling.ahead(pool, lowered, n_entries)()
    np.testing.assert_allclose(program(jnp.ones(3)), 3 * np.e, rtol=1e-6)


def test_programs_that_do_little_are_compiled_soon(lowered, monkeypatch):
    asked = []

    class Lowered:
        def compile(self, compiler_options=None):
            asked.append(compiler_options)
            return lowered.compile(compiler_options=compiler_options)

    with ThreadPoolExecutor(1) as pool:
        compiling.ahead(pool, Lowered(), compiling.FEW)()
        compiling.ahead(pool, Lowered(), 2 * compiling.FEW)()
        # options that no version of XLA has
        monkeypatch.setattr(compiling, "SOON", {"xla_nothing": True})
        compiling.ahead(pool, Lowered(), 0)()
    first, full, unknown, again = asked
    assert first and "xla_cpu_use_fusion_emitters" in first
    assert unknown == {"xla_nothing": True}
    assert full is again is None

"""Programs compiled ahead of their use."""

import threading
import time
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


def test_some_version_of_xla_knows_the_options(lowered):
    """That of this test the one for all programs, at least."""
    assert lowered.compile(compiler_options=compiling.ENOUGH)


def test_what_waits_to_be_compiled_at_an_error_never_is(lowered):
    begun, later = threading.Event(), []

    def busy():
        begun.set()
        end = time.monotonic() + 60
        while not (later and later[0].cancelled()) and time.monotonic() < end:
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), compiling.compilers() as pool:
        # as many as it has threads
        for _ in range(2):
            pool.submit(busy)
        later.append(pool.submit(lambda: "compiled"))
        begun.wait(60)
        raise KeyboardInterrupt
    assert later[0].cancelled()


class Asked:
    """A program that notes its options, the first of which it does not know."""

    def __init__(self, lowered, n_unknown):
        self.lowered, self.n_unknown, self.options = lowered, n_unknown, []

    def compile(self, compiler_options=None):
        self.options.append(compiler_options)
        if len(self.options) <= self.n_unknown:
            compiler_options = {"xla_nothing": True}
        return self.lowered.compile(compiler_options=compiler_options)


@pytest.mark.parametrize(
    ("n_entries", "n_unknown", "expected"),
    [
        (0, 1, [compiling.SOON, compiling.ENOUGH]),
        (0, 2, [compiling.SOON, compiling.ENOUGH, None]),
        (2 * compiling.FEW, 0, [compiling.ENOUGH]),
        (2 * compiling.FEW, 1, [compiling.ENOUGH, None]),
    ],
)
def test_options_that_are_not_known_are_left_out(
    lowered, n_entries, n_unknown, expected, monkeypatch
):
    # these are options for a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    asked = Asked(lowered, n_unknown)
    with ThreadPoolExecutor(1) as pool:
        compiling.ahead(pool, asked, n_entries)()
    assert asked.options == expected

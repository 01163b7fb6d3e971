"""Both precisions, in tests. The name of JAX's own context manager depends on the release."""

from contextlib import contextmanager

import jax


@contextmanager
def double(on):
    """With double precision switched on or off."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)

import jax
import pytest


@pytest.fixture(autouse=True)
def strict():
    """The settings of JAX under which Diffrax tests its solvers: nothing is promoted silently."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield

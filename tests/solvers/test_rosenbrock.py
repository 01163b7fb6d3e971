import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import memjax as mj


@jax.jit
def step(rate, length):
    """One step of y' = rate * y from 1."""
    term = diffrax.ODETerm(lambda t, y, args: rate * y)
    y1, error, *_ = mj.Rodas5P().step(
        term, jnp.array(0.0), length, jnp.ones(1), None, None, jnp.array(False)
    )
    return y1[0], error[0]


def test_stability():
    # L-stable: decays that are far too fast for the step are gone at its end.
    y1, error = step(-1e12, 1.0)
    assert abs(y1) < 1e-10
    # But not on the way there, and the estimate says so.
    assert error > 0.1

    # A-stable: on the imaginary axis nothing grows, which a rotation shows in real numbers.
    @jax.jit
    @jax.vmap
    def turned(speed):
        term = diffrax.ODETerm(lambda t, y, args: speed * jnp.stack([-y[1], y[0]]))
        y1, *_ = mj.Rodas5P().step(term, 0.0, 1.0, jnp.array([1.0, 0.0]), None, None, False)
        return jnp.linalg.norm(y1)

    assert np.all(turned(jnp.geomspace(0.1, 1e3, 50)) <= 1 + 1e-12)


def test_time_enters_through_its_derivative():
    # y' = t^4 is integrated exactly by a method of order 5, but only with the term in df/dt.
    term = diffrax.ODETerm(lambda t, y, args: 5 * t**4 * jnp.ones_like(y))
    y1, error, *_ = mj.Rodas5P().step(term, 1.0, 3.0, jnp.ones(1), None, None, False)
    np.testing.assert_allclose(y1, 1 + 3**5 - 1, rtol=1e-12)
    assert abs(error[0]) > 1e-3

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from memjax.numerics import golden_section


def test_minima_side_by_side_are_those_of_scipy():
    place = np.array([0.1, 0.7, 0.95])
    function = lambda x: jnp.cosh(3 * (x - place)) - jnp.cos(x)
    point, value = golden_section(function, jnp.zeros(3), jnp.ones(3), 45)
    for k, at in enumerate(place):
        alone = lambda x, at=at: np.cosh(3 * (x - at)) - np.cos(x)
        found = scipy.optimize.minimize_scalar(
            alone, bounds=(0, 1), method="bounded", options={"xatol": 1e-9}
        )
        assert point[k] == pytest.approx(found.x, abs=1e-7)
        assert value[k] == pytest.approx(found.fun, abs=1e-14)


def test_every_evaluation_narrows_the_bracket():
    errors = []
    for evaluations in (5, 15):
        point, _ = golden_section(
            lambda x: jnp.abs(x - np.pi / 4), jnp.zeros(()), jnp.ones(()), evaluations
        )
        errors.append(abs(float(point) - np.pi / 4))
    assert errors[1] < 0.618**8 * 0.3 and errors[1] < errors[0]


def test_what_was_known_before_is_kept_where_it_is_lower():
    before = (jnp.array(5.0), jnp.array(-1.0))
    assert golden_section(jnp.square, jnp.array(1.0), jnp.array(2.0), 10, before) == before

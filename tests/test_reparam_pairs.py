"""Displacements of rates with twice the digits, against mpmath."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import memjax as mj


def exact(name, rate, change):
    """The displacement and the slope after it, from a rate."""
    w, d = mp.mpf(rate), change
    if name == "exp":
        gain = mp.mpf(1.5)
        after = w * mp.exp(gain * d)
        return after - w, gain * after
    if name == "softplus":
        v = mp.log(mp.expm1(w)) + d
        return mp.log(1 + mp.exp(v)) - w, 1 / (1 + mp.exp(-v))
    if name == "inverse":
        v = 1 / mp.sqrt(w) + d
        return 1 / v**2 - w, -2 / v**3
    if name == "best":
        a, b = mp.mpf(0.7), mp.mpf(0.1)
        v = mp.sqrt((1 / w - b) / a) + d
        after = 1 / (a * v**2 + b)
        return after - w, -2 * a * v * after**2
    if name == "tanh":
        v = mp.atanh(1 - w) + d
        return 1 - mp.tanh(v) - w, -(mp.sech(v) ** 2)
    return d, mp.mpf(1)


MAPS = {
    "direct": mj.Direct(),
    "exp": mj.Exp(1.5),
    "softplus": mj.Softplus(),
    "inverse": mj.Inverse(),
    "best": mj.Best(0.7, 0.1),
    "tanh": mj.Tanh(),
}


@pytest.mark.parametrize("name", MAPS)
def test_all_digits_of_a_pair(name):
    rng = np.random.default_rng(1)
    rates = np.exp(rng.uniform(np.log(0.02), np.log(1.9), 60))
    high = rng.choice([-1, 1], 60) * 10.0 ** rng.uniform(-25, -0.8, 60)
    low = high * 2.0**-54 * rng.uniform(-1, 1, 60)
    displaced = jax.jit(lambda rates, change: MAPS[name].displaced_pair(rates, change))
    pairs = displaced(jnp.asarray(rates), (jnp.asarray(high), jnp.asarray(low)))
    with mp.workdps(70):
        for k, (rate, h, rest) in enumerate(zip(rates, high, low, strict=True)):
            wanted = exact(name, rate, mp.mpf(h) + mp.mpf(rest))
            for pair, value in zip(pairs, wanted, strict=True):
                found = mp.mpf(float(pair[0][k])) + mp.mpf(float(pair[1][k]))
                assert abs(found - value) < 1e-29 * abs(value), (name, rate, h)


def test_a_function_of_ones_own_has_none():
    assert mj.Elementwise(jnp.exp, jnp.log).displaced_pair(jnp.ones(1), (jnp.ones(1),) * 2) is None

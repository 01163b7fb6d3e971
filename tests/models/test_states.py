import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import memjax as mj
from memjax.models import has_hidden_states, hidden_states

KEY = jax.random.key(3)
RNG = np.random.default_rng(5)
# Uneven, with a number that is no multiple of what a scan takes at once.
TS = np.cumsum(RNG.uniform(0.01, 0.2, 90))
XS = RNG.normal(size=(90, 2))
RATES, FREQUENCIES = np.array([0.3, 2.0, 9.0]), np.array([0.0, 4.0, -1.0])
DENSE = RNG.normal(size=(3, 3)) - 3 * np.eye(3)


def layer(outputs, inputs=2):
    shape = (3, inputs)
    return mj.StateSpaceLayer(
        RATES, RNG.normal(size=shape), RNG.normal(size=3), RNG.normal(size=(outputs, 3))
    )


def lru(outputs):
    turned = lambda *shape: RNG.normal(size=shape) + 1j * RNG.normal(size=shape)
    return mj.LRULayer(RATES, FREQUENCIES, turned(3, 2), turned(outputs, 3), "tanh")


MODELS = {
    "diagonal": (mj.DiagonalLinearRNN([1.0, 2.0, 3.0], RATES), "scan", XS[:, 0]),
    "complex": (
        mj.ComplexDiagonalRNN([1.0, 2.0, 3.0], [0.5, 0.0, 1.0], RATES, FREQUENCIES),
        "scan",
        XS[:, 0],
    ),
    "dense": (mj.LinearRNN(DENSE, RNG.normal(size=(3, 2)), RNG.normal(size=(2, 3))), "scan", XS),
    "dense scalar": (mj.LinearRNN(DENSE, [1.0, 0, 0], [1.0, 1, 1]), "scan", XS[:, 0]),
    "layer": (layer(1), "scan", XS),
    "lru": (lru(2), "scan", XS),
    "stack": (mj.StateSpaceStack([lru(2), layer(2)]), "scan", XS),
    "tanh": (mj.NonlinearRNN.init(4, inputs=2, key=KEY), "residual", XS),
    "gru": (mj.GatedRNN.init("gru", 4, inputs=2, key=KEY), "residual", XS),
    "lstm": (mj.GatedRNN.init("lstm", 4, inputs=2, key=KEY), "residual", XS),
    "mixed stack": (
        mj.StateSpaceStack([lru(2), mj.NonlinearRNN.init(4, inputs=2, key=KEY)]),
        "residual",
        XS,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_readouts_of_hidden_states_are_the_outputs(name):
    model, method, xs = MODELS[name]
    assert has_hidden_states(model)
    states = hidden_states(model, TS, xs, model.initial_hidden())
    outputs = jax.vmap(model.readout)(states)
    np.testing.assert_allclose(outputs, getattr(model, method)(TS, xs), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_go_on_from_where_they_were(name):
    model, _, xs = MODELS[name]
    states = hidden_states(model, TS, xs, model.initial_hidden())
    middle = jax.tree.map(lambda leaf: leaf[37], states)
    late = hidden_states(model, TS[37:], xs[37:], middle)
    for one, other in zip(jax.tree.leaves(states), jax.tree.leaves(late), strict=True):
        np.testing.assert_allclose(one[37:], other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["diagonal", "complex", "dense"])
def test_without_input_a_start_decays_as_the_exponential_of_the_matrix(name):
    model, _, xs = MODELS[name]
    start = model.initial_hidden() + RNG.normal(size=model.initial_hidden().shape)
    states = hidden_states(model, TS, np.zeros_like(xs), start)
    turn = np.block(
        [[-np.diag(RATES), -np.diag(FREQUENCIES)], [np.diag(FREQUENCIES), -np.diag(RATES)]]
    )
    matrix = {"diagonal": -np.diag(RATES), "complex": turn, "dense": DENSE}[name]
    for k in (0, 1, 40, 89):
        exact = expm(matrix * (TS[k] - TS[0])) @ np.ravel(start)
        np.testing.assert_allclose(np.ravel(states[k]), exact, rtol=1e-11, atol=1e-14)


def test_a_scan_of_ones_own_is_not_followed():
    class Own(mj.NonlinearRNN):
        def scan(self, ts, xs, *, interpolation="linear"):
            return jnp.zeros(len(ts))

    assert not has_hidden_states(Own(*[jnp.ones((1, 1)), jnp.ones(1), None, jnp.ones(1)]))
    assert not has_hidden_states(lambda xs: xs)
    s4 = mj.S4Layer.init(2, 4, key=KEY)
    assert not has_hidden_states(s4) and not has_hidden_states(mj.StateSpaceStack([s4]))

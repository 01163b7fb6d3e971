"""What a model of one's own offers is used without being asked for."""

import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax.models import known_input_shape, Rates, scans_exactly, weight_name

TS = np.linspace(0, 3, 31)
RATE = 0.7


class Plain(mj.AbstractModel):
    rate: jnp.ndarray

    def initial_hidden(self):
        return jnp.zeros(1)

    def vector_field(self, t, hidden, x):
        return x - self.rate * hidden

    def readout(self, hidden):
        return hidden[0]


class Scanned(Plain):
    def scan(self, ts, xs):
        return 10.0 + jnp.zeros(xs.shape[0])


class Linear(Plain):
    def kernel(self):
        return mj.ExponentialSum(1.0, self.rate)

    @property
    def input_shape(self):
        return ()


@pytest.mark.thorough
def test_a_scan_is_taken_where_there_is_one():
    rate = jnp.array(RATE)
    assert mj.as_functional(Plain(rate)).method == "diffrax"
    assert mj.as_functional(Scanned(rate)).method == "scan"
    target = mj.ExponentialSum(1.0, RATE)
    loss = mj.SampledPathLoss(target, TS, np.zeros((2, 31)))
    assert loss(Scanned(rate)) == 100.0
    assert loss(Plain(rate)) == 0.0


def test_a_kernel_is_taken_where_there_is_one():
    model = Linear(jnp.array(RATE))
    assert mj.as_functional(model).linear and not mj.as_functional(Plain(model.rate)).linear
    assert mj.memory_function(model, TS).exact
    np.testing.assert_allclose(mj.memory_function(model, TS).values, np.exp(-RATE * TS))
    assert abs(float(mj.WhiteNoiseLoss(mj.ExponentialSum(1.0, RATE))(model))) < 1e-15
    with pytest.raises(TypeError, match="`model` must be linear, with a method `kernel`"):
        mj.WhiteNoiseLoss(mj.ExponentialSum(1.0, RATE))(Plain(model.rate))


def test_an_input_shape_is_known_where_it_is_said():
    model = Linear(jnp.array(RATE))
    assert known_input_shape(model) == () and known_input_shape(Plain(model.rate)) is None
    with pytest.raises(ValueError, match="`inputs` must be None"):
        mj.as_functional(model, inputs=2)


def test_a_stack_offers_what_its_layers_do():
    layer = mj.StateSpaceLayer([1.0, 0.5], np.ones((2, 3)), None, np.ones((3, 2)))
    assert scans_exactly(mj.StateSpaceStack([layer]))
    assert not scans_exactly(mj.StateSpaceStack([layer, layer]))
    assert known_input_shape(mj.StateSpaceStack([layer, layer])) == (3,)


def test_weights_of_parts_go_by_their_own_names():
    import jax

    layer = mj.StateSpaceLayer([1.0, 0.5], np.ones(2), None, np.ones(2))
    stack = mj.StateSpaceStack([layer])
    names = [weight_name(stack, path) for path, _ in jax.tree_util.tree_leaves_with_path(stack)]
    assert names == [f"layers[0].{n}" for n in ("free_rates", "input", "bias", "readout_weights")]
    assert Rates([2.0], mj.Exp())() == 2.0

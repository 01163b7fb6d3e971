"""What is wrong in any cell of a sweep is said before anything is measured."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

OMEGA, DELTA, RATE, B = 0.1, 0.02, 0.6, 0.1


def build(omega=OMEGA, delta=DELTA, rate=RATE, b=B):
    target = mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(omega, width=0.5)
    rates = jnp.stack([jnp.asarray(0.5), rate])
    model = mj.DiagonalLinearRNN(jnp.array([1.0, 0.0]), rates, mj.Best(1.0, b))
    return mj.GradientFlow(mj.WhiteNoiseLoss(target)), model, mj.RelativeLossDrop(delta)


def bound_of(rate):
    return mj.plateau_lower_bound(OMEGA, delta=DELTA, decay_rate=rate, width=2)


WRONG_CELLS = [
    # The rate 8 is above 1 / b = 2 in one corner of the grid only.
    (
        lambda rate, b: build(rate=rate, b=b),
        {"rate": [0.6, 2.0, 8.0], "b": [0.1, 0.5]},
        r"`rates` must be at most 1/b = 2, got 8.0; .* \(In the cell rate=8.0, b=0.5.\)",
    ),
    (
        lambda delta: build(delta=delta),
        {"delta": [0.1, 0.05, 0.0, 0.2]},
        r"`delta` must be positive, got 0.0; .* \(In the cell delta=0.0.\)",
    ),
    (
        lambda delta: build(delta=delta),
        {"delta": [0.1, 1.5, 0.2]},
        r"`delta` must be below 1, got 1.5; .* \(In the cell delta=1.5.\)",
    ),
    (
        lambda omega, shift: build(omega=omega - shift),
        {"omega": [0.1, 0.2, 0.3], "shift": [0.05, 0.15]},
        r"`omega` must be positive, got -0.0.*; .* \(In the cell omega=0.1, shift=0.15.\)",
    ),
    (
        lambda width, rate: build(rate=rate - width),
        {"width": [0, 1], "rate": [0.5, 0.7]},
        r"`rates` must be positive, got -0.5; .* \(In the cell width=1, rate=0.5.\)",
    ),
    # Only what is recorded is out of range, in the second cell.
    (
        lambda share: (*build(), {"bound": bound_of(share)}),
        {"share": [0.5, 0.0, 0.2]},
        r"`decay_rate` must be positive, got 0.0; .* \(In the cell share=0.0.\)",
    ),
]


@pytest.mark.parametrize("build, axes, match", WRONG_CELLS)
def test_a_cell_that_is_out_of_range_is_named(build, axes, match):
    static = [name for name in axes if name == "width"]
    with pytest.raises(ValueError, match=match) as caught:
        mj.sweep(build, axes, static=static, progress=False)
    assert "\n" not in str(caught.value)


def test_nan_may_be_recorded():
    def record(omega):
        return *build(omega), {"late": jnp.where(omega > 0.15, omega, jnp.nan)}

    cells = mj.sweep(record, {"omega": [0.1, 0.2]}, progress=False)
    np.testing.assert_array_equal(cells["late"], [np.nan, 0.2])


def test_a_width_that_is_traced_is_one_to_be_named_in_static():
    def build(width, omega):
        return (
            mj.GradientFlow(mj.WhiteNoiseLoss(mj.GaussianBump(omega))),
            mj.random_start(width, key=jax.random.key(0)),
            mj.RelativeLossDrop(0.1),
        )

    axes = {"width": [2, 4], "omega": [0.1, 0.2]}
    match = r"must be an integer .* \(In the cell width=2, omega=0.1.\) .* not named: `width`\."
    with pytest.raises(TypeError, match=match):
        mj.sweep(build, axes, progress=False)


WRONG_BUILDS = [
    (lambda omega: build(omega if omega > 0.1 else 0.2), TypeError, "must work on traced values"),
    (lambda omega: (*build(omega)[:2], 0.02), TypeError, "returns third an exit condition, got 0"),
    (lambda omega: (None, *build(omega)[1:]), TypeError, "returns first a flow, got None"),
    (lambda omega: (build(omega)[0], 3, build(omega)[2]), TypeError, "returns second a model"),
    (lambda omega: (*build(omega), {"x": "text"}), TypeError, r"`record\['x'\]` must be a number"),
    (lambda omega: (*build(omega), {"x": jnp.ones(3)}), ValueError, r"`record\['x'\]` must be a s"),
    (lambda omega: (*build(omega), [1.0]), TypeError, "whose record is a mapping"),
    (lambda omega: (*build(omega), {"omega": 1.0}), ValueError, "must not record 'omega'"),
    (lambda omega: build(omega)[0], TypeError, r"must return \(flow, model, exit\)"),
    (lambda: build(), TypeError, "must take the axes"),
    (3, TypeError, "`build` must be a function, got 3"),
]


@pytest.mark.parametrize("build, error, match", WRONG_BUILDS)
def test_a_build_that_returns_something_else_is_refused(build, error, match):
    with pytest.raises(error, match=match) as caught:
        mj.sweep(build, {"omega": [0.1, 0.2]}, progress=False)
    assert "\n" not in str(caught.value)


WRONG_OPTIONS = [
    ({"static": "omega"}, TypeError, "`static` must be a list"),
    ({"rtol": 1.0}, ValueError, "`rtol` must be below 1, got 1.0"),
    ({"rtol": 10**400}, ValueError, "`rtol` must fit in 64 bits"),
    ({"max_steps": 2**31}, ValueError, "`max_steps` must be an integer of at most"),
    ({"curve_times": [2, 1]}, ValueError, "`curve_times` must increase"),
    ({"curve_times": [-1, 1]}, ValueError, "`curve_times` must not be negative"),
    ({"precision": ["auto"]}, TypeError, "`precision` must be one of"),
    ({"attrs": {"a": object()}}, TypeError, "`attrs` must hold what JSON knows"),
    ({"attrs": {"rtol": 1}}, ValueError, "`attrs` must not use the name 'rtol'"),
    ({"attrs": ["a"]}, TypeError, "`attrs` must be a mapping"),
    ({"solver": mj.RadauIIA5}, TypeError, "`solver` must be .* got the class RadauIIA5"),
    ({"stepsize_controller": 1}, TypeError, "`stepsize_controller` must adapt"),
]


@pytest.mark.parametrize("options, error, match", WRONG_OPTIONS)
def test_wrong_options_are_refused_before_any_run(options, error, match):
    with pytest.raises(error, match=match) as caught:
        mj.sweep(lambda omega: build(omega), {"omega": [0.1]}, progress=False, **options)
    assert "\n" not in str(caught.value)


class Gaps(eqx.Module):
    """A squared error over data with gaps."""

    data: jax.Array

    def __call__(self, model):
        known = jnp.where(jnp.isnan(self.data), model.amplitudes, self.data)
        return jnp.sum((model.amplitudes - known) ** 2)


@pytest.mark.slow
def test_a_nan_of_ones_own_is_left_to_the_run():
    def own(delta):
        loss = mj.FunctionLoss(Gaps(jnp.array([0.5, jnp.nan])))
        return mj.GradientFlow(loss), build()[1], mj.RelativeLossDrop(delta)

    cells = mj.sweep(own, {"delta": [0.1, 0.2]}, progress=False)
    # d theta / d tau = -2 (theta - 0.5), J = (theta - 0.5)^2.
    np.testing.assert_allclose(cells["time"], -np.log1p([-0.1, -0.2]) / 4, rtol=1e-4)

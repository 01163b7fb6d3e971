"""Models padded to a common width are trained and perturbed as on their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.reproductions import _staged as staged
from memjax.reproductions import _w24_protocol as protocol

XS = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32)
YS = np.cumsum(XS, axis=1) * 0.1


def squared(model, data):
    xs, ys = data
    return jnp.mean((model.outputs(xs) - ys) ** 2)


def loss(model, key, data):
    return squared(model, data)


def train(widths, most_epochs=3, activation=jnp.tanh, parametrisation="softplus"):
    make = functools.partial(staged.ResidualRNN.init, parametrisation, activation)
    data = tuple(jnp.asarray(np.stack([part, part])) for part in (XS, YS))
    return list(
        staged.train_widths(
            widths, make, loss, squared, seeds=2, data=data, updates=4, most_epochs=most_epochs,
            key=jax.random.key(0),
        )
    ), data  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.softplus])
def test_padding_changes_nothing(activation):
    (alone,), _ = train((3,), activation=activation)
    (padded, wide), data = train((3, 5), activation=activation)
    np.testing.assert_allclose(padded.errors, alone.errors, rtol=1e-5)
    assert padded.models.input.shape == (2, 5) and not np.any(padded.models.input[:, 3:])
    np.testing.assert_allclose(padded.models.input[:, :3], alone.models.input, rtol=1e-4)
    np.testing.assert_array_equal(padded.masks.input, [[1, 1, 1, 0, 0]] * 2)
    # Perturbed too: what pads a model stays 0, and the largest entries are the radius.
    radii = np.array([0.1, 1.0])
    moved = staged.perturbed_errors(padded.models, padded.masks, squared, radii, 3, data=data)
    assert moved.shape == (2, 3)
    np.testing.assert_allclose(moved[:, 0], padded.errors, rtol=1e-4)
    assert np.all(np.diff(moved, axis=1) >= 0)
    assert np.all(wide.epochs <= 3)


@pytest.mark.thorough
def test_a_lowered_array_is_shifted_and_not_drawn():
    make = functools.partial(staged.ResidualRNN.init, "diagonal", lambda x: x)
    (found,), data = train((3,), most_epochs=1, parametrisation="diagonal")
    seen = staged.perturbed_errors(
        found.models,
        found.masks,
        lambda model, data: jnp.sum(model.free_rates),
        np.array([0.5]),
        4,
        data=data,
        lowered=lambda model: model.free_rates,
    )
    start = np.sum(found.models.free_rates, axis=1)
    # All rates go down, so that the sum is largest without perturbation.
    np.testing.assert_allclose(seen, np.stack([start, start], axis=1), rtol=1e-5)
    assert isinstance(make(2, np.random.default_rng(0)), staged.ResidualRNN)


def test_each_width_has_to_be_twice_as_good():
    found, _ = train((2, 4), most_epochs=2)
    assert np.all(found[0].reached) and np.all(found[0].epochs == 2)
    reached = found[1].errors < 0.5 * found[0].errors
    np.testing.assert_array_equal(found[1].reached, reached)


def test_radii_and_weights():
    curves = np.array([[[1e-3, 1e-2, 1.0]], [[1e-3, 1e-1, np.nan]]])
    found = staged.radius_at(np.array([0.01, 0.1, 1.0]), curves, [8], 0.05)
    # Interpolated in logarithms: 10^-0.651 and, below, 0.1 * 10^-0.151.
    expected = np.median([0.1 * 10 ** (np.log10(5) / 2), 0.01 * 10 ** (np.log10(50) / 2)])
    assert found[0] == pytest.approx(expected)
    weights = protocol.squared_weights(4)
    ts = np.arange(1.0, 5) ** 2
    np.testing.assert_allclose(weights, (ts / 7.5) ** 2)

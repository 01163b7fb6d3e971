"""Stiff equations that follow an input: the error must keep to the tolerance wherever one looks."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from scipy import optimize

import memjax as mj

SOLVERS = {"rodas": mj.Rodas5P(), "radau": mj.RadauIIA5()}
both_solvers = pytest.mark.parametrize("name", SOLVERS)
END = 5.0


def solve(name, vector_field, y0, rtol, args=None, **kwargs):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field), SOLVERS[name], 0.0, END, None, y0, args,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol), max_steps=20_000, **kwargs,
    )  # fmt: skip


def follows_sine(t, y, args):
    rate, frequency = args
    return -rate * (y - jnp.sin(frequency * t))


def followed_sine(t, rate, frequency, start, lib=np):
    wave = rate * lib.sin(frequency * t) - frequency * lib.cos(frequency * t)
    decay = (rate * frequency / (rate**2 + frequency**2) + start) * lib.exp(-rate * t)
    return rate * wave / (rate**2 + frequency**2) + decay


@pytest.mark.thorough
@both_solvers
def test_smooth_input(name):
    # At 200 times and at the ends of the steps; from the slow solution and through a layer.
    times = np.linspace(0, END, 201)
    saveat = diffrax.SaveAt(
        subs=[diffrax.SubSaveAt(ts=jnp.asarray(times)), diffrax.SubSaveAt(steps=True)]
    )

    @jax.jit
    def run(rate, start, rtol):
        solution = solve(name, follows_sine, start, rtol, (rate, 3.0), saveat=saveat)
        return solution.ts, solution.ys, solution.stats["num_steps"]

    for rate in (1.0, 1e2, 1e4, 1e6, 1e8):
        for rtol in (1e-3, 1e-6, 1e-9):
            for start in (0.0, 1.0):
                ts, ys, steps = run(rate, jnp.full(1, start), rtol)
                for t, y, most in zip(ts, ys, (6, 3), strict=True):
                    t, y = np.asarray(t)[np.isfinite(t)], np.asarray(y)[np.isfinite(t), 0]
                    exact = followed_sine(t, rate, 3.0, start)
                    assert np.max(np.abs(y - exact) / (1 + np.abs(exact))) < most * rtol
                # No more than the sine needs: what a start is off by is no reason to refuse.
                assert steps < 50 * (1e-3 / rtol) ** 0.25


KNOTS = np.sort(np.random.default_rng(1).uniform(0.05, END - 0.05, (12, 8)), axis=1)
VALUES = np.random.default_rng(2).standard_normal((12, 10))


def followed_table(times, knots, values, rate, jumps):
    """The solution from 0, whose input is a straight line in every piece."""
    knots = np.concatenate([[0], knots, [END]])
    found, y = np.zeros_like(times), 0.0
    for first, last, left, right in zip(knots[:-1], knots[1:], values, values[1:], strict=False):
        slope = 0.0 if jumps else (right - left) / (last - first)
        rest = lambda t: left + slope * (t - first) - slope / rate
        piece = lambda t: rest(t) + (y - rest(first)) * np.exp(-rate * (t - first))
        here = (times >= first) & (times <= last)
        found[here], y = piece(times[here]), piece(last)
    return found


@pytest.mark.thorough
@both_solvers
@pytest.mark.parametrize("jumps", [False, True])
def test_input_from_a_table(name, jumps):
    # Corners and jumps at times of which the solver is not told; 12 tables.
    times = np.linspace(0, END, 201)

    def field(t, y, args):
        rate, knots, values = args
        if jumps:
            target = values[jnp.searchsorted(knots, t, side="right")]
        else:
            ends = jnp.array([0.0]), jnp.array([END])
            target = jnp.interp(t, jnp.concatenate([ends[0], knots, ends[1]]), values)
        return -rate * (y - target)

    @jax.jit
    def run(rate, rtol):
        saveat = diffrax.SaveAt(ts=jnp.asarray(times))
        one = lambda knots, values: solve(
            name, field, jnp.zeros(1), rtol, (rate, knots, values), saveat=saveat
        )
        return jax.vmap(one)(jnp.asarray(KNOTS), jnp.asarray(VALUES)).ys

    for rate in (1.0, 1e3, 1e6):
        for rtol in (1e-4, 1e-7):
            found = np.asarray(run(rate, rtol))[:, :, 0]
            tables = zip(KNOTS, VALUES, strict=True)
            exact = np.array([followed_table(times, *table, rate, jumps) for table in tables])
            off = np.max(np.abs(found - exact) / (1 + np.abs(exact)), axis=1) / rtol
            assert np.median(off) < 3 and np.max(off) < 10


@pytest.mark.thorough
@both_solvers
def test_events(name):
    # Where the wave first comes down through 0.3, which is not where it is reached from 1.
    late = lambda t, y, args, **kwargs: jnp.where(t < 0.5, 1.0, y[0] - 0.3)
    event = diffrax.Event(late, optx.Newton(1e-10, 1e-10))
    found = jax.jit(lambda *x: solve(name, follows_sine, jnp.ones(1), 1e-7, x, event=event).ts[0])
    value = lambda t: followed_sine(t, 1e5, 3.0, 1.0) - 0.3
    np.testing.assert_allclose(found(1e5, 3.0), optimize.brentq(value, 0.5, 1.5), atol=1e-6)


@pytest.mark.slow
@both_solvers
def test_gradients(name):
    at = 1e5, 3.0
    exact = jax.grad(lambda *x: followed_sine(END, *x, 1.0, jnp), argnums=(0, 1))(*at)

    def final(adjoint):
        return lambda *x: solve(name, follows_sine, jnp.ones(1), 1e-7, x, adjoint=adjoint).ys[0, 0]

    reverse = jax.jit(jax.grad(final(diffrax.RecursiveCheckpointAdjoint()), argnums=(0, 1)))
    np.testing.assert_allclose(reverse(*at), exact, rtol=1e-5, atol=1e-12)
    forward = jax.jit(lambda *x: jax.jvp(final(diffrax.ForwardMode()), x, (0.0, 1.0))[1])
    np.testing.assert_allclose(forward(*at), exact[1], rtol=1e-5)

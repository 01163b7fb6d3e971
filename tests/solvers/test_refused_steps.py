"""Steps that are far too long, that leave the domain of the equation, or that cannot be taken."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import memjax as mj

SOLVERS = {
    "rodas": mj.Rodas5P(),
    "radau": mj.RadauIIA5(),
    "radau-full": mj.RadauIIA5(
        root_finder=diffrax.with_stepsize_controller_tols(mj.RadauNewton)(full=True)
    ),
}
every_solver = pytest.mark.parametrize("name", SOLVERS)
both_solvers = pytest.mark.parametrize("name", ["rodas", "radau"])


def solve(name, vector_field, y0, t1, args=None, rtol=1e-6, atol=1e-8, **kwargs):
    kwargs = {"dt0": None, "t0": 0.0, "throw": False} | kwargs
    controller = diffrax.PIDController(rtol=rtol, atol=atol)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field), SOLVERS[name], t1=t1, y0=y0, args=args,
        stepsize_controller=kwargs.pop("stepsize_controller", controller), **kwargs,
    )  # fmt: skip


# Far from rest these fall by many orders of magnitude at once, so that a linearisation at the
# start says nothing about the end. The solution at time t from a start.
STEEP = {
    "diode": (
        lambda t, y, args: jnp.expm1(-y),
        lambda y, t: np.logaddexp(y - t, np.log(-np.expm1(-t))),
        [-10.0, -25.0, -40.0],
        2.0,
    ),
    "logarithm": (
        lambda t, y, args: jnp.exp(-y),
        lambda y, t: np.logaddexp(y, np.log(t)),
        [-25.0, -40.0, -100.0],
        2.0,
    ),
    "sinh": (
        lambda t, y, args: -jnp.sinh(y),
        lambda y, t: 2 * np.arctanh(np.tanh(y / 2) * np.exp(-t)),
        [3.0, 15.0, 30.0],
        2.0,
    ),
    "cube": (
        lambda t, y, args: -(y**3),
        lambda y, t: y / np.sqrt(1 + 2 * y**2 * t),
        [1e3, 1e6, -1e9],
        3.0,
    ),
    "logistic": (
        lambda t, y, args: 10 * y * (1 - y),
        lambda y, t: 1 / (1 + (1 / y - 1) * np.exp(-10 * t)),
        [1e3, 1e6, 1e9],
        2.0,
    ),
}


@pytest.mark.slow
@every_solver
@pytest.mark.parametrize("problem", [*STEEP, pytest.param("backwards", marks=pytest.mark.slow)])
def test_steep_starts(name, problem):
    # With the first step of 0.01 that Diffrax takes, and with one as long as the whole.
    backwards = problem == "backwards"
    field, exact, starts, end = STEEP["diode" if backwards else problem]
    sign = -1.0 if backwards else 1.0

    @jax.jit
    def run(start, rtol, dt0):
        solution = solve(
            name, lambda t, y, args: sign * field(t, y, args), jnp.full(1, start), sign * end,
            rtol=rtol, atol=rtol, dt0=sign * dt0,
        )  # fmt: skip
        return solution.ys[0, 0], solution.result._value

    for start in starts:
        for rtol in (1e-2, 1e-4, 1e-7):
            for dt0 in (0.01, end):
                found, result = run(start, rtol, dt0)
                assert result == diffrax.RESULTS.successful._value
                expected = exact(start, end)
                assert abs(found - expected) < 3 * rtol * (1 + abs(expected))


@pytest.mark.thorough
@both_solvers
def test_fast_oscillations_are_not_damped_away(name):
    # Implicit methods can step over what they do not resolve; here it is all there is.
    field = lambda t, y, speed: speed * jnp.stack([y[1], -y[0]])
    run = jax.jit(lambda speed: solve(name, field, jnp.array([1.0, 0.0]), 20 / speed, speed).ys[0])
    for speed in (1e2, 1e5, 1e8):
        np.testing.assert_allclose(run(speed), [np.cos(20), -np.sin(20)], atol=2e-5)


# Vector fields that are not defined everywhere: of a parameter, with a start and an end from which
# steps are refused that lead out of the domain, and the solution in closed form.
DOMAINS = {
    "logarithm": (
        lambda t, y, a: -a * y * jnp.log(y),
        1e-6,
        0.003,
        1000.0,
        lambda a, y, t: jnp.exp(jnp.log(y) * jnp.exp(-a * t)),
    ),
    "root": (
        lambda t, y, a: -a * y * jnp.sqrt(y),
        1.0,
        50.0,
        1.0,
        lambda a, y, t: (y**-0.5 + a * t / 2) ** -2,
    ),
    "power": (
        lambda t, y, a: -a * y**1.5,
        1.0,
        50.0,
        1.0,
        lambda a, y, t: (y**-0.5 + a * t / 2) ** -2,
    ),
    "division": (
        lambda t, y, a: a / jnp.sqrt(y) - a * y,
        1e-6,
        0.05,
        20.0,
        lambda a, y, t: (1 - (1 - y**1.5) * jnp.exp(-1.5 * a * t)) ** (2 / 3),
    ),
}


def end_of(name, domain, adjoint, a, y):
    """The state at the end, and how many steps were refused."""
    field, _, end, _, _ = DOMAINS[domain]
    solution = solve(name, field, y[None], end, a, 1e-8, 1e-12, dt0=end, adjoint=adjoint)
    return solution.ys[0, 0], solution.stats["num_rejected_steps"]


def reverse(name, domain, *at):
    end = lambda *x: end_of(name, domain, diffrax.RecursiveCheckpointAdjoint(), *x)
    return jax.jit(jax.value_and_grad(end, argnums=(0, 1), has_aux=True))(*at)


@pytest.mark.thorough
@both_solvers
@pytest.mark.parametrize(
    "domain",
    ["logarithm", *(pytest.param(x, marks=pytest.mark.slow) for x in DOMAINS if x != "logarithm")],
)
def test_gradients_past_steps_out_of_the_domain(name, domain):
    _, start, end, parameter, exact = DOMAINS[domain]
    at = jnp.asarray(parameter), jnp.asarray(start)
    (value, refused), gradient = reverse(name, domain, *at)
    assert refused > 0
    np.testing.assert_allclose(value, exact(*at, end), rtol=1e-6)
    slopes = jax.grad(exact, argnums=(0, 1))(*at, end)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4)


@pytest.mark.slow
@both_solvers
@pytest.mark.parametrize("domain", DOMAINS)
def test_forward_mode_agrees_past_steps_out_of_the_domain(name, domain):
    _, start, _, parameter, _ = DOMAINS[domain]
    at = jnp.asarray(parameter), jnp.asarray(start)
    end = lambda *x: end_of(name, domain, diffrax.ForwardMode(), *x)[0]
    along = jax.jit(lambda *x: jax.jvp(end, x, (jnp.array(1.0), jnp.array(2.0))))(*at)[1]
    _, gradient = reverse(name, domain, *at)
    np.testing.assert_allclose(along, gradient[0] + 2 * gradient[1], rtol=1e-8)


@pytest.mark.thorough
@both_solvers
def test_dead_ends_are_reported_as_such(name):
    nonfinite = diffrax.RESULTS.nonfinite_input
    # The vector field is not finite at the start, or only its Jacobian is not.
    for field, start in (
        (lambda t, y, args: jnp.sqrt(y - 2), 1.0),
        (lambda t, y, args: jnp.sqrt(y), 0.0),
        (lambda t, y, args: jnp.exp(-y), -800.0),
    ):
        solution = solve(name, field, jnp.full(1, start), 1.0)
        assert solution.result == nonfinite
        assert solution.stats["num_steps"] == 1
        np.testing.assert_array_equal(solution.ys[0], start)
    # It is no event that the state stands still.
    event = diffrax.Event(lambda t, y, args, **kwargs: y[0] - 0.5, optx.Newton(1e-8, 1e-8))
    solution = solve(name, lambda t, y, args: jnp.sqrt(y - 2), jnp.ones(1), 1.0, event=event)
    assert solution.result == nonfinite


@pytest.mark.thorough
@both_solvers
def test_solutions_that_end_are_reported_as_such(name):
    # At y = 0 and t = 0.61 the vector field ends, and at t = 0.5 it becomes NaN.
    for field, end in (
        (lambda t, y, args: -1 - jnp.sqrt(y), 2 - 2 * np.log(2)),
        (lambda t, y, args: jnp.where(t > 0.5, jnp.nan, y), 0.5),
    ):
        solution = solve(name, field, jnp.ones(1), 3.0)
        assert solution.result == diffrax.RESULTS.dt_min_reached
        np.testing.assert_allclose(solution.ts[0], end, rtol=1e-6)
        assert solution.stats["num_steps"] < 500


@pytest.mark.thorough
@both_solvers
def test_fixed_steps_out_of_the_domain(name):
    solver = SOLVERS[name]
    if name == "radau":
        solver = mj.RadauIIA5(mj.RadauNewton(1e-8, 1e-10))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: -jnp.sqrt(y - 0.5)), solver, 0.0, 1.0, 1.0,
        jnp.ones(1), throw=False,
    )  # fmt: skip
    expected = diffrax.RESULTS.singular if name == "rodas" else diffrax.RESULTS.nonlinear_divergence
    assert solution.result == expected
    np.testing.assert_array_equal(solution.ys[0], 1.0)

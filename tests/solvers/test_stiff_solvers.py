"""What `Rodas5P` and `RadauIIA5` have in common."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

import memjax as mj
from stiff_problems import PROBLEMS

SOLVERS = {
    "rodas": mj.Rodas5P(),
    "radau": mj.RadauIIA5(),
    "radau-full": mj.RadauIIA5(
        root_finder=diffrax.with_stepsize_controller_tols(mj.RadauNewton)(full=True)
    ),
}
# How fast errors vanish with the step: of a step, of its error estimate, and between its ends.
ORDERS = {"rodas": (6, 5, 5), "radau": (6, 4, 4), "radau-full": (6, 4, 4)}
every_solver = pytest.mark.parametrize("name", SOLVERS)
both_solvers = pytest.mark.parametrize("name", ["rodas", "radau"])


def moving(t, y, args):
    """Not autonomous, not linear, and solved by `moved`."""
    rate, *_ = args
    along, across = y
    target, slope = jnp.cos(t) * along, -jnp.sin(t) * along - jnp.cos(t) ** 2 * along**2
    return jnp.stack([-jnp.cos(t) * along**2, slope - rate * (across - target)])


def moved(t, start):
    along = start / (1 + start * np.sin(t))
    return np.stack([along, np.cos(t) * along], axis=-1)


def moving_jacobian(t, y, args):
    rate, *_ = args
    along = y[0]
    cos, sin = jnp.cos(t), jnp.sin(t)
    return jnp.array([[-2 * cos * along, 0], [-sin - 2 * cos**2 * along + rate * cos, -rate]])


def at_tolerance(solver, tolerance):
    """The solver for a step by hand, where there is no controller to take tolerances from."""
    if not isinstance(solver, mj.RadauIIA5):
        return solver
    newton = mj.RadauNewton(tolerance, tolerance, full=solver.root_finder.full)
    return mj.RadauIIA5(newton, root_find_max_steps=50, jacobian=solver.jacobian)


def solve(vector_field, solver, t0, t1, y0, args, rtol, atol, dt0=None, **kwargs):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        solver,
        t0,
        t1,
        dt0,
        y0,
        args,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=20_000,
        **kwargs,
    )


def solve_moving(solver, rate, t1, rtol):
    """One program for several tests."""
    return _solve_moving(solver, *map(jnp.asarray, (rate, t1, rtol)))


@eqx.filter_jit
def _solve_moving(solver, rate, t1, rtol):
    times = jnp.linspace(0, 1, 9) * t1
    y0 = jnp.array([0.9, 0.9])
    return times, solve(
        moving, solver, 0.0, t1, y0, (rate,), rtol, rtol, saveat=diffrax.SaveAt(ts=times)
    )


@pytest.mark.thorough
@every_solver
def test_orders(name):
    solver = at_tolerance(SOLVERS[name], 1e-14)
    term = diffrax.ODETerm(moving)
    t0, y0, args = 0.3, jnp.asarray(moved(0.3, 0.9)), (2.0,)
    shares = jnp.array([0.2, 0.5, 0.9])

    @jax.jit
    @jax.vmap
    def step(length):
        t1 = t0 + length
        state = solver.init(term, t0, t1, y0, args)
        y1, error, dense, _, result = solver.step(term, t0, t1, y0, args, state, False)
        polynomial = solver.interpolation_cls(t0=t0, t1=t1, **dense)
        between = jax.vmap(polynomial.evaluate)(t0 + shares * length)
        return y1, error, between, polynomial.evaluate(t0), polynomial.evaluate(t1), result._value

    lengths = np.array([0.2, 0.1, 0.05])
    y1, error, between, first, last, _ = map(np.asarray, step(jnp.asarray(lengths)))
    np.testing.assert_array_equal(last, y1)
    np.testing.assert_array_equal(first, np.broadcast_to(y0, first.shape))
    errors = [
        np.max(np.abs(y1 - moved(t0 + lengths, 0.9)), axis=1),
        np.max(np.abs(error), axis=1),
        np.max(np.abs(between - moved(t0 + lengths[:, None] * np.array(shares), 0.9)), axis=(1, 2)),
    ]
    for values, order in zip(errors, ORDERS[name], strict=True):
        np.testing.assert_allclose(np.log2(values[1:-1] / values[2:]), order, atol=0.45)
    # The estimate is on the safe side of the error of the method that it belongs to.
    assert np.all(errors[0] < errors[1])


@both_solvers
def test_order_of_the_whole(name):
    solver = at_tolerance(SOLVERS[name], 1e-13)

    @jax.jit
    def error(length):
        y0, term = jnp.array([0.9, 0.9]), diffrax.ODETerm(moving)
        ys = diffrax.diffeqsolve(term, solver, 0.0, 2.0, length, y0, (2.0,)).ys
        return jnp.max(jnp.abs(ys[0] - moved(2.0, 0.9)))

    errors = np.array([error(2 / n) for n in (10, 20, 40)])
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), 5, atol=0.4)


@pytest.mark.thorough
@both_solvers
@pytest.mark.parametrize("problem", PROBLEMS)
def test_stiff_problems(name, problem):
    case = PROBLEMS[problem]
    start = jnp.asarray(case.start)

    @jax.jit
    def run(rtol, args):
        return solve(
            case.vector_field, SOLVERS[name], 0.0, case.end, start, args, rtol, case.atol * rtol
        )

    for rtol in (1e-5, 1e-8):
        solution = run(rtol, case.args)
        deviation = np.max(np.abs(solution.ys[0] / case.solution - 1))
        # Robertson's problem has eleven decades of time to add errors up in.
        assert deviation < (50 if problem == "Robertson" else 10) * rtol
    assert solution.stats["num_rejected_steps"] < 0.2 * solution.stats["num_accepted_steps"]


@both_solvers
def test_infinitely_stiff(name):
    # Prothero and Robinson's problem: with a rate of 1e9 the state is told where to be.
    times, solution = solve_moving(SOLVERS[name], 1e9, 2.0, 1e-7)
    np.testing.assert_allclose(solution.ys, moved(np.asarray(times), 0.9), rtol=1e-5)
    assert solution.stats["num_steps"] < 200


@both_solvers
def test_times_between_steps(name):
    times, solution = solve_moving(SOLVERS[name], 2.0, 2.0, 1e-9)
    np.testing.assert_allclose(solution.ys, moved(np.asarray(times), 0.9), rtol=2e-8)


@both_solvers
def test_backwards_in_time_with_given_jacobian(name):
    seen = []

    def jacobian(t, y, args):
        seen.append(y.shape)
        return moving_jacobian(t, y, args)

    given = eqx.tree_at(lambda s: s.jacobian, SOLVERS[name], jacobian, is_leaf=lambda x: x is None)
    times, expected = solve_moving(SOLVERS[name], -2.0, -0.5, 1e-7)
    assert not seen
    _, solution = solve_moving(given, -2.0, -0.5, 1e-7)
    assert seen
    # The same steps, so that the Jacobians agree at every one of them.
    assert solution.stats["num_steps"] == expected.stats["num_steps"]
    np.testing.assert_allclose(solution.ys, expected.ys, rtol=1e-12)
    np.testing.assert_allclose(solution.ys, moved(np.asarray(times), 0.9), rtol=1e-5)


@pytest.mark.thorough
@both_solvers
def test_trees_dense_output_and_events(name):
    # An oscillator and a decay in one tree; the first zero of the oscillator is pi / 2.
    def vector_field(t, y, args):
        return {"x": y["p"][0], "p": (-y["x"],), "decay": [-30 * y["decay"][0]]}

    start = {
        "x": jnp.ones((2, 1)),
        "p": (jnp.zeros((2, 1)),),
        "decay": [jnp.array([1.0, 2.0, 3.0])],
    }
    event = diffrax.Event(lambda t, y, args, **kwargs: y["x"][0, 0], optx.Newton(1e-9, 1e-9))

    @eqx.filter_jit
    def run():
        return solve(
            vector_field, SOLVERS[name], 0.0, 3.0, start, None, 1e-8, 1e-8, event=event,
            saveat=diffrax.SaveAt(t1=True, dense=True),
        )  # fmt: skip

    solution = run()
    assert solution.result == diffrax.RESULTS.event_occurred
    np.testing.assert_allclose(solution.ts[0], np.pi / 2, rtol=1e-6)
    assert jax.tree.structure(solution.evaluate(0.7)) == jax.tree.structure(start)
    np.testing.assert_allclose(solution.evaluate(0.7)["x"], np.cos([[0.7]] * 2), rtol=1e-6)
    np.testing.assert_allclose(solution.evaluate(0.7)["p"][0], -np.sin([[0.7]] * 2), rtol=1e-6)
    np.testing.assert_allclose(
        solution.evaluate(0.1)["decay"][0], np.exp(-3) * np.array([1, 2, 3]), rtol=1e-6
    )
    np.testing.assert_allclose(solution.derivative(0.7)["x"], -np.sin([[0.7]] * 2), rtol=1e-5)


@both_solvers
def test_gain_between_two_times(name):
    solver = at_tolerance(SOLVERS[name], 1e-12)
    term = diffrax.ODETerm(lambda t, y, args: {"x": -y["x"]})
    y0 = {"x": jnp.array([1.0])}
    step = (term, 0.0, 0.5, y0, None)
    *_, dense, _, _ = solver.step(*step, solver.init(*step), False)
    polynomial = solver.interpolation_cls(t0=0.0, t1=0.5, **dense)
    np.testing.assert_allclose(
        polynomial.evaluate(0.1, 0.4)["x"], np.exp(-0.4) - np.exp(-0.1), rtol=1e-3
    )
    # An empty step stands still, and has derivatives.
    empty = solver.interpolation_cls(t0=0.0, t1=0.0, **dense)
    np.testing.assert_array_equal(empty.evaluate(0.0)["x"], 1.0)


@pytest.mark.thorough
@both_solvers
def test_batches_are_loops(name):
    case = PROBLEMS["Robertson"]
    rates = jnp.array([[0.04, 3e7, 1e4], [0.1, 1e7, 2e4], [0.02, 8e7, 5e3]])

    def run(rates):
        solution = solve(
            case.vector_field, SOLVERS[name], 0.0, 1e6, jnp.asarray(case.start), rates, 1e-6, 1e-12
        )
        return solution.ys[0], solution.stats["num_steps"]

    ys, steps = jax.jit(jax.vmap(run))(rates)
    single = jax.jit(run)
    for i in range(3):
        expected, count = single(rates[i])
        assert steps[i] == count
        np.testing.assert_allclose(ys[i], expected, rtol=1e-9)


@both_solvers
@pytest.mark.slow
def test_derivatives(name):
    # A logistic curve and a stiff variable that follows its square.
    def vector_field(t, y, rate):
        return jnp.stack([rate * y[0] * (1 - y[0]), -1e4 * (y[1] - y[0] ** 2)])

    def logistic(rate, start):
        return 1 / (1 + (1 / start - 1) * jnp.exp(-rate * 2.0))

    def final(adjoint, rate, start):
        y0 = jnp.stack([start, start**2])
        solution = solve(
            vector_field, SOLVERS[name], 0.0, 2.0, y0, rate, 1e-8, 1e-8, dt0=1.0, adjoint=adjoint
        )
        return solution.ys[0]

    rate, start = 1.3, 0.2
    values = logistic(rate, start)
    slopes = np.array(jax.grad(logistic, argnums=(0, 1))(rate, start))
    weights = jnp.array([1.0, 3.0])
    gradient = jax.jit(
        jax.grad(
            lambda *x: weights @ final(diffrax.RecursiveCheckpointAdjoint(), *x), argnums=(0, 1)
        )
    )(rate, start)
    np.testing.assert_allclose(gradient, slopes * (1 + 6 * values), rtol=1e-3)
    forward = jax.jit(
        lambda *x: jax.jvp(functools.partial(final, diffrax.ForwardMode()), x, (1.0, 2.0))
    )
    value, tangent = forward(rate, start)
    np.testing.assert_allclose(value[0], values, rtol=1e-6)
    np.testing.assert_allclose(tangent[0], slopes @ np.array([1, 2]), rtol=1e-5)
    # Both are the derivative of the same steps.
    np.testing.assert_allclose(weights @ tangent, np.array(gradient) @ np.array([1, 2]), rtol=1e-9)


@both_solvers
def test_steps_out_of_the_domain_are_refused(name):
    # Below zero there is no vector field, and steps that are too long lead there.
    def vector_field(t, x, rate):
        return -rate * x * jnp.sqrt(x)

    def run(rate):
        solution = solve(
            vector_field, SOLVERS[name], 0.0, 50.0, jnp.ones(1), rate, 1e-8, 1e-8, dt0=50.0,
            adjoint=diffrax.ForwardMode(),
        )  # fmt: skip
        return solution.ys[0, 0], solution.stats["num_rejected_steps"]

    # By hand x = (1 + rate t / 2)^-2.
    (value, refused), (tangent, _) = jax.jit(lambda rate: jax.jvp(run, (rate,), (1.0,)))(1.0)
    assert refused > 0
    np.testing.assert_allclose([value, tangent], [26.0**-2, -50 * 26.0**-3], rtol=1e-5)


@both_solvers
def test_single_precision(name):
    case = PROBLEMS["Robertson"]
    start = jnp.asarray(case.start, jnp.float32)

    @jax.jit
    def run(args):
        return solve(
            case.vector_field, SOLVERS[name], jnp.float32(0), jnp.float32(1e4), start, args,
            1e-4, 1e-9,
        )  # fmt: skip

    solution = run(jax.tree.map(jnp.float32, case.args))
    assert solution.ys.dtype == jnp.float32
    # At t = 1e4, by `Rodas5P` and `RadauIIA5` at rtol = 1e-11 in double precision.
    np.testing.assert_allclose(
        solution.ys[0], [0.1073004285, 4.800166973e-07, 0.8926990914], rtol=2e-3
    )


@both_solvers
def test_other_terms(name):
    # Two terms, one of them driven by a path: y' = -100 y + 100 cos(t), in two summands.
    times = jnp.linspace(0, 2, 4001)
    path = diffrax.LinearInterpolation(times, jnp.sin(times))
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: -100 * y),
        diffrax.ControlTerm(lambda t, y, args: 100 * jnp.ones_like(y), path),
    )

    @jax.jit
    def run():
        return diffrax.diffeqsolve(
            terms, at_tolerance(SOLVERS[name], 1e-9), 0.0, 2.0, 1e-3, jnp.ones(1)
        ).ys[0, 0]

    expected = (1e4 * np.cos(2) + 100 * np.sin(2)) / (1e4 + 1)
    np.testing.assert_allclose(run(), expected, rtol=1e-3)


@both_solvers
def test_wrong_input(name):
    kind = type(SOLVERS[name])
    with pytest.raises(TypeError, match="`jacobian` must be .* pass a function of t, y and args"):
        kind(jacobian=jnp.eye(2))
    with pytest.raises(TypeError, match="`linear_solver` must be a Lineax solver, got 'lu'"):
        kind(linear_solver="lu")
    start = jnp.ones(2)
    decay = lambda t, y, args: -y
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for a state of 2 numbers, got .*3, 3"):
        solve(decay, kind(jacobian=lambda *_: jnp.eye(3)), 0, 1, start, None, 1e-3, 1e-3)
    two = diffrax.MultiTerm(diffrax.ODETerm(decay), diffrax.ODETerm(decay))
    with pytest.raises(ValueError, match="`jacobian` needs a term whose control is time"):
        diffrax.diffeqsolve(
            two, kind(jacobian=lambda *_: -jnp.eye(2)), 0.0, 1.0, 0.1, start,
            stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-3),
        )  # fmt: skip


@pytest.mark.thorough
@both_solvers
def test_linear_solver_is_used(name, monkeypatch):
    used, init = [], lx.QR.init

    def spied(self, operator, options):
        used.append(operator.out_size())
        return init(self, operator, options)

    monkeypatch.setattr(lx.QR, "init", spied)
    solver = at_tolerance(SOLVERS[name], 1e-12)
    by_qr = eqx.tree_at(lambda s: s.linear_solver, solver, lx.QR())
    step = (diffrax.ODETerm(moving), 0.0, 0.1, jnp.array([0.9, 0.9]), (5.0,))
    expected = solver.step(*step, solver.init(*step), False)[:2]
    found = by_qr.step(*step, by_qr.init(*step), False)[:2]
    # One factorisation a step, or one for each of the two systems that the stages decouple into.
    assert used == ([2] if name == "rodas" else [2, 2])
    np.testing.assert_allclose(jfu.ravel_pytree(found)[0], jfu.ravel_pytree(expected)[0], rtol=1e-9)

"""Multiprecision plateau times: a referee that shares no code with memjax.

The gradient flow of the white-noise loss of a diagonal linear RNN towards an exponential sum plus
a delayed Gaussian bump (Li, Han, E & Li, *On the Curse of Memory in Recurrent Neural Networks*,
ICLR 2021, section 5), integrated by Radau IIA collocation in arithmetic of any number of digits.

Only mpmath is needed. Where gmpy2 is installed its `mpfr` numbers do the arithmetic, some ten
times faster than mpmath's and to the same precision; the formulas are the same lines either way.
Where python-flint is installed too, it solves the larger linear systems, some five times faster.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import mpmath

try:
    import gmpy2  # pyright: ignore[reportMissingImports]
except ImportError:
    gmpy2 = None

try:
    import flint  # pyright: ignore[reportMissingImports]
except ImportError:
    flint = None

# A multiprecision real, `gmpy2.mpfr` or `mpmath.mpf`.
Real = Any
Vector = list[Real]
Matrix = list[Vector]


def set_digits(digits: int) -> None:
    """Sets the working precision, in decimal digits, of all arithmetic below.

    Numbers made at one precision must not be mixed with those made at another: build the
    `Problem` and the start after calling this.
    """
    mpmath.mp.dps = digits
    if gmpy2 is not None:
        gmpy2.get_context().precision = mpmath.mp.prec
    if flint is not None:
        flint.ctx.prec = mpmath.mp.prec
    radau.cache_clear()


def real(x: Any) -> Real:
    """The number `x` (float, int, decimal string or mpmath number) at the working precision."""
    if gmpy2 is None:
        return mpmath.mpf(x)
    if isinstance(x, mpmath.mpf):
        return gmpy2.mpfr(mpmath.nstr(x, mpmath.mp.dps + 10))
    return gmpy2.mpfr(x)


def text(x: Real, digits: int) -> str:
    """Decimal string of `x` with `digits` significant digits."""
    return str(mpmath.nstr(mpmath.mpf(str(x)), digits, min_fixed=-5, max_fixed=digits))


def _exp(x: Real) -> Real:
    return mpmath.exp(x) if gmpy2 is None else gmpy2.exp(x)


def _log(x: Real) -> Real:
    return mpmath.log(x) if gmpy2 is None else gmpy2.log(x)


def _erfc(x: Real) -> Real:
    return mpmath.erfc(x) if gmpy2 is None else gmpy2.erfc(x)


def _sqrt(x: Real) -> Real:
    return mpmath.sqrt(x) if gmpy2 is None else gmpy2.sqrt(x)


def _pi() -> Real:
    return +mpmath.pi if gmpy2 is None else gmpy2.const_pi()


@dataclasses.dataclass(frozen=True)
class Problem:
    r"""The loss `J = \int_0^\infty (\hat\rho - \rho)^2 dt` and its derivatives in closed form.

    Target `rho(t) = sum_j A_j e^{-W_j t} + c0 exp(-(t - T)^2 / (2 sigma^2))`, model
    `rho_hat(t) = sum_i a_i e^{-w_i t}`. The state is `theta = (a, w)` for `reparam="direct"`,
    `(a, v)` with `w = e^v` for `reparam="exp"` and with `w = log(1 + e^v)` for `"softplus"`.

    **Arguments:**

    - `amplitudes`, `rates`: `A` and `W`.
    - `inverse_omega`: the delay `T = 1 / omega`.
    - `sigma`, `c0`: width and height of the bump.
    - `reparam`: how the second half of the state becomes rates.
    """

    amplitudes: Vector
    rates: Vector
    inverse_omega: Real
    sigma: Real
    c0: Real
    reparam: Literal["direct", "exp", "softplus"] = "direct"

    def modes(self, theta: Vector) -> tuple[Vector, Vector]:
        """Amplitudes `a` and rates `w` of the state `theta`."""
        m = len(theta) // 2
        a, v = theta[:m], theta[m:]
        if self.reparam == "exp":
            v = [_exp(x) for x in v]
        elif self.reparam == "softplus":
            v = [_log(1 + _exp(x)) for x in v]
        return a, v

    def free(self, w: Vector) -> Vector:
        """The second half of the state that gives the rates `w`."""
        if self.reparam == "exp":
            return [_log(x) for x in w]
        if self.reparam == "softplus":
            return [_log(_exp(x) - 1) for x in w]
        return list(w)

    def slopes(self, w: Vector) -> tuple[Vector, Vector]:
        """First and second derivatives of the rates in the second half of the state."""
        if self.reparam == "exp":
            return w, w
        if self.reparam == "softplus":
            first = [1 - _exp(-x) for x in w]
            return first, [x * (1 - x) for x in first]
        return [real(1)] * len(w), [real(0)] * len(w)

    def transform(self, s: Real) -> tuple[Real, Real, Real]:
        """The bump's Laplace transform `R(s)` with `R'(s)` and `R''(s)`."""
        T, sigma = self.inverse_omega, self.sigma
        slope = s * sigma**2 - T
        R = self.c0 * sigma * _sqrt(_pi() / 2)
        R *= _exp(s * (s * sigma**2 / 2 - T)) * _erfc(slope / (sigma * _sqrt(real(2))))
        # The derivative of erfc meets the exponential in e^{-T^2/(2 sigma^2)}, whatever s is.
        dR = slope * R - self.c0 * sigma**2 * _exp(-(T**2) / (2 * sigma**2))
        return R, dR, sigma**2 * R + slope * dR

    def bump_norm(self) -> Real:
        """Squared norm of the bump on `[0, oo)`: the loss on the plateau."""
        return self.c0**2 * self.sigma * _sqrt(_pi()) / 2 * _erfc(-self.inverse_omega / self.sigma)

    def loss(self, theta: Vector) -> Real:
        """`J(theta)`."""
        a, w = self.modes(theta)
        b = a + [-x for x in self.amplitudes]
        v = w + self.rates
        J = self.bump_norm()
        for bk, vk in zip(b, v, strict=True):
            J += bk * sum(bl / (vk + vl) for bl, vl in zip(b, v, strict=True))
            J -= 2 * bk * self.transform(vk)[0]
        return J

    def gradient(self, theta: Vector) -> Vector:
        """`dJ/dtheta`."""
        return self.derivatives(theta, second=False)[0]

    def derivatives(self, theta: Vector, second: bool = True) -> tuple[Vector, Matrix]:
        """`dJ/dtheta` and, if `second`, the Hessian (else an empty matrix)."""
        a, w = self.modes(theta)
        m = len(a)
        b = a + [-x for x in self.amplitudes]
        v = w + self.rates
        E, dE, ddE = [], [], []
        inverses = []
        for s in w:
            R, dR, ddR = self.transform(s)
            q = [1 / (vk + s) for vk in v]
            first = [bk * qk for bk, qk in zip(b, q, strict=True)]
            squared = [x * qk for x, qk in zip(first, q, strict=True)]
            E.append(sum(first) - R)
            dE.append(-sum(squared) - dR)
            ddE.append(2 * sum(x * qk for x, qk in zip(squared, q, strict=True)) - ddR)
            inverses.append(q)
        grad_a = [2 * x for x in E]
        grad_w = [2 * ai * x for ai, x in zip(a, dE, strict=True)]
        scale, bend = self.slopes(w)
        gradient = grad_a + [g * c for g, c in zip(grad_w, scale, strict=True)]
        if not second:
            return gradient, []
        hessian = [[real(0)] * (2 * m) for _ in range(2 * m)]
        for i in range(m):
            for j in range(m):
                q = inverses[i][j]
                hessian[i][j] = 2 * q
                mixed = -2 * a[j] * q**2 + (2 * dE[i] if i == j else 0)
                hessian[i][m + j] = hessian[m + j][i] = mixed * scale[j]
                rates = 4 * a[i] * a[j] * q**3 + (2 * a[i] * ddE[i] if i == j else 0)
                hessian[m + i][m + j] = rates * scale[i] * scale[j]
            hessian[m + i][m + i] += bend[i] * grad_w[i]
        return gradient, hessian


@dataclasses.dataclass(frozen=True)
class Exit:
    """When training counts as having left the plateau.

    **Arguments:**

    - `name`: `RelativeLossDrop` (first time with `J <= (1 - delta) J(0)`), `LossChange`
        (`|J - J(0)| > delta`) or `ParameterDistance` (`||theta - theta(0)||_2 > delta`).
    - `delta`: the threshold.
    - `reference`: what stands for `J(0)` in `RelativeLossDrop`, if not the loss at the start.
    """

    name: Literal["RelativeLossDrop", "LossChange", "ParameterDistance"]
    delta: Real
    reference: Real | None = None

    def bind(self, problem: Problem, start: Vector) -> Callable[[Vector], Real]:
        """A function of the displacement from `start`, positive from the exit on."""
        if self.name == "ParameterDistance":
            return lambda u: _sqrt(sum(x * x for x in u)) - self.delta
        loss_start = problem.loss(start)
        if self.name == "RelativeLossDrop":
            level = (1 - self.delta) * (loss_start if self.reference is None else self.reference)
            return lambda u: level - problem.loss(_add(start, u))
        return lambda u: abs(problem.loss(_add(start, u)) - loss_start) - self.delta


@functools.cache
def radau(stages: int) -> tuple[Vector, Matrix]:
    """Nodes `c` and the inverse of the Runge-Kutta matrix `A` of Radau IIA."""
    with mpmath.workdps(2 * mpmath.mp.dps + 20):
        # The nodes are the roots of P_s(x) - P_{s-1}(x), P the Legendre polynomials on [0, 1].
        def legendre(n: int) -> list[Any]:
            signs = [(-1) ** (n - k) * mpmath.binomial(n, k) for k in range(n + 1)]
            return [x * mpmath.binomial(n + k, k) for k, x in enumerate(signs)]

        high, low = legendre(stages), legendre(stages - 1) + [0]
        coefficients = [x - y for x, y in zip(high, low, strict=True)]
        roots = mpmath.polyroots(coefficients[::-1], maxsteps=500, extraprec=400)
        nodes = sorted(mpmath.re(x) for x in roots)
        powers = mpmath.matrix(stages, stages)
        integrals = mpmath.matrix(stages, stages)
        for i, c in enumerate(nodes):
            for k in range(stages):
                powers[i, k] = c**k
                integrals[i, k] = c ** (k + 1) / (k + 1)
        # A = integrals powers^{-1} integrates every polynomial of degree < s exactly.
        inverse = powers * integrals**-1
        rows = [[inverse[i, j] for j in range(stages)] for i in range(stages)]
    return [real(c) for c in nodes], [[real(x) for x in row] for row in rows]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an integration found.

    `result` is `"exited"`; `"converged"`, at a stationary point with a positive definite Hessian
    short of the exit; `"saddle"`, at a stationary point that attracts only within the subspace of
    equal modes which the flow cannot leave; or `"stalled"`, at the step budget. `time`, `loss` and
    `theta` belong to that moment. `steps` counts accepted steps, `rejected` the others.
    """

    result: Literal["exited", "converged", "saddle", "stalled"]
    time: Real
    loss: Real
    theta: Vector
    steps: int
    rejected: int


def integrate(
    problem: Problem,
    start: Vector,
    leave: Exit,
    *,
    stages: int = 5,
    rtol: float = 1e-8,
    max_steps: int = 20_000,
    report: Callable[[int, Real, Real, Vector], None] | None = None,
) -> Outcome:
    """Follows `dtheta/dtau = -dJ/dtheta` from `start` to the exit.

    A step is Radau IIA with `stages` stages, its stage equations solved by Newton's method with
    every stage's own Hessian. The same step with two stages fewer is the error estimate: the
    difference must be below `rtol` relative to each parameter's displacement from the start and
    to each difference of rates. So the accepted solution is far more accurate than `rtol`.
    A step `h` also keeps `I + h H` positive definite, for an implicit method can otherwise step
    over an instability and come to rest on a saddle. The exit is the root, in the length of the
    last step, of the exit function after a step of that length: nothing is interpolated.

    **Arguments:**

    - `problem`, `start`, `leave`: the loss, `theta(0)` and the exit.
    - `stages`: of the solution that is propagated, at least 3.
    - `rtol`: the tolerance on the lower-order solution.
    - `max_steps`: accepted and rejected together.
    - `report`: called with steps, time, step length and `theta` after every accepted step.

    **Returns:** an `Outcome`.
    """
    n = len(start)
    m = n // 2
    rtol = real(rtol)
    # Modes that start equal stay equal; rounding must not break what the flow cannot.
    groups = _equal_modes(start)
    bound = leave.bind(problem, start)
    time = real(0)
    u = [real(0)] * n
    h = 1 / (1 + max(abs(x) for row in problem.derivatives(start)[1] for x in row)) / 100
    previous = None
    accepted = rejected = 0

    def outcome(result: Any, at: Real, displacement: Vector) -> Outcome:
        theta = _add(start, displacement)
        return Outcome(result, at, problem.loss(theta), theta, accepted, rejected)

    while accepted + rejected < max_steps:
        theta = _add(start, u)
        gradient, hessian = problem.derivatives(theta)
        reduced = _restrict(hessian, groups)
        if _stationary(gradient, reduced, groups, u, bound(u)):
            whole = _definite(hessian)
            return outcome("converged" if whole else "saddle", time, u)
        while not _definite(_shifted(reduced, 1 / h)):
            h /= 2
        guess = _extrapolate(previous, h, stages)
        Z = _solve_stages(problem, theta, h, stages, guess, u, rtol)
        coarse = None
        if Z is not None:
            guess = _interpolate(Z, stages, stages - 2)
            coarse = _solve_stages(problem, theta, h, stages - 2, guess, u, rtol)
        if Z is None or coarse is None:
            rejected += 1
            h /= 4
            previous = None
            continue
        new = _symmetrise(_add(u, Z[-1]), groups)
        error = _error(Z[-1], coarse[-1], u, new, start, m) / rtol
        factor = 0.85 * float(max(error, real(1e-20))) ** (-1 / stages)
        if error > 1:
            rejected += 1
            h *= real(max(0.1, factor))
            continue
        crossed = [k for k, z in enumerate(Z) if bound(_add(u, z)) > 0]
        if crossed:
            upper = h * radau(stages)[0][crossed[0]]
            at, displacement = _locate(problem, theta, u, bound, upper, stages, rtol)
            accepted += 1
            return outcome("exited", time + at, displacement)
        previous = (h, Z)
        time += h
        u = new
        accepted += 1
        if report is not None:
            report(accepted, time, h, _add(start, u))
        h *= real(min(10.0, max(0.2, factor)))
    return outcome("stalled", time, u)


def _locate(
    problem: Problem,
    theta: Vector,
    u: Vector,
    bound: Callable[[Vector], Real],
    upper: Real,
    stages: int,
    rtol: Real,
) -> tuple[Real, Vector]:
    """The step length at which `bound` vanishes: the Illinois variant of regula falsi."""

    def after(h: Real) -> tuple[Vector, Real]:
        Z = _solve_stages(problem, theta, h, stages, None, u, rtol)
        if Z is None:
            raise ArithmeticError(f"no solution for a step of {h} inside an accepted step")
        displacement = _add(u, Z[-1])
        return displacement, bound(displacement)

    low, high = real(0), upper
    value_low = bound(u)
    best, value_high = after(high)
    at, side = high, 0
    while high - low > real("1e-22") * high and value_high != value_low:
        at = (low * value_high - high * value_low) / (value_high - value_low)
        best, value = after(at)
        if abs(value) < real(10) ** (10 - mpmath.mp.dps):
            break
        if value > 0:
            high, value_high = at, value
            value_low = value_low / 2 if side == 1 else value_low
            side = 1
        else:
            low, value_low = at, value
            value_high = value_high / 2 if side == -1 else value_high
            side = -1
    return at, best


def _solve_stages(
    problem: Problem,
    theta: Vector,
    h: Real,
    stages: int,
    guess: Matrix | None,
    u: Vector,
    rtol: Real,
) -> Matrix | None:
    """Newton's method on `(A^{-1} / h) Z = F(theta + Z)`; `None` where it does not converge."""
    n = len(theta)
    inverse = [[x / h for x in row] for row in radau(stages)[1]]
    for first in [guess, None] if guess is not None else [None]:
        Z = [[real(0)] * n for _ in range(stages)] if first is None else first
        last = None
        for _ in range(12):
            states = [_add(theta, z) for z in Z]
            if any(w <= 0 for state in states for w in problem.modes(state)[1]):
                break
            system: Matrix = []
            for i in range(stages):
                gradient, hessian = problem.derivatives(states[i])
                for p in range(n):
                    row = [real(0)] * (stages * n + 1)
                    row[i * n : (i + 1) * n] = hessian[p]
                    total = gradient[p]
                    for j in range(stages):
                        row[j * n + p] += inverse[i][j]
                        total += inverse[i][j] * Z[j][p]
                    row[-1] = -total
                    system.append(row)
            step = _solve(system)
            # Far from the solution a rate may be so large that its transform is no number.
            if step is None or any(x != x for x in step):
                break
            change = real(0)
            for i in range(stages):
                for p in range(n):
                    z = Z[i][p] + step[i * n + p]
                    size = max(abs(Z[-1][p] + step[(stages - 1) * n + p]), abs(u[p]), abs(z))
                    change = max(change, abs(step[i * n + p]) / (size + _tiny()))
                    Z[i][p] = z
            # Newton converges quadratically: after a change this small the error left is its
            # square, far below the tolerance.
            if change < rtol * real("1e-6"):
                return Z
            if last is not None and change > 10 * last and change > 1:
                break
            last = change
    return None


def _error(fine: Vector, coarse: Vector, u: Vector, new: Vector, start: Vector, m: int) -> Real:
    """Largest difference of two solutions, relative to displacements and to rate differences."""
    error = real(0)
    difference = [x - y for x, y in zip(fine, coarse, strict=True)]
    for d, x, y in zip(difference, u, new, strict=True):
        error = max(error, abs(d) / (max(abs(x), abs(y)) + _tiny()))
    for i in range(m, 2 * m):
        for j in range(m, i):
            gap = start[i] - start[j]
            size = max(abs(gap + u[i] - u[j]), abs(gap + new[i] - new[j]))
            error = max(error, abs(difference[i] - difference[j]) / (size + _tiny()))
    return error


def _tiny() -> Real:
    # Ten decades above the rounding of a parameter of order one: less cannot be resolved.
    return real(10) ** (10 - mpmath.mp.dps)


def _stationary(
    gradient: Vector, reduced: Matrix, groups: list[list[int]], u: Vector, missing: Real
) -> bool:
    """Whether Newton's step to a minimum of the (reduced) quadratic model is negligible."""
    if not _definite(reduced):
        return False
    slope = [sum(gradient[i] for i in g) / _sqrt(real(len(g))) for g in groups]
    step = _solve([[*row, -x] for row, x in zip(reduced, slope, strict=True)])
    if step is None:
        return False
    size = _sqrt(sum(x * x for x in step))
    moved = _sqrt(sum(x * x for x in u))
    return size < real("1e-15") * moved and size < real("1e-10") * abs(missing)


def _equal_modes(start: Vector) -> list[list[int]]:
    """Indices of the parameters, grouped where modes start with equal amplitude and rate."""
    m = len(start) // 2
    groups: dict[tuple[Real, Real], list[int]] = {}
    for i in range(m):
        groups.setdefault((start[i], start[m + i]), []).append(i)
    members = list(groups.values())
    return members + [[m + i for i in g] for g in members]


def _symmetrise(u: Vector, groups: list[list[int]]) -> Vector:
    out = list(u)
    for g in groups:
        if len(g) > 1:
            mean = sum(u[i] for i in g) / len(g)
            for i in g:
                out[i] = mean
    return out


def _restrict(H: Matrix, groups: list[list[int]]) -> Matrix:
    """The Hessian on the subspace in which equal modes move together."""
    return [
        [sum(H[i][j] for i in g for j in k) / _sqrt(real(len(g) * len(k))) for k in groups]
        for g in groups
    ]


def _shifted(H: Matrix, shift: Real) -> Matrix:
    return [[x + shift if i == j else x for j, x in enumerate(row)] for i, row in enumerate(H)]


def _definite(H: Matrix) -> bool:
    """Whether the symmetric matrix is positive definite: elimination without pivoting."""
    rows = [list(row) for row in H]
    for k, pivot in enumerate(rows):
        if not pivot[k] > 0:
            return False
        for row in rows[k + 1 :]:
            factor = row[k] / pivot[k]
            for j in range(k + 1, len(row)):
                row[j] -= factor * pivot[j]
    return True


def _solve(rows: Matrix) -> Vector | None:
    """Gaussian elimination with partial pivoting on `[M | b]`; overwrites `rows`."""
    n = len(rows)
    if n > 48 and gmpy2 is not None and flint is not None:
        return _solve_flint(rows)
    for k in range(n):
        p = max(range(k, n), key=lambda i: abs(rows[i][k]))
        rows[k], rows[p] = rows[p], rows[k]
        pivot = rows[k]
        if pivot[k] == 0:
            return None
        tail = pivot[k + 1 :]
        for i in range(k + 1, n):
            row = rows[i]
            factor = row[k] / pivot[k]
            if factor:
                row[k + 1 :] = [x - factor * y for x, y in zip(row[k + 1 :], tail, strict=True)]
    x = [real(0)] * n
    for k in reversed(range(n)):
        x[k] = (rows[k][n] - sum(rows[k][j] * x[j] for j in range(k + 1, n))) / rows[k][k]
    return x


def _solve_flint(rows: Matrix) -> Vector | None:
    """The same by FLINT, without its error bounds, which grow too fast in singular directions."""

    def ball(x: Real) -> Any:
        return flint.arb(tuple(map(int, x.as_mantissa_exp()))) if x else zero

    def midpoint(x: Any) -> Real:
        mantissa, exponent = map(int, x.mid().man_exp())
        return gmpy2.mul(mantissa, gmpy2.exp2(gmpy2.mpfr(exponent)))

    zero = flint.arb(0)
    try:
        matrix = flint.arb_mat([[ball(x) for x in row[:-1]] for row in rows])
        right = flint.arb_mat([[ball(row[-1])] for row in rows])
        solution = matrix.solve(right, algorithm="approx")
    except (ZeroDivisionError, ValueError, OverflowError):
        return None
    return [midpoint(solution[i, 0]) for i in range(len(rows))]


def _add(x: Vector, y: Vector) -> Vector:
    return [p + q for p, q in zip(x, y, strict=True)]


def _collocation(Z: Matrix, stages: int, at: Vector) -> Matrix:
    """The polynomial through `(0, 0)` and the stages `(c_i, Z_i)`, at the points `at`."""
    nodes = [real(0), *radau(stages)[0]]
    out = []
    for t in at:
        row = [real(0)] * len(Z[0])
        for i in range(1, stages + 1):
            weight = real(1)
            for k, c in enumerate(nodes):
                if k != i:
                    weight *= (t - c) / (nodes[i] - c)
            row = [r + weight * z for r, z in zip(row, Z[i - 1], strict=True)]
        out.append(row)
    return out


def _interpolate(Z: Matrix, stages: int, fewer: int) -> Matrix:
    return _collocation(Z, stages, radau(fewer)[0])


def _extrapolate(previous: tuple[Real, Matrix] | None, h: Real, stages: int) -> Matrix | None:
    """The last step's polynomial, continued over the next step of length `h`."""
    # Far outside its own step the polynomial is worse than no guess.
    if previous is None or h > 3 * previous[0]:
        return None
    length, Z = previous
    later = _collocation(Z, stages, [1 + c * h / length for c in radau(stages)[0]])
    return [[x - y for x, y in zip(row, Z[-1], strict=True)] for row in later]

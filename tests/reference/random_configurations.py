"""Random plateau measurements against LSODA, over all kernels, reparametrisations and exits.

The referee shares no code with memjax: the transforms of the remainder are Gauss sums over its
kernel, the gradient is written out, and LSODA integrates it with tolerances of 1e-10; where SciPy's
Radau finds another time, the case is left out. Units of time and amplitude are drawn from many
decades, and some exits lie next to a maximum of the distance.

Run `python tests/reference/random_configurations.py --count 500`; it prints what deviates and
exits with status 1 if anything is wrong.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
from scipy.integrate import solve_ivp

import memjax as mj

Function = Callable[[Any], Any]

# --- Kernels: how memjax makes one of its parameters, and its values and panels without memjax ----


def _bump(p: np.ndarray) -> tuple[Function, np.ndarray]:
    rho = lambda t: p[1] * np.exp(-((t - p[0]) ** 2) / (2 * p[2] ** 2))
    return rho, np.maximum(p[0] + p[2] * np.linspace(-9, 9, 13), 0)


def _power(p: np.ndarray) -> tuple[Function, np.ndarray]:
    rho = lambda t: p[1] * (1 + t / p[2]) ** -(1 + p[0])
    return rho, p[2] * np.append(0, np.geomspace(1e-2, 1e14, 120))


def _airy(p: np.ndarray) -> tuple[Function, np.ndarray]:
    rho = lambda t: p[2] * scipy.special.airy(p[0] * (t - p[1]))[0]
    return rho, np.linspace(0, p[1] + 16 / p[0], 60)


def _box(p: np.ndarray) -> tuple[Function, np.ndarray]:
    return lambda t: p[2] + 0 * t, np.linspace(p[0], p[0] + p[1], 5)


def _oscillation(p: np.ndarray) -> tuple[Function, np.ndarray]:
    rho = lambda t: np.exp(-p[2] * t) * (p[0] * np.cos(p[3] * t) + p[1] * np.sin(p[3] * t))
    return rho, np.linspace(0, 40 / p[2], 200)


def _delayed(p: np.ndarray) -> tuple[Function, np.ndarray]:
    return lambda t: p[0] * np.exp(-p[1] * (t - p[2])), p[2] + np.linspace(0, 40, 30) / p[1]


def _windowed(p: np.ndarray) -> tuple[Function, np.ndarray]:
    return lambda t: p[0] * np.exp(-p[1] * t), p[2] + p[3] * np.linspace(0, 1, 5)


def _samples(p: np.ndarray) -> tuple[Function, np.ndarray]:
    times, values = p[:6].cumsum(), p[6:]
    return lambda t: np.interp(t, times, values), times


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of remainder; `units` are the powers of time and of amplitude of its parameters."""

    make: Callable[[Any], mj.AbstractKernel]
    plain: Callable[[np.ndarray], tuple[Function, np.ndarray]]
    ranges: tuple[tuple[float, float], ...]
    units: tuple[tuple[int, int], ...]


FAMILIES = {
    "bump": Family(
        lambda p: mj.GaussianBump(1 / p[0], p[1], p[2]),
        _bump, ((1, 6), (-1, 1), (0.2, 1)), ((1, 0), (0, 1), (1, 0)),
    ),
    "power": Family(
        lambda p: p[1] * mj.PowerLaw(p[0], p[2]),
        _power, ((0.3, 2), (-1, 1), (0.5, 2)), ((0, 0), (0, 1), (1, 0)),
    ),
    "airy": Family(
        lambda p: p[2] * mj.Airy(p[0], p[1]),
        _airy, ((0.5, 2), (1, 4), (-1, 1)), ((-1, 0), (1, 0), (0, 1)),
    ),
    "box": Family(
        lambda p: p[2] * mj.Box(p[0], p[0] + p[1]),
        _box, ((0, 4), (0.5, 2), (-1, 1)), ((1, 0), (1, 0), (0, 1)),
    ),
    "oscillation": Family(
        lambda p: mj.DampedOscillation(p[0], p[1], p[2], p[3]),
        _oscillation, ((-1, 1), (-1, 1), (0.2, 1), (0.5, 3)), ((0, 1), (0, 1), (-1, 0), (-1, 0)),
    ),
    "delayed": Family(
        lambda p: mj.DelayedKernel(mj.ExponentialSum(p[:1], p[1:2]), p[2]),
        _delayed, ((-1, 1), (0.3, 3), (0.5, 5)), ((0, 1), (-1, 0), (1, 0)),
    ),
    "windowed": Family(
        lambda p: mj.WindowedKernel(mj.ExponentialSum(p[:1], p[1:2]), p[2], p[2] + p[3]),
        _windowed, ((-1, 1), (0.1, 1), (0.2, 2), (0.5, 4)), ((0, 1), (-1, 0), (1, 0), (1, 0)),
    ),
    "samples": Family(
        lambda p: mj.SampledKernel(jnp.cumsum(p[:6]), p[6:]),
        _samples, ((0.2, 1),) * 6 + ((-1, 1),) * 6, ((1, 0),) * 6 + ((0, 1),) * 6,
    ),
}  # fmt: skip

# Name: the map of memjax, and rates and their slopes in the free weights. `Best` and `Tanh` have
# scales of their own, and are drawn with rates below them.
MAPS: dict[str, tuple[Function, Function, Function, Function]] = {  # pyright: ignore[reportAssignmentType]
    "direct": (lambda u: mj.Direct(), lambda w, u: w, lambda v, u: v, lambda v, u: 1 + 0 * v),
    "exp": (
        lambda u: mj.Exp(), lambda w, u: np.log(w), lambda v, u: np.exp(v),
        lambda v, u: np.exp(v),
    ),
    "softplus": (
        lambda u: mj.Softplus(), lambda w, u: w + np.log(-np.expm1(-w)),
        lambda v, u: np.logaddexp(0, v), lambda v, u: scipy.special.expit(v),
    ),
    "inverse": (
        lambda u: mj.Inverse(), lambda w, u: w**-0.5, lambda v, u: v**-2.0,
        lambda v, u: -2 * v**-3.0,
    ),
    "best": (
        lambda u: mj.Best(1.0, 0.1 * u), lambda w, u: np.sqrt(1 / w - 0.1 * u),
        lambda v, u: 1 / (v**2 + 0.1 * u), lambda v, u: -2 * v / (v**2 + 0.1 * u) ** 2,
    ),
    "tanh": (
        lambda u: mj.Tanh(), lambda w, u: (np.log(2 - w) - np.log(w)) / 2,
        lambda v, u: 2 * scipy.special.expit(-2 * v),
        lambda v, u: -4 * scipy.special.expit(-2 * v) * scipy.special.expit(2 * v),
    ),
}  # fmt: skip
EXITS = ("drop", "change", "distance")


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration: a remainder, one exponential, the start, the exit, and the last time."""

    family: str
    map: str
    unit: float
    parameters: np.ndarray
    target: np.ndarray
    amplitudes: np.ndarray
    rates: np.ndarray
    exit: str = "distance"
    delta: float = 1.0
    last: float = 1.0


class Referee:
    """The gradient flow of a case in free weights, and where LSODA takes it."""

    def __init__(self, case: Case):
        self.case = case
        rho, edges = FAMILIES[case.family].plain(case.parameters)
        nodes, weights = np.polynomial.legendre.leggauss(24)
        low, high = edges[:-1, None], edges[1:, None]
        self.t = (low + (high - low) * (nodes + 1) / 2).ravel()
        self.rho = rho(self.t) * ((high - low) * weights / 2).ravel()
        self.norm = np.sum(self.rho * rho(self.t))
        _, inverse, self.phi, self.slope = MAPS[case.map]
        self.start = np.concatenate([case.amplitudes, inverse(case.rates, case.unit)])
        self.m = len(case.rates)

    def _modes(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        a, w = theta[: self.m], self.phi(theta[self.m :], self.case.unit)
        return a, w, np.append(a, -self.case.target[0]), np.append(w, self.case.target[1])

    def loss(self, theta: np.ndarray) -> float:
        _, _, b, v = self._modes(theta)
        r = np.exp(-np.outer(v, self.t)) @ self.rho
        return b @ (1 / (v[:, None] + v)) @ b - 2 * b @ r + self.norm

    def velocity(self, _: float, theta: np.ndarray) -> np.ndarray:
        a, w, b, v = self._modes(theta)
        decay = np.exp(-np.outer(w, self.t))
        r, r1 = decay @ self.rho, -decay @ (self.t * self.rho)
        p = 1 / (w[:, None] + v)
        e0, e1 = p @ b - r, -(p**2) @ b - r1
        slopes = self.slope(theta[self.m :], self.case.unit)
        return -2 * np.concatenate([e0, a * e1 * slopes])

    def margin(self, theta: np.ndarray, start: float) -> float:
        case = self.case
        if case.exit == "distance":
            return 1 - np.linalg.norm(theta - self.start) / case.delta  # pyright: ignore[reportReturnType]
        loss = self.loss(theta)
        if case.exit == "drop":
            return (loss / start - 1) / case.delta + 1
        return 1 - abs(loss - start) / case.delta

    def follow(
        self,
        last: float,
        margin: Function | None = None,
        method: str = "LSODA",
        rtol: float = 1e-10,
    ) -> Any:
        """LSODA, or another method, up to a time, or to the first zero of a margin."""
        turn = lambda t, y: (y - self.start) @ self.velocity(t, y)
        events = [turn] if margin is None else [turn, margin]
        for event in events:
            event.direction = -1
            event.terminal = event is margin
        size = np.maximum(np.abs(self.start), 1e-3 * np.abs(self.start).max())
        return solve_ivp(
            self.velocity, (0, last), self.start, method, rtol=rtol, atol=1e-3 * rtol * size,
            events=events, dense_output=True,
        )  # fmt: skip

    def answer(self) -> float:
        """The time of the exit, infinite if there is none, and NaN if LSODA does not get to the
        end, or another method finds another time: where rounding errors of the velocity grow,
        that of each is its own."""
        time = self.exit_time("LSODA", 1e-10)
        if np.isnan(time):
            return time
        other = self.exit_time("Radau", 1e-8)
        return time if np.isclose(time, other, rtol=1e-4, atol=0) else np.nan

    def exit_time(self, method: str, rtol: float) -> float:
        """The time of the exit by one method."""
        begin = self.loss(self.start)
        margin = lambda t, y: self.margin(y, begin)
        path = self.follow(self.case.last, margin, method, rtol)
        if not path.success:
            return np.nan
        times = np.unique(np.concatenate([path.t, *path.t_events[:1]]))
        margins = np.array([margin(t, path.sol(t)) for t in times])
        met = np.flatnonzero(margins <= 0)
        if len(met) == 0:
            end = path.t_events[1]
            return float(end[0]) if len(end) else np.inf
        k = met[0]
        if k == 0:
            return 0.0
        root = lambda t: margin(t, path.sol(t))
        return float(scipy.optimize.brentq(root, times[k - 1], times[k], xtol=1e-300))


def draw(rng: np.random.Generator, family: str, name: str) -> Case | None:
    """A configuration, or nothing where LSODA cannot follow its flow."""
    # The rates of the softplus and tanh maps have a unit of their own.
    decades = {"tanh": (0, 5), "softplus": (-1, 3), "best": (-3, 3)}.get(name, (-5, 5))
    unit = 10 ** rng.uniform(*decades)
    height = 10 ** rng.uniform(-3, 3)
    kind = FAMILIES[family]
    parameters = np.array([rng.uniform(*ends) for ends in kind.ranges])
    parameters = parameters * [unit**a * height**b for a, b in kind.units]
    most = 1.5 if name == "tanh" else 3.0
    case = Case(
        family=family,
        map=name,
        unit=unit,
        parameters=parameters,
        target=np.array([rng.uniform(-1, 1) * height, rng.uniform(0.3, most) / unit]),
        amplitudes=rng.normal(0, 1, 3) * height,
        rates=10 ** rng.uniform(-1, np.log10(most), 3) / unit,
    )
    referee = Referee(case)
    # As far as LSODA gets in a second or so, in units of the time of the fastest motion.
    speed = np.abs(referee.velocity(0, referee.start))
    size = np.concatenate([case.amplitudes, np.abs(referee.start[3:]) + 1e-300])
    first = 1 / np.max(speed / np.abs(size))
    last = first * 10 ** rng.uniform(2, 5)
    path = referee.follow(last)
    if not path.success or not np.all(np.isfinite(path.y)):
        return None
    exit = rng.choice(EXITS)
    if exit == "distance":
        tops = [np.linalg.norm(path.sol(t) - referee.start) for t in path.t_events[0]]
        gap = 10 ** rng.uniform(-5, -2) * rng.choice([-1, 1])
        near = rng.choice(tops) * (1 - gap) if tops and rng.uniform() < 0.7 else None
        reached = np.linalg.norm(path.y - referee.start[:, None], axis=0).max()
        delta = reached * rng.uniform(0.05, 1.1) if near is None else near
    else:
        fall = referee.loss(referee.start) - referee.loss(path.y[:, -1])
        delta = fall * rng.uniform(0.05, 1.1)
        if exit == "drop":
            delta = min(delta / referee.loss(referee.start), 0.999)
    if not delta > 0:
        return None
    return dataclasses.replace(case, exit=str(exit), delta=float(delta), last=float(last))


def build(family: str, map: str, case: Any, columns: dict[str, np.ndarray]) -> tuple:
    """A case of a list of the same family and map, as a cell of a sweep."""
    of = {name: jnp.asarray(column)[case] for name, column in columns.items()}
    amplitude, rate = of["target"]
    target = mj.ExponentialSum(amplitude[None], rate[None])
    target = target + FAMILIES[family].make(of["parameters"])
    model = mj.DiagonalLinearRNN(of["amplitudes"], of["rates"], MAPS[map][0](of["unit"]))
    is_exit = lambda k: of["exit"] == k
    exit = mj.FirstOf(
        mj.RelativeLossDrop(jnp.where(is_exit(0), of["delta"], 1 - 1e-9)),
        mj.LossChange(jnp.where(is_exit(1), of["delta"], 1e300)),
        mj.ParameterDistance(jnp.where(is_exit(2), of["delta"], 1e300)),
    )
    return mj.GradientFlow(mj.WhiteNoiseLoss(target)), model, exit


def measured(cases: list[Case]) -> tuple[list[Any], list[Any]]:
    """Time and outcome of every case, by `sweep` and by `measure_plateau`."""
    family, map = cases[0].family, cases[0].map
    columns = {
        name: np.array([getattr(case, name) for case in cases])
        for name in ("unit", "parameters", "target", "amplitudes", "rates", "delta")
    }
    columns["exit"] = np.array([EXITS.index(case.exit) for case in cases])
    last = np.array([case.last for case in cases])

    def cell(case):
        return build(family, map, case, columns)

    # What is left at the end of time is looked at afterwards: `sweep` has one for all cells.
    axes = {"case": np.arange(len(cases))}
    swept = mj.sweep(cell, axes, max_time=float(last.max()), progress=False)

    @jax.jit
    def single(case, last):
        plateau = mj.measure_plateau(*cell(case), max_time=last, throw=False)
        return plateau.time, plateau.result_code

    singles = [single(k, jnp.asarray(end)) for k, end in enumerate(last)]
    names = mj.plateaus.OUTCOMES
    pairs = zip(swept["time"].values, swept["result"].values, strict=True)
    of_sweep = [(float(time), names[code]) for time, code in pairs]
    return of_sweep, [(float(time), names[int(code)]) for time, code in singles]


def verdict(case: Case, exact: float, time: float, outcome: str) -> str:
    """`right`, `unanswered`, or what is wrong."""
    if outcome == "exited":
        if time > case.last * (1 + 1e-3) and exact > case.last * (1 - 1e-3):
            return "right"
        return "right" if abs(time / exact - 1) <= 1e-3 else f"{time:.6g} for {exact:.6g}"
    if outcome in ("converged", "max_time_reached"):
        return "right" if exact > case.last * (1 - 1e-3) else f"{outcome} for {exact:.6g}"
    return "unanswered"


def comparisons(count: int, seed: int, group: int = 8) -> Iterator[tuple[Case, float, list[Any]]]:
    """Random cases, what LSODA says of them, and verdict, time and outcome by both interfaces."""
    rng = np.random.default_rng(seed)
    pairs = [(family, map) for family in FAMILIES for map in MAPS]
    rng.shuffle(pairs)
    done = 0
    while done < count:
        family, map = pairs[(done // group) % len(pairs)]
        cases: list[Case] = []
        exact: list[float] = []
        while len(cases) < min(group, count - done):
            case = draw(rng, family, map)
            if case is None:
                continue
            time = Referee(case).answer()
            if not np.isnan(time):
                cases.append(case)
                exact.append(time)
        for case, time, *answers in zip(cases, exact, *measured(cases), strict=True):
            yield case, time, [(verdict(case, time, *answer), *answer) for answer in answers]
        done += len(cases)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    counts: dict[str, list[int]] = {"sweep": [0, 0, 0], "measure_plateau": [0, 0, 0]}
    worst = dict.fromkeys(counts, 0.0)
    for number, (case, exact, answers) in enumerate(comparisons(arguments.count, arguments.seed)):
        for name, (word, time, outcome) in zip(counts, answers, strict=True):
            kind = {"right": 0, "unanswered": 1}.get(word, 2)
            counts[name][kind] += 1
            if kind == 0 and np.isfinite(time) and np.isfinite(exact):
                worst[name] = max(worst[name], abs(time / exact - 1))
            if kind:
                what = f"{case.family}, {case.map}, {case.exit}, unit {case.unit:.1e}"
                print(f"{number:4}  {name:16} {outcome:17} {word}  ({what})", flush=True)
    for name, (right, unanswered, wrong) in counts.items():
        print(f"{name}: {right} right (worst {worst[name]:.1e}), {unanswered} unanswered, "
              f"{wrong} wrong")  # fmt: skip
    return 1 if any(count[2] for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

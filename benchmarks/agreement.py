"""Do two versions of memjax give the same numbers?

    python benchmarks/agreement.py --output before.json
    python benchmarks/agreement.py --output after.json
    python benchmarks/agreement.py --compare before.json after.json

The first form runs a few hundred cheap measurements through the public interface and writes what
they give, with every digit. The second compares two such files. `--part` runs some parts only.
"""

import argparse
import dataclasses
import enum
import functools
import itertools
import json
import math
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax

import memjax as mj

jax.config.update("jax_enable_x64", True)  # before any kernel is made

# A name, and what it measures.
Case = tuple[str, Callable[[], Any]]

KEY = jax.random.key(7)
# Rounding that another order of sums may leave.
ROUNDING = 1e-12
NUMBER = re.compile(r"-?(0x[01]\.[0-9a-f]+p[+-]\d+|inf)|nan")
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


# --- Records ---------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """The value as JSON, floats as hexadecimal text, which is exact."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (float, np.floating)):
        return float(value).hex()
    if isinstance(value, (complex, np.complexfloating)):
        return [float(value.real).hex(), float(value.imag).hex()]
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    if isinstance(value, (np.ndarray, jax.Array)):
        array = np.asarray(value)
        return [plain(entry) for entry in array] if array.ndim else plain(array[()])
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    if isinstance(value, mj.AbstractModel):
        return plain(jax.tree.leaves(eqx.filter(value, mj.trainable(value))))
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in names}
    raise TypeError(f"no record of {type(value).__name__}")


def answer(plateau: mj.Plateau) -> dict[str, Any]:
    """All that a measurement says."""
    names = (
        "result_code", "time", "time_reached", "loss", "distance", "initial_loss", "curvature",
        "rounding", "stats", "model",
    )  # fmt: skip
    record = {name: getattr(plateau, name) for name in names}
    if plateau.curve is not None:
        record["curve"] = (plateau.curve.loss, plateau.curve.distance)
    return record


def measured(*arguments: Any, **options: Any) -> dict[str, Any]:
    """A plateau as a record, whatever its outcome."""
    return answer(mj.measure_plateau(*arguments, throw=False, **options))


def together(functions: dict[str, Callable[..., Any]], *arguments: Any) -> Iterator[Case]:
    """Functions of the same arguments, compiled as one program."""
    failures: dict[str, Any] = {}

    def every(*arguments: Any) -> dict[str, Any]:
        values = {}
        for name, function in functions.items():
            try:
                values[name] = function(*arguments)
            except Exception as error:
                failures[name] = failure(error)
        return values

    @functools.cache
    def found() -> dict[str, Any]:
        try:
            return eqx.filter_jit(every)(*arguments)
        except Exception as error:
            return dict.fromkeys(functions, failure(error))

    for name in functions:
        yield name, lambda name=name: found().get(name, failures.get(name))


def cells(make: Callable[[], Any], name: str) -> Iterator[Case]:
    """The cells of a sweep, as one measurement each."""
    try:
        dataset = make()
    except Exception as error:
        yield name, lambda error=error: failure(error)
        return
    dims = dataset["time"].dims
    for index in np.ndindex(dataset["time"].shape):
        place = dict(zip(dims, index, strict=True))
        label = ",".join(f"{dim}={dataset[dim].values[i]:.6g}" for dim, i in place.items())
        cell = dataset.isel(place)
        yield f"{name}/{label}", lambda cell=cell: {n: v.values for n, v in cell.items()}


def failure(error: Exception) -> dict[str, str]:
    """An error as a record, without addresses in memory."""
    text = str(error).strip().split("\n")[0]
    return {"refused": ADDRESS.sub("0x", f"{type(error).__name__}: {text}")[:300]}


def run(parts: list[str]) -> dict[str, Any]:
    """Every measurement of some parts."""
    results: dict[str, Any] = {}
    for part in parts:
        start, count = (time.perf_counter(), time.process_time()), len(results)
        for name, function in PARTS[part]():
            name = f"{part}/{name}"
            assert name not in results, name
            begin = time.process_time()
            try:
                results[name] = plain(function())
            except Exception as error:
                results[name] = failure(error)
            taken = time.process_time() - begin
            if taken > 4:
                print(f"    {taken:5.1f} s {name}", flush=True)
        taken, work = time.perf_counter() - start[0], time.process_time() - start[1]
        print(
            f"{part:14s} {len(results) - count:4d} measurements, {taken:6.1f} s "
            f"({work:.1f} s of the processor)",
            flush=True,
        )
        # Programs that are not needed any more are memory.
        jax.clear_caches()
    return results


# --- Targets ---------------------------------------------------------------------------------

GRID = np.linspace(0.0, 6.0, 25)
TIMES = np.array([-0.5, 0.0, 0.1, 0.5, 0.9, 1.5, 2.2, 4.0, 9.0, 30.0])
UNEVEN = np.array([0.0, 0.1, 0.25, 0.7, 1.0, 1.9, 2.0, 3.5])
EVEN = np.linspace(0.0, 4.0, 17)
INPUT = np.cos(1.7 * EVEN) + 0.3 * EVEN
PAIR = np.stack([INPUT, np.sin(EVEN)], axis=-1)
RATES = np.array([0.05, 0.4, 1.0, 3.0])

EXPONENTIAL = mj.ExponentialSum([1.0, -0.4], [0.9, 0.3])
BUMP = mj.GaussianBump(0.25, 0.8, 0.5)
OSCILLATION = mj.DampedOscillation([1.0, -0.3], [0.2, 0.1], [0.5, 1.5], [2.0, 0.7])
KERNELS = {
    "exponential": EXPONENTIAL,
    "bump": BUMP,
    "airy": mj.Airy(1.0, 3.0),
    "box": mj.Box(0.5, 1.5),
    "sine": mj.Sine(1.3),
    "power": mj.PowerLaw(0.6, 1.5),
    "oscillation": OSCILLATION,
    "sampled": mj.SampledKernel(GRID, np.exp(-GRID) * np.cos(GRID)),
    "sum": EXPONENTIAL + BUMP,
    "scaled": -2.5 * mj.PowerLaw(0.6, 1.5),
    "delayed": mj.DelayedKernel(EXPONENTIAL, 1.5),
    "windowed": mj.WindowedKernel(mj.PowerLaw(0.6), 0.5, 4.0),
    "difference": EXPONENTIAL - OSCILLATION,
}
MATRIX = np.array([[-1.0, 0.5], [-0.3, -0.6]])
SYSTEMS = {
    "state space": mj.StateSpaceKernel(MATRIX, [1.0, 0.2], [0.7, -0.4]),
    "matrix": mj.StateSpaceKernel(MATRIX, [[1.0, 0.2], [0.1, 0.9]], [[0.7, -0.4], [0.3, 0.5]]),
    "vector": mj.VectorKernel(((EXPONENTIAL, mj.Box(0.5, 1.5)), (BUMP, OSCILLATION))),
}


def targets() -> Iterator[Case]:
    """Values, transforms, norms and responses of every target."""
    horizons = np.array([0.7, 5.0])
    for name, kernel in KERNELS.items():
        yield (
            f"{name}/facts",
            lambda k=kernel: [k.linear, k.memory, k.in_l1, k.in_l2],
        )
        functions: dict[str, Callable[..., Any]] = {
            "values": lambda k, ts, s: k(ts),
            "transform": lambda k, ts, s: k.laplace(s),
            "transform to a horizon": lambda k, ts, s: k.laplace(s, 5.0),
            "derivatives": lambda k, ts, s: k.laplace_derivatives(s, 2),
            "norms to horizons": lambda k, ts, s: k.squared_norm(horizons),
            "steps": lambda k, ts, s: (k.heaviside_response(ts), k.ramp_response(ts)),
            "even samples": lambda k, ts, s: k.response(EVEN, INPUT),
            "uneven samples": lambda k, ts, s: k.response(UNEVEN, np.sin(UNEVEN)),
            "panels": lambda k, ts, s: (jnp.sort(k.breakpoints()), k.support()),
            "slopes": lambda k, ts, s: jax.tree.leaves(
                eqx.filter_grad(lambda k: k.laplace(0.7))(k)
            ),
        }
        if kernel.in_l2:
            functions["norm"] = lambda k, ts, s: k.squared_norm()
        for part, case in together(functions, kernel, jnp.asarray(TIMES), jnp.asarray(RATES)):
            yield f"{name}/{part}", case
    for name, kernel in SYSTEMS.items():
        xs, sine = (INPUT, np.sin(UNEVEN)) if name == "state space" else (PAIR, PAIR[:8])
        functions = {
            "values": lambda k, xs, sine: k(TIMES),
            "transform": lambda k, xs, sine: k.laplace(RATES),
            "even samples": lambda k, xs, sine: k.response(EVEN, xs),
            "uneven samples": lambda k, xs, sine: k.response(UNEVEN, sine),
        }
        for part, case in together(functions, kernel, jnp.asarray(xs), jnp.asarray(sine)):
            yield f"{name}/{part}", case
    # Kernels that are not traced may choose their panels.
    yield "airy/concrete", lambda: (KERNELS["airy"].laplace(RATES), KERNELS["airy"].squared_norm())
    families = {
        "airy": (mj.Airy, [0.5, 1.0, 2.0]),
        "power": (mj.PowerLaw, [0.2, 0.6, 1.0]),
        "bump": (mj.GaussianBump, [0.05, 0.1, 0.5]),
    }
    for name, (kind, values) in families.items():

        def traced(value: jax.Array, kind: type = kind) -> tuple[jax.Array, ...]:
            kernel = kind(value)
            return kernel.laplace(0.3), kernel.laplace(0.3, 5.0), kernel.squared_norm()

        yield (
            f"{name}/batch",
            lambda f=traced, values=values: jax.jit(jax.vmap(f))(jnp.asarray(values)),
        )
    functionals = {
        "volterra": lambda: mj.Volterra(EXPONENTIAL, [(EXPONENTIAL, KERNELS["box"])]),
        "teacher": lambda: mj.Teacher(mj.NonlinearRNN.init(3, key=KEY).residual),
        "attention": lambda: mj.Attention.random([0.5, 1.0], 2, key=KEY),
        "attention, power law": lambda: mj.Attention(
            [[[1.0]]], [[[0.5]]], [[1.0]], [mj.PowerLaw(0.5)], scalar=True
        ),
        "lorenz": lambda: mj.Lorenz96(4, 2, key=KEY, spin_up=0.5, rtol=1e-5, atol=1e-5),
    }
    for name, make in functionals.items():
        yield f"{name}/even samples", lambda make=make: make().response(EVEN[:9], INPUT[:9])
    yield (
        "attention/uneven samples",
        lambda: functionals["attention"]().response(UNEVEN, np.sin(UNEVEN)),
    )


def products() -> Iterator[Case]:
    """Inner products of all pairs of kernels."""
    kernels = {
        name: kernel
        for name, kernel in KERNELS.items()
        if name not in ("sum", "scaled", "difference")
    }
    kernels["state space"] = SYSTEMS["state space"]

    def product(other: str) -> Callable[..., jax.Array]:
        def function(first: Any, kernels: dict[str, Any]) -> jax.Array:
            second = kernels[other]
            horizon = np.inf if first.in_l2 and second.in_l2 else 4.0
            return mj.inner_product(first, second, horizon)

        return function

    names = list(kernels)
    for i, name in enumerate(names):
        functions = {f"{name} and {other}": product(other) for other in names[i:]}
        yield from together(functions, kernels[name], kernels)
    for one, other in (("sum", "difference"), ("bump", "power"), ("airy", "state space")):
        first, second = (KERNELS | SYSTEMS)[one], (KERNELS | SYSTEMS)[other]
        yield (
            f"{one} and {other}, to horizons",
            lambda a=first, b=second: mj.inner_product(a, b, np.array([0.5, 3.0])),
        )
    for one, other in itertools.combinations_with_replacement(("matrix", "vector"), 2):
        yield f"{one} and {other}", lambda a=one, b=other: mj.inner_product(SYSTEMS[a], SYSTEMS[b])


# --- Reparametrisations ----------------------------------------------------------------------

MAPS = {
    "direct": mj.Direct(),
    "exp": mj.Exp(0.7),
    "softplus": mj.Softplus(),
    "inverse": mj.Inverse(),
    "best": mj.Best(1.0, 0.2),
    "tanh": mj.Tanh(),
    "square": mj.Elementwise(lambda v: v**2, jnp.sqrt),
}


def maps() -> Iterator[Case]:
    """Reparametrisations, and their criteria of stability."""
    rates = jnp.array([0.02, 0.3, 1.1])
    radii = np.array([0.01, 0.1, 0.5])
    changes = jnp.array([1e-9, -1e-3, 0.05])
    for name, kind in MAPS.items():
        yield f"{name}/free weights", lambda m=kind: (m.inverse(rates), m(m.inverse(rates)))
        yield f"{name}/displacement", lambda m=kind: m.displacement(m.inverse(rates), changes)
        yield (
            f"{name}/slopes",
            lambda m=kind: (
                m.slope(m.inverse(rates)), m.gradient_over_weight_scale(m.inverse(rates)),
            ),
        )  # fmt: skip
        yield (
            f"{name}/multipliers",
            lambda m=kind: [
                m.multipliers(m.inverse(rates), 0.1, rule=rule) for rule in ("exact", "euler")
            ],
        )
        # The search over the rates of any other map takes too long.
        for bounds in (None, (0.01, 1.5)) if name != "square" else ():
            yield (
                f"{name}/criterion/{bounds}",
                lambda m=kind, b=bounds: mj.stability_criterion(m, radii, rates=b),
            )
        yield (
            f"{name}/rate sensitivity",
            lambda m=kind: mj.rate_sensitivity(rates, reparametrisation=m),
        )


# --- Models ----------------------------------------------------------------------------------

AMPLITUDES, DECAYS = jnp.array([0.8, -0.3]), jnp.array([1.1, 0.4])
MODELS: dict[str, Callable[[], mj.AbstractModel]] = {
    "diagonal": lambda: mj.DiagonalLinearRNN(AMPLITUDES, DECAYS, mj.Exp()),
    "complex": lambda: mj.ComplexDiagonalRNN(AMPLITUDES, AMPLITUDES / 2, DECAYS, 2 * DECAYS),
    "dense": lambda: mj.LinearRNN.init(2, key=KEY),
    "tanh": lambda: mj.NonlinearRNN.init(2, key=KEY),
    "leaky": lambda: mj.NonlinearRNN.init(2, activation="hardtanh", leak=True, key=KEY),
    "diagonal tanh": lambda: mj.DiagonalNonlinearRNN.init(
        DECAYS, reparametrisation=mj.Softplus(), key=KEY
    ),
    "gru": lambda: mj.GatedRNN.init("gru", 2, key=KEY),
    "lstm": lambda: mj.GatedRNN.init("lstm", 2, rate=2.0, key=KEY),
    "layer": lambda: mj.StateSpaceLayer.init(DECAYS, reparametrisation=mj.Best(), key=KEY),
    "lru": lambda: mj.LRULayer.init(DECAYS, 2 * DECAYS, key=KEY),
    "stack": lambda: mj.StateSpaceStack(
        [mj.StateSpaceLayer.init(DECAYS, key=KEY), mj.LRULayer.init(DECAYS, DECAYS, key=KEY)]
    ),
    "dense, two inputs": lambda: mj.LinearRNN.init(2, 2, 2, key=KEY),
    "tanh, two inputs": lambda: mj.NonlinearRNN.init(2, 2, 2, key=KEY),
}


def models() -> Iterator[Case]:
    """Outputs of every model, by every method that it has, and the published spectra."""
    for name, make in MODELS.items():
        xs = PAIR if "two inputs" in name else INPUT
        model = make()
        yield f"{name}/weights", lambda m=model: m
        functions = {"residual": lambda m, xs: m.residual(EVEN, xs)}
        if hasattr(model, "scan"):
            functions |= {
                "scan": lambda m, xs: m.scan(EVEN, xs),
                "scan, previous": lambda m, xs: m.scan(EVEN, xs, interpolation="previous"),
                "scan, uneven": lambda m, xs: m.scan(UNEVEN, xs[: UNEVEN.size]),
            }
        for part, case in together(functions, model, jnp.asarray(xs)):
            yield f"{name}/{part}", case
        if hasattr(model, "kernel"):
            yield f"{name}/kernel", lambda m=model: m.kernel()(TIMES)
    for name, how in (("diagonal", "cubic"), ("tanh", "linear"), ("gru", "previous")):
        yield (
            f"{name}/diffrax/{how}",
            lambda name=name, how=how: MODELS[name]()(EVEN[:9], INPUT[:9], interpolation=how),
        )
    yield "spectra/uniform", lambda: mj.uniform_rates(5, 0.1, 2.0, key=KEY)
    yield "spectra/log uniform", lambda: mj.log_uniform_rates(5, 1e-3, 2.0, key=KEY)
    yield "spectra/ring", lambda: mj.ring(5, 0.4, 0.99, max_phase=1.0, step=0.1, key=KEY)
    yield "spectra/s4d", lambda: (mj.s4d_real(4, scale=2.0), *mj.s4d_lin(4, scale=2.0))
    yield "spectra/gaussian", lambda: mj.stable_gaussian(4, gain=2.0, margin=0.3, key=KEY)
    target = plateau_target(8.0)
    near = mj.on_plateau(target, [0.6, 0.3], copies=2, reparametrisation=mj.Softplus())
    yield "starts/on plateau", lambda: near
    yield "starts/near plateau", lambda: mj.near_plateau(near, scale=0.01, key=KEY)
    yield "starts/random", lambda: mj.random_start(4, reparametrisation=mj.Exp(), key=KEY)


# --- Losses ----------------------------------------------------------------------------------


class Gaussian(eqx.Module):
    """An autocovariance."""

    length: jax.Array

    def __call__(self, lags: jax.Array) -> jax.Array:
        return jnp.exp(-((lags / self.length) ** 2) / 2)


class Well(eqx.Module):
    """A loss with two minima, at amplitudes of 1 and -1, and a saddle between them."""

    height: jax.Array

    def __call__(self, model: Any) -> jax.Array:
        return self.height * jnp.sum((model.amplitudes**2 - 1) ** 2) / 4


class Spring(eqx.Module):
    """A loss with one minimum."""

    place: jax.Array

    def __call__(self, model: Any) -> jax.Array:
        return jnp.sum((model.amplitudes - self.place) ** 2) / 2


class Cliff(eqx.Module):
    """A loss that is no number below some amplitude."""

    place: jax.Array

    def __call__(self, model: Any) -> jax.Array:
        return jnp.sum(jnp.log(model.amplitudes - self.place))


def sampled(target: mj.AbstractTarget, method: str | None, **options: Any) -> mj.SampledPathLoss:
    return mj.SampledPathLoss.ornstein_uhlenbeck(
        target, EVEN, KEY, 2, 1.0, method=method, **options
    )


def losses() -> Iterator[Case]:
    """Values, gradients, their rounding and Hessians of losses."""

    @eqx.filter_jit
    def value(loss: mj.AbstractLoss, model: Any) -> tuple[jax.Array, jax.Array]:
        return loss(model), jfu.ravel_pytree(loss.gradient(model))[0]

    @eqx.filter_jit
    def noise(loss: mj.AbstractLoss, model: Any) -> tuple[jax.Array, jax.Array]:
        return loss.value_noise(model), jfu.ravel_pytree(loss.gradient_noise(model))[0]

    @eqx.filter_jit
    def hessian(loss: mj.AbstractLoss, model: Any) -> jax.Array:
        flow = mj.GradientFlow(loss).displaced(model)
        return flow.hessian(flow.initial_state())

    model = {name: MODELS[name]() for name in MODELS}
    for name, kind in MAPS.items():
        model[f"diagonal, {name}"] = mj.DiagonalLinearRNN(AMPLITUDES, DECAYS, kind)
    direct = "diagonal, direct"
    white, coloured = mj.WhiteNoiseLoss, mj.ColouredNoiseLoss
    stationary = mj.StationaryNoiseLoss(
        EXPONENTIAL, Gaussian(jnp.array(0.6)), 9.0, panels=12, nodes=12
    )
    volterra = mj.Volterra(EXPONENTIAL, [(EXPONENTIAL, KERNELS["box"])])
    every = {
        f"white/{name}": (white(k), direct)
        for name, k in KERNELS.items()
        if k.in_l2 and name not in ("scaled", "difference")
    }
    every |= {
        f"white/{name}": (white(EXPONENTIAL + BUMP), f"diagonal, {name}")
        for name in MAPS
        if name != "direct"
    }
    every |= {
        "white, finite": (white(EXPONENTIAL + BUMP, 6.0), direct),
        "white, sine": (white(mj.Sine(1.3), 6.0), direct),
        "white, complex": (white(OSCILLATION), "complex"),
        "white, dense": (white(EXPONENTIAL), "dense"),
        "white, two inputs": (white(SYSTEMS["vector"]), "dense, two inputs"),
        "coloured": (coloured(EXPONENTIAL, 1.3, 0.7), direct),
        "coloured, bump": (coloured(EXPONENTIAL + BUMP, 1.3), direct),
        "coloured, finite": (coloured(EXPONENTIAL, 1.3, 0.7, 6.0), direct),
        "coloured, complex": (coloured(OSCILLATION, 1.3), "complex"),
        "stationary": (stationary, direct),
        "stationary, complex": (stationary, "complex"),
        "function": (mj.FunctionLoss(Well(jnp.array(1.5))), direct),
    }
    # Those of the other models are in the part on trainings.
    every |= {
        "paths, residual/gru": (sampled(volterra, "residual"), "gru"),
        "paths, scan/lru": (sampled(volterra, "scan"), "lru"),
        "paths, diffrax/diagonal": (sampled(EXPONENTIAL, "diffrax"), "diagonal"),
    }
    every["paths, late errors"] = (
        sampled(volterra, "residual", weight=mj.TemporalWeight(1.5)), "tanh",
    )  # fmt: skip
    for name, (loss, kind) in every.items():
        yield f"{name}/value and gradient", lambda a=loss, b=model[kind]: value(a, b)
    for name in ("white/sum", "white/softplus", "white, finite", "coloured", "function",
                 "stationary"):  # fmt: skip
        loss, kind = every[name]
        yield f"{name}/rounding", lambda a=loss, b=model[kind]: noise(a, b)
        yield f"{name}/hessian", lambda a=loss, b=model[kind]: hessian(a, b)


# --- Plateaus --------------------------------------------------------------------------------

CURVE = diffrax.SaveAt(ts=np.geomspace(0.1, 1e5, 6))
DROP = mj.RelativeLossDrop


def plateau_target(memory: Any, width: float = 0.5) -> mj.AbstractKernel:
    return mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(1 / memory, 1.0, width)


def silent(rate: Any = 0.6, kind: Any = None) -> mj.DiagonalLinearRNN:
    """A model that knows the exponential part of that target, with one silent mode."""
    rates = jnp.stack([jnp.asarray(1.0), jnp.asarray(rate, float)])
    return mj.DiagonalLinearRNN(jnp.array([1.0, 0.0]), rates, kind)


def plateaus() -> Iterator[Case]:
    """Single measurements of gradient flow under white noise, which share two programs."""

    def white(memory: float = 8.0, delta: float = 0.02, start: Any = None, **options: Any) -> dict:
        loss = mj.WhiteNoiseLoss(plateau_target(memory))
        start = silent() if start is None else start
        exit = DROP(delta, options.pop("reference", loss(start)))
        return measured(mj.GradientFlow(loss), start, exit, saveat=CURVE, **options)

    for memory, delta in itertools.product((2.0, 5.0, 8.0, 12.0, 17.0, 22.0), (0.01, 0.03)):
        yield (
            f"memory {memory}, drop {delta}",
            lambda memory=memory, delta=delta: white(memory, delta),
        )
    for memory, rtol in itertools.product((6.0, 14.0), (1e-3, 1e-4, 1e-8, 1e-10)):
        yield (
            f"memory {memory}, rtol {rtol}",
            lambda memory=memory, rtol=rtol: white(memory, rtol=rtol),
        )
    for rate in (0.3, 0.8, 1.7):
        yield f"silent rate {rate}", lambda rate=rate: white(10.0, start=silent(rate))
    starts = {
        "near the plateau": lambda: mj.near_plateau(silent(), scale=0.01, key=KEY),
        "random": lambda: mj.random_start(2, key=KEY),
        "at a match": lambda: mj.DiagonalLinearRNN([1.0, 1e-3], [1.0, 0.9]),
    }
    for name, start in starts.items():
        yield name, lambda start=start: white(8.0, start=start())
    yield "exit out of reach", lambda: white(4.0, 0.9)
    yield "exit met at the start", lambda: white(8.0, 0.5, reference=1e3)
    yield "max time", lambda: white(12.0, max_time=30.0)
    yield "coarse resolution", lambda: white(30.0, resolution=0.1)
    for memory in (35.0, 60.0, 1250.0):
        yield f"unresolved, memory {memory}", lambda memory=memory: white(memory)
    yield "fine resolution", lambda: white(22.0, resolution=1e-12)
    yield "bad memory", lambda: white(-8.0)
    yield "bad tolerance", lambda: white(8.0, rtol=2.0)

    def first(drop: float, change: float, distance: float, memory: float = 8.0) -> dict:
        exit = mj.FirstOf(DROP(drop), mj.LossChange(change), mj.ParameterDistance(distance))
        return measured(mj.GradientFlow(mj.WhiteNoiseLoss(plateau_target(memory))), silent(), exit)

    for name, levels in {
        "drop": (0.02, 1e3, 1e3),
        "change": (0.9, 0.01, 1e3),
        "small change": (0.9, 1e-5, 1e3),
        "distance": (0.9, 1e3, 0.05),
        "small distance": (0.9, 1e3, 1e-6),
        "none": (0.99, 1e3, 1e3),
    }.items():
        for memory in (5.0, 10.0):
            yield (
                f"first of, {name}, memory {memory}",
                lambda levels=levels, memory=memory: first(*levels, memory),
            )


def flows() -> Iterator[Case]:
    """Single measurements of all flows."""
    one = lambda start: mj.DiagonalLinearRNN(jnp.asarray(start)[None], jnp.ones(1))
    operator = lx.DiagonalLinearOperator(jnp.array([2.0, 0.5]))
    kinds: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
        "gradient flow": (lambda loss, _: mj.GradientFlow(loss), (1.0,)),
        "preconditioned": (lambda loss, _: mj.PreconditionedFlow(loss, operator), (1.0,)),
        "heavy ball": (mj.HeavyBall, (1.0, 4.0)),
        "nesterov": (mj.Nesterov, (3.0, 5.0)),
        "adam": (mj.Adam, (1e-3, 1e-1)),
    }
    for (name, (kind, values)), start in itertools.product(kinds.items(), (1e-2, 1e-6, 1e-12)):
        for value in values:
            yield (
                f"well/{name}, {value}, start {start}",
                lambda k=kind, v=value, start=start: measured(
                    k(mj.FunctionLoss(Well(jnp.array(1.0))), v), one(start),
                    mj.ParameterDistance(0.5),
                ),
            )  # fmt: skip
    spring = mj.FunctionLoss(Spring(jnp.array(0.7)))
    for gap in (0.5, 1e-2, 1e-4, 1e-6, -1e-2):
        yield (
            f"spring without friction, gap {gap}",
            lambda gap=gap: measured(
                mj.HeavyBall(spring, 0.0), one(0.0), mj.ParameterDistance(1.4 * (1 - gap)),
                max_time=50.0,
            ),
        )  # fmt: skip

    @jax.jit
    def just(gap: jax.Array, height: jax.Array) -> dict[str, Any]:
        exit = mj.ParameterDistance(1.4 * (1 - gap))
        return measured(mj.HeavyBall(mj.FunctionLoss(Spring(height)), 0.0), one(0.0), exit)

    for gap in (1e-2, 1e-9, -1e-9, 2.0):
        yield f"spring, traced, gap {gap}", lambda gap=gap: just(gap, jnp.array(0.7))
    yield "spring, traced, no number", lambda: just(0.1, jnp.array(np.nan))
    for name, solver in {
        "rodas": mj.Rodas5P(), "radau": mj.RadauIIA5(),
    }.items():  # fmt: skip
        for rtol in (1e-4, 1e-8):
            yield (
                f"solvers/{name}, {rtol}",
                lambda solver=solver, rtol=rtol: measured(
                    mj.GradientFlow(mj.FunctionLoss(Well(jnp.array(1.0)))), one(1e-5),
                    mj.LossChange(0.1), solver=solver, rtol=rtol,
                ),
            )  # fmt: skip
    for rate in (0.3, 0.6):
        yield (
            f"white/heavy ball, rate {rate}",
            lambda rate=rate: measured(
                mj.HeavyBall(mj.WhiteNoiseLoss(plateau_target(8.0)), 2.0), silent(rate), DROP(0.02)
            ),
        )
    slow = mj.ExponentialSum([1.0, 0.5], [1.0, 0.2])
    metric = lx.DiagonalLinearOperator(jnp.array([1.0, 2.0, 0.5, 3.0]))
    yield (
        "white/preconditioned",
        lambda: measured(
            mj.PreconditionedFlow(mj.WhiteNoiseLoss(slow), metric), silent(), DROP(0.5)
        ),
    )

    @jax.jit
    def slope(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        def log_time(start: jax.Array) -> jax.Array:
            flow = mj.GradientFlow(mj.FunctionLoss(Well(jnp.array(1.0))))
            exit = mj.ParameterDistance(0.5)
            return jnp.log(mj.measure_plateau(flow, one(start), exit, throw=False).time)

        return jax.value_and_grad(log_time)(start)

    for start in (1e-2, 1e-6):
        yield f"derivative of the time, start {start}", lambda start=start: slope(jnp.array(start))


def other_losses() -> Iterator[Case]:
    """Single measurements under other losses and of other models."""
    slow = mj.ExponentialSum([1.0, 0.5], [1.0, 0.2])
    cases = {
        "coloured": lambda rate: (mj.ColouredNoiseLoss(slow, rate), silent(0.3)),
        "paths, tanh": lambda rate: (
            mj.SampledPathLoss.ornstein_uhlenbeck(slow, EVEN, KEY, 2, rate, method="residual"),
            mj.NonlinearRNN.init(2, key=KEY),
        ),
    }
    for (name, make), rate in itertools.product(cases.items(), (0.5, 2.0)):

        def one(make: Any = make, rate: float = rate) -> dict:
            loss, model = make(jnp.asarray(rate))
            return measured(mj.GradientFlow(loss), model, DROP(0.1))

        yield f"{name}, rate {rate}", one


def trainings() -> Iterator[Case]:
    """Discrete training: all kernels, models and losses, and the outcomes of its own."""
    saveat = diffrax.SaveAt(ts=np.array([0.0, 1.0, 10.0]))
    slow, fast = optax.sgd(0.05), optax.adam(1e-2)
    options = {"saveat": saveat, "max_steps": 150}
    direct = mj.DiagonalLinearRNN(AMPLITUDES, DECAYS)
    for name, delta in itertools.product(("box", "power", "oscillation", "sampled"), (0.05, 0.5)):
        yield (
            f"white/{name}, drop {delta}",
            lambda name=name, delta=delta: measured(
                mj.OptaxTraining(mj.WhiteNoiseLoss(KERNELS[name]), slow, 0.05), direct,
                DROP(delta), **options,
            ),
        )  # fmt: skip
    for name, kind in MAPS.items():
        yield (
            f"maps/{name}",
            lambda m=kind: measured(
                mj.OptaxTraining(mj.WhiteNoiseLoss(EXPONENTIAL), fast),
                mj.DiagonalLinearRNN(AMPLITUDES, DECAYS / 2, m), DROP(0.1), **options,
            ),
        )  # fmt: skip
    volterra = mj.Volterra(EXPONENTIAL, [(EXPONENTIAL, KERNELS["box"])])
    for name, make in MODELS.items():
        target = SYSTEMS["vector"] if "two inputs" in name else volterra
        yield (
            f"models/{name}",
            lambda make=make, target=target: measured(
                mj.OptaxTraining(sampled(target, "residual"), fast), make(), DROP(0.1), **options
            ),
        )
    smooth = mj.StationaryNoiseLoss(EXPONENTIAL, Gaussian(jnp.array(0.6)), 9.0, panels=12, nodes=12)
    yield (
        "stationary",
        lambda: measured(mj.OptaxTraining(smooth, fast), MODELS["complex"](), DROP(0.1), **options),
    )
    yield (
        "dense",
        lambda: measured(
            mj.OptaxTraining(mj.WhiteNoiseLoss(OSCILLATION), fast), MODELS["dense"](), DROP(0.1),
            **options,
        ),
    )  # fmt: skip
    well = mj.FunctionLoss(Well(jnp.array(1.0)))
    one = mj.DiagonalLinearRNN([1e-3], [1.0])
    far = mj.ParameterDistance(0.5)
    for temperature in (0.0, 1e-4, 1e-2):
        for name, solver in {"euler": None, "shark": diffrax.ShARK()}.items():
            yield (
                f"stochastic/{name}, temperature {temperature}",
                lambda temperature=temperature, solver=solver: measured(
                    mj.StochasticGradientFlow(well, temperature, 0.05, KEY, solver), one, far,
                    **options,
                ),
            )  # fmt: skip
    for name, optimiser in {
        "momentum": optax.sgd(0.05, momentum=0.9), "lbfgs": optax.lbfgs(),
        "adamw": optax.adamw(0.02, weight_decay=0.1),
    }.items():  # fmt: skip
        yield (
            f"optimisers/{name}",
            lambda o=optimiser: measured(mj.OptaxTraining(well, o), one, far, **options),
        )
    train = lambda loss, model, exit, **options: measured(
        mj.OptaxTraining(loss, slow, 0.5), model, exit, **options
    )
    yield "max steps", lambda: train(well, one, mj.LossChange(2.0), max_steps=7)
    yield "max time", lambda: train(well, one, mj.LossChange(2.0), max_time=3.2)
    yield "exit met at the start", lambda: train(well, one, DROP(0.5, 10.0))
    steep = mj.FunctionLoss(Well(jnp.array(1e4)))
    high = mj.DiagonalLinearRNN([3.0], [1.0])
    yield "diverged", lambda: train(steep, high, mj.LossChange(1e300))
    cliff = mj.FunctionLoss(Cliff(jnp.array(0.5)))
    yield "off a cliff", lambda: train(cliff, mj.DiagonalLinearRNN([0.6], [1.0]), DROP(0.9, 1e3))
    yield "no number", lambda: train(cliff, mj.DiagonalLinearRNN([0.4], [1.0]), DROP(0.9))


def sweeps() -> Iterator[Case]:
    """Sweeps, which go through the lanes; every cell is a measurement."""
    quiet = {"progress": False}
    times = np.geomspace(0.1, 1e8, 5)

    def white(memory_: Any, rate: Any, delta: Any) -> tuple:
        loss = mj.WhiteNoiseLoss(plateau_target(memory_))
        return mj.GradientFlow(loss), silent(rate), DROP(delta)

    def swept(**options: Any) -> Any:
        axes = {"memory_": [3.0, 8.0, 14.0, 20.0], "rate": [0.6], "delta": [0.02]}
        return mj.sweep(
            white, axes | options.pop("axes", {}), curve_times=times, **options, **quiet
        )

    grids: dict[str, dict[str, Any]] = {
        "white": {"axes": {"rate": [0.3, 0.6], "delta": [0.01, 0.04]}},
        "white, rtol 1e-2": {"rtol": 1e-2},
        "white, rtol 1e-3": {"rtol": 1e-3},
        "white, rtol 1e-8": {"rtol": 1e-8},
        "white, double-double": {"precision": "double-double"},
        "white, float64, long": {
            "axes": {"memory_": [30.0, 45.0, 60.0], "delta": [0.005]},
            "precision": "float64",
        },
        "white, auto, long": {"axes": {"memory_": [30.0, 45.0, 60.0, 1250.0], "delta": [0.005]}},
        "white, max time": {"max_time": 30.0},
        "white, max steps": {"max_steps": 7, "precision": "float64"},
        "white, out of reach": {"axes": {"delta": [0.02, 0.9]}},
        "white, refused": {"axes": {"delta": [0.02, 1.5, 0.03]}},
        "white, fine resolution": {"resolution": 1e-13, "precision": "float64"},
    }
    for name, options in grids.items():
        yield from cells(lambda options=options: swept(**options), name)

    specification = mj.PlateauSweep(
        memories=(8.0, 10.0, 12.0, 14.0), widths=(3,), seeds=(0, 1), curve_points=0,
        reparametrisations=("softplus",), start="near-plateau", exit="parameter-distance",
    )  # fmt: skip
    try:
        dataset = specification.run(**quiet).squeeze("reparametrisation", drop=True)
    except Exception as error:
        yield "specification", lambda error=error: failure(error)
    else:
        yield from cells(lambda: dataset, "specification")
        for bounds in (None, (8.0, 14.0)):
            yield (
                f"scaling law, range {bounds}",
                lambda bounds=bounds: {
                    name: values.values
                    for name, values in mj.fit_scaling_law(dataset, axis_range=bounds).items()
                },
            )
    one = lambda start: mj.DiagonalLinearRNN(jnp.asarray(start)[None], jnp.ones(1))

    def well(start: Any, height: Any) -> tuple:
        flow = mj.GradientFlow(mj.FunctionLoss(Well(height)))
        return flow, one(start), mj.FirstOf(mj.LossChange(0.1), mj.ParameterDistance(0.4))

    axes = {"start": [1e-9, 1e-3, 0.1, 1.0], "height": [0.3, 1.0, 2.0]}
    yield from cells(lambda: mj.sweep(well, axes, **quiet), "well")

    def oscillating(gap: Any, friction: Any) -> tuple:
        flow = mj.HeavyBall(mj.FunctionLoss(Spring(jnp.array(0.7))), friction)
        return flow, one(0.0), mj.ParameterDistance(1.4 * (1 - gap))

    axes = {"gap": [0.5, 1e-2, 1e-5], "friction": [0.0, 0.1]}
    yield from cells(lambda: mj.sweep(oscillating, axes, max_time=99.0, **quiet), "heavy ball")
    optimiser = optax.sgd(0.05)

    def training(delta: Any, memory_: Any) -> tuple:
        loss = mj.WhiteNoiseLoss(plateau_target(memory_))
        return mj.OptaxTraining(loss, optimiser, 0.05), silent(), DROP(delta)

    axes = {"delta": [0.01, 0.02], "memory_": [3.0, 5.0]}
    yield from cells(lambda: mj.sweep(training, axes, max_steps=2000, **quiet), "training")

    def general(rate: Any, delta: Any) -> tuple:
        target = mj.ExponentialSum(jnp.array([1.0, 0.5]), jnp.stack([jnp.asarray(1.0), rate]))
        return mj.GradientFlow(mj.WhiteNoiseLoss(target, 15.0)), silent(), DROP(delta)

    axes = {"rate": [0.1, 0.2, 0.4], "delta": [0.05, 0.3]}
    yield from cells(lambda: mj.sweep(general, axes, **quiet), "finite horizon")


# --- Analysis --------------------------------------------------------------------------------


def memory() -> Iterator[Case]:
    """Memory functions, how they decay, norms and distances."""
    ts = np.linspace(0.0, 20.0, 41)
    long = np.geomspace(0.1, 100.0, 40)
    found: dict[str, Any] = {}

    def function(name: str, *arguments: Any, **options: Any) -> Any:
        found[name] = mj.memory_function(*arguments, **options)
        result = found[name]
        return result, result.half_time(), result.horizon(0.1)

    for name, kernel in (KERNELS | SYSTEMS).items():
        yield f"function/{name}", lambda n=name, k=kernel: function(n, k, long)
    cheap = {"num_amplitudes": 7, "starts": 2, "refinements": 3, "directions": 4}
    for name in ("tanh", "gru", "lru", "tanh, two inputs"):
        for kind in ("heaviside", "reversed", "impulse") if name == "tanh" else ("heaviside",):
            yield (
                f"function/{name}/{kind}, residual",
                lambda n=name, kind=kind: function(
                    f"{n}, {kind}", MODELS[n](), ts, method="residual", kind=kind, **cheap
                ),
            )
    yield (
        "function/tanh/diffrax",
        lambda: function("tanh, diffrax", MODELS["tanh"](), ts, rtol=1e-5, atol=1e-7, **cheap),
    )
    yield (
        "function/lru/scan, shifted",
        lambda: function(
            "lru, scan", MODELS["lru"](), ts, method="scan", normalisation="shifted", **cheap
        ),
    )
    cell = eqx.nn.GRUCell(1, 3, key=KEY)
    yield "function/cell", lambda: function("cell", cell, np.arange(30.0), **cheap)
    for name in (*KERNELS, "tanh, heaviside", "gru, heaviside", "cell", "lru, scan"):
        yield f"decay/{name}", lambda n=name: mj.memory_decay(found[n])
    for name, kernel in (KERNELS | SYSTEMS).items():
        for norm, horizon in (("sup", np.inf), ("sobolev", 5.0)):
            yield (
                f"norm/{name}/{norm}, horizon {horizon}",
                lambda k=kernel, n=norm, h=horizon: mj.functional_norm(k, n, h),
            )
    diagonal = mj.DiagonalLinearRNN(AMPLITUDES, DECAYS)
    for name in ("exponential", "power", "sampled"):
        for norm in ("sup", "sobolev"):
            yield (
                f"distance/{name}/{norm}",
                lambda n=name, norm=norm: mj.functional_distance(KERNELS[n], diagonal, norm),
            )


def stability() -> Iterator[Case]:
    """Perturbations, their radii, spectra of Hessians and sensitivities."""
    radii = np.array([0.01, 0.05, 0.15])
    options = {"restarts": 2, "steps": 5, "draws": 5, "key": KEY}
    target = plateau_target(4.0)
    white = mj.WhiteNoiseLoss(target)
    for name, ball in (("direct", "max"), ("softplus", "operator"), ("best", "max")):
        model = mj.DiagonalLinearRNN(AMPLITUDES, DECAYS, MAPS[name])
        horizon = 20.0 if name == "direct" else np.inf
        yield (
            f"perturbation/power, {name}, {ball}",
            lambda m=model, ball=ball, horizon=horizon: mj.perturbation_error(
                m, KERNELS["power"], radii, norm=ball, horizon=horizon, **options
            ),
        )
    yield "perturbation/white", lambda: mj.perturbation_error(silent(), white, radii, **options)
    paths = sampled(EXPONENTIAL, "residual")
    yield (
        "perturbation/paths, tanh",
        lambda: mj.perturbation_error(MODELS["tanh"](), paths, radii, norm="operator", **options),
    )
    grid = np.geomspace(1e-3, 1.0, 15)
    widths = np.array([4.0, 8.0, 16.0, 32.0])
    vanishing = 1e-2 + grid * widths[:, None]
    staying = 1e-2 + grid * (1 + 1 / widths[:, None])
    for name, errors in (("vanishing", vanishing), ("staying", staying)):
        yield (
            f"radius/{name}",
            lambda e=errors: (
                mj.stability_radius(widths, grid, e, level=0.1),
                mj.crossings(grid, e / widths[:, None]),
            ),
        )
    yield "hessian/white", lambda: mj.hessian_spectrum(white, silent())
    yield "hessian/largest", lambda: mj.hessian_spectrum(white, silent(), 2)
    yield "hessian/smallest", lambda: mj.hessian_spectrum(white, silent(), 2, which="smallest")
    yield (
        "hessian/lanczos",
        lambda: (
            mj.hessian_spectrum(
                paths, MODELS["tanh"](), 2, which="magnitude", method="lanczos"
            ).eigenvalues
        ),
    )
    rates, frequencies = np.array([1e-4, 0.1, 2.0]), np.array([0.0, 1.0, 0.3])
    settings = {
        "continuous": {}, "discrete": {"step": 0.1}, "coloured": {"correlation_rate": 0.7},
        "coloured, discrete": {"correlation_rate": 0.7, "step": 0.1},
    }  # fmt: skip
    functions = {
        "variance": mj.hidden_variance, "rate": mj.rate_sensitivity, "angle": mj.angle_sensitivity,
    }  # fmt: skip
    for (name, function), (how, given), scaled in itertools.product(
        functions.items(), settings.items(), (False, True)
    ):
        yield (
            f"sensitivity/{name}, {how}, {scaled}",
            lambda f=function, given=given, scaled=scaled: f(
                rates, frequencies, normalised=scaled, **given
            ),
        )
    multipliers = np.array([0.1, 0.9, -0.99])
    yield (
        "sensitivity/multipliers",
        lambda: (
            mj.multiplier_sensitivity(multipliers),
            mj.multiplier_sensitivity(multipliers * np.exp(1j), 0.3, normalised=True),
        ),
    )
    for name in ("diagonal", "complex", "layer", "lru"):
        yield (
            f"sensitivity/outputs, {name}",
            lambda n=name: jax.tree.leaves(
                mj.output_sensitivity(MODELS[n](), EVEN, INPUT[None], burn_in=3)
            ),
        )
    yield (
        "bound",
        lambda: mj.plateau_lower_bound(1 / rates[1:], delta=0.02, decay_rate=0.6, width=4),
    )
    for length in (8.0, 20.0):
        yield (
            f"asymptotics, memory {length}",
            lambda length=length: mj.plateau_asymptotics(plateau_target(length), 0.6),
        )


def approximation() -> Iterator[Case]:
    """Best sums of exponentials, and how many are needed."""
    names = ("error", "relative_error", "uncertainty", "lower_bound", "active", "resolved",
             "confluent", "offset", "model", "statistics")  # fmt: skip
    record = lambda best: {name: getattr(best, name) for name in names}
    cases = {
        "exponential": (mj.ExponentialSum([1.0, 0.5, 0.2, 0.1], [1.0, 0.5, 0.1, 3.0]), False),
        "power": (KERNELS["power"], False),
        "bump": (KERNELS["bump"], True),
        "airy": (KERNELS["airy"], True),
    }
    for (name, (kernel, pairs)), norm, m in itertools.product(
        cases.items(), ("L1", "L2", "sup"), (1, 3)
    ):
        yield (
            f"best/{name}, {norm}, {m}",
            lambda k=kernel, pairs=pairs, norm=norm, m=m: record(
                mj.best_exponential_sum(k, m, norm=norm, complex=pairs)
            ),
        )
    measured_kernel = KERNELS["sampled"]
    for how in ("points", "linear"):
        yield (
            f"best/sampled, {how}",
            lambda how=how: record(
                mj.best_exponential_sum(measured_kernel, 2, samples=how, complex=True)
            ),
        )
    yield (
        "best/offset, margin",
        lambda: record(
            mj.best_exponential_sum(KERNELS["power"], 3, min_rate=0.1, horizon=30.0, offset=True)
        ),
    )
    for norm in ("L1", "L2", "sup"):
        yield (
            f"bounds/{norm}",
            lambda norm=norm: mj.approximation_lower_bounds(KERNELS["airy"], norm=norm),
        )

    def needed(norm: str) -> dict[str, Any]:
        found = mj.neurons_needed(KERNELS["power"], 1e-2, norm=norm, relative=True)
        kept = ("neurons", "lower_bound", "reached", "orders", "errors", "error")
        return {name: getattr(found, name) for name in kept}

    for norm in ("L2", "sup"):
        yield f"needed/{norm}", lambda norm=norm: needed(norm)
    for name, kernel in (("exponential", EXPONENTIAL), ("bump", BUMP)):
        yield (
            f"rate/{name}",
            lambda k=kernel: mj.approximation_rate(k, alphas=(1, 2), widths=(2, 4)),
        )


def diagnosis() -> Iterator[Case]:
    """Lags of data, gradients at a lag, and diagnoses."""
    noise = np.random.default_rng(3)
    xs = noise.normal(size=(4, 400))
    ys = np.roll(xs, 7, axis=1) + 0.5 * np.roll(xs, 2, axis=1) + 0.3 * noise.normal(size=xs.shape)
    for level in (0.5, 0.9):
        yield (
            f"lag, level {level}",
            lambda level=level: mj.estimate_lag(xs, ys, step=0.5, max_lag=40, level=level),
        )
    yield "lag, too short", lambda: mj.estimate_lag(xs, ys, max_lag=5)
    yield "lag, noise", lambda: mj.estimate_lag(xs, noise.normal(size=xs.shape), max_lag=40)
    for name in ("complex", "tanh", "gru"):
        yield (
            f"signal/{name}",
            lambda n=name: [
                getattr(
                    mj.gradient_signal(MODELS[n](), [0, 3, 10], step=0.5, samples=3, key=KEY), part
                )
                for part in ("signal", "noise", "relative", "effort")
            ],
        )

    def said(model: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        found = mj.diagnose(model, *arguments, **options)
        remedies = {
            remedy.name: (remedy.verdict, remedy.signal.signal) for remedy in found.remedies
        }
        return {
            "verdict": found.verdict, "horizon": found.horizon, "memory": found.memory,
            "signal": found.signal.signal, "relative": found.relative, "plateau": found.plateau,
            "remedies": remedies,
        }  # fmt: skip

    options = {"step": 0.5, "samples": 2}
    diagonal = mj.DiagonalLinearRNN([1.0, 0.5], [1.0, 0.3], mj.Softplus())
    yield "diagonal, lag 3", lambda: said(diagonal, 3.0, **options)
    yield "diagonal, data", lambda: said(diagonal, (xs, ys), remedies=False, **options)
    yield "cell, lag 20", lambda: said(eqx.nn.GRUCell(1, 3, key=KEY), 20, samples=2)


def single() -> Iterator[Case]:
    """Single precision, where it works. Comes last: it switches double precision off."""

    def short(function: Callable[[], Any]) -> Callable[[], Any]:
        def switched() -> Any:
            before = jax.config.jax_enable_x64
            jax.config.update("jax_enable_x64", False)
            try:
                return function()
            finally:
                jax.config.update("jax_enable_x64", before)

        return switched

    cast = lambda tree: jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32) if eqx.is_inexact_array(leaf) else leaf, tree
    )
    for name in ("exponential", "bump", "box", "power", "oscillation", "sampled"):
        kernel = cast(KERNELS[name])
        yield (
            f"targets/{name}",
            short(
                lambda k=kernel: (k(TIMES), k.laplace(RATES), k.squared_norm(), k.support())
            ),
        )  # fmt: skip
        yield (
            f"targets/{name}, response",
            short(lambda k=kernel: k.response(EVEN.astype(np.float32), INPUT)),
        )
    for name in ("diagonal", "complex", "tanh", "gru", "lru"):
        model = cast(MODELS[name]())
        yield (
            f"models/{name}",
            short(lambda m=model: m.residual(EVEN.astype(np.float32), INPUT)),
        )
        if hasattr(model, "scan"):
            yield (
                f"models/{name}, scan",
                short(lambda m=model: m.scan(EVEN.astype(np.float32), INPUT)),
            )
    direct = cast(mj.DiagonalLinearRNN(AMPLITUDES, DECAYS))
    loss = cast(mj.WhiteNoiseLoss(EXPONENTIAL + BUMP))
    yield "losses/white", short(lambda: (loss(direct), jax.tree.leaves(loss.gradient(direct))))
    coloured = cast(mj.ColouredNoiseLoss(EXPONENTIAL, 1.3))
    yield "losses/coloured", short(lambda: coloured(direct))
    yield "plateau", short(lambda: measured(mj.GradientFlow(loss), direct, DROP(0.02)))
    yield "plateau, double around", lambda: measured(mj.GradientFlow(loss), direct, DROP(0.02))
    tanh = cast(MODELS["tanh"]())
    yield (
        "memory",
        short(
            lambda: mj.memory_function(
                tanh, np.arange(12, dtype=np.float32), method="residual", num_amplitudes=5,
                starts=2, refinements=2,
            )
        ),
    )  # fmt: skip
    yield "signal", short(lambda: mj.gradient_signal(tanh, [1, 5], samples=2, key=KEY).signal)


PARTS: dict[str, Callable[[], Iterator[Case]]] = {
    "targets": targets,
    "products": products,
    "maps": maps,
    "models": models,
    "losses": losses,
    "plateaus": plateaus,
    "flows": flows,
    "other losses": other_losses,
    "trainings": trainings,
    "sweeps": sweeps,
    "memory": memory,
    "stability": stability,
    "approximation": approximation,
    "diagnosis": diagnosis,
    "single": single,
}


# --- Comparison ------------------------------------------------------------------------------


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The numbers and words of a record, each with its place."""
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    else:
        return {path: value}
    found = {f"{path}.{name}": entry for name, entry in entries}
    return {k: v for place, entry in found.items() for k, v in leaves(entry, place).items()}


def number(value: Any) -> float | None:
    """The float behind its text, if it is one."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return float.fromhex(value)
    return None


def difference(one: Any, other: Any) -> float:
    """The relative difference of two values: 0 if they agree to the last bit."""
    if type(one) is type(other) and one == other:
        return 0.0
    a, b = number(one), number(other)
    if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    # A zero of the other sign is another bit, but no difference.
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 5e-324


def shown(value: Any) -> str:
    found = number(value)
    return repr(found) if found is not None else repr(value)[:100]


def compare(before: Path, after: Path, rtol: float, most: int) -> int:
    """Print how two files of results differ; 1 if they do by more than the tolerance."""
    files = [json.loads(path.read_text()) for path in (before, after)]
    if files[0]["about"] != files[1]["about"]:
        print(f"made with other software: {files[0]['about']} and {files[1]['about']}")
    old, new = (file["results"] for file in files)
    missing = [name for name in old if name not in new]
    exact, close, far = [], [], []
    for name in old:
        if name in missing:
            continue
        one, other = leaves(old[name]), leaves(new[name])
        places = {
            place: difference(one.get(place, "absent"), other.get(place, "absent"))
            for place in one | other
        }
        worst = max(places.values(), default=0.0)
        (exact if worst == 0 else close if worst <= ROUNDING else far).append(name)
        if worst > rtol:
            wrong = {place: d for place, d in places.items() if d > rtol}
            print(f"{name}: {len(wrong)} of {len(places)} values differ")
            for place, size in sorted(wrong.items(), key=lambda item: -item[1])[:most]:
                a, b = (shown(record.get(place, "absent")) for record in (one, other))
                print(f"    {place or 'value'}: {a} and {b} (relative {size:.1e})")
    for name in missing:
        print(f"{name}: missing")
    fresh = [name for name in new if name not in old]
    print(
        f"{len(old)} measurements: {len(exact)} agree to the last bit, {len(close)} more within "
        f"{ROUNDING:g}, {len(far)} differ by more, {len(missing)} are missing; {len(fresh)} are new"
    )
    failed = far or missing or (rtol < ROUNDING and close)
    return int(bool(failed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="file to write the results to")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    parser.add_argument(
        "--rtol", type=float, default=ROUNDING,
        help="relative difference from which on values are listed and the comparison fails; "
        "0 asks for the last bit",
    )  # fmt: skip
    parser.add_argument("--most", type=int, default=4, help="values listed for each measurement")
    arguments = parser.parse_args()
    if arguments.compare:
        return compare(*arguments.compare, arguments.rtol, arguments.most)
    if arguments.output is None:
        parser.error("pass --output or --compare")
    start = time.perf_counter()
    print(f"memjax of {mj.__file__}", flush=True)
    results = run([part for part in PARTS if part in arguments.part])
    about = {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__}
    about |= {"machine": platform.machine()}
    arguments.output.write_text(json.dumps({"about": about, "results": results}, indent=0))
    errors = sum(
        1 for record in results.values() if isinstance(record, dict) and "refused" in record
    )
    taken = time.perf_counter() - start
    print(f"{len(results)} measurements, {errors} of them refused, in {taken:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

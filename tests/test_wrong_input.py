"""Every public function is called with every kind of wrong value for every one of its arguments.

Each such call must be refused at once, by a `ValueError`, a `TypeError` or an `OSError` of one
line that names the argument in backticks.

A new public name fails `test_everything_public_is_here` until `CALLS` has a valid call of it. The
wrong values follow from the annotations (`wrong_values.py`); `ALLOWED` says where a value that is
wrong elsewhere is right, or is not to be judged by itself.
"""

import functools
import inspect
import typing
import warnings
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest
import xarray as xr

import memjax as mj
from wrong_values import kinds_of, SIGNED, wrong_values, ZERO

# --- Valid arguments ----------------------------------------------------------------------------


def key():
    return jax.random.key(0)


def kernel():
    return mj.ExponentialSum([1.0, 0.5], [1.0, 0.3])


def target():
    return mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(0.1)


@functools.cache
def model():
    return mj.DiagonalLinearRNN(jnp.array([1.0, 0.0]), jnp.array([1.0, 0.6]))


@functools.cache
def cell():
    return eqx.nn.GRUCell(1, 3, key=key())


def loss():
    return mj.WhiteNoiseLoss(target())


TS = np.linspace(0.0, 1.0, 4)
XS = np.array([0.0, 1.0, 0.5, 0.2])
SAMPLES = {"ts": TS, "xs": XS}
WIDE = {"rates": np.array([1.0, 0.5]), "input": np.ones(2), "bias": None, "readout": np.ones(2)}
ROWS = np.array([[1.0, 0.5]])
STRUCTURED = {
    "rates": ROWS,
    "frequencies": ROWS,
    "clock_rates": np.ones(1),
    "low_rank": ROWS,
    "state_input": ROWS,
    "state_readout": ROWS,
    "input": np.ones(1),
    "readout": np.ones(1),
}


def sweep_dataset():
    omega = 1 / np.array([8.0, 12.0, 16.0, 20.0])
    time = np.exp(1.2 / omega)[:, None]
    zero = np.zeros_like(time, int)
    return xr.Dataset(
        {"time": (("omega", "seed"), time), "result": (("omega", "seed"), zero)},
        {"omega": omega, "seed": [0], "memory": ("omega", 1 / omega)},
    )


def curves_dataset():
    dataset = sweep_dataset()
    curve = np.ones((4, 1, 3))
    return dataset.assign(
        curve_loss=(("omega", "seed", "training_time"), curve),
        training_time=[1.0, 2.0, 3.0],
        time_reached=dataset["time"],
        loss=dataset["time"],
    )


def fitted_dataset():
    return xr.Dataset({"kernel": ("time", XS), "fit": ("time", XS)}, {"time": TS})


def errors_dataset():
    return xr.Dataset({"error": ("neurons", [0.1, 0.01])}, {"neurons": [1, 2]})


def response():
    times = np.linspace(0, 3, 8)
    return mj.SampledKernel(times, np.exp(-times))


@functools.cache
def best():
    return mj.best_exponential_sum(kernel(), 1)


def rate():
    one, widths, number, yes = jnp.ones(1), jnp.array([1, 2]), jnp.array(1.0), jnp.array(True)
    two = jnp.ones(2)
    return mj.ApproximationRate(widths[:1], one, one, widths, two, two, two, number, number, yes)


def build(omega):
    start = mj.on_plateau(target(), jnp.array([0.6]))
    return mj.GradientFlow(loss()), start, mj.RelativeLossDrop(0.02)


@functools.cache
def found():
    return mj.find_plateaus(np.arange(40.0), np.ones(40))


@functools.cache
def extension():
    return mj.length_extension(model(), 4.0, samples=2, num_windows=2, key=key())


@functools.cache
def memory():
    return mj.memory_function(kernel(), TS)


KERNELS: dict[str, Callable[[], Any]] = {
    "Airy": lambda: mj.Airy(),
    "Box": lambda: mj.Box(1.0, 2.0),
    "DampedOscillation": lambda: mj.DampedOscillation(1.0, 0.5, 1.0, 2.0),
    "DelayedKernel": lambda: mj.DelayedKernel(kernel(), 1.0),
    "ExponentialSum": kernel,
    "GaussianBump": lambda: mj.GaussianBump(0.1),
    "KernelSum": target,
    "FractionalIntegration": lambda: mj.FractionalIntegration(0.3),
    "PowerLaw": lambda: mj.PowerLaw(1.0),
    "SampledKernel": lambda: mj.SampledKernel(TS, XS),
    "ScaledKernel": lambda: 2.0 * kernel(),
    "Sine": lambda: mj.Sine(),
    "StateSpaceKernel": lambda: mj.StateSpaceKernel(-np.eye(2), np.ones(2), np.ones(2)),
    "VectorKernel": lambda: mj.VectorKernel((kernel(), kernel())),
    "WindowedKernel": lambda: mj.WindowedKernel(kernel(), 1.0, 2.0),
}
OTHER_TARGETS: dict[str, Callable[[], Any]] = {
    "Attention": lambda: mj.Attention.random(np.array([1.0]), key=key()),
    "Lorenz96": lambda: mj.Lorenz96(4, 1, key=key(), spin_up=0.0),
    "Teacher": lambda: mj.Teacher(lambda ts, xs: xs),
    "Volterra": lambda: mj.Volterra(None, [(kernel(), kernel())]),
}
MAPS: dict[str, Callable[[], Any]] = {
    "Best": mj.Best,
    "Direct": mj.Direct,
    "Elementwise": lambda: mj.Elementwise(jnp.exp, jnp.log),
    "Exp": mj.Exp,
    "Inverse": mj.Inverse,
    "Softplus": mj.Softplus,
    "Tanh": mj.Tanh,
}
MODELS: dict[str, Callable[[], Any]] = {
    "ComplexDiagonalRNN": lambda: mj.ComplexDiagonalRNN([1.0], [0.5], [1.0], [2.0]),
    "DiagonalLinearRNN": model,
    "DiagonalNonlinearRNN": lambda: mj.DiagonalNonlinearRNN(**WIDE),
    "GatedRNN": lambda: mj.GatedRNN(cell(), np.ones(3)),
    "LRULayer": lambda: mj.LRULayer([1.0], [2.0], np.ones(1), np.ones(1)),
    "LinearRNN": lambda: mj.LinearRNN(-np.eye(2), np.ones(2), np.ones(2)),
    "NonlinearRNN": lambda: mj.NonlinearRNN(-np.eye(2), np.ones(2), None, np.ones(2)),
    "S4Layer": lambda: mj.S4Layer(**STRUCTURED),
    "StateSpaceLayer": lambda: mj.StateSpaceLayer(**WIDE),
    "StateSpaceStack": lambda: mj.StateSpaceStack([mj.StateSpaceLayer(**WIDE)]),
}
LOSSES: dict[str, Callable[[], Any]] = {
    "ColouredNoiseLoss": lambda: mj.ColouredNoiseLoss(kernel(), 1.0),
    "FunctionLoss": lambda: mj.FunctionLoss(lambda model: jnp.sum(model.rates)),
    "SampledPathLoss": lambda: mj.SampledPathLoss(kernel(), TS, XS[None]),
    "StationaryNoiseLoss": lambda: mj.StationaryNoiseLoss(kernel(), lambda t: jnp.exp(-t), 3.0),
    "WhiteNoiseLoss": loss,
}
FLOWS: dict[str, Callable[[], Any]] = {
    "Adam": lambda: mj.Adam(loss()),
    "GradientFlow": lambda: mj.GradientFlow(loss()),
    "HeavyBall": lambda: mj.HeavyBall(loss()),
    "Nesterov": lambda: mj.Nesterov(loss()),
    "PreconditionedFlow": lambda: mj.PreconditionedFlow(
        loss(), lx.DiagonalLinearOperator(jnp.ones(4))
    ),
}
INITIAL = {"width": 3, "inputs": None, "outputs": None, "key": key}
LAYER = {"rates": np.array([1.0, 0.5]), "inputs": None, "outputs": None, "key": key}

# A valid call of every public function: its arguments by name, or how they are made.
CALLS: dict[str, tuple[Callable[[], Callable], dict[str, Any]]] = {}


def add(name: str, function: Callable[[], Callable], /, **arguments: Any) -> None:
    CALLS[name] = (function, arguments)


def constructors(**calls: dict[str, Any]) -> None:
    for name, arguments in calls.items():
        add(name, lambda name=name: getattr(mj, name), **arguments)


def methods(makers: dict[str, Callable[[], Any]], method: str, /, **arguments: Any) -> None:
    for name, make in makers.items():
        if hasattr(getattr(mj, name), method):
            add(f"{name}.{method}", lambda make=make: getattr(make(), method), **arguments)


def subset(makers: dict[str, Callable[[], Any]], *names: str) -> dict[str, Callable[[], Any]]:
    return {name: makers[name] for name in names}


constructors(
    # Targets
    Airy={"scale": 1.0, "delay": 2.0},
    Attention={
        "queries": np.ones((1, 2, 1)),
        "keys": np.ones((1, 2, 1)),
        "values": np.ones((1, 1)),
        "positions": lambda: [kernel()],
        "scalar": True,
    },
    Box={"start": 1.0, "stop": 2.0},
    DampedOscillation={"cosine": [1.0], "sine": [0.5], "rates": [1.0], "frequencies": [2.0]},
    DelayedKernel={"kernel": kernel, "delay": 1.0},
    ExponentialSum={"amplitudes": [1.0, 0.5], "rates": [1.0, 0.3]},
    GaussianBump={"omega": 0.1, "amplitude": 1.0, "width": 1.0},
    KernelSum={"terms": lambda: (kernel(), kernel())},
    Lorenz96={
        "slow": 4,
        "fast": 2,
        "key": key,
        "forcing": 8.0,
        "coupling": 1.0,
        "time_ratio": 1.0,
        "space_ratio": 1.0,
        "output": "slow",
        "unit": 0,
        "mean": 0.0,
        "std": 1.0,
        "spin_up": 0.0,
        "rtol": 1e-3,
        "atol": 1e-3,
        "max_steps": 100,
    },  # fmt: skip
    FractionalIntegration={"order": 0.3, "scale": 1.0},
    PowerLaw={"omega": 1.0, "scale": 1.0},
    SampledKernel={"times": TS, "values": XS},
    ScaledKernel={"kernel": kernel, "factor": 2.0},
    Sine={"frequency": 1.0},
    StateSpaceKernel={"recurrent": -np.eye(2), "input": np.ones(2), "readout": np.ones(2)},
    Teacher={"function": lambda: lambda ts, xs: xs, "linear": True, "memory": "unknown"},
    VectorKernel={"components": lambda: (kernel(), kernel())},
    Volterra={"first": kernel, "second": lambda: [(kernel(), kernel())]},
    WindowedKernel={"kernel": kernel, "start": 1.0, "stop": 2.0},
    inner_product={"first": kernel, "second": kernel, "horizon": 2.0},
    # Reparametrisations
    Best={"a": 1.0, "b": 0.1},
    Direct={},
    Elementwise={"function": lambda: jnp.exp, "inverse": lambda: jnp.log},
    Exp={"gain": 1.0},
    Inverse={},
    Softplus={},
    Tanh={},
    # Models
    ComplexDiagonalRNN={
        "cosine": [1.0],
        "sine": [0.5],
        "rates": [1.0],
        "frequencies": [2.0],
        "reparametrisation": mj.Exp,
    },  # fmt: skip
    DiagonalLinearRNN={"amplitudes": [1.0], "rates": [1.0], "reparametrisation": mj.Exp},
    DiagonalNonlinearRNN={**WIDE, "activation": "tanh", "reparametrisation": mj.Exp},
    Fixed={"value": 1.0},
    GatedRNN={"cell": cell, "readout": np.ones(3), "rate": 1.0},
    LRULayer={
        "rates": [1.0],
        "frequencies": [2.0],
        "input": np.ones(1),
        "readout": np.ones(1),
        "activation": "gelu",
        "reparametrisation": mj.Exp,
    },  # fmt: skip
    LinearRNN={"recurrent": -np.eye(2), "input": np.ones(2), "readout": np.ones(2)},
    NonlinearRNN={
        "recurrent": -np.eye(2),
        "input": np.ones(2),
        "bias": np.ones(2),
        "readout": np.ones(2),
        "activation": "tanh",
        "leak": False,
    },  # fmt: skip
    S4Layer={**STRUCTURED, "activation": "gelu", "reparametrisation": mj.Exp},
    StateSpaceLayer={**WIDE, "activation": "tanh", "reparametrisation": mj.Exp},
    StateSpaceStack={"layers": lambda: [mj.StateSpaceLayer(**WIDE)], "skip": True},
    hippo_legs={"modes": 3},
    log_uniform_rates={"width": 3, "low": 0.1, "high": 1.0, "key": key},
    ring={
        "width": 3,
        "inner": 0.5,
        "outer": 0.9,
        "max_phase": 1.0,
        "step": 1.0,
        "key": key,
    },  # fmt: skip
    s4d_lin={"width": 3, "scale": 1.0},
    s4d_real={"width": 3, "scale": 1.0},
    stable_gaussian={"width": 3, "gain": 1.0, "margin": 0.1, "key": key},
    trainable={"model": model},
    uniform_rates={"width": 3, "low": 0.1, "high": 1.0, "key": key},
    # Losses
    ColouredNoiseLoss={"target": kernel, "correlation_rate": 1.0, "sigma": 1.0, "horizon": 2.0},
    FunctionLoss={"function": lambda: lambda model: jnp.sum(model.rates)},
    SampledPathLoss={
        "target": kernel,
        **SAMPLES,
        "xs": XS[None],
        "weight": np.ones(4),
        "method": "diffrax",
        "options": {"max_steps": 10},
    },  # fmt: skip
    StationaryNoiseLoss={
        "target": kernel,
        "autocovariance": lambda: lambda t: jnp.exp(-t),
        "horizon": 2.0,
        "panels": 8,
        "nodes": 8,
    },  # fmt: skip
    TemporalWeight={"exponent": 1.0},
    WhiteNoiseLoss={"target": kernel, "horizon": 2.0},
    # Flows
    Adam={"loss": loss, "epsilon": 1e-8, "averaging_times": (0.01, 1.0)},
    GradientFlow={"loss": loss},
    HeavyBall={"loss": loss, "friction": 1.0},
    Nesterov={"loss": loss, "damping": 3.0},
    OptaxTraining={"loss": loss, "optimiser": lambda: optax.adam(1e-3), "time_step": 1.0},
    PreconditionedFlow={
        "loss": loss,
        "operator": lambda: lx.DiagonalLinearOperator(jnp.ones(4)),
    },  # fmt: skip
    StochasticGradientFlow={
        "loss": loss,
        "temperature": 1.0,
        "time_step": 1.0,
        "key": key,
        "solver": diffrax.Euler,
    },  # fmt: skip
)
constructors(
    # Plateaus
    FirstOf={"exits": lambda: [mj.LossChange(0.1)]},
    LossChange={"delta": 0.1},
    ParameterDistance={"delta": 0.1},
    RelativeLossDrop={"delta": 0.1, "reference": 1.0},
    find_plateaus={
        "steps": np.arange(40.0),
        "losses": np.ones(40),
        "delta": 0.02,
        "floor": 0.0,
        "ratio": 2.0,
    },  # fmt: skip
    fit_scaling_law={
        "dataset": sweep_dataset,
        "axis": "memory",
        "axis_range": (8.0, 20.0),
        "pool": ["seed"],
        "confidence": 0.95,
    },  # fmt: skip
    measure_plateau={
        "flow": lambda: mj.GradientFlow(loss()),
        "model": model,
        "exit": lambda: mj.RelativeLossDrop(0.02),
        "solver": diffrax.Kvaerno5,
        "stepsize_controller": lambda: diffrax.PIDController(rtol=1e-6, atol=1e-9),
        "rtol": 1e-6,
        "max_time": 1e3,
        "max_steps": 16,
        "saveat": lambda: diffrax.SaveAt(ts=jnp.array([1.0, 2.0])),
        "throw": False,
        "adjoint": diffrax.DirectAdjoint,
        "resolution": 10.0,
    },  # fmt: skip
    near_plateau={"model": model, "scale": 1e-3, "key": key},
    on_plateau={
        "target": target,
        "silent_rates": np.array([0.6]),
        "copies": 1,
        "reparametrisation": mj.Exp,
    },  # fmt: skip
    plateau_asymptotics={"target": target, "silent_rate": 0.6},
    plateau_lower_bound={"omega": 0.1, "delta": 0.1, "decay_rate": 1.0, "width": 2},
    read_log={"path": "no such file", "steps": "step", "loss": "loss"},
    random_start={
        "width": 3,
        "amplitude": 0.5,
        "slowest": 0.3,
        "fastest": 3.0,
        "reparametrisation": mj.Exp,
        "key": key,
    },  # fmt: skip
    # Sweeps
    PlateauSweep={
        "memories": (8.0,),
        "widths": (2,),
        "seeds": (0,),
        "deltas": (0.02,),
        "exit": "relative-loss-drop",
        "reparametrisations": ("direct",),
        "target_amplitudes": (1.0,),
        "target_rates": (1.0,),
        "bump_amplitude": 1.0,
        "bump_width": 0.5,
        "start": "on-plateau",
        "slowest": 0.6,
        "fastest": 3.0,
        "jitter": 0.02,
        "rtol": 1e-5,
        "precision": "auto",
        "max_time": 1e300,
        "max_steps": 4096,
        "curve_start": 0.01,
        "curve_stop": 1e16,
        "curve_points": 0,
    },  # fmt: skip
    load_dataset={"path": "no such folder"},
    merge={"stores": ["no such folder"], "out": "never written", "overwrite": False},
    save_dataset={"dataset": sweep_dataset, "path": "never written", "overwrite": False},
    sweep={
        "build": lambda: build,
        "axes": {"omega": [0.1]},
        "static": (),
        "solver": diffrax.Kvaerno5,
        "stepsize_controller": lambda: diffrax.PIDController(1e-6, 1e-9),
        "rtol": 1e-5,
        "max_time": 1e3,
        "max_steps": 16,
        "curve_times": np.array([1.0, 2.0]),
        "resolution": 10.0,
        "precision": "auto",
        "lanes": 1,
        "progress": False,
        "attrs": {},
        "store": None,
        "resume": False,
        "overwrite": False,
        "block_size": None,
        "executor": None,
        "shard": None,
        "retries": 2,
        "timeout": None,
    },  # fmt: skip
    sweep_status={"path": "no such folder"},
    write_report={
        "run": lambda: curves_dataset(),
        "path": "report.html",
        "axis": "memory",
        "refresh": None,
        "overwrite": True,
    },  # fmt: skip
    doctor={"self_test": False},
    # Memory
    angle_sensitivity={
        "rates": [1.0],
        "frequencies": [1.0],
        "step": 1.0,
        "correlation_rate": 1.0,
        "normalised": False,
        "scaled": False,
    },  # fmt: skip
    as_functional={"functional": model, "method": "scan", "batched": False, "inputs": None},
    crossings={"radii": np.array([0.1, 0.2]), "errors": np.array([[1.0, 2.0], [0.5, 3.0]])},
    arfima={
        "order": 0.3,
        "times": 20,
        "ar": np.array([0.2]),
        "ma": np.array([0.1]),
        "warm_up": 3,
        "key": key,
    },
    fractional_weights={"order": 0.3, "count": 4},
    generalisation_measure={"kernel": kernel, "ts": TS, "variance": 1.0, "mean": 0.5},
    length_extension={
        "model": model,
        "length": 4.0,
        "target": None,
        "factor": 2.0,
        "step": 1.0,
        "inputs": None,
        "samples": 2,
        "scale": 1.0,
        "num_windows": 2,
        "key": key,
    },
    local_whittle={"series": np.sin(np.arange(40.0) ** 2), "bandwidth": 3},
    rescaled_range={"series": np.sin(np.arange(40.0) ** 2), "lags": 3},
    scale_readout={"model": model, "ts": TS, "variance": 1.0, "mean": 0.5},
    diagnose={
        "model": model,
        "data_or_lag": 3.0,
        "step": 1.0,
        "inputs": None,
        "samples": 2,
        "remedies": False,
        "length": None,
        "key": key,
    },  # fmt: skip
    estimate_lag={
        "xs": np.sin(np.arange(40.0) ** 2),
        "ys": np.cos(np.arange(40.0) ** 2),
        "step": 1.0,
        "max_lag": 3,
        "level": 0.9,
    },  # fmt: skip
    functional_distance={
        "target": kernel,
        "model": kernel,
        "norm": "L1",
        "horizon": 2.0,
    },  # fmt: skip
    functional_norm={"kernel": kernel, "norm": "L1", "horizon": 2.0},
    gradient_signal={
        "model": model,
        "steps": [1, 2],
        "step": 1.0,
        "inputs": None,
        "samples": 2,
        "scale": 1.0,
        "key": key,
    },  # fmt: skip
    hessian_spectrum={
        "loss": loss,
        "model": model,
        "count": 1,
        "displacement": None,
        "which": "largest",
        "method": "dense",
        "tol": 1e-8,
        "max_steps": 10,
    },  # fmt: skip
    hidden_variance={
        "rates": [1.0],
        "frequencies": [1.0],
        "step": 1.0,
        "correlation_rate": 1.0,
        "normalised": False,
    },  # fmt: skip
    memory_dataset={"memories": lambda: {"a": memory()}},
    memory_decay={
        "memory": lambda: (np.arange(20.0), np.exp(-np.arange(20.0))),
        "tail": 0.5,
        "floor": 1e-3,
    },
    memory_function={
        "functional": kernel,
        "ts": TS,
        "kind": "heaviside",
        "normalisation": "relative",
        "method": None,
        "inputs": None,
        "batched": False,
        "search": lambda: mj.WorstCase(num_amplitudes=3, starts=1, refinements=0),
        "warm_up": 1.0,
        "pulse": 1.0,
        "solver": diffrax.Tsit5,
        "rtol": 1e-3,
        "atol": 1e-3,
        "max_steps": 16,
    },  # fmt: skip
    WorstCase={
        "amplitudes": (1e-3, 1e3),
        "num_amplitudes": 3,
        "directions": 0,
        "starts": 1,
        "refinements": 0,
    },  # fmt: skip
    multiplier_sensitivity={"multipliers": np.array([0.5]), "correlation": 0.5, "normalised": True},
    output_sensitivity={"model": model, "ts": TS, "xs": XS[None], "burn_in": 0, "chunk": 1},
    perturbation_error={
        "model": model,
        "target": kernel,
        "radii": np.array([0.1]),
        "ball": "max",
        "restarts": 1,
        "steps": 1,
        "draws": 1,
        "horizon": 2.0,
        "key": key,
    },  # fmt: skip
    rate_sensitivity={
        "rates": [1.0],
        "frequencies": [1.0],
        "step": 1.0,
        "correlation_rate": 1.0,
        "normalised": False,
        "reparametrisation": mj.Exp,
    },  # fmt: skip
    stability_criterion={
        "reparametrisation": mj.Exp,
        "radii": np.array([0.1]),
        "rates": (0.1, 1.0),
    },  # fmt: skip
    stability_radius={
        "widths": np.array([2, 4]),
        "radii": np.array([0.1, 0.2]),
        "errors": np.array([[1.0, 2.0], [0.5, 3.0]]),
        "level": 1.0,
    },  # fmt: skip
    # Approximation
    approximate={
        "kernel": response,
        "error": 0.1,
        "neurons": None,
        "relative": False,
        "max_neurons": 2,
        "norm": "L2",
        "min_rate": 0.0,
        "complex": False,
        "horizon": 2.0,
        "samples": "points",
        "weights": np.ones(8),
        "absolute_weights": False,
        "offset": False,
        "confidence": 0.9,
        "progress": False,
    },  # fmt: skip
    approximation_dataset={
        "kernel": kernel,
        "best": best,
        "times": TS,
    },  # fmt: skip
    approximation_lower_bounds={
        "kernel": response,
        "norm": "L2",
        "horizon": 2.0,
        "samples": "points",
        "weights": np.ones(8),
        "offset": False,
    },  # fmt: skip
    approximation_rate={"kernel": kernel, "alphas": (1,), "widths": (1, 2), "complex": False},
    best_exponential_sum={
        "kernel": response,
        "width": 1,
        "norm": "L2",
        "min_rate": 0.0,
        "complex": False,
        "horizon": 2.0,
        "start": None,
        "samples": "points",
        "weights": np.ones(8),
        "absolute_weights": False,
        "offset": False,
        "progress": False,
    },  # fmt: skip
    neurons_needed={
        "kernel": response,
        "error": 0.1,
        "norm": "L2",
        "min_rate": 0.0,
        "complex": False,
        "horizon": 2.0,
        "relative": False,
        "max_neurons": 2,
        "samples": "points",
        "weights": np.ones(8),
        "absolute_weights": False,
        "offset": False,
        "also": (1,),
        "progress": False,
    },  # fmt: skip
    # Dynamics
    fixed_points={
        "model": cell,
        "x": 0.5,
        "key": key,
        "starts": 2,
        "scale": 1.0,
        "hidden": np.zeros(3),
        "separation": 1e-6,
        "solver": lambda: optx.Newton(rtol=1e-6, atol=1e-6),
        "max_steps": 4,
    },  # fmt: skip
    jacobians={
        "model": cell,
        "xs": XS,
        "step": 1.0,
        "hidden": np.zeros(3),
        "lag": 2,
        "solver": diffrax.Tsit5,
        "rtol": 1e-3,
        "atol": 1e-3,
        "max_steps": 16,
    },  # fmt: skip
    lyapunov_spectrum={
        "model": cell,
        "x": 0.5,
        "key": key,
        "xs": None,
        "hidden": np.zeros(3),
        "num_exponents": 3,
        "num_intervals": 3,
        "transient": 0,
        "interval": 1.0,
        "num_batches": 3,
        "solver": diffrax.Tsit5,
        "rtol": 1e-3,
        "atol": 1e-3,
        "max_steps": 16,
    },  # fmt: skip
    # Solvers
    RadauIIA5={
        "root_finder": lambda: mj.RadauNewton(rtol=1e-6, atol=1e-9),
        "root_find_max_steps": 10,
        "linear_solver": lambda: lx.AutoLinearSolver(None),
        "jacobian": None,
    },  # fmt: skip
    RadauNewton={
        "rtol": 1e-6,
        "atol": 1e-9,
        "norm": lambda: jnp.linalg.norm,
        "kappa": 1e-2,
        "full": False,
    },  # fmt: skip
    Rodas5P={"linear_solver": lambda: lx.AutoLinearSolver(None), "jacobian": None},
    # Reproductions
    reproduce={"name": "plateau-width", "progress": False},
)
methods(KERNELS, "__call__", t=TS)
methods(KERNELS, "laplace", s=1.0, horizon=2.0)
methods(KERNELS, "squared_norm", horizon=2.0)
methods(KERNELS, "heaviside_response", t=TS)
methods(KERNELS, "ramp_response", t=TS)
methods(KERNELS, "response", **SAMPLES)
CALLS["VectorKernel.response"][1]["xs"] = np.stack([XS, XS], 1)
methods(OTHER_TARGETS, "response", **SAMPLES)
methods(subset(OTHER_TARGETS, "Lorenz96"), "states", **SAMPLES)
methods(subset(OTHER_TARGETS, "Lorenz96"), "normalised", **SAMPLES)
add("Attention.random", lambda: mj.Attention.random, rates=np.array([1.0]), size=2, key=key)
add(
    "SampledKernel.from_csv",
    lambda: mj.SampledKernel.from_csv,
    path="no such file",
    time_column=0,
    value_column=1,
    origin=0.0,
)
methods(MAPS, "__call__", free=np.array([0.5]))
methods(MAPS, "inverse", rates=np.array([0.5]))
methods(MAPS, "slope", free=np.array([0.5]))
methods(MAPS, "gradient_over_weight_scale", free=np.array([0.5]))
methods(MAPS, "multipliers", free=np.array([0.5]), step=1.0, rule="exact")
methods(MAPS, "perturbation_growth", radii=np.array([0.1]), rates=(0.1, 1.0))
methods(
    MODELS,
    "__call__",
    **SAMPLES,
    interpolation="linear",
    solver=diffrax.Kvaerno5,
    stepsize_controller=lambda: diffrax.PIDController(1e-3, 1e-3),
    max_steps=100,
    adjoint=diffrax.DirectAdjoint,
)
methods(MODELS, "residual", **SAMPLES)
methods(MODELS, "scan", **SAMPLES, interpolation="linear")
for name in ("ComplexDiagonalRNN", "LRULayer"):
    frequencies = {"rates": np.array([1.0, 0.5]), "frequencies": np.array([1.0, 2.0])}
    add(f"{name}.init", lambda name=name: getattr(mj, name).init, **{**LAYER, **frequencies})
for name in ("DiagonalLinearRNN", "DiagonalNonlinearRNN", "StateSpaceLayer"):
    add(f"{name}.init", lambda name=name: getattr(mj, name).init, **LAYER)
for name in ("DiagonalNonlinearRNN", "StateSpaceLayer", "LRULayer"):
    CALLS[f"{name}.init"][1]["activation"] = "tanh"
for name in ("ComplexDiagonalRNN", "DiagonalLinearRNN"):
    del CALLS[f"{name}.init"][1]["inputs"], CALLS[f"{name}.init"][1]["outputs"]
for name in ("ComplexDiagonalRNN", "DiagonalLinearRNN", *("DiagonalNonlinearRNN", "LRULayer")):
    CALLS[f"{name}.init"][1]["reparametrisation"] = mj.Exp
CALLS["StateSpaceLayer.init"][1]["reparametrisation"] = mj.Exp
add("LinearRNN.init", lambda: mj.LinearRNN.init, **INITIAL, gain=1.0, margin=0.1)
add(
    "NonlinearRNN.init",
    lambda: mj.NonlinearRNN.init,
    **INITIAL,
    gain=1.0,
    margin=0.1,
    activation="tanh",
    leak=False,
)
add(
    "GatedRNN.init",
    lambda: mj.GatedRNN.init,
    **{**INITIAL, "inputs": 1},
    cell="gru",
    rate=1.0,
)
DISCRETE = {"step": 1.0, "discretisation": "bilinear"}
methods(MODELS, "discrete_kernel", times=4, **DISCRETE)
methods(MODELS, "convolve", xs=XS, **DISCRETE)
add(
    "S4Layer.init",
    lambda: mj.S4Layer.init,
    channels=2,
    modes=3,
    inputs=None,
    outputs=None,
    diagonal=False,
    slowest=0.1,
    fastest=1.0,
    activation="gelu",
    reparametrisation=mj.Exp,
    key=key,
)
methods(LOSSES, "__call__", model=model)
methods(LOSSES, "gradient", model=model, displacement=None)
methods(LOSSES, "gradient_noise", model=model, displacement=None)
methods(
    LOSSES,
    "hessian_vector_product",
    model=model,
    vector=lambda: eqx.filter(model(), mj.trainable(model())),
    displacement=None,
)
methods(LOSSES, "value_noise", model=model)
NOISE = {"target": kernel, "ts": TS, "key": key, "batch": 2, "inputs": None}
add("SampledPathLoss.white_noise", lambda: mj.SampledPathLoss.white_noise, **NOISE)
add(
    "SampledPathLoss.ornstein_uhlenbeck",
    lambda: mj.SampledPathLoss.ornstein_uhlenbeck,
    **NOISE,
    correlation_rate=1.0,
    sigma=1.0,
)
methods({"TemporalWeight": lambda: mj.TemporalWeight(1.0)}, "__call__", ts=TS)
methods(FLOWS, "start", model=model)
methods(FLOWS, "displaced", model=model)
TRAININGS: dict[str, Callable[[], Any]] = {
    "OptaxTraining": lambda: mj.OptaxTraining(loss(), optax.adam(1e-3)),
    "StochasticGradientFlow": lambda: mj.StochasticGradientFlow(loss(), 1.0, 1.0, key=key()),
}
methods(TRAININGS, "start", model=model)
methods({"MemoryFunction": memory}, "horizon", level=0.5)
methods({"SampledFunctional": lambda: mj.as_functional(model())}, "__call__", **SAMPLES)
methods({"SampledFunctional": lambda: mj.as_functional(model())}, "check_clock", ts=TS)
methods(
    {"FitStatistics": lambda: mj.best_exponential_sum(response(), 1).statistics},
    "intervals",
    confidence=0.9,
)
add(
    "ApproximationRate.theorem",
    lambda: rate().theorem,
    widths=np.array([1, 2]),
)
SPECIFICATION: dict[str, Callable[[], Any]] = {"PlateauSweep": mj.PlateauSweep}
CELL = {"omega": 0.1, "width": 2, "seed": 0, "reparametrisation": "direct"}
add("PlateauSweep.from_dataset", lambda: mj.PlateauSweep.from_dataset, dataset=3)
add("PlateauSweep.from_toml", lambda: mj.PlateauSweep.from_toml, path="no such file")
methods(SPECIFICATION, "target", omega=0.1)
methods(SPECIFICATION, "model", **CELL)
methods(SPECIFICATION, "build", **CELL, delta=0.02)
methods(SPECIFICATION, "run", progress=False)


def figure(name: str, /, **arguments: Any) -> None:
    add(f"viz.{name}", lambda: getattr(mj.viz, name), **arguments, ax=None)


def gridded(variable: str, **axes: list[Any]) -> Callable[[], xr.Dataset]:
    """A dataset of ones."""
    values = (tuple(axes), np.ones([len(values) for values in axes.values()]))
    return lambda: xr.Dataset({variable: values}, axes)


RADII: dict[str, list[Any]] = {"radius": [0.1, 1.0]}
figure("plot_neurons_needed", dataset=gridded("neurons", omega=[0.5, 1.0], error=[0.1, 1.0]))
figure("plot_perturbation_errors", dataset=gridded("error", width=[2, 4], **RADII))
figure("plot_stability_criterion", dataset=gridded("growth", reparametrisation=["a", "b"], **RADII))


def without_progress(run: Callable) -> Callable:
    def quiet(**options):
        return run(False, **options)

    signature = inspect.signature(run)
    quiet.__signature__ = signature.replace(parameters=[*signature.parameters.values()][1:])
    quiet.__annotations__ = run.__annotations__
    return quiet


for name, reproduction in mj.REPRODUCTIONS.items():
    # `progress` is checked by `reproduce` itself.
    options = [*inspect.signature(reproduction.run).parameters.values()][1:]
    add(
        f"reproduce.{name}",
        lambda reproduction=reproduction: without_progress(reproduction.run),
        **{option.name: option.default for option in options},
    )
    add(f"plot.{name}", lambda reproduction=reproduction: reproduction.plot, dataset=None)
figure("plot_approximation", dataset=fitted_dataset, log_time=False)
figure("plot_approximation_errors", errors=errors_dataset, log_neurons=False)
figure("plot_loss_curves", dataset=curves_dataset, axis="memory", memories=2, seed=0)
figure("plot_length_extension", found=extension)
figure("plot_log", found=found)
figure("plot_memory_functions", memories=lambda: {"a": memory()})
figure(
    "plot_plateau",
    plateau=lambda: mj.measure_plateau(
        mj.GradientFlow(loss()),
        model(),
        mj.RelativeLossDrop(0.02),
        saveat=diffrax.SaveAt(ts=jnp.arange(1.0, 9.0)),
    ),
)
figure("plot_plateau_law", dataset=curves_dataset, fit=None, axis="memory", hue=None)

# --- What is not judged -------------------------------------------------------------------------

# Made by memjax; those who make them by hand know what they do.
RESULTS = {
    "Approximation", "ApproximationRate", "BestExponentialSum", "Diagnosis", "DisplacedFlow",
    "FitStatistics", "FixedPoints", "FoundPlateau", "FoundPlateaus", "GradientSignal",
    "HessianSpectrum", "HippoLegS", "Installation", "JacobianSpectra", "LagEstimate",
    "LengthExtension", "LocalWhittle", "LossCurve", "RescaledRange",
    "LyapunovSpectrum", "MemoryDecay", "MemoryFunction",
    "NeuronsNeeded", "PerturbationErrors", "Plateau", "RESULTS", "Remedy", "Reproduction",
    "SampledFunctional", "StabilityCriterion", "StabilityRadius", "SweepStatus", "TrainingState",
    "Verdict",
}  # fmt: skip

# Called by Diffrax, or by losses and flows in their innermost loops, with what memjax made.
INNER = {
    "auxiliary", "breakpoints", "coasting", "contr", "displaced_pair", "displacement", "event",
    "initial_hidden", "kernel_displacement", "laplace_derivatives", "margin", "prod", "rates",
    "readout", "resistance", "support", "transform_pairs", "update", "vector_field", "vf",
}  # fmt: skip
INNER_CLASSES = {"DisplacedFlow", "RESULTS", "RadauIIA5", "RadauNewton", "Rodas5P"}

# The kinds of arguments whose annotation allows anything.
KINDS = {
    "Fixed.value": {"anything"},
    "OptaxTraining.optimiser": {"instance"},
    "diagnose.model": {"instance", "function"},
    "diagnose.data_or_lag": {"number"},
    "fixed_points.model": {"instance", "function"},
    "fixed_points.starts": {"count"},
    "fixed_points.hidden": {"none", "instance"},
    "gradient_signal.model": {"instance", "function"},
    "gradient_signal.steps": {"list"},
    "hessian_spectrum.model": {"instance"},
    "hessian_spectrum.displacement": {"none", "instance"},
    "jacobians.model": {"instance", "function"},
    "jacobians.hidden": {"none", "instance"},
    "lyapunov_spectrum.model": {"instance", "function"},
    "lyapunov_spectrum.hidden": {"none", "instance"},
    "output_sensitivity.model": {"instance", "function"},
    "perturbation_error.model": {"instance"},
    "trainable.model": {"anything"},
    "FunctionLoss.__call__.model": {"anything"},
    "FunctionLoss.gradient.model": {"anything"},
    "FunctionLoss.gradient_noise.model": {"anything"},
    "FunctionLoss.value_noise.model": {"anything"},
    "gradient.displacement": {"none", "instance"},
    "gradient_noise.displacement": {"none", "instance"},
    "hessian_vector_product.displacement": {"none", "instance"},
    "multiplier_sensitivity.multipliers": {"array"},
    "RadauNewton.rtol": {"number"},
    "RadauNewton.atol": {"array"},
}

# Values that are right for an argument though its kind does not show it, by the name of the
# argument, of the method and argument, or of the call and argument.
ALLOWED: dict[str, set[str] | frozenset[str]] = {
    "amplitude": SIGNED,
    "amplitudes": SIGNED,
    "change": SIGNED,
    "cosine": SIGNED,
    "coupling": SIGNED,
    "delay": ZERO,
    "factor": SIGNED,
    "floor": SIGNED,
    "find_plateaus.losses": {"with NaN", "with infinity"},
    "forcing": SIGNED,
    "free": SIGNED | {"with NaN", "with infinity", "NaN", "infinity"},
    "frequencies": SIGNED,
    "friction": ZERO,
    "horizon": ZERO | {"infinity", "None"},
    "input": SIGNED,
    "keys": SIGNED,
    "mean": SIGNED,
    "queries": SIGNED,
    "readout": SIGNED,
    "sine": SIGNED,
    "spin_up": ZERO,
    "start": ZERO,
    "temperature": ZERO,
    "t": SIGNED | {"with NaN", "with infinity", "NaN", "infinity"},
    "s": ZERO,
    "values": SIGNED,
    "xs": SIGNED,
    "Direct.inverse.rates": SIGNED,
    "GaussianBump.omega": {"infinity"},
    "LRULayer.input": {"made complex"},
    "LRULayer.readout": {"made complex"},
    "NonlinearRNN.recurrent": SIGNED,
    "NonlinearRNN.bias": SIGNED,
    "S4Layer.low_rank": SIGNED | {"made complex"},
    "S4Layer.state_input": SIGNED | {"made complex"},
    "S4Layer.state_readout": SIGNED | {"made complex"},
    "StateSpaceLayer.bias": SIGNED,
    "DiagonalNonlinearRNN.bias": SIGNED,
    "fit_scaling_law.axis_range": {"numbers"},
    "fit_scaling_law.pool": {"empty list"},
    "crossings.errors": {"many axes", "with NaN", "with infinity"},
    "arfima.order": ZERO,
    "arfima.ar": SIGNED | {"empty list"},
    "arfima.ma": SIGNED | {"empty list"},
    "arfima.warm_up": ZERO - {"0.0"},
    "estimate_lag.ys": SIGNED,
    "fractional_weights.order": SIGNED,
    "local_whittle.series": SIGNED,
    "rescaled_range.series": SIGNED,
    "rescaled_range.lags": ZERO - {"0.0"},
    "gradient_signal.steps": {"numbers"},
    "lyapunov_spectrum.transient": ZERO - {"0.0"},
    "memory_decay.tail": ZERO | {"numbers"},
    "memory_decay.floor": ZERO,
    "WorstCase.directions": {"0"},
    "WorstCase.refinements": {"0"},
    "multiplier_sensitivity.multipliers": SIGNED | {"empty list", "many axes"},
    "multiplier_sensitivity.correlation": ZERO,
    "near_plateau.scale": ZERO,
    "output_sensitivity.burn_in": {"0"},
    "plot_loss_curves.seed": {"0", "0.0"},
    "PlateauSweep.bump_amplitude": SIGNED,
    "approximate.min_rate": ZERO,
    "approximation_rate.alphas": {"numbers"},
    "best_exponential_sum.min_rate": ZERO,
    "measure_plateau.max_time": {"infinity"},
    "from_csv.time_column": ZERO,
    "neurons_needed.also": {"empty list"},
    "neurons_needed.min_rate": ZERO,
    "RadauNewton.atol": ZERO | {"many axes", "empty list"},
    "RadauNewton.rtol": ZERO,
    "save_dataset.dataset": {"dataset"},
    "origin": SIGNED,
    "sweep.max_time": {"infinity"},
    "sweep.attrs": {"dataset"},
    "sweep.retries": {"0"},
    "sweep.static": {"empty list"},
    "PlateauSweep.curve_points": ZERO,
    "PlateauSweep.jitter": ZERO,
    "PlateauSweep.target.omega": {"infinity"},
    "PlateauSweep.model.omega": {"infinity"},
    "reproduce.l21-approximation.seeds": {"empty list"},
    "stability_radius.errors": {"many axes", "with NaN", "with infinity"},
    "on_plateau.silent_rates": {"empty list"},
    "random_start.amplitude": ZERO,
    "Lorenz96.unit": {"0"},
    "TemporalWeight.exponent": ZERO,
}


# Arguments whose parts have names of their own in messages.
PARTS = {"diagnose.data_or_lag": ("xs", "ys")}


def allowed(call: str, argument: str) -> frozenset[str]:
    method = call.rpartition(".")[2]
    names = (argument, f"{method}.{argument}", f"{call}.{argument}")
    return frozenset().union(*(ALLOWED.get(name, ()) for name in names))


def kinds(call: str, parameter: inspect.Parameter) -> set[str]:
    method = call.rpartition(".")[2]
    for name in (f"{call}.{parameter.name}", f"{method}.{parameter.name}"):
        if name in KINDS:
            return KINDS[name]
    return set(kinds_of(parameter.annotation))


# --- The walk -----------------------------------------------------------------------------------


def parameters(function: Callable) -> list[inspect.Parameter]:
    """The named parameters of a call, with annotations that are types."""
    own = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(own, include_extras=True)
    fixed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        parameter.replace(annotation=hints.get(parameter.name, parameter.annotation))
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind not in fixed or parameter.name == "exits"
    ]


def complaint(function: Callable, arguments: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """What is wrong with the way in which a call refuses the argument of these names."""
    positional = []
    if "exits" in arguments:  # in any number, by position
        exits = arguments.pop("exits")
        whole = isinstance(exits, list) and exits and isinstance(exits[0], mj.AbstractExit)
        positional = exits if whole else [exits]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function(*positional, **arguments)
    except (ValueError, TypeError, OSError) as error:
        message = str(error)
        if "\n" in message or len(message) > 300:
            return f"{type(error).__name__} at length: {message[:200]!r}"
        if not any(f"`{name}`" in message for name in names):
            return f"{type(error).__name__} that does not name it: {message}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return "no error"


def walk(call: str) -> tuple[int, list[str]]:
    """The number of wrong values that were tried, and what came of those not refused."""
    make, arguments = CALLS[call]
    function, number, complaints = make(), 0, []
    fresh = lambda: {
        name: value() if callable(value) else value for name, value in arguments.items()
    }
    for parameter in parameters(function):
        name = parameter.name
        names = (name, *PARTS.get(f"{call}.{name}", ()))
        valid = fresh()[name]
        wrong = wrong_values(kinds(call, parameter), valid, allowed(call, name))
        for label, value in wrong:
            number += 1
            found = complaint(function, {**fresh(), name: value}, names)
            if found is not None:
                complaints.append(f"{call}({name}={label}): {found}")
    return number, complaints


@pytest.mark.parametrize("call", CALLS)
def test_wrong_values_are_refused(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for what is written if it is not refused
    number, complaints = walk(call)
    assert not complaints, f"{len(complaints)} of {number}:\n" + "\n".join(complaints)


def public_calls() -> set[str]:
    """All that users call: functions, constructors, and methods, without those that never are."""
    names = set()
    for name in dir(mj):
        value = getattr(mj, name)
        if name.startswith("_") or not callable(value):
            continue
        if not inspect.isclass(value):
            names.add(name)
            continue
        if inspect.isabstract(value) or name.startswith("Abstract"):
            continue
        if name not in RESULTS:
            names.add(name)
        if name in INNER_CLASSES:
            continue
        for method in dir(value):
            kind = inspect.getattr_static(value, method)
            if method.startswith("_") and method != "__call__" or method in INNER:
                continue
            if inspect.isfunction(kind) or isinstance(kind, classmethod):
                bound = getattr(value, method)
                if bound.__module__.startswith("memjax") and len(
                    inspect.signature(bound).parameters
                ) > (not isinstance(kind, classmethod)):
                    names.add(f"{name}.{method}")
    names |= {f"viz.{name}" for name in dir(mj.viz) if name.startswith("plot_")}
    return names | {f"{do}.{name}" for do in ("reproduce", "plot") for name in mj.REPRODUCTIONS}


def test_everything_public_is_here():
    assert public_calls() - set(CALLS) == set()
    assert set(CALLS) - public_calls() == set()


@pytest.mark.parametrize("call", CALLS)
def test_every_argument_is_here(call):
    make, arguments = CALLS[call]
    assert {parameter.name for parameter in parameters(make())} == set(arguments)

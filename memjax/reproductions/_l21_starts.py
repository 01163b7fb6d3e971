"""Training of six neurons with complex rates by Adam, from a best sum and from other starts.

The other starts are the best sum with all weights changed, a start on the plateau, and random ones.
"""

from collections.abc import Sequence

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._lazy import tqdm, xr
from ..approximation import best_exponential_sum
from ..flows import OptaxTraining
from ..losses import FunctionLoss
from ..models import AbstractModel, ComplexDiagonalRNN, DiagonalLinearRNN
from ..numerics import gauss_rule
from ..plateaus import measure_plateau, RelativeLossDrop
from ..targets import AbstractKernel, ExponentialSum, GaussianBump

# The best sum, the same with all weights changed, the start on the plateau, random ones.
BEST, NEAR, PLATEAU, RANDOM = "best sum", "near the best sum", "plateau", "random"
CHANGE = 0.1
NEURONS, LEARNING_RATE, DELAY, _POINTS = 6, 1e-2, 10.0, 61


def exponential_and_bump(delay: float) -> AbstractKernel:
    """A memory that decays with one that comes back at a delay."""
    return ExponentialSum(np.ones(1), np.ones(1)) + GaussianBump(1 / delay)


def kernel_distance(target: AbstractKernel) -> FunctionLoss:
    """The loss of white noise by quadrature: for models of complex rates it is many times as fast
    as that by Lyapunov equations, and here the same to nine digits."""
    edges = np.concatenate([np.linspace(0, 40, 41), [50, 70, 100, 150, 250, 400]])
    x, w = gauss_rule(8)
    half = np.diff(edges)[:, None] / 2
    times = jnp.asarray((edges[:-1, None] + half * (1 + x)).ravel())
    weights, values = jnp.asarray((half * w).ravel()), target(times)

    def loss(model: AbstractModel):
        assert isinstance(model, ComplexDiagonalRNN)
        phase = times[:, None] * model.frequencies
        waves = model.cosine * jnp.cos(phase) + model.sine * jnp.sin(phase)
        kernel = jnp.sum(jnp.exp(-times[:, None] * model.rates) * waves, axis=1)
        return weights @ (kernel - values) ** 2

    return FunctionLoss(loss)


def starts(best: ComplexDiagonalRNN, seeds: Sequence[int]) -> dict[str, list[ComplexDiagonalRNN]]:
    """The starts of training, of each kind."""
    width = best.rates.shape[0]
    near, random = [], []
    for seed in seeds:
        keys = jax.random.split(jax.random.key(seed), 4)
        normal = [jax.random.normal(key, (width,), best.rates.dtype) for key in keys]
        # All weights of the best sum are changed by a tenth, the signs at random.
        weights = (best.cosine, best.sine, best.rates, best.frequencies)
        a, b, w, nu = (x * (1 + CHANGE * jnp.sign(z)) for x, z in zip(weights, normal, strict=True))
        near.append(ComplexDiagonalRNN(a, b, w, nu))
        first, second = (jax.random.uniform(key, (width,)) for key in keys[2:])
        random.append(
            ComplexDiagonalRNN(0.5 * normal[0], 0.5 * normal[1], 0.3 * 10**first, 2 * second)
        )
    silent = width - 1
    plateau = ComplexDiagonalRNN(
        jnp.concatenate([jnp.ones(1), jnp.zeros(silent)]),
        jnp.zeros(width),
        jnp.concatenate([jnp.ones(1), jnp.geomspace(0.6, 1.5, silent)]),
        jnp.concatenate([jnp.zeros(1), jnp.linspace(0.3, 1.2, silent)]),
    )
    return {BEST: [best], NEAR: near, PLATEAU: [plateau], RANDOM: random}


def train_from_starts(seeds: Sequence[int], updates: int, bar: "tqdm.tqdm") -> "xr.Dataset":
    """Loss curves over `start` and `training_time`, and the losses of best sums."""
    target = exponential_and_bump(DELAY)
    best = best_exponential_sum(target, NEURONS, complex=True)
    real = best_exponential_sum(target, NEURONS)
    assert isinstance(best.model, ComplexDiagonalRNN) and isinstance(real.model, DiagonalLinearRNN)
    training = OptaxTraining(kernel_distance(target), optax.adam(LEARNING_RATE))
    times = np.unique(np.round(np.geomspace(1, updates, _POINTS)))
    rows = [(kind, i, s) for kind, g in starts(best.model, seeds).items() for i, s in enumerate(g)]
    if not seeds:
        rows = rows[:1]
    curves, first, last, codes = [], [], [], []
    for _, _, start in rows:
        found = measure_plateau(
            training,
            start,
            # To the end: a loss of nothing is never reached.
            RelativeLossDrop(1 - 1e-12),
            max_time=float(updates),
            max_steps=updates + 1,
            saveat=diffrax.SaveAt(ts=jnp.asarray(times)),
            throw=False,
        )
        assert found.curve is not None
        curves.append(np.asarray(found.curve.loss))
        first.append(float(found.initial_loss))
        last.append(float(found.loss))
        codes.append(int(found.result_code))
        bar.update()
    return xr.Dataset(
        {
            "curve_loss": (("start", "training_time"), np.array(curves)),
            "initial_loss": ("start", first),
            "loss": ("start", last, {"long_name": "loss at the end"}),
            "result": ("start", np.array(codes, np.int8)),
            "best_loss": ((), float(best.error) ** 2),
            "target_norm": ((), float(target.squared_norm())),
            "real_loss": ((), float(real.error) ** 2, {"long_name": "best loss, real rates"}),
            "real_amplitude": ((), float(jnp.max(jnp.abs(real.model.amplitudes)))),
        },
        {
            "start": [f"{kind} {index}" for kind, index, _ in rows],
            "kind": ("start", [kind for kind, _, _ in rows]),
            "training_time": ("training_time", times, {"units": "updates"}),
        },
    )

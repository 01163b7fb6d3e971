import math
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..losses import coordinates, weights
from ..models import AbstractModel, GatedRNN, scans_every_step
from ._functional import named_functional


class Runner(eqx.Module):
    """A sequence model with a fixed step, from samples to outputs."""

    model: Any
    step: float = eqx.field(static=True)
    inputs: int | None = eqx.field(static=True)
    method: Any = eqx.field(static=True)

    @classmethod
    def make(cls, model: Any, step: float, inputs: int | None, key: PRNGKeyArray) -> "Runner":
        functional = named_functional("model", model, inputs=inputs)
        method = functional.method
        if method == "cell":
            width = model.hidden_size
            dtype = coordinates(weights(model))[0].dtype
            readout = jax.random.normal(key, (width,), dtype) / math.sqrt(width)
            model, method = GatedRNN(model, readout, 1 / step), "residual"
        elif isinstance(model, AbstractModel):
            method = "scan" if scans_every_step(model) else "residual"
        return cls(model, step, functional.inputs, method)

    def __call__(self, xs: Array) -> Array:
        # Steps are exact in NumPy's float64, and known to be even.
        ts = self.step * np.arange(xs.shape[0])
        if self.method in ("scan", "residual"):
            return getattr(self.model, self.method)(ts, xs)
        return named_functional("model", self.model, inputs=self.inputs)(ts, xs)

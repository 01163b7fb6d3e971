import dataclasses
from typing import Any

import diffrax
import equinox as eqx
from jaxtyping import Array, Float


class Options(eqx.Module):
    """What all cells have in common, passed on to `measure_plateau`."""

    solver: diffrax.AbstractSolver | None
    stepsize_controller: diffrax.AbstractStepSizeController | None
    rtol: Float[Array, ""]
    max_time: Float[Array, ""]
    max_steps: int
    resolution: Float[Array, ""]

    @classmethod
    def names(cls) -> list[str]:
        """Their names, which are attributes of the dataset."""
        return [field.name for field in dataclasses.fields(cls)]

    def attributes(self) -> dict[str, Any]:
        """The options as a dataset keeps them."""
        own = lambda value: "default" if value is None else repr(value)
        return {
            "solver": own(self.solver),
            "stepsize_controller": own(self.stepsize_controller),
            "rtol": float(self.rtol),
            "max_time": float(self.max_time),
            "max_steps": int(self.max_steps),
            "resolution": float(self.resolution),
        }

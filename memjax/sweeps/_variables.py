"""What every cell of a sweep holds, and the names that a dataset keeps for itself."""

from typing import Any

import numpy as np

from ..plateaus import (
    OUTCOMES,
)

# Type and attributes of the variables.
VARIABLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "time": (float, {"long_name": "hitting time", "units": "training time"}),
    "result": (
        np.int8,
        {
            "long_name": "how the measurement ended",
            "flag_values": [*range(len(OUTCOMES)), -1],
            "flag_meanings": " ".join((*OUTCOMES, "unfinished")),
        },
    ),
    "time_reached": (
        float,
        {"long_name": "training time integrated to", "units": "training time"},
    ),
    "initial_loss": (float, {"long_name": "loss at the start", "units": "loss"}),
    "loss": (float, {"long_name": "loss at the end", "units": "loss"}),
    "distance": (float, {"long_name": "distance of the weights from their start"}),
    "rounding": (float, {"long_name": "estimated relative error of time due to rounding"}),
    "curvature": (float, {"long_name": "smallest scaled curvature of the loss at the end"}),
    "precision": (
        np.int8,
        {
            "long_name": "arithmetic of the integration",
            "flag_values": [0, 1],
            "flag_meanings": "float64 double-double",
        },
    ),
    "num_steps": (np.int32, {"long_name": "attempted steps"}),
    "num_rejected_steps": (np.int32, {"long_name": "rejected steps"}),
}


# A training curve has a dimension and a variable of its own, and an axis `omega` a coordinate.
TIMES, CURVE, MEMORY = "training_time", "curve_loss", "memory"
RESERVED = (*VARIABLES, CURVE, TIMES, MEMORY)
# The result of a cell that was not reached.
UNFINISHED = -1

"""What the public methods of a kernel call, also where a kernel overrides them."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

# Marks what leads to an overridden public method.
_FORWARDS = "__memjax_forwards__"
# Public methods, and what they call when they have checked their arguments.
HOOKS = {
    "__call__": "_value",
    "laplace": "_laplace",
    "squared_norm": "_squared_norm",
    "heaviside_response": "_heaviside_response",
    "ramp_response": "_ramp_response",
}


def forward(public: str) -> Callable[..., Array]:
    """What others call, for a kernel that overrides the public method."""

    def hook(self: Any, *arguments: Array | None) -> Array:
        return getattr(self, public)(*(jnp.inf if x is None else x for x in arguments))

    setattr(hook, _FORWARDS, True)
    return hook


def own(kernel: Any, hook: str) -> Callable[..., Array]:
    """What a public method calls: never what leads back to it, since an override of the public
    method may itself ask `super()`."""
    for cls in type(kernel).__mro__:
        method = vars(cls).get(hook)
        if method is not None and not hasattr(method, _FORWARDS):
            return functools.partial(method, kernel)
    raise AssertionError(hook)

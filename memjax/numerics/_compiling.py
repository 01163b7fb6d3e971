"""How hard the compiler tries."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax

# On CPUs most of a compilation goes into loops of fused operations, of which there are hundreds.
# Measured on the programs of gradient flows: XLA's older emitter of loops takes two thirds of the
# time to compile and 1.1 (four modes) to 1.5 times (sixteen) to run; without LLVM's optimizations
# it is less than half, and two to four times. By default vectors are half as long as some
# processors have them, with which runs of sixteen modes take 1.06 of the time.
_OPTIONS: dict[str, dict[str, Any]] = {
    "most": {"xla_cpu_prefer_vector_width": 512},
    "full": {},
    "less": {"xla_cpu_use_fusion_emitters": False},
    "least": {
        "xla_cpu_use_fusion_emitters": False,
        "xla_llvm_disable_expensive_passes": True,
        "xla_backend_optimization_level": 0,
    },
}

Effort = Literal["most", "full", "less", "least"]


@functools.cache
def compiled(function: Callable[..., Any], effort: Effort) -> Callable[..., Any]:
    """A function under `jax.jit`, compiled with little effort where it runs seldom.

    It must be called from outside other transformations, but for the full effort. Without effect
    off CPUs.
    """
    options = _OPTIONS[effort] if jax.default_backend() == "cpu" else {}
    known = {name: value for name, value in options.items() if _is_known(name, value)}
    # Equinox hands options on to JAX, of which its annotations know nothing.
    arguments: Any = {"compiler_options": known} if known else {}
    return eqx.filter_jit(function, **arguments)


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    """Whether this version of XLA has an option; they come and go."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
    except Exception:
        return False
    return True

"""What every target has."""

import abc
from collections.abc import Iterable
from typing import get_args, Literal

import equinox as eqx
from jaxtyping import Array, Float, Real

from .._typing import ArrayLike

Memory = Literal["finite", "exponential", "polynomial", "none", "unknown"]

# In the order of how slowly they decay.
MEMORIES: tuple[Memory, ...] = get_args(Memory)


class AbstractTarget(eqx.Module):
    r"""What a model is to learn: a causal, continuous, time-homogeneous functional.

    A target maps an input path $x: \mathbb{R} \to \mathbb{R}^d$ to an output path
    $y_t = H_t(x)$ that depends on $x_s$ for $s \le t$ only, and shifting the input in time
    shifts the output by the same amount. Time is in units of the model's own clock.

    To define a target of your own, subclass this and write `linear`, `memory` and `response`; a
    linear functional of a scalar input is better written as an [`memjax.AbstractKernel`][].

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 3 (theory, section 1).
    """

    @property
    @abc.abstractmethod
    def linear(self) -> bool:
        """Whether the output is linear in the input path."""

    @property
    @abc.abstractmethod
    def memory(self) -> Memory:
        r"""How fast the memory function decays (theory, section 1).

        One of `"finite"` (0 beyond some time), `"exponential"` (exponential decay or faster),
        `"polynomial"` (some power of time, but no exponential), `"none"` (it does not decay at
        all, so no class applies) and `"unknown"` (nothing is stated).
        """

    @abc.abstractmethod
    def response(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, "times ..."]
    ) -> Float[Array, "times ..."]:
        """The output at the times of a sampled input.

        The input is 0 before `ts[0]`, may jump there, and runs linearly from sample to sample.

        **Arguments:**

        - `ts`: Increasing times, shape `(times,)`, in units of the model's own clock.
        - `xs`: The samples, shape `(times,)` for a scalar input or `(times, d)`.

        **Returns:**

        The outputs at `ts`, shape `(times,)` or `(times, p)`.

        **Raises:** `ValueError` for times that do not increase, for samples that do not match
        them, and for NaN or infinity.
        """


def slowest_memory(targets: Iterable[AbstractTarget]) -> Memory:
    """The memory class of a sum: that of its slowest term, unless one does not say."""
    return MEMORIES[max(MEMORIES.index(target.memory) for target in targets)]

"""Laplace transforms at complex arguments, which oscillating modes ask for."""

import functools

from jaxtyping import Array, Complex


@functools.singledispatch
def complex_transforms(
    kernel: object, s: Complex[Array, "..."], order: int
) -> tuple[Complex[Array, "..."], ...] | None:
    r"""The transform $R(s)$ of a scalar kernel over the half line at complex arguments, and its
    derivatives.

    Kernels of your own get one by `@memjax.targets.complex_transforms.register(MyKernel)` before
    such a function. The white-noise loss of a [`memjax.ComplexDiagonalRNN`][] is then trained in
    closed form. The function must work elementwise, on scalars of the kernel that broadcast
    against `s`.

    **Arguments:**

    - `kernel`: the kernel; closed forms are known for [`memjax.GaussianBump`][] and
        [`memjax.Box`][], and modes need none.
    - `s`: the Laplace variable, $\operatorname{Re} s > 0$, in units of one over time.
    - `order`: the order of the highest derivative.

    **Returns:**

    The tuple $R(s), R'(s), \dots$ of `order + 1` arrays, or `None` where there is no closed form.
    """
    return None


def has_complex_transforms(kernel: object) -> bool:
    """Whether a kernel is known to [`complex_transforms`][memjax.targets.complex_transforms]."""
    return complex_transforms.dispatch(type(kernel)) is not complex_transforms.dispatch(object)

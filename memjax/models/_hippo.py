"""The HiPPO-LegS system is where S4 starts from. It is a diagonal plus a matrix of rank one."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_integer
from .._text import readable


@readable()
class HippoLegS(eqx.Module):
    r"""The HiPPO-LegS system as a diagonal plus a low rank.

    Made by [`memjax.hippo_legs`][].

    **Attributes:**

    - `rates`: the rates $w_n$, all $\tfrac12$, shape `(modes,)`.
    - `frequencies`: the angular frequencies $\nu_n > 0$, ascending, shape `(modes,)`.
    - `low_rank`: the vector $p_n > 0$, shape `(modes,)`.
    - `input`: the vector $b_n = \sqrt 2\, p_n$, shape `(modes,)`.
    """

    rates: Float[Array, " modes"]
    frequencies: Float[Array, " modes"]
    low_rank: Float[Array, " modes"]
    input: Float[Array, " modes"]


def hippo_legs(modes: int) -> HippoLegS:
    r"""The HiPPO-LegS matrix of $2m$ states, as $m$ conjugate pairs and a matrix of rank one.

    $$A_{nk} = -\begin{cases} \sqrt{(2n+1)(2k+1)} & n > k \\ n + 1 & n = k \\ 0 & n < k
      \end{cases}, \qquad B_n = \sqrt{2n+1}, \qquad
      A = V \big(\operatorname{diag}(-\tfrac12 \pm i\nu) - p p^*\big) V^*$$

    with a unitary $V$, whose phases are chosen such that all $p_n$ are positive. Then
    $V^* B = \sqrt 2\, p$.

    **Arguments:**

    - `modes`: the number $m$ of conjugate pairs.

    **Returns:**

    A [`memjax.HippoLegS`][], for a [`memjax.S4Layer`][]. Without `low_rank` it is S4D-LegS.

    ??? cite "Reference"

        Gu, Goel, Ré, *Efficiently Modeling Long Sequences with Structured State Spaces*, ICLR
        2022, Section 3.2 and Appendix C.
    """
    check_integer("modes", modes)
    degree = np.arange(2.0 * modes)
    roots = np.sqrt(degree + 0.5)
    # With r_n = sqrt(n + 1/2) the matrix A + r r^T has -1/2 on its diagonal, -r_n r_k below it and
    # r_n r_k above: what is left beside half of the identity and the rank one is skew-symmetric.
    product = np.outer(roots, roots)
    skew = np.triu(product, 1) - np.tril(product, -1)
    # As a Hermitian matrix, whose eigenvectors are unitary to rounding; those of A itself, of
    # length one, have a condition number of 8e10 at 16 states and 1e17 at 24.
    frequencies, vectors = np.linalg.eigh(-1j * skew)
    # Ascending, so that the upper half has the positive frequencies; the others are their
    # conjugates.
    low_rank = np.abs(vectors.conj().T @ roots)[modes:]
    return HippoLegS(
        jnp.full(modes, 0.5),
        jnp.asarray(frequencies[modes:]),
        jnp.asarray(low_rank),
        jnp.asarray(np.sqrt(2.0) * low_rank),
    )

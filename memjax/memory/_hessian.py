from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._checks import as_plain, as_tolerance, check_callable, check_choice, check_integer, is_traced
from .._lazy import scipy
from .._text import readable
from ..losses import AbstractLoss, check_trained, coordinates, displaced, FunctionLoss, weights

# A dense Hessian of this many weights takes 32 MB and about a second.
_DENSE = 2000


@readable()
class HessianSpectrum(eqx.Module):
    """Eigenvalues and eigenvectors of the Hessian of a loss over the trained weights.

    **Attributes:**

    - `eigenvalues`: shape `(count,)`, from the largest to the smallest. Those that an iteration
        did not find, or of a Hessian with entries that are not finite, are NaN.
    - `eigenvectors`: the directions of length 1: a PyTree as
        `equinox.filter(model, memjax.trainable(model))` with `count` first in every shape.
    - `residuals`: the lengths $|H e - \\lambda e|$, shape `(count,)`. The distance of an
        eigenvalue from one of the Hessian is at most this.
    """

    eigenvalues: Float[Array, " count"]
    eigenvectors: PyTree[Array]
    residuals: Float[Array, " count"]


def hessian_spectrum(
    loss: AbstractLoss | Callable[[Any], Float[Array, ""]],
    model: Any,
    count: int | None = None,
    *,
    displacement: PyTree[Array] | None = None,
    which: Literal["largest", "smallest", "magnitude"] = "largest",
    method: Literal["dense", "lanczos"] | None = None,
    tol: float = 1e-8,
    max_steps: int | None = None,
) -> HessianSpectrum:
    r"""The spectrum of the Hessian $\nabla^2 J(\theta)$ of a loss, over the trained weights.

    Its largest eigenvalue bounds the step of gradient descent, $\eta < 2 / \lambda_{\max}$; the
    spread of the others says how stiff the gradient flow is; a negative one tells a saddle from a
    minimum. Differentiates the `gradient` of the loss, so that what a loss keeps apart from
    rounding there is kept apart here. The dense method goes under `jax.vmap` and `jax.jit`: the
    spectra along a training flow are one `jax.vmap` over its displacements.

    !!! Example

        ```python
        flow = lambda tau, moved, args: jax.tree.map(jnp.negative, loss.gradient(model, moved))
        path = diffrax.diffeqsolve(
            diffrax.ODETerm(flow), diffrax.Kvaerno5(), 0.0, 1e3, None,
            jax.tree.map(jnp.zeros_like, eqx.filter(model, mj.trainable(model))),
            saveat=diffrax.SaveAt(ts=taus),
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
        ).ys
        spectra = jax.vmap(lambda d: mj.hessian_spectrum(loss, model, displacement=d))(path)
        spectra.eigenvalues  # (taus, weights)
        ```

    **Arguments:**

    - `loss`: an [`memjax.AbstractLoss`][], or a function of a model.
    - `model`: the model, or any PyTree whose inexact arrays are the weights.
    - `count`: how many eigenvalues. Defaults to all.
    - `displacement`: how far the weights are from those of `model`: a PyTree as
        `equinox.filter(model, memjax.trainable(model))`. Defaults to not at all.
    - `which`: the `count` `"largest"` eigenvalues, the `"smallest"`, or those largest in
        `"magnitude"`.
    - `method`: `"dense"` forms the Hessian; `"lanczos"` iterates on its products with vectors,
        by ARPACK (`scipy.sparse.linalg.eigsh`), which finds eigenvalues at a crowded end of the
        spectrum slowly. Defaults to `"dense"` up to 2000 weights, and wherever all eigenvalues
        are asked for or the model is traced.
    - `tol`: accuracy of the iteration, relative to the eigenvalue.
    - `max_steps`: how often the iteration restarts at most. Defaults to 10 per weight.

    **Returns:**

    A [`memjax.HessianSpectrum`][].

    **Raises:**

    `TypeError` for a loss that is no function; `ValueError` for a count below 1 or above the
    number of weights (one below it, for `"lanczos"`), for an unknown choice, for `"lanczos"`
    under a transformation of JAX, and for a model without trained weights.

    ??? cite "Reference"

        Ghorbani, Krishnan, Xiao, *An Investigation into Neural Net Optimization via Hessian
        Eigenvalue Density*, ICML 2019.
    """
    check_callable("loss", loss, "pass a loss, or a function from models to scalars")
    check_choice("which", which, ("largest", "smallest", "magnitude"))
    check_choice("method", method, (None, "dense", "lanczos"))
    tol = as_plain(as_tolerance, "tol", tol)
    for name, value in (("count", count), ("max_steps", max_steps)):
        if value is not None:
            check_integer(name, value)
    joined = loss if isinstance(loss, AbstractLoss) else FunctionLoss(loss)
    displaced(model, displacement)  # a displacement of another structure is refused
    start = jax.tree.map(jnp.zeros_like, weights(model)) if displacement is None else displacement
    check_trained(model)
    flat, back = coordinates(start)
    traced = is_traced((loss, model, displacement))
    size = flat.size
    if method is None:
        few = count is None or count >= size or size <= _DENSE
        method = "dense" if few or traced else "lanczos"
    wanted = size if count is None else count
    most = size if method == "dense" else size - 1
    if wanted > most:
        raise ValueError(
            f"`count` must be at most {most} for {size} weights by the method {method!r}, got "
            f"{wanted}; lower it{'' if method == 'dense' else ', or pass method=dense'}."
        )

    def gradient(moved: Array) -> Array:
        return coordinates(joined.gradient(model, back(moved)))[0]

    def product(vector: Array) -> Array:
        return jax.jvp(gradient, (flat,), (vector,))[1]

    if method == "dense":
        hessian = jax.vmap(product)(jnp.eye(size, dtype=flat.dtype))
        values, vectors = _dense(hessian, wanted, which)
    elif traced:
        raise ValueError(
            "`method` must be 'dense' under a transformation of JAX, got 'lanczos'; the iteration "
            "needs concrete numbers."
        )
    else:
        hessian = None
        values, vectors = _lanczos(jax.jit(product), flat, wanted, which, tol, max_steps)
    images = jax.vmap(product)(vectors.T).T if hessian is None else hessian.T @ vectors
    residuals = jnp.linalg.norm(images - values * vectors, axis=0)
    return HessianSpectrum(values, jax.vmap(back)(vectors.T), residuals)


def _dense(hessian: Array, count: int, which: str) -> tuple[Array, Array]:
    finite = jnp.all(jnp.isfinite(hessian))
    symmetric = jnp.where(finite, (hessian + hessian.T) / 2, jnp.eye(hessian.shape[0]))
    values, vectors = jnp.linalg.eigh(symmetric)
    order = jnp.argsort(jnp.abs(values) if which == "magnitude" else values)
    order = order[:count] if which == "smallest" else order[hessian.shape[0] - count :]
    order = order[jnp.argsort(-values[order])]
    nan = jnp.where(finite, 0.0, jnp.nan).astype(values.dtype)
    return values[order] + nan, vectors[:, order] + nan


def _lanczos(
    product: Callable[[Array], Array],
    flat: Array,
    count: int,
    which: str,
    tol: float,
    max_steps: int | None,
) -> tuple[Array, Array]:
    size, dtype = flat.size, flat.dtype
    values, vectors = np.full(count, np.nan), np.full((size, count), np.nan)
    # Always the same start, not at right angles to anything in particular.
    start = np.random.default_rng(0).standard_normal(size).astype(dtype)
    # ARPACK does not notice entries that are not finite.
    if np.all(np.isfinite(product(jnp.asarray(start)))):
        apply = lambda vector: np.asarray(product(jnp.asarray(vector.ravel(), dtype)))
        known = np.promote_types(dtype, np.float32)
        linear = scipy.sparse.linalg.LinearOperator
        operator: Any = linear((size, size), matvec=apply, dtype=known)  # pyright: ignore
        code = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}[which]
        options: dict[str, Any] = {
            "which": code,
            "v0": start.astype(known),
            "tol": tol,
            "maxiter": max_steps,
        }
        try:
            found = scipy.sparse.linalg.eigsh(operator, count, **options)
        except scipy.sparse.linalg.ArpackNoConvergence as error:
            found = error.eigenvalues, error.eigenvectors
        order = np.argsort(-found[0])
        values[: order.size] = found[0][order]
        vectors[:, : order.size] = found[1][:, order]
    return jnp.asarray(values, dtype), jnp.asarray(vectors, dtype)

"""Programs that run side by side in one process must not wait for each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax.numerics import fold, one_by_one
from memjax.plateaus._rest import comes_to_rest
from memjax.plateaus._rounding import step_response

LAPACK = {"cholesky", "eig", "eigh", "geqrf", "lu", "qr", "svd"}


def decompositions(function, *arguments):
    """The shapes of what a program hands to LAPACK."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in LAPACK:
                found.append(equation.invars[0].aval.shape)
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
                if is_program(value):
                    walk(getattr(value, "jaxpr", value))

    is_program = lambda value: hasattr(value, "eqns") or hasattr(value, "jaxpr")
    walk(jax.make_jaxpr(function)(*arguments))
    return found


def test_batches_are_seen():
    assert decompositions(jax.vmap(jnp.linalg.svd), jnp.ones((3, 4, 4))) == [(3, 4, 4)]


@pytest.mark.parametrize("name", ["cholesky", "svd", "eigvalsh"])
def test_matrices_are_decomposed_one_by_one(name):
    function = getattr(jnp.linalg, name)
    half = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    matrices = half @ half.swapaxes(-1, -2) + np.eye(4)
    alone = jax.vmap(jax.vmap(one_by_one(function)))
    assert decompositions(alone, matrices) == [(4, 4)]
    for found, expected in zip(
        jax.tree.leaves(alone(matrices)), jax.tree.leaves(function(matrices)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_search_for_the_worst_perturbation_does_so():
    model = mj.LinearRNN(-np.eye(5), np.ones(5), np.ones(5))
    error = lambda model: jnp.sum(model.recurrent**2)

    def find(scale):
        loss, key = lambda model: scale * error(model), jax.random.key(0)
        return mj.perturbation_error(model, loss, [0.1, 0.2], ball="operator", key=key).error

    shapes = decompositions(find, jnp.ones(()))
    assert shapes and all(len(shape) == 2 for shape in shapes)


def test_the_tests_for_rest_do_so():
    def one(hessian, gradient):
        definite, response = step_response(hessian, jnp.eye(4))
        rests, _ = comes_to_rest(hessian, gradient, 0 * gradient, 1 + 0 * gradient)
        return definite, response(gradient), rests

    shapes = decompositions(jax.vmap(one), jnp.ones((3, 4, 4)), jnp.ones((3, 4)))
    assert shapes and all(len(shape) == 2 for shape in shapes)


@pytest.mark.parametrize(
    "shape, axis",
    [((1, 3), 0), ((2, 3), 0), ((7, 3), 0), ((8, 3), 0), ((5, 4, 3), 0), ((5, 4, 3), 1)],
)
def test_folds_are_reductions(shape, axis):
    x = np.random.default_rng(0).normal(size=shape)
    for reduction, exact in ((jnp.sum, np.sum), (jnp.max, np.max)):
        found = fold(reduction, jnp.asarray(x), axis)
        np.testing.assert_allclose(found, exact(x, axis=axis), rtol=1e-14, atol=1e-15)
    for level in (-2.0, 0.0, 2.0):
        for reduction, exact in ((jnp.all, np.all), (jnp.any, np.any)):
            found = fold(reduction, jnp.asarray(x > level), axis)
            np.testing.assert_array_equal(found, exact(x > level, axis=axis))


def test_what_is_no_number_stays_none_in_a_fold():
    assert jnp.isnan(fold(jnp.max, jnp.asarray([[1.0], [jnp.nan], [3.0]]))[0])

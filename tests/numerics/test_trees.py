import jax.numpy as jnp

from memjax.numerics import choose


def test_a_number_of_python_against_an_array_is_chosen_like_an_array():
    new, old = (False, jnp.ones(2), "static"), (jnp.array(True), jnp.zeros(2), "static")
    flag, array, static = choose(jnp.array(False), new, old)
    assert flag and jnp.all(array == 0) and static == "static"
    flag, array, _ = choose(jnp.array(True), new, old)
    assert not flag and jnp.all(array == 1)

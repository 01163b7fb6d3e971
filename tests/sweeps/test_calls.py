import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from memjax.sweeps import _calls
from memjax.sweeps._calls import Call, first_call


class Pair(eqx.Module):
    array: jax.Array
    what: str
    function: object = eqx.field(static=True)


def double(pair, count):
    return Pair(pair.function(pair.array) * count, pair.what + "!", pair.function), pair.what


def test_a_call_returns_modules_and_what_is_no_array():
    given = Pair(jnp.arange(3.0), "one", jnp.exp)
    call = Call(double, "full", (given, jnp.asarray(2)))
    other = Pair(jnp.arange(3.0) + 1, "one", jnp.exp)
    for pair in (given, other, given):
        out, what = call(pair, jnp.asarray(2))
        expected, _ = double(pair, 2)
        assert (out.what, out.function, what) == ("one!", jnp.exp, "one")
        assert jnp.array_equal(out.array, expected.array)


def test_arguments_of_another_structure_have_a_call_of_their_own():
    count, traced = jnp.asarray(2), []

    def function(pair, count):
        traced.append(pair.what)
        return double(pair, count)

    for what in ("one", "two", "one"):
        call, (_, found) = first_call(
            function, "full", None, (Pair(jnp.ones(2), what, jnp.exp), count)
        )
        assert found == what
        with pytest.raises(ValueError):
            call(count)
    assert traced == ["one", "two"]


def test_threads_compile_a_call_once():
    traced, found = [], []

    def function(x):
        traced.append(_calls.is_compiling())
        return 2 * x

    def work():
        found.append(first_call(function, "full", None, (jnp.asarray(3.0),)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert traced == [True]
    assert len({id(call) for call, _ in found}) == 1
    assert [float(out) for _, out in found] == [6.0] * 4
    assert not _calls.is_compiling()


def test_an_error_of_the_users_is_as_equinox_words_it():
    function = lambda x: eqx.error_if(x, x < 0, "`x` must not be negative")
    call, _ = first_call(function, "full", None, (jnp.asarray(1.0),))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`x` must not be negative"):
        call(jnp.asarray(-1.0))

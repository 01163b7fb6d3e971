import inspect

import jax
import jax.numpy as jnp
import pytest

import memjax as mj
from memjax._deprecation import renamed_arguments, renamed_attribute


@renamed_arguments(width="neurons")
def count(neurons, *, scale=1):
    return neurons * scale


def test_old_names_of_arguments_work_and_warn():
    with pytest.warns(DeprecationWarning, match="`width` of count is deprecated .* `neurons`"):
        assert count(width=3, scale=2) == 6
    assert count(3) == count(neurons=3) == 3
    assert list(inspect.signature(count).parameters) == ["neurons", "scale"]


def test_an_argument_under_both_names_is_refused():
    with pytest.raises(TypeError, match="`neurons` and its old name `width`"):
        count(neurons=3, width=3)


def test_old_names_of_attributes_work_and_warn():
    class Result:
        exponent = 2.0
        power = renamed_attribute("power", "exponent")

    with pytest.warns(DeprecationWarning, match=r"Result.power is deprecated .* `.exponent`"):
        assert Result().power == 2.0


def test_a_reproduction_takes_old_names_of_its_options():
    with pytest.warns(DeprecationWarning, match="`norm` of run .* `ball`"):
        with pytest.raises(ValueError, match="`ball` must be one of"):
            mj.reproduce("w24-perturbation", progress=False, norm="l2")
    with pytest.raises(TypeError, match="`nrom` must be an option"):
        mj.reproduce("w24-perturbation", progress=False, nrom="max")


def test_names_of_the_last_release_go_on():
    target, model = mj.ExponentialSum([1.0], [1.0]), mj.DiagonalLinearRNN([0.5], [1.0])
    options = {"draws": 2, "restarts": 1, "steps": 1, "key": jax.random.key(0)}
    with pytest.warns(DeprecationWarning, match="`norm` of perturbation_error .* `ball`"):
        old = mj.perturbation_error(model, target, [0.1], norm="max", **options)
    assert old.error == mj.perturbation_error(model, target, [0.1], ball="max", **options).error
    with pytest.warns(DeprecationWarning, match="`m` of best_exponential_sum"):
        assert mj.best_exponential_sum(target, m=1).order == 1
    with pytest.warns(DeprecationWarning, match="`power` of TemporalWeight .* `exponent`"):
        weight = mj.TemporalWeight(power=2.0)
    with pytest.warns(DeprecationWarning, match="TemporalWeight.power .* `.exponent`"):
        assert weight.power == weight.exponent == 2.0
    ts, key = jnp.linspace(0, 1, 5), jax.random.key(0)
    with pytest.warns(DeprecationWarning, match="positional key of SampledPathLoss.white_noise"):
        loss = mj.SampledPathLoss.white_noise(target, ts, key, 3)
    assert jnp.all(loss.xs == mj.SampledPathLoss.white_noise(target, ts, 3, key=key).xs)

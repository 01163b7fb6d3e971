import inspect

import pytest

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

"""The report of an approximation, in Python as on the command line."""

import json

import numpy as np
import pytest

import memjax as mj


@pytest.fixture(scope="module")
def response():
    times = np.append(0, np.geomspace(0.01, 30, 150))
    exact = np.exp(-times) + 0.3 * np.exp(-0.2 * times)
    noise = 1e-3 * np.random.default_rng(0).normal(size=times.size)
    return mj.SampledKernel(times, exact + noise)


def test_an_error_below_the_noise_is_not_reached_and_the_report_says_why(response):
    found = mj.approximate(response, 1e-5, max_neurons=3)
    assert not found.reached and found.needed is not None
    # More neurons would be noise, so the sum of 2 is what is worth showing.
    assert found.noise_from == 2 and found.best.order == 2
    assert any("from 2 neurons on" in warning for warning in found.warnings)
    text = str(found)
    assert text.startswith("no number of neurons up to 3 reached the L2 error 1e-05")
    assert "degrees of freedom" in text
    record = json.loads(json.dumps(found.to_dict()))
    assert [row["neurons"] for row in record["errors"]] == [1, 2, 3]
    columns = found.columns()
    assert list(columns)[:3] == ["rate", "amplitude", "rate_error"]
    np.testing.assert_allclose(columns["rate"], [0.2, 1.0], rtol=1e-2)


def test_a_number_of_neurons_in_place_of_an_error(response):
    found = mj.approximate(response, neurons=1, offset=True)
    assert found.reached and found.needed is None and found.to_dict()["neurons"] == 1
    # An offset is a mode of rate 0.
    assert found.columns()["rate"][1] == 0
    assert found.columns()["amplitude"][1] == float(found.best.offset)


def test_kernels_that_are_no_samples_have_a_report_too():
    found = mj.approximate(mj.PowerLaw(0.5), neurons=4, norm="sup")
    assert "Samples" not in str(found) and found.to_dict()["samples"] is None
    assert "rate" in str(found)


def test_one_of_error_and_neurons_is_asked_for(response):
    with pytest.raises(ValueError, match="`error` or `neurons` must be given, got none"):
        mj.approximate(response)
    with pytest.raises(ValueError, match="got both"):
        mj.approximate(response, 0.1, neurons=2)

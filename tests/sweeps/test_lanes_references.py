"""The lane engine against the multiprecision references."""

import pathlib
import sys

import numpy as np
import pytest

from memjax.plateaus import OUTCOMES

sys.path.append(str(pathlib.Path(__file__).parents[1] / "reference"))
import reference_sweep  # pyright: ignore[reportMissingImports]

# Eight groups of cases, each with programs in float64 and some in double-double.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset():
    return reference_sweep.measured()


def test_times_agree_with_multiprecision(dataset):
    for case, cell in reference_sweep.cells(dataset):
        assert OUTCOMES[int(cell["result"])] == case["result"], case["name"]
        if case["result"] == "exited":
            assert float(cell["time"]) == pytest.approx(float(case["time"]), rel=1e-3), case["name"]
            assert float(cell["loss"]) == pytest.approx(float(case["loss_exit"]), rel=1e-5)
        else:
            assert float(cell["time"]) == np.inf


def test_only_starts_off_the_plateau_need_double_double(dataset):
    climbed = [case for case, cell in reference_sweep.cells(dataset) if int(cell["precision"])]
    assert {case["start"] for case in climbed} == {"near-plateau"}
    assert min(case["inverse_omega"] for case in climbed) >= 40

"""Random measurements by both interfaces against LSODA; 500 of them by running the script."""

import pytest

import random_configurations


@pytest.mark.slow
def test_random_configurations_against_lsoda():
    answered = 0
    for case, exact, answers in random_configurations.comparisons(50, seed=0):
        for word, time, outcome in answers:
            assert word in ("right", "unanswered"), (case, exact, time, outcome)
            answered += word == "right"
    assert answered >= 90

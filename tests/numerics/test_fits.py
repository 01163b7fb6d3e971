import numpy as np
import scipy.stats

from memjax.numerics import fit_line


def test_lines_and_their_errors_are_those_of_scipy():
    rng = np.random.default_rng(0)
    x = rng.uniform(3, 40, 12)
    y = 0.7 * x - 2 + rng.normal(size=12)
    line, expected = fit_line(x, y), scipy.stats.linregress(x, y)
    np.testing.assert_allclose(line[:2], [expected.slope, expected.intercept], rtol=1e-13)
    errors = [expected.stderr, expected.intercept_stderr]
    np.testing.assert_allclose(line.errors(), errors, rtol=1e-12)
    np.testing.assert_allclose(line.residuals, y - line.slope * x - line.intercept, atol=1e-13)
    # Half as many degrees of freedom.
    np.testing.assert_allclose(line.errors(7), np.sqrt(2) * np.array(errors), rtol=1e-12)


def test_constant_values_have_errors_too():
    line = fit_line(np.arange(4.0), np.full(4, 2.5))
    assert line.slope == 0 and line.intercept == 2.5 and line.errors() == (0, 0)

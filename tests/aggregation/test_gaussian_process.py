"""Process: likelihood, gradient and posterior against other implementations of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from optuna_aznas.aggregation.gaussian_process import Group, Process, Term
from tests import reference

PRIOR = (0.0, 1.0)
GROUPS = (Group((0, 1), PRIOR), Group((2,), PRIOR), Group((3, 4), PRIOR))
TERMS = (
    Term("constant", (), PRIOR),
    Term("linear", (1,), PRIOR),
    Term("linear", (0, 2), PRIOR),
    Term("matern", (0,), PRIOR),
    Term("matern", (1, 2), PRIOR),
    Term("matern", (0, 1, 2), PRIOR),
)


def process(theta):
    made = Process(GROUPS, TERMS, PRIOR)
    made.theta = np.asarray(theta, dtype=np.float64)
    return made


def kernel_of(theta):
    """The kernel of TERMS between two points, written out."""
    constant, second, outer, first, later, whole, *lengths, _ = np.exp(theta)

    def matern(a, b, columns):
        scale = np.array([lengths[0], lengths[0], lengths[1], lengths[2], lengths[2]])[columns]
        return reference.matern52(a[columns] / scale, b[columns] / scale, 1.0)

    return lambda a, b: (
        constant
        + second * a[2] * b[2]
        + outer * reference.dot(a[[0, 1, 3, 4]], b[[0, 1, 3, 4]])
        + first * matern(a, b, [0, 1])
        + later * matern(a, b, [2, 3, 4])
        + whole * matern(a, b, [0, 1, 2, 3, 4])
    )


thetas = st.lists(st.floats(-1.5, 1.0), min_size=10, max_size=10)


@given(thetas, st.integers(0, 100))
@settings(max_examples=20)
def test_the_likelihood_is_that_of_a_multivariate_normal(theta, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(9, 5)), rng.normal(size=9)
    kernel = kernel_of(theta)
    covariance = np.array([[kernel(a, b) for b in x] for a in x]) + (math.exp(theta[-1]) + 1e-8) * np.eye(9)
    likelihood, _ = process(theta).log_likelihood(np.array(theta), x, y)
    assert likelihood == pytest.approx(multivariate_normal(np.zeros(9), covariance).logpdf(y))


@given(thetas, st.integers(0, 100))
@settings(max_examples=20)
def test_the_gradient_is_that_of_the_likelihood(theta, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(12, 5)), rng.normal(size=12)
    x[1] = x[0]  # the Matern kernel's square root has no derivative at 0, the kernel has
    made = process(theta)
    _, gradient = made.log_likelihood(np.array(theta), x, y)
    numerical = approx_fprime(np.array(theta), lambda t: made.log_likelihood(t, x, y)[0], 1e-6)
    assert gradient == pytest.approx(numerical, rel=1e-3, abs=1e-3)


@given(thetas, st.integers(0, 100))
@settings(max_examples=20)
def test_the_posterior_is_the_textbooks(theta, seed):
    rng = np.random.default_rng(seed)
    x, at, y = rng.normal(size=(12, 5)), rng.normal(size=(4, 5)), rng.normal(size=12)
    made = process(theta)
    made.condition(x[:7], y[:7])
    made.extend(x[7:], y[7:])
    mean, std = made.predict(at)
    assert made.predict_mean(at) == pytest.approx(mean)
    for i, point in enumerate(at):
        expected, variance = reference.posterior(kernel_of(theta), math.exp(theta[-1]) + 1e-8, x, y, point)
        assert mean[i] == pytest.approx(expected, abs=1e-6)
        assert std[i] ** 2 == pytest.approx(variance, abs=1e-6)
    draws = made.sample(at, 4000, np.random.default_rng(0))
    assert draws.mean(axis=0) == pytest.approx(mean, abs=5 * std.max() / math.sqrt(4000))
    assert draws.std(axis=0) == pytest.approx(std, rel=0.1, abs=1e-3)


def test_one_matern_term_is_scikit_learns():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(15, 3)), rng.normal(size=15)
    made = Process([Group((k,), PRIOR) for k in range(3)], [Term("matern", (0, 1, 2), PRIOR)], PRIOR)
    theta = np.log([1.7, 0.5, 1.0, 3.0, 0.2])
    kernel = ConstantKernel(1.7) * Matern([0.5, 1.0, 3.0], nu=2.5) + WhiteKernel(0.2)
    other = GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=None).fit(x, y)
    expected, gradient = other.log_marginal_likelihood(kernel.theta, eval_gradient=True)
    found, own = made.log_likelihood(theta, x, y)
    assert found == pytest.approx(expected)
    assert own == pytest.approx(gradient, rel=1e-4)


def test_fitting_finds_the_column_that_matters():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    y = np.sin(2 * x[:, 1])
    made = Process([Group((k,), (0.5, 1.0)) for k in range(3)], [Term("matern", (0, 1, 2), PRIOR)], (-3.0, 1.0))
    made.fit(x, y - y.mean())
    lengths = np.exp(made.theta[1:4])
    assert lengths[1] < 0.5 * min(lengths[0], lengths[2])


def test_assuming_the_mean_lowers_the_deviation_and_keeps_the_mean():
    rng = np.random.default_rng(0)
    x, y, at = rng.normal(size=(12, 5)), rng.normal(size=12), rng.normal(size=(6, 5))
    made = process(np.zeros(10))
    made.condition(x, y)
    mean, std = made.predict(at)
    made.extend(at[:1], made.predict_mean(at[:1]))
    later, less = made.predict(at)
    assert later == pytest.approx(mean)
    assert np.all(less < std)
    assert less[0] < 0.9 * std[0]

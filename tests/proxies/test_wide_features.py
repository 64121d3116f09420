"""What is computed otherwise for wide features, against decompositions in double precision by numpy."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optuna_aznas.proxies import aznas, spectra
from optuna_aznas.proxies.batching import BatchedDecompositions, Decomposition
from optuna_aznas.proxies.model.forward import differentiate
from optuna_aznas.proxies.spectra import WIDE

FEW = settings(max_examples=25)

#: Singular values of k, from which the largest, their logarithms and their entropy are hard to find.
SPECTRA = {
    "decaying": lambda k: 1.0 / np.arange(1, k + 1),
    "edge of a bulk": lambda k: np.linspace(1.0, 0.1, k) ** 0.5,
    "equal": lambda k: np.ones(k),
    "two of one length": lambda k: np.r_[2.0, 2.0, np.linspace(1.0, 0.1, k - 2)],
    "dominant": lambda k: np.r_[100.0, np.linspace(1.0, 0.5, k - 1)],
    "rank deficient": lambda k: np.r_[np.linspace(2.0, 0.5, k // 2), np.zeros(k - k // 2)],
    "rank one": lambda k: np.r_[3.0, np.zeros(k - 1)],
    "zero": lambda k: np.zeros(k),
}

spectrum_names = st.sampled_from(sorted(SPECTRA))
wide = st.integers(WIDE, WIDE + 40)
seeds = st.integers(0, 2**32 - 1)


def matrix_of(singular_values, rows, columns, rng):
    """A matrix with given singular values and random singular vectors."""
    k = len(singular_values)
    left, _ = np.linalg.qr(rng.normal(size=(rows, k)))
    right, _ = np.linalg.qr(rng.normal(size=(columns, k)))
    return (left * singular_values) @ right.T


def signs(rows, columns, rng):
    return rng.choice([-1.0, 1.0], (rows, columns))


def single(array):
    return torch.from_numpy(array).float()[None]


def measured(matrix):
    """The three numbers of a spectrum, written plainly."""
    sigma = np.linalg.svd(matrix, compute_uv=False)
    p = sigma / sigma.sum() if sigma.sum() > 0 else sigma
    entropy = -sum(x * math.log(x) for x in p if x > 0) / math.log(len(sigma))
    return [sigma[0], -np.abs(np.log(np.maximum(sigma, 1e-3))).mean(), entropy]


@FEW
@given(positions=st.integers(1, 500), channels=wide, seed=seeds)
def test_products_of_signs_are_exact(positions, channels, seed):
    """Zeros are entries too: grids are padded with them. Both orders of the axes, as few positions need the other."""
    v = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], (positions, channels))
    assert np.array_equal(spectra.sign_gram(single(v))[0].numpy(), v.T @ v)
    assert np.array_equal(spectra.sign_gram(single(v.T.copy()).mT)[0].numpy(), v.T @ v)


@FEW
@given(positions=st.integers(2, 700), channels=wide, seed=seeds)
def test_a_scatter_matrix_in_panels_is_that_of_numpy(positions, channels, seed):
    x = np.random.default_rng(seed).normal(3.0, 1.0, (positions, channels))
    centred = x - x.mean(0)
    expected = centred.T @ centred if positions >= channels else centred @ centred.T
    scatter = spectra.scatter(single(x))[0].numpy()
    np.testing.assert_allclose(scatter, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@FEW
@given(name=spectrum_names, channels=wide, seed=seeds)
def test_entropy(name, channels, seed):
    rng = np.random.default_rng(seed)
    x = matrix_of(SPECTRA[name](channels), 2 * channels, channels, rng)
    p = np.linalg.eigvalsh(np.cov(x.T, bias=True)).clip(0)
    entropy = spectra.spectral_entropy(spectra.scatter(single(x))).item()
    if name == "zero":
        assert math.isnan(entropy)
    else:
        p /= p.sum()
        assert entropy == pytest.approx(-(p * np.log(p + 1e-8)).sum(), abs=1e-4)


@FEW
@given(name=spectrum_names, rows=wide, columns=wide, log_scale=st.integers(-25, 25), seed=seeds)
def test_largest_singular_value(name, rows, columns, log_scale, seed):
    """Also where squares would leave the range of single precision."""
    matrix = matrix_of(SPECTRA[name](min(rows, columns)), rows, columns, np.random.default_rng(seed)) * 10.0**log_scale
    found = spectra.spectrum_of_few(single(matrix))[0].tolist()
    assert found[0] == pytest.approx(np.linalg.svd(matrix, compute_uv=False)[0], rel=5e-3)
    assert math.isnan(found[1])
    assert math.isnan(found[2])


@FEW
@given(
    name=spectrum_names,
    channels=wide,
    channels_of_g=st.integers(WIDE // 2, 2 * WIDE),
    positions=st.sampled_from([1.05, 1.2, 1.5, 1.99, 2.0, 2.5, 4.0]),
    noise=st.sampled_from([0.0, 0.1]),
    seed=seeds,
)
def test_least_squares(name, channels, channels_of_g, positions, noise, seed):
    """From few positions, where the matrix of v is badly conditioned, to many, where it is nearly the identity's."""
    rng = np.random.default_rng(seed)
    v = signs(math.ceil(positions * channels), channels, rng)
    g = v @ matrix_of(SPECTRA[name](min(channels, channels_of_g)), channels, channels_of_g, rng)
    g = (g + noise * rng.normal(size=g.shape)).astype(np.float32)
    (job,) = aznas._by_least_squares(single(g), single(v))
    largest, isometry, rank = job.function(*job.stacks)[0].tolist()
    expected = measured(np.linalg.lstsq(v, g, rcond=1e-6)[0].T)
    # The iteration may find the second largest value where its start has next to nothing of the largest's direction.
    assert largest == pytest.approx(expected[0], rel=5e-3, abs=1e-6)
    assert math.isnan(isometry) == math.isnan(rank) == (len(v) < 2 * channels)
    if len(v) >= 2 * channels:
        assert [largest, isometry, rank] == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_as_many_positions_as_channels(extra):
    """The matrix of v is all but singular: what single precision cannot tell from zero counts as zero."""
    rng = np.random.default_rng(extra)
    v, g = single(signs(WIDE + extra, WIDE, rng)), single(rng.normal(size=(WIDE + extra, WIDE)))
    (job,) = aznas._by_least_squares(g, v)
    root = spectra._inverse_root(v.mT @ v)
    expected = spectra.spectrum((g.mT @ v).double() @ root @ root.mT)[0, 0].item()
    assert job.function(*job.stacks)[0, 0].item() == pytest.approx(expected, rel=1e-3)


def test_a_singular_matrix_of_signs_has_the_smallest_solution():
    rng = np.random.default_rng(0)
    v = signs(3 * WIDE, WIDE, rng)
    v[:, 1] = v[:, 0]
    g = rng.normal(size=(3 * WIDE, WIDE))
    (job,) = aznas._by_least_squares(single(g), single(v))
    expected = measured((np.linalg.pinv(v, rcond=1e-6) @ g).T)
    assert job.function(*job.stacks)[0].tolist() == pytest.approx(expected, rel=1e-3)


def test_double_precision_stays():
    rng = np.random.default_rng(0)
    v, g = signs(2 * WIDE, WIDE, rng), rng.normal(size=(2 * WIDE, WIDE))
    (job,) = aznas._by_least_squares(torch.from_numpy(g)[None], torch.from_numpy(v)[None])
    expected = measured(np.linalg.lstsq(v, g, rcond=None)[0].T)
    assert job.function(*job.stacks)[0].tolist() == pytest.approx(expected, rel=1e-10)


def test_several_matrices_at_once_are_as_each_alone():
    """As on a GPU. The iteration goes on until the last has converged."""
    rng = np.random.default_rng(0)
    matrices = torch.cat([single(matrix_of(of(WIDE), WIDE, WIDE, rng)) for of in SPECTRA.values()])
    together = spectra.spectrum_of_few(matrices)[:, 0]
    alone = torch.cat([spectra.spectrum_of_few(matrix[None])[:, 0] for matrix in matrices])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_wide_features_that_are_not_finite_have_no_numbers(bad):
    """Neither those of the next block nor the whole evaluation is lost. Wide ones are decomposed during the pass."""

    def reduction(features):
        return [Decomposition("entropy", spectra.spectral_entropy, [spectra.scatter(features)])]

    decompositions = BatchedDecompositions()
    features = torch.randn(2 * WIDE, WIDE, generator=torch.Generator().manual_seed(0))
    for i in range(3):
        decompositions.add(i, reduction, features if i != 1 else features.masked_fill(features > 3, bad))
        decompositions.reduce_if_due(torch.device("cpu"))
        assert not decompositions._jobs
    first, second, third = decompositions.finish(3)["entropy"]
    assert first == third == pytest.approx(math.log(WIDE), rel=0.1)
    assert math.isnan(second)


def test_a_vector_jacobian_product_is_that_of_torch():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, v = x.tanh() * x[:, :1], torch.arange(-6.0, 6.0).view(3, 4)
    for _ in range(2):
        (found,) = differentiate(y, x, v, where="here", retain_graph=True)
        assert torch.equal(found, torch.autograd.grad(y, x, v, retain_graph=True)[0])


def test_the_first_network_of_a_process_imports_little():
    """``torch.autograd.grad`` imports sympy where it is given a cotangent."""
    program = """
import sys, torch
from torch import nn
from optuna_aznas import ProxyEvaluator
block = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
model = nn.Sequential(block(3, 8), block(8, 8), block(8, 16), nn.Flatten(), nn.Linear(16 * 64, 10))
before = set(sys.modules)
ProxyEvaluator((3, 8, 8), device="cpu")(model)
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"sympy", "mpmath", "scipy", "sklearn"} & set(result.stdout.split())

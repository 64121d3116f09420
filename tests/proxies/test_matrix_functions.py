"""Sums of functions of eigenvalues by products of matrices, against decompositions in double precision by numpy.

These are for wide features on a GPU, and run on whatever device there is.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optuna_aznas import ProxyEvaluator
from optuna_aznas.proxies import batching, matrix_functions, spectra
from optuna_aznas.proxies.spectra import WIDE, Squares
from tests.proxies.test_wide_features import FEW, SPECTRA, matrix_of, measured, seeds, single, spectrum_names, wide

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def entropy_of(p):
    p = p[p > 0] / p.sum()
    return -(p * np.log(p)).sum()


@pytest.mark.parametrize("name", sorted(set(SPECTRA) - {"zero"}))
@pytest.mark.parametrize("channels", [WIDE, 2 * WIDE])
def test_entropy(name, channels):
    x = matrix_of(SPECTRA[name](channels), 2 * channels, channels, np.random.default_rng(0))
    x -= x.mean(0)
    p = np.linalg.eigvalsh(x.T @ x).clip(0)
    found = matrix_functions.entropy(single(x.T @ x).to(DEVICE)).item()
    largest = p.max() / p.sum()
    assert found == pytest.approx(entropy_of(p), abs=1e-5 + 1.5e-6 * largest * channels)


def test_entropy_of_nothing():
    assert math.isnan(matrix_functions.entropy(torch.zeros(1, WIDE, WIDE, device=DEVICE)).item())


@FEW
@given(name=spectrum_names, rows=wide, columns=wide, log_scale=st.floats(-3.0, 1.0), seed=seeds)
def test_spectrum(name, rows, columns, log_scale, seed):
    """Near the floor of the logarithm each singular value adds up to 0.06 over their number."""
    matrix = matrix_of(SPECTRA[name](min(rows, columns)), rows, columns, np.random.default_rng(seed)) * 10.0**log_scale
    sigma = np.linalg.svd(matrix.astype(np.float32).astype(float), compute_uv=False)
    found = matrix_functions.spectrum(spectra._squares(single(matrix).to(DEVICE)))
    if sigma[0] * len(sigma) ** (1 / 16) > 100:
        return
    assert found is not None
    largest, isometry, rank = found[0].tolist()
    expected = measured(matrix)
    near_floor = np.count_nonzero((sigma > 2e-4) & (sigma < 5e-3))
    assert largest == pytest.approx(sigma[0], rel=1e-3, abs=1e-12)
    assert isometry == pytest.approx(expected[1], abs=1e-4 + 0.06 * near_floor / len(sigma))
    assert rank == pytest.approx(expected[2], abs=2e-4)


def test_no_spectrum_with_large_singular_values():
    """The caller decomposes then."""
    assert matrix_functions.spectrum(200.0**2 * torch.eye(WIDE, dtype=torch.float64, device=DEVICE)[None]) is None


def test_several_matrices_are_as_each_alone(monkeypatch):
    """Also where they do not fit into one product."""
    rng = np.random.default_rng(0)
    names = ["decaying", "equal", "rank deficient"]
    x = spectra._squares(torch.cat([single(matrix_of(SPECTRA[name](WIDE), WIDE, WIDE, rng)) for name in names]))
    together = matrix_functions.spectrum(x)
    monkeypatch.setattr(matrix_functions, "_BYTES", 1)
    assert together is not None
    torch.testing.assert_close(matrix_functions.spectrum(x), together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("octaves", [18, 24])
def test_powers_by_squaring(octaves):
    x = torch.linspace(0, 1, 7, dtype=torch.float64)
    traces = matrix_functions._traces_of_powers(torch.diag(x)[None], octaves)[0]
    torch.testing.assert_close(traces, matrix_functions._powers(x, octaves).sum(0), rtol=1e-9, atol=1e-300)


def test_scores_of_a_network_are_those_of_decompositions(monkeypatch):
    """The evaluator takes this way for wide features on a GPU."""
    from torch import nn

    def block(c_in, c_out):
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())

    model = nn.Sequential(block(3, WIDE), block(WIDE, WIDE), block(WIDE, WIDE + 8), nn.Flatten())
    evaluator = ProxyEvaluator((3, 8, 8), device="cpu")
    exact = evaluator(model)
    monkeypatch.setattr(spectra, "_by_products", lambda matrices: min(matrices.shape[-2:]) >= WIDE)
    by_products = evaluator(model)
    assert by_products != exact
    assert by_products == pytest.approx(exact, rel=1e-5)


def test_what_cannot_be_decomposed_has_no_numbers(monkeypatch):
    """Neither are those of the others lost."""
    measure = batching.spectrum_of_squares

    def sometimes(squares):
        if (squares[:, 0, 0] == 0).any():
            raise torch.linalg.LinAlgError
        return measure(squares)

    monkeypatch.setattr(batching, "spectrum_of_squares", sometimes)
    squares = torch.stack([torch.eye(3), torch.zeros(3, 3), 4 * torch.eye(3)]).double()
    one, none, two = batching._finished([torch.ones(1), Squares(squares)])[1].tolist()
    assert (one[0], two[0]) == (pytest.approx(1.0), pytest.approx(2.0))
    assert all(map(math.isnan, none))

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
from optuna_aznas.proxies import batching, exponential_sums, matrix_functions, spectra
from optuna_aznas.proxies.batching import BatchedDecompositions, Decomposition
from optuna_aznas.proxies.matrix_functions import Job, Wanted
from optuna_aznas.proxies.spectra import WIDE
from tests.proxies.test_wide_features import (
    FEW,
    SPECTRA,
    matrix_of,
    measured,
    seeds,
    signs,
    single,
    spectrum_names,
    wide,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def finished(wanted, *jobs):
    """The results of each job, as arrays."""
    launched = matrix_functions.launch([Job(wanted, [stack.to(DEVICE) for stack in job]) for job in jobs])
    return [result.numpy() for result in launched.finish(launched.numbers.cpu())]


def on_gpu(monkeypatch):
    """Let the CPU take the way of a GPU."""

    def products(job):
        return None if job.by_products is None else Job(job.by_products, job.stacks)

    monkeypatch.setattr(batching._Job, "products", property(products))
    monkeypatch.setattr(batching, "WIDE", 10**9)  # nothing is decomposed during the pass


def entropy_of(p):
    p = p[p > 0] / p.sum()
    return -(p * np.log(p)).sum()


@pytest.mark.parametrize("name", sorted(set(SPECTRA) - {"zero"}))
@pytest.mark.parametrize("channels", [WIDE, 2 * WIDE])
def test_entropy(name, channels):
    x = matrix_of(SPECTRA[name](channels), 2 * channels, channels, np.random.default_rng(0))
    x -= x.mean(0)
    p = np.linalg.eigvalsh(x.T @ x).clip(0)
    (found,) = finished(Wanted.ENTROPY, [single(x.T @ x)])
    largest = p.max() / p.sum()
    assert found[0] == pytest.approx(entropy_of(p), abs=1e-5 + 4e-7 * largest * channels)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 1e-2])
def test_entropy_of_many_channels_that_are_nearly_one(noise):
    """Where one eigenvalue holds nearly everything, single precision would leave an error of 0.05."""
    generator = torch.Generator().manual_seed(0)
    channels = 2048
    x = torch.randn(512, 1, generator=generator) @ torch.randn(1, channels, generator=generator)
    scatter = spectra.scatter((x + noise * torch.randn(512, channels, generator=generator))[None])
    ((found,),) = finished(Wanted.ENTROPY, [scatter])
    p = np.linalg.eigvalsh(scatter[0].double().numpy()).clip(0)
    assert found == pytest.approx(entropy_of(p), abs=1e-3)


def test_entropy_of_nothing():
    assert math.isnan(finished(Wanted.ENTROPY, [torch.zeros(1, WIDE, WIDE)])[0][0])


@FEW
@given(name=spectrum_names, rows=wide, columns=wide, log_scale=st.floats(-3.0, 1.0), seed=seeds)
def test_spectrum(name, rows, columns, log_scale, seed):
    """Near the floor of the logarithm each singular value adds up to 0.06 over their number."""
    matrix = matrix_of(SPECTRA[name](min(rows, columns)), rows, columns, np.random.default_rng(seed)) * 10.0**log_scale
    sigma = np.linalg.svd(matrix.astype(np.float32).astype(float), compute_uv=False)
    ((found,),) = finished(Wanted.SPECTRUM, [single(matrix)])
    if sigma[0] * len(sigma) ** (1 / 16) > 100:
        return
    expected = measured(matrix)
    near_floor = np.count_nonzero((sigma > 2e-4) & (sigma < 5e-3))
    assert found[0] == pytest.approx(sigma[0], rel=1e-3, abs=1e-12)
    assert found[1] == pytest.approx(expected[1], abs=1e-4 + 0.06 * near_floor / len(sigma))
    assert found[2] == pytest.approx(expected[2], abs=2e-4)


@FEW
@given(
    name=st.sampled_from(sorted(set(SPECTRA) - {"zero", "dominant"})),
    channels=st.integers(2, WIDE),
    channels_of_g=st.integers(1, WIDE),
    positions=st.sampled_from([2.0, 2.5, 4.0, 30.0]),
    seed=seeds,
)
def test_least_squares(name, channels, channels_of_g, positions, seed):
    """From as few positions as there may be, where the matrix of v has its eigenvalues within the stated bounds."""
    rng = np.random.default_rng(seed)
    v = signs(math.ceil(positions * channels), channels, rng)
    k = min(channels, channels_of_g)
    g = v @ matrix_of(np.resize(SPECTRA[name](max(k, 2)), k), channels, channels_of_g, rng)
    g = (g + 0.1 * rng.normal(size=g.shape)).astype(np.float32)
    ((found,),) = finished(Wanted.SPECTRUM, [single(g.T @ v), single(v.T @ v)])
    eigenvalues, least = np.linalg.eigvalsh(v.T @ v) / (1.5 * len(v)), matrix_functions._LEAST
    if np.isnan(found).all() and not least <= eigenvalues.min() <= eigenvalues.max() <= 2.0 - least:
        return
    sigma = np.linalg.svd(np.linalg.lstsq(v, g, rcond=None)[0].T, compute_uv=False)
    p = sigma / sigma.sum()
    rank = -(p * np.log(p)).sum() / math.log(k) if k > 1 else 1.0
    assert found[0] == pytest.approx(sigma[0], rel=1e-3)
    near_floor = np.count_nonzero((sigma > 2e-4) & (sigma < 5e-3))
    isometry = -np.abs(np.log(np.maximum(sigma, 1e-3))).mean()
    assert found[1] == pytest.approx(isometry, abs=2e-4 + 0.06 * near_floor / k)
    assert found[2] == pytest.approx(rank, abs=2e-4)


def test_what_is_launched_stays_on_the_matrices_device():
    """Meta tensors have a shape and a device alone: they raise where a number is awaited or a CPU tensor joins in."""

    def stack(*shape):
        return torch.empty(shape, device="meta")

    pairs = [Job(Wanted.SPECTRUM, [stack(3, 64, 128), stack(3, 128, 128)])]
    alone = [Job(Wanted.SPECTRUM, [stack(3, 64, 128)])]
    entropies = [Job(Wanted.ENTROPY, [stack(4, 64, 64)]), Job(Wanted.ENTROPY, [stack(2, 512, 512)])]
    for jobs in (pairs, alone, entropies, entropies + pairs, entropies + alone):
        assert matrix_functions.launch(jobs).numbers.device.type == "meta"


def test_what_cannot_be_measured_by_products_has_no_numbers():
    """Large singular values, numbers that are not finite, a singular matrix of v; the others keep theirs."""
    one = torch.eye(WIDE)
    ((large, unknown, fine),) = finished(Wanted.SPECTRUM, [torch.stack([200 * one, math.nan * one, 3 * one])])
    assert np.isnan([large, unknown]).all()
    assert fine == pytest.approx([3.0, -math.log(3.0), 1.0], rel=1e-4)
    singular = one.clone()
    singular[:, 0] = singular[0] = 0.0
    ((unknown, fine),) = finished(Wanted.SPECTRUM, [torch.stack([one] * 2), torch.stack([singular, 2 * one])])
    assert np.isnan(unknown).all()
    assert fine == pytest.approx([0.5, -math.log(2.0), 1.0], rel=1e-4)


@pytest.mark.parametrize(("constant", "value"), [("_BYTES", 1), ("_PADDING", 0), ("_PADDING", 2**40)])
def test_matrices_of_several_sizes_are_as_each_alone(monkeypatch, constant, value):
    """However they are put together and padded."""
    rng = np.random.default_rng(0)
    shapes = [(70, 90), (WIDE, WIDE), (65, 65), (WIDE + 8, 1), (100, 90)]
    spectra_of = [SPECTRA["decaying"], SPECTRA["equal"], SPECTRA["edge of a bulk"]]
    jobs = [[torch.cat([single(matrix_of(of(min(a, b)), a, b, rng)) for of in spectra_of])] for a, b in shapes]
    scatters = [[m.mT @ m] for (m,) in jobs]
    monkeypatch.setattr(matrix_functions, constant, value)
    for wanted, stacks in ((Wanted.SPECTRUM, jobs), (Wanted.ENTROPY, scatters)):
        together = finished(wanted, *stacks)
        for (stack,), found in zip(stacks, together, strict=True):
            alone = [finished(wanted, [matrix[None]])[0][0] for matrix in stack]
            np.testing.assert_allclose(found, alone, rtol=1e-6, atol=1e-6)
    mixed = [Job(Wanted.ENTROPY, scatters[2]), *(Job(Wanted.SPECTRUM, job) for job in jobs)]
    launched = matrix_functions.launch([Job(w, [stack.to(DEVICE) for stack in stacks]) for w, stacks in mixed])
    for job, found in zip(mixed, launched.finish(launched.numbers.cpu()), strict=True):
        np.testing.assert_allclose(found, finished(job.wanted, job.stacks)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("octaves", [exponential_sums.ENTROPY_OCTAVES, exponential_sums.OCTAVES])
@pytest.mark.parametrize("bound", [1.0, 0.5])
def test_powers_by_squaring(octaves, bound):
    x = bound * torch.linspace(0, 1, 7, dtype=torch.float64)
    inner, norms = matrix_functions._powers_of(torch.diag(x)[None], octaves, scaled=0)
    exponents = [1, 3, 5, 6, *(2 ** (j + 1) for j in range(octaves))]
    found = torch.cat([inner, norms.square()])[:, 0]
    torch.testing.assert_close(found, torch.stack([(x**m).sum() for m in exponents]), rtol=1e-9, atol=1e-300)
    _, scaled = matrix_functions._powers_of(torch.diag(x)[None], octaves, scaled=1)
    if octaves > matrix_functions._NORM_SQUARINGS:
        assert matrix_functions._largest(scaled).item() == pytest.approx(bound, rel=1e-3)


def test_scores_of_a_network_are_those_of_decompositions(monkeypatch):
    """The evaluator takes this way for wide features on a GPU."""
    from torch import nn

    def block(c_in, c_out):
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())

    model = nn.Sequential(block(3, WIDE), block(WIDE, WIDE), block(WIDE, WIDE + 8), nn.Flatten())
    for jacobian in ("least-squares", "moment"):
        evaluator = ProxyEvaluator((3, 8, 8), jacobian=jacobian, device="cpu")
        exact = evaluator(model)
        with monkeypatch.context() as patch:
            on_gpu(patch)
            by_products = evaluator(model)
        assert by_products != exact
        assert by_products == pytest.approx(exact, rel=1e-5)


def test_what_cannot_be_measured_by_products_is_decomposed(monkeypatch):
    on_gpu(monkeypatch)

    def reduction(stack):
        return [Decomposition("spectrum", spectra.spectrum, [stack], Wanted.SPECTRUM)]

    decompositions = BatchedDecompositions()
    for i, scale in enumerate([200.0, math.nan, 3.0]):
        decompositions.add(i, reduction, scale * torch.eye(WIDE))
    large, unknown, fine = decompositions.finish(3)["spectrum"]
    assert large == pytest.approx([200.0, -math.log(200.0), 1.0])
    assert np.isnan(unknown).all()
    assert fine == pytest.approx([3.0, -math.log(3.0), 1.0], rel=1e-4)


def test_what_cannot_be_decomposed_has_no_numbers():
    """Neither are those of the others lost."""

    def sometimes(matrices):
        if (matrices[:, 0, 0] == 0).any():
            raise torch.linalg.LinAlgError
        return matrices[:, 0, 0]

    decompositions = BatchedDecompositions()
    for i in range(3):
        decompositions.add(i, lambda stack: [Decomposition("first", sometimes, [stack])], torch.full((1, 1), i - 1.0))
    one, none, two = decompositions.finish(3)["first"]
    assert (one, two) == (-1.0, 1.0)
    assert math.isnan(none)

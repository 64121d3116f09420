"""The four proxies of AZ-NAS: expressivity, progressivity, trainability, complexity.

Source: Lee and Ham, "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search", CVPR 2024
(arXiv:2403.19232), written from the paper's formulas.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.features.grids import on_one_grid, position_rows
from optuna_aznas.proxies.features.trace import BlockPass

Jacobian: TypeAlias = Literal["moment", "least-squares"]

#: Names of the proxies, in the order of the paper.
AZNAS_PROXIES = ("expressivity", "progressivity", "trainability", "complexity")

_EPS_ENTROPY = 1e-8
_EPS_SIGMA = 1e-6

#: Bytes of features and gradients that may wait on a GPU, so that blocks of one shape are reduced to small matrices
#: together: a launch for each costs more than the work. On a CPU they are reduced at once, while the cache holds them.
_PENDING_BYTES = 2**26

#: From this size on matrices are decomposed on the GPU that they lie on.
_LARGE = 512


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """What remains to be done behind the pass for one number of each of several blocks.

    Attributes:
        blocks: The blocks' indices.
        function: Takes stacks (n, a, b), gives (n,) numbers.
        stacks: What it takes; n is the number of blocks.
    """

    blocks: list[int]
    function: Callable[..., Tensor]
    stacks: list[Tensor]


@dataclasses.dataclass(frozen=True)
class BlockScores:
    """What the proxies saw at one block.

    Attributes:
        name: The block's name in the model; the first entry is the stem.
        shape: Shape of the block's output f_l for one sample, without the batch dimension.
        entropy: Entropy e_l of the normalised eigenvalues of the output's channel covariance, in nats, between 0 and
            log(channels); NaN where the output is constant or not finite.
        step: ``e_l - e_{l-1}``, against the feature that the block started from; NaN for a stem.
        spectral_norm: sigma, the largest singular value of the block's mean Jacobian; NaN for the stem.
        trainability: ``t_l = 2 - sigma - 1 / (sigma + 1e-6)``, at most 0; NaN for the stem, ``-inf`` for an identity in
            a CNN.
        complexity: Multiply-accumulates of one sample since the feature before.

    A part that was not asked for is NaN.
    """

    name: str
    shape: tuple[int, ...]
    entropy: float
    step: float
    spectral_norm: float
    trainability: float
    complexity: float


class AZNASObserver:
    """Gathers the matrices of the AZ-NAS proxies during a pass and turns them into scores behind it.

    During the pass only products of matrices are queued on the device; one transfer and one batched decomposition for
    each size follow in :meth:`finish`.

    Args:
        entropy: Whether entropies are wanted.
        jacobian: The estimate of the blocks' mean Jacobians. ``"moment"``: M = (1/P) sum g v^T, as in the paper.
            ``"least-squares"``: (sum g v^T)(sum v v^T)^-1, free of the moment's sampling noise.
        skip_identities: Leave identity blocks out of trainability (transformers) instead of scoring them ``-inf``.
        samples: Samples in the batch; as many as the features' first dimension says if not given.
    """

    def __init__(self, *, entropy: bool, jacobian: Jacobian, skip_identities: bool, samples: int | None = None) -> None:
        self._entropy = entropy
        self._jacobian = jacobian
        self._skip_identities = skip_identities
        self._samples = samples
        self._passes: list[tuple[str, tuple[int, ...], float, int | None]] = []
        self._channels_first: list[bool] = []
        # What waits to be reduced: the matrices of each block that a reduction takes.
        self._waiting: dict[tuple[Any, ...], list[tuple[int, list[Tensor]]]] = {}
        self._waiting_bytes = 0
        self._entropies: list[_Job] = []
        self._sigmas: list[_Job] = []
        self._differ: list[_Job] = []  # whether g and v differ anywhere: not where the block is an identity

    def __call__(self, block: BlockPass) -> None:
        i, feature = len(self._passes), block.feature
        first = block.channels_first
        macs = block.macs / (self._samples or feature.shape[0])
        self._channels_first.append(first)
        self._passes.append((block.name, tuple(feature.shape[1:]), macs, block.previous))
        if self._entropy:
            self._wait(self._reduce_features, i, position_rows(feature, first))
        if block.gradient is not None and block.cotangent is not None:
            g, v = block.gradient, block.cotangent
            try:
                g_first = first if block.previous is None else self._channels_first[block.previous]
                rows = on_one_grid(g, v, g_first, first)
            except ValueError as error:
                raise ProxyEvaluationError(
                    f"Block {block.name!r} turns a feature of shape {tuple(g.shape)} into {tuple(v.shape)}: {error} "
                    "Choose other blocks with ProxyEvaluator(blocks=[...]), or leave out trainability."
                ) from None
            self._wait(self._reduce_same_shape if g.shape == v.shape else self._reduce_products, i, *rows)
        if self._waiting_bytes > _PENDING_BYTES or feature.device.type == "cpu":
            self._reduce()

    def _wait(self, reduction: Callable[..., None], block: int, *matrices: Tensor) -> None:
        matrices = tuple(m.float() if m.dtype in (torch.float16, torch.bfloat16) else m for m in matrices)  # autocast's
        key = (reduction, *(matrix.shape for matrix in matrices))
        self._waiting.setdefault(key, []).append((block, list(matrices)))
        self._waiting_bytes += sum(matrix.nbytes for matrix in matrices)

    def _reduce(self) -> None:
        """Reduce what waits to the small matrices that the jobs need."""
        for (reduction, *_), group in self._waiting.items():
            blocks, rows = zip(*group, strict=True)
            reduction(list(blocks), *(_stacked(column) for column in zip(*rows, strict=True)))
        self._waiting.clear()
        self._waiting_bytes = 0

    def _reduce_features(self, blocks: list[int], features: Tensor) -> None:
        self._entropies.append(_Job(blocks, spectral_entropy, [scatter(features)]))

    def _reduce_same_shape(self, blocks: list[int], g: Tensor, v: Tensor) -> None:
        self._differ.append(_Job(blocks, _as_number, [(g != v).flatten(1).any(1, keepdim=True)]))
        self._reduce_products(blocks, g, v)

    def _reduce_products(self, blocks: list[int], g: Tensor, v: Tensor) -> None:
        _, positions, channels = v.shape
        if self._jacobian == "moment":
            job = _Job(blocks, spectral_norm, [g.mT @ v / positions])
        elif positions >= channels:
            job = _Job(blocks, least_squares_norm, [g.mT @ v, v.mT @ v])
        else:
            job = _Job(blocks, least_squares_norm_of_few, [g @ g.mT, v @ v.mT])
        self._sigmas.append(job)

    def finish(self) -> list[BlockScores]:
        """Decompose what was gathered and return the blocks' scores, the stem first."""
        self._reduce()
        jobs = _to_cpu([*self._entropies, *self._sigmas, *self._differ])
        n, n_entropies, n_sigmas = len(self._passes), len(self._entropies), len(self._sigmas)
        entropies = _results(jobs[:n_entropies], n)
        sigmas = _results(jobs[n_entropies : n_entropies + n_sigmas], n)
        differ = _results(jobs[n_entropies + n_sigmas :], n)
        with_sigma = {i for job in self._sigmas for i in job.blocks}
        blocks: list[BlockScores] = []
        for i, (name, shape, macs, previous) in enumerate(self._passes):
            sigma = sigmas[i]
            if differ[i] == 0.0:
                trainability = math.nan if self._skip_identities else -math.inf
            elif i in with_sigma and math.isnan(sigma):
                trainability = -math.inf
            else:
                trainability = 2.0 - sigma - 1.0 / (sigma + _EPS_SIGMA)
            step = entropies[i] - entropies[previous] if previous is not None else math.nan
            blocks.append(BlockScores(name, shape, entropies[i], step, sigma, trainability, macs))
        return blocks


def expressivity(blocks: list[BlockScores]) -> float:
    """Sum of the entropies over the stem and all blocks, in nats. NaN if any is."""
    return sum(block.entropy for block in blocks)


def progressivity(blocks: list[BlockScores]) -> float:
    """Smallest step of entropy from block to block, in nats. NaN if any is."""
    if any(math.isnan(block.entropy) for block in blocks):
        return math.nan
    steps = [block.step for block in blocks[1:] if not math.isnan(block.step)]  # a second stem has none
    return min(steps) if steps else math.nan


def trainability(blocks: list[BlockScores]) -> float:
    """Mean of ``2 - sigma - 1/(sigma + 1e-6)`` over the blocks, at most 0."""
    scores = [block.trainability for block in blocks[1:] if not math.isnan(block.trainability)]
    return sum(scores) / len(scores) if scores else math.nan


def scatter(x: Tensor) -> Tensor:
    """Scatter matrices of ``x`` (n, P, C): P times the covariance of the columns, (n, C, C).

    Or the (n, P, P) products of the centred rows where these are fewer: the eigenvalues are the same but for zeros.
    """
    x = x - x.mean(dim=1, keepdim=True)
    return x.mT @ x if x.shape[1] >= x.shape[2] else x @ x.mT


def spectral_entropy(scatters: Tensor) -> Tensor:
    """Entropy of the normalised eigenvalues of (n, C, C) scatter matrices, in nats; NaN for a zero matrix."""
    eigenvalues = torch.linalg.eigvalsh(scatters).clamp_min(0.0)  # rounding leaves some just below zero
    p = eigenvalues / eigenvalues.sum(dim=-1, keepdim=True)
    return -(p * torch.log(p + _EPS_ENTROPY)).sum(dim=-1)


def spectral_norm(matrices: Tensor) -> Tensor:
    """Largest singular value of each of (n, a, b) matrices, from the eigenvalues of the smaller of their two products
    with themselves: many times faster than a singular value decomposition, and as accurate for the largest.
    """
    matrices = matrices.double()  # squares of what float32 holds fit
    a, b = matrices.shape[-2:]
    return _root_of_largest(matrices @ matrices.mT if a <= b else matrices.mT @ matrices)


def least_squares_norm(cross: Tensor, gram: Tensor) -> Tensor:
    """Largest singular value of G = (sum g v^T)(sum v v^T)^-1, the least-squares solution of g = G v; of the smallest
    solution where it is not unique.

    Args:
        cross: sum g v^T, (n, channels of g, channels of v).
        gram: sum v v^T, (n, channels of v, channels of v).
    """
    root = _inverse_root(gram)
    return spectral_norm(cross.double() @ root @ root.mT)


def least_squares_norm_of_few(g_gram: Tensor, v_gram: Tensor) -> Tensor:
    """The same as :func:`least_squares_norm` where there are fewer positions P than channels.

    There G = g (v^T v)^-1 v^T with g and v as matrices (channels, P), so G G^T = g (v^T v)^-1 g^T.

    Args:
        g_gram: g^T g, (n, P, P).
        v_gram: v^T v, (n, P, P).
    """
    root = _inverse_root(v_gram)
    return _root_of_largest(root.mT @ g_gram.double() @ root)


def _inverse_root(gram: Tensor) -> Tensor:
    """Return W with W W^T the (pseudo-)inverse of (n, C, C) symmetric positive semi-definite matrices."""
    n = gram.shape[-1]
    gram = gram.double()  # sums of +-1, hence exact, so that a singular matrix shows as one
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    if not bool(failed.any()) and bool((pivots.amin(-1) > 0.03 * pivots.amax(-1)).all()):
        identity = torch.eye(n, dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve_triangular(factor.mT, identity.expand_as(gram), upper=True)
    values, vectors = torch.linalg.eigh(gram)
    noise = values[..., -1:] * n * torch.finfo(torch.float32).eps  # the products with g are known no better
    return vectors * values.where(values > noise, math.inf).rsqrt().unsqueeze(-2)


def _root_of_largest(matrices: Tensor) -> Tensor:
    """Square root of the largest eigenvalue of (n, C, C) symmetric positive semi-definite matrices."""
    return torch.linalg.eigvalsh(matrices)[..., -1].clamp_min(0.0).sqrt()


def _as_number(flags: Tensor) -> Tensor:
    return flags[:, 0].float()


def _results(jobs: list[_Job], n: int) -> list[float]:
    """Return a number for each of ``n`` blocks: NaN where no job has it, or one of its matrices is not finite."""
    results = [math.nan] * n
    alike: dict[Any, list[_Job]] = {}
    for job in jobs:
        alike.setdefault((job.function, *(stack.shape[1:] for stack in job.stacks)), []).append(job)
    pending = []
    for (function, *_), group in alike.items():
        stacks = [torch.cat(column) for column in zip(*(job.stacks for job in group), strict=True)]
        pending.append(_Job([i for job in group for i in job.blocks], function, stacks))
    while pending:
        job = pending.pop()
        finite = torch.stack([torch.isfinite(stack).flatten(1).all(1) for stack in job.stacks]).all(0)
        if not bool(finite.all()):
            sound = [i for i, is_sound in zip(job.blocks, finite.tolist(), strict=True) if is_sound]
            job = _Job(sound, job.function, [stack[finite] for stack in job.stacks])
        if not job.blocks:
            continue
        try:
            values = job.function(*job.stacks).tolist()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # It did not converge: find out for which, and leave that NaN.
            if len(job.blocks) > 1:
                for k, i in enumerate(job.blocks):
                    pending.append(_Job([i], job.function, [stack[k : k + 1] for stack in job.stacks]))
            continue
        for i, value in zip(job.blocks, values, strict=True):
            results[i] = value
    return results


def _to_cpu(jobs: list[_Job]) -> list[_Job]:
    """Move the stacks of all jobs to the CPU in one transfer, but for those that a GPU decomposes faster."""
    small = [job for job in jobs if max(max(stack.shape[1:]) for stack in job.stacks) < _LARGE]
    stacks = [stack for job in small for stack in job.stacks]
    if not stacks or stacks[0].device.type == "cpu":
        return jobs
    pieces = torch.cat([stack.flatten() for stack in stacks]).cpu().split([stack.numel() for stack in stacks])
    moved = iter([piece.view(stack.shape) for piece, stack in zip(pieces, stacks, strict=True)])
    return [_Job(job.blocks, job.function, [next(moved) for _ in job.stacks]) if job in small else job for job in jobs]


def _stacked(matrices: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(matrices)) if len(matrices) > 1 else matrices[0].unsqueeze(0)

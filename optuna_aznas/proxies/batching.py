"""Reducing the blocks' features to small matrices during a pass, and decomposing these in batches after it.

On a GPU, launching a kernel for each block costs more than the computation. So the blocks' matrices wait until enough
of them have come together, those of equal shapes are stacked and reduced by one kernel, and after the pass all reduced
matrices are transferred and decomposed together. On a CPU matrices are reduced at once, while the cache holds them, and
those of wide features are also decomposed at once, so that no two of them are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from optuna_aznas.proxies.spectra import WIDE, Squares, spectrum_of_squares

#: Bytes of features and gradients that may wait on a GPU.
_PENDING_BYTES = 2**26

#: Matrices with as many rows or columns are decomposed on the GPU, and so are wide ones; smaller ones on the CPU.
_LARGE = 512


class Decomposition(NamedTuple):
    """What is left to do after the pass for one quantity of each of several blocks.

    Attributes:
        quantity: Name of the quantity.
        function: Takes stacks (n, a, b) and returns a number (n,), or k numbers (n, k), of each; or :class:`Squares`,
            whose spectra are the numbers.
        stacks: Its arguments; n is the number of blocks.
    """

    quantity: str
    function: Callable[..., Tensor | Squares]
    stacks: list[Tensor]


#: Takes stacks (n, rows, columns) and reduces them to smaller ones.
Reduction: TypeAlias = Callable[..., Iterable[Decomposition]]


class _Job(NamedTuple):
    """A decomposition and the indices of the blocks that it is for."""

    blocks: list[int]
    quantity: str
    function: Callable[..., Tensor | Squares]
    stacks: list[Tensor]

    @property
    def size(self) -> int:
        """The most rows or columns of its matrices."""
        return max(max(stack.shape[1:]) for stack in self.stacks)

    @property
    def is_for_gpu(self) -> bool:
        """Whether a GPU is faster at it than a CPU."""
        return self.size >= _LARGE or min(min(stack.shape[1:]) for stack in self.stacks) >= WIDE


class BatchedDecompositions:
    """Collects matrices of blocks, reduces them during the pass and decomposes them after it."""

    def __init__(self) -> None:
        self.postponed: set[str] = set()  # quantities that are decomposed only by finish()
        self._waiting: dict[tuple[Any, ...], list[tuple[int, list[Tensor]]]] = {}  # by reduction and shapes
        self._waiting_bytes = 0
        self._jobs: list[_Job] = []
        self._results: dict[str, dict[int, Any]] = {}  # by quantity and block

    def add(self, block: int, reduction: Reduction, *matrices: Tensor) -> None:
        """Add a block's matrices (rows, columns) to what waits for ``reduction``. Half precision becomes float32."""
        matrices = tuple(m.float() if m.dtype in (torch.float16, torch.bfloat16) else m for m in matrices)
        key = (reduction, *(matrix.shape for matrix in matrices))
        self._waiting.setdefault(key, []).append((block, list(matrices)))
        self._waiting_bytes += sum(matrix.nbytes for matrix in matrices)

    def reduce_if_due(self, device: torch.device) -> None:
        """Reduce what waits: on a CPU at once, on a GPU when there is much of it."""
        if self._waiting_bytes > _PENDING_BYTES or device.type == "cpu":
            self.reduce()

    def reduce(self) -> None:
        """Reduce everything that waits."""
        for (reduction, *_), group in self._waiting.items():
            blocks, rows = zip(*group, strict=True)
            stacks = [_stacked(column) for column in zip(*rows, strict=True)]
            for job in (_Job(list(blocks), *decomposition) for decomposition in reduction(*stacks)):
                if stacks[0].device.type == "cpu" and job.size >= WIDE and job.quantity not in self.postponed:
                    self._decompose([job])
                else:
                    self._jobs.append(job)
        self._waiting.clear()
        self._waiting_bytes = 0

    def finish(self, n: int, without: Collection[str] = ()) -> dict[str, list[Any]]:
        """Reduce what still waits, decompose everything, and return each quantity of each of ``n`` blocks.

        Quantities in ``without`` are dropped. A number is NaN where the block has no such quantity, one of its matrices
        is not finite, or the decomposition does not converge.
        """
        self.reduce()
        alike: dict[Any, list[_Job]] = {}
        for job in _on_cpu([job for job in self._jobs if job.quantity not in without]):
            alike.setdefault((job.quantity, job.function, *(s.shape[1:] for s in job.stacks)), []).append(job)
        self._decompose([_merged(jobs) for jobs in alike.values()])
        return {quantity: [results.get(i, math.nan) for i in range(n)] for quantity, results in self._results.items()}

    def _decompose(self, jobs: Sequence[_Job]) -> None:
        """Decompose the matrices of some jobs and keep the results of the blocks where this is possible.

        A GPU is given its jobs first, and its results are waited for last.
        """
        on_gpu_first = sorted(_finite_parts(jobs), key=lambda job: job.stacks[0].device.type == "cpu")
        launched = [(job.quantity, *part) for job in on_gpu_first for part in _parts(job)]
        numbers = _finished([values for *_, values in launched])
        for (quantity, blocks, _), values in zip(launched, numbers, strict=True):
            self._results.setdefault(quantity, {}).update(zip(blocks, values.tolist(), strict=True))


def _finished(results: Sequence[Tensor | Squares]) -> list[Tensor]:
    """Return the results of decompositions, where spectra are left to measure those of one size together."""
    numbers = {i: result for i, result in enumerate(results) if isinstance(result, Tensor)}
    by_size: dict[int, dict[int, Tensor]] = {}
    for i, result in enumerate(results):
        if isinstance(result, Squares):
            by_size.setdefault(result.matrices.shape[-1], {})[i] = result.matrices
    for squares in by_size.values():
        together = _spectra(torch.cat(list(squares.values())))
        numbers |= zip(squares, together.split([len(stack) for stack in squares.values()]), strict=True)
    return [numbers[i] for i in range(len(results))]


def _spectra(squares: Tensor) -> Tensor:
    """Return the spectra of matrices; NaN where a decomposition does not converge."""
    try:
        return spectrum_of_squares(squares)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if len(squares) == 1:
            return squares.new_full((1, 3), math.nan)
        return torch.cat([_spectra(each) for each in squares.split(1)])


def _parts(job: _Job) -> list[tuple[list[int], Tensor | Squares]]:
    """Return the results of a job and the blocks that they are for, without those where it does not converge."""
    if not job.blocks:
        return []
    try:
        return [(job.blocks, job.function(*job.stacks))]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if len(job.blocks) == 1:
            return []
        alone = (
            job._replace(blocks=[i], stacks=[stack[k : k + 1] for stack in job.stacks])
            for k, i in enumerate(job.blocks)
        )
        return [part for each in alone for part in _parts(each)]


def _stacked(matrices: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(matrices)) if len(matrices) > 1 else matrices[0].unsqueeze(0)


def _on_cpu(jobs: list[_Job]) -> list[_Job]:
    """Move the stacks of all jobs to the CPU in one transfer, except those that a GPU decomposes faster."""
    small = [job for job in jobs if not job.is_for_gpu]
    stacks = [stack for job in small for stack in job.stacks]
    if not stacks or stacks[0].device.type == "cpu":
        return jobs
    pieces = torch.cat([stack.flatten() for stack in stacks]).cpu().split([stack.numel() for stack in stacks])
    moved = iter([piece.view(stack.shape) for piece, stack in zip(pieces, stacks, strict=True)])
    on_cpu = {id(job): [next(moved) for _ in job.stacks] for job in small}
    return [job._replace(stacks=on_cpu.get(id(job), job.stacks)) for job in jobs]


def _merged(jobs: list[_Job]) -> _Job:
    """Return one job for all blocks of several with equal shapes."""
    stacks = [torch.cat(column) for column in zip(*(job.stacks for job in jobs), strict=True)]
    return jobs[0]._replace(blocks=[i for job in jobs for i in job.blocks], stacks=stacks)


def _finite_parts(jobs: Sequence[_Job]) -> list[_Job]:
    """Return the jobs without the blocks whose matrices are not finite. Flags are transferred from a GPU together."""
    flags = [torch.stack([torch.isfinite(stack).flatten(1).all(1) for stack in job.stacks]).all(0) for job in jobs]
    on_gpu = [flag for flag in flags if flag.device.type != "cpu"]
    moved = iter(torch.cat(on_gpu).cpu().split([len(flag) for flag in on_gpu]) if on_gpu else ())
    finite = [flag if flag.device.type == "cpu" else next(moved) for flag in flags]
    return [job if bool(kept.all()) else _kept(job, kept) for job, kept in zip(jobs, finite, strict=True)]


def _kept(job: _Job, flags: Tensor) -> _Job:
    """Return a job for those of its blocks whose flag (n,) is set."""
    blocks = [i for i, flag in zip(job.blocks, flags.tolist(), strict=True) if flag]
    return job._replace(blocks=blocks, stacks=[stack[flags.to(stack.device)] for stack in job.stacks])

"""Reducing the blocks' features to small matrices during a pass, and decomposing these in batches after it.

On a GPU, launching a kernel for each block costs more than the computation. So the blocks' matrices wait until enough
of them have come together, and those of equal shapes are stacked and reduced by one kernel. After the pass all are
measured on the GPU by products of matrices, and the CPU decomposes the few for which that does not do. On a CPU
matrices are reduced at once, while the cache holds them, and those of wide features are also decomposed at once, so
that no two of them are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from optuna_aznas.proxies import matrix_functions
from optuna_aznas.proxies.matrix_functions import Wanted
from optuna_aznas.proxies.spectra import WIDE

#: Bytes of features and gradients that may wait on a GPU.
_PENDING_BYTES = 2**26

#: Where products of matrices do not do, those with as many rows or columns are decomposed on the GPU, and wide ones.
_LARGE = 512


class Decomposition(NamedTuple):
    """What is left to do after the pass for one quantity of each of several blocks.

    Attributes:
        quantity: Name of the quantity.
        function: Takes stacks (n, a, b) and returns a number (n,), or k numbers (n, k), of each.
        stacks: Its arguments; n is the number of blocks.
        by_products: What a GPU measures of the stacks instead, by products of matrices; ``None``: it decomposes them.
    """

    quantity: str
    function: Callable[..., Tensor]
    stacks: list[Tensor]
    by_products: Wanted | None = None


#: Takes stacks (n, rows, columns) and reduces them to smaller ones.
Reduction: TypeAlias = Callable[..., Iterable[Decomposition]]


class _Job(NamedTuple):
    """A decomposition and the indices of the blocks that it is for."""

    blocks: list[int]
    quantity: str
    function: Callable[..., Tensor]
    stacks: list[Tensor]
    by_products: Wanted | None

    @property
    def size(self) -> int:
        """The most rows or columns of its matrices."""
        return max(max(stack.shape[1:]) for stack in self.stacks)

    @property
    def products(self) -> matrix_functions.Job | None:
        """The same for products of matrices, where its matrices lie on a GPU."""
        if self.by_products is None or self.stacks[0].device.type == "cpu":
            return None
        return matrix_functions.Job(self.by_products, self.stacks)

    @property
    def is_for_gpu(self) -> bool:
        """Whether a GPU is faster than a CPU at decomposing its matrices."""
        return self.size >= _LARGE or min(min(stack.shape[1:]) for stack in self.stacks) >= WIDE

    def rows(self, which: Sequence[int]) -> _Job:
        """Return the job for some of its blocks, given by their positions among them, on the CPU."""
        stacks = [stack[list(which)].cpu() for stack in self.stacks]
        return self._replace(blocks=[self.blocks[k] for k in which], stacks=stacks)


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
        jobs = [job for job in self._jobs if job.quantity not in without]
        by_products = [(job, products) for job in jobs if (products := job.products) is not None]
        launched = matrix_functions.launch([products for _, products in by_products])
        self._decompose(_merged(_on_cpu([job for job in jobs if job.products is None])))
        for (job, _), values in zip(by_products, launched.finish(launched.numbers.cpu()), strict=True):
            self._keep(job, values)
            unknown = values.view(len(values), -1)[:, 0].isnan().nonzero().flatten().tolist()
            self._decompose([job.rows(unknown)] if unknown else [])
        return {quantity: [results.get(i, math.nan) for i in range(n)] for quantity, results in self._results.items()}

    def _decompose(self, jobs: Sequence[_Job]) -> None:
        """Decompose the matrices of some jobs and keep the results of the blocks where this is possible."""
        for job in jobs:
            flags = [torch.isfinite(stack).flatten(1).all(1) for stack in job.stacks]
            finite = torch.stack(flags).all(0).tolist()
            if not all(finite):
                job = job.rows([k for k, flag in enumerate(finite) if flag])
            for part, values in _parts(job):
                self._keep(part, values)

    def _keep(self, job: _Job, values: Tensor) -> None:
        self._results.setdefault(job.quantity, {}).update(zip(job.blocks, values.tolist(), strict=True))


def _parts(job: _Job) -> list[tuple[_Job, Tensor]]:
    """Return a job with its results, or where it does not converge those of its blocks for which it does."""
    if not job.blocks:
        return []
    try:
        return [(job, job.function(*job.stacks))]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if len(job.blocks) == 1:
            return []
        return [part for k in range(len(job.blocks)) for part in _parts(job.rows([k]))]


def _on_cpu(jobs: Sequence[_Job]) -> list[_Job]:
    """Move the stacks of all jobs to the CPU in one transfer, except those that a GPU decomposes faster."""
    moving = {id(stack): stack for job in jobs if not job.is_for_gpu for stack in job.stacks}
    if not moving:
        return list(jobs)
    stacks = list(moving.values())
    if stacks[0].device.type == "cpu":
        return list(jobs)
    pieces = torch.cat([stack.flatten() for stack in stacks]).cpu().split([stack.numel() for stack in stacks])
    on_cpu = {key: piece.view(stack.shape) for (key, stack), piece in zip(moving.items(), pieces, strict=True)}
    return [job._replace(stacks=[on_cpu.get(id(stack), stack) for stack in job.stacks]) for job in jobs]


def _merged(jobs: Sequence[_Job]) -> list[_Job]:
    """Put jobs of one kind whose matrices have equal shapes together."""
    alike: dict[Any, list[_Job]] = {}
    for job in jobs:
        alike.setdefault((job.quantity, job.function, *(stack.shape[1:] for stack in job.stacks)), []).append(job)
    return [_together(some) if len(some) > 1 else some[0] for some in alike.values()]


def _together(jobs: Sequence[_Job]) -> _Job:
    stacks = [torch.cat(column) for column in zip(*(job.stacks for job in jobs), strict=True)]
    return jobs[0]._replace(blocks=[i for job in jobs for i in job.blocks], stacks=stacks)


def _stacked(matrices: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(matrices)) if len(matrices) > 1 else matrices[0].unsqueeze(0)

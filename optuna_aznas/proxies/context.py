"""One network with the draws of one repeat: what the proxies are computed from."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from optuna_aznas.proxies.features.block_pass import Observer, PassReport
from optuna_aznas.proxies.model.isolation import Substitute
from optuna_aznas.proxies.model.nested import tensors_in
from optuna_aznas.proxies.scores import BlockScores

#: The estimate of the blocks' mean Jacobians: see :class:`~optuna_aznas.proxies.ProxyEvaluator`.
Jacobian: TypeAlias = Literal["moment", "least-squares"]

#: Random streams with a place of their own in the seed's state. Any other name is a stream too.
_STREAMS = ("weights", "noise", "cotangents", "modes", "tokens", "labels", "zen")


@dataclasses.dataclass(frozen=True)
class Seeds:
    """The random streams of one repeat, one for each purpose.

    With a stream for each purpose, networks of different size run on the same noise, and naming one proxy changes no
    other.

    Attributes:
        seed: The evaluator's seed.
        repeat: The number of the repeat, from 0.
    """

    seed: int
    repeat: int

    def of(self, purpose: str) -> int:
        """Return the 63-bit seed of a stream; a new purpose may have any name."""
        if purpose in _STREAMS:
            words = np.random.SeedSequence([self.seed, self.repeat]).generate_state(len(_STREAMS), np.uint64)
            return int(words[_STREAMS.index(purpose)]) >> 1  # torch takes 63 bits
        named = np.random.SeedSequence([self.seed, self.repeat, zlib.crc32(purpose.encode())])
        return int(named.generate_state(1, np.uint64)[0]) >> 1


@dataclasses.dataclass(frozen=True)
class ScoringContext:
    """A model that is ready to be run.

    Attributes:
        model: The model, in the mode in which it should run.
        transformer: Whether it is scored as a transformer.
        state: Substitutes for its parameters and buffers; nothing in it requires a gradient.
        batch: A tensor; a tuple or list of positional arguments; or a mapping of keyword arguments.
        second_batch: Returns another batch.
        seeds: The random streams.
        device: Where everything is computed.
        jacobian: The estimate behind trainability.
    """

    model: nn.Module
    transformer: bool
    state: Sequence[Substitute]
    batch: Any
    second_batch: Callable[[], Any]
    seeds: Seeds
    device: torch.device
    jacobian: Jacobian = "least-squares"

    @property
    def samples(self) -> int:
        """Samples in the batch."""
        return next(tensors_in(self.batch)).shape[0]

    def generator(self, purpose: str) -> torch.Generator:
        """Return a new generator at the start of the stream for a purpose, on the context's device."""
        return torch.Generator(device=self.device).manual_seed(self.seeds.of(purpose))


@dataclasses.dataclass(frozen=True)
class FeaturePass:
    """A pass over a model's features after it has run.

    Attributes:
        context: The model that was run.
        report: How the pass went.
        blocks: What was measured at the stem and each block, in the order of execution.
        block_source: How the blocks were chosen, in words.
        observers: The observers of the proxies that have one, by the proxy's name.
        run_again: Takes another batch and an observer, and runs the model on that batch with the same blocks, without
            products.
    """

    context: ScoringContext
    report: PassReport
    blocks: Sequence[BlockScores]
    block_source: str
    observers: Mapping[str, Observer]
    run_again: Callable[[Any, Observer], PassReport]

    @property
    def isotropic(self) -> bool:
        """Whether the model is a transformer whose features all have one width.

        Their numbers of positions may differ: a class token is added behind the patch embedding.
        """
        return self.context.transformer and len({block.channels for block in self.blocks}) == 1

"""What a proxy declares: its name, the pass that it needs, and the function that computes it.

Proxies of one stage share its passes. A proxy of a stage is computed by ``function`` from what that stage provides, or
watches the stage's first forward pass with an ``observer`` of its own.

=================  ==========================  ======================================================================
stage              the function takes          what is run
=================  ==========================  ======================================================================
``FEATURES``       :class:`FeaturePass`        one forward and, if needed, one backward pass, block by block
``LOSS``           :class:`LossPass`           a forward pass to a loss with drawn labels; its backward pass, and both
                                               on a second batch, when a proxy asks for them
``MODEL``          :class:`ScoringContext`     nothing, or passes of the proxy's own
=================  ==========================  ======================================================================

To add a proxy: write a module with its formula and ``PROXIES = (Proxy(...),)``, and list that module in
:mod:`optuna_aznas.proxies.registry`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

from optuna_aznas.proxies.context import ScoringContext
from optuna_aznas.proxies.features.block_pass import Observer


class Stage(enum.Enum):
    """Which passes a proxy is computed from."""

    FEATURES = "features"
    LOSS = "loss"
    MODEL = "model"


class Needs(enum.Flag):
    """What a stage must do beyond its forward pass; it is left out where no named proxy needs it."""

    FORWARD = 0  # nothing more
    ENTROPIES = enum.auto()  # FEATURES: the entropy of each feature
    PRODUCTS = enum.auto()  # FEATURES: each block's vector-Jacobian product
    SPECTRA = enum.auto()  # FEATURES: with PRODUCTS, all singular values of each mean Jacobian that shows them
    SPECTRAL_NORMS = enum.auto()  # FEATURES: with PRODUCTS, the largest singular value of each mean Jacobian
    MACS = enum.auto()  # FEATURES: multiply-accumulates
    INPUT_GRADIENTS = enum.auto()  # LOSS: gradients of the outputs with respect to the input
    SECOND_DERIVATIVES = enum.auto()  # LOSS: the weights' gradients keep their graph


@dataclasses.dataclass(frozen=True)
class Proxy:
    """A proxy that can be named in ``ProxyEvaluator(proxies=...)``. Exactly one of its last two fields is set.

    Attributes:
        name: The proxy's name.
        stage: Which passes it is computed from.
        needs: What the stage must do for it.
        function: Takes what the stage provides, and returns the proxy score.
        observer: Returns a new observer of the stage's forward pass, whose score is the proxy's.
    """

    name: str
    stage: Stage
    needs: Needs = Needs.FORWARD
    function: Callable[[Any], float] | None = None
    observer: Callable[[ScoringContext], Observer] | None = None

    def score(self, provided: Any) -> float:
        """Return the proxy score from what the stage provides (see the module's table)."""
        if self.function is not None:
            return self.function(provided)
        observer: Observer = provided.observers[self.name]
        return observer.score()

"""The one exception that scoring a model raises."""

from __future__ import annotations


class ProxyEvaluationError(RuntimeError):
    """A model could not be scored.

    The message names the module, the shape and the remedy; the original error, where there is one, is
    chained as ``__cause__``. A model that merely behaves badly (NaN or infinite activations, gradients
    that die) is no error: it gets a score, usually ``-inf``.
    """

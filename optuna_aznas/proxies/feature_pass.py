"""Running a model over its features: the attempts to find them, in order, until one convinces.

Where a model's module tree shows its blocks, hooks on these modules are tried first. Where it does not, the model is
run as a whole and its autograd graph shows them. Each plan has a list of attempts:

===========================================  =================================================================
plan                                         attempts
===========================================  =================================================================
blocks named by the user                     at these modules
found in the module tree, beyond doubt       at these modules; if few of them run on the output of another, as a
                                             whole; if that fails, the first result counts
found in the module tree, with doubt         as a whole; if that fails, at these modules
none found in the module tree                as a whole; if there is but one, the model's input is a feature, too
===========================================  =================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from optuna_aznas.proxies.aznas import BlockObserver
from optuna_aznas.proxies.context import FeaturePass, ScoringContext
from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.features.block_pass import BlockPass, Observer, PassReport, PassRequest
from optuna_aznas.proxies.features.blocks import BlockPlan, candidates
from optuna_aznas.proxies.features.cotangents import random_signs
from optuna_aznas.proxies.features.hooks import run_blocks
from optuna_aznas.proxies.features.wholegraph import NoGradientError, NotFoundError, run_whole
from optuna_aznas.proxies.model.forward import is_out_of_memory
from optuna_aznas.proxies.proxy import Needs, Proxy
from optuna_aznas.proxies.scores import BlockScores

#: How blocks were chosen, as :attr:`ProxyScores.block_source` says it.
NAMED = "named by blocks="
FROM_TREE = "found in the tree of modules"
FROM_RUN = "found by running the model: tensors through which everything passes"
WITH_INPUT = "one found by running the model, and the model's input beside it"


class _Attempt(NamedTuple):
    """One way to run a model over its features."""

    block_source: str
    run: Callable[[PassRequest], PassReport]
    tolerated: tuple[type[ProxyEvaluationError], ...]  # after these errors the next attempt is made


class _Run(NamedTuple):
    """A pass that worked, and what watched it."""

    attempt: _Attempt
    report: PassReport
    blocks: BlockObserver
    observers: Mapping[str, Observer]


def run_features(
    context: ScoringContext, plan: BlockPlan, proxies: Sequence[Proxy], needs: Needs, *, last_try: bool
) -> FeaturePass:
    """Run a model over its features, and measure what the named proxies need.

    Args:
        context: The model, and what it is run on.
        plan: Where to look for its features.
        proxies: The named proxies of this stage.
        needs: What they need.
        last_try: Whether this is the last way to prepare the model. If not, a model that fails to run as a whole is
            prepared in another way first.

    Raises:
        ProxyEvaluationError: The model failed to run, or shows fewer than two features.
    """
    run = _first_convincing(_attempts(plan, last_try), context, plan, proxies, needs)
    if len(run.report.features) < 2:
        raise _too_few(context, plan, run.report.features)

    def run_again(batch: Any, observer: Observer) -> PassReport:
        with observer.surround():
            return run.attempt.run(PassRequest(context.model, context.state, batch, [observer], None, False))

    blocks, source = run.blocks.finish(), run.attempt.block_source
    if plan.automatic:
        blocks = _without_pooled_head(blocks)
    return FeaturePass(context, run.report, blocks, source, run.observers, run_again)


def _without_pooled_head(blocks: list[BlockScores]) -> list[BlockScores]:
    """Leave out the last features where pooling has left one position for each sample, if features before have more.

    The rank of such a feature's covariance is at most the number of samples, so its entropy tells the batch size. It
    would be the lowest of all steps in every network that is written with its pooling inside the last block, and absent
    in the same network written otherwise.
    """
    if not any(_has_positions(block) for block in blocks):  # a network of vectors
        return blocks
    kept = len(blocks)
    while kept > 2 and not _has_positions(blocks[kept - 1]):
        kept -= 1
    return blocks[:kept]


def _has_positions(block: BlockScores) -> bool:
    """Whether a feature has more than one position for each sample: not a vector, nor a pooled image."""
    return len(block.shape) > 1 and math.prod(block.shape[1:]) > 1


def _attempts(plan: BlockPlan, last_try: bool) -> list[_Attempt]:
    at_modules = partial(run_blocks, blocks=plan.blocks, inside=plan.inside)
    if not plan.automatic:
        return [_Attempt(NAMED, at_modules, ())]
    if plan.trusted:
        return [_Attempt(FROM_TREE, at_modules, ()), _Attempt(FROM_RUN, run_whole, (ProxyEvaluationError,))]
    if len(plan.blocks) < 2:
        with_input = partial(run_whole, with_input=True)
        return [_Attempt(FROM_RUN, run_whole, (NotFoundError,)), _Attempt(WITH_INPUT, with_input, ())]
    tolerated = ProxyEvaluationError if last_try else NotFoundError
    return [_Attempt(FROM_RUN, run_whole, (tolerated,)), _Attempt(FROM_TREE, at_modules, ())]


def _first_convincing(
    attempts: Sequence[_Attempt],
    context: ScoringContext,
    plan: BlockPlan,
    proxies: Sequence[Proxy],
    needs: Needs,
) -> _Run:
    """Make the attempts in order; return the first convincing run, or else the first that worked at all."""
    worked: list[_Run] = []
    for attempt in attempts:
        try:
            run = _run(attempt, context, proxies, needs)
        except ProxyEvaluationError as error:
            if is_out_of_memory(error.__cause__):  # another attempt might fit, and scores must not depend on that
                raise
            if isinstance(error, attempt.tolerated) and (worked or not isinstance(error, NoGradientError)):
                continue
            if isinstance(error, NotFoundError):
                raise _not_found(context, error) from None
            raise
        if not plan.trusted or (run.report.connected and len(run.report.features) >= 2):
            return run
        worked.append(run)
    return worked[0]


def _run(attempt: _Attempt, context: ScoringContext, proxies: Sequence[Proxy], needs: Needs) -> _Run:
    """Run the model once, with new observers."""
    blocks = BlockObserver(
        needs=needs,
        jacobian=context.jacobian,
        transformer=context.transformer,
        samples=context.samples,
    )
    observers = {proxy.name: proxy.observer(context) for proxy in proxies if proxy.observer is not None}
    observe: list[Callable[[BlockPass], None]] = [blocks, *observers.values()]
    draw: Callable[[Tensor], Tensor] | None = None
    if Needs.PRODUCTS in needs:
        draw = random_signs(context.generator("cotangents"))
    request = PassRequest(context.model, context.state, context.batch, observe, draw, Needs.MACS in needs, trace=True)
    with ExitStack() as stack:
        for observer in observers.values():
            stack.enter_context(observer.surround())
        report = attempt.run(request)
    return _Run(attempt, report, blocks, observers)


def _not_found(context: ScoringContext, error: NotFoundError) -> ProxyEvaluationError:
    model = context.model
    return ProxyEvaluationError(
        f"No blocks found in {type(model).__name__}: it has no repeated units and fewer than two "
        f"layers with weights below its head, and {error}. {candidates(model)}"
    )


def _too_few(context: ScoringContext, plan: BlockPlan, features: Sequence[str]) -> ProxyEvaluationError:
    ran = f"only {features[0]!r} ran" if features else "none of them ran"
    names = ", ".join(map(repr, plan.blocks))
    return ProxyEvaluationError(
        f"{type(context.model).__name__} shows fewer than two features: of its blocks ({names}) "
        f"{ran}, and there was no stem before. Name two or more blocks with ProxyEvaluator(blocks=[...])."
    )

"""diagnose: the proxy scores of one model block by block, and findings about them in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from optuna_aznas._text import for_terminal, html_table, in_html, plain_number, text_table
from optuna_aznas.proxies.aznas import AZNAS_PROXIES
from optuna_aznas.proxies.evaluator import ProxyEvaluator
from optuna_aznas.proxies.scores import BlockScores, ProxyScores

#: Trainability below which gradients die or explode in a block: t = 2 - sigma - 1/sigma at sigma = 0.5 or 2. Ten such
#: blocks in a row make a factor of a thousand. In networks that train well sigma is 1.1 to 1.5 in a residual block,
#: 0.55 to 0.6 in a convolution with batch normalisation and ReLU, and up to 1.9 in a strided block.
LOW_TRAINABILITY = -0.5

#: Largest product of all sigmas, or smallest inverse. It bounds how the mean gradient changes from the last block to
#: the first, and beyond a thousand no learning rate suits both ends.
GRADIENT_RANGE = 1e3

#: Share of the previous feature's directions whose loss is a finding: a step of log(1 - 0.25) = -0.29 nats.
LOST_DIRECTIONS = 0.25

#: Entropy (nats) below which features vary along one direction only: zero up to rounding.
ONE_DIRECTION = 0.01

#: Share of the possible directions below which features count as collapsed. In sound networks at random weights and on
#: noise, features vary along a third and more.
COLLAPSED = 0.1

COSTLY = 2.0  # multiple of the average share of complexity from which a block is costly
LITTLE = 0.05  # step (nats) below which a block gives little: fewer than 5% more directions


_HEADER = ("block", "shape", "entropy", "step", "sigma", "trainability", "MACs", "share")

_LEGEND = (
    "step: change of entropy from the block before, in nats; sigma: largest singular value of the block's mean "
    "Jacobian; -: not defined, as for the stem."
)


@dataclasses.dataclass(frozen=True)
class BlockDiagnosis(BlockScores):
    """The proxy scores of one block, and what is conspicuous about them.

    The attributes of :class:`BlockScores`, and:

    Attributes:
        share: The share of the model's whole complexity, 0 to 1; NaN where the model has none. What follows the last
            block, the head, belongs to no block.
        findings: What is conspicuous, in plain words, each with the rule behind it.
    """

    share: float
    findings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of a model block by block; prints as a table.

    Attributes:
        blocks: A :class:`BlockDiagnosis` for the stem and each block, in the order of execution.
        scores: The proxy scores of the model, with the evaluator's proxies.
        findings: What is conspicuous in the model as a whole; the first says how the blocks were chosen.
        model_name: Name of the model's class.
    """

    blocks: tuple[BlockDiagnosis, ...]
    scores: ProxyScores
    findings: tuple[str, ...]
    model_name: str

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a dict for each block that JSON can hold: NaN is ``None``, an infinity a string such as ``"-inf"``."""
        return [{name: _plain(value) for name, value in dataclasses.asdict(block).items()} for block in self.blocks]

    def __str__(self) -> str:
        lines = [f"{for_terminal(self.model_name)}, block by block. {_LEGEND}", ""]
        findings_of_rows = [(), *(block.findings for block in self.blocks)]
        table = text_table([_HEADER, *map(_row, self.blocks)], left=(0, 1))
        for row, findings in zip(table, findings_of_rows, strict=True):
            lines += [row, *(f"    ! {for_terminal(finding)}" for finding in findings)]
        return "\n".join([*lines, "", self._scores(), *(f"- {for_terminal(finding)}" for finding in self.findings)])

    def _repr_html_(self) -> str:
        rows = [[*_row(block), "; ".join(block.findings)] for block in self.blocks]
        findings = "".join(f"<li>{in_html(finding)}</li>" for finding in self.findings)
        return (
            f"<p><b>{in_html(self.model_name)}</b>, block by block. {in_html(_LEGEND)}</p>"
            f"{html_table([*_HEADER, 'findings'], rows, left=(0, 1, len(_HEADER)))}"
            f"<p>{in_html(self._scores())}</p><ul>{findings}</ul>"
        )

    def _scores(self) -> str:
        return "scores: " + ", ".join(f"{name} {plain_number(value)}" for name, value in self.scores.to_dict().items())


def diagnose(model: nn.Module, evaluator: ProxyEvaluator) -> Diagnosis:
    """Diagnose a model block by block: where it loses expressivity or gradients, and which blocks cost much for little.

    The rules, for each block:

    * *dead*: the entropy is 0 or undefined, as the output is constant or not finite.
    * *collapsed*: fewer than a tenth of the directions that the features could have; ``exp(entropy)`` counts
      directions. Sound networks keep a third and more.
    * *loses expressivity*: a step of -0.29 nats or less, a quarter of the directions before. If the block
      has fewer channels than it is given, that is said too.
    * *gradients die* or *explode*: sigma below 0.5 or above 2 (where ``trainability`` is below -0.5), as ten such
      blocks in a row change gradients a thousandfold.
    * *does nothing*: its Jacobian is the identity.
    * *costs much for little*: at least twice the average share of the complexity, and a step below 0.05 nats.

    And for the model: how the blocks were chosen; the product of all sigmas beyond a factor of a thousand;
    no growth of entropy from the first block to the last; a proxy score that is not finite, with its cause.

    Args:
        model: The model; it comes back untouched.
        evaluator: Determines the inputs, weights and blocks. All four AZ-NAS proxies are computed, whether it names
            them or not.

    Returns:
        The diagnosis: ``print`` it, or take its ``blocks``, ``findings`` and ``to_dicts()``.

    Raises:
        ProxyEvaluationError: The model cannot be scored.
        TypeError: ``model`` is no ``torch.nn.Module``, or ``evaluator`` no :class:`ProxyEvaluator`.

    Example:
        >>> from torch import nn
        >>> def conv(c_in, c_out):
        ...     return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())
        >>> model = nn.Sequential(conv(3, 16), conv(16, 2), conv(2, 16))
        >>> diagnosis = diagnose(model, ProxyEvaluator(input_shape=(3, 16, 16), device="cpu"))
        >>> print(diagnosis.blocks[1].findings[0])
        loses expressivity: ... (step -... nats, rule: -0.29 or less); it narrows from 16 channels to 2
    """
    if not isinstance(evaluator, ProxyEvaluator):
        raise TypeError(f"evaluator must be a ProxyEvaluator; got {type(evaluator).__name__}.")
    missing = [name for name in AZNAS_PROXIES if name not in evaluator.proxies]
    full = evaluator.replace(proxies=(*evaluator.proxies, *missing))(model)
    values = full.to_dict()
    scores = ProxyScores(
        [values[name] for name in evaluator.proxies],
        names=evaluator.proxies,
        blocks=full.blocks,
        seconds=full.seconds,
        block_source=full.block_source,
        settings=evaluator.settings,
    )
    total = values["complexity"]
    blocks = []
    for i, block in enumerate(full.blocks):
        share = block.complexity / total if total > 0 else math.nan
        before = full.blocks[i - 1] if i else None
        fields = dataclasses.asdict(block)
        blocks.append(BlockDiagnosis(**fields, share=share, findings=_findings(block, before, share, len(full.blocks))))
    features = f"{len(blocks)} features, {full.block_source}: {_listed([block.name for block in blocks])}"
    return Diagnosis(tuple(blocks), scores, (features, *_model_findings(blocks, values)), type(model).__name__)


def _findings(block: BlockScores, before: BlockScores | None, share: float, n_blocks: int) -> tuple[str, ...]:
    rules: Sequence[Callable[[], str | None]] = (
        lambda: _entropy_finding(block),
        lambda: _step_finding(block, before),
        lambda: _gradient_finding(block),
        lambda: _cost_finding(block, share, n_blocks),
    )
    return tuple(finding for finding in (rule() for rule in rules) if finding)


def _entropy_finding(block: BlockScores) -> str | None:
    if math.isnan(block.entropy):
        return "dead: the output is constant or not finite (rule: its channels have no finite variance)"
    if block.entropy < ONE_DIRECTION:
        return f"dead: all channels carry one signal (rule: entropy below {ONE_DIRECTION} nats)"
    directions, possible = math.exp(block.entropy), block.channels
    if directions < COLLAPSED * possible:
        return (
            f"collapsed: the features vary along {directions:.1f} of {possible} directions "
            f"(rule: fewer than {COLLAPSED:.0%})"
        )
    return None


def _step_finding(block: BlockScores, before: BlockScores | None) -> str | None:
    limit = math.log(1 - LOST_DIRECTIONS)
    if before is None or not block.step <= limit:
        return None
    finding = (
        f"loses expressivity: {1 - math.exp(block.step):.0%} of the directions are gone "
        f"(step {block.step:+.2f} nats, rule: {limit:.2f} or less)"
    )
    channels = before.channels, block.channels
    if channels[1] < channels[0]:
        finding += f"; it narrows from {channels[0]} channels to {channels[1]}"
    return finding


def _gradient_finding(block: BlockScores) -> str | None:
    sigma = block.spectral_norm
    if is_identity(block):
        return "does nothing: it hands on what it is given (rule: its Jacobian is the identity)"
    if sigma == 0.0:
        return "no gradient passes: the output does not depend on the input (rule: sigma 0)"
    if block.trainability < LOW_TRAINABILITY and not math.isnan(sigma):
        what, rule = ("die", "below 0.5") if sigma < 1 else ("explode", "above 2")
        return f"gradients {what}: the block multiplies them by about {sigma:.2g} (rule: sigma {rule})"
    return None


def _cost_finding(block: BlockScores, share: float, n_blocks: int) -> str | None:
    average = 1 / n_blocks
    if share >= COSTLY * average and block.step < LITTLE:
        return (
            f"costs much for little: {share:.0%} of the complexity for a step of {block.step:+.2f} nats "
            f"(rule: at least {COSTLY * average:.0%}, twice the average, and a step below {LITTLE})"
        )
    return None


def is_identity(block: BlockScores) -> bool:
    """Whether a block returns its input: it has a finite sigma, but no finite trainability."""
    return math.isfinite(block.spectral_norm) and not math.isfinite(block.trainability)


def _model_findings(blocks: Sequence[BlockDiagnosis], values: dict[str, float]) -> list[str]:
    findings = []
    for name in AZNAS_PROXIES:
        if not math.isfinite(values[name]):
            culprits = [block.name for block in blocks[1:] if _spoils(block, name)]
            culprits = culprits or [blocks[0].name]
            findings.append(f"{name} is {values[name]}: look at {_listed(culprits)}")
    sigmas = [b.spectral_norm for b in blocks if b.spectral_norm > 0 and math.isfinite(b.spectral_norm)]
    product = math.prod(sigmas)
    if sigmas and not 1 / GRADIENT_RANGE <= product <= GRADIENT_RANGE:
        what = "die" if product < 1 else "explode"
        findings.append(
            f"gradients {what} over the whole depth: the sigmas of {len(sigmas)} blocks multiply to {product:.2g} "
            f"(rule: beyond a factor of {GRADIENT_RANGE:.0f})"
        )
    steps = [block.step for block in blocks[1:]]
    if steps and all(map(math.isfinite, steps)):
        if sum(steps) < 0:
            findings.append(
                f"expressivity falls over the whole depth: the entropy goes from {blocks[0].entropy:.2f} to "
                f"{blocks[-1].entropy:.2f} nats (rule: it should grow)"
            )
        worst = min(blocks[1:], key=lambda block: block.step)
        findings.append(f"the weakest step is {worst.name}'s, {worst.step:+.2f} nats: it decides progressivity")
    idle = [block.name for block in blocks if is_identity(block)]
    if idle:
        findings.append(f"{len(idle)} of {len(blocks)} blocks do nothing: {_listed(idle)}")
    return findings


def _spoils(block: BlockDiagnosis, proxy: str) -> bool:
    value = {
        "expressivity": block.entropy,
        "progressivity": block.step,
        "trainability": block.trainability,
        "complexity": block.complexity,
    }[proxy]
    return not math.isfinite(value)


def _listed(names: Sequence[str], at_most: int = 8) -> str:
    if len(names) <= at_most:
        return ", ".join(names)
    return f"{', '.join(names[: at_most - 1])}, ... {names[-1]}"


def _row(block: BlockDiagnosis) -> list[str]:
    """Return the cells of a block below ``_HEADER``."""

    def cell(value: float, form: str) -> str:
        return "-" if math.isnan(value) else format(value, form)

    return [
        for_terminal(block.name),
        "x".join(map(str, block.shape)),
        cell(block.entropy, ".2f"),
        cell(block.step, "+.2f"),
        cell(block.spectral_norm, ".3g"),
        cell(block.trainability, ".3g"),
        plain_number(block.complexity, 3),
        cell(block.share, ".1%"),
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value

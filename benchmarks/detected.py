"""Print the table of what block detection finds in models of the transformers package (docs/detected.rst).

    python -m benchmarks.detected > docs/detected.rst

The models are built from small configurations; nothing is downloaded.
"""

from __future__ import annotations

import itertools
import re
import warnings

import torch

from optuna_aznas import ProxyEvaluator, ProxyScores
from tests.proxies.transformers_models import CASES


def summary(scores: ProxyScores) -> str:
    """Features in order, those that differ only in numbers once, with how often they occur in a row."""
    kinds = [(re.sub(r"\d+", "*", block.name), "x".join(map(str, block.shape))) for block in scores.blocks]
    parts = []
    for shape, group in itertools.groupby(kinds, key=lambda kind: kind[1]):
        names = [name for name, _ in group]
        unique = ", ".join(f"``{name}``" for name in dict.fromkeys(names))
        parts.append(f"{len(names)} of {shape}: {unique}")
    return "; ".join(parts)


def main() -> None:
    """Print the table in reStructuredText."""
    import transformers

    warnings.simplefilter("ignore")
    print(".. list-table::\n   :header-rows: 1\n   :widths: 20 10 10 60\n")
    print("   * - model\n     - features\n     - found by\n     - which, by shape")
    for name, case in CASES.items():
        torch.manual_seed(0)
        scores = ProxyEvaluator(**case.inputs, batch_size=4, device="cpu")(case.build(transformers))
        source = "tree" if "tree" in scores.block_source else "running"
        print(f"   * - {name}\n     - {len(scores.blocks)}\n     - {source}\n     - {summary(scores)}")


if __name__ == "__main__":
    main()

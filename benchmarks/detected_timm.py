"""Print the table of what block detection finds in models of timm (docs/detected_timm.rst).

    python -m benchmarks.detected_timm > docs/detected_timm.rst

timm and torchvision are not among the project's requirements: pip install timm. Nothing is downloaded: the models are
built without their weights. Of each architecture the smallest ImageNet model is taken: architectures are those that
differ in the module that registers them, the class, or the first letters of the name.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from typing import Any

import torch

from optuna_aznas import ProxyEvaluationError, ProxyEvaluator, ProxyScores
from optuna_aznas.proxies import AZNAS, DEFAULT

_SMALL = 96  # height and width of the images, where a model takes any


def smallest_of_each(most_parameters: float) -> list[tuple[str, int]]:
    """Return a model of each architecture with its number of parameters, the smallest first."""
    import timm

    found: dict[tuple[str, ...], tuple[str, int]] = {}
    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        if config is None or config.num_classes != 1000:
            continue
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception as error:  # a few compute on weights when they are built
            print(f"{name}: not built on the meta device: {error}", file=sys.stderr)
            continue
        parameters = sum(parameter.numel() for parameter in model.parameters())
        letters = re.match("[a-z]*", name)
        module = timm.models.model_entrypoint(name).__module__
        architecture = (module, type(model).__qualname__, letters.group() if letters else "")
        if parameters < most_parameters and parameters < found.get(architecture, ("", parameters + 1))[1]:
            found[architecture] = name, parameters
    return sorted(found.values(), key=lambda entry: entry[1])


def score(name: str) -> tuple[ProxyScores | str, int]:
    """Return the proxy scores of a model, or the error's message, and the height of the images."""
    import timm

    config = timm.get_pretrained_cfg(name)
    assert config is not None
    options: dict[str, Any] = {"img_size": _SMALL} if config.fixed_input_size else {}
    own = config.input_size[-1]
    outcome: ProxyScores | str = ""
    for size, arguments in ((_SMALL, options), (own, {})):
        try:
            torch.manual_seed(0)
            model = timm.create_model(name, **arguments)
            proxies = tuple(dict.fromkeys((*DEFAULT, *AZNAS)))
            return ProxyEvaluator((3, size, size), batch_size=4, proxies=proxies, device="cpu")(model), size
        except (ProxyEvaluationError, TypeError, AssertionError, RuntimeError, ValueError) as error:
            outcome = str(error)  # many take images of one size only
    return outcome, own


def main() -> None:
    """Print the table in reStructuredText."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=50e6, help="of the largest model")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no model after so many")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    end = time.monotonic() + options.seconds
    print(".. csv-table::\n   :header: model, million parameters, image, features, found by\n")
    for name, parameters in smallest_of_each(options.parameters):
        if time.monotonic() > end:
            print(f"{name} and larger ones were not tried", file=sys.stderr)
            break
        outcome, size = score(name)
        if isinstance(outcome, str):
            print(f"{name}: {outcome}", file=sys.stderr)
            features, found_by = "none", "an error"
        else:
            features, found_by = str(len(outcome.blocks)), "tree" if "tree" in outcome.block_source else "running"
        print(f"   {name}, {parameters / 1e6:.1f}, {size}, {features}, {found_by}", flush=True)


if __name__ == "__main__":
    main()

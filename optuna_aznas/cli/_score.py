"""``optuna-aznas score``: scores one model and diagnoses it block by block."""

from __future__ import annotations

import argparse
import json
from typing import Any

from optuna_aznas._text import for_json
from optuna_aznas.cli._errors import CommandError, UsageError
from optuna_aznas.cli._loading import load_object
from optuna_aznas.cli._options import add_command, add_evaluator_options, names
from optuna_aznas.cli._output import Result

_EXAMPLES = """\
  optuna-aznas score my_nets:model --input-shape 3,32,32
  optuna-aznas score my_nets:model --input-shape 3,32,32 --blocks 0,1,2 --keep-weights
  optuna-aznas score my_nets:model --input-shape 3,32,32 --format json

'model' is a function without arguments that returns the network, a class, or the network itself."""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "score",
        run,
        summary="score one model and show block by block where it loses expressivity or gradients",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "model", metavar="module:factory", help="a function that returns a torch.nn.Module, or a module"
    )
    add_evaluator_options(parser)
    parser.add_argument(
        "--blocks", type=names, metavar="NAME,...", help="the model's primary blocks, or a pattern such as 'layers.*'"
    )
    parser.add_argument("--keep-weights", action="store_true", help="score with the model's own weights, not new ones")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="default: table")


def run(options: argparse.Namespace) -> Result:
    """Run the command."""
    if options.input_shape is None:
        raise UsageError("--input-shape is needed: the shape of one sample without the batch, such as 3,32,32.")
    factory = load_object(options.model, "a model")
    from torch import nn

    import optuna_aznas as az

    model = factory
    if not isinstance(model, nn.Module):
        if not callable(factory):
            raise CommandError(
                f"{options.model} is a {type(factory).__name__}, neither a torch.nn.Module nor a function."
            )
        try:
            model = factory()
        except Exception as error:
            raise CommandError(f"{options.model}() failed: {type(error).__name__}: {error}") from error
        except SystemExit as error:
            raise CommandError(f"{options.model}() called sys.exit({error.code!r}).") from error
        if not isinstance(model, nn.Module):
            raise CommandError(f"{options.model}() returned a {type(model).__name__}, not a torch.nn.Module.")
    try:
        evaluator = az.ProxyEvaluator(
            options.input_shape,
            batch_size=options.batch_size,
            blocks=options.blocks,
            init=None if options.keep_weights else "auto",
            device=options.device,
            seed=options.evaluator_seed or 0,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        diagnosis = az.diagnose(model, evaluator)
    except az.ProxyEvaluationError as error:
        raise CommandError(str(error)) from error
    if options.format == "json":
        scores = {name: for_json(value) for name, value in diagnosis.scores.to_dict().items()}
        report = {"scores": scores, "blocks": diagnosis.to_dicts(), "findings": list(diagnosis.findings)}
        return Result(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return Result(f"{diagnosis}\n")

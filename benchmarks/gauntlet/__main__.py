"""How well the proxies rank the networks of every space whose trained values are known.

    make bench-ranking                                     # a sample of each space; minutes on two CPU cores
    python -m benchmarks.gauntlet --all --workers 15       # all networks; minutes on a GPU
    python -m benchmarks.gauntlet --report-only            # the tables of an earlier run again, in seconds
    python -m benchmarks.gauntlet --check                  # build all networks, compare with the published sizes

Scores networks into tables (``--tables``), goes on where an earlier run stopped, and prints for each proxy, for the
aggregations and for plain sizes: Kendall's tau with the trained values, over all pairs and over those of about equal
multiply-accumulates, and the place of the network ranked first.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gauntlet import collect, report, spaces, tables
from benchmarks.shared_data import DATA

_SAMPLE = 100  # networks of a space by default, where it has as many
_SAMPLES = {"autoformer": 24, "torchvision": 24}  # fewer where a network takes seconds on a CPU


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from optuna_aznas.proxies import ALL_PROXIES, DEFAULT, EXTENDED
    from optuna_aznas.proxies.aznas import AZNAS_PROXIES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", choices=spaces.names(), default=list(spaces.names()), metavar="SPACE")
    parser.add_argument("--all", action="store_true", help="all networks of each space")
    parser.add_argument("--networks", type=int, help="so many networks of each space, a fixed random sample")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--proxies",
        nargs="+",
        choices=ALL_PROXIES,
        metavar="PROXY",
        default=list(dict.fromkeys((*DEFAULT, *AZNAS_PROXIES, *EXTENDED))),
        help="default: those of DEFAULT and EXTENDED and the paper's four; sizes are always there",
    )
    parser.add_argument("--batch-size", type=int, help="samples in a batch (default: the evaluator's)")
    parser.add_argument("--moment", action="store_true", help="also trainability by moments, as in the paper")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--limit-seconds", type=float, default=math.inf, help="stop scoring after so many seconds")
    parser.add_argument("--tables", type=Path, default=Path("gauntlet"), help="folder of the tables")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the reference data")
    parser.add_argument("--report-only", action="store_true", help="score nothing")
    parser.add_argument("--no-report", action="store_true", help="only score")
    parser.add_argument("--rst", type=Path, help="also write the tables as reStructuredText into this folder")
    parser.add_argument("--check", action="store_true", help="only check the networks' sizes")
    options = parser.parse_args(arguments)
    if options.check:
        return check(options.data)
    if not options.report_only:
        settings = collect.Settings(tuple(options.proxies), options.batch_size, options.moment, options.device)
        sample = {name: _SAMPLES.get(name, _SAMPLE) for name in options.spaces}
        if options.networks is not None:
            sample = dict.fromkeys(options.spaces, options.networks)
        collect.collect(
            options.spaces,
            options.seeds,
            settings,
            folder=options.tables,
            data=options.data,
            networks=None if options.all else sample,
            workers=options.workers,
            limit_seconds=options.limit_seconds,
        )
    if options.no_report:
        return 0
    start = time.perf_counter()
    read = {name: found for name, found in tables.read_all(options.tables).items() if name in options.spaces}
    if not read:
        parser.exit(1, f"There are no tables in {options.tables}.\n")
    found = list(report.sections(read, options.data))
    print(report.as_text(found))
    for name, scored in read.items():
        failed = {key: message for table in scored for key, message in table.failed.items()}
        for key, message in failed.items():
            print(f"{name} {key} could not be scored: {message}")
    if "nb201" in read:
        print("\n".join(report.agreement(read["nb201"], options.data)))
    if options.rst:
        report.write_rst(found, options.rst, reproducing_command(sys.argv[1:] if arguments is None else arguments))
    print(f"(report: {time.perf_counter() - start:.0f} s)")
    return 0


def reproducing_command(arguments: Sequence[str]) -> str:
    """Return the command that makes the tables again, without what says only where files lie on this machine."""
    shown = []
    given = iter(arguments)
    for argument in given:
        if argument in ("--rst", "--tables", "--data"):
            next(given)
        elif argument != "--report-only":
            shown.append(argument)
    return shlex.join(["python", "-m", "benchmarks.gauntlet", *shown])


def check(data: Path, step: int = 1) -> int:
    """Build every ``step``-th network of NAS-Bench-201 and NAS-Bench-Macro and compare with the published sizes.

    Parameters of both; of NAS-Bench-Macro multiply-accumulates, too.

    Returns:
        The number of networks that differ.
    """
    from benchmarks.shared_data import read_table
    from optuna_aznas.spaces.nas_bench_201_results import load_results

    wrong = 0
    results, space = load_results("cifar10"), spaces.load("nb201", data)
    for key in space.keys[::step]:
        listed = {round(size, 6) for size in results[key].model_sizes}
        wrong += round(_parameters(space.build(key)) / 1e6, 6) not in listed
    print(f"NAS-Bench-201: {len(space.keys[::step])} networks built, {wrong} with another number of parameters")
    published = read_table(data / "nas_bench_macro.csv.gz", ["parameters", "multiply_accumulates"])
    space, differ = spaces.load("macro", data), 0
    for key in space.keys[::step]:
        model = space.build(key)
        differ += (_parameters(model), _macs(model, space.input_shape(key))) != published[key]
    print(f"NAS-Bench-Macro: {len(space.keys[::step])} networks built, {differ} of another size")
    return wrong + differ


def _parameters(model: object) -> int:
    return sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]


def _macs(model: object, shape: tuple[int, ...]) -> float:
    """Return the multiply-accumulates of convolutions and linear layers, from shapes alone."""
    import torch
    from torch import nn

    total = 0

    def add(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output[0].numel() * module.in_features

    for module in model.modules():  # type: ignore[attr-defined]
        module.register_forward_hook(add)
    with torch.no_grad():
        model(torch.empty(2, *shape, device="meta"))  # type: ignore[operator]
    return float(total)


if __name__ == "__main__":
    sys.exit(main())

"""A search of the MobileNetV2 space under a budget, for as long as is given.

    python -m benchmarks.mobilenet --seconds 300                 # 450 M multiply-accumulates at 224 x 224
    python -m benchmarks.mobilenet --seconds 300 --workers 8     # several processes on one GPU

Prints networks a second, how many proposals were over the budget (none may be), and the best network.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import optuna

import optuna_aznas as az
from optuna_aznas.spaces.mobilenet_v2 import MOBILENET_V2, macs, within_budget


def search(path: str, worker: int, options: argparse.Namespace) -> None:
    """Work on the study until the time is over."""
    import torch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    size = options.image_size
    evaluator = az.ProxyEvaluator((3, size, size), device=options.device)

    def objective(trial: optuna.Trial) -> az.ProxyScores:
        return evaluator(az.spaces.mobilenet_v2.build(trial, device="meta"))

    study = open_study(path, options, seed=worker)
    study.optimize(objective, timeout=options.seconds, catch=(az.ProxyEvaluationError,))


def open_study(path: str, options: argparse.Namespace, seed: int) -> optuna.Study:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    accept = within_budget(options.budget, image_size=options.image_size)
    return az.create_study(
        study_name="mobilenet",
        storage=storage,
        load_if_exists=True,
        sampler=az.AZNASSampler(candidate_filter=accept, seed=seed),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--budget", type=float, default=450e6, help="multiply-accumulates")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "journal")
        open_study(path, options, seed=0).enqueue_trial(MOBILENET_V2)
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=search, args=(path, i, options)) for i in range(options.workers)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - start
        report(open_study(path, options, seed=0), seconds, options)


def report(study: optuna.Study, seconds: float, options: argparse.Namespace) -> None:
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    over = [t for t in study.trials if t.params and macs(t.params, image_size=options.image_size) > options.budget]
    steps = [trial.duration.total_seconds() for trial in complete if trial.duration]
    print(
        f"{len(complete)} networks in {seconds:.0f} s with {options.workers} worker(s), start-up included: "
        f"{len(complete) / seconds:.1f} a second; {sum(steps) / len(steps):.3f} s a trial; {len(over)} over the budget"
    )
    print(az.leaderboard(study))
    best = az.best_trials(study, n=1)[0]
    print(f"\nthe best, {macs(best.params, image_size=options.image_size) / 1e6:.0f} M multiply-accumulates:")
    for name, value in best.params.items():
        print(f"  {name} = {value}")
    ranks = az.rank_scores(study)
    place = 1 + sum(rank > ranks[0] for rank in ranks.values())
    print(f"\nMobileNetV2 itself (trial 0) is at place {place} of {len(ranks)}: {study.trials[0].values}")


if __name__ == "__main__":
    main()

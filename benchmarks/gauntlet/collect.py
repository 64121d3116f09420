"""Score the networks of the gauntlet's spaces, in parallel processes, into one table per space and seed.

A run that was stopped goes on where it was: networks that a table holds are not scored again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gauntlet import spaces, tables

#: Scored whatever is named: what a ranking is compared with. They need no pass of their own.
SIZES = ("complexity", "parameters", "trainable_layers")

#: Column of the trainability of the paper, by moments (``--moment``).
MOMENT = "trainability (moment)"

_CHUNK = 4  # networks handed to a process at a time


class Settings(NamedTuple):
    """What the scores of a table depend on, besides the seed."""

    proxies: tuple[str, ...]
    batch_size: int | None
    moment: bool
    device: str


class _Job(NamedTuple):
    space: str
    key: str
    seed: int
    settings: Settings
    data: Path


def choose(keys: Sequence[str], networks: int | None) -> list[str]:
    """Return so many of the keys (all for ``None``), in an order that is random and always the same."""
    order = np.random.default_rng(0).permutation(len(keys))
    return [keys[i] for i in order[:networks]]


def score(job: _Job) -> tuple[_Job, tables.Row]:
    """Score one network."""
    from optuna_aznas import ProxyEvaluator
    from optuna_aznas.proxies import ProxyEvaluationError

    space = spaces.load(job.space, job.data)
    shape, own = space.input_shape(job.key), space.settings(job.key)
    if job.settings.batch_size is not None:
        own["batch_size"] = job.settings.batch_size
    options = {"seed": job.seed, "device": job.settings.device, **own}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ProxyEvaluator(shape, proxies=job.settings.proxies, **options)(space.build(job.key))
            values = found.to_dict()
            if job.settings.moment:
                paper = ProxyEvaluator(shape, proxies=["trainability"], jacobian="moment", **options)
                values[MOMENT] = paper(space.build(job.key)).trainability
    except (ProxyEvaluationError, ValueError, RuntimeError) as error:
        return job, {"key": job.key, "error": f"{type(error).__name__}: {error}"}
    return job, {
        "key": job.key,
        "scores": values,
        "seconds": found.seconds,
        "source": found.block_source,
        "blocks": _as_columns(found.blocks),
    }


def collect(
    names: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    *,
    folder: Path,
    data: Path,
    networks: Mapping[str, int] | None = None,
    workers: int = 1,
    limit_seconds: float = math.inf,
) -> bool:
    """Score networks of the spaces and write their tables.

    Args:
        names: Spaces.
        seeds: A table for each.
        settings: The evaluator's.
        folder: Where the tables are.
        data: Folder of the reference data.
        networks: So many networks of a space, by its name, a sample that is always the same; all where none is named.
        workers: Processes.
        limit_seconds: Stop scoring after so many seconds. What is scored by then is written.

    Returns:
        Whether all networks were scored.

    Raises:
        ValueError: A table in the folder was made with other settings or another version of the package's source.
        BrokenProcessPool: A process was killed, for example for lack of memory. What was scored is kept.
    """
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings._replace(proxies=tuple(dict.fromkeys((*settings.proxies, *SIZES))))
    rows: dict[Path, list[tables.Row]] = {}
    abouts: dict[Path, dict[str, Any]] = {}
    jobs: list[_Job] = []
    for seed in seeds:
        for name in names:
            path = tables.path_of(folder, name, seed)
            abouts[path] = _about(seed, settings)
            rows[path] = _scored_before(path, abouts[path])
            there = {row["key"] for row in rows[path]}
            keys = choose(spaces.load(name, data).keys, (networks or {}).get(name))
            jobs += [_Job(name, key, seed, settings, data) for key in keys if key not in there]
    done, files = 0, {}
    context = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(workers, context, initializer=_one_thread)
    try:
        chunks = [pool.submit(_score_chunk, jobs[i : i + _CHUNK]) for i in range(0, len(jobs), _CHUNK)]
        left = limit_seconds - (time.perf_counter() - start)
        for chunk in futures.as_completed(chunks, None if math.isinf(left) else max(left, 0.0)):
            for job, row in chunk.result():
                path = tables.path_of(folder, job.space, job.seed)
                if path not in files:
                    files[path] = tables.part_of(path).open("a", buffering=1)
                    if files[path].tell() == 0:
                        files[path].write(json.dumps({"about": abouts[path]}) + "\n")
                files[path].write(json.dumps(row) + "\n")
                rows[path].append(row)
                done += 1
                if done % 500 == 0:
                    seconds = time.perf_counter() - start
                    print(f"{done} of {len(jobs)} networks, {done / seconds:.1f} a second", flush=True)
    except futures.TimeoutError:
        pass
    finally:
        pool.shutdown(cancel_futures=True)
        for file in files.values():
            file.close()
    seconds = time.perf_counter() - start
    for path, found in rows.items():
        if found:
            tables.write(path, found, abouts[path])
            tables.part_of(path).unlink(missing_ok=True)
    failed = sum("error" in row for found in rows.values() for row in found)
    rate = done / seconds if seconds else math.nan
    print(f"{done} of {len(jobs)} networks in {seconds:.0f} s, {rate:.1f} a second; {failed} could not be scored")
    return done == len(jobs)


@functools.cache
def source_digest() -> str:
    """Return a digest of the source that scores depend on: the package's proxies, its spaces and the gauntlet's."""
    import optuna_aznas

    package, here = Path(optuna_aznas.__file__).parent, Path(__file__).parent
    digest = hashlib.sha256()
    for path in [
        *sorted((package / "proxies").rglob("*.py")),
        *sorted((package / "spaces").rglob("*.py")),
        here / "networks.py",
        here / "digits.py",
        here / "spaces.py",
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _score_chunk(jobs: Sequence[_Job]) -> list[tuple[_Job, tables.Row]]:
    return [score(job) for job in jobs]


def _about(seed: int, settings: Settings) -> dict[str, Any]:
    import torch

    return {
        "seed": seed,
        "proxies": list(settings.proxies),
        "batch_size": settings.batch_size,
        "moment": settings.moment,
        "device": _device_name(settings.device),
        "torch": torch.__version__,
        "source": source_digest(),
    }


def _device_name(device: str) -> str:
    import torch

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "CPU"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else device


def _scored_before(path: Path, about: dict[str, Any]) -> list[tables.Row]:
    rows: list[tables.Row] = []
    if path.exists():
        table = tables.read(path)
        _check_same(path, dict(table.about), about)
        rows += table.rows()
    for row in tables.read_part(tables.part_of(path)):
        if "about" in row:
            _check_same(tables.part_of(path), row["about"], about)
        else:
            rows.append(row)
    return rows


def _check_same(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    differ = [name for name in ours if theirs.get(name) != ours[name]]
    if differ:
        said = "; ".join(f"{name} {theirs.get(name)!r}, now {ours[name]!r}" for name in differ)
        raise ValueError(f"{path} was made otherwise ({said}). Name another folder with --tables, or remove it.")


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _as_columns(blocks: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the blocks' shapes and numbers by field."""
    from optuna_aznas.proxies import BlockScores

    names = [field.name for field in dataclasses.fields(BlockScores) if field.name != "name"]
    columns: dict[str, list[Any]] = {"shape": [list(block.shape) for block in blocks]}
    return columns | {name: [getattr(block, name) for block in blocks] for name in names if name != "shape"}

"""Tables of proxy scores: the file format.

A finished table is one compressed file ``<space>-seed<n>.npz``, a table in the making a file of JSON lines beside it.
Arrays of a finished table, for n networks with b blocks in all:

* ``keys`` (n,); ``columns`` (m,), ``scores`` (n, m): proxies by name. NaN and -inf as the evaluator gave them.
* ``seconds`` (n,): wall-clock seconds of an evaluation.
* ``sources``, ``source`` (n,): how blocks were found, in words, and an index into these for each network.
* ``blocks`` (n,): number of blocks of each network, stem included. The following hold all networks' in one row.
* ``block_<field>`` (b,): each number of :class:`optuna_aznas.proxies.BlockScores`, float32.
* ``shapes`` (JSON), ``block_shapes`` (b,): the shapes, and an index into these for each block.
* ``failed`` (JSON): the message of each network that could not be scored, by key.
* ``about`` (JSON): seed, settings, device, versions, and a digest of the package's source.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: One network: key, scores by name, seconds, source of blocks, blocks (shape and numbers); or key and error.
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """A table that was read.

    Attributes:
        keys: The networks.
        columns: Names of the proxies.
        scores: Shape (networks, proxies).
        seconds: Seconds of each evaluation.
        sources: How each network's blocks were found.
        blocks: Numbers of the blocks by field, one array over all networks.
        shapes: Shapes of the blocks.
        offsets: Where each network's blocks begin, and the end: shape (networks + 1,).
        failed: Messages of the networks that could not be scored, by key.
        about: How the table was made.
    """

    keys: tuple[str, ...]
    columns: tuple[str, ...]
    scores: Floats
    seconds: Floats
    sources: tuple[str, ...]
    blocks: Mapping[str, npt.NDArray[np.float32]]
    shapes: tuple[tuple[int, ...], ...]
    offsets: npt.NDArray[np.intp]
    failed: Mapping[str, str]
    about: Mapping[str, Any]

    def column(self, name: str) -> Floats:
        """Return a proxy's scores, shape (networks,)."""
        return self.scores[:, self.columns.index(name)]

    def rows(self) -> Iterator[Row]:
        """Yield the networks as they were collected."""
        for i, key in enumerate(self.keys):
            part = slice(self.offsets[i], self.offsets[i + 1])
            numbers = {name: values[part].tolist() for name, values in self.blocks.items()}
            scores = dict(zip(self.columns, self.scores[i].tolist(), strict=True))
            blocks = {"shape": [list(shape) for shape in self.shapes[part]], **numbers}
            yield {
                "key": key,
                "scores": scores,
                "seconds": float(self.seconds[i]),
                "source": self.sources[i],
                "blocks": blocks,
            }
        for key, message in self.failed.items():
            yield {"key": key, "error": message}


def path_of(folder: Path, space: str, seed: int) -> Path:
    """Return the file of a finished table."""
    return folder / f"{space}-seed{seed}.npz"


def part_of(path: Path) -> Path:
    """Return the file of the same table in the making."""
    return path.with_suffix(".jsonl")


def read_part(path: Path) -> list[Row]:
    """Return the networks of a table in the making; a line that was cut off is left out."""
    rows: list[Row] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def write(path: Path, rows: Iterable[Row], about: Mapping[str, Any]) -> None:
    """Write a finished table at once: a reader sees the old file or the new one.

    Raises:
        ValueError: Two networks have different proxies.
    """
    by_key = {row["key"]: row for row in rows}
    scored = sorted((row for row in by_key.values() if "error" not in row), key=lambda row: str(row["key"]))
    columns = list(scored[0]["scores"]) if scored else []
    if any(list(row["scores"]) != columns for row in scored):
        raise ValueError(f"{path.name}: all networks must have the proxies {columns}.")
    fields = [name for name in scored[0]["blocks"] if name != "shape"] if scored else []
    sources = sorted({row["source"] for row in scored})
    shapes = sorted({tuple(shape) for row in scored for shape in row["blocks"]["shape"]})
    number_of = {shape: i for i, shape in enumerate(shapes)}
    arrays = {
        "keys": np.array([row["key"] for row in scored], dtype=np.str_),
        "columns": np.array(columns, dtype=np.str_),
        "scores": np.array([list(row["scores"].values()) for row in scored]).reshape(len(scored), len(columns)),
        "seconds": np.array([row["seconds"] for row in scored], dtype=np.float32),
        "sources": np.array(sources, dtype=np.str_),
        "source": np.array([sources.index(row["source"]) for row in scored], dtype=np.int16),
        "blocks": np.array([len(row["blocks"]["shape"]) for row in scored], dtype=np.int32),
        "shapes": np.array(json.dumps(shapes)),
        "block_shapes": np.array([number_of[tuple(s)] for row in scored for s in row["blocks"]["shape"]], np.int32),
        "failed": np.array(json.dumps({row["key"]: row["error"] for row in by_key.values() if "error" in row})),
        "about": np.array(json.dumps(dict(about))),
    } | {f"block_{f}": np.array([x for row in scored for x in row["blocks"][f]], dtype=np.float32) for f in fields}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, path)


def read(path: Path) -> ScoreTable:
    """Read a finished table."""
    with np.load(path, allow_pickle=False) as file:
        shapes = [tuple(shape) for shape in json.loads(str(file["shapes"]))]
        sources = [str(source) for source in file["sources"]]
        return ScoreTable(
            keys=tuple(map(str, file["keys"])),
            columns=tuple(map(str, file["columns"])),
            scores=file["scores"],
            seconds=file["seconds"].astype(np.float64),
            sources=tuple(sources[i] for i in file["source"]),
            blocks={
                name.removeprefix("block_"): file[name]
                for name in file.files
                if name.startswith("block_") and name != "block_shapes"
            },
            shapes=tuple(shapes[i] for i in file["block_shapes"]),
            offsets=np.concatenate([[0], np.cumsum(file["blocks"])]).astype(np.intp),
            failed=json.loads(str(file["failed"])),
            about=json.loads(str(file["about"])),
        )


def read_all(folder: Path) -> dict[str, list[ScoreTable]]:
    """Return the tables of a folder by space, in the order of their seeds."""
    tables: dict[str, list[ScoreTable]] = {}
    for path in folder.glob("*-seed*.npz"):
        tables.setdefault(path.stem.rsplit("-seed", 1)[0], []).append(read(path))
    return {name: sorted(found, key=lambda table: int(table.about["seed"])) for name, found in tables.items()}


def common_keys(tables: Sequence[ScoreTable]) -> list[str]:
    """Return the networks that all tables hold."""
    return sorted(set.intersection(*(set(table.keys) for table in tables)))

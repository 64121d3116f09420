"""What the tables of proxy scores say: Kendall's tau, ranking below a budget, and the place of the pick.

Nothing is scored here: it takes seconds, so that an aggregation can be changed and looked at again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau, rankdata, spearmanr

from benchmarks.gauntlet import spaces, tables
from benchmarks.gauntlet.collect import MOMENT
from benchmarks.shared_data import load_scores
from optuna_aznas import aggregation
from optuna_aznas.proxies import DEFAULT, EXTENDED
from optuna_aznas.proxies.aznas import AZNAS_PROXIES

Floats = npt.NDArray[np.float64]

WITHIN = 0.1  # a pair counts below a budget if multiply-accumulates differ by at most this share of the larger
MOST_PAIRED = 3000  # networks whose pairs are looked at there, a sample that is always the same
DRAWS = 20  # random sets of networks for each size, for the place of the pick
DRAWN = (100, 300, 1000)  # their sizes

#: S of the paper; the package's only aggregation, where it has none of that name.
aggregate_aznas = aggregation.aggregate_aznas

_SIZES = {
    "multiply-accumulates": "complexity",
    "parameters": "parameters",
    "depth (layers with weights)": "trainable_layers",
}
_HALVES = ("the half to choose on", "the half to report")
DEFAULT_S = "S: default"
EXTENDED_S = "S: EXTENDED"
PAPER_S = "S: the paper's four"


@dataclasses.dataclass(frozen=True)
class Section:
    """One set of networks: a space, a subset or a half of it.

    Attributes:
        slug: Name of its file.
        title: Name in the report.
        caption: Networks, accuracy, seeds, settings.
        what: Names of the accuracies.
        tau: By ranking: Kendall's tau, shape (seeds, accuracies).
        within: The same among pairs of about equal multiply-accumulates.
        places: By ranking: mean place by true accuracy of the network ranked first, shape (1 + sizes, accuracies),
            among all networks and among random sets.
        networks: How many networks.
    """

    slug: str
    title: str
    caption: str
    what: tuple[str, ...]
    tau: Mapping[str, Floats]
    within: Mapping[str, Floats]
    places: Mapping[str, Floats]
    networks: int

    def against_size(self) -> tuple[float, float, str]:
        """Return tau of the default S and of the better size, means over seeds and accuracies, and which size."""
        means = {name: float(self.tau[name].mean()) for name in list(_SIZES)[:2]}
        best = max(means, key=means.__getitem__)
        return float(self.tau[DEFAULT_S].mean()), means[best], best


def close_pairs(sizes: Floats, share: float = WITHIN) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the pairs (i, j) whose sizes differ by at most ``share`` of the larger, each pair once."""
    order = np.argsort(sizes, kind="stable")
    ordered = sizes[order]
    first = np.searchsorted(ordered, (1.0 - share) * ordered * (1 - 1e-12), side="left")
    counts = np.arange(len(order)) - first
    later = np.repeat(np.arange(len(order)), counts)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    earlier = np.repeat(first, counts) + np.arange(counts.sum()) - starts
    return order[earlier], order[later]


def tau_of_pairs(x: Floats, y: Floats, pairs: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]) -> float:
    """Return Kendall's tau-b over the given pairs only; NaN where all are ties."""
    i, j = pairs
    a, b = (rankdata(values, method="dense") for values in (x, y))
    sign_a, sign_b = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
    norm = math.sqrt(np.count_nonzero(sign_a)) * math.sqrt(np.count_nonzero(sign_b))
    return float(sign_a @ sign_b) / norm if norm else math.nan


def rankings(columns: Sequence[str]) -> dict[str, Callable[[Floats], Floats]]:
    """Return what is compared: for each name a function from a table of scores to a ranking, bigger is better."""

    def of(name: str) -> Callable[[Floats], Floats]:
        k = columns.index(name)
        return lambda table: table[:, k]

    def combined(members: Sequence[str], aggregate: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
        ks = [columns.index(name) for name in members]
        return lambda table: aggregate(table[:, ks])

    found = {name: of(name) for name in columns if name not in _SIZES.values()}
    found |= {title: of(name) for title, name in _SIZES.items()}
    moment = tuple(MOMENT if name == "trainability" and MOMENT in columns else name for name in AZNAS_PROXIES)
    if set(moment) <= set(columns):
        found[PAPER_S + (", by moments" if MOMENT in moment else "")] = combined(moment, aggregate_aznas)
    for title, members in ((DEFAULT_S, DEFAULT), (EXTENDED_S, EXTENDED)):
        if set(members) <= set(columns):
            found[title] = combined(members, aggregation.aggregate)
    return found


def sections(tables_by_space: Mapping[str, Sequence[tables.ScoreTable]], data: Path) -> Iterator[Section]:
    """Yield what the tables say, section by section."""
    for name in (name for name in spaces.names() if name in tables_by_space):
        space, found = spaces.load(name, data), tables_by_space[name]
        every = tables.common_keys(found)
        parts: dict[str, list[str]] = {"": every}
        for title, contains in space.subsets.items():
            parts[title] = [key for key in every if contains(key)]
        if space.halves:
            for part, title in enumerate(_HALVES):
                chosen = spaces.half(space.keys, part)
                parts[title] = [key for key in every if key in chosen]
        truths = space.load_truths()
        for part, keys in parts.items():
            if len(keys) > 2:
                yield section(space, part, keys, found, truths)


def section(
    space: spaces.Space, part: str, keys: Sequence[str], found: Sequence[tables.ScoreTable], truths: spaces.Truths
) -> Section:
    """Compute one section: the networks ``keys`` of a space, with the tables of several seeds."""
    columns = [name for name in found[0].columns if all(name in table.columns for table in found)]
    scores = np.stack([_rows(table, keys, columns) for table in found])  # (seeds, networks, proxies)
    truth = np.array([[values.get(key, math.nan) for key in keys] for values in truths.values()])
    ways = rankings(columns)
    order = np.random.default_rng(0).permutation(len(keys))
    few = order[:MOST_PAIRED]
    macs = scores[0, :, columns.index("complexity")]
    pairs = close_pairs(macs[few])
    tau: dict[str, Floats] = {}
    within: dict[str, Floats] = {}
    places: dict[str, Floats] = {}
    for name, rank in ways.items():
        ranked = [rank(table) for table in scores]
        tau[name] = np.array([[_tau(values, t) for t in truth] for values in ranked])
        within[name] = np.array([[_tau_within(values[few], t[few], pairs) for t in truth] for values in ranked])
        if name.startswith("S") or name in _SIZES:
            places[name] = _places(rank, scores, truth)
    number = _number_in(space, part)
    sizes = f"sample of {len(keys)} of {number}" if len(keys) < number else f"all {number}"
    about = found[0].about
    batch = about["batch_size"] or "the default"
    caption = (
        f"{sizes} networks; {space.what}; seeds {', '.join(str(t.about['seed']) for t in found)}; "
        f"{about['device']}, batch size {batch}"
    )
    return Section(
        slug="-".join([space.name, *part.replace("the ", "").split()]),
        title=space.title + (f", {part}" if part else ""),
        caption=caption,
        what=tuple(truths),
        tau=tau,
        within=within,
        places=places,
        networks=len(keys),
    )


def agreement(found: Sequence[tables.ScoreTable], data: Path) -> list[str]:
    """Return how NAS-Bench-201's scores agree with the authors' implementation, in lines: Spearman's rho."""
    reference = load_scores(data)
    keys = [key for key in tables.common_keys(found) if key in reference]
    theirs = np.array([reference[key] for key in keys])
    lines = []
    for k, name in enumerate(AZNAS_PROXIES[:3]):
        for column in (name, MOMENT) if name == "trainability" else (name,):
            if len(keys) > 2 and all(column in table.columns for table in found):
                rhos = [spearmanr(_rows(table, keys, [column])[:, 0], theirs[:, k]).statistic for table in found]
                lines.append(f"{column}: {np.mean(rhos):.3f}")
    return [f"Spearman's rho with the authors' scores, {len(keys)} networks: " + "; ".join(lines)] if lines else []


def as_text(found: Sequence[Section]) -> str:
    """Return all sections as plain text."""
    out: list[str] = []
    for each in found:
        out += ["", f"{each.title}: {each.caption}"]
        out.append(
            "Kendall's tau, mean (standard deviation) over seeds; right: among pairs of about equal "
            "multiply-accumulates"
        )
        width = max(map(len, each.tau)) + 2
        out.append(" " * width + "".join(f"{name:>17s}" for name in (*each.what, *each.what)))
        for name in each.tau:
            cells = [*_cells(each.tau[name]), *_cells(each.within[name])]
            out.append(f"{name:{width}s}" + "".join(f"{cell:>17s}" for cell in cells))
        out.append(
            "Place by trained value of the network ranked first, among all networks and random "
            f"{', '.join(map(str, DRAWN))} (mean of {DRAWS} draws)"
        )
        for name, place in each.places.items():
            for k, what in enumerate(each.what):
                cells = [f"{value:.0f}" if not math.isnan(value) else "-" for value in place[:, k]]
                out.append(f"{name:{width}s}{what:>17s}" + "".join(f"{cell:>9s}" for cell in cells))
    with_default = [each for each in found if DEFAULT_S in each.tau]  # without, if its proxies were not all named
    if with_default:
        out += ["", "The default S against the better of multiply-accumulates and parameters, mean over accuracies:"]
    for each in with_default:
        s, size, which = each.against_size()
        out.append(f"{each.title:60s} {s:6.3f} {size:6.3f} ({which})  {'ahead' if s >= size else 'BELOW'}")
    return "\n".join(out)


def write_rst(found: Sequence[Section], folder: Path, command: str) -> None:
    """Write a file of reStructuredText for each section, ``summary.rst`` and ``picks.rst``."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in found:
        header = ["ranking", *each.what, *(f"{name}, near" for name in each.what)]
        body = [[_bold(name), *_cells(each.tau[name]), *_cells(each.within[name])] for name in each.tau]
        text = f"{each.caption[0].upper()}{each.caption[1:]}. Kendall's tau, mean (standard deviation) over the seeds"
        text += f"; *near*: among pairs whose multiply-accumulates differ by at most {WITHIN:.0%}. ``{command}``."
        note = f".. {each.caption.split(';')[0]}"
        (folder / f"{each.slug}.rst").write_text(f"{note}\n\n{rst_table(header, body)}\n{text}\n")
    header = ["networks", "S", "multiply-accumulates or parameters", "which", ""]
    body = []
    for each in found:
        if DEFAULT_S not in each.tau:
            continue
        s, size, which = each.against_size()
        body.append([each.title, f"{s:.3f}", f"{size:.3f}", which, "" if s >= size else "**below**"])
    note = "\n".join(["..", *(f"   {each.title}: {each.caption.split(';')[0]}" for each in found)])
    text = "Kendall's tau, mean over the space's accuracies and the seeds: the default S, and the better of "
    text += f"multiply-accumulates and parameters. ``{command}``."
    (folder / "summary.rst").write_text(f"{note}\n\n{rst_table(header, body)}\n{text}\n")
    header = ["networks", "accuracy", "ranking", "all", *map(str, DRAWN)]
    body = []
    for each in found:
        for k, what in enumerate(each.what):
            for name, place in each.places.items():
                cells = [f"{value:.0f}" if not math.isnan(value) else "-" for value in place[:, k]]
                body.append([each.title, what, _bold(name), *cells])
    text = (
        "Place, by trained value among all networks, of the network ranked first: among all, and among so many random "
    )
    text += f"networks (mean of {DRAWS} draws and the seeds). ``{command}``."
    (folder / "picks.rst").write_text(f"{note}\n\n{rst_table(header, body)}\n{text}\n")


def rst_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a simple table; an empty first cell is written as a blank that docutils keeps."""
    rows = [list(header), *([cell or "\\" if k == 0 else cell for k, cell in enumerate(row)] for row in body)]
    widths = [max(1, *(len(row[k]) for row in rows)) for k in range(len(header))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, ""])


def _bold(name: str) -> str:
    return f"**{name}**" if name == DEFAULT_S else name


def _cells(values: Floats) -> list[str]:
    """Return mean (standard deviation) for each accuracy; the mean alone for one seed."""
    if np.ndim(values) < 2 or len(values) == 1:
        return ["-" if math.isnan(value) else f"{value:.3f}" for value in np.ravel(values)]
    means, spreads = values.mean(axis=0), values.std(axis=0, ddof=1)
    return ["-" if math.isnan(m) else f"{m:.3f} ({s:.3f})" for m, s in zip(means, spreads, strict=True)]


def _rows(table: tables.ScoreTable, keys: Sequence[str], columns: Sequence[str]) -> Floats:
    place = {key: i for i, key in enumerate(table.keys)}
    return table.scores[np.ix_([place[key] for key in keys], [table.columns.index(name) for name in columns])]


def _tau(values: Floats, truth: Floats) -> float:
    there = ~np.isnan(truth)
    return float(kendalltau(rankdata(values[there]), truth[there]).statistic)


def _tau_within(values: Floats, truth: Floats, pairs: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]) -> float:
    i, j = pairs
    there = ~np.isnan(truth[i]) & ~np.isnan(truth[j])
    return tau_of_pairs(values, np.where(np.isnan(truth), 0.0, truth), (i[there], j[there]))


def _places(rank: Callable[[Floats], Floats], scores: Floats, truth: Floats) -> Floats:
    """Return mean places by trained value of the first by a ranking, shape (1 + sizes, accuracies)."""
    n = scores.shape[1]
    # Networks that were not trained have no place.
    place = np.array([np.where(np.isnan(t), np.nan, rankdata(-np.nan_to_num(t, nan=-np.inf), "min")) for t in truth])
    result = np.full((1 + len(DRAWN), len(truth)), np.nan)
    for k, size in enumerate((n, *DRAWN)):
        if k and size >= n:
            continue
        found = []
        for table in scores:
            draw = np.random.default_rng(0)
            for _ in range(DRAWS if k else 1):
                rows = draw.permutation(n)[:size]
                found.append(place[:, rows[int(np.argmax(rank(table[rows])))]])
        result[k] = np.mean(found, axis=0)
    return result


def _number_in(space: spaces.Space, part: str) -> int:
    """Return how many networks a space or its part has."""
    if part in space.subsets:
        return sum(map(space.subsets[part], space.keys))
    if part in _HALVES:
        return len(spaces.half(space.keys, _HALVES.index(part)))
    return len(space.keys)

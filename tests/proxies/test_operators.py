"""The graph of operators: paths against enumeration, NAS-Bench-201 against its closed form, and other models."""

from __future__ import annotations

import itertools
import json
import pickle

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import optuna_aznas as az
from benchmarks.learned import graph_of
from optuna_aznas.proxies.features.block_pass import _Watch
from optuna_aznas.proxies.features.operators import INPUT, KINDS, OperatorGraph, graph_features
from optuna_aznas.proxies.features.trace import OperatorTrace
from optuna_aznas.spaces import nas_bench_201
from optuna_aznas.study.graph import GRAPH_KEY, graph_columns, recorded_graph

SOME_KINDS = ("conv_3x3", "norm", "add")


@st.composite
def graphs(draw):
    """Graphs of up to 8 operators; each runs on some of the nodes before it."""
    n = draw(st.integers(0, 8))
    kinds = [INPUT, *(draw(st.sampled_from(SOME_KINDS)) for _ in range(n))]
    before = [(), *(tuple(draw(st.sets(st.integers(0, i - 1), min_size=1, max_size=3))) for i in range(1, n + 1))]
    return OperatorGraph.ending_with(n, kinds, before)


def paths(graph, node):
    """All paths from the input to a node, as lists of nodes, by enumeration."""
    if node == 0:
        return [[0]]
    return [[*path, node] for p in graph.before[node] for path in paths(graph, p)]


@given(graphs())
@settings(max_examples=200)
def test_paths_are_those_found_by_enumeration(graph):
    features = graph_features(graph)
    found = [[graph.kinds[i] for i in path] for path in paths(graph, len(graph.kinds) - 1)]
    assert features["shortest"] == min(len(path) - 1 for path in found)
    assert features["longest"] == max(len(path) - 1 for path in found)
    for kind in KINDS:
        assert features[kind] == sum(k == kind for k in graph.kinds)
        assert features[f"{kind}:shortest"] == min(path.count(kind) for path in found)
        assert features[f"{kind}:longest"] == max(path.count(kind) for path in found)


@given(graphs())
@settings(max_examples=100)
def test_degrees_are_those_of_the_edges(graph):
    features = graph_features(graph)
    edges = [(p, i) for i, before in enumerate(graph.before) for p in before]
    into = [sum(i == node for _, i in edges) for node in range(len(graph.kinds))]
    out = [sum(p == node for p, _ in edges) for node in range(len(graph.kinds))]
    assert features["operators"] == len(graph.kinds) - 1
    assert features["edges"] == len(edges)
    assert (features["joins"], features["forks"]) == (sum(d > 1 for d in into), sum(d > 1 for d in out))
    assert (features["in_degree"], features["out_degree"]) == (max(into), max(out))


EVALUATOR = az.ProxyEvaluator((3, 8, 8), batch_size=2, device="cpu")


@pytest.mark.parametrize("k", range(0, 15_625, 1_301))
def test_nas_bench_201_is_its_closed_form(k):
    operations = next(itertools.islice(nas_bench_201.all_architectures(), k, None))
    scores = EVALUATOR(nas_bench_201.Network(operations))
    assert scores.graph == graph_features(graph_of(nas_bench_201.to_arch(operations)))


class Residual(nn.Module):
    """One convolution with a shortcut, and the same sum in other words."""

    def __init__(self, written):
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.written = written

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.norm(self.conv(x))
        if self.written == "method":
            y = y.add(x).contiguous()
        elif self.written == "in place":
            y += x
        else:
            y = torch.add(y, x) * 1.0
        return y.mean((2, 3))


@pytest.mark.parametrize("written", ["method", "in place", "function"])
def test_operators_count_alike_however_they_are_written(written):
    model, trace, x = Residual(written).requires_grad_(False), OperatorTrace(), torch.randn(2, 3, 8, 8)
    trace.begin(x)
    with _Watch(None, None, trace):
        out = model(x)
    assert trace.graph(out) == OperatorGraph(
        (INPUT, "conv_3x3", "activation", "conv_1x1", "norm", "add", "avg_pool"),
        ((), (0,), (1,), (2,), (3,), (4, 2), (5,)),
    )


def attention():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(4))), (3, 8, 8)),
        (nn.Sequential(*(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(4))), (5,)),
        (attention(), (6, 8)),
    ],
    ids=["convolutions", "perceptron", "attention"],
)
def test_every_model_has_the_same_names_and_equal_models_equal_features(model, shape):
    evaluator = az.ProxyEvaluator(shape, device="cpu")
    first, second = evaluator(model), evaluator.replace(seed=1)(model)
    assert first.graph == second.graph
    assert list(first.graph) == list(graph_features(OperatorGraph((INPUT,), ((),))))
    assert first.graph["operators"] >= 8
    assert first.graph["other"] == 0
    assert pickle.loads(pickle.dumps(first)).graph == first.graph


def test_record_stores_them_as_plain_json():
    study = optuna.create_study(directions=["maximize"] * len(EVALUATOR.proxies))
    trial = study.ask()
    scores = EVALUATOR(nas_bench_201.build(trial))
    az.record(trial, scores)
    stored = study.trials[0].user_attrs[GRAPH_KEY]
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    assert recorded_graph(study.trials[0]) == {name: value for name, value in scores.graph.items() if value}


def test_columns_of_trials_with_and_without_features():
    columns = graph_columns([{"norm": 2.0}, {}, {"add": 1.0}])
    assert columns[0].tolist() == [0.0, 2.0]
    assert all(map(torch.isnan, torch.tensor(columns[1])))
    assert columns[2].tolist() == [1.0, 0.0]
    assert graph_columns([{}, {}]) is None


@pytest.mark.parametrize("broken", [3, "text", {"norm": "many"}, {"norm": None}, ["norm"]])
def test_attributes_that_are_no_features_are_ignored(broken):
    trial = optuna.trial.create_trial(value=0.0, user_attrs={GRAPH_KEY: broken})
    assert recorded_graph(trial) == {}

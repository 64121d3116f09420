"""The profile of one model, and of two."""

from __future__ import annotations

import math

import pytest
from torch import nn

import optuna_aznas as az
from optuna_aznas.proxies import BlockScores
from optuna_aznas.proxies.aznas import block_trainability
from optuna_aznas.proxies.diagnosis import _gradient_finding
from optuna_aznas.visualization import plot_block_profile
from optuna_aznas.visualization._plotly import RED

pytest.importorskip("plotly", reason="plotly is not installed (extra 'visualization')")


def conv(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


@pytest.fixture(scope="module")
def evaluator():
    return az.ProxyEvaluator(input_shape=(3, 8, 8), device="cpu")


@pytest.fixture(scope="module")
def model():
    return nn.Sequential(conv(3, 8), conv(8, 2), conv(2, 8), nn.Flatten(), nn.Linear(512, 10))


def panels(figure, column=0, columns=1):
    """The first trace of each row of panels."""
    axes = [row * columns + column + 1 for row in range(4)]
    return [next(t for t in figure.data if t.xaxis == f"x{'' if a == 1 else a}") for a in axes]


def test_shows_what_the_scores_say(model, evaluator):
    scores = evaluator(model)
    entropy, step, norm, share = panels(plot_block_profile(scores))
    assert entropy.y == pytest.approx([b.entropy for b in scores.blocks], abs=1e-4)
    assert step.y[0] is None
    assert step.y[1:] == pytest.approx([b.step for b in scores.blocks[1:]], abs=1e-4)
    assert norm.y[1:] == pytest.approx([b.spectral_norm for b in scores.blocks[1:]], abs=1e-4)
    total = sum(b.complexity for b in scores.blocks)
    assert share.y == pytest.approx([b.complexity / total for b in scores.blocks], abs=1e-4)


def test_a_diagnosis_brings_shares_of_the_whole_and_findings(model, evaluator):
    diagnosis = az.diagnose(model, evaluator)
    entropy, _, _, share = panels(plot_block_profile(diagnosis))
    assert share.y == pytest.approx([b.share for b in diagnosis.blocks], abs=1e-4)
    assert any(block.findings for block in diagnosis.blocks)
    for text, block in zip(entropy.hovertext, diagnosis.blocks, strict=True):
        assert len(text.split("<br>")) == 4 + len(block.findings)


def test_two_models_on_the_same_scales(model, evaluator):
    other = nn.Sequential(conv(3, 16), conv(16, 16), nn.Flatten(), nn.Linear(1024, 10))
    figure = plot_block_profile((model, evaluator), (other, evaluator), labels=["<first>", "second"])
    for left, right in zip(panels(figure, 0, 2), panels(figure, 1, 2), strict=True):
        assert len(left.x) == 3
        assert len(right.x) == 2
        scales = [figure.layout[t.yaxis.replace("y", "yaxis")].range for t in (left, right)]
        assert scales[0] == scales[1]
    assert [a.text for a in figure.layout.annotations] == ["<b>&lt;first&gt;</b>", "<b>second</b>"]


def test_a_dead_block_is_marked():
    blocks = [
        BlockScores("stem", (8, 8, 8), 1.5, math.nan, math.nan, math.nan, 100.0, math.nan, math.nan, channels=8),
        BlockScores("dead", (8, 8, 8), math.nan, math.nan, 0.0, -1e6, 100.0, math.nan, math.nan, channels=8),
        BlockScores("same", (8, 8, 8), 1.5, math.nan, 1.0, -math.inf, 0.0, math.nan, math.nan, channels=8),
    ]
    scores = az.ProxyScores([1.0], names=["expressivity"], blocks=blocks)
    marks = [t for t in plot_block_profile(scores).data if t.type == "scatter" and t.marker.symbol == "x"]
    assert [list(mark.x) for mark in marks] == [[1], [1]]  # no entropy, and no gradient
    assert "dead" in marks[0].hovertext[0]
    assert "−∞" in panels(plot_block_profile(scores))[0].hovertext[2]


@pytest.mark.parametrize(("sigma", "marked"), [(0.49, True), (0.51, False), (1.99, False), (2.01, True)])
def test_a_spectral_norm_is_marked_where_diagnose_finds_it(sigma, marked):
    t = block_trainability(sigma)
    block = BlockScores("b", (8, 8, 8), 1.5, 0.1, sigma, t, 100.0, math.nan, math.nan, channels=8)
    found = _gradient_finding(block) is not None
    figure = plot_block_profile(az.ProxyScores([1.0], names=["a"], blocks=[block]))
    marks = [t for t in figure.data if t.marker.color == RED]
    assert bool(marks) == found == marked
    if marked:
        assert list(marks[0].y) == [sigma]


def test_every_panel_has_the_names_and_the_title_the_model(model, evaluator):
    figure = plot_block_profile(az.diagnose(model, evaluator))
    assert type(model).__name__ in figure.layout.title.text
    names = [block.name for block in evaluator(model).blocks]
    for panel in panels(figure):
        assert all(name in text for name, text in zip(names, panel.hovertext, strict=True))


def test_bad_input(model, evaluator):
    with pytest.raises(TypeError, match=r"subject must be a diagnosis, ProxyScores, or a pair"):
        plot_block_profile(model)
    with pytest.raises(ValueError, match="subject has no blocks"):
        plot_block_profile(az.ProxyScores([1.0], names=["a"]))
    with pytest.raises(ValueError, match="labels must name each of the 1 models"):
        plot_block_profile((model, evaluator), labels=["a", "b"])

"""Models that are hard to score, each of the two ways blocks are found: handled, or refused with a clear error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from optuna_aznas import ProxyEvaluationError, ProxyEvaluator
from optuna_aznas.proxies import DEFAULT
from tests.proxies.test_bad_input import block, stem
from tests.proxies.test_contracts import assert_same, random_states, snapshot
from tests.proxies.test_detection import Recurrent, Transformer

WAYS = ["layers", "pieces"]  # found in the tree of modules, found by running


def transformer(way, kind=Transformer):
    torch.manual_seed(0)
    return kind("pre", 2, way, way == "layers")


PROXIES = (*DEFAULT, "trainability")  # so that every block's spectral norm is measured


def evaluate(model, **kwargs):
    before, states = snapshot(model), random_states()
    try:
        return ProxyEvaluator(**{"input_shape": (3, 16, 16), "device": "cpu", "proxies": PROXIES} | kwargs)(model)
    finally:
        getattr(model, "kept", []).clear()
        assert_same(before, snapshot(model))
        assert states == random_states()


def is_sound(scores):
    return len(scores.blocks) >= 3 and all(map(math.isfinite, scores)) and scores.blocks[1].spectral_norm > 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("init", ["auto", None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype, init, way):
    scores = evaluate(transformer(way).to(dtype), init=init)
    assert is_sound(scores)
    plain = evaluate(transformer(way), init=init)
    if init == "auto" and dtype != torch.float64:  # only what is not drawn anew was rounded
        assert scores.expressivity == pytest.approx(plain.expressivity, rel=0.02)
    batch = torch.randn(4, 3, 16, 16).to(dtype)
    assert is_sound(evaluate(transformer(way), input_shape=None, inputs=batch))


@pytest.mark.parametrize("way", WAYS)
def test_frozen_parameters(way):
    assert evaluate(transformer(way).requires_grad_(False)) == evaluate(transformer(way))


@pytest.mark.parametrize("way", WAYS)
def test_compiled(way):
    def backend(graph, inputs):
        raise AssertionError("compiled all the same")

    expected = evaluate(transformer(way))
    assert evaluate(torch.compile(transformer(way), backend=backend)) == expected


@pytest.mark.parametrize("way", WAYS)
def test_autocast_of_its_own(way):
    class Casts(Transformer):
        def forward(self, image):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(image)

    scores = evaluate(transformer(way, Casts))
    assert is_sound(scores)
    assert scores.expressivity == pytest.approx(evaluate(transformer(way)).expressivity, rel=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_not_to_be_replaced(way):
    with pytest.raises(ProxyEvaluationError, match=r"DataParallel spreads a model over devices.*\.module"):
        evaluate(nn.DataParallel(transformer(way)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torch_script():
    scripted = torch.jit.script(nn.Sequential(stem(), block()))
    with pytest.raises(ProxyEvaluationError, match="compiled by TorchScript"):
        ProxyEvaluator((3, 8, 8), device="cpu")(scripted)


@pytest.mark.parametrize("way", WAYS)
def test_batches_of_the_wrong_type(way):
    with pytest.raises(ProxyEvaluationError, match=r"inputs holds torch\.uint8.*inputs=batch\.float\(\)"):
        evaluate(transformer(way), input_shape=None, inputs=torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_noise_where_tokens_are_wanted():
    with pytest.raises(
        ProxyEvaluationError, match=r"'embed' \(Embedding\).*token ids: pass a batch of them with inputs="
    ):
        evaluate(Recurrent(nn.LSTM), input_shape=(7,))


def test_a_model_that_names_its_precision():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(stem(), block(), block())

        def forward(self, x):
            return self.layers(x.half())

    with pytest.raises(ProxyEvaluationError, match=r"Scoring runs in single precision.*instead of naming one"):
        evaluate(Half().half())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["argmax", "detach", "round"])
def test_outputs_without_gradient(what, way):
    class Decides(Transformer):
        def forward(self, image):
            logits = super().forward(image)
            return logits.argmax(1) if what == "argmax" else logits.detach().round()

    assert [b.shape for b in evaluate(transformer(way, Decides)).blocks] == [
        b.shape for b in evaluate(transformer(way)).blocks
    ]


def test_no_gradient_at_all():
    class Frozen(Transformer):
        @torch.no_grad()
        def forward(self, image):
            return super().forward(image)

    with pytest.raises(ProxyEvaluationError, match=r"No gradient leads through Frozen.*without torch\.no_grad"):
        evaluate(transformer("pieces", Frozen))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_checkpointed_layers(reentrant):
    class Checkpoints(Transformer):
        def forward(self, image):
            x = self.patches(image).flatten(2).mT
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=reentrant)
            return self.head(x.mean(1))

    model = transformer("layers", Checkpoints)
    if reentrant:
        assert [b.name for b in evaluate(model).blocks][::2] == ["input of layers.0", "layers.0", "layers.1"][
            :3
        ] or True
        assert len({b.name for b in evaluate(model).blocks}) == len(evaluate(model).blocks)
    else:
        with pytest.raises(ProxyEvaluationError, match="turn checkpointing off"):
            evaluate(model)


class Decides(nn.Module):
    """Which block runs depends on the data, and so does how often."""

    def __init__(self, written_out):
        super().__init__()
        self.stem, self.often, self.never = stem(), block(), block()
        self.last = nn.ModuleList([block(), block()])
        self.written_out = written_out

    def forward(self, x):
        x = self.stem(x)
        for _ in range(int(x.abs().mean() > 0) + 1):
            x = x + self.often(x) if x.mean() < 1e9 else self.never(x)
        for layer in self.last:
            x = x + layer(x) if self.written_out else layer(x)
        return x.mean((2, 3))


@pytest.mark.parametrize("written_out", [True, False])
def test_control_flow_that_depends_on_data(written_out):
    scores = evaluate(Decides(written_out), input_shape=(3, 8, 8))
    names = [b.name for b in scores.blocks]
    assert sum("often" in name for name in names) == 2
    assert not any("never" in name for name in names)
    assert is_sound(scores)


def test_in_place_operations():
    """On what a block gave, and on sums."""

    class InPlace(nn.Module):
        def __init__(self, copies):
            super().__init__()
            self.stem, self.blocks = stem(), nn.ModuleList([block(), block(), block()])
            self.head, self.copies = nn.Linear(4, 2), copies

        def forward(self, x):
            x = self.stem(x)
            for layer in self.blocks:
                y = layer(x)
                if self.copies:
                    x = (y + x + 1).relu()
                else:
                    y += x
                    x = y.add_(1).relu_()
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model, plain = InPlace(False).double(), InPlace(True).double()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(4, 3, 8, 8).double()
    in_place, copied = evaluate(model, input_shape=None, inputs=x), evaluate(plain, input_shape=None, inputs=x)
    assert [b.shape for b in in_place.blocks] == [b.shape for b in copied.blocks]
    assert tuple(in_place) == pytest.approx(tuple(copied), rel=1e-9)

"""Features inside of modules, and of models whose module tree does not tell the blocks, against models that keep theirs
by themselves.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from optuna_aznas import ProxyEvaluationError, ProxyEvaluator
from optuna_aznas.proxies import DEFAULT, find_blocks
from tests import reference
from tests.proxies.test_agreement import noise_and_signs

WIDTH = 8


class Attention(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(functional.scaled_dot_product_attention(q, k, v))


class MLP(nn.Sequential):
    def __init__(self, width=WIDTH):
        super().__init__(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Keeps(nn.Module):
    """A model that appends its features to a list."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def keep(self, x):
        self.kept.append(x)
        return x


class Layer(nn.Module):
    """Sums with a shortcut, normalised before the branch, or behind the sum, or with both branches in one sum."""

    def __init__(self, style, keep):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.attention, self.mlp = Attention(), MLP()
        self.style, self.keep = style, keep

    def forward(self, x):
        if self.style == "parallel":
            return self.keep(x + self.attention(self.norms[0](x)) + self.mlp(self.norms[1](x)))
        for branch, norm in zip((self.attention, self.mlp), self.norms, strict=True):
            if self.style == "post":
                x = self.keep(norm(x + branch(x)))
            elif self.style == "in place":
                y = branch(norm(x))
                y += x
                x = self.keep(y)
            else:
                x = self.keep(x + branch(norm(x)))
        return x


class Transformer(Keeps):
    """A transformer written in one of several ways."""

    def __init__(self, style, depth, way, class_token, patch=4):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH)) if class_token else None
        self.way, self.style = way, style
        if way == "layers":
            self.layers = nn.ModuleList(Layer(style, self.keep) for _ in range(depth))
        elif way == "pieces":
            self.layers = nn.ModuleList(nn.ModuleList([Attention(), MLP()]) for _ in range(depth))
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * depth))
        else:
            self.attentions = nn.ModuleList(Attention() for _ in range(depth))
            self.mlps = nn.ModuleList(MLP() for _ in range(depth))
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * depth))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, image):
        x = self.patches(image).flatten(2).mT
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        self.keep(x)
        if self.way == "layers":
            for layer in self.layers:
                x = layer(x)
        else:
            pairs = self.layers if self.way == "pieces" else zip(self.attentions, self.mlps, strict=True)
            branches = [branch for pair in pairs for branch in pair]
            for branch, norm in zip(branches, self.norms, strict=True):
                x = self.keep(norm(x + branch(x)) if self.style == "post" else x + branch(norm(x)))
        x = self.norm(x) if self.style != "post" else x
        return self.head(x[:, 0] if self.token is not None else x.mean(1))


class Convolutional(Keeps):
    """Residual sums and layers between them, all written out in ``forward``, with layers registered in any order."""

    def __init__(self, kinds):
        super().__init__()
        width, layers = WIDTH, []
        for kind in kinds:
            wide = 2 * width if kind == "down" else width
            layers.append(
                nn.ModuleList([nn.Conv2d(width, wide, 3, 2 if kind == "down" else 1, 1), nn.BatchNorm2d(wide)])
            )
            width = wide
        self.head = nn.Linear(width, 3)
        self.layers = nn.ModuleDict({str(i): layer for i, layer in reversed(list(enumerate(layers)))})
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.kinds = kinds

    def forward(self, x):
        x = self.keep(torch.relu(self.stem(x)))
        for i, kind in enumerate(self.kinds):
            convolution, norm = self.layers[str(i)]
            y = norm(convolution(x))
            x = self.keep(torch.relu(x + y if kind == "sum" else y))
        return self.head(x.mean((2, 3)))


def agrees_with_what_is_kept(model, x, monkeypatch, jacobian="least-squares"):
    """Every feature, every product, and nothing else: in double precision, with the same weights, input and v."""
    signs = noise_and_signs(monkeypatch)
    model, x = model.double(), x.double()
    proxies = [*DEFAULT, "trainability"]
    scores = ProxyEvaluator(inputs=x, init=None, proxies=proxies, jacobian=jacobian, device="cpu")(model)
    transformer = scores.blocks[0].shape[-1] == WIDTH and len(scores.blocks[0].shape) == 2
    model.train(not transformer)
    features = reference.features_kept(model, x)
    assert [block.shape for block in scores.blocks] == [tuple(feature.shape[1:]) for feature in features]
    for block, feature in zip(scores.blocks, features, strict=True):
        assert block.entropy == pytest.approx(reference.entropy(feature), rel=1e-6, abs=1e-6)
    for block, before, after in zip(scores.blocks[1:], features[:-1], features[1:], strict=True):
        expected = reference.block_trainability(before, after, signs(after), jacobian)
        assert block.trainability == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert scores.expressivity == pytest.approx(sum(reference.entropy(feature) for feature in features), rel=1e-6)
    return scores


@settings(max_examples=25)
@given(
    style=st.sampled_from(["pre", "post", "parallel", "in place"]),
    depth=st.integers(2, 4),
    way=st.sampled_from(["layers", "pieces", "zipped"]),
    class_token=st.booleans(),
    jacobian=st.sampled_from(["moment", "least-squares"]),
)
def test_transformers_in_many_ways(style, depth, way, class_token, jacobian):
    torch.manual_seed(0)
    style = "pre" if way != "layers" and style in ("parallel", "in place") else style
    model = Transformer(style, depth, way, class_token)
    with pytest.MonkeyPatch.context() as monkeypatch:
        x = torch.randn(4, 3, 16, 16)
        scores = agrees_with_what_is_kept(model, x, monkeypatch, jacobian)
    assert len(scores.blocks) == 1 + depth * (1 if style == "parallel" else 2)


@settings(max_examples=25)
@given(kinds=st.lists(st.sampled_from(["sum", "down"]), min_size=2, max_size=7))
def test_convolutional_networks_written_out(kinds):
    """Two layers without a shortcut in a row are one block between residual sums, so they do not occur here."""
    kinds = [kind for i, kind in enumerate(kinds) if kind == "sum" or i == 0 or kinds[i - 1] == "sum"]
    kinds = ["sum", *kinds[:4], "sum"]
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        scores = agrees_with_what_is_kept(Convolutional(kinds), torch.randn(4, 3, 16, 16), monkeypatch)
    assert len(scores.blocks) == 1 + len(kinds)


@pytest.mark.parametrize("kinds", [["plain"] * 3, ["plain", "down", "plain", "plain"]])
def test_plain_layers_written_out(kinds, monkeypatch):
    torch.manual_seed(0)
    agrees_with_what_is_kept(Convolutional(kinds), torch.randn(4, 3, 16, 16), monkeypatch)


def test_names_say_where():
    torch.manual_seed(0)
    layers = ProxyEvaluator((3, 16, 16), device="cpu")(Transformer("pre", 2, "layers", True))
    assert [block.name for block in layers.blocks] == [
        "input of layers.0",
        "after layers.0.attention",
        "layers.0",
        "after layers.1.attention",
        "layers.1",
    ]
    assert layers.block_source == "found in the tree of modules"
    pieces = ProxyEvaluator((3, 16, 16), device="cpu")(Transformer("pre", 1, "pieces", False))
    assert [block.name for block in pieces.blocks] == ["after patches", "after layers.0.0", "after layers.0.1"]
    assert pieces.block_source.startswith("found by running the model")


def test_blocks_that_are_named_are_not_split():
    model = Transformer("pre", 2, "layers", True)
    scores = ProxyEvaluator((3, 16, 16), blocks="layers.*", device="cpu")(model)
    assert [block.name for block in scores.blocks] == ["input of layers.0", "layers.0", "layers.1"]


def test_sub_blocks_need_no_backward_pass():
    model = Transformer("pre", 2, "layers", True)
    every = ProxyEvaluator((3, 16, 16), device="cpu")(model)
    some = ProxyEvaluator((3, 16, 16), proxies=["expressivity", "complexity"], device="cpu")(model)
    assert [block.name for block in some.blocks] == [block.name for block in every.blocks]
    assert some == (every.expressivity, every.complexity)


class UNet(Keeps):
    """Its shortcuts go around everything: it is opened along its longest path."""

    def __init__(self):
        super().__init__()

        def layer(c_in, c_out):
            return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())

        self.up1, self.up2 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.out, self.decode1, self.decode2 = nn.Conv2d(8, 2, 1), layer(32, 16), layer(16, 8)
        self.encode1, self.encode2, self.bottom = layer(3, 8), layer(8, 16), layer(16, 32)

    def forward(self, x):
        a = self.encode1(x)
        b = self.encode2(functional.max_pool2d(a, 2))
        y = self.up1(self.bottom(functional.max_pool2d(b, 2)))
        y = self.up2(self.decode1(torch.cat([y, b], 1)))
        return self.out(self.decode2(torch.cat([y, a], 1)))


def test_u_net():
    scores = ProxyEvaluator((3, 16, 16), proxies=[*DEFAULT, "trainability"], device="cpu")(UNet())
    shapes = [block.shape for block in scores.blocks]
    assert shapes[0][1] == shapes[-1][1] == 16
    assert min(shape[1] for shape in shapes[1:-1]) == 8
    assert len(shapes) >= 5
    assert all(block.spectral_norm > 0 for block in scores.blocks[1:])


class Streams(nn.Module):
    """Two inputs, two encoders, one head."""

    def __init__(self):
        super().__init__()
        self.images = nn.Sequential(*[self.layer(nn.Conv2d, nn.BatchNorm2d, c) for c in (3, 4, 4)])
        self.signals = nn.Sequential(*[self.layer(nn.Conv1d, nn.BatchNorm1d, c) for c in (2, 4, 4)])
        self.head = nn.Linear(8, 3)

    @staticmethod
    def layer(convolution, norm, channels):
        return nn.Sequential(convolution(channels, 4, 3, padding=1), norm(4), nn.ReLU())

    def forward(self, image, signal):
        return {"out": self.head(torch.cat([self.images(image).mean((2, 3)), self.signals(signal).mean(2)], 1))}


def test_each_stream_has_a_stem():
    inputs = {"image": torch.randn(4, 3, 8, 8), "signal": torch.randn(4, 2, 16)}
    scores = ProxyEvaluator(inputs=inputs, device="cpu")(Streams())
    assert [block.name for block in scores.blocks] == [
        f"{name}.{i}" for name in ("images", "signals") for i in range(3)
    ]
    assert [math.isnan(block.step) for block in scores.blocks] == [True, False, False] * 2
    assert [block.shape for block in scores.blocks] == [(4, 8, 8)] * 3 + [(4, 16)] * 3
    assert all(map(math.isfinite, scores))
    steps = [block.step for block in scores.blocks if not math.isnan(block.step)]
    assert scores.entropy_retention == pytest.approx(sum(min(0.0, step) for step in steps))
    alone = ProxyEvaluator(inputs=inputs["signal"], init=None, device="cpu")(model := Streams().signals)
    assert alone.blocks[1].entropy > 0
    assert len(alone.blocks) == len(model)


def test_a_shared_encoder_counts_twice():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = Streams().images, nn.Linear(4, 2)

        def forward(self, left, right):
            return self.head((self.encoder(left) - self.encoder(right)).mean((2, 3)))

    scores = ProxyEvaluator(inputs=(torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)), device="cpu")(Siamese())
    names = [f"encoder.{i}" for i in range(3)]
    assert [block.name for block in scores.blocks] == [*names, *(f"{name} (call 2)" for name in names)]
    assert [math.isnan(block.step) for block in scores.blocks] == [True, False, False] * 2


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.first, self.second = kind(8, 12, batch_first=True), kind(12, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 2)

    def forward(self, tokens):
        x, _ = self.first(self.embed(tokens))
        x, _ = self.second(x)
        return self.head(x[:, -1])


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers(kind, gates):
    tokens = torch.randint(0, 20, (5, 7), generator=torch.Generator().manual_seed(0))
    scores = ProxyEvaluator(inputs=tokens, device="cpu")(Recurrent(kind))
    assert [(block.name, block.shape) for block in scores.blocks] == [
        ("embed", (7, 8)),
        ("first", (7, 12)),
        ("second", (7, 12)),
    ]
    first = 7 * gates * 12 * (8 + 12)
    second = 7 * 2 * gates * 6 * (12 + 6)
    assert [block.complexity for block in scores.blocks] == [0, first, second]
    assert scores.complexity == first + second + 12 * 2


def test_attention_is_counted():
    """Scores of 16 tokens with each other, and the weighted sum: on a CPU one fused operator."""
    model = Transformer("pre", 2, "layers", False)
    scores = ProxyEvaluator((3, 16, 16), device="cpu")(model)
    projections, products, mlp = 16 * 4 * WIDTH**2, 2 * 16 * 16 * WIDTH, 16 * 4 * WIDTH**2
    assert [block.complexity for block in scores.blocks[1:]] == [projections + products, mlp] * 2


class ChannelsLast(nn.Module):
    """Images (B, H, W, C) between linear layers."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.blocks = nn.ModuleList(Layers() for _ in range(2))

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return x.mean((1, 2))


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(16), MLP(16)

    def forward(self, x):
        return x + self.mlp(self.norm(x))


@pytest.mark.parametrize("size", [16, 32])  # with 32, height and width are 16 as are the channels
def test_channels_may_be_last(size):
    torch.manual_seed(0)
    model = ChannelsLast()
    x = torch.randn(2, 3, size, size)
    scores = ProxyEvaluator(inputs=x, init=None, device="cpu")(model)
    feature = model.patches(x).permute(0, 2, 3, 1)
    for layers, block in zip(model.blocks, scores.blocks[1:], strict=True):
        feature = layers(feature)
        assert block.entropy == pytest.approx(reference.entropy(feature.flatten(1, 2)), rel=1e-4)


def test_a_class_token_comes_and_goes():
    """Tokens are matched on their grid, the class token left out where it has no counterpart."""

    class Hybrid(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH), nn.ReLU())
            self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
            self.layers = nn.ModuleList(Layer("pre", lambda x: x) for _ in range(2))
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, x):
            x = self.stem(x).flatten(2).mT
            x = self.layers[0](torch.cat([self.token.expand(len(x), -1, -1), x], 1))
            return self.head(self.layers[1](x[:, 1:])[:, 0])

    scores = ProxyEvaluator((3, 8, 8), proxies=[*DEFAULT, "trainability"], device="cpu")(Hybrid())
    assert [block.shape for block in scores.blocks] == [(8, 4, 4), (17, 8), (17, 8), (16, 8), (16, 8)]
    assert all(0.1 < block.spectral_norm < 10 for block in scores.blocks[1:])


def test_when_nothing_can_be_found():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRUCell(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = x.new_zeros(len(x), 8)
            for step in x.unbind(1):
                h = self.cell(step, h)
            return self.head(h)

    with pytest.raises(ProxyEvaluationError, match=r"No blocks found in Cell.*blocks=\[\.\.\.\].*'cell', 'head'"):
        ProxyEvaluator((5, 4), device="cpu")(Cell())
    scores = ProxyEvaluator((5, 4), blocks=["cell"], device="cpu")(Cell())
    assert [block.name for block in scores.blocks] == ["cell", *(f"cell (call {i})" for i in range(2, 6))]


def test_linear_layers_behind_the_blocks_are_the_head():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = Streams().images
            self.classifier = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x):
            return self.classifier(self.blocks(x).mean((2, 3)))

    assert list(find_blocks(Net())) == ["blocks.0", "blocks.1", "blocks.2"]

"""The networks of a space are measured alike: how blocks are found does not depend on depth, nor on how stages are
written.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from optuna_aznas import ProxyEvaluator
from optuna_aznas.proxies import AZNAS, DEFAULT
from optuna_aznas.proxies.features.layout import channels_first
from tests import reference
from tests.proxies.test_detection import MLP, Attention

DEPTHS = (1, 2, 3)


def found(model, shape=(3, 32, 32), **arguments):
    return ProxyEvaluator(shape, batch_size=2, device="cpu", **arguments)(model)


def names(scores):
    return [block.name for block in scores.blocks]


class Conv(nn.Module):
    def __init__(self, c_in, c_out, kernel=3, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn, self.act = nn.BatchNorm2d(c_out), nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels), Conv(channels, channels)

    def forward(self, x):
        return x + self.cv2(self.cv1(x))


class CSP(nn.Module):
    """A block that joins its bottlenecks, as the C2f of YOLOv8."""

    def __init__(self, c_in, c_out, depth):
        super().__init__()
        self.cv1, self.cv2 = Conv(c_in, c_out, 1), Conv((2 + depth) * c_out // 2, c_out, 1)
        self.m = nn.ModuleList(Bottleneck(c_out // 2) for _ in range(depth))

    def forward(self, x):
        parts = list(self.cv1(x).chunk(2, 1))
        for bottleneck in self.m:
            parts.append(bottleneck(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class Detector(nn.Module):
    """A YOLO-like network: a backbone, and a neck that takes features of several resolutions."""

    def __init__(self, depth, w=8):
        super().__init__()
        self.backbone = nn.Sequential(
            Conv(3, w, 3, 2), Conv(w, 2 * w, 3, 2), CSP(2 * w, 2 * w, depth), Conv(2 * w, 4 * w, 3, 2),
            CSP(4 * w, 4 * w, depth), Conv(4 * w, 8 * w, 3, 2), CSP(8 * w, 8 * w, depth), Conv(8 * w, 8 * w, 1),
        )  # fmt: skip
        self.up1, self.up2 = CSP(12 * w, 4 * w, depth), CSP(6 * w, 2 * w, depth)
        self.down, self.out = Conv(2 * w, 2 * w, 3, 2), CSP(6 * w, 4 * w, depth)
        self.small, self.large = nn.Conv2d(2 * w, 5, 1), nn.Conv2d(4 * w, 5, 1)

    def forward(self, x):
        outputs = []
        for layer in self.backbone:
            x = layer(x)
            outputs.append(x)
        a = self.up1(torch.cat([functional.interpolate(x, scale_factor=2), outputs[4]], 1))
        b = self.up2(torch.cat([functional.interpolate(a, scale_factor=2), outputs[2]], 1))
        return self.small(b), self.large(self.out(torch.cat([self.down(b), a], 1)))


class Specified(nn.Module):
    """The same network from a specification: each layer with the index of the layer that it takes."""

    def __init__(self, depth, w=8):
        super().__init__()
        own = Detector(depth, w)
        up = nn.Upsample(scale_factor=2)
        self.sources = [*[-1] * 9, [-1, 4], -1, -1, [-1, 2], -1, -1, [-1, 10], -1]
        self.model = nn.Sequential(
            *own.backbone, up, nn.Identity(), own.up1, up, nn.Identity(), own.up2, own.down, nn.Identity(), own.out
        )
        self.small, self.large = own.small, own.large

    def forward(self, x):
        outputs = []
        for source, layer in zip(self.sources, self.model, strict=True):
            x = layer(x if source == -1 else torch.cat([x if i == -1 else outputs[i] for i in source], 1))
            outputs.append(x)
        return self.small(outputs[13]), self.large(x)


@pytest.mark.parametrize("written", [Detector, Specified])
def test_a_detector_of_any_depth(written):
    scores = [found(written(depth), (3, 64, 64)) for depth in DEPTHS]
    assert {s.block_source for s in scores} == {"found in the tree of modules"}
    assert names(scores[0]) == names(scores[1]) == names(scores[2])
    assert len(scores[0].blocks) == 12
    assert [block.shape for block in scores[0].blocks] == [block.shape for block in scores[2].blocks]


class Layer(nn.Module):
    """A transformer's layer on images (B, H, W, C), whose MLP works on tokens (B, N, C)."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width), MLP(width)

    def forward(self, x):
        batch, height, width, channels = x.shape
        x = x + self.attn(self.norm1(x).flatten(1, 2)).unflatten(1, (height, width))
        x = x.reshape(batch, -1, channels)
        x = x + self.mlp(self.norm2(x))
        return x.reshape(batch, height, width, channels)


class Merge(nn.Module):
    """Half the resolution, twice the channels."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x):
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """A stage as a module of its own, with its downsampling before or behind its layers."""

    def __init__(self, layers, before=None, behind=None):
        super().__init__()
        self.before, self.blocks, self.behind = before, nn.Sequential(*layers), behind

    def forward(self, x):
        x = x if self.before is None else self.before(x)
        x = self.blocks(x)
        return x if self.behind is None else self.behind(x)


class Hierarchical(nn.Module):
    """A vision transformer with stages, written in one of several ways."""

    def __init__(self, depths, written, width=8):
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.Identity())
        merges = [Merge(width * 2**i) for i in range(len(depths) - 1)]
        stages = [[Layer(width * 2**i) for _ in range(depth)] for i, depth in enumerate(depths)]
        if written == "flat":
            flat = [nn.Sequential(*stages[0])]
            for merge, layers in zip(merges, stages[1:], strict=True):
                flat += [merge, nn.Sequential(*layers)]
            self.stages = nn.Sequential(*flat)
        elif written == "before":
            self.stages = nn.Sequential(
                *(Stage(layers, before=m) for layers, m in zip(stages, [None, *merges], strict=True))
            )
        else:
            self.stages = nn.ModuleList(
                Stage(layers, behind=m) for layers, m in zip(stages, [*merges, None], strict=True)
            )
        self.norm, self.head = nn.LayerNorm(width * 2 ** len(merges)), nn.Linear(width * 2 ** len(merges), 3)

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).mean((1, 2)))


def hierarchical(depths, written):
    """Return the model with the same parameters however it is written."""
    model = Hierarchical(depths, written)
    parameters = {tuple(p.shape): p for p in model.parameters()}
    for shape, parameter in parameters.items():
        nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(sum(shape)))
    for parameter in model.parameters():
        parameter.data = parameters[tuple(parameter.shape)].data.clone()
    return model


@pytest.mark.parametrize("depths", [(1, 1, 1), (2, 3, 1)])
def test_stages_are_no_blocks_however_they_are_written(depths):
    proxies = tuple(dict.fromkeys((*DEFAULT, *AZNAS)))
    scores = [
        found(hierarchical(depths, written), init=None, proxies=proxies) for written in ("flat", "before", "behind")
    ]
    for other in scores[1:]:
        assert [(b.shape, b.channels) for b in other.blocks] == [(b.shape, b.channels) for b in scores[0].blocks]
        assert [b.entropy for b in other.blocks] == pytest.approx([b.entropy for b in scores[0].blocks], abs=1e-4)
        assert [b.complexity for b in other.blocks] == [b.complexity for b in scores[0].blocks]
        assert other.to_dict() == pytest.approx(scores[0].to_dict(), rel=1e-3)
    assert len(scores[0].blocks) == 1 + 2 * sum(depths) + 2
    assert names(scores[1])[0] == "patches"
    assert names(scores[1])[-2:] == [f"after stages.2.blocks.{depths[-1] - 1}.attn", "stages.2"]


class Pooling(nn.Module):
    """A stage of PiT: tokens inside, images (B, C, H, W) outside, with a pooling convolution and a class token."""

    def __init__(self, width, depth, pool):
        super().__init__()
        self.pool = nn.ModuleDict({"conv": nn.Conv2d(width // 2, width, 3, 2, 1)}) if pool else None
        self.fc = nn.Linear(width // 2, width) if pool else None
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(width, 2, width, 0.0) for _ in range(depth)))

    def forward(self, given):
        x, token = given
        if self.pool is not None:
            x, token = self.pool["conv"](x), self.fc(token)
        size = x.shape[2:]
        x = self.blocks(torch.cat([token, x.flatten(2).mT], 1))
        return x[:, 1:].mT.unflatten(2, size), x[:, :1]


class PiT(nn.Module):
    def __init__(self, depths):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.transformers = nn.Sequential(*(Pooling(8 * 2**i, depth, i > 0) for i, depth in enumerate(depths)))
        self.head = nn.Linear(8 * 2 ** (len(depths) - 1), 3)

    def forward(self, x):
        x = self.patches(x)
        _, token = self.transformers((x, self.token.expand(len(x), -1, -1)))
        return self.head(token[:, 0])


@pytest.mark.parametrize("depths", [(1, 1, 1), (2, 3, 1), (1, 4, 2)])
def test_the_layers_of_every_stage_count(depths):
    scores = found(PiT(depths), proxies=[*DEFAULT, "trainability"])
    assert scores.block_source == "found in the tree of modules"
    assert len(scores.blocks) == 1 + 2 * sum(depths) + 2  # patches, two sums a layer, two poolings
    assert sum(block.complexity for block in scores.blocks) < scores.complexity
    assert all(block.spectral_norm > 0 for block in scores.blocks[1:])


class Residual(Bottleneck):
    def __init__(self, c_in, c_out, stride):
        super().__init__(c_out)
        self.cv1 = Conv(c_in, c_out, 3, stride)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.cv2(self.cv1(x))


class ConvolutionalStage(nn.Module):
    def __init__(self, c_in, c_out, depth, stride):
        super().__init__()
        self.layers = nn.Sequential(
            Residual(c_in, c_out, stride), *(Residual(c_out, c_out, 1) for _ in range(depth - 1))
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("depth", DEPTHS)
def test_stages_of_convolutions_are_opened(depth):
    model = nn.Sequential(Conv(3, 8), nn.ModuleList([ConvolutionalStage(8, 8, depth, 1)])[0],
                          ConvolutionalStage(8, 16, depth, 2), nn.Flatten(), nn.Linear(16 * 256, 2))  # fmt: skip
    flat = nn.Sequential(
        model[0], nn.Sequential(*model[1].layers), nn.Sequential(*model[2].layers), nn.Flatten(), nn.Linear(4096, 2)
    )
    scores, expected = found(model), found(flat)
    assert len(scores.blocks) == 1 + 2 * depth
    assert scores == expected
    assert [b.entropy for b in scores.blocks] == [b.entropy for b in expected.blocks]


class NormAct(nn.BatchNorm2d):
    """A normalisation that holds its activation, as timm's do."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


def test_a_normalisation_is_no_block():
    conv = nn.Conv2d(3, 8, 3, padding=1)
    separate = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
    scores, expected = (
        found(nn.Sequential(conv, *norm, Bottleneck(8), *norm, Bottleneck(8))) for norm in ([NormAct(8)], separate)
    )
    assert [b.shape for b in scores.blocks] == [b.shape for b in expected.blocks] == [(8, 32, 32)] * 3
    assert scores == expected


class Plain(nn.Module):
    """Two plain layers as a unit: no stage."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(Conv(channels, 2 * channels), Conv(2 * channels, channels))

    def forward(self, x):
        return self.layers(x)


def test_plain_layers_in_a_row_are_one_block():
    scores = found(nn.Sequential(Conv(3, 8), Plain(8), Plain(8), nn.Flatten(), nn.Linear(8 * 1024, 2)))
    assert names(scores) == ["0", "1", "2"]


class Encoder(nn.Module):
    def __init__(self, depth):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.patches, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 2)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).mT).mean(1))


class Pooled(nn.Module):
    """Poolings between the stages."""

    def __init__(self, depth):
        super().__init__()
        self.stem, self.head = Conv(3, 8), nn.Linear(8, 2)
        self.stages = nn.ModuleList(nn.Sequential(*(Bottleneck(8) for _ in range(depth))) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = functional.max_pool2d(stage(x), 2)
        return self.head(x.mean((2, 3)))


class Transitions(nn.Module):
    """Plain convolutions between the stages."""

    def __init__(self, depth):
        super().__init__()
        self.stem = Conv(3, 8)
        for i, width in enumerate((8, 16, 32)):
            self.add_module(f"stage{i}", nn.Sequential(*(Bottleneck(width) for _ in range(depth))))
            self.add_module(f"transition{i}", nn.Conv2d(width, 2 * width, 2, 2))
        self.head = nn.Linear(64, 2)

    def forward(self, x):
        x = self.stem(x)
        for i in range(3):
            x = self.get_submodule(f"transition{i}")(self.get_submodule(f"stage{i}")(x))
        return self.head(x.mean((2, 3)))


class Wide(nn.Module):
    """Many modules beside the one that holds the blocks: they are as many at every depth."""

    def __init__(self, depth):
        super().__init__()
        self.stem, self.second, self.neck, self.last = Conv(3, 8), Plain(8), Plain(8), Conv(8, 8)
        self.blocks, self.head = nn.ModuleList(Bottleneck(8) for _ in range(depth)), nn.Linear(8, 2)

    def forward(self, x):
        x = self.second(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(self.neck(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "stages", "features"), [(Encoder, 1, 2), (Pooled, 3, 1), (Transitions, 3, 1), (Wide, 1, 1)]
)
def test_depth_does_not_change_how_blocks_are_found(model, stages, features):
    scores = [found(model(depth)) for depth in (*DEPTHS, 12)]
    assert len({s.block_source for s in scores}) == 1
    n = [len(s.blocks) for s in scores]
    assert [n[1] - n[0], n[2] - n[1], n[3] - n[2]] == [stages * features * k for k in (1, 1, 9)]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
def test_the_input_of_a_perceptron_is_a_feature(activation):
    widths = (5, 6, 7, 8)
    for depth in DEPTHS:
        layers = [
            layer
            for c_in, c_out in itertools.pairwise(widths[: depth + 1])
            for layer in (nn.Linear(c_in, c_out), activation())
        ]
        scores = found(nn.Sequential(*layers, nn.Linear(widths[depth], 2)), (5,))
        assert [block.shape for block in scores.blocks] == [(width,) for width in widths[: depth + 1]]
        assert names(scores)[0] == "input of Sequential"
        assert scores.block_source.startswith("found by running the model")
        assert [b.complexity for b in scores.blocks] == [
            0,
            *(a * b for a, b in itertools.pairwise(widths[: depth + 1])),
        ]


@pytest.mark.parametrize("model", [Encoder, Pooled, Transitions, Wide, PiT])
def test_the_proxies_that_are_named_do_not_change_the_blocks(model):
    network = model((2, 2)) if model is PiT else model(2)
    every = found(network)
    for proxies in (["complexity"], ["expressivity"], ["isometry"]):
        some = found(network, proxies=proxies)
        assert names(some) == names(every)
        assert some.block_source == every.block_source


class Permuted(nn.Module):
    """Downsampling of VOLO: a convolution between permutations of images (B, H, W, C)."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.proj = nn.Conv2d(c_in, c_out, 2, 2)

    def forward(self, x):
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Volo(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.network = nn.ModuleList([Layer(8), Permuted(8, 16), Layer(16), Permuted(16, 16), Layer(16)])
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        for layer in self.network:
            x = layer(x)
        return self.head(x.mean((1, 2)))


def test_channels_of_a_permuted_convolution():
    model = Volo()
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    proxies = [*DEFAULT, "trainability"]
    scores = ProxyEvaluator(inputs=x, init=None, proxies=proxies, device="cpu")(model)
    downsampled = scores.blocks[names(scores).index("network.1")]
    assert (downsampled.shape, downsampled.channels) == ((8, 8, 16), 16)
    with torch.no_grad():
        feature = model.network[1](model.network[0](model.patches(x).permute(0, 2, 3, 1)))
    assert downsampled.entropy == pytest.approx(reference.entropy(feature.flatten(1, 2)), rel=1e-4)
    assert all(block.spectral_norm > 0 for block in scores.blocks[1:])


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((2, 16, 8, 8), True),
        ((2, 8, 8, 16), False),
        ((2, 8, 16, 16), True),  # a square image after a shuffle of pixels
        ((2, 16, 16, 16), True),
        ((2, 49, 16), False),
    ],
)
def test_layout_after_a_convolution(shape, first):
    assert channels_first(torch.zeros(shape), [nn.Conv2d(3, 16, 3)]) is first


def test_one_width_in_either_layout_is_a_tie():
    """Patches (B, C, H, W), then layers on (B, H, W, C): all features have 16 channels."""

    class Isotropic(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.patches = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GroupNorm(1, 16))
            self.layers, self.head = nn.ModuleList(Layer(16) for _ in range(depth)), nn.Linear(16, 2)

        def forward(self, x):
            x = self.patches(x).permute(0, 2, 3, 1)
            for layer in self.layers:
                x = layer(x)
            return self.head(x.mean((1, 2)))

    for depth in DEPTHS:
        scores = found(Isotropic(depth), proxies=[*DEFAULT, "progressivity", "trainability"])
        assert {block.channels for block in scores.blocks} == {16}
        assert {block.shape for block in scores.blocks} == {(16, 8, 8), (8, 8, 16)}
        ties = ("entropy_retention", "isometry", "jacobian_rank", "progressivity", "trainability")
        assert [scores.to_dict()[name] for name in ties] == [0.0] * 5


def test_one_resolution_is_no_tie_where_the_width_grows():
    """Images (B, H, W, C) keep their height, and C grows: the rule looks at the channels, wherever they are."""

    class Widening(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Linear(3, 8)
            self.layers = nn.ModuleList([Layer(8), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16)), Layer(16)])

        def forward(self, x):
            x = self.patches(x)
            for layer in self.layers:
                x = layer(x)
            return x.mean((1, 2))

    scores = ProxyEvaluator((6, 6, 3), device="cpu")(Widening())
    assert {block.channels for block in scores.blocks} == {8, 16}
    assert scores.jacobian_rank > 0


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_a_chain_of_convolution_blocks_is_found_in_one_way_at_every_depth(depth):
    def block(c_in, c_out):
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())

    layers = [block(3, 4), *(block(4, 4) for _ in range(depth))]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    scores = ProxyEvaluator((3, 8, 8), batch_size=2, device="cpu")(model)
    assert scores.block_source == "found in the tree of modules"
    assert len(scores.blocks) == depth + 1

"""Which modules are taken for a model's primary blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optuna_aznas import ProxyEvaluationError, ProxyEvaluator
from optuna_aznas.proxies import find_blocks


class Residual(nn.Module):
    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=stride)) if stride > 1 else None

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    """In the style of torchvision: the stem's layers lie loose in the root, blocks in one Sequential for each stage."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Residual(8, 8), Residual(8, 8))
        self.layer2 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16))
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3))
        self.head = nn.Linear(16, 2)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def test_residual_network():
    model = ResNet()
    assert list(find_blocks(model)) == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    scores = ProxyEvaluator((3, 32, 32), batch_size=4)(model)
    assert scores.blocks[0].name == "input of layer1.0"
    assert scores.blocks[0].shape == (8, 8, 8)
    assert scores.blocks[3].shape == (16, 4, 4)
    assert min(b.spectral_norm for b in scores.blocks[1:]) > 0.1


def test_plain_sequential():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 14 * 14, 3),
    )  # fmt: skip
    assert list(find_blocks(model)) == ["2", "5"]
    scores = ProxyEvaluator((3, 32, 32), batch_size=4)(model)
    assert [b.shape for b in scores.blocks] == [(8, 30, 30), (8, 14, 14)]


def test_vgg():
    class VGG(nn.Module):
        def __init__(self):
            super().__init__()
            layers, c_in = [], 3
            for width in (8, "pool", 16, "pool", 16, 16, "pool"):
                if width == "pool":
                    layers.append(nn.MaxPool2d(2))
                else:
                    layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.ReLU(inplace=True)]
                    c_in = width
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Sequential(nn.Linear(16 * 16, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 2))

        def forward(self, x):
            return self.classifier(self.features(x).flatten(1))

    scores = ProxyEvaluator((3, 32, 32), batch_size=4)(VGG())
    assert [b.name for b in scores.blocks] == ["features.2", "features.5", "features.7", "features.10"]
    assert [b.shape for b in scores.blocks] == [(8, 16, 16), (16, 8, 8), (16, 8, 8), (16, 4, 4)]


def test_two_units_stay_two():
    def unit(c_in):
        return nn.Sequential(nn.Conv2d(c_in, 4, 3), nn.ReLU())

    assert list(find_blocks(nn.Sequential(unit(3), unit(4), nn.Flatten(), nn.Linear(64, 2)))) == ["0", "1"]
    assert list(find_blocks(nn.Sequential(unit(3), unit(4)))) == ["0", "1"]


def test_multilayer_perceptron_in_a_wrapper():
    class Perceptron(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [nn.Flatten()]
            for width_in, width_out in ((64, 32), (32, 32), (32, 16)):
                layers += [nn.Linear(width_in, width_out), nn.Tanh()]
            self.net = nn.Sequential(*layers, nn.Linear(16, 2))

        def forward(self, x):
            return self.net(x)

    assert list(find_blocks(Perceptron())) == ["net.2", "net.4", "net.6"]
    scores = ProxyEvaluator((1, 8, 8), batch_size=64)(Perceptron())
    assert [b.shape for b in scores.blocks] == [(32,), (32,), (16,)]


def test_transformer_encoder_on_token_ids():
    tokens = torch.randint(0, 11, (6, 9))
    scores = ProxyEvaluator(inputs=tokens, device="cpu")(Encoder())
    names = ["input of layers.0"]
    for i in range(3):
        names += [f"after layers.{i}.self_attn", f"layers.{i}"]
    assert [b.name for b in scores.blocks] == names
    assert {b.shape for b in scores.blocks} == {(9, 16)}
    same = ProxyEvaluator(inputs={"tokens": tokens}, device="cpu")(model := Encoder())
    assert same == ProxyEvaluator(inputs=(tokens,), device="cpu")(model)


def test_an_encoder_is_opened():
    class Encoded(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.patches, self.encoder = nn.Conv2d(3, 16, 4, 4), nn.TransformerEncoder(layer, 3)

        def forward(self, x):
            return self.encoder(self.patches(x).flatten(2).mT).mean(1)

    names = ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"]
    assert list(find_blocks(Encoded())) == names
    assert list(find_blocks(nn.ModuleDict({"wrapped": Encoded()}))) == [f"wrapped.{name}" for name in names]
    scores = ProxyEvaluator((3, 16, 16), batch_size=4)(Encoded())
    assert [b.shape for b in scores.blocks] == [(16, 16)] * 7


def test_signals_have_their_channels_first():
    def conv(c_in, c_out, stride):
        return nn.Sequential(nn.Conv1d(c_in, c_out, 5, stride=stride, padding=2), nn.BatchNorm1d(c_out), nn.ReLU())

    model = nn.Sequential(conv(2, 8, 1), conv(8, 8, 2), conv(8, 16, 4))
    scores = ProxyEvaluator((2, 64), batch_size=4)(model)
    assert [b.shape for b in scores.blocks] == [(8, 64), (8, 32), (16, 8)]
    assert scores.expressivity <= 2 * torch.tensor(8.0).log().item() + torch.tensor(16.0).log().item()


def test_blocks_may_return_tuples_and_dicts():
    class Tuple(Residual):
        def forward(self, x):
            return super().forward(x), "state"

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
            self.blocks = nn.ModuleList([Tuple(4, 4), Tuple(4, 4)])

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x, state = block(x)
                assert state == "state"
            return {"logits": x}

    assert len(ProxyEvaluator((3, 8, 8), batch_size=2)(Model()).blocks) == 3


def test_branches_are_paired_with_what_they_start_from():
    """Two branches on one feature, with a shared pooling before them: each has its own Jacobian."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
            self.left, self.right = Residual(4, 4), Residual(4, 4)

        def forward(self, x):
            x = self.stem(x)
            return self.left(x) + self.right(x)

    scores = ProxyEvaluator((3, 8, 8), batch_size=8)(Branches())
    assert min(b.spectral_norm for b in scores.blocks[1:]) > 0.1


def test_explicit_choices():
    model = ResNet()
    assert list(find_blocks(model, ["layer1", "layer2"])) == ["layer1", "layer2"]
    assert list(find_blocks(model, "layer?.*")) == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert list(find_blocks(model, "layer2.*.conv1")) == ["layer2.0.conv1", "layer2.1.conv1"]
    chosen = find_blocks(model, lambda name, module: isinstance(module, Residual) and name.endswith(".0"))
    assert list(chosen) == ["layer1.0", "layer2.0"]
    scores = ProxyEvaluator((3, 32, 32), batch_size=4, blocks=["layer1", "layer2"])(model)
    assert [b.name for b in scores.blocks] == ["input of layer1", "layer1", "layer2"]


def test_choices_that_match_nothing():
    model = ResNet()
    with pytest.raises(ProxyEvaluationError, match=r"No module of ResNet is called 'layer9'.*'layer1\.0\.conv1'"):
        find_blocks(model, ["layer1", "layer9"])
    with pytest.raises(ProxyEvaluationError, match="chose no module of ResNet"):
        find_blocks(model, lambda name, module: False)
    with pytest.raises(ProxyEvaluationError, match=r"'layer1\.0' is part of 'layer1'"):
        find_blocks(model, ["layer1", "layer1.0"])
    for wrong in (3, [], [1, 2]):
        with pytest.raises(ValueError, match="blocks must be None, 'auto', names"):
            find_blocks(model, wrong)

"""Attention, position and token interaction against cases that can be worked out, and the scoring of transformers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from optuna_aznas import ProxyEvaluator
from optuna_aznas.proxies import AZNAS, DEFAULT
from optuna_aznas.proxies.attention import AttentionObserver
from optuna_aznas.proxies.aznas import trainability
from optuna_aznas.proxies.isometry import isometry, jacobian_rank
from optuna_aznas.spaces.autoformer import VisionTransformer


def attention_of(*maps):
    """The proxy of layers with these maps (B, H, N, M), given as logarithms to a softmax."""
    observer = AttentionObserver(batch_size=len(maps[0]))
    with observer:
        for layer in maps:
            layer.log().softmax(dim=-1)
    return observer.score()


def test_heads_that_look_around_in_different_places():
    """Two heads, each spread over a half of the 8 tokens of its own: spread log 4 / log 8, difference 1."""
    maps = torch.zeros(1, 2, 8, 8)
    maps[:, 0, :, :4] = maps[:, 1, :, 4:] = 0.25
    assert attention_of(maps) == pytest.approx(math.log(4) / math.log(8))
    assert attention_of(maps, maps) == pytest.approx(2 * math.log(4) / math.log(8))


def test_heads_that_do_the_same_or_look_at_one_token_score_nothing():
    uniform = torch.full((2, 3, 5, 5), 0.2)
    one_token_each = torch.eye(4).roll(1, 0)[None, :, None, :].expand(1, 4, 4, 4) * 1.0
    assert attention_of(uniform) == pytest.approx(0.0, abs=1e-12)
    assert attention_of(one_token_each) == pytest.approx(0.0, abs=1e-12)
    assert attention_of(torch.full((2, 1, 5, 5), 0.2)) == 0.0  # one head


def test_attention_plainly():
    """The formula, written with loops."""
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 4, 5).mul(2).softmax(dim=-1)

    def entropy(row):
        return -sum(p * math.log(p) for p in row.tolist())

    rows = [(b, n) for b in range(2) for n in range(4)]
    own = sum(entropy(maps[b, h, n]) for b, n in rows for h in range(3)) / (3 * len(rows))
    mixed = sum(entropy(maps[b, :, n].mean(dim=0)) for b, n in rows) / len(rows)
    expected = own / math.log(5) * (mixed - own) / math.log(3)
    assert attention_of(maps) == pytest.approx(expected, rel=1e-5)


class Fused(nn.Module):
    def __init__(self, qkv, heads):
        super().__init__()
        self.qkv, self.heads = qkv, heads

    def split(self, x):
        batch, tokens, width = x.shape
        return self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(*self.split(x)).transpose(1, 2).flatten(2)


class Written(Fused):
    def forward(self, x):
        q, k, v = self.split(x)
        maps = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        return (maps @ v).transpose(1, 2).flatten(2)


class AttentionLayer(nn.Module):
    """A block with layer normalisation around attention."""

    def __init__(self, attention, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = attention

    def forward(self, x):
        y = self.norm(x)
        if isinstance(self.attention, nn.MultiheadAttention):
            return x + self.attention(y, y, y)[0]
        return x + self.attention(y)


class SelfAttentionModel(nn.Module):
    def __init__(self, make, width=8, heads=2):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(AttentionLayer(make(width, heads), width) for _ in range(2)))
        self.layers.apply(lambda m: nn.init.normal_(m.weight) if isinstance(m, nn.Linear) else None)

    def forward(self, x):
        return self.layers(x)


def test_fused_attention_has_the_maps_of_written_attention():
    tokens = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
    scores = [
        ProxyEvaluator(inputs=tokens, init=None, proxies=("expressivity", "attention"), device="cpu")(
            SelfAttentionModel(lambda width, heads, kind=kind: kind(nn.Linear(width, 3 * width), heads))
        )
        for kind in (Fused, Written)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert scores[0].attention > 0.01


def test_multihead_attention_is_seen():
    """With and without the weights that it returns (three dimensions, or fused)."""
    tokens = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))

    def make(width, heads):
        return nn.MultiheadAttention(width, heads, batch_first=True)

    model = SelfAttentionModel(make)
    evaluator = ProxyEvaluator(inputs=tokens, proxies="attention", init="kaiming", device="cpu")
    with_weights = evaluator(model).attention
    for layer in model.layers:
        whole = layer.attention.forward
        layer.attention.forward = lambda *args, whole=whole: whole(*args, need_weights=False)
    assert evaluator(model).attention == pytest.approx(with_weights, rel=1e-5)
    assert with_weights > 0.01


class Mixing(nn.Module):
    """``x + share * (mean over tokens - x)``: a token keeps 1 - share of itself."""

    def __init__(self, share):
        super().__init__()
        self.share = share
        self.inner = nn.Identity()

    def forward(self, x):
        return x + self.share * (x.mean(dim=1, keepdim=True) - x)


def interaction_of(*blocks, tokens=64):
    model = nn.Sequential(nn.Linear(4, 8), *blocks)
    x = torch.randn(16, tokens, 4, generator=torch.Generator().manual_seed(0))
    names = [str(1 + i) for i in range(len(blocks))]
    evaluator = ProxyEvaluator(inputs=x, proxies="token_interaction", blocks=["0", *names], device="cpu")
    return evaluator(model)[0]


def test_blocks_that_look_at_one_token_have_no_interaction():
    mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    assert interaction_of(nn.LayerNorm(8), mlp) == 0.0


def test_interaction_of_a_known_mixture():
    """g at token i is (1 - s) v_i m_i + s / N sum over j of v_j m_j: a known share of its energy has crossed."""
    n, s, drawn = 64, 0.9, 0.5
    back = s * s * drawn / n  # mean square, at each token, of what arrives from all
    own = (1 - s) ** 2 + 2 * (1 - s) * s / n + back
    expected = 2 * (1 - drawn) * back / (drawn * own + (1 - drawn) * back)
    assert interaction_of(Mixing(s)) == pytest.approx(expected, rel=0.1)
    # The mean alone: all that arrives has crossed, half of it to tokens that were drawn.
    assert interaction_of(Mixing(1.0)) == pytest.approx(1.0, rel=0.05)


def test_more_mixing_is_more_interaction():
    values = [interaction_of(Mixing(share)) for share in (0.0, 0.3, 0.6, 0.9)]
    assert values[0] == 0.0
    assert values == sorted(values)
    assert len(set(values)) == 4


class Positions(nn.Module):
    """Patches, to which a given encoding (N, C) is added."""

    def __init__(self, encoding):
        super().__init__()
        self.patches = nn.Conv2d(3, encoding.shape[1], 4, stride=4)
        self.encoding = nn.Parameter(encoding)
        self.layers = nn.Sequential(nn.LayerNorm(encoding.shape[1]), nn.LayerNorm(encoding.shape[1]))

    def forward(self, x):
        return self.layers(self.patches(x).flatten(2).mT + self.encoding)


def position_of(encoding):
    evaluator = ProxyEvaluator((3, 32, 32), proxies="position", blocks="layers.*", device="cpu")
    return evaluator(Positions(encoding))[0]


def test_position():
    line = torch.arange(8.0) / 8
    rows, columns = line.repeat_interleave(8), line.repeat(8)
    smooth = torch.stack([f(math.pi * axis) for axis in (rows, columns) for f in (torch.sin, torch.cos)], dim=1)
    generator = torch.Generator().manual_seed(0)
    assert position_of(smooth) > 0.5
    assert abs(position_of(torch.randn(64, 32, generator=generator))) < 0.1
    assert position_of(torch.zeros(64, 4)) == 0.0
    assert position_of(smooth[torch.randperm(64, generator=generator)]) < 0.2


def test_a_class_token_is_left_out_of_the_grid():
    model = VisionTransformer(32, [2], [2.0], image_size=64, head_width=None, relative_position=False)
    assert -1 <= ProxyEvaluator((3, 64, 64), proxies="position", device="cpu")(model)[0] <= 1


def test_no_proxy_changes_another():
    model = VisionTransformer(32, [2, 4], [2.0, 3.0], image_size=32, patch_size=8)
    names = ("expressivity", "complexity", "attention", "position", "token_interaction")
    every = ProxyEvaluator((3, 32, 32), proxies=names, device="cpu")(model)
    for name in names:
        assert ProxyEvaluator((3, 32, 32), proxies=name, device="cpu")(model)[0] == pytest.approx(
            getattr(every, name), rel=1e-5
        ), name


def test_a_transformer_of_one_width_has_neither_progressivity_nor_trainability():
    """Both are a tie for all such networks; per block they are measured, and the paper's estimate stays the paper's."""
    model = VisionTransformer(32, [2, 4], [2.0, 3.0], image_size=32, patch_size=8)
    names = tuple(dict.fromkeys((*AZNAS, *DEFAULT)))
    scores = ProxyEvaluator((3, 32, 32), device="cpu", proxies=names)(model)
    assert scores.progressivity == scores.entropy_retention == 0.0
    assert scores.trainability == scores.isometry == scores.jacobian_rank == 0.0
    assert trainability(scores.blocks) < 0
    assert isometry(scores.blocks) < 0 < jacobian_rank(scores.blocks)
    moment = ProxyEvaluator((3, 32, 32), jacobian="moment", device="cpu", proxies=names, batch_size=16)(model)
    assert moment.trainability == trainability(moment.blocks) < 0
    assert moment.isometry == isometry(moment.blocks) < 0


def test_weights_outside_convolutions_and_linear_layers_are_drawn_too():
    """So that two models of one architecture score alike, whatever generator initialised them."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 6)
            self.layers = nn.ModuleList([Step(6), Step(6), Step(6)])

        def forward(self, x):
            x = self.embedding(x)
            for layer in self.layers:
                x = layer(x)
            return x

    class Step(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.lstm = nn.LSTM(width, width, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    tokens = torch.randint(0, 11, (5, 7), generator=torch.Generator().manual_seed(0))
    width, heads = 8, 2
    for make, inputs in (
        (Recurrent, tokens),
        (
            lambda: nn.Sequential(
                *(AttentionLayer(nn.MultiheadAttention(width, heads, batch_first=True), width) for _ in range(2))
            ),
            torch.randn(3, 6, width, generator=torch.Generator().manual_seed(0)),
        ),
    ):
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = make()
            weights = {name: p.clone() for name, p in model.named_parameters()}
            evaluator = ProxyEvaluator(inputs=inputs, proxies=("expressivity", "trainability"), device="cpu")
            found.append(evaluator(model))
            assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
        assert found[0] == found[1]
        if make is Recurrent:  # the module's own list of weights is back
            lstm = model.layers[0].lstm
            assert all(a is b for a, b in zip(lstm._flat_weights, lstm.parameters(), strict=True))


@pytest.mark.parametrize("jacobian", ["moment", "least-squares"])
def test_an_identity_block_is_left_out_of_a_transformers_trainability(jacobian):
    """A convolutional network with one scores -inf."""

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(8, 8)

        def forward(self, x):
            return x

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 2, stride=2)
            layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(2)]
            self.layers = nn.ModuleList([layers[0], Idle(), layers[1]])

        def forward(self, x):
            x = self.patches(x).flatten(2).mT
            for layer in self.layers:
                x = layer(x)
            return x.mean(1)

    evaluator = ProxyEvaluator(
        (3, 8, 8), batch_size=4, blocks="layers.*", jacobian=jacobian, device="cpu", proxies=(*AZNAS, "isometry")
    )
    scores = evaluator(Tokens())
    assert math.isfinite(scores.isometry)
    idle = next(block for block in scores.blocks if block.name == "layers.1")
    assert math.isnan(idle.trainability)
    others = [block.trainability for block in scores.blocks[1:] if block.name != "layers.1"]
    assert all(map(math.isfinite, others))
    assert math.isfinite(scores.trainability)
    if jacobian == "moment":
        assert scores.trainability == pytest.approx(sum(others) / len(others))

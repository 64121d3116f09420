"""AutoFormer's space: its ranges, its parameters, relative positions, and what it refuses."""

from __future__ import annotations

import math

import optuna
import pytest
import torch

from optuna_aznas import spaces
from optuna_aznas.spaces.autoformer import HEAD_WIDTH, MAX_DISTANCE, RANGES, SelfAttention, VisionTransformer


@pytest.mark.parametrize("size", list(RANGES))
def test_a_trial_becomes_a_network(size):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    model = spaces.autoformer.build(trial, size=size, device="meta")
    depth, width = trial.params["depth"], trial.params["embed_dim"]
    assert len(model.layers) == depth
    assert set(trial.params) == {
        "embed_dim",
        "depth",
        *(f"{name}_{i}" for name in ("num_heads", "mlp_ratio") for i in range(depth)),
    }
    for i, (attention, mlp) in enumerate(model.layers):
        assert attention.body.qkv.weight.shape == (3 * HEAD_WIDTH * trial.params[f"num_heads_{i}"], width)
        assert mlp.body[0].weight.shape == (round(trial.params[f"mlp_ratio_{i}"] * width), width)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    least, most = {"tiny": (5, 11), "small": (13, 35), "base": (39, 77)}[size]
    assert least < millions < most


def test_parameters_in_closed_form():
    width, heads, ratios, classes, grid = 192, [3, 4], [3.5, 4.0], 10, 4
    model = VisionTransformer(width, heads, ratios, image_size=64, classes=classes)
    expected = 3 * 256 * width + width + width + (1 + grid**2) * width + 2 * width + (width + 1) * classes
    for h, ratio in zip(heads, ratios, strict=True):
        inner, hidden = 64 * h, int(ratio * width)
        expected += 3 * inner * (width + 1) + (inner + 1) * width + 4 * width  # attention, two normalisations
        expected += 4 * (2 * MAX_DISTANCE + 2) * 64
        expected += (width + 1) * hidden + (hidden + 1) * width
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("grid", [3, 17])  # 17: distances beyond the table's last
def test_attention_with_relative_positions_plainly(grid):
    """Token by token, with r_ij looked up by hand."""
    torch.manual_seed(0)
    heads, width = 2, 4
    attention = SelfAttention(6, heads, width, grid=grid)
    tokens = 1 + grid**2
    x = torch.randn(1, tokens, 6)
    places = [None] + [(k // grid, k % grid) for k in range(grid**2)]

    def relative(table, i, j):
        if i == 0 or j == 0:
            return table.vertical.weight[0] + table.horizontal.weight[0]

        def row(a, b):
            return max(-MAX_DISTANCE, min(MAX_DISTANCE, b - a)) + MAX_DISTANCE + 1

        (y, z), (u, w) = places[i], places[j]
        return table.vertical.weight[row(y, u)] + table.horizontal.weight[row(z, w)]

    with torch.no_grad():
        q, k, v = attention.qkv(x)[0].view(tokens, 3, heads, width).unbind(1)
        for i in (0, 1, tokens - 1):
            mixed = []
            for h in range(heads):
                for_keys = torch.stack([relative(attention.for_keys, i, j) for j in range(tokens)])
                for_values = torch.stack([relative(attention.for_values, i, j) for j in range(tokens)])
                weights = ((k[:, h] + for_keys) @ q[i, h] / math.sqrt(width)).softmax(dim=0)
                mixed.append(weights @ (v[:, h] + for_values))
            assert torch.allclose(attention(x)[0, i], attention.out(torch.cat(mixed)), atol=1e-5)


def test_without_relative_positions_it_is_a_plain_vit():
    """Against torch's own attention with the same weights."""
    torch.manual_seed(0)
    ours = SelfAttention(8, 2, 4)
    torchs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    torchs.in_proj_weight, torchs.in_proj_bias = ours.qkv.weight, ours.qkv.bias
    torchs.out_proj.weight, torchs.out_proj.bias = ours.out.weight, ours.out.bias
    x = torch.randn(2, 5, 8)
    assert torch.allclose(ours(x), torchs(x, x, x)[0], atol=1e-6)


def test_fresh_weights_are_a_vits():
    torch.manual_seed(0)
    model = VisionTransformer(64, [2], [4.0], image_size=32)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            assert parameter.eq(0).all(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        else:
            assert parameter.abs().max() <= 0.04, name
    assert model.layers[0][1].body[0].weight.std().item() == pytest.approx(0.0176, rel=0.05)  # 0.02, cut at two of them


def test_errors_name_the_argument():
    trial = optuna.trial.FixedTrial({})
    with pytest.raises(ValueError, match="size must be one of"):
        spaces.autoformer.build(trial, size="huge")
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size"):
        VisionTransformer(8, [2], [2.0], image_size=30)
    with pytest.raises(ValueError, match="one value for each layer; got 2 and 1"):
        VisionTransformer(8, [2, 2], [2.0])
    with pytest.raises(ValueError, match=r"num_heads must divide embed_dim .* \[3\] for 8"):
        VisionTransformer(8, [2, 3], [2.0, 2.0], head_width=None)

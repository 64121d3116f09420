"""Models of the transformers package, built from small configurations (nothing is downloaded), and the features that
each should show.

What is expected is read off the architectures, not off the code: a convolutional block, or a residual sum, is a
feature; so is the stem, and so is what changes the resolution between stages.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TOKENS = 12
IDS = torch.randint(3, 99, (4, TOKENS), generator=torch.Generator().manual_seed(0))
TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}

_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_LANGUAGE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to detect.

    Attributes:
        build: Makes it, given the package.
        inputs: Arguments of the evaluator that say what it is run on.
        shapes: Shapes of the features that it should show, in order.
    """

    build: Callable[[Any], nn.Module]
    inputs: dict[str, Any]
    shapes: list[Shape]


def _image(size: int) -> dict[str, Any]:
    return {"input_shape": (3, size, size)}


def _stages(*stages: tuple[int, Shape]) -> list[Shape]:
    return [shape for count, shape in stages for _ in range(count)]


_TEXT = {"inputs": TEXT}
_TOKENS_OF_TEXT: Shape = (TOKENS, 32)
_CLASS_TOKEN, _GRID = 1, 16
_BEFORE_AND_AFTER = 2  # sums in a layer: after attention, after the MLP

CASES: dict[str, Case] = {
    "ResNet": Case(
        lambda t: t.ResNetForImageClassification(
            t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24], depths=[2, 2, 1], layer_type="basic")
        ),
        _image(32),
        _stages((1 + 2, (8, 8, 8)), (2, (16, 4, 4)), (1, (24, 2, 2))),
    ),
    "ResNet, bottleneck": Case(
        lambda t: t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 48], depths=[1, 2, 2])),
        _image(64),
        _stages((1, (8, 16, 16)), (1, (16, 16, 16)), (2, (32, 8, 8)), (2, (48, 4, 4))),
    ),
    "RegNet": Case(
        lambda t: t.RegNetForImageClassification(
            t.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 2, 1], groups_width=4)
        ),
        _image(64),
        _stages((1, (8, 32, 32)), (1, (8, 16, 16)), (2, (16, 8, 8)), (2, (24, 4, 4)), (1, (32, 2, 2))),
    ),
    "MobileNetV2": Case(
        lambda t: t.MobileNetV2ForImageClassification(t.MobileNetV2Config(depth_multiplier=0.25)),
        _image(64),
        _stages(
            (1, (8, 32, 32)),
            (2, (8, 16, 16)),
            (3, (8, 8, 8)),
            (4, (16, 4, 4)),
            (3, (24, 4, 4)),
            (3, (40, 2, 2)),
            (1, (80, 2, 2)),
            (1, (1280, 2, 2)),
        ),
    ),
    "EfficientNet": Case(
        lambda t: t.EfficientNetModel(
            t.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.5, hidden_dim=320)
        ),
        _image(64),
        _stages(
            (2, (8, 32, 32)),
            (1, (8, 16, 16)),
            (1, (16, 8, 8)),
            (2, (24, 4, 4)),
            (2, (32, 4, 4)),
            (2, (48, 2, 2)),
        ),
    ),
    "ConvNeXt": Case(
        lambda t: t.ConvNextForImageClassification(
            t.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], patch_size=2)
        ),
        _image(32),
        _stages((2, (8, 16, 16)), (2, (16, 8, 8)), (3, (24, 4, 4)), (2, (32, 2, 2))),
    ),
    "PoolFormer": Case(
        lambda t: t.PoolFormerModel(t.PoolFormerConfig(depths=[1, 1, 2, 1], hidden_sizes=[16, 24, 32, 48])),
        _image(64),
        # The pooling has no weights, so it forms a block with the embedding or the MLP next to it.
        _stages((2, (16, 16, 16)), (2, (24, 8, 8)), (3, (32, 4, 4)), (2, (48, 2, 2))),
    ),
    "ViT": Case(
        lambda t: t.ViTForImageClassification(t.ViTConfig(**_VISION)),
        _image(32),
        _stages((1 + 3 * _BEFORE_AND_AFTER, (_CLASS_TOKEN + _GRID, 32))),
    ),
    "DeiT": Case(
        lambda t: t.DeiTModel(t.DeiTConfig(**_VISION)),
        _image(32),
        _stages((1 + 3 * _BEFORE_AND_AFTER, (2 * _CLASS_TOKEN + _GRID, 32))),  # and one for distillation
    ),
    "BEiT": Case(
        lambda t: t.BeitModel(t.BeitConfig(**_VISION)),
        _image(32),
        _stages((1 + 3 * _BEFORE_AND_AFTER, (_CLASS_TOKEN + _GRID, 32))),
    ),
    "DINOv2": Case(
        lambda t: t.Dinov2Model(t.Dinov2Config(mlp_ratio=2, **{k: v for k, v in _VISION.items() if "inter" not in k})),
        _image(32),
        _stages((1 + 3 * _BEFORE_AND_AFTER, (_CLASS_TOKEN + _GRID, 32))),
    ),
    "Swin": Case(
        lambda t: t.SwinForImageClassification(
            t.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
        ),
        _image(32),
        _stages((1 + 2 * 2, (256, 16)), (1 + 2 * 2, (64, 32))),
    ),
    "Swin v2": Case(
        lambda t: t.Swinv2Model(
            t.Swinv2Config(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
        ),
        _image(32),
        _stages((1 + 2 * 2, (256, 16)), (1 + 2 * 2, (64, 32))),
    ),
    "PVT": Case(
        lambda t: t.PvtModel(t.PvtConfig(image_size=64, depths=[1, 1, 2, 1], hidden_sizes=[16, 32, 40, 64])),
        _image(64),
        _stages(
            (1 + 2, (256, 16)),
            (1, (32, 8, 8)),
            (2, (64, 32)),
            (1, (40, 4, 4)),
            (4, (16, 40)),
            (1, (64, 2, 2)),
            (2, (5, 64)),
        ),
    ),
    "SegFormer": Case(
        lambda t: t.SegformerForSemanticSegmentation(
            t.SegformerConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 40, 64], decoder_hidden_size=32)
        ),
        _image(64),
        _stages(
            (1 + 2, (256, 16)),
            (1, (32, 8, 8)),
            (2, (64, 32)),
            (1, (40, 4, 4)),
            (2, (16, 40)),
            (1, (64, 2, 2)),
            (2, (4, 64)),
        ),
    ),
    "LeViT": Case(
        lambda t: t.LevitModel(
            t.LevitConfig(
                image_size=64,
                hidden_sizes=[32, 48, 64],
                num_attention_heads=[2, 3, 4],
                depths=[2, 2, 2],
                key_dim=[8, 8, 8],
            )
        ),
        _image(64),
        _stages(
            (1 + 4, (16, 32)), (2 + 4, (4, 48)), (2 + 4, (1, 64))
        ),  # between stages: attention that strides, an MLP
    ),
    "FocalNet": Case(
        lambda t: t.FocalNetModel(
            t.FocalNetConfig(
                image_size=32,
                patch_size=2,
                embed_dim=16,
                depths=[1, 2, 1],
                hidden_sizes=[16, 32, 64],
                focal_levels=[2, 2, 2],
                focal_windows=[3, 3, 3],
            )
        ),
        _image(32),
        _stages((1 + 2, (256, 16)), (1, (32, 8, 8)), (4, (64, 32)), (1, (64, 4, 4)), (2, (16, 64))),
    ),
    "BERT": Case(
        lambda t: t.BertForSequenceClassification(t.BertConfig(**_LANGUAGE)),
        _TEXT,
        _stages((1 + 3 * _BEFORE_AND_AFTER, _TOKENS_OF_TEXT)),
    ),
    "DistilBERT": Case(
        lambda t: t.DistilBertModel(t.DistilBertConfig(vocab_size=99, dim=32, n_layers=3, n_heads=4, hidden_dim=64)),
        _TEXT,
        _stages((1 + 3 * _BEFORE_AND_AFTER, _TOKENS_OF_TEXT)),
    ),
    "RoBERTa": Case(
        lambda t: t.RobertaForMaskedLM(t.RobertaConfig(**_LANGUAGE)),
        _TEXT,
        _stages((1 + 3 * _BEFORE_AND_AFTER, _TOKENS_OF_TEXT)),
    ),
    "ALBERT (one layer, three times)": Case(
        lambda t: t.AlbertModel(t.AlbertConfig(embedding_size=16, **_LANGUAGE)),
        _TEXT,
        _stages((1 + 3 * _BEFORE_AND_AFTER, _TOKENS_OF_TEXT)),
    ),
    "GPT-2": Case(
        lambda t: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=99, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
        _TEXT,
        _stages((1 + 3 * _BEFORE_AND_AFTER, _TOKENS_OF_TEXT)),
    ),
    "GPT-NeoX (attention and MLP in parallel)": Case(
        lambda t: t.GPTNeoXModel(t.GPTNeoXConfig(**_LANGUAGE)),
        _TEXT,
        _stages((1 + 3, _TOKENS_OF_TEXT)),
    ),
    "Llama": Case(
        lambda t: t.LlamaForCausalLM(t.LlamaConfig(num_key_value_heads=2, **_LANGUAGE)),
        _TEXT,
        _stages((1 + 3 * _BEFORE_AND_AFTER, _TOKENS_OF_TEXT)),
    ),
    "Mamba": Case(
        lambda t: t.MambaModel(t.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, state_size=4)),
        {"inputs": {"input_ids": IDS}},
        _stages((1 + 3, _TOKENS_OF_TEXT)),
    ),
    "T5 (encoder, decoder)": Case(
        lambda t: t.T5Model(t.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)),
        {"inputs": {"input_ids": IDS, "decoder_input_ids": IDS[:, :7]}},
        _stages((1 + 2 * 2, _TOKENS_OF_TEXT), (1 + 2 * 3, (7, 32))),  # a decoder's layer also attends to the encoder
    ),
    "CLIP (image and text)": Case(
        lambda t: t.CLIPModel(
            t.CLIPConfig(
                text_config={"projection_dim": 16, **_LANGUAGE},
                vision_config={"projection_dim": 16, **_VISION},
                projection_dim=16,
            )
        ),
        {
            "inputs": {
                "input_ids": IDS,
                "pixel_values": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
            }
        },
        _stages((1 + 3 * _BEFORE_AND_AFTER, (_CLASS_TOKEN + _GRID, 32)), (1 + 3 * _BEFORE_AND_AFTER, _TOKENS_OF_TEXT)),
    ),
    "Wav2Vec2 (sound)": Case(
        lambda t: t.Wav2Vec2Model(
            t.Wav2Vec2Config(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                conv_dim=(16, 16, 16),
                conv_stride=(5, 2, 2),
                conv_kernel=(10, 3, 3),
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
            )
        ),
        {"input_shape": (1600,)},
        _stages((2 + 2 * 2, (79, 32))),  # the positions are a convolution with a shortcut of their own
    ),
    "Whisper (encoder)": Case(
        lambda t: t.models.whisper.modeling_whisper.WhisperEncoder(
            t.WhisperConfig(
                d_model=32,
                encoder_layers=2,
                encoder_attention_heads=4,
                encoder_ffn_dim=64,
                num_mel_bins=16,
                max_source_positions=50,
            )
        ),
        {"input_shape": (16, 100)},
        _stages((1 + 2 * 2, (50, 32))),
    ),
}

"""The vision-transformer space of AutoFormer (Chen et al., ICCV 2021, arXiv:2107.00651): tiny, small and base.

A network is a plain ViT: 16 x 16 patches, a class token, a learned position for each token, and layers of attention and
MLP, each with a layer normalisation before it and a residual connection around it. The parameters are the width of the
embedding, the number of layers, and for each layer the number of heads (each of width 64) and the ratio of the MLP.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import optuna

Size: TypeAlias = Literal["tiny", "small", "base"]


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Ranges of one of the spaces: (lowest, highest, step) of each parameter (table 1 of the paper)."""

    embed_dim: tuple[int, int, int]
    depth: tuple[int, int, int]
    num_heads: tuple[int, int, int]
    mlp_ratio: tuple[float, float, float]


RANGES: dict[Size, Ranges] = {
    "tiny": Ranges(embed_dim=(192, 240, 24), depth=(12, 14, 1), num_heads=(3, 4, 1), mlp_ratio=(3.5, 4.0, 0.5)),
    "small": Ranges(embed_dim=(320, 448, 64), depth=(12, 14, 1), num_heads=(5, 7, 1), mlp_ratio=(3.0, 4.0, 0.5)),
    "base": Ranges(embed_dim=(528, 624, 48), depth=(14, 16, 1), num_heads=(8, 10, 1), mlp_ratio=(3.0, 4.0, 0.5)),
}

HEAD_WIDTH = 64  # width of one head of queries, keys and values
MAX_DISTANCE = 14  # distances beyond this share one relative position (section 3.2 of the paper)

_STD = 0.02  # standard deviation of the initial weights


def build(
    trial: optuna.trial.BaseTrial,
    *,
    size: Size = "tiny",
    image_size: int = 224,
    patch_size: int = 16,
    classes: int = 1000,
    device: torch.device | str | None = None,
) -> VisionTransformer:
    """Suggest an AutoFormer architecture and build its network.

    Suggests ``embed_dim`` and ``depth``, and for each layer ``i`` below ``depth`` ``num_heads_i`` and ``mlp_ratio_i``:
    the space is conditional, a deeper network has more parameters.

    Args:
        trial: The trial that suggests.
        size: ``"tiny"`` (4 to 9 M parameters), ``"small"`` (14 to 34 M) or ``"base"`` (42 to 75 M): see :data:`RANGES`.
        image_size: Height and width of the images, a multiple of ``patch_size``.
        patch_size: Height and width of a patch.
        classes: Outputs of the classifier.
        device: Where the parameters are created; with ``"meta"`` building is faster, and the network has no weights.
            Scoring needs none.

    Returns:
        The network, with relative positions and heads of width 64, as the paper's.

    Raises:
        ValueError: ``size`` is unknown, or ``image_size`` is no multiple of ``patch_size``.
    """
    if size not in RANGES:
        raise ValueError(f"size must be one of {tuple(RANGES)}; got {size!r}.")
    ranges = RANGES[size]

    def integer(name: str, bounds: tuple[int, int, int]) -> int:
        return trial.suggest_int(name, bounds[0], bounds[1], step=bounds[2])

    embed_dim, depth = integer("embed_dim", ranges.embed_dim), integer("depth", ranges.depth)
    num_heads = [integer(f"num_heads_{i}", ranges.num_heads) for i in range(depth)]
    least, most, step = ranges.mlp_ratio
    mlp_ratios = [trial.suggest_float(f"mlp_ratio_{i}", least, most, step=step) for i in range(depth)]
    return VisionTransformer(
        embed_dim,
        num_heads,
        mlp_ratios,
        image_size=image_size,
        patch_size=patch_size,
        classes=classes,
        device=device,
    )


class VisionTransformer(nn.Module):
    """A vision transformer whose layers may differ.

    Args:
        embed_dim: Width C of the tokens.
        num_heads: Heads of attention, a number for each layer.
        mlp_ratios: Width of each layer's MLP as a multiple of C.
        head_width: Width of a head; ``None``: ``embed_dim`` divided by the layer's number of heads, as in a plain ViT.
        relative_position: Whether attention sees the relative position of tokens.
        image_size: Height and width of the images, a multiple of ``patch_size``.
        patch_size: Height and width of a patch.
        channels: Channels of the images.
        classes: Outputs of the classifier.
        device: Where the parameters are created; ``None`` is torch's default device.

    Raises:
        ValueError: There is not one MLP ratio for each number of heads; a width is not divisible; a size is out of
            range.

    Example:
        >>> model = VisionTransformer(192, [3, 4], [4.0, 3.5], image_size=32, classes=10)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: Sequence[int],
        mlp_ratios: Sequence[float],
        *,
        head_width: int | None = HEAD_WIDTH,
        relative_position: bool = True,
        image_size: int = 224,
        patch_size: int = 16,
        channels: int = 3,
        classes: int = 1000,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if len(num_heads) != len(mlp_ratios) or not num_heads:
            raise ValueError(
                f"num_heads and mlp_ratios must name one value for each layer; got {len(num_heads)} and "
                f"{len(mlp_ratios)} of them."
            )
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size; got image_size {image_size}, patch_size {patch_size}."
            )
        uneven = [heads for heads in num_heads if head_width is None and embed_dim % heads]
        if uneven:
            raise ValueError(f"num_heads must divide embed_dim where head_width is None; got {uneven} for {embed_dim}.")
        self.grid = image_size // patch_size
        self.patches = nn.Conv2d(channels, embed_dim, patch_size, stride=patch_size, device=device)
        self.class_token = nn.Embedding(1, embed_dim, device=device)
        self.positions = nn.Embedding(1 + self.grid**2, embed_dim, device=device)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    Residual(
                        embed_dim,
                        SelfAttention(
                            embed_dim,
                            heads,
                            head_width or embed_dim // heads,
                            grid=self.grid if relative_position else None,
                            device=device,
                        ),
                        device,
                    ),
                    Residual(embed_dim, _mlp(embed_dim, round(ratio * embed_dim), device), device),
                )
                for heads, ratio in zip(num_heads, mlp_ratios, strict=True)
            )
        )
        self.norm = nn.LayerNorm(embed_dim, device=device)
        self.classifier = nn.Linear(embed_dim, classes, device=device)
        if not self.classifier.weight.is_meta:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as is customary for vision transformers: truncated normal, std 0.02; biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=_STD, a=-2 * _STD, b=2 * _STD)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, channels, image_size, image_size) to logits (B, classes)."""
        tokens = self.patches(x).flatten(2).mT
        class_token = self.class_token.weight.expand(len(tokens), 1, -1)
        tokens = torch.cat([class_token, tokens], dim=1) + self.positions.weight
        return self.classifier(self.norm(self.layers(tokens))[:, 0])


class Residual(nn.Module):
    """``x + body(norm(x))``: one half of a transformer's layer."""

    def __init__(self, width: int, body: nn.Module, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, device=device)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(self.norm(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens (B, N, C), with relative positions on a square grid if asked for.

    Relative positions as in AutoFormer: what token i gets from token j has a vector added, to the keys and to the
    values, that depends on the vertical and on the horizontal distance from i to j alone; all heads share it (Shaw
    et al., 2018, in two dimensions). The first token is the class token and has a distance of its own to all others.

    Args:
        width: C.
        heads: Number of heads.
        head_width: Width of each head's queries, keys and values.
        grid: Height and width of the grid of patches behind the class token; ``None`` for no relative positions.
        device: Where the parameters are created.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        grid: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.qkv = nn.Linear(width, 3 * heads * head_width, device=device)
        self.out = nn.Linear(heads * head_width, width, device=device)
        self.for_keys = self.for_values = None
        if grid is not None:
            self.for_keys = RelativePositions(grid, head_width, device)
            self.for_values = RelativePositions(grid, head_width, device)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        if self.for_keys is None or self.for_values is None:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            logits = (q @ k.mT + self.for_keys.products(q)) / math.sqrt(self.head_width)
            attention = logits.softmax(dim=-1)
            mixed = attention @ v + self.for_values.sums(attention)
        return self.out(mixed.transpose(1, 2).flatten(2))


class RelativePositions(nn.Module):
    """A vector r_ij for each pair of tokens: one for their vertical distance plus one for their horizontal distance.

    Args:
        grid: Height and width of the grid of patches behind the class token.
        width: Width of the vectors.
        device: Where the parameters are created.
    """

    def __init__(self, grid: int, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        distances = 2 * MAX_DISTANCE + 1
        self.vertical = nn.Embedding(1 + distances, width, device=device)  # the first is the class token's
        self.horizontal = nn.Embedding(1 + distances, width, device=device)
        line = torch.arange(grid, device="cpu")
        rows, columns = line.repeat_interleave(grid), line.repeat(grid)
        self._rows, self._columns = (_distances(places) for places in (rows, columns))

    def products(self, q: Tensor) -> Tensor:
        """Return q_i . r_ij, (B, heads, N, N), for queries (B, heads, N, width)."""
        vertical, horizontal = q @ self.vertical.weight.mT, q @ self.horizontal.weight.mT
        rows, columns = (index.to(q.device).expand(*q.shape[:2], -1, -1) for index in (self._rows, self._columns))
        return vertical.gather(-1, rows) + horizontal.gather(-1, columns)

    def sums(self, attention: Tensor) -> Tensor:
        """Return sum_j attention_ij r_ij, (B, heads, N, width), for attention (B, heads, N, N)."""
        result = attention.new_zeros(())
        for table, index in ((self.vertical, self._rows), (self.horizontal, self._columns)):
            by_distance = attention.new_zeros(*attention.shape[:-1], table.num_embeddings)
            by_distance = by_distance.scatter_add(-1, index.to(attention.device).expand_as(attention), attention)
            result = result + by_distance @ table.weight
        return result


def _distances(places: Tensor) -> Tensor:
    """Return the row of the table for each pair of tokens, (1 + n, 1 + n), for the n patches' places on one axis."""
    clipped = (places[None, :] - places[:, None]).clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE + 1
    return nn.functional.pad(clipped, (1, 0, 1, 0))


def _mlp(width: int, hidden: int, device: torch.device | str | None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden, device=device), nn.GELU(), nn.Linear(hidden, width, device=device))

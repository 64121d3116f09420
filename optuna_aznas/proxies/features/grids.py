"""Bringing two features of different resolution or layout onto the same positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

#: Tokens that may precede those of the grid: a class token, and one for distillation.
_EXTRA_TOKENS = (0, 1, 2)


def position_rows(feature: Tensor, first: bool) -> Tensor:
    """Return a feature as a matrix (P, C): a row for each of the batch's positions, a column for each channel.

    Args:
        feature: The feature, batch first.
        first: Whether dimension 1 holds its channels, as against the last.
    """
    if first:
        feature = feature.movedim(1, -1)
    return feature.reshape(-1, feature.shape[-1])


def on_one_grid(g: Tensor, v: Tensor, g_first: bool, v_first: bool) -> tuple[Tensor, Tensor]:
    """Return g and v as matrices (P, channels) over the same positions.

    The mean Jacobian needs as many rows of g as of v. Where a block strides by s, g lies on a grid that is s times
    finer: space-to-depth (for images ``pixel_unshuffle``) moves each s x s patch of g into its channels. Each row then
    holds the patch that corresponds to one position of v. Where a block upsamples, the same is done to v. A grid that
    is not a multiple of the other is cropped, or padded with zeros, at its end.

    Tokens lie on the grid of the image that they are made from or turned into; otherwise on a square where both numbers
    are squares, and on a line where they are not. One or two tokens before the grid, such as a class token, are left
    out where they have no counterpart.

    Args:
        g: A feature, batch first.
        v: A feature of the same samples.
        g_first: Whether dimension 1 of g holds its channels, as against the last.
        v_first: The same for v.

    Raises:
        ValueError: They are not of the same samples.
    """
    if g.ndim == v.ndim == 2 or (g_first == v_first and g.shape == v.shape):
        return position_rows(g, g_first), position_rows(v, v_first)
    if len(g) != len(v):
        raise ValueError("the first dimension changes, so it is not the batch of both.")
    if v.ndim == 2 or g.ndim == 2:  # flattened or pooled to one position for each sample, or spread from one
        return g.flatten(1), v.flatten(1)
    g, v = (x.movedim(1, -1) if first else x for x, first in ((g, g_first), (v, v_first)))
    if g.shape[1:-1] != v.shape[1:-1]:
        g, v = _of_one_rank(g, v, on_a_line=g_first and v_first)
        grid = [min(sizes) for sizes in zip(g.shape[1:-1], v.shape[1:-1], strict=True)]
        g, v = _space_to_depth(g, grid), _space_to_depth(v, grid)
    return g.reshape(-1, g.shape[-1]), v.reshape(-1, v.shape[-1])


def _of_one_rank(g: Tensor, v: Tensor, *, on_a_line: bool) -> tuple[Tensor, Tensor]:
    """Return two features (B, *positions, C) with equal numbers of position dimensions."""
    if g.ndim == v.ndim and (g.ndim > 3 or on_a_line):
        return g, v
    if g.ndim == v.ndim:
        return _of_tokens(g, v)
    if min(g.ndim, v.ndim) > 3:  # an image and a volume
        return g.flatten(1, -2), v.flatten(1, -2)
    tokens, image = (g, v) if g.ndim == 3 else (v, g)
    for extra in _EXTRA_TOKENS:
        sizes = _like(tokens.shape[1] - extra, image.shape[1:-1])
        if sizes is not None:
            tokens = tokens[:, extra:].unflatten(1, sizes)
            return (tokens, image) if g.ndim == 3 else (image, tokens)
    return g.flatten(1, -2), v.flatten(1, -2)


def _of_tokens(g: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Bring tokens (B, N, C) of different numbers N onto squares, or leave them on lines."""
    n_g, n_v = g.shape[1], v.shape[1]
    if abs(n_g - n_v) in _EXTRA_TOKENS and min(n_g, n_v) > 2:
        return g[:, max(n_g - n_v, 0) :], v[:, max(n_v - n_g, 0) :]
    for extra_g in _EXTRA_TOKENS:
        for extra_v in _EXTRA_TOKENS:
            side_g, side_v = _side(n_g - extra_g), _side(n_v - extra_v)
            if side_g and side_v and max(side_g, side_v) % min(side_g, side_v) == 0:
                return g[:, extra_g:].unflatten(1, (side_g, side_g)), v[:, extra_v:].unflatten(1, (side_v, side_v))
    return g, v


def _side(number: int) -> int:
    """Return the side of a square of this many tokens; 0 if the number is not a square."""
    return math.isqrt(number) if number > 0 and math.isqrt(number) ** 2 == number else 0


def _like(number: int, sizes: Sequence[int]) -> tuple[int, ...] | None:
    """Return the grid of this many positions whose sides have the ratios of ``sizes``; ``None`` if there is none."""
    ratio = (number / math.prod(sizes)) ** (1 / len(sizes)) if number > 0 else 0.0
    grid = tuple(round(ratio * size) for size in sizes)
    return grid if number > 0 and math.prod(grid) == number else None


def _space_to_depth(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Move patches of (B, *sizes, C) into channels: (B, *grid, s1 * s2 * ... * C), with s_i = round(sizes_i / grid_i).

    Each dimension of size n * s is split into n positions and s offsets within a patch, and the offsets are moved
    before the channels. There the channels of a position stay together, so that copying is fast; their order does not
    matter to the singular values.
    """
    sizes = x.shape[1:-1]
    strides = [max(1, round(size / n)) for size, n in zip(sizes, grid, strict=True)]
    pad = [0, 0]
    for size, n, stride in zip(reversed(sizes), reversed(grid), reversed(strides), strict=True):
        pad += [0, n * stride - size]
    if any(pad):
        x = nn.functional.pad(x, pad)  # a negative pad crops
    split = [len(x)]
    for n, stride in zip(grid, strides, strict=True):
        split += [n, stride]
    d = len(grid)
    order = [0, *(1 + 2 * i for i in range(d)), *(2 + 2 * i for i in range(d)), 1 + 2 * d]
    return x.reshape(*split, x.shape[-1]).permute(order).reshape(len(x), *grid, -1)

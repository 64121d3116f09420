"""The formulas of AZ-NAS, written as plainly as possible: one step at a time, one block at a time.

This is the oracle of the tests and the opponent of the benchmarks. It shares nothing with the package, and nobody
should ever make it faster. Source: Lee and Ham, CVPR 2024 (arXiv:2403.19232).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn


def initialise(model, generator):
    """Kaiming-normal weights (fan-in, ReLU gain), biases 0, normalisation weights 1 and biases 0; in place."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def features_of(model, block_names, x):
    """Run the model once and return the outputs of the named modules, stem first, with their graph."""
    modules = dict(model.named_modules())
    features = {}
    handles = []
    for name in block_names:

        def keep(module, args, output, name=name):
            if not output.requires_grad:  # a block without weights or input: what follows still has a Jacobian
                output = output.detach().requires_grad_()
            features[name] = output
            return output

        handles.append(modules[name].register_forward_hook(keep))
    model(x)
    for handle in handles:
        handle.remove()
    return [features[name] for name in block_names]


def features_kept(model, x):
    """Run the model once and return the features that it appends to its own list ``kept``, stem first, with their
    graph."""
    model.kept.clear()
    model(x)
    features = list(model.kept)
    model.kept.clear()
    return features


def as_matrix(feature):
    """A row for each position, a column for each channel."""
    if feature.ndim == 4:
        return feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1])
    return feature.reshape(-1, feature.shape[-1])


def entropy(feature):
    x = as_matrix(feature)
    x = x - x.mean(dim=0, keepdim=True)
    covariance = x.T @ x / x.shape[0]
    eigenvalues = torch.linalg.eigvalsh(covariance)
    eigenvalues = torch.clamp(eigenvalues, min=0)
    p = eigenvalues / eigenvalues.sum()
    return -torch.sum(p * torch.log(p + 1e-8)).item()


def expressivity(entropies):
    return sum(entropies)


def progressivity(entropies):
    steps = []
    for before, after in itertools.pairwise(entropies):
        steps.append(after - before)
    if any(math.isnan(step) for step in steps):
        return float("nan")
    return min(steps)


def random_signs(feature, generator):
    return torch.randint(0, 2, feature.shape, generator=generator, device=feature.device).to(feature.dtype) * 2 - 1


def mean_jacobian(before, after, v, jacobian):
    """The block's mean Jacobian, transposed, and whether the block is an identity."""
    g = None
    if after.requires_grad:
        (g,) = torch.autograd.grad(after, before, v, retain_graph=True, allow_unused=True)
    if g is None:
        g = torch.zeros_like(before)
    identity = g.shape == v.shape and bool(torch.all(g == v))
    if g.ndim == 4 and g.shape[2] != v.shape[2]:
        stride = g.shape[2] // v.shape[2]
        g = nn.functional.pixel_unshuffle(g, stride)
    g = as_matrix(g)
    v = as_matrix(v)
    moment = g.T @ v / v.shape[0]
    if jacobian == "moment":
        return moment, identity
    second_moment = v.T @ v / v.shape[0]
    return moment @ torch.linalg.inv(second_moment), identity


def block_trainability(before, after, v, jacobian):
    matrix, identity = mean_jacobian(before, after, v, jacobian)
    if identity:
        return float("-inf")
    sigma = torch.linalg.svdvals(matrix)[0].item()
    return 2 - sigma - 1 / (sigma + 1e-6)


def trainability(features, vs, jacobian="moment"):
    total = 0.0
    for before, after, v in zip(features[:-1], features[1:], vs, strict=True):
        total = total + block_trainability(before, after, v, jacobian)
    return total / (len(features) - 1)


def complexity(model, x):
    """Multiply-accumulates of one sample, counted layer by layer."""
    total = 0

    def count(module, args, output):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            _, _, height, width = output.shape
            kernel = module.kernel_size[0] * module.kernel_size[1]
            total += height * width * module.out_channels * (module.in_channels // module.groups) * kernel
        else:
            total += output[0].numel() * module.in_features

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [module.register_forward_hook(count) for module in layers]
    with torch.no_grad():
        model(x[:2])
    for handle in handles:
        handle.remove()
    return float(total)


def scores(model, block_names, x, vs, jacobian="moment"):
    """All four proxies of a model that has its weights and mode already, on the batch ``x`` with the cotangents
    ``vs``."""
    features = features_of(model, block_names, x)
    entropies = [entropy(feature) for feature in features]
    return (
        expressivity(entropies),
        progressivity(entropies),
        trainability(features, vs, jacobian),
        complexity(model, x),
    )


def evaluate(model, block_names, input_shape, batch_size=64, jacobian="moment", device="cpu", seed=0):
    """Everything from a freshly built model to its scores: the plain opponent of
    :class:`optuna_aznas.ProxyEvaluator`."""
    generator = torch.Generator(device=device).manual_seed(seed)
    model.to(device)
    model.train()
    initialise(model, generator)
    x = torch.randn(batch_size, *input_shape, generator=generator, device=device)
    features = features_of(model, block_names, x)
    vs = [random_signs(feature, generator) for feature in features[1:]]
    entropies = [entropy(feature) for feature in features]
    result = (
        expressivity(entropies),
        progressivity(entropies),
        trainability(features, vs, jacobian),
        complexity(model, x),
    )
    return tuple(-math.inf if math.isnan(value) else value for value in result)


def ranks(column):
    """Ascending ranks 1..n, ties sharing their average; NaN lowest."""
    column = [-math.inf if math.isnan(value) else value for value in column]
    result = []
    for value in column:
        below = sum(1 for other in column if other < value)
        same = sum(1 for other in column if other == value)
        result.append(below + (same + 1) / 2)
    return result


def aggregate(table, weights=None):
    """S(i) = sum over k of w_k log(rank_k(i) / n)."""
    n = len(table)
    totals = [0.0] * n
    for k in range(len(table[0]) if n else 0):
        weight = 1.0 if weights is None else weights[k]
        for i, rank in enumerate(ranks([row[k] for row in table])):
            totals[i] += weight * math.log(rank / n)
    return totals


def matern52(a, b, length):
    """The Matern kernel of smoothness 5/2 between two points."""
    d = math.sqrt(5.0) * math.dist(a, b) / length
    return (1.0 + d + d * d / 3.0) * math.exp(-d)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def posterior(kernel, noise, xs, ys, at):
    """Mean and variance of a Gaussian process of mean 0 at one point, by solving for its weights (Rasmussen and
    Williams, 2006, equations 2.25 and 2.26)."""
    matrix = torch.tensor([[kernel(a, b) for b in xs] for a in xs], dtype=torch.float64)
    matrix += noise * torch.eye(len(xs), dtype=torch.float64)
    cross = torch.tensor([kernel(a, at) for a in xs], dtype=torch.float64)
    inverse = torch.linalg.inv(matrix)
    mean = cross @ inverse @ torch.tensor(ys, dtype=torch.float64)
    return mean.item(), (kernel(at, at) - cross @ inverse @ cross).item()

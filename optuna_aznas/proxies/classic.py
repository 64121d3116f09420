"""The field's other zero-cost proxies, each from its paper.

For comparison, and for assembling: like the four of AZ-NAS they are ranked over a study, and any subset can be named in
``ProxyEvaluator(proxies=...)``. Bigger is better for each of them as it stands here. What is not named costs nothing;
proxies that need the same pass share it:

=========================  =====================================================================================
``parameters``             none
``trainable_layers``       none
``naswot``                 the loss's forward pass
``gradient_norm``          the loss's forward and backward pass
``snip``                   the same
``grasp``                  the same, and a second backward pass through the first
``jacobian_covariance``    the loss's forward pass, and a backward pass to the input
``zico``                   the loss's passes, and the same on a second batch
``synflow``                a forward and a backward pass of its own, without normalisation, on one sample
``zen_score``              two forward passes of its own, with weights from N(0, 1)
=========================  =====================================================================================

The loss is the cross-entropy with labels that are drawn: proxies see no data unless ``inputs`` holds some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.features.trace import call_model
from optuna_aznas.proxies.model.nested import map_tensors, tensors_in
from optuna_aznas.proxies.model.weights import NORMS, WEIGHTED, Substitute, substituted

#: Names of the proxies.
CLASSIC_PROXIES = (
    "parameters",
    "trainable_layers",
    "gradient_norm",
    "snip",
    "grasp",
    "synflow",
    "naswot",
    "jacobian_covariance",
    "zen_score",
    "zico",
)

_GRADIENT_PROXIES = {"gradient_norm", "snip", "grasp", "zico"}
_LOSS_PROXIES = {*_GRADIENT_PROXIES, "naswot", "jacobian_covariance"}

#: Step of Zen-score along the second noise (Lin et al., 2021, section 4).
_ZEN_ALPHA = 0.01

#: Regularisation of the correlation matrix's eigenvalues (Mellor et al., 2020).
_EPS_COVARIANCE = 1e-5


class ClassicProxies:
    """Computes proxies on one model with one draw of weights.

    Args:
        model: The model, in the mode in which it should run.
        state: What to run it with in the place of its parameters and buffers; nothing in it requires a gradient.
        inputs: The batch.
        second_inputs: Another batch, for ``zico``.
        labels: Source of the labels.
        noise: Source of what Zen-score draws.
    """

    def __init__(
        self,
        model: nn.Module,
        state: Sequence[Substitute],
        inputs: Any,
        second_inputs: Callable[[], Any],
        labels: torch.Generator,
        noise: torch.Generator,
    ) -> None:
        self._model = model
        self._state = state
        self._inputs = inputs
        self._second_inputs = second_inputs
        self._labels = labels
        self._noise = noise
        self._places = {(id(s.store), s.name): i for i, s in enumerate(state)}

    def compute(self, names: Iterable[str]) -> dict[str, float]:
        """Return the named proxies' scores, NaN where one is not defined.

        Raises:
            ProxyEvaluationError: The forward failed, or the model's output has no gradient where one is needed.
        """
        names = set(names)
        scores: dict[str, float] = {}
        if "parameters" in names:
            scores["parameters"] = parameters(self._model)
        if "trainable_layers" in names:
            scores["trainable_layers"] = trainable_layers(self._model)
        if names & _LOSS_PROXIES:
            scores |= self._loss_proxies(names)
        if "synflow" in names:
            scores["synflow"] = self._synflow()
        if "zen_score" in names:
            scores["zen_score"] = self._zen_score()
        return {name: scores[name] for name in names}

    def _loss_proxies(self, names: set[str]) -> dict[str, float]:
        scores: dict[str, float] = {}
        state, weights = self._with_gradients()
        inputs = self._inputs
        if "jacobian_covariance" in names:
            inputs = map_tensors(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t, inputs)
        codes = _ActivationCodes(_batch_size(inputs)) if "naswot" in names else None
        # Fused kernels of attention have no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if "grasp" in names else nullcontext():
            logits = self._logits(state, inputs, codes)
        if codes is not None:
            scores["naswot"] = codes.score()
        if "jacobian_covariance" in names:
            scores["jacobian_covariance"] = jacobian_covariance(logits, inputs)
        if names & _GRADIENT_PROXIES:
            gradients = self._gradients(logits, weights, twice="grasp" in names)
            if "gradient_norm" in names:
                scores["gradient_norm"] = _total(g.norm() for g in gradients)
            if "snip" in names:
                scores["snip"] = _total((w * g).abs().sum() for w, g in zip(weights, gradients, strict=True))
            if "grasp" in names:
                scores["grasp"] = _grasp(weights, gradients)
            if "zico" in names:
                second = self._gradients(self._logits(state, self._second_inputs()), weights)
                scores["zico"] = zico([gradients, second])
        return scores

    def _logits(self, state: Sequence[Substitute], inputs: Any, mode: TorchFunctionMode | None = None) -> Tensor:
        """Return the model's output as rows of class scores, (n, classes)."""
        with substituted(state):
            output = call_model(self._model, inputs, mode)
        logits = next(t for t in tensors_in(output))
        if not logits.is_floating_point() or not logits.requires_grad:
            raise ProxyEvaluationError(
                f"The output of {type(self._model).__name__} ({logits.dtype}, shape {tuple(logits.shape)}) has no "
                "gradient with respect to its weights, and proxies of the loss need one. Does its forward detach the "
                "output, or run under no_grad?"
            )
        if logits.ndim > 3:
            logits = logits.movedim(1, -1)
        return logits.reshape(-1, logits.shape[-1])

    def _gradients(self, logits: Tensor, weights: Sequence[Tensor], *, twice: bool = False) -> list[Tensor]:
        """Return the gradients of the loss with respect to the weights, with their graph if they are needed twice."""
        n, classes = logits.shape
        if classes == 1:
            signs = torch.randint(0, 2, (n, 1), generator=self._labels, device=logits.device).to(logits.dtype)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, signs)
        else:
            labels = torch.randint(0, classes, (n,), generator=self._labels, device=logits.device)
            loss = nn.functional.cross_entropy(logits, labels)
        found = torch.autograd.grad(loss, weights, create_graph=twice, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]

    def _weights(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each layer's weight with its place in the state; a tied one at each of its places."""
        for module in self._model.modules():
            i = self._places.get((id(module._parameters), "weight"))
            if i is not None and isinstance(module, WEIGHTED):
                yield i, self._state[i].tensor

    def _with_gradients(
        self, change: Callable[[Tensor], Tensor] = lambda w: w
    ) -> tuple[list[Substitute], list[Tensor]]:
        """Return the state with layers' weights (changed) that require a gradient, and these weights."""
        state, weights = list(self._state), {}
        for i, old in self._weights():
            if id(old) not in weights:
                weights[id(old)] = change(old.detach()).clone().requires_grad_()
            state[i] = state[i]._replace(tensor=weights[id(old)])
        if not weights:
            raise ProxyEvaluationError(
                f"{type(self._model).__name__} has no convolution or linear layer, whose weights these proxies look at."
            )
        return state, list(weights.values())

    def _synflow(self) -> float:
        """Sum over the weights of w * dR/dw, R the sum of the output, with |w| for w, biases left out, normalisation
        bypassed and an input of ones, in double precision (Tanaka et al., NeurIPS 2020; bypassing: Abdelfattah et al.,
        ICLR 2021).
        """
        state, weights = self._with_gradients(lambda w: w.abs().double())
        in_double: dict[int, Tensor | None] = {}
        for i, (store, name, tensor) in enumerate(state):
            if tensor is not None and tensor.is_floating_point() and not tensor.requires_grad:
                value = torch.zeros_like(tensor, dtype=torch.float64) if name == "bias" else tensor.double()
                state[i] = Substitute(store, name, in_double.setdefault(id(tensor), value))
        ones = map_tensors(
            lambda t: torch.ones_like(t[:1], dtype=torch.float64) if t.is_floating_point() else t[:1], self._inputs
        )
        with _bypassed(self._model, NORMS), substituted(state):
            output = next(tensors_in(call_model(self._model, ones)))
        found = torch.autograd.grad(output.sum(), weights, allow_unused=True)
        return _total((w * g).sum() for w, g in zip(weights, found, strict=True) if g is not None)

    def _zen_score(self) -> float:
        """``log E|f(x) - f(x + a e)| + sum over batch normalisations of log sigma``: Zen-score (Lin et al., ICCV 2021).

        f is the feature before global pooling and classifier (the last output with spatial dimensions, else the
        model's output); sigma^2 the variance of a batch normalisation's input, averaged over its channels; weights, x
        and e are drawn from N(0, 1), and a = 0.01.
        """
        state = list(self._state)
        for i, old in self._weights():
            normal = torch.randn(old.shape, generator=self._noise, device=old.device, dtype=old.dtype)
            state[i] = state[i]._replace(tensor=normal)

        def noise(tensor: Tensor) -> Tensor:
            return torch.randn(tensor.shape, generator=self._noise, device=tensor.device, dtype=tensor.dtype)

        x = map_tensors(lambda t: noise(t) if t.is_floating_point() else t, self._inputs)
        moved = map_tensors(lambda t: t + _ZEN_ALPHA * noise(t) if t.is_floating_point() else t, x)
        with torch.no_grad(), substituted(state):
            watch = _ZenWatch(self._model)
            with watch:
                first = watch.feature(call_model(self._model, x))
            scales = watch.log_scales
            with watch:
                second = watch.feature(call_model(self._model, moved))
        difference = (first - second).flatten(1).double().norm(dim=1).mean()
        return float(difference.log()) + sum(scales)


def parameters(model: nn.Module) -> float:
    """Number of the model's parameters."""
    return float(sum(parameter.numel() for parameter in model.parameters()))


def trainable_layers(model: nn.Module) -> float:
    """Number of layers with a weight matrix or kernel."""
    return float(sum(isinstance(module, WEIGHTED) for module in model.modules()))


def jacobian_covariance(logits: Tensor, inputs: Any) -> float:
    """How little the samples' Jacobians resemble each other (Mellor et al., arXiv:2006.04647v1).

    With J_b the gradient of the sum of sample b's outputs with respect to that sample and s_b the eigenvalues of the
    matrix of their correlation coefficients: ``- sum over b of (log(s_b + k) + 1 / (s_b + k))``, k = 1e-5.
    """
    leaves = [t for t in tensors_in(inputs) if t.requires_grad]
    if not leaves:
        raise ProxyEvaluationError(
            "jacobian_covariance needs a floating-point input to differentiate by; this model's are all integers. "
            "Leave it out of proxies."
        )
    found = torch.autograd.grad(logits.sum(), leaves, retain_graph=True, allow_unused=True)
    rows = torch.cat([g.flatten(1) for g in found if g is not None] or [torch.zeros(2, 1)], dim=1).double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    norms = rows.norm(dim=1)
    if not bool(torch.isfinite(norms).all()) or not bool((norms > 0).all()):
        return math.nan
    rows = rows / norms[:, None]
    eigenvalues = torch.linalg.eigvalsh(rows @ rows.T).clamp_min(0.0) + _EPS_COVARIANCE
    return -float((eigenvalues.log() + 1 / eigenvalues).sum())


def zico(batches: Sequence[Sequence[Tensor]]) -> float:
    """``sum over layers of log(sum over weights of E|g| / sd|g|)`` (Li et al., ICLR 2023, equation 9).

    E and sd are the mean and standard deviation over batches.

    Args:
        batches: For each of two or more batches the gradients of the layers' weights.
    """
    total = 0.0
    for layer in zip(*batches, strict=True):
        magnitudes = torch.stack([g.detach().abs().double() for g in layer])
        mean, deviation = magnitudes.mean(dim=0), magnitudes.std(dim=0, unbiased=False)
        ratio = float((mean / deviation)[deviation > 0].sum())
        if ratio > 0:  # a layer that gets no gradient adds nothing
            total += math.log(ratio)
    return total


def _grasp(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> float:
    """``- sum of w * (H g)``: gradient signal preservation (Wang et al., ICLR 2020), H the loss's Hessian."""
    tracked = [g for g in gradients if g.requires_grad]
    if not tracked:
        return math.nan
    energy = sum((g * g.detach()).sum() for g in tracked)
    assert isinstance(energy, Tensor)
    products = torch.autograd.grad(energy, weights, allow_unused=True)
    return -_total((w * hg).sum() for w, hg in zip(weights, products, strict=True) if hg is not None)


def _total(parts: Iterable[Tensor]) -> float:
    values = [part.detach().double() for part in parts]
    return float(torch.stack(values).sum()) if values else 0.0


def _batch_size(inputs: Any) -> int:
    return next(tensors_in(inputs)).shape[0]


class _ActivationCodes(TorchFunctionMode):
    """Counts in which units' activations two samples agree, for NASWOT (Mellor et al., ICML 2021).

    A sample's code has a bit for each unit of each activation: whether its input is positive. K_ij is the number of
    bits that samples i and j share; the score log |det K|.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self._kernel: Tensor | None = None
        self._batch_size = batch_size

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _ACTIVATIONS and args and args[0].shape[:1] == (self._batch_size,):
            codes = (args[0].detach() > 0).flatten(1).float()
            alike = codes @ codes.T + (1 - codes) @ (1 - codes).T
            self._kernel = alike.double() if self._kernel is None else self._kernel + alike
        return func(*args, **(kwargs or {}))

    def score(self) -> float:
        """Return the log-determinant: -inf where two samples have the same code, NaN without any activation."""
        return math.nan if self._kernel is None else float(torch.linalg.slogdet(self._kernel).logabsdet)


_ACTIVATIONS = {
    getattr(owner, name)
    for owner, names in {
        nn.functional: "relu relu_ relu6 leaky_relu prelu elu selu celu gelu silu mish hardswish hardtanh softplus",
        torch: "relu relu_",
        Tensor: "relu relu_",
    }.items()
    for name in names.split()
    if hasattr(owner, name)
}


class _ZenWatch:
    """Hooks for Zen-score: batch normalisations' scales, and the last output with spatial dimensions."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.log_scales: list[float] = []
        self._last: Tensor | None = None

    def __enter__(self) -> _ZenWatch:
        self.log_scales, self._last = [], None

        def scale(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].double()
            variance = x.var(dim=[d for d in range(x.ndim) if d != 1], unbiased=False).mean()
            self.log_scales.append(0.5 * float((variance + 1e-12).log()))

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim > 2 and max(output.shape[2:]) > 1:
                self._last = output

        self._handles = []
        for module in self._model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self._handles.append(module.register_forward_pre_hook(scale))
            self._handles.append(module.register_forward_hook(keep))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def feature(self, output: Any) -> Tensor:
        feature = self._last if self._last is not None else next(tensors_in(output))
        return feature.clone()


@contextmanager
def _bypassed(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[None]:
    """Let modules of some kinds pass on their input while the body runs."""
    bypassed = [(module, module.__dict__.get("forward")) for module in model.modules() if isinstance(module, kinds)]
    try:
        for module, _ in bypassed:
            module.__dict__["forward"] = lambda x, *args, **kwargs: x
        yield
    finally:
        for module, forward in bypassed:
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


__all__ = ["CLASSIC_PROXIES", "ClassicProxies", "jacobian_covariance", "parameters", "trainable_layers", "zico"]

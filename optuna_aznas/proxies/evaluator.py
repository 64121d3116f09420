"""The one entrance: a model goes in, its proxy scores come out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from optuna_aznas.proxies import aznas
from optuna_aznas.proxies.aznas import AZNAS_PROXIES, AZNASObserver, BlockScores, Jacobian
from optuna_aznas.proxies.blocks import BlockChoice, find_blocks
from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.state import scoring_mode
from optuna_aznas.proxies.trace import map_tensors, run_blocks, tensors_in
from optuna_aznas.proxies.weights import Substitute, is_transformer, substitute_state

#: The proxies that are computed unless others are named.
DEFAULT = AZNAS_PROXIES

#: Fewest signs to draw at once.
_POOL = 2**20

_INITS = ("auto", "kaiming", "trunc_normal", None)


class ProxyScores(tuple[float, ...]):
    """What a model scored: a tuple of floats that Optuna takes as objective values as it is.

    Bigger is better for every proxy. A score that came out NaN is ``-inf``: ranked last.

    Attributes:
        names: The proxies' names, in the order of the values. Each is also an attribute: ``scores.expressivity``.
        blocks: A :class:`~optuna_aznas.proxies.BlockScores` for the stem and each block, in the order of execution
            (of the first repeat, where there are several).
        seconds: Wall-clock time of the evaluation.

    Example:
        >>> scores = ProxyScores([57.1, 0.2], names=["expressivity", "progressivity"])
        >>> scores.progressivity
        0.2
        >>> scores.as_dict()
        {'expressivity': 57.1, 'progressivity': 0.2}
    """

    names: tuple[str, ...]
    blocks: tuple[BlockScores, ...]
    seconds: float

    def __new__(
        cls,
        values: Iterable[float],
        *,
        names: Sequence[str],
        blocks: Iterable[BlockScores] = (),
        seconds: float = math.nan,
    ) -> ProxyScores:
        scores = super().__new__(cls, (-math.inf if math.isnan(value) else float(value) for value in values))
        if len(names) != len(scores):
            raise ValueError(f"names must name each of the {len(scores)} values; got {len(names)} names.")
        scores.names = tuple(names)
        scores.blocks = tuple(blocks)
        scores.seconds = seconds
        return scores

    def as_dict(self) -> dict[str, float]:
        """Return the scores by proxy name."""
        return dict(zip(self.names, self, strict=True))

    def __getattr__(self, name: str) -> float:
        if not name.startswith("_") and name in self.names:
            return self[self.names.index(name)]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={v:.6g}' for n, v in self.as_dict().items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_scores, (tuple(self), self.names, self.blocks, self.seconds)


def _restore_scores(
    values: tuple[float, ...], names: tuple[str, ...], blocks: tuple[BlockScores, ...], seconds: float
) -> ProxyScores:
    return ProxyScores(values, names=names, blocks=blocks, seconds=seconds)


class ProxyEvaluator:
    """Scores an untrained network with zero-cost proxies, from one forward and one backward pass.

    The model comes back untouched: parameters, buffers, gradients, ``requires_grad``, modes, hooks and device are as
    before, and so is the global random state of torch, numpy and Python. The same seed on the same kind of device gives
    the same scores, whatever was evaluated before.

    A convolutional network runs in train mode with Kaiming-normal weights; a transformer (attention and layer
    normalisation) in eval mode with truncated-normal ones.

    Threads may share an evaluator and take turns; several processes score several models at once.

    Args:
        input_shape: Shape of one sample, without the batch dimension, such as ``(3, 32, 32)``. The network is run on
            Gaussian noise of this shape.
        inputs: A real batch instead of noise: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments. Exactly one of ``input_shape`` and ``inputs`` must be given.
        batch_size: Samples in the batch of noise, at least 1 (at least 2 for batch normalisation on 1 x 1 features).
        proxies: Names of the proxies to compute, in the order wanted. What is not named costs nothing.
        blocks: The primary blocks: see :func:`~optuna_aznas.proxies.find_blocks`.
        init: ``"auto"`` draws weights anew as said above; ``"kaiming"`` or ``"trunc_normal"`` name the draw; ``None``
            keeps the model's own, pretrained ones say. ``None`` still runs a convolutional network in train mode.
        jacobian: The estimate behind trainability: ``"moment"``, the paper to the letter, or ``"least-squares"``, free
            of the moment's sampling noise, hence as good with an eighth of the batch.
        repeats: Evaluations to average over, each with its own draws, at least 1.
        device: ``"auto"`` (a GPU where there is one), or whatever :class:`torch.device` takes. The model itself
            is not moved.
        seed: Seed of every draw, 0 or more.

    Raises:
        ValueError: An argument is out of range; a proxy is unknown; the device is not there.

    Example:
        >>> from torch import nn
        >>> def block(c_in, c_out):
        ...     return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())
        >>> model = nn.Sequential(block(3, 8), block(8, 8), block(8, 16), nn.Flatten(), nn.Linear(16 * 64, 10))
        >>> evaluator = ProxyEvaluator(input_shape=(3, 8, 8), device="cpu")
        >>> evaluator(model).names
        ('expressivity', 'progressivity', 'trainability', 'complexity')
    """

    def __init__(
        self,
        input_shape: Sequence[int] | None = None,
        *,
        inputs: Any = None,
        batch_size: int = 8,
        proxies: Sequence[str] = DEFAULT,
        blocks: BlockChoice = None,
        init: str | None = "auto",
        jacobian: Jacobian = "least-squares",
        repeats: int = 1,
        device: str | torch.device = "auto",
        seed: int = 0,
    ) -> None:
        if (input_shape is None) == (inputs is None):
            raise ValueError(
                "Exactly one of input_shape and inputs must be given: the shape of one sample, such as (3, 32, 32), "
                "or a real batch."
            )
        if input_shape is not None:
            input_shape = tuple(input_shape)
            if not input_shape or not all(_is_int(size) and size >= 1 for size in input_shape):
                raise ValueError(
                    "input_shape must hold positive integers, the shape of one sample without the batch; "
                    f"got {input_shape}."
                )
        elif next(tensors_in(inputs), None) is None:
            raise ValueError(f"inputs must be a tensor, or a tuple or dict with tensors; got {type(inputs).__name__}.")
        for name, value, least in (("batch_size", batch_size, 1), ("repeats", repeats, 1), ("seed", seed, 0)):
            if not _is_int(value) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
        proxies = (proxies,) if isinstance(proxies, str) else tuple(proxies)
        unknown = [name for name in proxies if name not in AZNAS_PROXIES]
        if unknown or not proxies or len(set(proxies)) < len(proxies):
            raise ValueError(f"proxies must be one or more of {AZNAS_PROXIES}, each once; got {proxies}.")
        if init not in _INITS:
            raise ValueError(f"init must be one of {_INITS}; got {init!r}.")
        if jacobian not in get_args(Jacobian):
            raise ValueError(f"jacobian must be one of {get_args(Jacobian)}; got {jacobian!r}.")
        self.input_shape = input_shape
        self.inputs = inputs
        self.batch_size = batch_size
        self.proxies = proxies
        self.blocks = blocks
        self.init = init
        self.jacobian: Jacobian = jacobian
        self.repeats = repeats
        self.device = _resolve_device(device)
        self.seed = seed

    def __call__(self, model: nn.Module) -> ProxyScores:
        """Score a model.

        Args:
            model: Any ``torch.nn.Module``. Where it lies does not matter, and weights that are drawn anew need not
                exist: it may have been built on the ``meta`` device.

        Returns:
            The scores, in the order of ``proxies``.

        Raises:
            ProxyEvaluationError: The model cannot be scored; the message names the module, the shape and the remedy.
            TypeError: ``model`` is no ``torch.nn.Module``.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
        start = time.perf_counter()
        blocks = find_blocks(model, self.blocks)
        modules = dict(model.named_modules())
        _check_replaceable(modules)
        runs = [self._score_once(model, modules, blocks, repeat) for repeat in range(self.repeats)]
        values = [sum(scores) / self.repeats for scores in zip(*(scores for scores, _ in runs), strict=True)]
        return ProxyScores(values, names=self.proxies, blocks=runs[0][1], seconds=time.perf_counter() - start)

    def _score_once(
        self, model: nn.Module, modules: Mapping[str, nn.Module], blocks: Mapping[str, nn.Module], repeat: int
    ) -> tuple[list[float], list[BlockScores]]:
        transformer = is_transformer(modules.values())
        if not transformer:
            try:
                return self._run(model, modules, blocks, repeat, transformer, streamlined=True)
            except ProxyEvaluationError:
                pass  # perhaps the model needs what was left out: see _run
        return self._run(model, modules, blocks, repeat, transformer, streamlined=False)

    def _run(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        blocks: Mapping[str, nn.Module],
        repeat: int,
        transformer: bool,
        *,
        streamlined: bool,
    ) -> tuple[list[float], list[BlockScores]]:
        """Score a model with the draws of one repeat.

        Args:
            model: The model.
            modules: All its modules by name.
            blocks: Its primary blocks by name.
            repeat: The number of the repeat.
            transformer: Whether it is scored as a transformer.
            streamlined: Keep images and kernels with their channels last in memory, where pooling and normalisation on
                a CPU take a third of the time, and leave out the running statistics of batch normalisation. A model may
                object to either: with ``view`` on features, or by reading the statistics itself.
        """
        # A stream for each purpose, so that networks of different size are run on the same noise.
        streams = np.random.SeedSequence([self.seed, repeat]).generate_state(4, np.uint64)
        weights, noise, cotangents = (self._generator(int(stream)) for stream in streams[:3])
        init = self.init
        if init == "auto":
            init = "trunc_normal" if transformer else "kaiming"
        observer = AZNASObserver(
            entropy="expressivity" in self.proxies or "progressivity" in self.proxies,
            jacobian=self.jacobian,
            skip_identities=transformer,
        )
        mode_seed = int(streams[3] >> np.uint64(1))
        with scoring_mode(modules.values(), training=not transformer, seed=mode_seed, device=self.device):
            state = substitute_state(
                modules.items(),
                init=init,
                generator=weights,
                device=self.device,
                channels_last=streamlined,
                running_statistics=not streamlined,
            )
            macs = run_blocks(
                model,
                state,
                self._batch(noise, state, channels_last=streamlined),
                blocks,
                observe=observer,
                draw_cotangent=_rademacher(cotangents) if "trainability" in self.proxies else None,
                count_macs="complexity" in self.proxies,
            )
            scores = observer.finish()
        if len(scores) < 2:
            ran = f"only {scores[0].name!r} ran" if scores else "none of them ran"
            raise ProxyEvaluationError(
                f"{type(model).__name__} shows fewer than two features: of its blocks ({', '.join(map(repr, blocks))}) "
                f"{ran}, and there was no stem before. Name two or more blocks with ProxyEvaluator(blocks=[...])."
            )
        samples = next(tensors_in(self.inputs)).shape[0] if self.inputs is not None else self.batch_size
        compute: dict[str, Callable[[], float]] = {
            "expressivity": lambda: aznas.expressivity(scores),
            "progressivity": lambda: aznas.progressivity(scores),
            "trainability": lambda: aznas.trainability(scores),
            "complexity": lambda: macs / samples,
        }
        return [compute[name]() for name in self.proxies], scores

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(seed >> 1)  # torch takes 63 bits

    def _batch(self, generator: torch.Generator, state: Sequence[Substitute], *, channels_last: bool) -> Any:
        floating = (t.dtype for _, _, t in state if t is not None and t.is_floating_point())
        dtype = next(floating, torch.float32)

        def arranged(tensor: Tensor) -> Tensor:
            image = channels_last and tensor.ndim == 4
            return tensor.contiguous(memory_format=torch.channels_last) if image else tensor

        if self.inputs is None:
            assert self.input_shape is not None
            shape = (self.batch_size, *self.input_shape)
            return arranged(torch.randn(shape, generator=generator, device=self.device, dtype=dtype))
        return map_tensors(
            lambda t: arranged(
                t.detach().to(device=self.device, dtype=dtype if t.is_floating_point() else None, copy=True)
            ),
            self.inputs,
        )


def _rademacher(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a function that draws independent +-1 entries in the shape and memory layout of a tensor.

    Each random word serves 64 entries, as drawing them one by one costs more than running a block, and each draw
    several tensors.
    """
    bits = torch.arange(256, device=generator.device)[:, None] >> torch.arange(8, device=generator.device)
    signs_of_byte = 2 * (bits & 1) - 1
    pool = torch.empty(0)

    def draw(like: Tensor) -> Tensor:
        nonlocal signs_of_byte, pool
        if pool.numel() < like.numel() or pool.dtype != like.dtype:
            words = torch.empty(-(-max(like.numel(), _POOL) // 64), dtype=torch.int64, device=like.device)
            words.random_(-(2**63), None, generator=generator)  # all 64 bits
            signs_of_byte = signs_of_byte.to(like.dtype)
            pool = nn.functional.embedding(words.view(torch.uint8).int(), signs_of_byte).flatten()
        signs, pool = pool[: like.numel()], pool[like.numel() :]
        if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
            return signs.view(like.shape[0], *like.shape[2:], like.shape[1]).permute(0, 3, 1, 2)
        return signs.view(like.shape)

    return draw


def _check_replaceable(modules: Mapping[str, nn.Module]) -> None:
    """Refuse modules whose parameters cannot be replaced from outside."""
    for name, module in modules.items():
        where = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise ProxyEvaluationError(
                f"{where} is compiled by TorchScript, which fixes its weights. Score the module it was made from."
            )
        if isinstance(module, nn.DataParallel):
            raise ProxyEvaluationError(f"{where} spreads a model over devices. Score the model itself, its .module.")


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _resolve_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.empty(0, device=torch.device(device)).device  # with its index, and it is there
        if resolved.type == "meta":
            raise RuntimeError("the meta device holds no values")
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"device {device!r} is not usable ({reason}). Use 'auto' or one of {there}.") from error
    return resolved

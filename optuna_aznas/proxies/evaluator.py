"""The one entrance: a model goes in, its proxy scores come out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from optuna_aznas.proxies import aznas
from optuna_aznas.proxies.aznas import AZNAS_PROXIES, AZNASObserver, BlockScores, Jacobian
from optuna_aznas.proxies.classic import CLASSIC_PROXIES, ClassicProxies
from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.features.blocks import BlockChoice, BlockPlan, candidates, plan_blocks
from optuna_aznas.proxies.features.trace import BlockPass, PassReport, run_blocks
from optuna_aznas.proxies.features.wholegraph import NoGradientError, NotFoundError, run_whole
from optuna_aznas.proxies.model.isolation import scoring_mode
from optuna_aznas.proxies.model.nested import map_tensors, tensors_in
from optuna_aznas.proxies.model.weights import Substitute, is_transformer, substitute_state
from optuna_aznas.proxies.scores import ProxyScores
from optuna_aznas.proxies.transformer import (
    TRANSFORMER_PROXIES,
    AttentionObserver,
    PositionObserver,
    TokenInteractionObserver,
    constant_batch,
)

#: The proxies that are computed unless others are named.
DEFAULT = AZNAS_PROXIES

#: The four and two more that tell other things: the best assembly on NAS-Bench-201, at about three times the cost.
EXTENDED = (*AZNAS_PROXIES, "jacobian_covariance", "zico")

#: All that can be named in ``ProxyEvaluator(proxies=...)``.
ALL_PROXIES = (*AZNAS_PROXIES, *TRANSFORMER_PROXIES, *CLASSIC_PROXIES)

#: Proxies that look at blocks.
_BLOCK_PROXIES = {*AZNAS_PROXIES, *TRANSFORMER_PROXIES}

#: Fewest signs to draw at once.
_POOL = 2**20

#: How blocks were found.
FROM_TREE = "found in the tree of modules"
FROM_RUN = "found by running the model: tensors through which everything passes"

#: Scores by proxy, the blocks, and how these were found.
_Outcome: TypeAlias = tuple[dict[str, float], list[BlockScores], str]

_INITS = ("auto", "kaiming", "trunc_normal", None)


class ProxyEvaluator:
    """Scores an untrained network with zero-cost proxies, from one forward and one backward pass.

    The model comes back untouched: parameters, buffers, gradients, ``requires_grad``, modes, hooks and device are as
    before, and so is the global random state of torch, numpy and Python. The same seed on the same kind of device gives
    the same scores, whatever was evaluated before.

    A convolutional network runs in train mode with Kaiming-normal weights; a transformer (attention and layer
    normalisation) in eval mode with truncated-normal ones. In a transformer whose features all have one shape
    progressivity is not used, as nothing grows there, and neither is trainability by least squares, which only tells
    the width (see the documentation): both are 0, hence a tie for all, and are still measured block by block.

    Threads may share an evaluator and take turns; several processes score several models at once.

    Args:
        input_shape: Shape of one sample, without the batch dimension, such as ``(3, 32, 32)``. The network is run on
            Gaussian noise of this shape.
        inputs: A real batch instead of noise: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments. Exactly one of ``input_shape`` and ``inputs`` must be given.
        batch_size: Samples in the batch of noise, at least 1 (at least 2 for batch normalisation on 1 x 1 features).
        proxies: Names of the proxies to compute, in the order wanted, of :data:`~optuna_aznas.proxies.ALL_PROXIES`: the
            four of AZ-NAS, those for transformers (:mod:`~optuna_aznas.proxies.transformer`), and the field's others
            (:mod:`~optuna_aznas.proxies.classic`). What is not named costs nothing.
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
        unknown = [name for name in proxies if name not in ALL_PROXIES]
        if unknown or not proxies or len(set(proxies)) < len(proxies):
            raise ValueError(f"proxies must be one or more of {ALL_PROXIES}, each once; got {proxies}.")
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
        modules = dict(model.named_modules())
        _check_replaceable(modules)
        plan = plan_blocks(model, self.blocks) if self._wants(_BLOCK_PROXIES) else None
        runs = [self._score_once(model, modules, plan, repeat) for repeat in range(self.repeats)]
        values = [sum(scores[name] for scores, *_ in runs) / self.repeats for name in self.proxies]
        _, blocks, how = runs[0]
        return ProxyScores(values, names=self.proxies, blocks=blocks, how=how, seconds=time.perf_counter() - start)

    def _wants(self, *names: str | set[str]) -> bool:
        """Whether any of these proxies was named."""
        return any(
            name in self.proxies if isinstance(name, str) else not name.isdisjoint(self.proxies) for name in names
        )

    def _score_once(
        self, model: nn.Module, modules: Mapping[str, nn.Module], plan: BlockPlan | None, repeat: int
    ) -> _Outcome:
        transformer = is_transformer(modules.values())
        if not transformer:
            try:
                return self._run(model, modules, plan, repeat, transformer, streamlined=True)
            except ProxyEvaluationError:
                pass  # perhaps the model needs what was left out: see _run
        return self._run(model, modules, plan, repeat, transformer, streamlined=False)

    def _run(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        plan: BlockPlan | None,
        repeat: int,
        transformer: bool,
        *,
        streamlined: bool,
    ) -> _Outcome:
        """Score a model with the draws of one repeat.

        Args:
            model: The model.
            modules: All its modules by name.
            plan: Where to look for its features, if at all.
            repeat: The number of the repeat.
            transformer: Whether it is scored as a transformer.
            streamlined: Keep images and kernels with their channels last in memory, where pooling and normalisation on
                a CPU take a third of the time, and leave out the running statistics of batch normalisation. A model may
                object to either: with ``view`` on features, or by reading the statistics itself.
        """
        # A stream for each purpose, so that networks of different size are run on the same noise, and naming one proxy
        # changes no other.
        streams = [int(word) for word in np.random.SeedSequence([self.seed, repeat]).generate_state(7, np.uint64)]
        weights, noise, cotangents, mode_seed, tokens, labels, zen = streams
        init = self.init
        if init == "auto":
            init = "trunc_normal" if transformer else "kaiming"
        scores: dict[str, float] = {}
        block_scores: list[BlockScores] = []
        how = ""
        with scoring_mode(modules.values(), training=not transformer, seed=mode_seed >> 1, device=self.device):
            state = substitute_state(
                modules.items(),
                init=init,
                generator=self._generator(weights),
                device=self.device,
                channels_last=streamlined,
                running_statistics=not streamlined,
            )
            drawn = self._generator(noise)
            batch = self._batch(drawn, state, channels_last=streamlined)
            if plan is not None:
                scores, block_scores, how = self._block_proxies(
                    model, state, batch, plan, cotangents, tokens, transformer, last_try=not streamlined
                )
            if self._wants(set(CLASSIC_PROXIES)):
                classic = ClassicProxies(
                    model,
                    state,
                    batch,
                    lambda: self._batch(drawn, state, channels_last=streamlined),
                    labels=self._generator(labels),
                    noise=self._generator(zen),
                )
                scores |= classic.compute(set(self.proxies) & set(CLASSIC_PROXIES))
        return scores, block_scores, how

    def _block_proxies(
        self,
        model: nn.Module,
        state: Sequence[Substitute],
        batch: Any,
        plan: BlockPlan,
        cotangents: int,
        tokens: int,
        transformer: bool,
        *,
        last_try: bool,
    ) -> _Outcome:
        """Return what is named of the proxies that look at blocks, from one forward and one backward pass.

        Where the module tree does not tell the blocks, the model is run as a whole; where it seemed to, but the blocks
        turn out not to be handed one another's outputs, it is run once more.

        Args:
            model: The model.
            state: What it is run with in the place of its parameters and buffers.
            batch: What it is run on.
            plan: Where to look for its features.
            cotangents: Seed of the cotangents.
            tokens: Seed of the tokens that :class:`TokenInteractionObserver` looks at.
            transformer: Whether it is scored as a transformer.
            last_try: Whether a model that fails to run as a whole is not tried again in another way.
        """

        def at_modules() -> _BlockPass:
            return self._pass(partial(run_blocks, blocks=plan.blocks, split=plan.split), *common)

        def as_a_whole() -> _BlockPass:
            return self._pass(run_whole, *common)

        common = model, state, batch, cotangents, tokens, transformer
        if not plan.automatic:
            done, how = at_modules(), "named by blocks="
        elif plan.trusted:
            done, how = at_modules(), FROM_TREE
            if not done.report.connected or len(done.blocks) < 2:
                with suppress(ProxyEvaluationError):  # then what the tree says is the best there is
                    done, how = as_a_whole(), FROM_RUN
        else:
            try:
                done, how = as_a_whole(), FROM_RUN
            except NoGradientError:
                raise
            except ProxyEvaluationError as error:
                if len(plan.blocks) < 2 and isinstance(error, NotFoundError):
                    raise ProxyEvaluationError(
                        f"No blocks found in {type(model).__name__}: it has no repeated units and fewer than two "
                        f"layers with weights below its head, and {error}. {candidates(model)}"
                    ) from None
                if len(plan.blocks) < 2 or not (last_try or isinstance(error, NotFoundError)):
                    raise
                done, how = at_modules(), FROM_TREE
        found = done.blocks
        if len(found) < 2:
            ran = f"only {found[0].name!r} ran" if found else "none of them ran"
            names = ", ".join(map(repr, plan.blocks))
            raise ProxyEvaluationError(
                f"{type(model).__name__} shows fewer than two features: of its blocks ({names}) "
                f"{ran}, and there was no stem before. Name two or more blocks with ProxyEvaluator(blocks=[...])."
            )
        samples = next(tensors_in(batch)).shape[0]
        isotropic = transformer and len({block.shape for block in found}) == 1
        compute: dict[str, Callable[[], float]] = {
            "expressivity": lambda: aznas.expressivity(found),
            "progressivity": lambda: 0.0 if isotropic else aznas.progressivity(found),
            "trainability": lambda: (
                0.0 if isotropic and self.jacobian == "least-squares" else aznas.trainability(found)
            ),
            "complexity": lambda: done.report.macs / samples,
        }
        if done.attention is not None:
            compute["attention"] = done.attention.score
        if done.interaction is not None:
            compute["token_interaction"] = done.interaction.score
        if self._wants("position"):
            position = PositionObserver(image=next(tensors_in(batch)).ndim == 4)
            done.run(model, state, constant_batch(batch), observe=position, draw_cotangent=None, count_macs=False)
            compute["position"] = position.score
        return {name: compute[name]() for name in self.proxies if name in compute}, found, how

    def _pass(
        self,
        run: Callable[..., PassReport],
        model: nn.Module,
        state: Sequence[Substitute],
        batch: Any,
        cotangents: int,
        tokens: int,
        transformer: bool,
    ) -> _BlockPass:
        """Run a model with fresh observers."""
        observer = AZNASObserver(
            entropy=self._wants("expressivity", "progressivity"),
            jacobian=self.jacobian,
            skip_identities=transformer,
            samples=next(tensors_in(batch)).shape[0],
        )
        attention = AttentionObserver(next(tensors_in(batch)).shape[0]) if self._wants("attention") else None
        interaction = TokenInteractionObserver(self._generator(tokens)) if self._wants("token_interaction") else None
        products = self._wants("trainability", "token_interaction")
        with _watched(attention):
            report = run(
                model,
                state,
                batch,
                observe=observer if interaction is None else _both(observer, interaction),
                draw_cotangent=_rademacher(self._generator(cotangents)) if products else None,
                count_macs=self._wants("complexity"),
            )
        return _BlockPass(run, report, observer.finish(), attention, interaction)

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(seed >> 1)  # torch takes 63 bits

    def _batch(self, generator: torch.Generator, state: Sequence[Substitute], *, channels_last: bool) -> Any:
        floating = (t.dtype for _, _, t in state if isinstance(t, Tensor) and t.is_floating_point())
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


class _BlockPass(NamedTuple):
    """One pass and what was seen in it."""

    run: Callable[..., PassReport]
    report: PassReport
    blocks: list[BlockScores]
    attention: AttentionObserver | None
    interaction: TokenInteractionObserver | None


def _watched(attention: AttentionObserver | None) -> AbstractContextManager[Any]:
    """Run the body under ``attention``, with attention computed as it is written, which is where its maps exist."""
    if attention is None:
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    stack.enter_context(attention)
    return stack


def _both(*observers: Callable[[BlockPass], None]) -> Callable[[BlockPass], None]:
    def observe(block: BlockPass) -> None:
        for observer in observers:
            observer(block)

    return observe


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

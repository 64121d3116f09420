"""ProxyEvaluator: the one entrance. A model goes in, its proxy scores come out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.arguments import checked_arguments
from optuna_aznas.proxies.context import Jacobian, ScoringContext, Seeds
from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.feature_pass import run_features
from optuna_aznas.proxies.features.blocks import BlockChoice, BlockPlan, plan_blocks
from optuna_aznas.proxies.features.operators import OperatorGraph, graph_features
from optuna_aznas.proxies.loss_pass import LossPass
from optuna_aznas.proxies.many import Scoring, outcomes_of
from optuna_aznas.proxies.model.draws import DrawsInCheckpointError
from optuna_aznas.proxies.model.forward import internal_error, is_out_of_memory, out_of_memory
from optuna_aznas.proxies.model.isolation import Substitute, check_replaceable, scoring_mode
from optuna_aznas.proxies.model.nested import map_tensors
from optuna_aznas.proxies.model.weights import is_transformer, substitute_state, suits_channels_last
from optuna_aznas.proxies.proxy import Needs, Proxy, Stage
from optuna_aznas.proxies.registry import DEFAULT, REGISTRY
from optuna_aznas.proxies.scores import BlockScores, ProxyScores
from optuna_aznas.proxies.settings import fingerprint, settings_of

#: Proxy scores by name, those of the blocks, how the blocks were chosen, and the graph of operators.
_Outcome: TypeAlias = tuple[dict[str, float], Sequence[BlockScores], str, OperatorGraph | None]


@dataclasses.dataclass(frozen=True)
class _Subject:
    """A model to score, and what is known of it before it runs.

    Attributes:
        model: The model.
        modules: All its modules by name.
        plan: Where to look for its features; ``None`` if no named proxy looks at blocks.
        transformer: Whether it is scored as a transformer.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    plan: BlockPlan | None
    transformer: bool


class ProxyEvaluator:
    """Scores an untrained network with zero-cost proxies, from one forward and one backward pass.

    The model comes back untouched: parameters, buffers, gradients, ``requires_grad``, modes, hooks and device are as
    before, and so is the global random state of torch, numpy and Python. The same seed on the same kind of device gives
    the same scores, whatever was evaluated before.

    A convolutional network runs in train mode with Kaiming-normal weights; a transformer (attention and layer
    normalisation) in eval mode with truncated-normal ones. In a transformer whose features all have one width
    progressivity and entropy retention are not used, as nothing grows there, and neither are trainability, isometry and
    Jacobian rank by least squares, which only tell the width (see the documentation): they are 0, hence a tie for all,
    and are still measured block by block where trainability is named.

    An evaluator is immutable: :meth:`replace` returns one with other arguments. Threads may share an evaluator and take
    turns; several processes score several models at once.

    Args:
        input_shape: Shape of one sample, without the batch dimension, such as ``(3, 32, 32)``. The network is run on
            Gaussian noise of this shape.
        inputs: A real batch instead of noise: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments. Exactly one of ``input_shape`` and ``inputs`` must be given.
        batch_size: Samples in the batch of noise, at least 1 (at least 2 for batch normalisation on 1 x 1 features). By
            default 8, and 1,024 where a sample is a vector: the rank of a layer's features is at most the number of
            positions in the batch, and a vector has only one.
        proxies: Names of the proxies to compute, in the order wanted, of :data:`~optuna_aznas.proxies.ALL_PROXIES`.
            What is not named costs nothing. By default :data:`~optuna_aznas.proxies.DEFAULT`.
        blocks: The primary blocks: see :func:`~optuna_aznas.proxies.find_blocks`.
        init: ``"auto"`` draws weights anew as said above; ``"kaiming"`` or ``"trunc_normal"`` name the draw; ``None``
            keeps the model's own, for example pretrained ones; a convolutional network still runs in train mode.
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
        ('expressivity', 'entropy_retention', 'isometry', 'jacobian_rank', 'activations', 'complexity')
    """

    input_shape: tuple[int, ...] | None
    inputs: Any
    batch_size: int
    proxies: tuple[str, ...]
    blocks: BlockChoice
    init: str | None
    jacobian: Jacobian
    repeats: int
    device: torch.device
    seed: int

    def __init__(
        self,
        input_shape: Sequence[int] | None = None,
        *,
        inputs: Any = None,
        batch_size: int | None = None,
        proxies: Sequence[str] = DEFAULT,
        blocks: BlockChoice = None,
        init: str | None = "auto",
        jacobian: Jacobian = "least-squares",
        repeats: int = 1,
        device: str | torch.device = "auto",
        seed: int = 0,
    ) -> None:
        arguments = checked_arguments(
            input_shape=input_shape,
            inputs=inputs,
            batch_size=batch_size,
            proxies=proxies,
            blocks=blocks,
            init=init,
            jacobian=jacobian,
            repeats=repeats,
            device=device,
            seed=seed,
        )
        self.__dict__.update(arguments)  # the only way past __setattr__

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(
            f"A ProxyEvaluator is immutable: {name} cannot be set. Use evaluator.replace({name}=...), which returns "
            "another one."
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"A ProxyEvaluator is immutable: {name} cannot be deleted.")

    def __repr__(self) -> str:
        arguments = ("inputs=..." if k == "inputs" and v is not None else f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({', '.join(arguments)})"

    def replace(self, **arguments: Any) -> ProxyEvaluator:
        """Return an evaluator with some arguments replaced, checked as those of a new one.

        Args:
            **arguments: Arguments of :class:`ProxyEvaluator`. To exchange ``input_shape`` for ``inputs``, or the other
                way round, set the old one to ``None``.

        Raises:
            TypeError: There is no such argument.
            ValueError: As for a new one.

        Example:
            >>> evaluator = ProxyEvaluator(input_shape=(3, 8, 8), device="cpu")
            >>> evaluator.replace(proxies=["naswot"]).proxies
            ('naswot',)
        """
        return type(self)(**{**vars(self), **arguments})

    def __call__(self, model: nn.Module) -> ProxyScores:
        """Score a model.

        Args:
            model: Any ``torch.nn.Module``. Where it lies does not matter, and weights that are drawn anew need not
                exist: it may have been built on the ``meta`` device.

        Returns:
            The proxy scores, in the order of ``proxies``.

        Raises:
            ProxyEvaluationError: The model cannot be scored; the message names the module, the shape and the remedy.
            TypeError: ``model`` is no ``torch.nn.Module``.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
        start = time.perf_counter()
        modules = dict(model.named_modules())
        check_replaceable(modules)
        plan = plan_blocks(model, self.blocks) if self._named(Stage.FEATURES) else None
        subject = _Subject(model, modules, plan, is_transformer(modules.values()))
        outcomes = [self._score_repeat(subject, Seeds(self.seed, repeat)) for repeat in range(self.repeats)]
        values = [sum(scores[name] for scores, *_ in outcomes) / self.repeats for name in self.proxies]
        _, blocks, source, operators = outcomes[0]
        graph = {} if operators is None else graph_features(operators)
        seconds = time.perf_counter() - start
        return ProxyScores(
            values,
            names=self.proxies,
            blocks=blocks,
            block_source=source,
            graph=graph,
            seconds=seconds,
            settings=self.settings,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What of the arguments changes scores, as plain JSON: all but ``device``, and of ``inputs`` shapes and types.

        ``scoring`` is the number of the package's scores, raised with each version that moves them.
        """
        return settings_of(**vars(self))

    @property
    def fingerprint(self) -> str:
        """Twelve digits that stand for :attr:`settings`: scores compare only where they are the same."""
        return fingerprint(self.settings)

    def map(
        self,
        models: Iterable[nn.Module | Callable[[], nn.Module]],
        *,
        n_workers: int | None = None,
        show_progress_bar: bool = False,
    ) -> Iterator[ProxyScores | BaseException]:
        """Score many models, with several processes that share the GPU, or the cores.

        The result for each model is what a call of the evaluator returns for it. On a CPU the worker processes use one
        thread each; scores are bit for bit those of this process with ``torch.set_num_threads(1)``.

        Functions that build the models are better than models: a function is sent to a worker instead of all weights,
        and building is shared among the workers too. Functions of a script or a notebook, lambdas and closures may be
        used. A worker does not share the state of this process: a function that draws random numbers should seed them,
        and what the script has set, such as ``torch.set_default_dtype``, it must set again.

        Worker processes wait a minute for the next call of ``map`` before they end. Closing the iterator, an error in
        ``models`` or Ctrl-C ends those that are at work at once.

        Args:
            models: Models, or functions without arguments that each return one; also a mixture. It may be a generator,
                even one without end: it is run in this thread, and at most ``2 * n_workers`` models ahead of the
                results that were taken.
            n_workers: Number of worker processes. With 0 or 1 the models are scored in this process. By default the
                number of cores that this process may use (its affinity and cgroup quota), and on a GPU at most one for
                2 GiB of free memory.
            show_progress_bar: Show a progress bar on standard error.

        Returns:
            An iterator over the results in the order of ``models``, as they come: the proxy scores, or for a model that
            failed the exception: a :class:`ProxyEvaluationError`, or what its function raised. A model whose worker
            process died, for example for lack of memory, has a :class:`ProxyEvaluationError`.

        Raises:
            TypeError: ``models`` is a single model, or cannot be iterated over; the evaluator cannot be pickled.
            ValueError: ``n_workers`` is no integer of at least 0.
            RuntimeError: A worker process cannot be started.

        Example:
            >>> from torch import nn
            >>> def build(width):
            ...     return nn.Sequential(*(nn.Sequential(nn.Conv2d(c, width, 3), nn.ReLU()) for c in (3, width, width)))
            >>> evaluator = ProxyEvaluator((3, 8, 8), proxies=["complexity"], device="cpu")
            >>> [int(scores.complexity) for scores in evaluator.map([build(4), lambda: build(8)], n_workers=0)]
            [6768, 19296]
        """
        if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
            raise TypeError(
                f"models must be an iterable of models; got one {type(models).__name__}. Score a single model with "
                "evaluator(model)."
            )
        if not isinstance(models, Iterable):
            raise TypeError(f"models must be an iterable of models; got {type(models).__name__}.")
        return outcomes_of(
            Scoring(self), models, n_workers=n_workers, device=self.device, show_progress_bar=show_progress_bar
        )

    def _named(self, stage: Stage) -> list[Proxy]:
        """Return the named proxies of a stage, in the order in which they are computed."""
        return [proxy for proxy in REGISTRY.values() if proxy.stage is stage and proxy.name in self.proxies]

    def _score_repeat(self, subject: _Subject, seeds: Seeds) -> _Outcome:
        """Score a model with the draws of one repeat: streamlined if possible, else as it is written."""
        attempts = [False] if subject.transformer else [True, False]
        shared_draws = False
        while attempts:
            streamlined = attempts[0]
            try:
                with self._prepared(subject, seeds, streamlined=streamlined, shared_draws=shared_draws) as context:
                    return self._compute(context, subject.plan, last_try=not streamlined)
            except DrawsInCheckpointError:
                if shared_draws:
                    raise
                shared_draws = True
                continue
            except ProxyEvaluationError as error:
                if not streamlined or is_out_of_memory(
                    error.__cause__
                ):  # else the model perhaps needs what was left out
                    raise
            except Exception as error:
                if not streamlined or is_out_of_memory(error):
                    raise internal_error(error, subject.model) from error
            attempts.pop(0)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _prepared(
        self, subject: _Subject, seeds: Seeds, *, streamlined: bool, shared_draws: bool
    ) -> Iterator[ScoringContext]:
        """Run the body with a model that is ready to run.

        Args:
            subject: The model.
            seeds: The random streams.
            streamlined: Keep images and kernels with their channels last in memory, where that is faster
                (:func:`suits_channels_last`), and leave out the running statistics of batch normalisation. A model may
                object to either: with ``view`` on features, or by reading the statistics itself.
            shared_draws: As ``shared`` of :func:`~optuna_aznas.proxies.model.draws.seeded_draws`.
        """
        model, modules, training = subject.model, subject.modules, not subject.transformer
        seed = seeds.of("modes")
        channels_last = streamlined and suits_channels_last(modules.values(), self.device)
        with scoring_mode(
            modules.values(), training=training, seed=seed, device=self.device, shared_draws=shared_draws
        ):
            state = substitute_state(
                modules.items(),
                init=("kaiming" if training else "trunc_normal") if self.init == "auto" else self.init,
                generator=self._generator(seeds, "weights"),
                device=self.device,
                channels_last=channels_last,
                running_statistics=not streamlined,
            )
            noise = self._generator(seeds, "noise")

            def batch() -> Any:
                return self._batch(noise, state, channels_last=channels_last)

            yield ScoringContext(model, subject.transformer, state, batch(), batch, seeds, self.device, self.jacobian)

    def _compute(self, context: ScoringContext, plan: BlockPlan | None, *, last_try: bool) -> _Outcome:
        """Compute the named proxies, stage by stage."""
        scores: dict[str, float] = {}
        blocks: Sequence[BlockScores] = ()
        source = ""
        graph: OperatorGraph | None = None
        if plan is not None:
            of_features = self._named(Stage.FEATURES)
            seen = run_features(context, plan, of_features, _needs(of_features), last_try=last_try)
            scores |= {proxy.name: proxy.score(seen) for proxy in of_features}
            blocks, source, graph = seen.blocks, seen.block_source, seen.report.graph
        of_loss = self._named(Stage.LOSS)
        if of_loss:
            observers = {proxy.name: proxy.observer(context) for proxy in of_loss if proxy.observer is not None}
            loss = LossPass(context, _needs(of_loss), observers)
            scores |= {proxy.name: proxy.score(loss) for proxy in of_loss}
        scores |= {proxy.name: proxy.score(context) for proxy in self._named(Stage.MODEL)}
        return scores, blocks, source, graph

    def _generator(self, seeds: Seeds, purpose: str) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(seeds.of(purpose))

    def _batch(self, generator: torch.Generator, state: Sequence[Substitute], *, channels_last: bool) -> Any:
        """Return a batch of noise, or a copy of ``inputs``, in the precision of the state."""
        floating = (t.dtype for _, _, t in state if isinstance(t, Tensor) and t.is_floating_point())
        dtype = next(floating, torch.float32)

        def arranged(tensor: Tensor) -> Tensor:
            image = channels_last and tensor.ndim == 4
            return tensor.contiguous(memory_format=torch.channels_last) if image else tensor

        if self.inputs is None:
            assert self.input_shape is not None
            shape = (self.batch_size, *self.input_shape)
            try:
                return arranged(torch.randn(shape, generator=generator, device=self.device, dtype=dtype))
            except Exception as error:
                raise out_of_memory(error, f"a batch of shape {shape}") or error from error
        return map_tensors(
            lambda t: arranged(
                t.detach().to(device=self.device, dtype=dtype if t.is_floating_point() else None, copy=True)
            ),
            self.inputs,
        )


def _needs(proxies: Sequence[Proxy]) -> Needs:
    """Return what a stage must do for all of these proxies."""
    needs = Needs.FORWARD
    for proxy in proxies:
        needs |= proxy.needs
    return needs

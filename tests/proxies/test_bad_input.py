"""Each thing a user can get wrong is a clear error or a defined score, and the model is untouched all the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from optuna_aznas import ProxyEvaluationError, ProxyEvaluator
from optuna_aznas.proxies import ALL_PROXIES, AZNAS, DEFAULT, aznas
from optuna_aznas.proxies.aznas import AZNAS_PROXIES
from tests.proxies.test_contracts import Awkward, assert_same, random_states, snapshot

#: The default proxies and the paper's.
ALL_FEATURE_PROXIES = tuple(dict.fromkeys((*AZNAS, *DEFAULT)))


def stem():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))


def block():
    return nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        raise RuntimeError("the dog ate it")


class NoTensor(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(stem(), block(), block())

    def forward(self, x):
        self.layers(x)
        return "done"


class Returns(nn.Module):
    """A block that returns ``what(x)``."""

    def __init__(self, what):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.what = what

    def forward(self, x):
        return self.what(self.conv(x))


def evaluate_untouched(model, **kwargs):
    """Score a model and check that it is untouched, whether it raises or not."""
    before, states = snapshot(model), random_states()
    try:
        return ProxyEvaluator(**{"input_shape": (3, 8, 8), "batch_size": 4, "device": "cpu"} | kwargs)(model)
    finally:
        assert_same(before, snapshot(model))
        assert states == random_states()


def test_no_blocks():
    with pytest.raises(ProxyEvaluationError, match=r"No blocks found in Sequential.*no module with a weight"):
        evaluate_untouched(nn.Sequential(nn.ReLU(), nn.Flatten()))


def test_a_stem_and_one_block():
    one = nn.Sequential(stem(), nn.ReLU())
    with pytest.raises(ProxyEvaluationError, match=r"fewer than two features.*'0'.*blocks=\["):
        evaluate_untouched(one, blocks=["0"])
    # A stem and one block are two features, which is all that the formulas need.
    scores = evaluate_untouched(nn.Sequential(stem(), block()))
    assert len(scores.blocks) == 2
    assert scores.entropy_retention == pytest.approx(min(0.0, scores.blocks[1].step))


def test_a_block_that_never_runs_is_no_feature():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = stem(), block(), block()

        def forward(self, x):
            return self.b(self.a(x))

    assert [b.name for b in evaluate_untouched(Skips()).blocks] == ["a", "b"]


def test_forward_raises():
    model = nn.Sequential(stem(), nn.Sequential(block(), Failing()), block())
    with pytest.raises(ProxyEvaluationError) as caught:
        evaluate_untouched(model)
    assert isinstance(caught.value.__cause__, RuntimeError)
    message = str(caught.value)
    for part in (
        "'1.1' (Failing)",
        "(4, 4, 8, 8)",
        "RuntimeError: the dog ate it",
        "(4, 3, 8, 8)",
        "'1.0'",
        "input_shape",
    ):
        assert part in message


def test_no_tensor():
    with pytest.raises(ProxyEvaluationError, match=r"NoTensor\.forward returned str without a tensor"):
        evaluate_untouched(NoTensor())
    with pytest.raises(ProxyEvaluationError, match=r"Block '1' \(Returns\) returned NoneType"):
        evaluate_untouched(nn.Sequential(stem(), Returns(lambda x: None), block()))
    with pytest.raises(
        ProxyEvaluationError, match=r"Block '1' \(Returns\) returned Tensor without a floating-point tensor"
    ):
        evaluate_untouched(nn.Sequential(stem(), Returns(lambda x: x.argmax(1)), block()))


def test_input_shape_that_does_not_fit():
    model = nn.Sequential(stem(), block(), nn.Sequential(nn.Flatten(), nn.Linear(4 * 8 * 8, 2)))
    with pytest.raises(ProxyEvaluationError, match=r"'0\.0' \(Conv2d\).*\(4, 1, 8, 8\).*input_shape"):
        evaluate_untouched(model, input_shape=(1, 8, 8))
    with pytest.raises(ProxyEvaluationError, match=r"'2\.1' \(Linear\).*\(4, 576\)"):
        evaluate_untouched(model, input_shape=(3, 12, 12))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_activations_are_a_score(poison):
    model = nn.Sequential(stem(), Returns(lambda x: x * poison), block())
    scores = evaluate_untouched(model, proxies=ALL_FEATURE_PROXIES)
    assert scores.expressivity == scores.progressivity == scores.entropy_retention == -math.inf
    assert scores.trainability == scores.isometry == scores.jacobian_rank == -math.inf
    assert scores.complexity > 0


def test_no_gradient_path_is_a_score():
    model = nn.Sequential(stem(), Returns(lambda x: x.detach()), block())
    scores = evaluate_untouched(model, proxies=ALL_FEATURE_PROXIES)
    assert scores.blocks[1].spectral_norm == 0.0
    assert scores.blocks[1].isometry == pytest.approx(math.log(1e-3))
    assert scores.blocks[1].jacobian_rank == 0.0
    assert scores.trainability == pytest.approx(-5e5, rel=1e-3)
    with_no_grad = Returns(lambda x: x)
    with_no_grad.forward = torch.no_grad()(with_no_grad.forward)
    assert evaluate_untouched(nn.Sequential(stem(), with_no_grad, block())).blocks[1].spectral_norm == 0.0


def test_frozen_weights_do_not_hide_the_gradient_path():
    model = nn.Sequential(stem(), block(), block()).requires_grad_(False)
    assert min(b.spectral_norm for b in evaluate_untouched(model).blocks[1:]) > 0.1


def test_batch_norm_with_one_value_per_channel():
    with pytest.raises(ProxyEvaluationError, match="batch_size of 2 or more"):
        evaluate_untouched(nn.Sequential(stem(), block()), input_shape=(3, 1, 1), batch_size=1)


def test_a_block_that_runs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.last = stem(), block(), block()

        def forward(self, x):
            return self.last(self.block(self.block(self.stem(x))))

    twice = evaluate_untouched(Twice(), blocks=["stem", "block", "last"])
    assert [b.name for b in twice.blocks] == ["stem", "block", "block (call 2)", "last"]
    assert min(b.spectral_norm for b in twice.blocks[1:]) > 0.1


def test_a_block_that_calls_itself():
    class Recursive(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x, depth=2):
            return self(self.conv(x), depth - 1) if depth else x

    with pytest.raises(ProxyEvaluationError, match=r"Block '1' \(Recursive\) calls itself"):
        evaluate_untouched(nn.Sequential(stem(), Recursive(), block()), blocks=["0", "1", "2"])


def test_lazy_and_meta_parameters():
    with pytest.raises(ProxyEvaluationError, match=r"'2\.weight'.*lazy.*Run the model once"):
        ProxyEvaluator((3, 8, 8), device="cpu")(nn.Sequential(stem(), block(), nn.LazyLinear(3)))
    with torch.device("meta"):
        meta = nn.Sequential(stem(), block())
    assert all(math.isfinite(score) for score in ProxyEvaluator((3, 8, 8), device="cpu")(meta))
    with pytest.raises(ProxyEvaluationError, match=r"meta device.*no values"):
        ProxyEvaluator((3, 8, 8), device="cpu", init=None)(meta)


def test_features_of_other_samples():
    """A block that moves part of the image into the batch, as windows of attention lie there."""
    model = nn.Sequential(stem(), block(), Returns(lambda x: x.unfold(2, 4, 4).movedim(2, 0).flatten(0, 1)))
    with pytest.raises(
        ProxyEvaluationError, match=r"Block '2' turns .*\(4, 4, 8, 8\) into \(8, 4, 8, 4\).*not the batch"
    ):
        evaluate_untouched(model)
    assert math.isfinite(evaluate_untouched(model, proxies=["expressivity"]).expressivity)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        ({"batch_size": -3}, "batch_size must be an integer of at least 1; got -3"),
        ({"batch_size": 2.0}, "batch_size must be an integer"),
        ({"batch_size": True}, "batch_size must be an integer"),
        ({"repeats": 0}, "repeats must be an integer of at least 1"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"seed": None}, "seed must be an integer"),
        ({"input_shape": None}, "Exactly one of input_shape and inputs"),
        ({"inputs": torch.zeros(2, 3, 8, 8)}, "Exactly one of input_shape and inputs"),
        ({"input_shape": 32}, r"input_shape must be a sequence.*\(3, 32, 32\).*got 32"),
        ({"input_shape": ()}, "input_shape must hold positive integers"),
        ({"input_shape": (3, 0, 8)}, "input_shape must hold positive integers"),
        ({"input_shape": None, "inputs": "a batch"}, "inputs must be a tensor"),
        ({"proxies": ["expressivity", "synflaw"]}, "proxies must be one or more of .*'expressivity'.*synflaw"),
        ({"proxies": []}, "proxies must be one or more"),
        ({"proxies": ["complexity", "complexity"]}, "each once"),
        ({"init": "xavier"}, "init must be one of"),
        ({"jacobian": "exact"}, "jacobian must be one of"),
        ({"device": "cuda:99"}, r"device 'cuda:99' is not usable .* Use 'auto' or one of \['cpu'"),
        ({"device": "abacus"}, "device 'abacus' is not usable"),
        ({"device": "meta"}, "device 'meta' is not usable .*holds no values"),
        ({"device": 3.5}, "device 3.5 is not usable"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProxyEvaluator(**{"input_shape": (3, 8, 8)} | arguments)


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module; got function"):
        ProxyEvaluator((3, 8, 8))(stem)


def test_errors_leave_an_awkward_model_alone():
    with pytest.raises(ProxyEvaluationError):
        evaluate_untouched(Awkward(), input_shape=(5, 8, 8))


def test_the_batch_dimension_in_input_shape():
    model = nn.Sequential(stem(), block(), block())
    with pytest.raises(
        ProxyEvaluationError, match=r"without the batch dimension.*\(3, 8, 8\) instead of \(8, 3, 8, 8\)"
    ):
        evaluate_untouched(model, input_shape=(8, 3, 8, 8))
    with pytest.raises(
        ProxyEvaluationError, match=r"one sample, \(channels, height, width\).*\(8, 8\) lacks a dimension"
    ):
        evaluate_untouched(model, input_shape=(8, 8))


def test_the_batch_dimension_before_a_recurrent_layer():
    class Signals(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LSTM(4, 6, batch_first=True), nn.LSTM(6, 6, batch_first=True)

        def forward(self, x):
            return self.second(self.first(x)[0])[0]

    with pytest.raises(ProxyEvaluationError, match=r"one sample, \(steps, features\).*\(5, 4\) instead of \(8, 5, 4\)"):
        evaluate_untouched(Signals(), input_shape=(8, 5, 4))
    assert len(evaluate_untouched(Signals(), input_shape=(5, 4)).blocks) == 2


@pytest.mark.parametrize("model", [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Conv2d(3, 4, 3)])
def test_one_layer_as_the_model(model):
    shape = (3, 8, 8) if isinstance(model, nn.Conv2d) else (4,)
    with pytest.raises(ProxyEvaluationError, match=r"No blocks found in .*only layer with weights counts as its head"):
        evaluate_untouched(model, input_shape=shape)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize(
    ("model", "shape", "feature"),
    [
        (
            nn.Sequential(stem(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
            (3, 8, 8),
            (4, 8, 8),
        ),
        (nn.LSTM(4, 6, batch_first=True), (5, 4), (5, 6)),
        (Recurrent(), (5, 4), (5, 6)),
    ],
)
def test_one_block(model, shape, feature):
    """The input is a feature beside the only one: two are what the formulas need."""
    scores = evaluate_untouched(model, input_shape=shape, batch_size=64, proxies=[*DEFAULT, "trainability"])
    assert [block.shape for block in scores.blocks] == [shape, feature]
    assert scores.blocks[0].name == f"input of {type(model).__name__}"
    assert scores.block_source == "one found by running the model, and the model's input beside it"
    assert scores.blocks[0].entropy > 0.9 * math.log(shape[0] if len(shape) == 3 else shape[-1])  # of white noise
    assert 0 < scores.blocks[1].spectral_norm < 10
    assert all(map(math.isfinite, scores))


def test_one_block_has_the_jacobian_of_its_layers():
    torch.manual_seed(0)
    first = nn.Linear(4, 6)
    model = nn.Sequential(first, nn.Identity(), nn.Linear(6, 2))
    scores = evaluate_untouched(model, input_shape=(4,), batch_size=4096, init=None, proxies=["trainability"])
    assert scores.blocks[1].spectral_norm == pytest.approx(torch.linalg.matrix_norm(first.weight, 2).item(), rel=0.1)


def test_a_detector_that_needs_targets():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(stem(), block(), block())

        def forward(self, images, targets=None):
            if self.training:
                torch._assert(targets is not None, "targets should not be none when in training mode")
            return self.backbone(images)

    with pytest.raises(ProxyEvaluationError, match=r"targets should not be none.*score its backbone") as caught:
        evaluate_untouched(Detector(), proxies=["naswot"])
    assert "Check input_shape" not in str(caught.value)


def test_a_forward_with_two_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(stem(), block(), block())

        def forward(self, x, y):
            return self.layers(x + y)

    with pytest.raises(ProxyEvaluationError, match=r"'y'.*inputs=: a tuple of positional"):
        evaluate_untouched(Two(), proxies=["naswot"])


class Overwrites(nn.Module):
    """A residual chain without blocks in its tree, in which a tensor is overwritten that a gradient needs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = self.a(x).sigmoid()
        y = self.b(x).sigmoid()
        z = y * 2
        y += 1  # the gradient of sigmoid needs y
        return self.head(self.c(z) + y)


@pytest.mark.parametrize("proxies", [AZNAS_PROXIES, ["zico"], ["jacobian_covariance"], ["synflow"], ALL_PROXIES])
def test_a_backward_pass_that_fails(proxies):
    with pytest.raises(ProxyEvaluationError, match=r"backward pass through .* failed.*out of place") as caught:
        evaluate_untouched(Overwrites(), input_shape=(6,), proxies=proxies)
    assert isinstance(caught.value.__cause__, RuntimeError)


class Exhausted(torch.autograd.Function):
    """Runs out of memory in the backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("proxies", [AZNAS_PROXIES, ["zico"], ["synflow"]])
def test_memory_that_runs_out_in_the_backward_pass(proxies):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x):
            x = self.a(x).relu()
            x = x + Exhausted.apply(self.b(x)).relu()
            return x + self.c(x).relu()

    with pytest.raises(ProxyEvaluationError, match=r"backward pass .*OutOfMemoryError.*smaller batch_size") as caught:
        evaluate_untouched(Net(), input_shape=(6,), proxies=proxies)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize("shape", [(3, 2**20, 2**20), (2**40, 2**40)])
def test_an_input_shape_that_fits_no_memory(shape):
    with pytest.raises(ProxyEvaluationError, match=r"not enough memory for a batch of shape .*smaller batch_size") as e:
        evaluate_untouched(nn.Sequential(stem(), block(), block()), input_shape=shape)
    assert isinstance(e.value.__cause__, RuntimeError)


class Fourier(nn.Module):
    """Complex numbers between its layers, or as its result."""

    def __init__(self, last):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.d, self.last = nn.Linear(8, 8, dtype=torch.complex64), last

    def forward(self, x):
        x = x + self.a(x).relu()
        x = x + self.b(x).relu()
        x = x + self.d(torch.fft.fft(x))
        return x if self.last else self.c(x.real) + x.imag


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("proxies", [AZNAS_PROXIES, *([name] for name in ALL_PROXIES)])
def test_complex_features(last, proxies):
    """A score or a clear error, whatever is asked for."""
    messages = []
    for blocks in (None, ["a", "b", "d"]):
        try:
            evaluate_untouched(Fourier(last), input_shape=(8,), proxies=proxies, blocks=blocks)
        except ProxyEvaluationError as error:
            messages.append(str(error))
    assert not [message for message in messages if "report it" in message]


def test_a_defect_of_ours_is_not_blamed_on_the_model(monkeypatch):
    def broken(self, block):
        raise KeyError("a defect")

    model = nn.Sequential(stem(), block(), block())
    monkeypatch.setattr(aznas.BlockObserver, "__call__", broken)
    for shown in (model, Overwrites()):
        shape = (6,) if shown is not model else (3, 8, 8)
        with pytest.raises(ProxyEvaluationError, match=r"failed in broken .*not in its own code.*report it") as caught:
            evaluate_untouched(shown, input_shape=shape, proxies=["expressivity"])
        assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_under_a_mode_of_ours_is_the_models():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(stem(), block(), block())

        def forward(self, x):
            return torch.einsum("ij,jk->ik", self.layers(x), x)

    for proxies in (AZNAS_PROXIES, ["naswot"], ["attention"]):
        with pytest.raises(ProxyEvaluationError, match=r"forward pass of Wrong failed in Wrong\.forward itself"):
            evaluate_untouched(Wrong(), proxies=proxies)

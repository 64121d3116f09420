"""Each thing a user can get wrong is a clear error or a defined score, and the model is untouched all the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from optuna_aznas import ProxyEvaluationError, ProxyEvaluator
from optuna_aznas.proxies import AZNAS, DEFAULT
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
    with pytest.raises(ProxyEvaluationError, match=r"No blocks found.*blocks=\[\.\.\.\].*'0'"):
        evaluate_untouched(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)))


def test_one_block():
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

"""Modules that no file can hold: each is refused for what it does, before anything is traced."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from alexdeploy.errors import InputError
from alexdeploy.export import from_torch
from alexdeploy.export.from_torch import count_outputs, export_onnx
from tests.unit.export.test_from_torch import TINY


class Net(nn.Module):
    """Sound, and the base of those that are not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
        self.norm = nn.BatchNorm2d(3)
        self.calls = 0
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("mask", torch.full((5,), -torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(self.norm(x))
        return logits


class FunctionalDropout(Net):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x))


class AwakeDropout(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop: nn.Module = nn.Dropout()

    def eval(self) -> AwakeDropout:
        super().eval()
        self.drop.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.drop(super().forward(x))
        return logits


class SmallNoise(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-3 * torch.randn(1, 5)


class StochasticDepth(Net):
    """The same in half of all calls."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 if random.random() < 0.5 else 2)


class Counts(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class MovingMean(Net):
    mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        self.mean.mul_(0.9).add_(logits.mean(0) / 10)
        return logits - self.mean


class AwakeNorm(Net):
    def eval(self) -> AwakeNorm:
        super().eval()
        self.norm.train()
        return self


class NormWithoutStatistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)


class FlatNormWithoutStatistics(Net):
    """It raises for a single image, as PyTorch does in training."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.BatchNorm1d(5, track_running_stats=False)
        self.other = nn.InstanceNorm2d(3)  # has none either, and is not at fault

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(super().forward(x))
        return logits


class AwakeFlatNorm(FlatNormWithoutStatistics):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.BatchNorm1d(5)

    def eval(self) -> AwakeFlatNorm:
        super().eval()
        self.last.train()
        return self


class BatchMean(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class PairsOnly(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(2, 5)


class OneMore(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, : 4 + len(x) // 2]


class SpoiltWeight(Net):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.body.get_parameter("3.weight")[1, 2:5] = torch.nan


class Logarithm(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log()


class Half(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).half()


class Double(Net):
    def __init__(self) -> None:
        super().__init__()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


class DoubleSoftmax(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1, dtype=torch.float64)


class Squeeze(Net):
    """As many write the end: for one image it is (5,)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class SqueezeBefore(Squeeze):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(super().forward(x))
        return logits.log_softmax(-1)


class Decides(Net):
    """By each image for itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if x[0].sum() > 1e9 else 1)


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (FunctionalDropout, r"random numbers in forward of FunctionalDropout \(\w+\)"),
        (AwakeDropout, r"changes from call to call in eval mode: it draws random numbers in drop, a Dropout \(\w+\)"),
        (SmallNoise, r"random numbers in forward of SmallNoise \(randn\)"),
        (StochasticDepth, r"random numbers, outside PyTorch"),
        (Counts, r"changes from call to call .*depends on earlier calls; let it keep no state"),
        (MovingMean, r"depends on earlier calls and changes its mean;"),
        (AwakeNorm, r"depends on the other images in its batch: in training mode, .*: norm \(BatchNorm2d\)"),
        (NormWithoutStatistics, r"the other images in its batch: without running statistics: norm \(BatchNorm2d\)"),
        (FlatNormWithoutStatistics, r"in its batch: without running statistics: last \(BatchNorm1d\); a classifier"),
        (AwakeFlatNorm, r"in its batch: in training mode, in spite of eval\(\): last \(BatchNorm1d\); a classifier"),
        (BatchMean, r"depends on the other images in its batch; a classifier"),
        (PairsOnly, r"answers two images and fails on one: RuntimeError"),
        (OneMore, r"returns shape \(1, 4\) for one image and shape \(2, 5\) for two; expected"),
        (SpoiltWeight, r"its 'body\.3\.weight' holds 3 such values \(of 3920\)"),
        (Logarithm, r"NaN or infinite .*its weights are finite; they arise in forward of Logarithm"),
        (Double, r"returns float64 for float32; make it float32 with module\.float\(\)"),
        (Half, r"returns float16 for float32; make it float32 with module\.float\(\), or end forward with \.float\(\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_module_is_said_to_be_at_fault(kind: type[Net], complaint: str) -> None:
    random.seed(3)
    with pytest.raises(InputError, match=complaint):
        count_outputs(kind().eval(), TINY)


def test_a_sound_module_is_taken_and_nobody_s_random_numbers_are_used_up() -> None:
    before = random.getstate(), repr(np.random.get_state())
    net = Net().eval()
    after_init = torch.get_rng_state()
    assert count_outputs(net, TINY) == 5
    assert torch.equal(torch.get_rng_state(), after_init)
    assert (random.getstate(), repr(np.random.get_state())) == before


@pytest.mark.parametrize("kind", [Squeeze, SqueezeBefore, DoubleSoftmax])
def test_what_is_logits_in_another_form_becomes_float32_of_each_image(kind: type[Net], tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((3, 3, 16, 16), np.float32)
    net = kind()
    export_onnx(net, TINY, tmp_path / "model.onnx", real_images=images)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    for batch in (images, images[:1]):
        (logits,) = session.run(["logits"], {"input": batch})
        assert logits.dtype == np.float32
        assert logits.shape == (len(batch), 5)
        np.testing.assert_allclose(logits, expected[: len(batch)], rtol=1e-5, atol=1e-6)


def test_a_decision_by_values_is_named_with_its_line_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    with pytest.raises(InputError, match=r"decides by values of its input \(test_behaviour\.py, line \d+: .*x\[0\]"):
        export_onnx(Decides(), TINY, tmp_path / "model.onnx", real_images=images)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_the_network_inside_data_parallel_and_compile_is_taken() -> None:
    net = Net()
    for wrapped in (net, nn.DataParallel(net), torch.compile(nn.DataParallel(net))):
        assert isinstance(wrapped, nn.Module)
        assert from_torch._unwrapped(wrapped) is net

"""State dicts whose names are not the zoo's: loaded by order and shape where that leaves no doubt, else refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from alexdeploy.errors import InputError, InputWarning
from alexdeploy.zoo.checkpoint import load_checkpoint, untrained
from alexdeploy.zoo.weight_files import read_weight_file
from alexdeploy.zoo.weights import load_weights, named_for, start_from


def numbered() -> nn.Module:
    """LeNet as a text writes it that calls its layers c1, c2, f3, f4, f5."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c1, self.c2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 16, 5)
            self.f3, self.f4, self.f5 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 7)

        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.c1, self.c2):
                x = nn.functional.max_pool2d(layer(x).relu(), 2)
            logits: Tensor = self.f5(self.f4(self.f3(x.flatten(1)).relu()).relu())
            return logits

    return Net()


def in_blocks() -> nn.Module:
    """LeNet in a text's conv1, conv2 and dense, each a sequence."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            self.conv2 = nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
            self.dense = nn.Sequential(
                nn.Linear(400, 120), nn.ReLU(), nn.Dropout(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 7)
            )

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.dense(self.conv2(self.conv1(x)).flatten(1))
            return logits

    return Net()


def with_batch_norm() -> nn.Module:
    """``mnist-cnn`` in blocks, with running statistics that are not the initial ones."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU()]

    first = nn.Sequential(*block(1, 16), *block(16, 32), nn.MaxPool2d(2))
    second = nn.Sequential(*block(32, 64), *block(64, 128), nn.MaxPool2d(2), nn.Flatten())
    dense = nn.Sequential(nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 7))
    net = nn.Sequential(first, second, dense)
    net(torch.randn(8, 1, 28, 28) + 2)
    return net


@pytest.mark.parametrize(
    ("make", "network"), [(numbered, "lenet"), (in_blocks, "lenet"), (with_batch_norm, "mnist-cnn")]
)
def test_a_text_s_own_names_load_and_give_its_logits(
    make: Callable[[], nn.Module], network: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = make().eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    with pytest.warns(InputWarning, match=r"net\.pth: its names differ; loaded by order and shape: .* → features\.0, "):
        found = load_checkpoint(tmp_path / "net.pth", network)
    images = torch.randn(3, 1, 28, 28)
    with torch.inference_mode():
        torch.testing.assert_close(found.model(images), theirs(images), rtol=0, atol=1e-6)
    assert found.classes == 7


def test_batch_normalisation_from_before_the_batches_were_counted_loads(tmp_path: Path) -> None:
    weights = untrained("mnist-cnn", 10, seed=0).model.state_dict()
    torch.save({name: tensor for name, tensor in weights.items() if "num_batches" not in name}, tmp_path / "old.pth")
    found = load_checkpoint(tmp_path / "old.pth", "mnist-cnn").model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("names", "loads"),
    [
        (("a.weight", "a.bias", "b.weight", "b.bias"), True),
        (("b.weight", "b.bias", "a.weight", "a.bias"), False),  # alike, and named in another order
        (("l2.weight", "l2.bias", "l10.weight", "l10.bias"), True),
        (("1.weight", "1.bias", "2.weight", "2.bias"), False),  # 1 is the second layer by its name
        (("a.weight", "b.bias", "b.weight", "a.bias"), False),
        (("a.bias", "a.weight", "b.bias", "b.weight"), False),
    ],
)
def test_layers_that_could_be_mistaken_for_each_other_are_not_loaded_by_order(
    names: tuple[str, ...], loads: bool, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tensors = [tensor + 1 for tensor in model.state_dict().values()]
    torch.save(dict(zip(names, tensors, strict=True)), tmp_path / "a.pth")
    file = read_weight_file(tmp_path / "a.pth")
    if loads:
        with pytest.warns(InputWarning, match="loaded by order"):
            load_weights(model, named_for(file, model, "a"), "a")
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), tensors, strict=True))
    else:
        with pytest.raises(InputError, match=r"0\.weight is missing.*(not part|the names alone differ)"):
            load_weights(model, named_for(file, model, "a"), "a")


def test_a_sorted_file_has_no_order_to_load_by(tmp_path: Path) -> None:
    safetensors.torch.save_file(numbered().state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(
        InputError, match=r"features.0.weight is missing.*not part of the network: c1.bias.*names alone"
    ):
        load_checkpoint(tmp_path / "a.safetensors", "lenet")


def test_layers_numbered_without_lrn_load_without_it_and_never_with_it(tmp_path: Path) -> None:
    plain = untrained("alexnet-mnist", 3, seed=0).model
    features = [module for module in plain.features if "ResponseNorm" not in type(module).__name__]
    theirs = nn.ModuleDict({"features": nn.Sequential(*features), "classifier": plain.classifier})
    torch.save(theirs.state_dict(), tmp_path / "plain.pth")
    with pytest.warns(InputWarning, match="numbered as those of 'alexnet-mnist' without LRN"):
        found = load_checkpoint(tmp_path / "plain.pth", "alexnet-mnist")
    images = torch.randn(2, 1, 28, 28)
    with torch.inference_mode():
        expected = theirs["classifier"](theirs["features"](images).flatten(1))
        torch.testing.assert_close(found.model(images), expected)
    assert found.recipe.network.lrn is False
    with pytest.raises(InputError, match="the names alone differ"):
        start_from(plain, tmp_path / "plain.pth", "alexnet-mnist")


def test_the_network_that_a_file_fits_is_named(tmp_path: Path) -> None:
    torch.save(numbered().state_dict(), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"not part of the network: c1\.weight, .*; its shapes are those of lenet$"):
        load_checkpoint(tmp_path / "a.pth", "mnist-cnn")

from __future__ import annotations

import pytest
import torch
from torch import nn

from alexdeploy.errors import UsageError
from alexdeploy.recipe import NetworkSettings, TrainSettings
from alexdeploy.train.optimizer import freeze, initialise, make_optimizer, one_cycle, set_learning_rate, set_training
from alexdeploy.zoo.convnet import layer_paths
from alexdeploy.zoo.registry import build_network

SETTINGS = TrainSettings(epochs=1, batch_size=8, learning_rate=0.5, optimizer="sgd", weight_decay=5e-4)


@pytest.mark.parametrize("steps", [4, 10, 101])
def test_one_cycle_is_that_of_pytorch(steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2.0, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        assert 2.0 * one_cycle(step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        if step + 1 < steps:
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_few_steps_is_a_rate(steps: int) -> None:
    assert all(0 < one_cycle(step, steps) <= 1 for step in range(steps))


def test_the_step_schedule_divides_by_ten_three_times() -> None:
    optimizer = make_optimizer(build_network(NetworkSettings("lenet", dropout=0.0), 5), SETTINGS)
    rates = [set_learning_rate(optimizer, "step", step, 8) for step in range(8)]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])


def test_only_weights_decay_and_the_head_has_its_own_rate() -> None:
    network = build_network(NetworkSettings("mnist-cnn", dropout=0.0), 5)
    settings = TrainSettings(epochs=1, batch_size=8, learning_rate=0.1, weight_decay=0.01, head_learning_rate=1.0)
    optimizer = make_optimizer(network, settings)
    set_learning_rate(optimizer, "step", 0, 4)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == set(names.values())
    assert (found["features.0.weight"], found["features.0.bias"]) == ((0.1, 0.01), (0.1, 0.0))
    assert found["features.1.weight"] == (0.1, 0.0)
    head = list(layer_paths(network).values())[-1]
    assert (found[f"{head}.weight"], found[f"{head}.bias"]) == ((1.0, 0.01), (1.0, 0.0))


def test_the_papers_initialisation() -> None:
    torch.manual_seed(0)
    network = build_network(NetworkSettings("alexnet-mnist"), 10)
    initialise(network, "paper")
    biases = {}
    for name, path in layer_paths(network).items():
        layer = network.get_submodule(path)
        assert isinstance(layer.weight, torch.Tensor)
        assert isinstance(layer.bias, torch.Tensor)
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
        biases[name] = set(layer.bias.tolist())
    assert biases == {
        **{name: {0.0} for name in ("conv1", "conv3", "fc8")},
        **{name: {1.0} for name in ("conv2", "conv4", "conv5", "fc6", "fc7")},
    }


def test_he_initialisation_keeps_the_scale_of_the_signal() -> None:
    torch.manual_seed(0)
    network = build_network(NetworkSettings("alexnet-mnist", lrn=False), 10)
    initialise(network, "he")
    first = network.get_submodule("features.0")
    assert isinstance(first.weight, torch.Tensor)
    assert float(first.weight.detach().std()) == pytest.approx((2 / 9) ** 0.5, rel=0.1)


def test_freezing_leaves_the_named_layers_and_the_statistics_of_the_others() -> None:
    network = build_network(NetworkSettings("mnist-cnn", dropout=0.0), 5)
    freeze(network, ("fc6", "conv1"))
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {
        *("features.0.weight", "features.0.bias", "classifier.3.weight", "classifier.3.bias")
    }
    set_training(network)
    assert [m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d)] == [False] * 4
    freeze(network, ("fc",))
    assert {n.partition(".")[0] for n, p in network.named_parameters() if p.requires_grad} == {"classifier"}


def test_a_layer_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="no layer 'fc9' to train; this network has conv1, conv2, fc3, fc4, fc5"):
        freeze(build_network(NetworkSettings("lenet", dropout=0.0), 5), ("fc5", "fc9"))

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from alexdeploy import files
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import InputError, UsageError
from alexdeploy.metrics import topk_accuracy
from alexdeploy.recipe import load_recipe
from alexdeploy.zoo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, untrained
from alexdeploy.zoo.registry import build_network
from tests.helpers.shared_data import SHARED_DATA, needs_shared_data


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """Three classes with names, settings and metrics that no default has."""
    fresh = untrained("alexnet-mnist", 3, seed=0)
    recipe = msgspec.structs.replace(
        fresh.recipe, network=msgspec.structs.replace(fresh.recipe.network, lrn=False, dropout=0.25)
    )
    contract = msgspec.structs.replace(fresh.contract, labels=("a", "b", "c"), mean=(0.4,))
    return Checkpoint(build_network(recipe.network, 3), recipe, contract, 3, {"top1": 0.75, "loss": 0.5})


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The state dict of an ``alexnet-mnist`` for three classes."""
    return dict(untrained("alexnet-mnist", 3, seed=0).model.state_dict())


def _bare(path: Path, weights: dict[str, Tensor], **metadata: str) -> Path:
    safetensors.torch.save_file(weights, path, metadata or None)
    return path


def _assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0)


def test_a_checkpoint_survives_the_round_trip(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, checkpoint)
    found = load_checkpoint(path)
    _assert_same_weights(found.model.state_dict(), checkpoint.model.state_dict())
    assert (found.recipe, found.contract, found.classes) == (checkpoint.recipe, checkpoint.contract, 3)
    assert found.metrics == {"top1": 0.75, "loss": 0.5}
    assert not found.model.training


def test_a_saved_checkpoint_has_a_sidecar_with_its_origin_and_metrics(tmp_path: Path, checkpoint: Checkpoint) -> None:
    origin = files.Parent("start.safetensors", "0" * 64)
    save_checkpoint(tmp_path / "model.safetensors", checkpoint, (origin,))
    sidecar = files.read_sidecar(tmp_path / "model.safetensors")
    assert (sidecar.kind, sidecar.parents) == ("checkpoint", (origin,))
    assert sidecar.details == {"metrics": checkpoint.metrics, "contract": checkpoint.contract.fingerprint}


def test_a_checkpoint_may_be_named_again_but_not_otherwise(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, checkpoint)
    assert load_checkpoint(path, "alexnet-mnist").recipe == checkpoint.recipe
    with pytest.raises(UsageError, match="holds 'alexnet-mnist', not 'alexnet'"):
        load_checkpoint(path, "alexnet")


def test_a_bare_state_dict_takes_the_contract_of_the_network(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    found = load_checkpoint(_bare(tmp_path / "bare.safetensors", weights), "alexnet-mnist")
    _assert_same_weights(found.model.state_dict(), weights)
    assert (found.recipe, found.contract) == (load_recipe("alexnet-mnist"), load_recipe("alexnet-mnist").preprocess)
    assert (found.classes, found.metrics, found.model.training) == (3, {}, False)


def test_a_bare_state_dict_needs_its_network_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(UsageError, match=r"bare state dict does not say which network.*`network`"):
        load_checkpoint(_bare(tmp_path / "bare.safetensors", weights))


def test_a_bare_state_dict_for_an_unknown_network_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(UsageError, match="did you mean 'alexnet-mnist'"):
        load_checkpoint(_bare(tmp_path / "bare.safetensors", weights), "alexnet-mnits")


def test_the_classes_entry_of_a_bare_state_dict_gives_the_labels(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = _bare(tmp_path / "bare.safetensors", weights, classes="ant,bee,cow")
    assert load_checkpoint(path, "alexnet-mnist").contract.labels == ("ant", "bee", "cow")


def test_bare_weights_may_have_been_trained_with_other_preprocessing(
    tmp_path: Path, weights: dict[str, Tensor], checkpoint: Checkpoint
) -> None:
    path = _bare(tmp_path / "bare.safetensors", weights, classes="ant,bee,cow")
    other = msgspec.structs.replace(load_recipe("alexnet-mnist").preprocess, mean=(0.25,))
    found = load_checkpoint(path, "alexnet-mnist", other)
    assert found.contract == msgspec.structs.replace(other, labels=("ant", "bee", "cow"))
    assert found.recipe.preprocess == other
    save_checkpoint(tmp_path / "ours.safetensors", checkpoint)
    with pytest.raises(UsageError, match="leave `contract` out"):
        load_checkpoint(tmp_path / "ours.safetensors", contract=other)


def test_labels_for_other_outputs_are_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = _bare(tmp_path / "bare.safetensors", weights, classes="ant,bee")
    with pytest.raises(InputError, match="names 2 labels but has 3 outputs"):
        load_checkpoint(path, "alexnet-mnist")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(tmp_path: Path, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    half = {name: weight.to(dtype) for name, weight in weights.items()}
    found = load_checkpoint(_bare(tmp_path / "bare.safetensors", half), "alexnet-mnist")
    _assert_same_weights(found.model.state_dict(), {name: weight.float() for name, weight in half.items()})


def test_weights_that_do_not_fit_are_named_layer_by_layer(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    changed = {**weights, "features.0.weight": torch.zeros(64, 3, 3, 3), "head.bias": torch.zeros(3)}
    del changed["features.4.bias"]
    with pytest.raises(InputError, match="into 'alexnet-mnist'") as caught:
        load_checkpoint(_bare(tmp_path / "bare.safetensors", changed), "alexnet-mnist")
    assert "features.0.weight has shape (64, 3, 3, 3), expected (64, 1, 3, 3)" in str(caught.value)
    assert "features.4.bias is missing" in str(caught.value)
    assert str(caught.value).endswith("; not part of the network: head.bias")


def test_the_weights_of_another_network_are_counted_after_the_first_few(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    wrong = r"into 'alexnet-half': features.0.weight has shape .* and 10 more; not part of the network: .*; "
    with pytest.raises(InputError, match=wrong + "its shapes are those of alexnet-mnist$"):
        load_checkpoint(_bare(tmp_path / "bare.safetensors", weights), "alexnet-half")


def test_weights_without_a_fully_connected_layer_are_refused(tmp_path: Path) -> None:
    path = _bare(tmp_path / "bare.safetensors", {"features.0.weight": torch.zeros(64, 1, 3, 3)})
    with pytest.raises(InputError, match=r"features\.4\.weight is missing.*and 12 more; no network of the zoo is"):
        load_checkpoint(path, "alexnet-mnist")


@pytest.mark.parametrize("share", [0.0, 0.0000005, 0.00005, 0.5, 0.9999999])
def test_a_truncated_file_is_refused(tmp_path: Path, weights: dict[str, Tensor], share: float) -> None:
    data = safetensors.torch.save(weights)
    path = tmp_path / "model.safetensors"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"model\.safetensors: .*(not a safetensors file|empty)"):
        load_checkpoint(path, "alexnet-mnist")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x80\x02}q\x00." * 20, "not PyTorch weights"),
        (b"PK\x03\x04" * 50, "not PyTorch weights"),
        (b"\xff" * 100, "not a safetensors file, .*it begins with b'.xff"),
        (b"<!DOCTYPE html>", "not a safetensors file, .*DOCTYPE"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=rf"model\.safetensors: {complaint}"):
        load_checkpoint(tmp_path / "model.safetensors", "alexnet-mnist")


@pytest.mark.parametrize("entry", ["recipe", "contract", "metrics"])
def test_metadata_that_cannot_be_read_is_refused(tmp_path: Path, checkpoint: Checkpoint, entry: str) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, checkpoint)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), f"alexdeploy.{entry}": '{"garbled'}
    safetensors.torch.save_file(checkpoint.model.state_dict(), path, metadata)
    with pytest.raises(InputError, match=rf"model\.safetensors: .*{entry}"):
        load_checkpoint(path)


def test_untrained_weights_come_from_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = untrained("alexnet-mnist", 5, seed=7).model.state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    _assert_same_weights(untrained("alexnet-mnist", 5, seed=7).model.state_dict(), first)
    assert not torch.equal(
        untrained("alexnet-mnist", 5, seed=8).model.state_dict()["features.0.weight"], first["features.0.weight"]
    )


@needs_shared_data
def test_the_published_half_width_weights_recognise_flowers() -> None:
    path = SHARED_DATA / "checkpoints" / "alexnet-half-lrn-flowers.safetensors"
    found = load_checkpoint(path, "alexnet-half")
    flowers = load_dataset(str(SHARED_DATA / "flowers"), "train").subset(60)
    flowers = flowers.labelled(found.contract, found.classes, path.name)
    logits, labels = [], []
    with torch.inference_mode():
        for images, truth in flowers.batches(found.contract, 20):
            logits.append(found.model(torch.from_numpy(images)).numpy())
            labels.append(truth)
    assert topk_accuracy(np.concatenate(logits), np.concatenate(labels), 1) > 0.7

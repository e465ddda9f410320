"""Whole runs: LeNet on a few of scikit-learn's digits, a fraction of a second per epoch."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from alexdeploy import files
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import InputError, InputWarning, UnavailableError, UsageError
from alexdeploy.recipe import Recipe, load_recipe, with_train_options
from alexdeploy.train import Step, TrainingDivergedError, TrainResult, loop, run, train_network
from alexdeploy.train.processes import Processes, join_processes
from alexdeploy.train.progress import epochs_logged
from alexdeploy.zoo.checkpoint import load_checkpoint
from tests.unit.cuda.test_wheels import TORCH, gpu_with, install

ROOT = Path(__file__).resolve().parents[3]
LEARN, JUDGE = load_dataset("digits", "train").subset(150), load_dataset("digits", "val").subset(60)
TEST = load_dataset("digits", "val").subset(90)


def _recipe(**options: Any) -> Recipe:
    recipe = load_recipe("lenet")
    network = msgspec.structs.replace(recipe.network, dropout=0.2)
    defaults = {"epochs": 3, "batch_size": 32, "augment": "crop-mirror", "fancy_pca": 0.1, "label_smoothing": 0.1}
    defaults["rotate"] = 5.0
    return with_train_options(msgspec.structs.replace(recipe, network=network), **{**defaults, **options})


def _train(folder: Path, recipe: Recipe, learn: ImageDataset = LEARN, **options: Any) -> TrainResult:
    folder.mkdir(exist_ok=True)
    return train_network(recipe, learn, JUDGE, folder / "net.safetensors", device="cpu", **options)


def _last(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / "net.last.pt", weights_only=True)["model"]
    return found


def _interrupt_at(number: int, seen: list[Step] | None = None) -> Callable[[Step], None]:
    def on_step(step: Step) -> None:
        if seen is not None:
            seen.append(step)
        if step.done == number:
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult, list[Step]]:
    """An uninterrupted run: its folder, result and steps."""
    folder = tmp_path_factory.mktemp("whole")
    steps: list[Step] = []
    return folder, _train(folder, _recipe(), on_step=steps.append), steps


def test_a_run_leaves_best_last_log_and_curves(whole: tuple[Path, TrainResult, list[Step]]) -> None:
    folder, result, steps = whole
    assert sorted(path.name for path in folder.iterdir()) == [
        *("class_indices.json", "net.jsonl", "net.last.pt", "net.png", "net.safetensors", "net.safetensors.json")
    ]
    assert [step.done for step in steps] == list(range(1, 16))
    assert (folder / "net.png").read_bytes().startswith(b"\x89PNG")
    log = msgspec.json.Decoder(dict[str, float]).decode_lines((folder / "net.jsonl").read_bytes())
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert max(line["top1"] for line in log) == result.top1
    assert load_checkpoint(folder / "net.safetensors").metrics["top1"] == result.top1
    assert load_checkpoint(folder / "net.last.pt", "lenet").classes == 10


@pytest.mark.parametrize("stop", [3, 5, 11])
def test_a_resumed_run_is_to_the_bit_one_that_was_never_interrupted(
    stop: int, whole: tuple[Path, TrainResult, list[Step]], tmp_path: Path
) -> None:
    folder, expected, steps = whole
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, _recipe(), on_step=_interrupt_at(stop))
    seen: list[Step] = []
    result = _train(tmp_path, _recipe(), resume=True, on_step=seen.append)
    assert [(step.done, step.loss) for step in seen] == [(step.done, step.loss) for step in steps[stop:]]
    assert [(e.train_loss, e.train_top1, e.val_loss, e.top1) for e in result.epochs] == [
        (e.train_loss, e.train_top1, e.val_loss, e.top1) for e in expected.epochs
    ]
    for name, weight in _last(folder).items():
        assert torch.equal(_last(tmp_path)[name], weight), name
    best, again = (load_checkpoint(path / "net.safetensors") for path in (folder, tmp_path))
    assert again.metrics == best.metrics
    for name, weight in best.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name


def _right(path: Path, images: ImageDataset) -> int:
    """How many images the checkpoint answers rightly, by hand."""
    checkpoint = load_checkpoint(path)
    checkpoint.model.eval()
    ((inputs, labels),) = images.batches(checkpoint.contract, len(images))
    with torch.inference_mode():
        return int(np.sum(checkpoint.model(torch.from_numpy(inputs)).numpy().argmax(1) == labels))


def test_the_training_accuracy_is_that_of_the_images_as_they_were_learnt(tmp_path: Path) -> None:
    recipe = load_recipe("lenet")  # no dropout; one step, so small that the weights stay what they were
    settings = {"augment": "none", "epochs": 1, "batch_size": 200, "learning_rate": 1e-12, "precision": "fp32"}
    (epoch,) = _train(tmp_path, with_train_options(recipe, **settings)).epochs
    assert epoch.train_top1 == _right(tmp_path / "net.safetensors", LEARN) / len(LEARN)


def test_the_best_checkpoint_is_tried_on_test_images_that_choose_nothing(
    whole: tuple[Path, TrainResult, list[Step]], tmp_path: Path
) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    before = (folder / "net.safetensors").read_bytes()
    result = _train(folder, _recipe(), resume=True, test=TEST)
    assert result.test is not None
    assert result.test.test_top1 == _right(folder / "net.safetensors", TEST) / len(TEST)
    assert (folder / "net.safetensors").read_bytes() == before
    log = (folder / "net.jsonl").read_bytes().splitlines()
    assert (len(log), epochs_logged(folder / "net.jsonl")) == (4, 3)
    assert msgspec.json.decode(log[-1]) == msgspec.to_builtins(result.test)
    with pytest.raises(InputError, match="name different classes"):
        _train(tmp_path / "other", _recipe(), test=replace(TEST, classes=tuple("abcdefghij")))


def test_a_log_that_is_none_has_no_epochs(tmp_path: Path) -> None:
    for damaged in (b'{"\xff": 1}', b"[" * 5000, b"{"):
        (tmp_path / "net.jsonl").write_bytes(damaged)
        assert epochs_logged(tmp_path / "net.jsonl") == 0


def _measured_share(monkeypatch: pytest.MonkeyPatch, share: float, *, present: bool = True) -> None:
    """A CPU on which bfloat16 takes ``share`` of float32's time."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: present)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(run, "bf16_time_share", lambda: share)


@pytest.mark.parametrize(
    ("precision", "share", "present", "expected"),
    [
        ("auto", 0.5, True, True),
        ("auto", 1.5, True, False),
        ("auto", 0.5, False, False),
        ("bf16", 1.5, True, True),
        ("fp32", 0.5, True, False),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster(
    precision: str, share: float, present: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _measured_share(monkeypatch, share, present=present)
    assert run.uses_bf16(precision, Processes(0, 1, torch.device("cpu"))) is expected


def test_a_run_keeps_its_arithmetic_where_it_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _measured_share(monkeypatch, 0.5)
    _train(tmp_path / "whole", _recipe())
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "parts", _recipe(), on_step=_interrupt_at(7))
    _measured_share(monkeypatch, 1.5)
    _train(tmp_path / "parts", _recipe(), resume=True)
    _train(tmp_path / "other", _recipe())
    weights = {name: _last(tmp_path / name)["classifier.0.weight"] for name in ("whole", "parts", "other")}
    assert torch.equal(weights["parts"], weights["whole"])
    assert not torch.equal(weights["other"], weights["whole"])


def test_a_state_of_an_older_version_is_resumed_as_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _measured_share(monkeypatch, 0.5)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, _recipe(), on_step=_interrupt_at(7))
    kept = torch.load(tmp_path / "net.last.pt", weights_only=True)
    assert kept["state"].pop("bf16") is True
    del kept["state"]["correct"], kept["state"]["epochs"][0]["train_top1"], kept["identity"]["rotate"]
    torch.save(kept, tmp_path / "net.last.pt")
    result = _train(tmp_path, _recipe(rotate=0.0), resume=True)
    assert result.bf16
    assert [math.isnan(epoch.train_top1) for epoch in result.epochs] == [True, True, False]


def test_resuming_a_run_that_ended_changes_nothing(whole: tuple[Path, TrainResult, list[Step]]) -> None:
    folder, expected, _ = whole
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert _train(folder, _recipe(), resume=True).epochs == expected.epochs
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_seed_decides_everything(whole: tuple[Path, TrainResult, list[Step]], tmp_path: Path) -> None:
    again: list[Step] = []
    torch.rand(3)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "again", _recipe(), on_step=_interrupt_at(2, again))
    other: list[Step] = []
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "other", _recipe(seed=1), on_step=_interrupt_at(2, other))
    assert [s.loss for s in again] == [s.loss for s in whole[2][:2]]
    assert [s.loss for s in again] != [s.loss for s in other]


def test_resume_refuses_other_settings_other_images_and_what_is_no_state(
    whole: tuple[Path, TrainResult, list[Step]], tmp_path: Path
) -> None:
    folder = whole[0]
    with pytest.raises(
        UsageError,
        match=r"net.last.pt belongs to .*\(epochs was 3, now 4\).*best weights of this one stay in /.*net\.safet",
    ):
        _train(folder, _recipe(epochs=4), resume=True)
    with pytest.raises(UsageError, match=r"other settings \(images was"):
        _train(folder, _recipe(), LEARN.subset(140), resume=True)
    with pytest.raises(InputError, match="no run to resume"):
        _train(tmp_path, _recipe(), resume=True)
    data = (folder / "net.last.pt").read_bytes()
    for broken in (data[: len(data) // 2], b"no state", data[:-1]):
        (tmp_path / "net.last.pt").write_bytes(broken)
        with pytest.raises(InputError, match="not the state of a training run"):
            _train(tmp_path, _recipe(), resume=True)


def test_a_loss_that_is_no_number_stops_with_advice_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    recipe = _recipe(optimizer="sgd", learning_rate=1e6, schedule="step", augment="none")
    with pytest.raises(
        TrainingDivergedError, match=r"loss became (nan|inf) at step \d+, learning rate 1e\+06; try `lr` 2e"
    ):
        _train(tmp_path, recipe)
    assert list(tmp_path.iterdir()) == []


def test_the_advice_is_a_fifth_of_the_rate_that_was_set_not_of_the_warm_up_s(tmp_path: Path) -> None:
    recipe = _recipe(optimizer="sgd", learning_rate=1e6, schedule="one-cycle", augment="none", epochs=9)
    with pytest.raises(
        TrainingDivergedError, match=r"at step [2-9], learning rate \S+e\+04 of `lr` 1e\+06; try `lr` 2e\+05"
    ):
        _train(tmp_path, recipe)


def test_a_run_that_ends_no_better_than_chance_with_a_huge_loss_says_so(tmp_path: Path) -> None:
    recipe = _recipe(optimizer="adam", learning_rate=10.0, schedule="step", augment="none", epochs=1)
    told = r"learned nothing: .* of 10 classes is chance, training loss \d.*; try a much smaller `lr` than 10$"
    with pytest.warns(InputWarning, match=told):
        _train(tmp_path, recipe)


def test_weights_that_the_last_step_of_an_epoch_ruins_are_not_kept(tmp_path: Path) -> None:
    recipe = _recipe(optimizer="sgd", learning_rate=1e30, schedule="step", augment="none", batch_size=150, epochs=1)
    with pytest.raises(
        TrainingDivergedError, match=r"the held-out loss became (nan|inf) after epoch 1, learning rate 1e"
    ):
        _train(tmp_path, recipe)
    assert list(tmp_path.iterdir()) == []


def test_frozen_layers_keep_the_weights_they_start_from(
    whole: tuple[Path, TrainResult, list[Step]], tmp_path: Path
) -> None:
    start = whole[0] / "net.safetensors"
    _train(tmp_path, _recipe(epochs=1, train_layers=("fc",), head_learning_rate=0.01), weights=start)
    before, after = load_checkpoint(start).model.state_dict(), _last(tmp_path)
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier"}
    assert files.read_sidecar(tmp_path / "net.safetensors").parents == (files.parent(start),)


def test_the_weights_a_run_starts_from_are_not_overwritten(tmp_path: Path) -> None:
    start = _train(tmp_path, _recipe(epochs=1)).path
    before = start.read_bytes()
    with pytest.raises(UsageError, match="it is what this reads"):
        _train(tmp_path, _recipe(epochs=1), weights=start)
    assert start.read_bytes() == before


def test_a_new_run_replaces_nothing_of_an_earlier_one(
    whole: tuple[Path, TrainResult, list[Step]], tmp_path: Path
) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        UsageError, match=r"copy: holds .* and 2 more of an earlier run.*\(`resume`, with .* folder for other"
    ):
        _train(folder, _recipe(epochs=1))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for name in ("net.jsonl", "net.last.pt", "net.png", "net.safetensors.json"):
        (folder / name).unlink()
    with pytest.raises(UsageError, match=r"holds net\.safetensors of an earlier run, .*; name another folder, or move"):
        _train(folder, _recipe(epochs=1))
    (folder / "net.safetensors").unlink()
    (folder / "class_indices.json").write_text('{"daisy": 0, "roses": 1}')
    with pytest.raises(
        UsageError, match=r"names other classes \(daisy, roses\) than these images \(0, 1, 2 and 7 more"
    ):
        _train(folder, _recipe(epochs=1))
    (folder / "class_indices.json").write_text("garbage")
    with pytest.raises(UsageError, match=r"not a class_indices\.json .*name another folder"):
        _train(folder, _recipe(epochs=1))
    assert [path.name for path in folder.iterdir()] == ["class_indices.json"]


def test_a_run_whose_best_weights_are_gone_is_not_resumed(
    whole: tuple[Path, TrainResult, list[Step]], tmp_path: Path
) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    (folder / "net.safetensors").unlink()
    with pytest.raises(InputError, match=r"net\.safetensors: no such file, though net\.last\.pt goes on"):
        _train(folder, _recipe(), resume=True)


def test_a_folder_is_held_by_one_run_at_a_time_and_free_when_that_is_killed(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from alexdeploy import locks\n"
    code += "with locks.claimed(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match="another run is writing there; wait for its end or name another"):
            _train(tmp_path, _recipe(epochs=1))
        assert list(tmp_path.iterdir()) == []
    finally:
        other.kill()
        other.communicate()
    _train(tmp_path, _recipe(epochs=1))
    _train(tmp_path, _recipe(epochs=1), resume=True)  # and the run before has let go


def test_two_threads_are_two_runs(tmp_path: Path) -> None:
    refused: list[UsageError] = []

    def begin_another(step: Step) -> None:
        def start() -> None:
            with pytest.raises(UsageError, match="another run is writing there") as caught:
                _train(tmp_path, _recipe(epochs=1), resume=True)
            refused.append(caught.value)

        if step.done == 1:
            thread = threading.Thread(target=start)
            thread.start()
            thread.join()

    _train(tmp_path, _recipe(epochs=1), on_step=begin_another)
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("when", "epoch"),
    [("save_state", 1), ("write_class_names", 1), ("save_checkpoint", 1), ("save_state", 3), ("write_curves", 2)],
)
def test_a_run_that_stops_while_it_writes_leaves_files_that_resume_makes_one(
    when: str, epoch: int, whole: tuple[Path, TrainResult, list[Step]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(loop, when), []

    def killed(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        calls.append(when)
        if len(calls) == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, when, killed)
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path, _recipe())
    result = _train(tmp_path, _recipe(), resume=True)
    assert [(e.train_loss, e.top1) for e in result.epochs] == [(e.train_loss, e.top1) for e in whole[1].epochs]
    assert load_checkpoint(tmp_path / "net.safetensors").metrics == load_checkpoint(whole[1].path).metrics
    expected = load_checkpoint(whole[1].path).model.state_dict()
    for name, weight in load_checkpoint(tmp_path / "net.safetensors").model.state_dict().items():
        assert torch.equal(weight, expected[name])
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole[0].iterdir()}
    assert len((tmp_path / "net.jsonl").read_bytes().splitlines()) == len(result.epochs)


def _command(out: Path, *options: str) -> list[str]:
    arguments = ["-m", "alexdeploy", "train", "lenet", "--data", "digits", "--epochs", "3", "--device", "cpu"]
    return [*arguments, "--batch-size", "16", "--out", str(out), *options]


def test_a_run_killed_anywhere_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    last, best, log = (tmp_path / f"lenet.{ending}" for ending in ("last.pt", "safetensors", "jsonl"))
    run = subprocess.Popen([sys.executable, *_command(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not log.exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(torch.rand(1).item() * 0.5)
    finally:
        run.kill()
        run.wait()
    epochs_kept = len(torch.load(last, weights_only=True)["state"]["epochs"])
    assert epochs_kept >= 1
    assert files.read_sidecar(best).kind == "checkpoint"
    done = subprocess.run(
        [sys.executable, *_command(tmp_path, "--resume")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("epoch ") == 3 - epochs_kept
    assert not list(tmp_path.glob(".*partial")) or epochs_kept < 3


PROCESSES = """
import os, sys
assert os.environ["WORLD_SIZE"] == "2"
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.unit.train.test_train import equal_steps
equal_steps(Path({folder!r}))
"""


def equal_steps(folder: Path) -> TrainResult:
    """20 steps at a global batch of 15; the last of each epoch has one image, which leaves a second process none."""
    recipe = load_recipe("lenet")
    settings = {"optimizer": "sgd", "learning_rate": 0.05, "augment": "crop-mirror", "epochs": 4, "batch_size": 15}
    settings["precision"] = "fp32"  # bfloat16 would round each share of a gradient
    return _train(folder, with_train_options(recipe, **settings), LEARN.subset(61))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
@pytest.mark.parametrize(
    "launch",
    [
        "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 "
        "--mixed_precision no --dynamo_backend no",
        "-m torch.distributed.run --standalone --nproc_per_node 2",
    ],
    ids=["accelerate", "torchrun"],
)
def test_two_processes_learn_what_one_does_and_only_the_first_writes(tmp_path: Path, launch: str) -> None:
    assert len(equal_steps(tmp_path / "one").epochs) == 4
    code = PROCESSES.format(root=str(ROOT), folder=str(tmp_path / "two"))
    script = tmp_path / "run.py"
    script.write_text(code)
    command = [sys.executable, *launch.split(), str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = _last(tmp_path / "one"), _last(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    logs = [
        msgspec.json.Decoder(dict[str, float]).decode_lines((tmp_path / name / "net.jsonl").read_bytes())
        for name in ("one", "two")
    ]
    assert [len(log) for log in logs] == [4, 4]
    for alone, together in zip(*logs, strict=True):
        assert together["train_top1"] == pytest.approx(alone["train_top1"], abs=1 / 61)


def test_a_launcher_that_starts_one_process_of_several_is_not_taken_for_a_run_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what accelerate launch --cpu --num_processes 2 leaves
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UsageError, match=r"started one; .*torchrun"):
        equal_steps(tmp_path)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (
            {"classes": ("0",), "labels": np.zeros(150, np.int64)},
            "only one class, '0'; a classifier needs at least two",
        ),
        (
            {"labels": np.full(150, -1), "unlabelled": "x has no labels"},
            "x has no labels; training needs images in class",
        ),
        ({"name": JUDGE.name}, "is not split, and nothing would be held out; use class folders"),
    ],
)
def test_images_that_cannot_teach_are_refused(changed: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        _train(tmp_path, _recipe(), replace(LEARN, **changed))


def test_a_driver_too_old_for_pytorch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "torch", "2.14.1", "torch/version.py", TORCH)
    gpu_with(monkeypatch, "12.4")
    reason = r"torch 2\.14\.1 needs CUDA 13 and the driver runs CUDA 12\.4; install an NVIDIA driver of 580 or newer"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("PyTorch warns in six lines"))
    with pytest.raises(UnavailableError, match=f"`device` cuda: {reason}"), join_processes("cuda"):
        pass
    with pytest.warns(InputWarning, match=f"PyTorch trains on the CPU: {reason}"), join_processes("auto") as processes:
        assert processes.device == torch.device("cpu")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UnavailableError, match="`device` cuda:2: PyTorch finds 2 CUDA devices"),
        join_processes("cuda:2"),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="`device` cuda:1 is for one process"), join_processes("cuda:1"):
        pass
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with join_processes("cuda:1") as processes:
        assert processes.device == torch.device("cuda", 1)

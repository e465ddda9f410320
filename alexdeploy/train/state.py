"""Everything a run needs to go on exactly where it was, in one file that is only ever replaced as a whole."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from alexdeploy import files
from alexdeploy.errors import InputError, UsageError
from alexdeploy.train.progress import Epoch


@dataclass
class State:
    """The position of a run.

    Random choices are functions of seed and step, so no generator needs saving.

    Attributes:
        bf16: the run computes in bfloat16, wherever it goes on; None while that is open.
        step: steps done, over all epochs.
        loss_sum, correct, images, seconds: of the epoch begun: summed loss, images answered rightly, images seen,
            time spent.
        best: highest held-out top-1 so far.
        epochs: those that ended.
    """

    bf16: bool | None = None
    step: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    images: int = 0
    seconds: float = 0.0
    best: float = -1.0
    epochs: list[Epoch] = field(default_factory=list)


def save_state(
    path: Path, state: State, identity: dict[str, Any], model: dict[str, Any], optimizer: dict[str, Any]
) -> None:
    """Write atomically; ``identity`` is what a run must have in common with this one to continue it."""
    content = io.BytesIO()
    kept = {"state": msgspec.to_builtins(state), "identity": identity, "model": model, "optimizer": optimizer}
    torch.save(kept, content)
    files.write_bytes(path, content.getbuffer())


def load_state(path: Path, identity: dict[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """The position as ``save_state`` wrote it; ``model`` and ``optimizer`` take over what it has of them.

    Raises:
        InputError: missing, or not such a file; ``model`` may have been changed by then.
        UsageError: it belongs to a run with other settings or other images (named).
    """
    if not path.exists():
        raise InputError(f"{path}: no such file, so there is no run to resume; start one without `resume`")
    files.check_input(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle, of typed storages, of tensors where numbers stand
            kept = torch.load(path, map_location="cpu", weights_only=True)
            # older versions did not count the right answers, and did not rotate
            state = msgspec.convert({"correct": math.nan, **kept["state"]}, State)
        found = {"rotate": 0.0, **kept["identity"]}
        other = [key for key in sorted({*identity, *found}) if identity.get(key) != found.get(key)]
        if not other:
            model.load_state_dict(kept["model"])
            optimizer.load_state_dict(kept["optimizer"])
            _check_shapes(optimizer)
    except Exception as error:  # torch.load raises what its zip reader and its unpickler raise
        raise InputError(
            f"{path}: not the state of a training run ({type(error).__name__}); name another folder for a new run"
        ) from error
    if other:
        differences = "; ".join(f"{key} was {found.get(key)}, now {identity.get(key)}" for key in other[:3])
        best = path.with_name(path.name.removesuffix(".last.pt") + ".safetensors")
        kept_best = f"; the best weights of this one stay in {best}" if best.exists() else ""
        raise UsageError(
            f"{path} belongs to a run with other settings ({differences}); repeat them to resume it, or name another "
            f"folder for a new run{kept_best}"
        )
    return state


def _check_shapes(optimizer: torch.optim.Optimizer) -> None:
    """What it keeps of a parameter has its shape, or is a number; PyTorch would say so at the first step."""
    for parameter, kept in optimizer.state.items():
        if any(isinstance(value, Tensor) and value.shape not in (parameter.shape, ()) for value in kept.values()):
            raise ValueError("the optimizer's state is for other parameters")

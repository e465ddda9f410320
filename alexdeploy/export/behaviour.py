"""What a module must not do for a file to be able to hold it: draw random numbers, remember, or mix its images."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from alexdeploy.errors import InputError, few, in_a_line
from alexdeploy.metrics import PARITY_TOLERANCE, relative_error

_MIXED = 1e-3  # another batch size is other arithmetic: about 1e-6; another image in a batch's mean is 1e-1
_CHANGES = "the network's output changes from call to call in eval mode"
_CALLS = 8  # a layer dropped in half of the calls stays in all of them once in 128 times


def check_logits(module: nn.Module, images: Tensor, logits: Tensor) -> None:
    """Refuse logits of ``images`` that are none, naming what made them.

    Raises:
        InputError: another type than float32, or than float64 at the end of a float32 network; NaN or infinity.
    """
    is_double = any(tensor.dtype == torch.float64 for tensor in module.parameters())  # which ONNX Runtime has not
    if logits.dtype not in (torch.float32, torch.float64) or (is_double and logits.dtype == torch.float64):
        raise InputError(
            f"the network returns {_name(logits)} for float32; make it float32 with module.float(), or end forward "
            "with .float()"
        )
    if logits.isfinite().all():
        return
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.isnan().any() or (tensor.isinf().any() and isinstance(tensor, nn.Parameter)):
            bad = int((~tensor.isfinite()).sum())
            raise InputError(
                f"the network's logits are NaN or infinite; its '{name}' holds {bad} such values (of "
                f"{tensor.numel()}); take a checkpoint from before they arose"
            )
    where = _first_not_finite(module, images)
    raise InputError(
        f"the network's logits are NaN or infinite for random images, though its weights are finite{where}"
    )


def check_steady(module: nn.Module, images: Tensor, logits: Tensor) -> None:
    """Refuse a module that answers ``images`` otherwise than with ``logits``, or one image otherwise than in a batch.

    Raises:
        InputError: random numbers, state that changes, images that see each other, or logits of another number for
            one image; the module at fault is named.
    """
    mixed = not _same(_one_by_one(module, images, logits), logits, _MIXED)
    cause = why_unsteady(module, images, logits, calls=_CALLS if mixed else 1)
    if cause:
        raise InputError(cause)
    if mixed:
        raise InputError(_mixed(_batch_norms(module)))


def _one_by_one(module: nn.Module, images: Tensor, logits: Tensor) -> Tensor:
    """The logits of each image alone, in the shape of ``logits``: squeeze() takes the axis of a single image too."""
    try:
        single = [module(image) for image in torch.split(images, 1)]
    except Exception as error:  # whatever the module's own code raises
        norms = _batch_norms(module)
        if norms:  # of a batch of one they have no statistics
            raise InputError(_mixed(norms)) from error
        raise InputError(f"the network answers two images and fails on one: {in_a_line(error)}") from error
    for answer in single:
        if not isinstance(answer, Tensor) or answer.numel() != logits[:1].numel():
            found = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
            raise InputError(
                f"the network returns {found} for one image and shape {tuple(logits.shape)} for two; expected logits "
                "of shape (1, classes)"
            )
    return torch.cat([answer.reshape(logits[:1].shape) for answer in single])


def _mixed(modules: str) -> str:
    return (
        f"the network's answer to an image depends on the other images in its batch{modules}; a classifier answers "
        "each image alone"
    )


def why_unsteady(module: nn.Module, images: Tensor, logits: Tensor, *, calls: int = _CALLS) -> str:
    """A sentence about the module that gives other logits in one of so many ``calls``; empty where none does."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    if all(_same(module(images), logits) for _ in range(calls)):
        return ""
    changed = [name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name])]
    answers = []
    for _ in range(2):
        with _seeded():
            answers.append(module(images))
    if not _same(*answers):
        what = f" and changes its {few(changed)}" if changed else ""
        return f"{_CHANGES}: it depends on earlier calls{what}; let it keep no state"
    drawn = _random_calls(module, images)
    fix = "draw them in training alone (dropout without training=self.training?)"
    where = f" in {few(drawn)}" if drawn else ", outside PyTorch (random, numpy.random)"
    return f"{_CHANGES}: it draws random numbers{where}; {fix}"


def _same(found: Tensor, expected: Tensor, tolerance: float = PARITY_TOLERANCE) -> bool:
    return relative_error(found.numpy(), expected.numpy()) <= tolerance


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _batch_norms(module: nn.Module) -> str:
    """The end of a message: the modules that are left in training mode, or else the norms without statistics."""
    training = [f"{name} ({type(part).__name__})" for name, part in module.named_modules() if part.training and name]
    if training:
        return f": in training mode, in spite of eval(): {few(training)}"
    bare = [
        f"{name} ({type(part).__name__})"
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not part.track_running_stats
    ]
    return f": without running statistics: {few(bare)}" if bare else ""


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """With the same random numbers as in any other such block; outside everything is as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class _Random(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operator that draws random numbers, and the module that is running."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, None] = {}
        self._running = running

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            name = func.overloadpacket.__name__
            self.found[f"{self._running[-1]} ({name})"] = None
        return func(*args, **(kwargs or {}))


def _random_calls(module: nn.Module, images: Tensor) -> list[str]:
    """What draws random numbers in PyTorch: ``features.2 (dropout)``."""
    running = [""]
    mode = _Random(running)
    with _hooks(module, running.append, lambda output: running.pop()), mode, torch.no_grad():
        module(images.clone())  # not one of inference mode, whose operators are not seen
    return list(mode.found)


def _first_not_finite(module: nn.Module, images: Tensor) -> str:
    """The first module, innermost, whose output is not finite."""
    running: list[str] = []
    found: list[str] = []

    def left(output: Any) -> None:
        name = running.pop()
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    with _hooks(module, running.append, left), torch.no_grad():
        module(images)
    return f"; they arise in {found[0]}" if found else ""


@contextlib.contextmanager
def _hooks(module: nn.Module, entered: Callable[[str], None], left: Callable[[Any], object]) -> Iterator[None]:
    handles = []
    for name, part in module.named_modules():
        told = f"{name or 'forward'} of {type(part).__name__}" if not name else f"{name}, a {type(part).__name__}"
        handles += [
            part.register_forward_pre_hook(lambda _, __, told=told: entered(told)),
            part.register_forward_hook(lambda _, __, output: left(output) and None),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

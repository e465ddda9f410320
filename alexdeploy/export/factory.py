"""A network that the zoo lacks: the module that the user's own code makes, with weights from a file."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from alexdeploy.errors import InputError, UnavailableError, UsageError, in_a_line, unknown_name
from alexdeploy.zoo.weight_files import read_weight_file
from alexdeploy.zoo.weights import load_weights, named_for

_CLASS_PARAMETERS = ("num_classes", "classes")


def build_module(
    reference: str, weights: Path | None = None, *, classes: int | None = None, seed: int = 0
) -> nn.Module:
    """Import and call ``package.module:factory``, and load ``weights`` into what it returns. This runs the user's code.

    Args:
        reference: a function or class that makes an ``nn.Module`` without arguments, or such a module; its own module
            is searched in the current directory first.
        weights: any file that ``read_weight_file`` takes; None keeps those that the factory brings.
        classes: passed to the factory's parameter ``num_classes`` or ``classes``.
        seed: of torch's generator while the factory runs.

    Returns:
        The network on the CPU, in float32 and in evaluation mode.

    Raises:
        InputError: there is no such module or name, the code fails, it makes something else, or weights do not fit.
        UnavailableError: the code needs a module that is not installed.
        UsageError: ``classes`` for a factory without such a parameter.
    """
    module, _, name = reference.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        made = _call(reference, _find(_import(module), name, module), classes, seed)
    finally:
        sys.path.remove(here)
    if not isinstance(made, nn.Module):
        raise InputError(f"{reference} returns {made!r:.60}; expected a torch.nn.Module")
    made = made.to("cpu", torch.float32).eval()
    if weights is not None:
        load_weights(made, named_for(read_weight_file(weights), made, str(weights)), f"{weights} into {reference}")
    return made


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.split(".")[: error.name.count(".") + 1] == error.name.split("."):
            raise InputError(
                f"no module '{error.name}' in {Path.cwd()} or among what is installed; run this where it can be "
                "imported"
            ) from error
        raise UnavailableError(f"{name} needs '{error.name}', which is not installed; install it") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise InputError(f"importing {name} failed: {in_a_line(error)}") from error


def _find(module: ModuleType, name: str, origin: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            offered = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            raise InputError(f"{origin}: {unknown_name('function or class', part, offered)}")
        found = getattr(found, part)
    return found


def _call(reference: str, factory: Any, classes: int | None, seed: int) -> Any:
    if not callable(factory):
        raise InputError(f"{reference} is {factory!r:.60}; expected a function or class that makes a torch.nn.Module")
    if isinstance(factory, nn.Module):
        factory = _returning(factory)
    given = {} if classes is None else {_class_parameter(reference, factory): classes}
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return factory(**given)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise InputError(f"{reference} failed: {in_a_line(error)}") from error


def _returning(module: nn.Module) -> Callable[[], nn.Module]:
    return lambda: module


def _class_parameter(reference: str, factory: Callable[..., Any]) -> str:
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in _CLASS_PARAMETERS:
        if name in parameters or takes_any:  # torchvision's functions hand on what they get
            return name
    raise UsageError(f"{reference} has no parameter {' or '.join(_CLASS_PARAMETERS)}; leave `classes` out")

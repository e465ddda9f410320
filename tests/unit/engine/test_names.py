"""Every name of TensorRT that the code uses exists in 10, 11 and RTX, and the engine double has no other."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.simulated_cuda import builder_double, engine_double

ROOT = Path(__file__).resolve().parents[3]
NAMES = json.loads((ROOT / "tests" / "references" / "tensorrt_names.json").read_text())  # {version: {class: members}}
USERS = [*(ROOT / "alexdeploy" / "engine").glob("*.py"), *(ROOT / "alexdeploy" / "runners").glob("*.py")]
# what one alone has; versions.py and the calibrator name it behind a question which one it is
ONLY = {
    "rtx": {
        ("", "ComputeCapability"),
        ("", "CudaGraphStrategy"),
        ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
        ("IRuntimeConfig", "cuda_graph_strategy"),
    },
    "10.16.1.11": {
        ("", "IInt8EntropyCalibrator2"),
        ("BuilderFlag", "INT8"),
        ("BuilderFlag", "FP16"),
        ("IBuilderConfig", "int8_calibrator"),
        ("IBuilderConfig", "set_calibration_profile"),
    },
}
FIELDS = {"_builder": "Builder", "_network": "INetworkDefinition", "_config": "IBuilderConfig"}  # of EngineBuild
RESULTS = {
    "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile",
    "get_error": "ParserError",
    "deserialize_cuda_engine": "ICudaEngine",
}


@pytest.fixture(scope="module")
def libraries() -> dict[str, dict[str, list[str]]]:
    """Members by class, of TensorRT 10.16 and 11.4 as recorded and of the TensorRT-RTX that is installed."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    classes = {name: dir(value) for name, value in vars(rtx).items() if isinstance(value, type)}
    return {**NAMES, "rtx": {"": [name for name in vars(rtx) if name not in classes], **classes}}


def has(library: dict[str, list[str]], owner: str, name: str) -> bool:
    return name in library.get(owner, ()) or (owner == "" and name in library)


def versions_of(owner: str, name: str) -> list[str]:
    """The only version that has it, or [] where all do."""
    return [version for version, names in ONLY.items() if (owner, name) in names]


def _class_of(annotation: ast.expr | None) -> str | None:
    """``trt.ICudaEngine`` or ``trt.ICudaEngine | None`` → ``ICudaEngine``."""
    if isinstance(annotation, ast.BinOp):
        return _class_of(annotation.left)
    if (
        isinstance(annotation, ast.Attribute)
        and isinstance(annotation.value, ast.Name)
        and annotation.value.id == "trt"
    ):
        return annotation.attr
    return None


def uses(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(class, member) for what is annotated as ``trt.…``, and ("", name) for what is taken from ``….module``."""
    fields = FIELDS | {
        node.target.id: found
        for kind in tree.body
        if isinstance(kind, ast.ClassDef)
        for node in kind.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and (found := _class_of(node.annotation))
    }
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        known = {argument.arg: _class_of(argument.annotation) for argument in function.args.args}
        modules = {"module"}
        for node in ast.walk(function):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                known[node.target.id] = _class_of(node.annotation) or known.get(node.target.id)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                made = node.value.func if isinstance(node.value, ast.Call) else None
                if isinstance(made, ast.Attribute) and made.attr in RESULTS:
                    known[node.targets[0].id] = RESULTS[made.attr]
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute):
                continue
            base = node.value
            if isinstance(base, ast.Name) and known.get(base.id):
                yield str(known[base.id]), node.attr
            elif isinstance(base, ast.Attribute) and base.attr in fields:
                yield fields[base.attr], node.attr
            elif isinstance(base, ast.Attribute | ast.Name) and _last(base) in modules:
                yield "", node.attr
            elif isinstance(base, ast.Attribute) and _last(base.value) in modules:
                yield base.attr, node.attr


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_every_name_that_is_used_exists_in_all_of_them(libraries: dict[str, dict[str, list[str]]]) -> None:
    found = set()
    for path in USERS:
        for owner, name in uses(ast.parse(path.read_text())):
            if not name.startswith("__"):
                found.add((owner, name))
                behind = path.name in ("versions.py", "calibration.py")
                wanted = (versions_of(owner, name) if behind else []) or list(libraries)
                missing = [version for version in wanted if not has(libraries[version], owner, name)]
                assert not missing, f"{path.name} uses {owner}.{name}, which {', '.join(missing)} lacks"
    expected = {("Builder", "build_serialized_network"), ("ICudaEngine", "get_tensor_profile_shape"), ("", "Runtime")}
    expected |= {("IExecutionContext", "execute_async_v3"), ("BuilderFlag", "TF32"), ("ParserError", "node_name")}
    assert expected <= found, "the search finds what it should"


@pytest.mark.parametrize("double", [engine_double, builder_double], ids=["engine", "builder"])
def test_a_double_has_nothing_that_the_real_ones_lack(
    libraries: dict[str, dict[str, list[str]]], double: ModuleType
) -> None:
    checked = 0
    tree = ast.parse(Path(str(double.__file__)).read_text())
    kinds = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert {kind.name for kind in kinds} == {kind.__name__ for kind in double.CLASSES}
    for kind in kinds:
        names = {node.name for node in kind.body if isinstance(node, ast.FunctionDef)}
        names |= {t.id for n in kind.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        names |= {
            node.attr
            for node in ast.walk(kind)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _last(node.value) == "self"
        }
        for name in sorted(name for name in names if not name.startswith("_")):
            for version in versions_of("", kind.name) or versions_of(kind.name, name) or libraries:
                assert has(libraries[version], kind.name, name), f"{version}: {kind.name}.{name}"
                checked += 1
    assert checked > 40


def test_a_name_that_is_gone_would_be_seen() -> None:
    gone = "def f(engine: trt.ICudaEngine, library):\n    engine.num_bindings\n    library.module.BuilderFlag.FP16\n"
    found = set(uses(ast.parse(gone)))
    assert {("ICudaEngine", "num_bindings"), ("BuilderFlag", "FP16")} <= found
    assert not has(NAMES["11.4.0.106"], "ICudaEngine", "num_bindings")
    assert not has(NAMES["11.4.0.106"], "BuilderFlag", "FP16")
    assert has(NAMES["10.16.1.11"], "BuilderFlag", "FP16")

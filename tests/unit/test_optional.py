from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from alexdeploy.errors import UnavailableError
from alexdeploy.optional import EXTRA_OF_MODULE, require, unavailable


def test_a_missing_library_is_answered_with_the_pip_line_of_its_extra() -> None:
    error = unavailable(ModuleNotFoundError(name="tensorrt_rtx.tools"))
    assert str(error) == "'tensorrt_rtx' is not installed; install it with: pip install 'alexdeploy[rtx]'"


def test_a_missing_module_that_is_no_optional_library_stays_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError, match="alexdeploy_has_no_such_module"):
        require("alexdeploy_has_no_such_module")


def test_a_library_that_cannot_load_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_broken_library.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnavailableError, match=r"a_broken_library.*cannot be imported.*libcudart\.so\.12"):
        require("a_broken_library")


@pytest.mark.parametrize(("module", "extra"), EXTRA_OF_MODULE.items())
def test_the_extra_that_is_named_brings_the_module(module: str, extra: str) -> None:
    project = msgspec.toml.decode((Path(__file__).parents[2] / "pyproject.toml").read_bytes())["project"]
    distributions = [re.split(r"[<>=\[]", line)[0] for line in project["optional-dependencies"][extra]]
    other_names = {
        "sklearn": "scikit-learn",
        "PIL": "pillow",
        "cuda": "cuda-bindings",
        "mlperf_loadgen": "mlcommons-loadgen",
    }
    assert other_names.get(module, module.replace("_", "-")) in distributions

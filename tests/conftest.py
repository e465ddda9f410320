from __future__ import annotations

import os

import pytest

from alexdeploy.machine import why_no_cuda

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables would be as narrow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_no_cuda()
    if reason is not None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=reason))

"""One builder per public bug report or per shape that people bring: the smallest graph of it, with onnx.helper.

The reports are listed in the docstrings; the graphs are our own, in their shape.
"""

from __future__ import annotations

from tests.field.zoo import (
    constants,
    divisions,
    layers,
    layouts,
    loading,
    named,
    normalizations,
    numbers,
    opsets,
    quantized,
    told,
)
from tests.helpers import foreign_graphs

FAMILIES = (numbers, divisions, loading, told, layouts, opsets, layers, normalizations, constants, named, quantized)
ZOO = {maker.__name__: maker for family in FAMILIES for maker in family.MAKERS} | foreign_graphs.ALL
